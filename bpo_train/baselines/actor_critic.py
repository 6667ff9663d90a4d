"""The policy with a value head, and what PPO asks of it: new answers, their log-probabilities, and values.

Promises: log-probabilities of what was sampled, at the temperature of the sampling; special tokens inside a prompt stay
text. The reference is the same model with its adapter switched off, or a frozen copy where all weights are trained.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from bpo_integrations.engines.causal_lm import ChatTokenizer


@dataclass(frozen=True, slots=True)
class Rollout:
    """Answers that the policy wrote: prompts padded on the left, answers on the right.

    Args:
        ids: Prompt and answer, (rows, prompt tokens + new tokens).
        attended: 1 on what is no padding, same shape.
        mask: 1 on the answers' tokens, the end of the turn included, (rows, new tokens).
    """

    ids: Tensor
    attended: Tensor
    mask: Tensor

    @property
    def answers(self) -> Tensor:
        """The answers' tokens, (rows, new tokens)."""
        return self.ids[:, -self.mask.shape[1] :]

    def rows(self, which: Tensor) -> Rollout:
        """Return some of the rows."""
        return Rollout(*(getattr(self, field.name)[which] for field in fields(self)))


class ActorCritic(nn.Module):
    """A causal language model and a value head on its last hidden states.

    Args:
        causal: A causal model of transformers, or one of PEFT around it (then only the adapter is trained).
        tokenizer: Its tokenizer.
        temperature: Of the sampling.
        bf16: Compute in bfloat16 by autocast; for weights in float32 on a GPU.
    """

    def __init__(self, causal: Any, tokenizer: Any, *, temperature: float = 1.0, bf16: bool = False) -> None:
        super().__init__()
        from transformers import GenerationConfig

        self.has_adapter = hasattr(causal, "disable_adapter")
        self.causal = causal
        self._inner: tuple[Any] = (causal.get_base_model() if self.has_adapter else causal,)  # no second registration
        self.value_head = nn.Linear(self._inner[0].config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_head.to(next(causal.parameters()).device)
        self.tokenizer = tokenizer
        self.chat = ChatTokenizer(tokenizer)
        self.temperature = temperature
        self.bf16 = bf16
        self._inner[0].generation_config = GenerationConfig()  # the checkpoint's own sampling must not leak in
        self.eval()  # dropout would make the old log-probabilities another model's
        self._reference: tuple[Any, ...] = () if self.has_adapter else (copy.deepcopy(causal).requires_grad_(False),)
        self._sampler: tuple[Any, ...] = ()
        if bf16 and not self.has_adapter:
            self._sampler = (copy.deepcopy(causal).requires_grad_(False).to(torch.bfloat16),)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.value_head.weight.device

    @torch.no_grad()
    def sample(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Rollout:
        """Let the policy answer.

        Args:
            prompts: Token ids of each prompt, its template included.
            max_new_tokens: After so many an answer is cut.
        """
        tokenizer = self.tokenizer
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), int(tokenizer.eos_token_id))
        attended = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attended[row, width - len(prompt) :] = 1
        ids, attended = ids.to(self.device), attended.to(self.device)
        with nullcontext() if self._sampler else self._autocast():
            whole = self._writer().generate(
                ids,
                attention_mask=attended,
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )
        answers = whole[:, width:]
        ended = (answers == tokenizer.eos_token_id).int().cumsum(1)
        mask = ((ended == 0) | ((ended == 1) & (answers == tokenizer.eos_token_id))).long()
        return Rollout(whole, torch.cat([attended, mask], dim=1), mask)

    def texts(self, rollout: Rollout) -> list[str]:
        """Return the answers in words."""
        rows = [row[: int(mask.sum())].tolist() for row, mask in zip(rollout.answers, rollout.mask, strict=True)]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def forward(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, value before it and entropy for each of the answers' tokens, in float32."""
        hidden = self._hidden(self._inner[0], rollout)
        logits = self._logits(self._inner[0], hidden)
        logps = -nn.functional.cross_entropy(logits.transpose(1, 2), rollout.answers, reduction="none")
        with torch.no_grad():
            entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        with torch.autocast(self.device.type, enabled=False):
            values = self.value_head(hidden.float()).squeeze(-1)
        return logps, values, entropy

    @torch.no_grad()
    def reference_logps(self, rollout: Rollout) -> Tensor:
        """Return the log-probability of each token under the model that training began with."""
        with self.causal.disable_adapter() if self.has_adapter else nullcontext():
            model = self._inner[0] if self.has_adapter else self._reference[0]
            logits = self._logits(model, self._hidden(model, rollout))
        return -nn.functional.cross_entropy(logits.transpose(1, 2), rollout.answers, reduction="none")

    def _hidden(self, model: Any, rollout: Rollout) -> Tensor:
        """Return the hidden states from which each of the answers' tokens is predicted."""
        positions = (rollout.attended.cumsum(1) - 1).clamp(min=0)
        with self._autocast():
            states: Tensor = model.base_model(
                input_ids=rollout.ids, attention_mask=rollout.attended, position_ids=positions, use_cache=False
            ).last_hidden_state
        return states[:, -rollout.mask.shape[1] - 1 : -1]

    def _logits(self, model: Any, hidden: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = model.get_output_embeddings()(hidden)
        return logits.float() / self.temperature

    def _writer(self) -> Any:
        """Return the model that samples: a copy in bfloat16 that follows the policy, where there is one."""
        if not self._sampler:
            return self.causal
        for mine, theirs in zip(self._sampler[0].parameters(), self.causal.parameters(), strict=True):
            mine.copy_(theirs)
        return self._sampler[0]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)
