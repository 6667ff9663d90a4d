"""The loss of a rewriter on rows it was not trained on, in nats per completion token.

Every token of every completion counts the same (a mean over tokens, not over batches or rows), the end of the turn
included; rows are never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bpo_train.training.sft import Example, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def completion_loss(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, mode: str
) -> tuple[float, int]:
    """Measure a model.

    Args:
        model: A causal language model of transformers, with or without an adapter.
        tokenizer: Its tokenizer.
        examples: Held-out rows.
        mode: `augment` or `rewrite`.

    Returns:
        Nats per completion token, and the number of completion tokens.
    """
    import torch

    total, tokens = 0.0, 0
    with torch.inference_mode():
        for example in examples:
            head, tail = render(example, mode, tokenizer)
            ids = torch.tensor([head + tail], device=model.device)
            logits = model(input_ids=ids, logits_to_keep=len(tail) + 1).logits[0, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits, ids[0, len(head) :], reduction="sum")
            total += float(losses)
            tokens += len(tail)
    return total / max(1, tokens), tokens
