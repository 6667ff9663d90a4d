"""Win, tie and loss of an arm against its baseline, how sure they are, and the paper's arithmetic beside ours.

Promises: every prompt with a verdict counts once; what a judge did not decide, or decided by position, is a tie and
never dropped; figures are percent of the prompts, and the same input gives the same figures. What it does not do: say
whether the judge is right (`bpo-train judge-check`), or whether only length was rewarded (`length.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_train.evaluation.records import Order, Verdict

RESAMPLES = 10_000
LEVEL = 0.95
"""How much of the bootstrap distribution the interval covers."""

ALPHA = 1 - LEVEL

Pairing = tuple[str, str, str]
"""Judge, arm, baseline: what one win rate is about."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one prompt ended.

    Args:
        id: The prompt's id.
        category: The prompt's category.
        value: 1 the arm wins, 0 tie, -1 the arm loses.
    """

    id: str
    category: str
    value: int


@dataclass(frozen=True, slots=True)
class WinRate:
    """What the outcomes of a set of prompts come to; shares and delta in percent of the prompts.

    Args:
        n: Prompts.
        win: Share that the arm wins.
        tie: Share without a winner.
        loss: Share that the arm loses.
        delta: `win - loss`, from -100 to 100.
        delta_ci95: Where delta lies with 95% confidence: paired bootstrap over prompts, percentiles.
        p_value: Exact two-sided sign test of wins against losses; 1 where there are neither.
        wins: Prompts won.
        ties: Prompts without a winner.
        losses: Prompts lost.
    """

    n: int
    win: float
    tie: float
    loss: float
    delta: float
    delta_ci95: tuple[float, float]
    p_value: float
    wins: int
    ties: int
    losses: int

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: the interval leaves out 0, and the sign test is below 5%.

        Both are asked, since the bootstrap of a handful of prompts is too sure of itself.
        """
        low, high = self.delta_ci95
        return (low > 0 or high < 0) and self.p_value < ALPHA

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "n": self.n,
            **{name: round(getattr(self, name), 4) for name in ("win", "tie", "loss", "delta")},
            "delta_ci95": [round(bound, 4) for bound in self.delta_ci95],
            "p_value": float(f"{self.p_value:.6g}"),
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
        }


