"""What the figures of an evaluation mean, in words that do not say more than the figures do.

Promises: an interval that holds 0 is never called a gain; a judge that agrees too little with people is named before
anything else, and nothing follows from its figures. Pure functions of a report's figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

from bpo_train.evaluation.power import detectable

WEAKEST: Final = 60.0
"""Percent of agreement with people on LLMBar below which a judge is too weak to conclude; chance is 50."""

UNREADABLE: Final = 5.0
"""Percent of verdicts that cannot be read from which on the report warns."""

POSITION: Final = (35.0, 65.0)
"""Percent of decided verdicts for the first answer outside which the report warns; 50 is fair."""

POSITION_VERDICTS: Final = 10
"""Verdicts that there must be before anything is said about positions."""

CUT_OFF: Final = 5.0
"""Percent of an arm's answers that were cut off from which on the report remarks on it."""

FEW: Final = 30
"""Prompts below which the report warns, whatever the interval says."""

Standing = Literal["better", "worse", "open", "weak"]
"""`better` and `worse` are shown; `open`: no difference shown; `weak`: the judge cannot tell."""


def standing(result: Mapping[str, Any], agreement: float | None) -> Standing:
    """Return where an arm stands.

    Args:
        result: The figures of one arm and judge, as in `report.json`.
        agreement: The judge's agreement with people in percent; None where it was not measured.
    """
    if agreement is not None and agreement < WEAKEST:
        return "weak"
    if not result["shown"]:
        return "open"
    return "better" if result["delta"] > 0 else "worse"


def sentences(result: Mapping[str, Any], agreement: float | None) -> list[str]:
    """Return what is to be said of an arm, the most important first.

    Args:
        result: As for `standing`.
        agreement: As for `standing`.
    """
    stands = standing(result, agreement)
    found = [_headline(result, stands, agreement), *warnings(result["judge_reading"])]
    if stands == "weak":
        return found
    if equal := result["length_controlled"]:
        found.append(_at_equal_length(result, equal))
    if beyond := result["beyond_placebo"]:
        found.append(_beyond_placebo(beyond))
    if result["n"] < FEW:
        few = "One prompt is little" if result["n"] == 1 else f"{result['n']} prompts are few"
        found.append(f"{few}: take this as a first look.")
    if not result["shown"]:
        found.append(_what_could_be_seen(result))
    return found


def warnings(reading: Mapping[str, Any]) -> list[str]:
    """Return what the verdicts say against the judge."""
    found = []
    fair = reading["first"] is None or POSITION[0] <= reading["first"] <= POSITION[1]
    if not fair and reading["verdicts"] >= POSITION_VERDICTS:
        place = "first" if reading["first"] > 50 else "second"
        found.append(
            f"The judge goes by position: of the verdicts that name an answer, {reading['first']:.0f}% name the one "
            f"shown first (50% is fair). It leans to the {place}; pairs that it contradicts itself on count as ties."
        )
    if reading["verdicts"] and 100 * reading["unreadable"] / reading["verdicts"] >= UNREADABLE:
        found.append(
            f"{reading['unreadable']} of {reading['verdicts']} verdicts could not be read or had; they count as ties."
        )
    return found


def remarks(costs: Iterable[Mapping[str, Any]], results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what a reader must know of the rows before the figures: what is missing, empty or cut off.

    Args:
        costs: Of each arm, as `costs.cost` returns, with its name.
        results: The figures of each arm and judge.
    """
    found = []
    for arm in costs:
        if arm["empty"]:
            found.append(f"Empty answers of {arm['arm']}: {arm['empty']} of {arm['answers']}.")
        if 100 * arm["unfinished"] >= CUT_OFF * arm["answers"] > 0:
            found.append(f"Answers of {arm['arm']} cut off at the limit: {arm['unfinished']} of {arm['answers']}.")
    for result in results:
        name = f"{result['arm'] or 'the arm'} by {result['judge'] or 'the judge'}"
        if result["unjudged"]:
            prompts = result["n"] + result["unjudged"]
            found.append(
                f"Prompts without a verdict on {name}, and so in no figure: {result['unjudged']} of {prompts}."
            )
        if result["one_order"]:
            found.append(
                f"Prompts judged in one order only on {name}, where a preference for a position is not found out: "
                f"{result['one_order']} of {result['n']}."
            )
    return found


def points(value: float) -> str:
    """Return percent points with their sign.

    Example:
        >>> points(3.14), points(-0.04), points(-12.0)
        ('+3.1', '0.0', '−12.0')
    """
    text = f"{abs(value):.1f}"
    if text == "0.0":
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def interval(bounds: tuple[float, float] | list[float]) -> str:
    """Return an interval for people.

    Example:
        >>> interval((-3.0, 12.04))
        '−3.0 to +12.0'
    """
    low, high = bounds
    return f"{points(low)} to {points(high)}"


def _headline(result: Mapping[str, Any], stands: Standing, agreement: float | None) -> str:
    arm, baseline = result["arm"] or "the arm", result["baseline"]
    if stands == "weak":
        return (
            f"This judge is too weak to conclude: it agrees with people on {agreement:.0f}% of LLMBar, and chance is "
            "50%. Its figures are for the record."
        )
    if stands == "open":
        low, high = result["delta_ci95"]
        why = "the interval includes 0" if low <= 0 <= high else "by the sign test this could be chance"
        return f"No difference shown between {arm} and {baseline}: {why}."
    return f"With {arm} the answers are {stands} than with {baseline}."


def _at_equal_length(result: Mapping[str, Any], equal: Mapping[str, Any]) -> str:
    gained = result["shown"] and result["delta"] > 0
    if gained and equal["shown"] and equal["delta"] < 0:
        finding, so = "it is worse", " The gain is length."
    elif gained and not equal["shown"]:
        finding, so = "no gain is shown", " The gain may be length alone."
    elif not equal["shown"]:
        finding, so = "no difference is shown", ""
    else:
        finding, so = f"it is {'better' if equal['delta'] > 0 else 'worse'}", ""
    if equal["extrapolated"] and equal["scale"]:
        so += " Every answer of one side is the longer one, so that this is an extrapolation."
    figures = f"{points(equal['delta'])} ({interval(equal['delta_ci95'])})"
    return f"At equal answer length {finding}, {figures}; {_longer(equal['mean_difference'])}.{so}"


def _beyond_placebo(beyond: Mapping[str, Any]) -> str:
    figures = f"{points(beyond['delta'])} ({interval(beyond['delta_ci95'])})"
    if not beyond["shown"]:
        return f"Against the placebo, a fixed sentence added to every prompt, no difference is shown: {figures}."
    stands = "better" if beyond["delta"] > 0 else "worse"
    return f"It is {stands} than the placebo, a fixed sentence added to every prompt: {figures}."


def _longer(difference: float) -> str:
    words = f"{abs(difference):.0f}"
    if words == "0":
        return "the answers are of the same length on average"
    return f"its answers are {words} words {'longer' if difference > 0 else 'shorter'} on average"


def _what_could_be_seen(result: Mapping[str, Any]) -> str:
    least = detectable(result["n"], ties=min(99.0, result["tie"]))
    if math.isinf(least):
        return "With so few decided prompts no difference could be shown, however large."
    return (
        f"With {result['n']} prompts and {result['tie']:.0f}% ties, a difference of {least:.0f} points would be seen "
        "four times in five; a smaller one may be there."
    )
