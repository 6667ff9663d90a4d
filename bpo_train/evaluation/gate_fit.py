"""What to do with prompts, chosen and fitted from examples: act on all, on none, or where a score says so.

Promises: few parameters, shrunk; everything that is chosen is chosen by a cross-validation within the examples that are
given, so that another around it (`out_of_fold`) tells what the choice is worth on prompts that it never saw. What that
comes to, and what is made of it, is `gate.py`'s.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bpo_integrations.errors import MissingExtraError
from bpo_integrations.gate import FIGURES, Acts, Score, Span, Weight
from bpo_integrations.prompt_kinds import KINDS
from bpo_train.evaluation.gate_features import Example

if TYPE_CHECKING:
    from sklearn.linear_model import Ridge

PENALTIES = (10.0, 100.0)
"""Ridge penalties that are tried. The variance of outcomes is about 0.6, a weight of 0.25 a standard deviation would be
large: 0.6 / 0.25 ** 2, about 10, is the penalty under which a fit is the posterior mean of such weights."""

THRESHOLDS = (0.0, 0.05, 0.1, 0.2)
"""Expected gains that are tried as what a candidate must exceed."""

LEAST_OF_A_KIND = 8
"""A kind with fewer examples has no weight of its own."""

LEAST_KNOWN = 0.8
"""A figure that is known of a smaller share of the examples has no weight."""

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


def out_of_fold(table: Table, *, folds: int, repeats: int, seed: int) -> Array:
    """Return for each example how often its candidate was used by what was chosen without sight of it, from 0 to 1.

    Args:
        table: All examples.
        folds: Of the outer cross-validation, and of the one inside `choose`.
        repeats: Of the outer one, with other folds.
        seed: Deals the folds.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    acts = np.zeros(len(table))
    for repeat in range(repeats):
        for train, test in _folds(len(table), folds, seed + repeat):
            acts[test] += choose(table.at(train), folds=folds, seed=seed).act(table.at(test))
    return acts / repeats


def choose(table: Table, *, folds: int, seed: int) -> Choice:
    """Choose what to do, by a cross-validation within the examples.

    A gate is chosen where it gains more, by at least a standard error, than the better of acting on all and on none: of
    two that are as good, the simpler one.

    Args:
        table: What is known; nothing else is looked at.
        folds: How many.
        seed: Deals them.
    """
    gains = table.gains
    simple: Acts = "all" if gains.mean() > 0 else "none"
    reached = gains if simple == "all" else np.zeros(len(gains))
    best: tuple[float, float, float] | None = None
    for penalty in PENALTIES:
        promised = np.zeros(len(table))
        for train, test in _folds(len(table), folds, seed):
            promised[test] = expected(fit(table.at(train), penalty), table.at(test))
        for threshold in THRESHOLDS:
            better = (promised > threshold) * gains - reached
            error = better.std(ddof=1) / math.sqrt(len(better))
            if better.mean() > error and (best is None or better.mean() > best[0]):
                best = float(better.mean()), penalty, threshold
    if best is None:
        return Choice(simple)
    score = fit(table, best[1], best[2])
    return Choice("some", score) if spans(score) else Choice("none")


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

        def opens(length: int, kind: str = kind) -> bool:
            return score.highest(kind, length) > score.threshold

        # The highest gain rises or falls with the length throughout, so what is open begins at 0 or has no end.
        if opens(most):
            found[kind] = (bisect_left(range(most), True, key=opens), None)
        elif opens(0):
            found[kind] = (0, bisect_left(range(most), True, key=lambda length: not opens(length)) - 1)
    return found


def _standard(values: Array) -> Weight | None:
    """Return how a figure is standardized, or None where it is known of too few or is the same for all."""
    known = values[~np.isnan(values)]
    if len(known) < LEAST_KNOWN * len(values) or np.ptp(known) < 1e-9:
        return None
    center, scale, low, high = (
        round(float(value), DECIMALS) for value in (known.mean(), known.std(), known.min(), known.max())
    )
    return Weight(1.0, center, max(scale, 10**-DECIMALS), low, high)


def _folds(number: int, folds: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    try:
        from sklearn.model_selection import KFold
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="train") from error
    return list(KFold(min(folds, number), shuffle=True, random_state=seed).split(np.zeros(number)))


def _ridge(penalty: float) -> Ridge:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=penalty)
