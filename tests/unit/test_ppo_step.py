"""The arithmetic of PPO, against numbers that were worked out by hand."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from bpo_train.baselines.ppo_step import Before, KLControl, advantages, losses, token_rewards, whitened  # noqa: E402


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_every_token_pays_for_its_divergence_and_the_last_one_gets_the_score() -> None:
    rewards = token_rewards(
        torch.tensor([2.0, -1.0], dtype=torch.float64),
        tensor([-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]),
        tensor([-1.5, -1.5, -1.0], [-1.0, -3.0, -1.0]),
        tensor([1, 1, 0], [1, 1, 1]),
        weight=0.1,
    )
    # -0.1 * (-1.0 + 1.5) = -0.05; -0.1 * (-2.0 + 1.5) + 2 = 2.05; padding gets nothing. -0.1 * (-1 + 3) = -0.2.
    torch.testing.assert_close(rewards, tensor([-0.05, 2.05, 0.0], [0.0, -0.2, -1.0]))


def test_advantages_are_the_discounted_sums_of_surprises() -> None:
    found = advantages(
        tensor([1.0, 0.0, 2.0, 7.0]), tensor([0.5, 0.4, 0.3, 9.0]), tensor([1, 1, 1, 0]), gamma=0.9, lam=0.8
    )
    # Surprises: 2 - 0.3 = 1.7; 0 + 0.9 * 0.3 - 0.4 = -0.13; 1 + 0.9 * 0.4 - 0.5 = 0.86. Each takes 0.72 of the next:
    # 1.7; -0.13 + 0.72 * 1.7 = 1.094; 0.86 + 0.72 * 1.094 = 1.64768. What follows the end does not count.
    torch.testing.assert_close(found, tensor([1.64768, 1.094, 1.7, 0.0]))


def test_with_lambda_1_an_advantage_is_the_whole_return_less_the_value() -> None:
    found = advantages(tensor([1.0, 2.0, 3.0]), tensor([0.5, 0.25, 0.0]), tensor([1, 1, 1]), gamma=1.0, lam=1.0)
    torch.testing.assert_close(found, tensor([5.5, 4.75, 3.0]))


def before(logps: list[float], values: list[float], advantage: list[float], returns: list[float]) -> Before:
    return Before(tensor(logps), tensor(values), tensor(advantage), tensor(returns))


def test_a_ratio_gains_nothing_beyond_the_clip_and_loses_without_bound() -> None:
    ratios = [1.5, 0.5, 1.1, 1.5, 3.0]
    logps = tensor([math.log(ratio) for ratio in ratios]).requires_grad_()
    old = before([0.0] * 5, [0.0] * 5, [2.0, -1.0, 1.0, -1.0, 50.0], [0.0] * 5)
    found = losses(logps, tensor([0.0] * 5), old, tensor([1, 1, 1, 1, 0]), clip=0.2, value_clip=0.2)
    # 1.5 -> 1.2 * 2 = 2.4 and 0.5 -> 0.8 * -1 = -0.8, both clipped; 1.1 * 1 free; 1.5 * -1 is worse than 1.2 * -1 and
    # stays; the last one is padding.
    assert float(found.policy.detach()) == pytest.approx(-(2.4 - 0.8 + 1.1 - 1.5))
    assert float(found.clipped) == 2
    found.policy.backward()
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx([0.0, 0.0, -1.1, 1.5, 0.0])


def test_a_value_gains_nothing_beyond_its_clip() -> None:
    old = before([0.0] * 3, [0.5, 0.5, 0.5], [0.0] * 3, [0.9, 0.55, 9.0])
    found = losses(tensor([0.0] * 3), tensor([1.0, 0.6, 0.0]), old, tensor([1, 1, 0]), clip=0.2, value_clip=0.2)
    # 1.0 is held at 0.7: the larger of 0.1² and 0.2² is 0.04; 0.6 is free: 0.05² = 0.0025. Half of each.
    assert float(found.value.detach()) == pytest.approx(0.02 + 0.00125)


def test_whitening_is_over_the_mask_alone() -> None:
    found = whitened(tensor([1.0, 3.0, 100.0]), tensor([1, 1, 0]))
    torch.testing.assert_close(found, tensor([-1.0, 1.0, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kl", "weight"), [(8.0, 1.02), (4.4, 1.01), (4.0, 1.0), (0.0, 0.98)])
def test_the_weight_follows_the_divergence_by_at_most_a_fifth(kl: float, weight: float) -> None:
    assert KLControl(1.0, target=4.0, horizon=100).after(kl, answers=10).weight == pytest.approx(weight)


def test_without_a_target_the_weight_stays() -> None:
    assert KLControl(0.1).after(1000.0, answers=64) == KLControl(0.1)
