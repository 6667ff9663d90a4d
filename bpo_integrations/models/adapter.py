"""A LoRA adapter, as PEFT stores it, merged into float32 weights with numpy.

Promises: an adapter that is not plain LoRA, or that has a tensor the base has no place for, is refused. Neither torch
nor peft is needed. `W + B @ A * alpha / r` (Hu et al. 2021, arXiv 2106.09685, section 4.1; PEFT's `merge_and_unload`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.errors import MissingExtraError, ModelFormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_HINT = "Train and export a plain LoRA adapter with bpo-train."

_MUST_BE_UNSET = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "layers_pattern",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
"""Options of PEFT's LoraConfig under which the weights would no longer be the plain sum above."""


class LoRA:
    """A LoRA adapter in memory.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors` (F32, F16 or BF16).

    Raises:
        MissingExtraError: `safetensors` or `numpy` is not installed.
        ModelFormatError: The files are missing, broken, or of a variant that cannot be merged.

    Example:
        >>> adapter = LoRA(Path("runs/augment"))  # doctest: +SKIP
        >>> weight = adapter.merge("model.layers.0.mlp.up_proj.weight", weight)  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = _read_config(folder / ADAPTER_CONFIG)
        rank = int(config["r"])
        self.scale = float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._a: dict[str, NDArray[np.float32]] = {}
        self._b: dict[str, NDArray[np.float32]] = {}
        for key, array in _read_tensors(folder / ADAPTER_WEIGHTS).items():
            module, _, kind = key.removeprefix(_PREFIX).rpartition(".lora_")
            place = {"A.weight": self._a, "B.weight": self._b}.get(kind)
            if not key.startswith(_PREFIX) or place is None:
                msg = f"{folder} holds the tensor {key!r}, which no plain LoRA adapter has."
                raise ModelFormatError(msg, hint=_HINT)
            place[f"{module}.weight"] = array
        unpaired = self._a.keys() ^ self._b.keys()
        if unpaired or not self._a:
            msg = f"{folder} lacks half of the pair for {min(unpaired)}." if unpaired else f"{folder} holds no weights."
            raise ModelFormatError(msg, hint=_HINT)
        wrong = [name for name in self._a if not self._a[name].shape[0] == self._b[name].shape[1] == rank]
        if wrong:
            msg = f"{folder}: the rank of {wrong[0]} is not {rank}."
            raise ModelFormatError(msg, hint=_HINT)

    @property
    def names(self) -> frozenset[str]:
        """transformers' names of the weights that this adapter changes."""
        return frozenset(self._a)

    def check(self, names: Iterable[str]) -> None:
        """Make sure that the base has every weight that this adapter changes.

        Raises:
            ModelFormatError: It lacks one, so the adapter is for another model.
        """
        unused = sorted(self.names - set(names))
        if unused:
            msg = f"{self.folder} changes {unused[0]!r}, which the base does not have ({len(unused)} such)."
            raise ModelFormatError(msg, hint="Give the base that the adapter was trained on.")

    def merge(self, name: str, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the weight with the adapter's share added in float32; as it is where the adapter has none.

        Raises:
            ModelFormatError: The shapes do not fit.
        """
        import numpy as np

        if name not in self._a:
            return weight
        a, b = self._a[name], self._b[name]
        if (b.shape[0], a.shape[1]) != weight.shape:
            msg = f"{self.folder}: {name} is {(b.shape[0], a.shape[1])}, the base's is {weight.shape}."
            raise ModelFormatError(msg, hint="Give the base that the adapter was trained on.")
        merged: NDArray[np.float32] = weight + (b @ a) * np.float32(self.scale)
        return merged


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, bias = config["peft_type"], config.get("bias", "none")
        plain = isinstance(config["r"], int) and config["r"] > 0 and float(config["lora_alpha"]) > 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} cannot be used: {error}."
        raise ModelFormatError(msg, hint=_HINT) from error
    unsupported = [name for name in _MUST_BE_UNSET if config.get(name)]
    if kind != "LORA" or bias != "none" or not plain:
        unsupported.append(f"peft_type={kind}, bias={bias}, r={config['r']}, lora_alpha={config['lora_alpha']}")
    if unsupported:
        msg = f"{path} asks for {unsupported[0]}, which is not supported."
        raise ModelFormatError(msg, hint=_HINT)
    return dict(config)


def _read_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read a safetensors file as float32; `safetensors.numpy` itself refuses BF16."""
    try:
        import numpy as np
        import safetensors
    except ImportError as error:
        raise MissingExtraError(error.name or "safetensors", extra="local") from error
    try:
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, safetensors.SafetensorError) as error:
        msg = f"{path} cannot be read: {error}."
        raise ModelFormatError(msg, hint="The file may be cut off; install or export it again.") from error
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, entry in entries:
        raw, kind = entry["data"], entry["dtype"]
        if kind == "BF16":  # the upper half of a float32
            array = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        elif kind in ("F32", "F16"):
            array = np.frombuffer(raw, "<f4" if kind == "F32" else "<f2").astype(np.float32)
        else:
            msg = f"{path} stores {name} as {kind}."
            raise ModelFormatError(msg, hint="Store the adapter as F32, F16 or BF16.")
        arrays[name] = array.reshape(entry["shape"])
    return arrays
