"""A penalty on repeated tokens that leaves the prompt's tokens alone, as a logits processor of vLLM.

vLLM's own `repetition_penalty` counts the prompt's tokens too, which would drive a model away from the user's words. It
is of the interface that vLLM's first model runner has; loaded by vLLM itself, by name, in the process that samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from bpo_integrations.engines.vllm_requests import PENALTY_KEY


class CandidatePenalty(AdapterLogitsProcessor):  # type: ignore[misc]
    """Divides the logits of tokens that the candidate already holds (CTRL, Keskar et al. 2019, section 4.1)."""

    def is_argmax_invariant(self) -> bool:
        """It may change which token is the best."""
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """Return the penalty of one request, or None where it asks for none."""
        penalty = (params.extra_args or {}).get(PENALTY_KEY)
        return partial(penalize, penalty) if penalty else None


def penalize(penalty: float, made: list[int], logits: torch.Tensor) -> torch.Tensor:
    """Return the logits of one row with the tokens in `made` penalized.

    Example:
        >>> penalize(2.0, [0, 1], torch.tensor([4.0, -4.0, 4.0])).tolist()
        [2.0, -8.0, 4.0]
    """
    if made:
        ids = torch.tensor(made, device=logits.device)
        scores = logits[ids]
        logits[ids] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits
