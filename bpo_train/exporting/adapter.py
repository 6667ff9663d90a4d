"""The adapter alone: LoRA factors as PEFT stores them, of one run or the mean of several, without what only trains.

bfloat16, the default, halves an adapter (a rank-16 adapter of SmolLM2-135M is 9.8 MB).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from bpo_integrations.models.base import BASE_ID
from bpo_integrations.rewriter import RECORD_FILE, Record
from bpo_train.exporting.trained import adapter_config

_KEPT_CONFIG = (
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
_KEPT_WHERE_SET = ("alpha_pattern", "layers_pattern", "layers_to_transform", "lora_bias", "rank_pattern")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def export_adapter(
    runs: Sequence[Path],
    output: Path,
    record: Record,
    *,
    base: str = BASE_ID,
    card: str | None = None,
    dtype: str = "bfloat16",
) -> Path:
    """Export a LoRA run, or the mean of several.

    Runs and checkpoints that began at the same weights (the same seed) can be averaged, factor by factor, which often
    does better than each of them ("Model soups", Wortsman et al., 2022).

    Args:
        runs: Folders that PEFT saved: a run's output, or one of its checkpoints.
        output: Where the files go; made when missing.
        record: What `bpo.json` shall say.
        base: The base model's hub id or folder.
        card: The text of the model card (README.md); None leaves the card that is there.
        dtype: torch's name of the type that the factors are stored in.

    Returns:
        `output`.

    Raises:
        ConfigurationError: A run holds no adapter, or the runs' adapters are not of one shape.
    """
    import torch
    from safetensors.torch import load_file, save_file

    for run in runs:
        if not (run / ADAPTER_WEIGHTS).is_file():
            msg = f"{run} holds no {ADAPTER_WEIGHTS}."
            raise ConfigurationError(msg, hint="Give the output folder of a LoRA run, or one of its checkpoints.")
    adapters = [load_file(run / ADAPTER_WEIGHTS) for run in runs]
    shapes = [{name: weight.shape for name, weight in adapter.items()} for adapter in adapters]
    if not runs or any(shape != shapes[0] for shape in shapes):
        msg = "These runs cannot be averaged: their adapters differ in shape."
        raise ConfigurationError(msg, hint="Average runs of one recipe.")
    output.mkdir(parents=True, exist_ok=True)
    kind = getattr(torch, dtype)
    weights = {
        name: torch.stack([adapter[name].float() for adapter in adapters]).mean(0).to(kind).contiguous()
        for name in adapters[0]
    }
    save_file(weights, output / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = adapter_config(runs[0])
    kept = {name: config[name] for name in _KEPT_CONFIG if name in config}
    kept |= {name: config[name] for name in _KEPT_WHERE_SET if config.get(name)}
    kept |= {"base_model_name_or_path": base, "inference_mode": True}
    if isinstance(kept["target_modules"], list):
        kept["target_modules"] = sorted(kept["target_modules"])
    (output / ADAPTER_CONFIG).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    (output / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    if card is not None:
        (output / "README.md").write_text(card, encoding="utf-8")
    return output


def copy_tokenizer(run: Path, output: Path) -> None:
    """Copy the tokenizer's files of a run beside exported weights, for engines that read them there."""
    for name in _TOKENIZER:
        if (run / name).is_file():
            shutil.copyfile(run / name, output / name)
