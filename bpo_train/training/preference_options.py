"""Options of `bpo-train dpo` and `grpo`: recipe and command line into dataclasses, as `bpo-train sft` reads them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl import DPOConfig, GRPOConfig, ModelConfig

from bpo_integrations.errors import ConfigurationError
from bpo_train.training.launch import launch, launch_command, wants_launch
from bpo_train.training.options import RecipeParser, computes_in_bf16, with_recipe_path
from bpo_train.training.setup import Machine, check_setup


@dataclass
class DPOOptions(DPOConfig):
    """TRL's `DPOConfig`, with bf16 by device."""

    def __post_init__(self) -> None:
        """Settle what the device decides."""
        self.bf16 = computes_in_bf16(self)
        super().__post_init__()  # type: ignore[no-untyped-call]


@dataclass
class GRPOOptions(GRPOConfig):
    """TRL's `GRPOConfig`, with bf16 by device."""

    def __post_init__(self) -> None:
        """Settle what the device decides."""
        self.bf16 = computes_in_bf16(self)
        super().__post_init__()  # type: ignore[no-untyped-call]


def parsed(
    arguments: type, config: type, argv: Sequence[str] | None, *, stage: str, module: str
) -> tuple[Any, Any, Any]:
    """Parse `--config recipe.yaml` and options over it; or start the processes that several devices need, and end.

    Args:
        arguments: Dataclass of our own options.
        config: `DPOOptions` or `GRPOOptions`.
        argv: The options; None takes the process's.
        stage: The command's name.
        module: The module that the processes run.

    Returns:
        The filled dataclasses: ours, TRL's configuration, TRL's `ModelConfig`.

    Raises:
        ConfigurationError: The options cannot work; nothing has been loaded then.
    """
    options = with_recipe_path(sys.argv[1:] if argv is None else argv)
    kinds: Any = [arguments, config, ModelConfig]
    parser = RecipeParser(kinds, prog=f"bpo-train {stage}")
    values, unknown = parser.preview(options)
    machine = Machine.here()
    if wants_launch(unknown):
        sys.exit(launch(launch_command(module, options, unknown, gpus=machine.gpus)))
    if unknown:
        msg = f"Unknown options: {' '.join(unknown)}."
        raise ConfigurationError(msg, hint=f"All options: bpo-train {stage} --help.")
    check_setup(values, machine, options, stage=stage)
    if machine.processes > 1 and not machine.gpus:
        options += ["--use_cpu", "true"]  # else each process trains on its own, and says nothing
    found = parser.parse(options)
    logging.basicConfig(level=logging.INFO)
    return found[0], found[1], found[2]
