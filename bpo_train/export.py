"""From a training run to files that a rewriter loads: the adapter in bfloat16, `bpo.json`, a model card.

bfloat16 halves the adapter (a rank-16 adapter of SmolLM2-135M is 9.8 MB); it is what the runtime merges, so what is
measured is what is shipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.models.base import BASE_ID
from bpo_integrations.rewriter import RECORD_FILE, Record

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
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


def export_adapter(
    runs: Sequence[Path], output: Path, record: Record, *, base: str = BASE_ID, card: str | None = None
) -> Path:
    """Export a LoRA run, or the mean of several.

    Runs and checkpoints that began at the same weights (the same seed) can be averaged, factor by factor, which often
    does better than each of them ("Model soups", Wortsman et al., 2022).

    Args:
        runs: Folders that PEFT saved: a run's output, or one of its checkpoints.
        output: Where the files go; made when missing.
        record: What `bpo.json` shall say.
        base: The base model's hub id.
        card: The text of the model card (README.md); None leaves the card that is there.

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
    weights = {
        name: torch.stack([adapter[name].float() for adapter in adapters]).mean(0).to(torch.bfloat16).contiguous()
        for name in adapters[0]
    }
    save_file(weights, output / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (output / ADAPTER_WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    config: dict[str, Any] = json.loads((runs[0] / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    kept = {name: config[name] for name in _KEPT_CONFIG if name in config}
    kept["base_model_name_or_path"] = base
    kept["target_modules"] = sorted(kept["target_modules"])
    (output / ADAPTER_CONFIG).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    (output / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    if card is not None:
        (output / "README.md").write_text(card, encoding="utf-8")
    return output


def copy_tokenizer(run: Path, output: Path) -> None:
    """Copy the tokenizer's files of a run beside exported weights, for engines that read them there."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (run / name).is_file():
            shutil.copyfile(run / name, output / name)
