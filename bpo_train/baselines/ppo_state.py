"""Checkpoints of a PPO run: what is trained, the optimizer's state, the step and the KL control.

Promises: tensors as safetensors, the rest as JSON, nothing pickled; a checkpoint takes its name when it is complete, so
that a killed run goes on from a whole one; the last one is kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bpo_integrations.errors import ConfigurationError
from bpo_train.baselines.ppo_step import KLControl

WEIGHTS, MOMENTS, STATE = "trained.safetensors", "optimizer.safetensors", "state.json"
_ADAM = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, control: KLControl
) -> None:
    """Write `checkpoint-STEP` into a run's folder, and remove the older ones.

    Raises:
        OSError: It cannot be written.
    """
    from safetensors.torch import save_file

    made = folder / f".checkpoint-{step}.new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    trained = _trained(model)
    save_file({name: weight.detach().contiguous() for name, weight in trained.items()}, made / WEIGHTS)
    moments = {
        f"{kind}.{name}": torch.as_tensor(optimizer.state[weight][kind]).contiguous()
        for name, weight in trained.items()
        for kind in _ADAM
        if kind in optimizer.state[weight]
    }
    save_file(moments, made / MOMENTS)
    (made / STATE).write_text(json.dumps({"step": step, "kl_weight": control.weight}), encoding="utf-8")
    older = _checkpoints(folder)
    made.replace(folder / f"checkpoint-{step}")
    for path in older:
        if path.name != f"checkpoint-{step}":
            shutil.rmtree(path)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float] | None:
    """Put the last checkpoint into model and optimizer.

    Returns:
        The steps that it has behind it and the weight of the KL penalty; None where there is no checkpoint.

    Raises:
        ConfigurationError: The checkpoint is another model's.
    """
    from safetensors.torch import load_file

    found = _checkpoints(folder)
    if not found:
        return None
    state: dict[str, Any] = json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
    weights, moments = load_file(found[-1] / WEIGHTS), load_file(found[-1] / MOMENTS)
    trained = _trained(model)
    if {name: weight.shape for name, weight in trained.items()} != {name: w.shape for name, w in weights.items()}:
        msg = f"{found[-1]} is of another model."
        raise ConfigurationError(msg, hint="Name another --output_dir, or remove it.")
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(weights[name])
            kinds = {kind: moments[f"{kind}.{name}"] for kind in _ADAM if f"{kind}.{name}" in moments}
            optimizer.state[weight] = {
                kind: tensor if kind == "step" else tensor.to(weight.device) for kind, tensor in kinds.items()
            }
    return int(state["step"]), float(state["kl_weight"])


def remove_checkpoints(folder: Path) -> None:
    """Remove a finished run's checkpoints."""
    for path in _checkpoints(folder):
        shutil.rmtree(path)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))
