"""What the trainings share: options from a recipe and the command line, checkpoints, checks of the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_train.training.checkpoints import last_checkpoint

Row = TypeVar("Row")


def parse(arguments: type, config: str | type, argv: Sequence[str] | None) -> tuple[Any, Any, Any]:
    """Parse `--config recipe.yaml` and options over it.

    Args:
        arguments: Dataclass of the command's own options.
        config: TRL's configuration by name, or a dataclass of ours.
        argv: The options; None takes the process's.

    Returns:
        The three filled dataclasses: the command's, the training's, TRL's `ModelConfig`.

    Raises:
        MissingExtraError: TRL is not installed.
        ConfigurationError: An option is unknown, or cannot be used on this machine.
    """
    try:
        import trl
    except ImportError as error:
        raise MissingExtraError(error.name or "trl", extra="train") from error
    kinds: Any = [arguments, getattr(trl, config) if isinstance(config, str) else config, trl.ModelConfig]
    logging.basicConfig(level=logging.INFO)
    try:
        parsed = trl.TrlParser(kinds).parse_args_and_config(args=list(argv) if argv is not None else None)
    except (ValueError, OSError) as error:  # how TRL's and transformers' configurations refuse
        if isinstance(error, ConfigurationError):
            raise
        msg = f"The options cannot be used: {error}"
        raise ConfigurationError(msg, hint="Correct them; without a GPU, give --bf16 false.") from error
    return parsed[0], parsed[1], parsed[2]


def resume_point(output: Path) -> str | None:
    """Return a run's last complete checkpoint, or None where there is none."""
    found = last_checkpoint(output)
    return str(found) if found else None


def trainable(rows: Sequence[Row], what: str) -> Sequence[Row]:
    """Return the rows.

    Raises:
        ConfigurationError: There are none.
    """
    if not rows:
        msg = f"There are no {what} to train on."
        raise ConfigurationError(msg, hint="Check --data and --held_out.")
    return rows