def pairings(verdicts: Iterable[Verdict]) -> dict[Pairing, list[Verdict]]:
    """Return the verdicts of each judge, arm and baseline, in the order in which they first come."""
    found: dict[Pairing, list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault((verdict.judge, verdict.arm, verdict.baseline), []).append(verdict)
    return found


def outcomes(verdicts: Iterable[Verdict]) -> list[Outcome]:
    """Return the outcome of each prompt, in the order in which the prompts first come.

    Both orders that name the same answer are a win or a loss. Anything else of two orders is a tie: they contradict
    each other, or one is a tie or could not be read (as MT-bench counts, Zheng et al. 2023, section 3.4; except that
    it drops what cannot be read). A prompt that was judged in one order counts by that verdict.

    Args:
        verdicts: Those of one judge, arm and baseline.

    Raises:
        ConfigurationError: They are of several, or an order of a prompt comes twice.

    Example:
        >>> both = [Verdict("1", "AB", "A"), Verdict("1", "BA", "B")]
        >>> outcomes(both)
        [Outcome(id='1', category='', value=1)]
        >>> outcomes([Verdict("1", "AB", "A"), Verdict("1", "BA", "A")])[0].value
        0
    """
    return [_folded(orders) for orders in _by_prompt(verdicts).values()]


def win_rate(found: Sequence[Outcome], *, seed: int = 0, resamples: int = RESAMPLES) -> WinRate:
    """Return win, tie and loss with the interval and the sign test.

    The bootstrap draws as many prompts as there are, with replacement, and recounts. As an outcome has three values,
    what is drawn is how many of each there are, which is multinomial.

    Args:
        found: The outcomes, one a prompt.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Raises:
        ConfigurationError: There is no outcome.
        MissingExtraError: scipy is not installed.

    Example:
        >>> rate = win_rate([Outcome(str(number), "", 1 if number < 65 else -1) for number in range(100)])
        >>> rate.delta, rate.delta_ci95, rate.shown
        (30.0, (12.0, 48.0), True)
    """
    if not found:
        msg = "There is no verdict to count."
        raise ConfigurationError(msg, hint="Judge at least one prompt: bpo-train evaluate.")
    n = len(found)
    wins, losses = (sum(outcome.value == value for outcome in found) for value in (1, -1))
    ties = n - wins - losses
    win, tie, loss = (100 * count / n for count in (wins, ties, losses))
    return WinRate(
        n=n,
        win=win,
        tie=tie,
        loss=loss,
        delta=100 * (wins - losses) / n,
        delta_ci95=_interval(wins, ties, losses, seed=seed, resamples=resamples),
        p_value=sign_test(wins, losses),
        wins=wins,
        ties=ties,
        losses=losses,
    )


def paper_win_rate(verdicts: Iterable[Verdict], seed: int = 0) -> WinRate:
    """Return the win rate as the paper counts it: one order a pair, which one is drawn once; its verdict as it is.

    The reference code shuffles the order of each pair once and asks once (paper, section 4.2); here the other order is
    left out. A verdict that could not be read is a tie.

    Args:
        verdicts: Those of one judge, arm and baseline.
        seed: Draws the orders.

    Raises:
        ConfigurationError: As `outcomes` and `win_rate` do.
    """
    pairs = _by_prompt(verdicts)
    first = dict(zip(sorted(pairs), np.random.default_rng(seed).random(len(pairs)) < 0.5, strict=True))
    drawn = []
    for id_, orders in pairs.items():
        order: Order = "AB" if first[id_] else "BA"
        drawn.append(_folded({order: orders[order]} if order in orders else orders))
    return win_rate(drawn, seed=seed)


def mean_delta(rates: Iterable[WinRate]) -> float:
    """Return the paper's dWR: the mean of (win - loss) over test sets, each counting the same (paper, table 2).

    Raises:
        ConfigurationError: There is none.
    """
    deltas = [rate.delta for rate in rates]
    if not deltas:
        msg = "There is no test set to take the mean over."
        raise ConfigurationError(msg, hint="Judge at least one prompt: bpo-train evaluate.")
    return sum(deltas) / len(deltas)


@dataclass(frozen=True, slots=True)
class Difference:
    """By how many points one arm's delta is above another's.

    Args:
        delta: The difference.
        delta_ci95: Where it lies with 95% confidence: paired bootstrap over prompts, percentiles.
        p_value: Exact two-sided sign test of the prompts on which one arm does better than the other.
    """

    delta: float
    delta_ci95: tuple[float, float]
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether a difference is shown: both are asked, as in `WinRate`."""
        low, high = self.delta_ci95
        return (low > 0 or high < 0) and self.p_value < ALPHA

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "delta": round(self.delta, 4),
            "delta_ci95": [round(bound, 4) for bound in self.delta_ci95],
            "p_value": float(f"{self.p_value:.6g}"),
            "shown": self.shown,
        }


def difference(
    found: Iterable[Outcome], other: Iterable[Outcome], *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference | None:
    """Return by how many points one arm's delta is above another's.

    Both arms were judged against the same baseline, so that this is an indirect comparison of the two.

    Args:
        found: The outcomes of one arm.
        other: The outcomes of the other; prompts that only one of them has are left out.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Returns:
        The difference; None where they have no prompt in common.

    Raises:
        MissingExtraError: scipy is not installed.

    Example:
        >>> difference([Outcome("1", "", 1), Outcome("2", "", 1)], [Outcome("1", "", 0), Outcome("2", "", 0)])
        Difference(delta=100.0, delta_ci95=(100.0, 100.0), p_value=0.5)
    """
    values = {outcome.id: outcome.value for outcome in other}
    gaps = [outcome.value - values[outcome.id] for outcome in found if outcome.id in values]
    if not gaps:
        return None
    steps, counts = np.unique(gaps, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(gaps), counts / len(gaps), size=resamples)
    low, high = np.quantile(100 * (drawn @ steps) / len(gaps), [ALPHA / 2, 1 - ALPHA / 2])
    p_value = sign_test(sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps))
    return Difference(100 * sum(gaps) / len(gaps), (float(low), float(high)), p_value)


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p value of so uneven a split, if each were a toss of a coin; 1 where there is none.

    Raises:
        MissingExtraError: scipy is not installed.

    Example:
        >>> sign_test(5, 0)
        0.0625
    """
    try:
        from scipy.stats import binomtest
    except ImportError as error:
        raise MissingExtraError("scipy", extra="train") from error
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What a judge's verdicts say about the judge; shares in percent.

    Args:
        verdicts: How many there are.
        unreadable: How many could not be read; they count as ties.
        first: Share, of those that name an answer, that name the one shown first; None where none names one. 50 is
            fair.
        consistent: Share, of the prompts judged in both orders, whose verdicts say the same; None where there is none.
    """

    verdicts: int
    unreadable: int
    first: float | None
    consistent: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        rounded = {
            name: None if value is None else round(value, 4)
            for name, value in (("first", self.first), ("consistent", self.consistent))
        }
        return {"verdicts": self.verdicts, "unreadable": self.unreadable, **rounded}


def reading(verdicts: Iterable[Verdict]) -> Reading:
    """Return how a judge's verdicts hang on the order in which answers are shown.

    Args:
        verdicts: Of one judge, arm and baseline.

    Raises:
        ConfigurationError: As `outcomes` does.

    Example:
        >>> reading([Verdict("1", "AB", "A"), Verdict("1", "BA", "A")]).first
        100.0
    """
    pairs = _by_prompt(verdicts)
    read = [verdict.verdict for orders in pairs.values() for verdict in orders.values()]
    named = [choice for choice in read if choice in ("A", "B")]
    both = [[_value(verdict) for verdict in orders.values()] for orders in pairs.values() if len(orders) == 2]
    agree = sum(values[0] == values[1] and values[0] is not None for values in both)
    return Reading(
        verdicts=len(read),
        unreadable=read.count(None),
        first=100 * named.count("A") / len(named) if named else None,
        consistent=100 * agree / len(both) if both else None,
    )


def _by_prompt(verdicts: Iterable[Verdict]) -> dict[str, dict[Order, Verdict]]:
    found: dict[str, dict[Order, Verdict]] = {}
    pairing: Pairing | None = None
    for verdict in verdicts:
        own = (verdict.judge, verdict.arm, verdict.baseline)
        if pairing not in (None, own):
            msg = "These verdicts are of several arms or judges."
            raise ConfigurationError(msg, hint="Take those of one: pairings().")
        pairing = own
        orders = found.setdefault(verdict.id, {})
        if verdict.order in orders:
            msg = f"There are two verdicts on {verdict.id} in the order {verdict.order}."
            raise ConfigurationError(msg, hint="Make the ids unique.")
        orders[verdict.order] = verdict
    return found


def _folded(orders: Mapping[Order, Verdict]) -> Outcome:
    verdicts = list(orders.values())
    values = {_value(verdict) for verdict in verdicts}
    value = values.pop() if len(values) == 1 else None
    category = next((verdict.category for verdict in verdicts if verdict.category), "")
    return Outcome(verdicts[0].id, category, value or 0)


def _value(verdict: Verdict) -> int | None:
    """Return 1 where the arm's answer is named, -1 the baseline's, 0 a tie, None not readable."""
    if verdict.verdict is None:
        return None
    if verdict.verdict == "C":
        return 0
    return 1 if (verdict.verdict == "A") == (verdict.order == "AB") else -1


def _interval(wins: int, ties: int, losses: int, *, seed: int, resamples: int) -> tuple[float, float]:
    """Return the percentile interval; exactly negated where wins and losses change places."""
    if wins < losses:
        low, high = _interval(losses, ties, wins, seed=seed, resamples=resamples)
        return _negated(high), _negated(low)
    n = wins + ties + losses
    drawn = np.random.default_rng(seed).multinomial(n, [wins / n, ties / n, losses / n], size=resamples)
    deltas = 100 * (drawn[:, 0] - drawn[:, 2]) / n
    low, high = (float(bound) for bound in np.quantile(deltas, [ALPHA / 2, 1 - ALPHA / 2]))
    if wins == losses:
        high = (high - low) / 2
        low = _negated(high)
    return low, high


def _negated(value: float) -> float:
    return -value if value else 0.0  # no -0.0
