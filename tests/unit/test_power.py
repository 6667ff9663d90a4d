"""How many prompts a gain needs: against simulation, and the two functions against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_integrations.errors import ConfigurationError
from bpo_train.evaluation.power import detectable, prompts_needed


@pytest.mark.parametrize(("delta", "ties"), [(10.0, 20.0), (20.0, 20.0), (20.0, 50.0), (-15.0, 0.0)])
def test_so_many_prompts_show_the_difference_in_four_of_five_runs(delta: float, ties: float) -> None:
    n = prompts_needed(delta, ties=ties)
    decided = 1 - ties / 100
    win, loss = (decided + delta / 100) / 2, (decided - delta / 100) / 2
    counts = np.random.default_rng(0).multinomial(n, [win, 1 - win - loss, loss], size=20_000)
    score = (counts[:, 0] - counts[:, 2]) / np.sqrt(counts[:, 0] + counts[:, 2])
    assert np.mean(np.abs(score) > 1.959964) == pytest.approx(0.8, abs=0.03)


@given(st.floats(1, 70), st.floats(0, 29), st.floats(0.5, 0.95))
def test_what_they_can_show_is_what_they_were_chosen_for(delta: float, ties: float, power: float) -> None:
    n = prompts_needed(delta, ties=ties, power=power)
    assert detectable(n, ties=ties, power=power) <= delta + 1e-6
    if n > 1 and math.isfinite(detectable(n - 1, ties=ties, power=power)):
        assert detectable(n - 1, ties=ties, power=power) > delta - 1e-6


@given(st.floats(1, 79), st.floats(1, 79))
def test_a_smaller_gain_needs_more_prompts(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert prompts_needed(low) >= prompts_needed(high)


def test_the_papers_732_prompts_show_nine_points_and_not_one() -> None:
    assert 8 < detectable(732) < 10
    assert prompts_needed(0.9) > 70_000  # its gain over DPO


def test_a_handful_of_prompts_shows_no_difference_however_large() -> None:
    assert detectable(1) == detectable(3) == math.inf


@pytest.mark.parametrize(
    ("delta", "options"),
    [
        (0, {}),
        (90, {"ties": 20}),
        (10, {"ties": 100}),
        (10, {"power": 1}),
        (10, {"alpha": 0}),
        (math.nan, {}),
    ],
)
def test_what_cannot_be_is_an_error(delta: float, options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        prompts_needed(delta, **options)


def test_no_prompt_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="0 prompts"):
        detectable(0)
