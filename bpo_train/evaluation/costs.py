"""What each arm did to the prompts, and what its answers cost: words, tokens, seconds, and their ratio to the baseline.

Promises: means over the prompts that were answered; ratios over those that both arms answered; what is not known (a
model that tells no tokens) is None rather than 0.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bpo_train.data.words import words
from bpo_train.evaluation.records import Answer

FIGURES = ("words", "completion_tokens", "prompt_tokens", "seconds", "optimizer_seconds")
"""Means of an arm: words and tokens of an answer, tokens of what was sent, seconds of the answer and of the
optimization."""


def cost(answers: Sequence[Answer], prompts: Mapping[str, str], baseline: Mapping[str, Answer]) -> dict[str, Any]:
    """Return what one arm did and cost.

    Args:
        answers: Of one arm.
        prompts: By id, as the users wrote them.
        baseline: The baseline's answers by id.

    Returns:
        `answers`, `empty` and `unfinished` in numbers; `changed` in percent; `kinds` and `reasons` of what was done to
        the prompts; the means of `FIGURES`; `words_median`; and `ratio`, of the means (`seconds` with the
        optimization's) to the baseline's.
    """
    changed = sum(answer.sent != prompts[answer.id] for answer in answers)
    lengths = [len(words(answer.answer)) for answer in answers]
    shared = [answer for answer in answers if answer.id in baseline]
    return {
        "answers": len(answers),
        "empty": sum(not answer.answer.strip() for answer in answers),
        "unfinished": sum(not answer.finished for answer in answers),
        "changed": round(100 * changed / len(answers), 2) if answers else None,
        "kinds": dict(Counter(answer.kind for answer in answers).most_common()),
        "reasons": dict(Counter(answer.reason.partition(":")[0] for answer in answers if answer.reason).most_common()),
        **_means(answers),
        "words_median": statistics.median(lengths) if lengths else None,
        "ratio": _ratios(_means(shared), _means([baseline[answer.id] for answer in shared])),
    }


def _means(answers: Sequence[Answer]) -> dict[str, float | None]:
    found = {"words": _mean(len(words(answer.answer)) for answer in answers)}
    return {**found, **{name: _mean(getattr(answer, name) for answer in answers) or None for name in FIGURES[1:]}}


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return round(statistics.fmean(known), 4) if known else None


def _ratios(own: Mapping[str, float | None], other: Mapping[str, float | None]) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        name: _ratio(own[name], other[name]) for name in ("words", "completion_tokens", "prompt_tokens")
    }
    seconds = (own["seconds"] or 0) + (own["optimizer_seconds"] or 0) if own["seconds"] else None
    return {**found, "seconds": _ratio(seconds, other["seconds"])}


def _ratio(own: float | None, other: float | None) -> float | None:
    return round(own / other, 4) if own is not None and other else None
