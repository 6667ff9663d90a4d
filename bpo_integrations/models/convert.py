"""From the weights of a Llama, and a LoRA adapter where there is one, to a folder that CTranslate2 runs.

Writes `model.bin` weight by weight (at most one matrix is in memory in float32), so a conversion needs some 200 MB and
seconds. Promises: the files equal, byte for byte, those that CTranslate2's own converter writes for the same weights.
That converter is not used because importing it imports torch and transformers wherever they are installed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, TypeAlias

from bpo_integrations.models.adapter import LoRA
from bpo_integrations.models.gguf_base import OUTPUT_WEIGHT, LlamaShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

Quantization = Literal["int8", "float32"]

MODEL_FILE = "model.bin"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"

CONVERTER_VERSION = 1
"""Raised whenever this module writes other bytes for the same input, so that cached folders are made anew."""

_BINARY_VERSION = 6  # ctranslate2.specs.model_spec.CURRENT_BINARY_VERSION (4.8); newer runtimes read older files
_SPEC_NAME, _SPEC_REVISION = "TransformerDecoderSpec", 8
_TYPE_IDS = ("float32", "int8", "int16", "int32", "float16", "bfloat16")  # order of its DataType
_SWISH = 2  # ctranslate2.specs.common_spec.Activation.SWISH

Arrays: TypeAlias = "Callable[[], NDArray[Any]]"


class LlamaWeights(Protocol):
    """A Llama's weights and tokenizer, wherever they come from; `GGUFBase` is one."""

    @property
    def shape(self) -> LlamaShape:
        """The hyper-parameters."""

    @property
    def names(self) -> list[str]:
        """transformers' names of the weights; `lm_head.weight` only where it is not tied to the embedding."""

    def weight(self, name: str) -> NDArray[np.float32]:
        """Return one weight as a new float32 array in transformers' layout."""

    @property
    def tokens(self) -> list[str]:
        """The vocabulary, a token for each row of the embedding."""

    @property
    def begin_token(self) -> str:
        """The token that begins a text."""

    @property
    def end_token(self) -> str:
        """The token that ends a turn."""

    @property
    def unknown_token(self) -> str:
        """The token that stands for nothing known."""

    @property
    def chat_template(self) -> str:
        """The model's Jinja chat template."""

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""


