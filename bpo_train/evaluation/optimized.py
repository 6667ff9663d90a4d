"""What an optimizer makes of test prompts: in batches, with a journal that a later run goes on from.

Promises: one result a prompt, in order; a failing model is a result that says so, and such prompts are tried again by
the next run. Computes no figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Candidate, OptimizedPrompt, Violation
from bpo_train.data.journal import Entry, Journal
from bpo_train.data.words import fingerprint
from bpo_train.evaluation.records import TestPrompt
from bpo_train.evaluation.score import failure
from bpo_train.evaluation.steps import weights

BATCH = 128
"""Prompts that go to the optimizer in one call: enough to be grouped by length; a killed run loses no more."""


def optimized(
    optimizer: PromptOptimizer,
    prompts: Sequence[TestPrompt],
    *,
    folder: Path | None = None,
    of: str = "",
    update: Callable[[int], None] = lambda done: None,
) -> list[OptimizedPrompt]:
    """Optimize the prompts.

    Args:
        optimizer: It should pass failures through (its default), so that one failure does not end the run.
        prompts: What to optimize.
        folder: Where the results are kept; a run with the same folder goes on there. None keeps them nowhere.
        of: The rewriter's spec, where it has one: weights that changed in a folder are other weights.
        update: Called with the number of prompts that are done.

    Raises:
        ConfigurationError: The folder holds results of another model, mode or version of this package, or of weights
            that have changed since.
        FileError: The folder cannot be written, or another process writes it.
    """
    found: dict[int, OptimizedPrompt] = {}
    with nullcontext() if folder is None else Journal(folder, _options(optimizer, of)) as journal:
        if journal is not None:
            for entry in journal.entries():
                place = entry.number - 1
                if entry.status == "kept" and place < len(prompts) and entry.digest == digest(prompts[place]):
                    found[place] = from_dict(entry.result)
        left = [place for place in range(len(prompts)) if place not in found]
        update(len(found))
        for start in range(0, len(left), BATCH):
            places = left[start : start + BATCH]
            for place, result in zip(
                places, optimizer.optimize_batch([prompts[place].prompt for place in places]), strict=True
            ):
                found[place] = result
                if journal is not None:
                    journal.append(_entry(place + 1, prompts[place], result))
            update(len(found))
    return [found[place] for place in range(len(prompts))]


def from_dict(data: Mapping[str, Any]) -> OptimizedPrompt:
    """Return the result that `OptimizedPrompt.to_dict` wrote.

    Example:
        >>> result = OptimizedPrompt("Hi", "Hi", "kept", "policy: small talk", (Candidate("Be kind."),))
        >>> from_dict(result.to_dict()) == result
        True
    """
    fields = {name: value for name, value in data.items() if name not in ("changed", "addition")}
    fields["candidates"] = tuple(
        Candidate(**{**each, "violation": Violation(**each["violation"]) if each["violation"] else None})
        for each in data["candidates"]
    )
    return OptimizedPrompt(**fields)


def digest(prompt: TestPrompt) -> str:
    """Return what tells a prompt from another, so that results of other prompts are not taken for its own."""
    return f"{fingerprint(prompt.prompt):016x}"


def _options(optimizer: PromptOptimizer, of: str) -> dict[str, Any]:
    told = weights(of)
    return {
        "rewriter": optimizer.rewriter.id,
        "mode": optimizer.mode,
        "version": version("bpo-integrations"),
        **({"weights": told} if told else {}),
    }


def _entry(number: int, prompt: TestPrompt, result: OptimizedPrompt) -> Entry:
    failed = failure(result)
    return Entry(
        number=number,
        id=prompt.id,
        digest=digest(prompt),
        status="kept" if failed is None else "failed",
        reason=failed or "",
        result=result.to_dict(),
    )
