"""When to leave a prompt alone for this LLM: a policy made from an evaluation, and what it gains on unseen prompts.

Promises: the gain that is reported is cross-validated, with everything that is chosen (whether to act at all, which
gate, which threshold) chosen anew in each fold; where it is not certainly above 0, the policy keeps every prompt; the
same examples give the same policy. Choosing and fitting are `gate_fit.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpo_integrations.gate import Gate
from bpo_train.evaluation.gate_features import Examples
from bpo_train.evaluation.gate_fit import Choice, Table, choose, out_of_fold, spans
from bpo_train.evaluation.winrate import sign_test

FOLDS, REPEATS = 5, 5
"""Of the outer cross-validation; the inner one has as many folds and no repeats."""

LEAST_CHANGED = 30
"""Fewer prompts that were changed and judged support nothing."""

RESAMPLES = 10_000
ALPHA = 0.05
"""What the interval leaves out, and what the sign test must be below."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A gain in percentage points (wins minus losses, of all prompts), and its 95% interval."""

    delta: float
    ci95: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"delta": round(self.delta, 2), "ci95": [round(bound, 2) for bound in self.ci95]}

    def __str__(self) -> str:
        return f"{self.delta:+.1f} ({self.ci95[0]:+.1f} to {self.ci95[1]:+.1f})"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A policy, and the figures by which it was chosen.

    Args:
        gate: The policy.
        without: The gain without a gate: every candidate is used.
        gated: The gain of what was chosen, cross-validated; None where there are too few examples.
        difference: The gain with minus the gain without.
        acted: Share of the changed prompts that are acted on, cross-validated.
        examples: What it was fitted to.
        reason: Why it keeps all, if it does.
    """

    gate: Gate
    without: Estimate
    gated: Estimate | None
    difference: Estimate | None
    acted: float
    examples: Examples
    reason: str = ""

    @property
    def helps(self) -> bool:
        """Whether the data support a gain."""
        return self.gate.acts != "none"

    def lines(self) -> list[str]:
        """Return in words what was found."""
        examples = self.examples
        found = [
            f"{examples.prompts:,} prompts, {len(examples.changed):,} of them changed; judge: {examples.judge}.",
            f"Gain without a gate, in points: {self.without}.",
        ]
        if self.gated is not None and self.difference is not None:
            found.append(
                f"Gain with a gate, cross-validated: {self.gated}; "
                f"it acts on {100 * self.acted:.0f}% of what is changed."
            )
            found.append(f"Difference between the two: {self.difference}.")
        if not self.helps:
            found.append(f"Do not use BPO with this LLM: {self.reason}. The policy keeps every prompt.")
        elif self.gate.acts == "all":
            found.append(
                "Use BPO with this LLM; a gate gains nothing more. The policy leaves all to the default rules."
            )
        else:
            kinds = ", ".join(self.gate.before or {})
            found.append(f"Use BPO with this LLM, behind the gate. It may open for: {kinds}.")
        return found


@dataclass(frozen=True, slots=True)
class Settings:
    """How a calibration is done.

    Args:
        folds: Of both cross-validations.
        repeats: Of the outer one, with other folds.
        resamples: Of the bootstrap.
        seed: Deals the folds and the bootstrap.
    """

    folds: int = FOLDS
    repeats: int = REPEATS
    resamples: int = RESAMPLES
    seed: int = 0


def calibrate(
    examples: Examples,
    *,
    name: str = "",
    made_for: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    too_weak: str = "",
) -> Calibration:
    """Fit a policy.

    Args:
        examples: What it is fitted to.
        name: What the policy is called.
        made_for: What it is made for, as the policy file says: LLM, rewriter.
        settings: How it is done.
        too_weak: Why the judge cannot be trusted, if so; then the policy keeps all.

    Raises:
        MissingExtraError: scikit-learn or scipy is not installed.
    """
    settings = settings or Settings()
    table = Table.of(examples.changed)
    without = _estimate(table.gains, examples.kept, settings)
    gated = difference = None
    acted, reason, choice = 0.0, too_weak, Choice("none")
    if len(table) < LEAST_CHANGED:
        reason = reason or f"only {len(table)} prompts were changed and judged, which show nothing"
    else:
        acts = out_of_fold(table, folds=settings.folds, repeats=settings.repeats, seed=settings.seed)
        gated = _estimate(acts * table.gains, examples.kept, settings)
        difference = _estimate((acts - 1) * table.gains, examples.kept, settings)
        acted = float(acts.mean())
        if not reason and gated.ci95[0] > 0 and _sign_test(acts, table.gains) < ALPHA:
            choice = choose(table, folds=settings.folds, seed=settings.seed)
        if choice.acts == "none":
            reason = reason or f"the data show no gain ({gated} points, cross-validated)"
    gate = _policy(choice, examples, name, dict(made_for or {}), reason)
    measured = {
        "prompts": examples.prompts,
        "changed": len(examples.changed),
        "unjudged": examples.unjudged,
        "unit": "wins minus losses, in percent of the prompts",
        "without_gate": without.to_dict(),
        "with_gate": gated and gated.to_dict(),
        "difference": difference and difference.to_dict(),
        "acted_on": round(acted, 4),
        "method": f"{settings.repeats} x {settings.folds}-fold cross-validation, everything chosen inside;"
        " percentile bootstrap over prompts",
    }
    return Calibration(replace(gate, measured=measured), without, gated, difference, acted, examples, reason)


def _policy(choice: Choice, examples: Examples, name: str, made_for: dict[str, Any], reason: str) -> Gate:
    about = {**made_for, "judge": examples.judge, "sets": dict(examples.sets)}
    if choice.acts == "none":
        return Gate(name, "none", note=f"Do not use BPO with this LLM: {reason}.", mode=examples.mode, made_for=about)
    if choice.score is None:
        note = "The gain is shown, and a gate gains nothing more: everything is left to the rules and the model."
        return Gate(name, "all", note=note, mode=examples.mode, made_for=about)
    note = (
        "A candidate is used where the expected gain, from -1 (always loses) to 1 (always wins), passes the threshold."
    )
    return Gate(name, "some", spans(choice.score), choice.score, examples.mode, note, about)


def _estimate(values: NDArray[np.float64], kept: int, settings: Settings) -> Estimate:
    """Return the mean over all prompts, those that were kept with 0, and its percentile bootstrap interval."""
    if len(values) + kept == 0:
        return Estimate(0.0, (0.0, 0.0))
    whole = np.concatenate([values, np.zeros(kept)])
    rng = np.random.default_rng(settings.seed)
    means = np.empty(settings.resamples)
    for start in range(0, settings.resamples, 500):
        size = min(500, settings.resamples - start)
        means[start : start + size] = whole[rng.integers(len(whole), size=(size, len(whole)))].mean(axis=1)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return Estimate(float(100 * whole.mean()), (float(100 * low), float(100 * high)))


def _sign_test(acts: NDArray[np.float64], gains: NDArray[np.float64]) -> float:
    """Return the exact two-sided p of wins against losses among what is mostly acted on.

    Asked besides the interval, since the bootstrap of a handful of prompts is too sure of itself.
    """
    acted = gains[acts >= 0.5]
    return sign_test(int((acted > 0).sum()), int((acted < 0).sum()))