def convert(
    base: LlamaWeights, folder: Path, *, adapter: LoRA | None = None, quantization: Quantization = "int8"
) -> None:
    """Write the model into an existing folder.

    Args:
        base: The model, or the base of the adapter.
        folder: Receives `model.bin`, `config.json`, `vocabulary.json`, `tokenizer.json` and `chat_template.jinja`.
        adapter: Merged into the base's weights in float32, before they are quantized.
        quantization: `int8` (one scale a row), or `float32` for reference.

    Raises:
        ModelFormatError: The adapter does not fit the base.
        OSError: The folder cannot be written, or the disk is full.

    Example:
        >>> convert(GGUFBase(find_base()), Path("model"))  # doctest: +SKIP
    """
    if adapter is not None:
        adapter.check(base.names)

    def weight(name: str) -> NDArray[np.float32]:
        array = base.weight(name)
        return adapter.merge(name, array) if adapter is not None else array

    aliases = {}
    if OUTPUT_WEIGHT not in base.names:
        aliases["decoder/projection/weight"] = "decoder/embeddings/weight"
    with (folder / MODEL_FILE).open("wb") as file:
        _write_model(file, _variables(base, weight, quantization), aliases)
    # Written by Python: the tokenizer's own `save` raises a bare Exception on a full disk.
    (folder / TOKENIZER_FILE).write_text(base.tokenizer().to_str(pretty=False), encoding="utf-8")
    (folder / TEMPLATE_FILE).write_text(base.chat_template, encoding="utf-8")
    # The two files below are written as ctranslate2.specs.model_spec does.
    with (folder / "vocabulary.json").open("w", encoding="utf-8") as text:
        json.dump(base.tokens, text, indent=2)
    config = {
        "bos_token": base.begin_token,
        "eos_token": base.end_token,
        "unk_token": base.unknown_token,
        "layer_norm_epsilon": base.shape.norm_eps,
        "multi_query_attention": True,
        "max_position_embeddings": base.shape.context,  # CTranslate2 itself knows no limit; its engine here reads it
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _variables(
    base: LlamaWeights, weight: Callable[[str], NDArray[np.float32]], quantization: Quantization
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield CTranslate2's variables in the order of their names, each made when its turn comes."""
    import numpy as np

    shape = base.shape

    def matrix(*names: str) -> Arrays:
        return lambda: np.concatenate([weight(name) for name in names]) if len(names) > 1 else weight(names[0])

    matrices = {"decoder/embeddings": matrix("model.embed_tokens.weight")}
    if OUTPUT_WEIGHT in base.names:
        matrices["decoder/projection"] = matrix(OUTPUT_WEIGHT)
    vectors = {"decoder/layer_norm/gamma": "model.norm.weight"}
    scalars: dict[str, Any] = {
        "decoder/activation": np.int8(_SWISH),
        "decoder/alignment_heads": np.int16(1),
        "decoder/alignment_layer": np.int16(-1),
        "decoder/num_heads": np.int16(shape.heads),
        "decoder/pre_norm": np.int8(1),
    }
    unset = ("alibi", "alibi_use_positive_positions", "scale_alibi", "scale_embeddings", "start_from_zero_embedding")
    scalars |= {f"decoder/{name}": np.int8(0) for name in unset}
    for layer in range(shape.layers):
        source, target = f"model.layers.{layer}", f"decoder/layer_{layer}"
        attention, ffn = f"{target}/self_attention", f"{target}/ffn"
        matrices[f"{attention}/linear_0"] = matrix(*(f"{source}.self_attn.{part}_proj.weight" for part in "qkv"))
        matrices[f"{attention}/linear_1"] = matrix(f"{source}.self_attn.o_proj.weight")
        matrices[f"{ffn}/linear_0"] = matrix(f"{source}.mlp.gate_proj.weight")
        matrices[f"{ffn}/linear_0_noact"] = matrix(f"{source}.mlp.up_proj.weight")
        matrices[f"{ffn}/linear_1"] = matrix(f"{source}.mlp.down_proj.weight")
        vectors[f"{attention}/layer_norm/gamma"] = f"{source}.input_layernorm.weight"
        vectors[f"{ffn}/layer_norm/gamma"] = f"{source}.post_attention_layernorm.weight"
        scalars[f"{attention}/rotary_base"] = np.float32(shape.rope_base)
        scalars[f"{attention}/rotary_dim"] = np.int32(0)  # 0: the whole head
        scalars[f"{attention}/rotary_interleave"] = np.int8(0)
        if shape.kv_heads != shape.heads:
            scalars[f"{attention}/num_heads_kv"] = np.int32(shape.kv_heads)
    for name in sorted({f"{key}/weight" for key in matrices} | vectors.keys() | scalars.keys()):
        if name in scalars:
            yield name, np.asarray(scalars[name])
        elif name in vectors:
            yield name, weight(vectors[name])
        else:
            array = matrices[name.removesuffix("/weight")]()
            if quantization == "int8":
                array, scale = quantize_rows(array)
                yield name, array
                yield f"{name}_scale", scale
            else:
                yield name, array


def quantize_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize each row to 8 bits with a scale of its own: `weight` is about `quantized / scale`.

    Args:
        weight: A matrix of shape [out, in]; it is changed in place.

    Returns:
        The int8 matrix, and the scales of shape [out]. The arithmetic is `ctranslate2.specs`', bit for bit.
    """
    import numpy as np

    amax = np.amax(np.absolute(weight), axis=1)
    amax[amax == 0] = 127.0
    amax = np.maximum(amax, np.float32(127) / np.finfo(np.float32).max)
    scale: NDArray[np.float32] = np.float32(127.0) / amax
    weight *= scale[:, None]
    return np.rint(weight, out=weight).astype(np.int8), scale


def _write_model(file: BinaryIO, variables: Iterable[tuple[str, NDArray[Any]]], aliases: dict[str, str]) -> None:
    """Write CTranslate2's binary format (ctranslate2.specs.model_spec.ModelSpec._serialize)."""

    def write_name(name: str) -> None:
        encoded = name.encode() + b"\0"
        file.write(struct.pack("<H", len(encoded)) + encoded)

    file.write(struct.pack("<I", _BINARY_VERSION))
    write_name(_SPEC_NAME)
    file.write(struct.pack("<I", _SPEC_REVISION))
    count_at = file.tell()
    file.write(struct.pack("<I", 0))
    count = 0
    for name, array in variables:
        write_name(name)
        file.write(struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape))
        file.write(struct.pack("<BI", _TYPE_IDS.index(array.dtype.name), array.nbytes))
        file.write(array.tobytes())
        count += 1
    file.write(struct.pack("<I", len(aliases)))
    for alias, name in aliases.items():
        write_name(alias)
        write_name(name)
    file.seek(count_at)
    file.write(struct.pack("<I", count))
