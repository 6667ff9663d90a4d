"""Going on where a run was killed: its last complete checkpoint, and whether it is the same run.

A checkpoint is complete when its state, which is written last, can be read. What decides the losses of a run is kept in
`options.json`: another learning rate, other data or another seed in the same folder is refused, a longer run is not.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.models.base import BASE_ID
from bpo_train.data.outputs import replacing
from bpo_train.training.run import RUN_FILE

OPTIONS_FILE = "options.json"
STATE_FILE = "trainer_state.json"
_PREFIX = "checkpoint-"
_OFFLINE = "HF_HUB_OFFLINE"


def last_checkpoint(folder: Path) -> Path | None:
    """Return the latest checkpoint of a run's output folder that is complete, or None."""
    found = []
    for path in folder.glob(f"{_PREFIX}*"):
        step = path.name.removeprefix(_PREFIX)
        if step.isdigit() and _complete(path):
            found.append((int(step), path))
    return max(found)[1] if found else None


def _complete(checkpoint: Path) -> bool:
    try:
        return isinstance(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def keep_to_options(folder: Path, options: Mapping[str, Any], *, started: bool, write: bool = True) -> None:
    """Note what decides a run, or make sure that the folder's run is the same.

    Args:
        folder: The run's output folder.
        options: What decides the losses.
        started: Whether a checkpoint is there.
        write: Whether this process notes them.

    Raises:
        ConfigurationError: The folder holds a run of other options.
        FileError: The options cannot be written.
    """
    path = folder / OPTIONS_FILE
    options = json.loads(json.dumps(options))
    if started or (folder / RUN_FILE).is_file():
        hint = "Give another --output_dir; or the same options, to go on."
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"{folder} holds a run, and not with what options ({OPTIONS_FILE})."
            raise ConfigurationError(msg, hint=hint) from error
        changed = [name for name in options if before.get(name) != options[name]]
        if changed:
            said = "; ".join(f"{name} was {before.get(name)}, is {options[name]}" for name in changed)
            msg = f"{folder} holds a run of other options: {said}."
            raise ConfigurationError(msg, hint=hint)
    if write:
        with replacing(path) as file:
            file.write(dump(options, indent=2) + "\n")


class AsksNoHub:
    """A trainer of TRL that tells its makers nothing, and asks no hub when it saves an adapter for the embedded base.

    The base's weights came from a file, and PEFT would ask the hub at each checkpoint, to compare vocabularies. It
    looks into the environment whether it may; that says no as long as it saves: other models may still be fetched.
    """

    def _send_telemetry(self) -> None:
        """Send nothing, whatever was imported before `bpo_train`, which says so in the environment, too."""

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with _offline(self.model.config):  # type: ignore[attr-defined]
            super()._save(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def _offline(config: Any) -> Iterator[None]:
    if getattr(config, "_name_or_path", "") != BASE_ID or _OFFLINE in os.environ:
        yield
        return
    os.environ[_OFFLINE] = "1"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not find a config file")
            yield
    finally:
        os.environ.pop(_OFFLINE, None)
