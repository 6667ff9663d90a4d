"""The arithmetic of a PPO step: rewards of tokens, advantages, the two clipped losses, control of the KL divergence.

Pure functions of tensors of shape (rows, new tokens), each with a mask that is 1 on the tokens that the policy wrote,
the end of its turn included. `tests/unit/test_ppo_step.py` holds every one against numbers that were worked out by
hand. It knows no model: see `ppo.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Before(NamedTuple):
    """What is known of each token before anything is learned from it.

    Args:
        logps: Its log-probability under the policy that wrote it.
        values: What the value head expected before it.
        advantage: How much better than that it turned out to be.
        returns: What the value is to become.
    """

    logps: Tensor
    values: Tensor
    advantage: Tensor
    returns: Tensor

    def rows(self, which: Tensor) -> Before:
        """Return some of the rows."""
        return Before(*(part[which] for part in self))


class Losses(NamedTuple):
    """The two losses, each summed over the tokens, and how many tokens were clipped."""

    policy: Tensor
    value: Tensor
    clipped: Tensor


@dataclass(frozen=True, slots=True)
class KLControl:
    """The weight of the KL penalty: fixed, or adapted to hold the divergence near a target.

    Args:
        weight: Its present value.
        target: Nats an answer, or None for a fixed weight.
        horizon: Answers over which the weight follows (Ziegler et al. 2019, arXiv 1909.08593, section 2.2, whose
            proportional control is clipped at 0.2).

    Example:
        >>> KLControl(0.1, target=4.0, horizon=100).after(kl=8.0, answers=10).weight
        0.10200000000000001
    """

    weight: float
    target: float | None = None
    horizon: float = 10_000.0

    def after(self, kl: float, answers: int) -> KLControl:
        """Return the control after a step.

        Args:
            kl: The divergence from the reference in that step, in nats an answer.
            answers: Answers in that step.
        """
        if self.target is None:
            return self
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, weight=self.weight * (1 + error * answers / self.horizon))


def token_rewards(scores: Tensor, logps: Tensor, reference: Tensor, mask: Tensor, weight: float) -> Tensor:
    """Return the reward of each token: the KL penalty everywhere, and the answer's score at its last token.

    Args:
        scores: The reward model's, one a row.
        logps: Log-probabilities of the tokens under the policy that wrote them.
        reference: The same under the model that training began with.
        mask: 1 on the policy's tokens.
        weight: Of the penalty (Ouyang et al. 2022, arXiv 2203.02155, equation 2).
    """
    rewards = -weight * (logps - reference) * mask
    last = (mask.cumsum(1) * mask).argmax(1)
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def advantages(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Return generalized advantage estimates (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    Args:
        rewards: Of each token.
        values: What the value head expected before each token.
        mask: 1 on the policy's tokens, which follow one another from the first.
        gamma: Discount a token.
        lam: 1 takes the whole return, 0 only the next value.
    """
    found = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for at in reversed(range(rewards.shape[1])):
        after = values[:, at + 1] * mask[:, at + 1] if at + 1 < rewards.shape[1] else torch.zeros_like(following)
        delta = rewards[:, at] + gamma * after - values[:, at]
        following = (delta + gamma * lam * following) * mask[:, at]
        found[:, at] = following
    return found


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Return values with mean 0 and variance 1 over the mask, and 0 elsewhere."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


def losses(logps: Tensor, values: Tensor, old: Before, mask: Tensor, *, clip: float, value_clip: float) -> Losses:
    """Return the clipped losses (Schulman et al. 2017, arXiv 1707.06347, equation 7; values clipped alike).

    Args:
        logps: Of the tokens under the policy as it is now.
        values: As the value head has them now.
        old: As both were, and what came of it.
        mask: 1 on the policy's tokens.
        clip: How far the ratio of probabilities may go from 1 and still gain.
        value_clip: How far a value may go from its old one and still gain.
    """
    ratio = (logps - old.logps).exp()
    free, held = ratio * old.advantage, ratio.clamp(1 - clip, 1 + clip) * old.advantage
    near = old.values + (values - old.values).clamp(-value_clip, value_clip)
    value_loss = 0.5 * torch.maximum((values - old.returns).square(), (near - old.returns).square())
    return Losses(
        policy=-(torch.minimum(free, held) * mask).sum(),
        value=(value_loss * mask).sum(),
        clipped=((held < free) * mask).sum(),
    )
