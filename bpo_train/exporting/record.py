"""What `bpo.json` says of an exported run: what the run says of itself, and defaults for what it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bpo_integrations.errors import ConfigurationError, ModelFormatError
from bpo_integrations.result import Mode
from bpo_integrations.rewriter import RECORD_FILE, Record
from bpo_integrations.templates import AUGMENT_FORMAT, REWRITE_FORMAT, PromptFormat
from bpo_train.exporting.trained import TrainedRun
from bpo_train.training.run import holding


def record_for(mode: str, *, name: str, base: str, threshold: float = 0.5) -> Record:
    """Return the record of a rewriter that was trained with this package's formats.

    Args:
        mode: `augment` or `rewrite`.
        name: Its name.
        base: The base model's id.
        threshold: Augment only: add nothing where the probability of that is at least this.

    Example:
        >>> record_for("augment", name="mine", base="some/model").new_tokens
        72
    """
    if mode == "augment":
        return Record(
            name=name,
            mode="augment",
            format=AUGMENT_FORMAT,
            base=base,
            languages=("en",),
            max_prompt_tokens=1024,
            new_tokens=72,
            empty_threshold=threshold,
            repetition_penalty=1.15,  # see docs/training-log.md
        )
    return Record(
        name=name,
        mode="rewrite",
        format=REWRITE_FORMAT,
        base=base,
        languages=("en",),
        max_prompt_tokens=512,
        new_tokens=96,
        new_tokens_per_token=2.0,
    )


def record_of(
    run: TrainedRun, *, name: str, mode: Mode | None = None, chosen: Mapping[str, Any] | None = None
) -> Record:
    """Return the record of a run.

    Begins at the `bpo.json` beside the run's weights where there is one, else at `record_for`; takes mode and prompt
    format from `run.json`, and then what the user chose.

    Args:
        run: The run.
        name: The rewriter's name.
        mode: Its mode; None takes the run's.
        chosen: Fields of `Record` by name; those that are None are left as they are.

    Raises:
        ConfigurationError: The run does not say its mode and none was given, or it says another; or a value cannot be.
    """
    folder = run.folders[0]
    place = holding(RECORD_FILE, folder)
    beside = Record.read(place) if place else None
    said = run.fact("mode") or (beside.mode if beside else None)
    known = mode or said
    if known is None:
        msg = f"{folder} does not say its mode."
        raise ConfigurationError(msg, hint="Give --mode augment or --mode rewrite, as it was trained.")
    if mode is not None and said is not None and mode != said:
        msg = f"{folder} was trained in mode {said!r}, not {mode!r}."
        raise ConfigurationError(msg, hint=f"Leave out --mode, or give --mode {said}.")
    record = beside or record_for(str(known), name=name, base=run.base)
    record = replace(record, name=name, base=public_name(run.base))
    if form := run.fact("format"):
        try:
            record = replace(record, format=PromptFormat(**form))
        except (TypeError, ModelFormatError) as error:
            msg = f"The prompt format in the run's run.json cannot be used: {error}"
            raise ConfigurationError(msg, hint="Train again with this version of bpo-train.") from error
    record = replace(record, **{field: value for field, value in (chosen or {}).items() if value is not None})
    _check(record)
    return record


def public_name(base: str) -> str:
    """Return how a base is named where others read it: a hub id as it is, a folder or file of this machine by its name.

    Example:
        >>> public_name("HuggingFaceTB/SmolLM2-135M-Instruct"), public_name("/home/me/base.gguf")
        ('HuggingFaceTB/SmolLM2-135M-Instruct', 'base.gguf')
    """
    return base if base.count("/") <= 1 and not Path(base).exists() else Path(base).name


def _check(record: Record) -> None:
    """Refuse values that no rewriter can have.

    Raises:
        ConfigurationError: One is out of its range.
    """
    threshold = record.empty_threshold
    for ok, what in (
        (record.max_prompt_tokens >= 1, "the longest prompt must have 1 token or more"),
        (record.budget(record.max_prompt_tokens) >= 1, "there must be 1 new token or more"),
        (record.repetition_penalty >= 1, "the repetition penalty must be 1 (none) or more"),
        (threshold is None or record.mode == "augment", "only the mode augment has a threshold"),
        (threshold is None or 0 <= threshold, "the threshold must be 0 or more"),
    ):
        if not ok:
            msg = f"Impossible record: {what}."
            raise ConfigurationError(msg, hint="Correct the option, or leave it out.")
