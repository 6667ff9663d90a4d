"""The win rate at equal answer length: against known data, and where a logistic regression would come apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_integrations.errors import ConfigurationError
from bpo_train.evaluation.length import PRIOR, length_controlled
from bpo_train.evaluation.winrate import Outcome, win_rate

ROWS = st.lists(
    st.tuples(st.sampled_from([-1, 0, 1]), st.integers(0, 900), st.integers(0, 900)), min_size=1, max_size=60
)


def made(rows: list[tuple[int, int, int]]) -> tuple[list[Outcome], dict[str, tuple[int, int]]]:
    found = [Outcome(str(number), "", value) for number, (value, _, _) in enumerate(rows)]
    return found, {str(number): (own, other) for number, (_, own, other) in enumerate(rows)}


def drawn(n: int, intercept: float, slope: float, *, longer: float, ties: float = 0.0, seed: int = 0):
    """Rows whose preference is drawn from the model itself."""
    random = np.random.default_rng(seed)
    difference = np.round(random.normal(longer, 80, n))
    chance = 1 / (1 + np.exp(-(intercept + slope * np.tanh(difference / difference.std()))))
    values = np.where(random.random(n) < chance, 1, -1)
    values[random.random(n) < ties] = 0
    return made([(int(value), int(500 + gap), 500) for value, gap in zip(values, difference, strict=True)])


def test_what_only_length_won_is_nothing_at_equal_length() -> None:
    rate = length_controlled(*drawn(4000, 0.0, 2.0, longer=80), resamples=200)
    assert rate.raw_delta > 35
    assert rate.delta == pytest.approx(0, abs=8)
    assert rate.delta_ci95[0] < 0 < rate.delta_ci95[1]


def test_what_quality_won_stays() -> None:
    rate = length_controlled(*drawn(4000, 0.8, 0.0, longer=80), resamples=200)
    assert rate.delta == pytest.approx(100 * math.tanh(0.4), abs=6)
    assert rate.length_effect == pytest.approx(0, abs=0.25)
    assert rate.shown


def test_the_parameters_that_made_the_data_are_found_again() -> None:
    rate = length_controlled(*drawn(20_000, 0.5, 1.2, longer=0), resamples=50)
    assert rate.delta == pytest.approx(100 * math.tanh(0.25), abs=2)
    assert rate.length_effect == pytest.approx(1.2, abs=0.08)


def test_the_fit_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    found, lengths = drawn(300, 0.3, 1.5, longer=60, ties=0.2, seed=3)
    rate = length_controlled(found, lengths, resamples=10)
    gap = np.array([own - other for own, other in lengths.values()], dtype=float)
    x = np.tanh(gap / gap.std())
    wanted = (np.array([outcome.value for outcome in found]) + 1) / 2
    # A prior of standard deviation s on a weight is a penalty of 1: the column times s. The intercept is a column, too.
    columns = np.stack([np.full_like(x, PRIOR[0]), PRIOR[1] * x], axis=1)
    model = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=1000)
    twice = np.concatenate([np.ones_like(wanted), np.zeros_like(wanted)])
    model.fit(np.concatenate([columns, columns]), twice, sample_weight=np.concatenate([wanted, 1 - wanted]))
    intercept, slope = model.coef_[0] * np.array(PRIOR)
    assert rate.delta == pytest.approx(100 * math.tanh(intercept / 2), abs=0.01)
    assert rate.length_effect == pytest.approx(slope, abs=1e-3)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_any_outcomes_give_finite_figures_within_a_hundred(rows: list[tuple[int, int, int]]) -> None:
    rate = length_controlled(*made(rows), resamples=50)
    low, high = rate.delta_ci95
    assert -100 <= low <= high <= 100
    assert -100 <= rate.delta <= 100
    assert math.isfinite(rate.length_effect)


@given(ROWS)
@settings(max_examples=40, deadline=None)
def test_changing_places_negates(rows: list[tuple[int, int, int]]) -> None:
    one = length_controlled(*made(rows), resamples=50)
    other = length_controlled(*made([(-value, second, first) for value, first, second in rows]), resamples=50)
    assert other.delta == pytest.approx(-one.delta, abs=1e-6)
    assert other.delta_ci95 == (
        pytest.approx(-one.delta_ci95[1], abs=1e-6),
        pytest.approx(-one.delta_ci95[0], abs=1e-6),
    )
    assert other.length_effect == pytest.approx(one.length_effect, abs=1e-6)


def test_data_that_length_separates_do_not_explode() -> None:
    rows = [(1, 150, 100)] * 40 + [(-1, 50, 100)] * 40
    rate = length_controlled(*made(rows))
    assert rate.delta == pytest.approx(0, abs=0.01)
    assert 3 < rate.length_effect < 20


def test_all_ties_are_zero() -> None:
    rate = length_controlled(*made([(0, 100 + number, 100) for number in range(30)]))
    assert (rate.delta, rate.delta_ci95) == (pytest.approx(0, abs=1e-9), (pytest.approx(0, abs=1e-9),) * 2)


@pytest.mark.parametrize("gap", [0, 40])
def test_where_all_differ_alike_the_figures_are_the_raw_ones(gap: int) -> None:
    found, lengths = made([(value, 100 + gap, 100) for value in [1] * 30 + [0] * 10 + [-1] * 20])
    rate = length_controlled(found, lengths, seed=4)
    raw = win_rate(found, seed=4, resamples=2000)
    assert (rate.delta, rate.delta_ci95, rate.scale) == (raw.delta, raw.delta_ci95, 0.0)
    assert rate.extrapolated == bool(gap)


def test_it_says_where_it_extrapolates() -> None:
    assert length_controlled(*made([(1, 150 + n, 100) for n in range(20)]), resamples=20).extrapolated
    assert not length_controlled(*made([(1, 90 + n, 100) for n in range(20)]), resamples=20).extrapolated


def test_empty_answers_have_lengths_like_any_other() -> None:
    rate = length_controlled(*made([(-1, 0, 120)] * 10 + [(1, 130, 120)] * 10), resamples=20)
    assert math.isfinite(rate.delta)
    assert rate.mean_difference == -55


def test_five_prompts_show_nothing_whatever_the_interval() -> None:
    assert not length_controlled(*made([(1, 100, 100)] * 5)).shown
    assert length_controlled(*made([(1, 100, 100)] * 6)).shown


def test_ties_do_not_make_a_handful_of_wins_a_finding() -> None:
    ties = [(0, 100 + number % 21 - 10, 100) for number in range(96)]
    rate = length_controlled(*made([(1, 100 + number, 100) for number in range(4)] + ties))
    assert rate.delta_ci95[0] > 0
    assert not rate.shown  # as little as by the sign test


def test_no_outcome_or_no_length_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="no verdict to count"):
        length_controlled([], {})
    with pytest.raises(ConfigurationError, match="no answer lengths for 7"):
        length_controlled([Outcome("7", "", 1)], {})
