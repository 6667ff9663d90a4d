"""From a training run to files that a rewriter loads: the adapter in bfloat16, `bpo.json`, a model card.

bfloat16 halves the adapter (a rank-16 adapter of SmolLM2-135M is 9.8 MB); it is what the runtime merges, so what is
measured is what is shipped.
"""

from __future__ import annotations

import json
import shutil
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


def export_adapter(run: Path, output: Path, record: Record, *, base: str = BASE_ID, card: str | None = None) -> Path:
    """Export a LoRA run.

    Args:
        run: A folder that PEFT saved: a run's output, or one of its checkpoints.
        output: Where the files go; made when missing.
        record: What `bpo.json` shall say.
        base: The base model's hub id.
        card: The text of the model card (README.md); None leaves the card that is there.

    Returns:
        `output`.

    Raises:
        ConfigurationError: `run` holds no adapter.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if not (run / ADAPTER_WEIGHTS).is_file():
        msg = f"{run} holds no {ADAPTER_WEIGHTS}."
        raise ConfigurationError(msg, hint="Give the output folder of a LoRA run, or one of its checkpoints.")
    output.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in load_file(run / ADAPTER_WEIGHTS).items()}
    save_file(weights, output / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (output / ADAPTER_WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    config: dict[str, Any] = json.loads((run / ADAPTER_CONFIG).read_text(encoding="utf-8"))
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
