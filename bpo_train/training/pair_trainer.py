"""TRL's `DPOTrainer` on pairs that are tokens already: TRL's own tokenising takes marks in a text as special."""

from __future__ import annotations

from typing import Any

from trl import DPOTrainer

from bpo_train.training.checkpoints import AsksNoHub


class PairTrainer(AsksNoHub, DPOTrainer):
    """`DPOTrainer` for rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the rows as they are."""
        return dataset
