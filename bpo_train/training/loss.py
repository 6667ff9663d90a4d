"""The completion's loss without the prompt's logits, for training on the CPU.

TRL's fused output head scores only the labelled positions on a GPU, and every position elsewhere. On a CPU, with a
vocabulary of 49,152 and a completion that is a fifth of the row, that is most of the memory. This scores the labelled
positions only; the value is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer


class CompletionLossTrainer(SFTTrainer):
    """`SFTTrainer` whose loss projects only the completion's positions onto the vocabulary."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean negative log-likelihood, in nats per completion token, over `num_items_in_batch` tokens."""
        if return_outputs:
            return super().compute_loss(  # type: ignore[no-untyped-call]
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        causal: Any = self.accelerator.unwrap_model(model)
        causal = causal.get_base_model() if hasattr(causal, "get_base_model") else causal
        hidden = causal.base_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state[:, :-1]
        labels = inputs["labels"][:, 1:]
        mask = labels != -100
        logits = causal.get_output_embeddings()(hidden[mask]).float()
        loss = torch.nn.functional.cross_entropy(logits, labels[mask], reduction="sum")
        tokens = mask.sum() if num_items_in_batch is None else num_items_in_batch
        if model.training:
            self._total_train_tokens += int(inputs["attention_mask"].sum())
        return loss / torch.as_tensor(tokens).clamp(min=1)
