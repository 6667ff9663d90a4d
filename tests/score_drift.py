"""How far two scores of the same prompts may lie apart before something is broken."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

ERRORS = 2.5
"""Standard errors that a measure may move."""
LEAST_WORDS, MOST_WORDS = 0.75, 1 / 0.75
"""What the median of the words added may be multiplied with."""


def shares(score: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """Each measure that is a share or a mean of shares, and of how many."""
    found = {
        "changed": (score["changed_share"], score["prompts"]),
        "violated": (score["violated_share"], score["candidates"]),
        "alone": (score["alone"], score["changed"]),
    }
    for name, part, measure in (
        ("nearer to its prompt", "subject", "auc"),
        ("nearest to its prompt", "subject", "first"),
        ("context word for word", "contexts", "verbatim"),
        ("language kept", "languages", "kept"),
    ):
        if score[part] is not None:
            number = score[part]["additions" if part == "subject" else "prompts"]
            found[name] = (score[part][measure], number)
    return {name: (share or 0.0, number) for name, (share, number) in found.items()}


def tolerance(share: float, number: int) -> float:
    """So many standard errors of a share (Agresti and Coull's, which is not 0 at 0 and 1; no mean of values between 0
    and 1 has a larger one).

    Rounding moves less than another sample would: when the same 60 prompts went to the model in other batches, whose
    int8 texts differ as those of another CPU do, no measure moved by more than 1 standard error.
    """
    smoothed = (share * number + 2) / (number + 4)
    return ERRORS * sqrt(smoothed * (1 - smoothed) / (number + 4))


def drifted(now: Mapping[str, Any], then: Mapping[str, Any]) -> set[str]:
    """The measures of `Score.to_dict()` that moved by more than their tolerance."""
    new, old = shares(now), shares(then)
    moved = {
        name
        for name, (share, number) in old.items()
        if name not in new or abs(new[name][0] - share) > tolerance(share, number)
    }
    before, after = then["words_added"], now["words_added"]
    if after is None or not LEAST_WORDS <= after["median"] / before["median"] <= MOST_WORDS:
        moved.add("words added")
    if now["failed"] > then["failed"]:
        moved.add("failed")
    return moved
