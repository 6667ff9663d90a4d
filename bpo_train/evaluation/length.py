r"""The win rate at equal answer length: what is left of a gain when longer answers are not paid for.

The formula is that of AlpacaEval 2 (Dubois et al. 2024, "Length-Controlled AlpacaEval", section 3) for one pair of
systems: the chance that the judge prefers the arm's answer is logistic(a + b tanh(d / s)), where d is the words of the
arm's answer less those of the baseline's and s the standard deviation of d over the prompts. The fit is then asked at
d = 0: delta = 100 (2 logistic(a) - 1). A tie is half a win and half a loss.

Promises: finite figures for any outcomes, separable ones too; exactly negated where the sides change places. It
assumes that length acts alike on all prompts, and where every answer of one side is the longer one it extrapolates, and
says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpo_integrations.errors import ConfigurationError
from bpo_train.evaluation.winrate import ALPHA, Outcome, win_rate

PRIOR = (10.0, 2.5)
"""Standard deviations of the normal priors of a and b, the weakly informative scales of Gelman et al. (2008): a fit
that nothing else holds, as where all prompts are won, stays finite, and fifty prompts outweigh them."""

LEAST = 6
"""With fewer prompts that are won or lost nothing is shown: five wins of five have p = 0.06, however many are ties."""

_STEPS = 100
_CHUNK = 2**21  # values of the bootstrap at a time: 16 MB an array

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """What a win rate comes to at equal answer length.

    Args:
        n: Prompts.
        delta: `win - loss` in percent of the prompts, at a length difference of zero.
        delta_ci95: Where delta lies with 95% confidence: bootstrap over prompts, percentiles.
        raw_delta: `win - loss` as it is, for comparison.
        length_effect: b, the weight of length: positive where the judge prefers the longer answer.
        mean_difference: Words of the arm's answers less those of the baseline's, on average.
        scale: s, the standard deviation of that difference. Where all differences are alike it is 0: length explains
            nothing then, and the figures are those of `win_rate`.
        extrapolated: Whether every answer of one side is longer, so that no pair is near equal length from one side.
        decided: Prompts that are won or lost.
    """

    n: int
    delta: float
    delta_ci95: tuple[float, float]
    raw_delta: float
    length_effect: float
    mean_difference: float
    scale: float
    extrapolated: bool
    decided: int

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the interval leaves out 0, and enough prompts are won or lost."""
        low, high = self.delta_ci95
        return (low > 0 or high < 0) and self.decided >= LEAST

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        figures = ("delta", "raw_delta", "length_effect", "mean_difference", "scale")
        return {
            "n": self.n,
            **{name: round(getattr(self, name), 4) for name in figures},
            "delta_ci95": [round(bound, 4) for bound in self.delta_ci95],
            "shown": self.shown,
            "extrapolated": self.extrapolated,
        }


def length_controlled(
    found: Sequence[Outcome], lengths: Mapping[str, tuple[int, int]], *, seed: int = 0, resamples: int = 2_000
) -> LengthControlled:
    """Return the win rate at equal answer length.

    Args:
        found: The outcomes, one a prompt.
        lengths: By the prompt's id, words of the arm's answer and of the baseline's.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Raises:
        ConfigurationError: There is no outcome, or one without lengths.

    Example:
        >>> longer_wins = [Outcome(str(number), "", 1 if number % 4 else -1) for number in range(200)]
        >>> lengths = {str(number): (180 if number % 4 else 100, 120) for number in range(200)}
        >>> rate = length_controlled(longer_wins, lengths)
        >>> rate.raw_delta, rate.delta < 0
        (50.0, True)
    """
    if not found:
        msg = "There is no verdict to count."
        raise ConfigurationError(msg, hint="Judge at least one prompt: bpo-train evaluate.")
    if missing := [outcome.id for outcome in found if outcome.id not in lengths]:
        msg = f"There are no answer lengths for {missing[0]} and {len(missing) - 1} more prompts."
        raise ConfigurationError(msg, hint="Give the answers that were judged.")
    values = np.array([outcome.value for outcome in found], dtype=np.float64)
    difference = np.array([lengths[outcome.id][0] - lengths[outcome.id][1] for outcome in found], dtype=np.float64)
    scale = float(difference.std())
    if scale < 1e-9:  # all alike: b cannot be told from a
        rate = win_rate(found, seed=seed, resamples=resamples)
        delta, interval, effect, scale = rate.delta, rate.delta_ci95, 0.0, 0.0
    else:
        x, wanted = np.tanh(difference / scale), (values + 1) / 2
        intercept, effect = (float(figure) for figure in _fit(x, wanted, np.ones((1, len(found))))[0])
        intercepts = _bootstrap(x, wanted, seed=seed, resamples=resamples)
        low, high = (float(bound) for bound in np.quantile(intercepts, [ALPHA / 2, 1 - ALPHA / 2]))
        delta, interval = _delta(intercept), (_delta(low), _delta(high))
    return LengthControlled(
        n=len(found),
        delta=delta,
        delta_ci95=interval,
        raw_delta=float(100 * values.mean()),
        length_effect=effect,
        mean_difference=float(difference.mean()),
        scale=scale,
        extrapolated=bool(difference.min() > 0 or difference.max() < 0),
        decided=int(np.count_nonzero(values)),
    )


def _delta(intercept: float) -> float:
    return 100 * math.tanh(intercept / 2)  # 2 logistic(a) - 1


def _bootstrap(x: Array, wanted: Array, *, seed: int, resamples: int) -> Array:
    n = len(x)
    random = np.random.default_rng(seed)
    share = np.full(n, 1 / n)
    rows = max(1, _CHUNK // n)
    parts = [
        _fit(x, wanted, random.multinomial(n, share, size=min(rows, resamples - start)).astype(np.float64))[:, 0]
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def _fit(x: Array, wanted: Array, weights: Array) -> Array:
    """Return a and b of each row of weights, by Newton's method on the penalised likelihood, which is concave."""
    penalty = np.array([1 / spread**2 for spread in PRIOR])
    found = np.zeros((len(weights), 2))
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-(found[:, :1] + found[:, 1:] * x)))
        error = weights * (wanted - chance)
        slope = np.stack([error.sum(axis=1), error @ x], axis=1) - penalty * found
        bend = weights * chance * (1 - chance)
        aa, ab, bb = bend.sum(axis=1) + penalty[0], bend @ x, bend @ x**2 + penalty[1]
        step = np.stack([bb * slope[:, 0] - ab * slope[:, 1], aa * slope[:, 1] - ab * slope[:, 0]], axis=1)
        step = np.clip(step / (aa * bb - ab**2)[:, None], -1, 1)  # a full step overshoots where the curve is flat
        found += step
        if np.abs(step).max() < 1e-8:
            break
    return found
