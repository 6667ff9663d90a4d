"""The container format GGUF: key/value metadata and the directory of tensors, read in a tenth of a second.

Reads versions 2 and 3, little-endian. Promises: a file that is cut off or garbled is refused before any weight is used.
`gguf.GGUFReader` does the same in five seconds for a vocabulary of 49,152 tokens; its dequantization is used as it is.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.errors import MissingExtraError, ModelFormatError, ModelNotFoundError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in the file.

    Args:
        shape: Rows first, as numpy has it.
        kind: ggml's number of the quantization.
        start: First byte, from the beginning of the file.
        size: Number of bytes.
    """

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class GGUFFile:
    """A GGUF file's metadata and tensors.

    Args:
        path: The file.

    Raises:
        MissingExtraError: `gguf` or `numpy` is not installed.
        ModelNotFoundError: The file cannot be opened.
        ModelFormatError: It is not a whole GGUF file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise MissingExtraError(error.name or "gguf", extra="local") from error
        self.path = path
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.metadata, self.tensors = _read(data)
        except OSError as error:
            msg = f"{path} cannot be opened: {error.strerror or error}."
            raise ModelNotFoundError(msg, hint="Give the path of a readable GGUF file.") from error
        except (struct.error, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
            msg = f"{path} cannot be read as a GGUF file: {error}."
            raise ModelFormatError(msg, hint="The file may be cut off; install or download it again.") from error

    def load(self, name: str) -> NDArray[np.float32]:
        """Return a tensor in float32, as a new array."""
        import numpy as np
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.kind)
        raw = np.fromfile(self.path, dtype=np.uint8, count=tensor.size, offset=tensor.start)
        native = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind)
        if native is not None:
            return raw.view(native).reshape(tensor.shape).astype(np.float32)
        try:
            rows = raw.reshape(quant_shape_to_byte_shape(tensor.shape, kind))
            return np.ascontiguousarray(dequantize(rows, kind), dtype=np.float32)
        except NotImplementedError as error:
            msg = f"{self.path} stores {name} as {kind.name}, which cannot be dequantized."
            raise ModelFormatError(msg, hint="Use a file quantized as Q4_1, Q8_0, F16 or the like.") from error


class _Cursor:
    """Reads little-endian values from a buffer, one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalars(self, code: str, count: int = 1) -> tuple[Any, ...]:
        layout = f"<{count}{code}"
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self) -> str:
        (length,) = self.scalars("Q")
        end = self.at + length
        if end > len(self.data):
            msg = "a string runs past the end of the file"
            raise ValueError(msg)
        # Some vocabularies hold bytes that are no UTF-8; such a token is never looked up by its text.
        text = self.data[self.at : end].decode("utf-8", errors="replace")
        self.at = end
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            (item,) = self.scalars("I")
            (count,) = self.scalars("Q")
            if item in _SCALARS:
                return list(self.scalars(_SCALARS[item], count))
            return [self.value(item) for _ in range(count)]
        return self.scalars(_SCALARS[kind])[0]


def _read(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor = _Cursor(data)
    if data[:4] != b"GGUF":
        msg = "it does not begin with GGUF"
        raise ValueError(msg)
    cursor.at = 4
    (version,) = cursor.scalars("I")
    if version not in (2, 3):
        msg = f"version {version} is not supported"
        raise ValueError(msg)
    tensor_count, value_count = cursor.scalars("Q", 2)
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalars("I")[0])
    found = []
    for _ in range(tensor_count):
        name = cursor.string()
        (dimensions,) = cursor.scalars("I")
        shape = tuple(reversed(cursor.scalars("Q", dimensions)))
        (kind,) = cursor.scalars("I")
        (offset,) = cursor.scalars("Q")
        found.append((name, shape, kind, offset))
    alignment = int(metadata.get("general.alignment", _ALIGNMENT))
    begin = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in found:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        elements = 1
        for length in shape:
            elements *= length
        tensors[name] = StoredTensor(shape, kind, begin + offset, elements // block * block_bytes)
        if begin + offset + tensors[name].size > len(data):
            msg = f"the tensor {name} runs past the end of the file"
            raise ValueError(msg)
    return metadata, tensors
