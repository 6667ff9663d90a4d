"""TRL's `GRPOTrainer`, which asks no hub about a base that came from a file."""

from __future__ import annotations

from trl import GRPOTrainer

from bpo_train.training.checkpoints import AsksNoHub


class RewardTrainer(AsksNoHub, GRPOTrainer):
    """`GRPOTrainer` as it is, but for what it asks when it saves."""
