"""Where it helps and where it harms: the win rate of each part of the prompts, with many looks paid for.

Promises: every outcome is in one part; a part shows a difference only where it would among all parts that were looked
at (Holm 1979), so that twenty categories do not bring a finding by chance. What a part is, is said by a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bpo_train.evaluation.winrate import ALPHA, Outcome, WinRate, win_rate

PROMPT_BINS: Final = (8, 16, 32, 64, 128, 256)
"""Bounds in words of the parts by prompt length, each twice the one before."""

EQUAL: Final = 1.25
"""Two answers are of about equal length while the longer has at most so many times the words of the other."""

ANSWER_PARTS: Final = ("shorter", "about equal", "longer")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the prompts.

    Args:
        label: What its prompts have in common.
        rate: Its win rate.
        p_adjusted: The sign test's p value, adjusted for the number of parts.
    """

    label: str
    rate: WinRate
    p_adjusted: float

    @property
    def shown(self) -> bool:
        """Whether a difference is shown, the other parts considered."""
        return self.rate.shown and self.p_adjusted < ALPHA

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        figures = {**self.rate.to_dict(), "p_adjusted": float(f"{self.p_adjusted:.6g}"), "shown": self.shown}
        return {"label": self.label, **figures}


def breakdown(
    found: Iterable[Outcome], labels: Mapping[str, str], order: Sequence[str] = (), *, seed: int = 0
) -> list[Part]:
    """Return the win rate of each part.

    Args:
        found: The outcomes.
        labels: By the prompt's id, which part it is of; a prompt without one is of the part without a name.
        order: The labels in the order wanted; others follow by size. Parts without prompts are left out.
        seed: Of the bootstrap.

    Example:
        >>> found = [Outcome("1", "", 1), Outcome("2", "", -1), Outcome("3", "", 1)]
        >>> [(part.label, part.rate.delta) for part in breakdown(found, {"1": "a", "2": "b", "3": "a"})]
        [('a', 100.0), ('b', -100.0)]
    """
    parts: dict[str, list[Outcome]] = {}
    for outcome in found:
        parts.setdefault(labels.get(outcome.id, ""), []).append(outcome)
    places = {label: place for place, label in enumerate(order)}
    ordered = sorted(parts, key=lambda label: (places.get(label, len(places)), -len(parts[label]), label))
    rates = [win_rate(parts[label], seed=seed) for label in ordered]
    adjusted = holm([rate.p_value for rate in rates])
    return [Part(label, rate, p) for label, rate, p in zip(ordered, rates, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, by Holm's step-down method.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = highest
    return adjusted


def prompt_part(count: int) -> str:
    """Return the part of a prompt by its words.

    Example:
        >>> prompt_part(7), prompt_part(8), prompt_part(1000)
        ('up to 7 words', '8 to 15', '256 or more')
    """
    place = sum(bound <= count for bound in PROMPT_BINS)
    if place == len(PROMPT_BINS):
        return f"{PROMPT_BINS[-1]} or more"
    return f"{PROMPT_BINS[place - 1]} to {PROMPT_BINS[place] - 1}" if place else f"up to {PROMPT_BINS[0] - 1} words"


PROMPT_PARTS: Final = tuple(prompt_part(bound) for bound in (0, *PROMPT_BINS))
"""The parts by prompt length, in their order."""


def answer_part(arm: int, baseline: int) -> str:
    """Return the part of a prompt by the words of the arm's answer and of the baseline's.

    Example:
        >>> answer_part(100, 120), answer_part(300, 120), answer_part(0, 120)
        ('about equal', 'longer', 'shorter')
    """
    if max(arm, baseline) <= EQUAL * min(arm, baseline) or arm == baseline:
        return "about equal"
    return "longer" if arm > baseline else "shorter"
