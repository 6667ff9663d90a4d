"""When to leave a prompt alone for this LLM: a gate fitted to an evaluation, and what it gains on prompts it never saw.

Promises: few parameters, shrunk; everything that is chosen (whether to act at all, which gate, which threshold) is
chosen anew inside each fold of the outer cross-validation, so that the reported gain is one that was not looked for;
the same examples give the same policy. Where that gain is not certainly above 0, the policy keeps every prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bpo_integrations.errors import MissingExtraError
from bpo_integrations.gate import FIGURES, Acts, Gate, Score, Span, Weight
from bpo_integrations.prompt_kinds import KINDS
from bpo_train.evaluation.gate_features import Example, Examples

if TYPE_CHECKING:
    from sklearn.linear_model import Ridge

PENALTIES = (10.0, 100.0)
"""Ridge penalties that are tried. The variance of outcomes is about 0.6, a weight of 0.25 a standard deviation would be
large: 0.6 / 0.25 ** 2, about 10, is the penalty under which a fit is the posterior mean of such weights."""

THRESHOLDS = (0.0, 0.05, 0.1, 0.2)
"""Expected gains that are tried as what a candidate must exceed."""

FOLDS, REPEATS = 5, 5
"""Of the outer cross-validation; the inner one has as many folds and no repeats."""

LEAST_CHANGED = 30
"""Fewer prompts that were changed and judged support nothing."""

LEAST_OF_A_KIND = 8
"""A kind with fewer examples has no weight of its own."""

LEAST_KNOWN = 0.8
"""A figure that is known of a smaller share of the examples has no weight."""

RESAMPLES = 10_000
DECIMALS = 4

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """Examples as columns.

    Args:
        figures: By name, a value for each example; nan where it is not known.
        kinds: The kind of each.
        gains: The gain of each.
    """

    figures: Mapping[str, Array]
    kinds: NDArray[np.str_]
    gains: Array

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Table:
        """Return examples as columns."""
        rows = [example.facts.figures() for example in examples]
        return cls(
            {name: np.array([row[name] for row in rows], dtype=float) for name in FIGURES},  # None becomes nan
            np.array([example.facts.kind for example in examples], dtype=np.str_),
            np.array([example.gain for example in examples], dtype=float),
        )

    def at(self, places: NDArray[np.int64]) -> Table:
        """Return some of the examples."""
        figures = {name: values[places] for name, values in self.figures.items()}
        return Table(figures, self.kinds[places], self.gains[places])

    def __len__(self) -> int:
        return len(self.gains)


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with prompts, chosen from examples: act on all, on none, or where a score says so."""

    acts: Acts
    score: Score | None = None

    def act(self, table: Table) -> Array:
        """Return for each example 1 where its candidate is used, else 0."""
        if self.score is None:
            return np.full(len(table), float(self.acts == "all"))
        return (expected(self.score, table) > self.score.threshold).astype(float)


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
            found.append(f"Difference: {self.difference}.")
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
        MissingExtraError: scikit-learn is not installed.
    """
    settings = settings or Settings()
    table = Table.of(examples.changed)
    without = _estimate(table.gains, examples.kept, settings)
    gated = difference = None
    acted, reason, choice = 0.0, too_weak, Choice("none")
    if len(table) < LEAST_CHANGED:
        reason = reason or f"only {len(table)} prompts were changed and judged, which show nothing"
    else:
        acts = out_of_fold(table, settings)
        gated = _estimate(acts * table.gains, examples.kept, settings)
        difference = _estimate((acts - 1) * table.gains, examples.kept, settings)
        acted = float(acts.mean())
        if not reason and gated.ci95[0] > 0:
            choice = choose(table, settings)
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
        "acted_on": round(acted, DECIMALS),
        "method": f"{settings.repeats} x {settings.folds}-fold cross-validation, everything chosen inside;"
        " percentile bootstrap over prompts",
    }
    return Calibration(replace(gate, measured=measured), without, gated, difference, acted, examples, reason)


def out_of_fold(table: Table, settings: Settings) -> Array:
    """Return for each example how often its candidate was used by what was chosen without sight of it, from 0 to 1."""
    acts = np.zeros(len(table))
    for repeat in range(settings.repeats):
        for train, test in _folds(len(table), settings.folds, settings.seed + repeat):
            acts[test] += choose(table.at(train), settings).act(table.at(test))
    return acts / settings.repeats


def choose(table: Table, settings: Settings) -> Choice:
    """Choose what to do, by a cross-validation within the examples.

    A gate is chosen where it gains more, by at least a standard error, than the better of acting on all and on none: of
    two that are as good, the simpler one.

    Args:
        table: What is known; nothing else is looked at.
        settings: The folds.
    """
    gains = table.gains
    simple: Acts = "all" if gains.mean() > 0 else "none"
    reached = gains if simple == "all" else np.zeros(len(gains))
    best: tuple[float, float, float] | None = None
    for penalty in PENALTIES:
        promised = np.zeros(len(table))
        for train, test in _folds(len(table), settings.folds, settings.seed):
            promised[test] = expected(fit(table.at(train), penalty), table.at(test))
        for threshold in THRESHOLDS:
            better = (promised > threshold) * gains - reached
            error = better.std(ddof=1) / math.sqrt(len(better))
            if better.mean() > error and (best is None or better.mean() > best[0]):
                best = float(better.mean()), penalty, threshold
    if best is None:
        return Choice(simple)
    return Choice("some", fit(table, best[1], best[2]))


def expected(score: Score, table: Table) -> Array:
    """Return what `score.gain` says of each example."""
    found = score.intercept + np.array([score.kinds.get(str(kind), 0.0) for kind in table.kinds])
    for name, weight in score.figures.items():
        found += _terms(weight, table.figures[name])
    return np.asarray(found, dtype=float)


def _terms(weight: Weight, values: Array) -> Array:
    terms = weight.weight * (np.clip(values, weight.low, weight.high) - weight.center) / weight.scale
    return np.where(np.isnan(values), 0.0, terms)


def fit(table: Table, penalty: float, threshold: float = 0.0) -> Score:
    """Fit the expected gain by ridge regression on standardized figures and on the kinds.

    Args:
        table: What it is fitted to.
        penalty: Of the squared weights; the intercept is free.
        threshold: Handed on to the score.
    """
    standard = {name: _standard(values) for name, values in table.figures.items()}
    figures = {name: weight for name, weight in standard.items() if weight is not None}
    counts = Counter(map(str, table.kinds))
    kinds = [kind for kind in KINDS if counts[kind] >= LEAST_OF_A_KIND]
    columns = [_terms(weight, table.figures[name]) for name, weight in figures.items()]
    columns += [(table.kinds == kind).astype(float) for kind in kinds]
    if not columns:
        return Score(round(float(table.gains.mean()), DECIMALS), threshold)
    model = _ridge(penalty).fit(np.array(columns).T, table.gains)
    weights = [round(float(weight), DECIMALS) for weight in model.coef_]
    return Score(
        intercept=round(float(model.intercept_), DECIMALS),
        threshold=threshold,
        figures={
            name: Weight(weight, one.center, one.scale, one.low, one.high)
            for (name, one), weight in zip(figures.items(), weights, strict=False)
        },
        kinds=dict(zip(kinds, weights[len(figures) :], strict=True)),
    )


def spans(score: Score) -> dict[str, Span]:
    """Return by kind the lengths for which the gate may open, whatever the model writes; the others need no model.

    Example:
        >>> spans(Score(0.1, figures={"log_words": Weight(-0.1, center=3.0, high=6.0)}))["other"]
        (0, 53)
    """
    longest = score.figures["log_words"].high if "log_words" in score.figures else 0.0
    most = round(math.exp(min(longest, 12.0)))
    found: dict[str, Span] = {}
    for kind in KINDS:
        # The highest gain rises or falls with the length throughout, so what is open is one stretch.
        opened = [length for length in range(most + 1) if score.highest(kind, length) > score.threshold]
        if opened:
            found[kind] = (opened[0], None if opened[-1] == most else opened[-1])
    return found


def _policy(choice: Choice, examples: Examples, name: str, made_for: dict[str, Any], reason: str) -> Gate:
    about = {**made_for, "judge": examples.judge, "sets": dict(examples.sets)}
    before = None if choice.score is None else spans(choice.score)
    if choice.acts == "none" or before == {}:
        return Gate(name, "none", note=f"Do not use BPO with this LLM: {reason}.", mode=examples.mode, made_for=about)
    if choice.score is None:
        note = "The gain is shown, and a gate gains nothing more: everything is left to the rules and the model."
        return Gate(name, "all", note=note, mode=examples.mode, made_for=about)
    note = (
        "A candidate is used where the expected gain, from -1 (always loses) to 1 (always wins), passes the threshold."
    )
    return Gate(name, "some", before, choice.score, examples.mode, note, about)


def _standard(values: Array) -> Weight | None:
    """Return how a figure is standardized, or None where it is known of too few or is the same for all."""
    known = values[~np.isnan(values)]
    if len(known) < LEAST_KNOWN * len(values) or np.ptp(known) < 1e-9:
        return None
    center, scale, low, high = (
        round(float(value), DECIMALS) for value in (known.mean(), known.std(), known.min(), known.max())
    )
    return Weight(1.0, center, max(scale, 10**-DECIMALS), low, high)


def _estimate(values: Array, kept: int, settings: Settings) -> Estimate:
    """Return the mean over all prompts, those that were kept with 0, and its percentile bootstrap interval."""
    if len(values) + kept == 0:
        return Estimate(0.0, (0.0, 0.0))
    whole = np.concatenate([values, np.zeros(kept)])
    rng = np.random.default_rng(settings.seed)
    means = np.empty(settings.resamples)
    for start in range(0, settings.resamples, 500):
        size = min(500, settings.resamples - start)
        means[start : start + size] = whole[rng.integers(len(whole), size=(size, len(whole)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(100 * whole.mean()), (float(100 * low), float(100 * high)))


def _folds(number: int, folds: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    try:
        from sklearn.model_selection import KFold
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="train") from error
    return list(KFold(min(folds, number), shuffle=True, random_state=seed).split(np.zeros(number)))


def _ridge(penalty: float) -> Ridge:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=penalty)
