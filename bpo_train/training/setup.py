"""Whether a run can work on this machine: what cannot is refused before anything is loaded.

Each refusal says the command line that works. Pure, but for `Machine.here`, which looks.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bpo_integrations.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run finds.

    Args:
        gpus: CUDA devices that this process sees.
        bf16: Whether they compute in bfloat16.
        launched: Whether a launcher started this process as one of several, or on one device.
        processes: How many processes train together.
    """

    gpus: int = 0
    bf16: bool = False
    launched: bool = False
    processes: int = 1

    @classmethod
    def here(cls) -> Machine:
        """Look at this machine and this process."""
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(
            gpus=gpus,
            bf16=gpus > 0 and torch.cuda.is_bf16_supported(including_emulation=False),
            launched="LOCAL_RANK" in os.environ,
            processes=int(os.environ.get("WORLD_SIZE", "1")),
        )


def check_setup(values: Namespace, machine: Machine, options: Sequence[str], *, stage: str = "sft") -> None:
    """Refuse a run that cannot work, or would not do what it says.

    Args:
        values: Recipe and command line, as `RecipeParser.preview` returns them.
        machine: Where it shall run.
        options: The command line, to which the right one is close.
        stage: The command's name.

    Raises:
        ConfigurationError: With the command line that works.
    """

    def command(*changes: str) -> str:
        return shlex.join(["bpo-train", stage, *options, *changes])

    def value(name: str) -> Any:
        return getattr(values, name, None)

    quantized = value("load_in_4bit") or value("load_in_8bit")
    if machine.gpus > 1 and not machine.launched:
        msg = f"This machine has {machine.gpus} GPUs, and one process can train on one of them only."
        hint = (
            f"All of them: {command('--accelerate_config', 'ddp', '--num_processes', str(machine.gpus))} "
            f"One of them: CUDA_VISIBLE_DEVICES=0 {command()}"
        )
        raise ConfigurationError(msg, hint=hint)
    for name in ("bf16", "fp16"):
        if value(name) and machine.gpus == 0:
            msg = f"{name} needs a GPU, and this machine has none."
            raise ConfigurationError(msg, hint=f"Run: {command(f'--{name}', 'false')}")
    if value("bf16") and not machine.bf16:
        msg = "This GPU does not compute in bf16."
        raise ConfigurationError(msg, hint=f"Run: {command('--bf16', 'false', '--fp16', 'true')}")
    if quantized and machine.gpus == 0:
        which = "load_in_4bit" if value("load_in_4bit") else "load_in_8bit"
        msg = f"{which} (QLoRA) needs a CUDA device, and this machine has none."
        raise ConfigurationError(msg, hint=f"Run: {command(f'--{which}', 'false')}")
    if quantized and not value("use_peft"):
        msg = "Quantized weights cannot be trained; an adapter beside them can."
        raise ConfigurationError(msg, hint=f"Run: {command('--use_peft', 'true')}")
    if value("padding_free") and machine.gpus == 0:
        msg = "padding_free needs FlashAttention, and so a GPU."
        hint = f"Run: {command('--padding_free', 'false', '--train_sampling_strategy', 'group_by_length')}"
        raise ConfigurationError(msg, hint=hint)
    if value("packing"):
        msg = "Rows are not packed here: each is a conversation of its own."
        raise ConfigurationError(
            msg, hint=f"Run: {command('--packing', 'false', '--train_sampling_strategy', 'group_by_length')}"
        )
    if value("trust_remote_code"):
        msg = "Code from a hub is never run."
        raise ConfigurationError(msg, hint=f"Run: {command('--trust_remote_code', 'false')}")
    if value("model_revision") not in (None, "main"):
        msg = "A revision cannot be chosen here."
        raise ConfigurationError(
            msg, hint="Download it (hf download ID --revision R --local-dir DIR) and give --model_name_or_path DIR."
        )
    reports = value("report_to") or []
    for name in [reports] if isinstance(reports, str) else reports:
        if name not in ("none", "all") and importlib.util.find_spec(name) is None:
            msg = f"report_to {name} needs a package that is not installed."
            raise ConfigurationError(msg, hint=f"Run: pip install {name}; or: {command('--report_to', 'none')}")


def accumulation(total: int | None, per_device: int, processes: int, configured: int) -> int:
    """Return over how many batches gradients are accumulated.

    Args:
        total: Rows a step over all processes; None leaves `configured`.
        per_device: Rows of a batch of one process.
        processes: Processes that train together.
        configured: TRL's `gradient_accumulation_steps`.

    Raises:
        ConfigurationError: The rows of a step cannot be shared out evenly.

    Example:
        >>> accumulation(32, 4, 2, 1)
        4
    """
    if total is None:
        return configured
    steps, left = divmod(total, per_device * processes)
    if left or not steps:
        msg = f"total_batch_size={total} cannot be shared among {processes} processes with {per_device} rows each."
        raise ConfigurationError(msg, hint="Change --per_device_train_batch_size or --total_batch_size.")
    return steps
