"""Models that the baselines start from, and how they are saved: whole, as safetensors, with their tokenizer.

Promises: every baseline takes the same specs (`embedded`, a GGUF file, a folder, a hub id); what it writes is a folder
that transformers loads without any adapter library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpo_integrations.engines.causal_lm import load_causal_lm
from bpo_integrations.models.base import download_allowed
from bpo_train.data.outputs import replacing

METRICS = "metrics.json"
"""What a training measured, in its output folder; it is written last, so that its being there means that it is done."""


def compute_dtype(device: str | None = None) -> str:
    """Return torch's name of the type that a device computes in at its best.

    A GPU's is `best_dtype`'s. A CPU computes in bfloat16 where it has instructions for that (AMX, AVX512-BF16): on two
    cores with AMX a training step and a batch of answers took half the time of float32. Others are slower in it.

    Args:
        device: torch's name of it; None takes the one that models are put on here.
    """
    import torch

    from bpo_integrations.engines.transformers import best_device, best_dtype

    device = device or best_device()
    if torch.device(device).type != "cpu":
        return best_dtype(device)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return "bfloat16" if known.get("amx_bf16") or known.get("avx512_bf16") else "float32"


def load_model(spec: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Load an answering model and its tokenizer.

    Args:
        spec: As for `load_causal_lm`.
        dtype: torch's name of the weights' type; `auto` counts as float32, which is what is trained.
    """
    local = spec == "embedded" or Path(spec).exists()
    kind = "float32" if dtype == "auto" else dtype
    return load_causal_lm(spec, dtype=kind, allow_download=not local and download_allowed())


def reward_model_from(causal: Any, tokenizer: Any) -> Any:
    """Return a model with the trunk of a causal one and a new head of one output.

    The score is read at the last token that is no padding, so that the end of the turn must be another token than the
    padding; where the tokenizer has one for both, another special token pads.

    Args:
        causal: A causal model of transformers; its weights are shared, not copied.
        tokenizer: Its tokenizer; its padding may be changed.
    """
    from transformers import AutoModelForSequenceClassification

    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        specials = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
        others = [text for text in specials if text not in (tokenizer.eos_token, tokenizer.bos_token)]
        tokenizer.pad_token = others[0] if others else tokenizer.eos_token
    config = type(causal.config).from_dict({**causal.config.to_dict(), "num_labels": 1})
    config.pad_token_id = tokenizer.pad_token_id
    model: Any = AutoModelForSequenceClassification.from_config(config, dtype=causal.dtype)
    setattr(model, model.base_model_prefix, causal.base_model)
    return model


def as_folder(spec: str, folder: Path) -> str:
    """Return a spec that transformers itself can load: the embedded base is written to `folder` first.

    Args:
        spec: As for `load_causal_lm`.
        folder: Where it is written, in float32, unless it is there.
    """
    if spec != "embedded" and not spec.endswith(".gguf"):
        return spec
    if not (folder / METRICS).is_file():
        model, tokenizer = load_model(spec)
        save_model(model, tokenizer, folder)
        write_metrics(folder, {"parameters": float(sum(weight.numel() for weight in model.parameters()))})
    return str(folder)


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write whole weights and the tokenizer; an adapter of PEFT is merged first.

    Raises:
        OSError: The folder cannot be written.
    """
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def save_trained(trainer: Any, tokenizer: Any, folder: Path) -> None:
    """Write what a trainer of transformers has trained; every process must call this.

    Raises:
        OSError: The folder cannot be written.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        trainer.save_model(str(folder))  # puts the parts together, from all processes
    elif trainer.is_world_process_zero():
        save_model(trainer.accelerator.unwrap_model(trainer.model), tokenizer, folder)


def write_metrics(folder: Path, metrics: Mapping[str, float]) -> None:
    """Write what a training measured.

    Raises:
        FileError: The file cannot be written.
    """
    with replacing(folder / METRICS) as file:
        file.write(json.dumps(dict(metrics), indent=2) + "\n")


def read_metrics(folder: Path) -> dict[str, float]:
    """Read what a training measured; empty where it has not come to its end."""
    path = folder / METRICS
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
