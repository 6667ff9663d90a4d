"""What a judge's verdicts on pairs that people have judged say about the judge: agreement, and what it falls for.

Promises: a pair counts once, and what the judge does not decide, or decides by position, counts half; nothing is
dropped. Pure. `judge_check.py` asks the judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bpo_train.data.words import words
from bpo_train.evaluation.conclusions import POSITION, WEAKEST
from bpo_train.evaluation.records import Verdict
from bpo_train.evaluation.winrate import outcomes, reading, win_rate

PREFERRED, OTHER = "preferred", "other"
"""The arm and the baseline of the verdicts: the answer that people prefer, and the one that they do not."""

FALLS_FOR_LENGTH = 60.0
"""Percent of verdicts for the longer answer, where people prefer the shorter, from which on the text warns."""

Standing = Literal["too weak", "doubtful", "usable"]
"""`too weak`: less than 60% agreement; `doubtful`: the interval reaches below that; `usable`: neither."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to a prompt, and which of them people prefer.

    Args:
        id: Unique among all pairs.
        subset: The file that it stands in: `natural`, `adversarial_neighbor`, ...
        prompt: The prompt.
        preferred: The answer that people prefer.
        other: The other one.
    """

    id: str
    subset: str
    prompt: str
    preferred: str
    other: str

    @property
    def longer(self) -> float:
        """How much longer the preferred answer is: the logarithm of the ratio of words; below 0 where it is shorter."""
        return math.log((1 + len(words(self.preferred))) / (1 + len(words(self.other))))


def figures(pairs: Sequence[Pair], verdicts: Sequence[Verdict], *, positional: bool = True) -> dict[str, Any]:
    """Return how a judge did; shares in percent.

    Args:
        pairs: What it was shown.
        verdicts: What it said, of `PREFERRED` against `OTHER`, in both orders.
        positional: Whether the order of the answers may matter to it.
    """
    known = {pair.id: pair for pair in pairs}
    by_subset: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_subset.setdefault(verdict.category, []).append(verdict)
    found = _agreement(verdicts)
    found |= {
        "by_subset": {
            subset: {
                **_agreement(own),
                "position_bias": reading(own).to_dict()["first"],
                "length_bias": length_bias(known, own)["longer_where_people_prefer_shorter"],
            }
            for subset, own in sorted(by_subset.items())
        },
        "position_bias": reading(verdicts).to_dict() if verdicts else None,
        "length_bias": length_bias(known, verdicts),
    }
    stands = standing(found)
    return {**found, "verdict": stands, "text": sentences(found, stands, positional=positional)}


def _agreement(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return agreement with people, and its 95% interval.

    A row that is judged like people in both orders counts 1, one that is judged the other way in both 0, and all else
    half: the judge contradicts itself, sees a tie, or cannot be read.
    """
    found = outcomes(verdicts)
    if not found:
        return {"n": 0, "agreement": None, "ci95": None, "right": 0, "undecided": 0, "wrong": 0}
    rate = win_rate(found)
    low, high = rate.delta_ci95
    return {
        "n": rate.n,
        "agreement": round(50 + rate.delta / 2, 2),
        "ci95": [round(50 + low / 2, 2), round(50 + high / 2, 2)],
        "right": rate.wins,
        "undecided": rate.ties,
        "wrong": rate.losses,
    }


def length_bias(pairs: Mapping[str, Pair], verdicts: Iterable[Verdict]) -> dict[str, float | None]:
    """Return how a judge's choices go with length; shares in percent of the verdicts that name an answer.

    Rows whose answers have the same number of words say nothing and are left out.

    Args:
        pairs: By id.
        verdicts: As in `figures`.

    Returns:
        `longer`: the share for the longer answer; `longer_where_people_prefer_shorter`: the same where that is wrong
        (a judge without errors has 0 here, one that goes by length 100); `correlation`: of the judge's choice with the
        difference in length, each row seen from both of its answers, and `people`: the same of people's choice.
    """
    rows = [verdict for verdict in verdicts if pairs[verdict.id].longer]
    named = [(pairs[verdict.id].longer, _names_preferred(verdict)) for verdict in rows if verdict.verdict in ("A", "B")]
    shorter = [(longer, preferred) for longer, preferred in named if longer < 0]
    values = [(pairs[outcome.id].longer, outcome) for outcome in outcomes(rows)]
    return {
        "longer": _percent([preferred == (longer > 0) for longer, preferred in named]),
        "longer_where_people_prefer_shorter": _percent([not preferred for _, preferred in shorter]),
        "correlation": _correlation([(longer, outcome.value) for longer, outcome in values]),
        "people": _correlation([(longer, 1) for longer, _ in values]),
    }


def _names_preferred(verdict: Verdict) -> bool:
    return (verdict.verdict == "A") == (verdict.order == "AB")


def _percent(hits: Sequence[bool]) -> float | None:
    return round(100 * sum(hits) / len(hits), 2) if hits else None


def _correlation(values: Sequence[tuple[float, float]]) -> float | None:
    """Return Pearson's correlation of pairs and their negatives together, whose means are 0."""
    lengths, choices = sum(one * one for one, _ in values), sum(one * one for _, one in values)
    if not lengths or not choices:
        return None
    return round(sum(length * choice for length, choice in values) / math.sqrt(lengths * choices), 4)


def standing(found: Mapping[str, Any]) -> Standing:
    """Return whether anything can be concluded from what this judge says.

    Example:
        >>> standing({"agreement": 58.0, "ci95": [53.0, 63.0]})
        'too weak'
    """
    if found["agreement"] is None or found["agreement"] < WEAKEST:
        return "too weak"
    low, _ = found.get("ci95") or (WEAKEST, None)
    return "doubtful" if low < WEAKEST else "usable"


def sentences(found: Mapping[str, Any], stands: Standing, *, positional: bool = True) -> list[str]:
    """Return in words what was found, the verdict first."""
    if found["agreement"] is None:
        return ["Nothing was judged, so nothing can be concluded from this judge."]
    low, high = found["ci95"]
    agreement = f"{found['agreement']:.0f}% of {found['n']} pairs ({low:.0f} to {high:.0f})"
    said = {
        "too weak": f"This judge is too weak to conclude: it agrees with people on {agreement}, and chance is 50.",
        "doubtful": f"This judge agrees with people on {agreement}: perhaps less than {WEAKEST:.0f}%.",
        "usable": f"This judge agrees with people on {agreement}; chance is 50.",
    }
    text = [said[stands]]
    subsets = {name: one["agreement"] for name, one in found["by_subset"].items() if one["agreement"] is not None}
    worse = [f"{name} ({value:.0f}%)" for name, value in subsets.items() if value < 50]
    if worse:
        text.append(f"It is worse than chance on: {', '.join(worse)}.")
    first = (found["position_bias"] or {}).get("first")
    if positional and first is not None and not POSITION[0] <= first <= POSITION[1]:
        text.append(f"It goes by position: {first:.0f}% of its verdicts name the answer shown first.")
    fooled = found["length_bias"]["longer_where_people_prefer_shorter"]
    if fooled is not None and fooled > FALLS_FOR_LENGTH:
        text.append(
            f"It falls for length: where people prefer the shorter answer, {fooled:.0f}% of its verdicts do not."
        )
    return text
