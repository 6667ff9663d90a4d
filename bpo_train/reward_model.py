"""A reward model as a judge: it scores answers to prompts, and needs no API.

Promises: the same pair has the same score wherever it stands in the list; a pair that is too long is cut in one defined
way (`encode_pair`), never dropped; safetensors only, no remote code. It does not train (`bpo_train.baselines.reward`
does), and says nothing about whether the model is a good judge (`bpo-train judge-check` does).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bpo_integrations.engines.causal_lm import ChatTokenizer
from bpo_integrations.errors import ConfigurationError, MissingExtraError, ModelNotFoundError

SETTINGS = "reward_model.json"
"""Stands beside the weights and says how long the pairs were that the model was trained on."""

MAX_LENGTH = 1024
"""Tokens of a pair where the model does not say: 9 of 10 pairs of `preferences.jsonl` need at most 777."""

BATCH_TOKENS = {"cpu": 4_096, "cuda": 131_072}
"""Tokens of a batch, padding included, by the kind of device."""


class RewardModel:
    """A sequence classification model with one output, read as a score: higher is better.

    Args:
        folder: What `bpo-train baseline reward` wrote, or any reward model of transformers stored as safetensors
            (a tokenizer without a chat template gets prompt and answer as a pair of texts).
        device: torch's name of the device; None takes CUDA where there is one.
        dtype: torch's name of the weights' type; None is bfloat16 on CUDA, float32 elsewhere. The score itself is
            always computed in float32: with the 8 bits of a bfloat16 close answers would tie.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ModelNotFoundError: There is no such model on this machine.
        ConfigurationError: The model has more than one output.

    Example:
        >>> judge = RewardModel("runs/reward")  # doctest: +SKIP
        >>> judge.score([("Name a prime.", "7"), ("Name a prime.", "No.")])  # doctest: +SKIP
        [1.32, -2.05]
    """

    def __init__(self, folder: str | Path, *, device: str | None = None, dtype: str | None = None) -> None:
        try:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError as error:
            raise MissingExtraError(error.name or "transformers", extra="train") from error
        from bpo_integrations.engines.transformers import best_device, best_dtype

        self.folder = Path(folder)
        self.device = device or best_device()
        kind = getattr(torch, dtype or best_dtype(self.device))
        settings = self.folder / SETTINGS
        try:
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                str(folder), dtype=kind, use_safetensors=True, local_files_only=True
            )
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self.max_length = int(json.loads(settings.read_text("utf-8"))["max_length"]) if settings.is_file() else 0
        except (OSError, ValueError, KeyError) as error:
            msg = f"The reward model {folder} cannot be loaded: {error}"
            raise ModelNotFoundError(msg, hint="Train one with `bpo-train baseline reward --output DIR`.") from error
        if model.config.num_labels != 1:
            msg = f"{folder} has {model.config.num_labels} outputs; a reward model has one."
            raise ConfigurationError(msg, hint="Give a reward model, not a classifier.")
        context = int(getattr(model.config, "max_position_embeddings", 0) or MAX_LENGTH)
        self.max_length = min(self.max_length or MAX_LENGTH, context)
        head = getattr(model, "score", None)
        if head is not None:
            head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        self._chat = ChatTokenizer(self.tokenizer)
        self._model = model.to(self.device).eval()

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score answers.

        Args:
            pairs: (prompt, answer), in any order; equal pairs are computed once.

        Returns:
            One score a pair, in the pairs' order. Only differences between answers to the same prompt mean something.
        """
        import torch

        different = list(dict.fromkeys(pairs))
        encoded = [encode_pair(self._chat, *pair, max_length=self.max_length) for pair in different]
        limit = BATCH_TOKENS.get(torch.device(self.device).type, BATCH_TOKENS["cpu"])
        found: dict[tuple[str, str], float] = {}
        with torch.inference_mode():
            for batch in _batches([len(ids) for ids in encoded], limit):
                ids, mask = right_padded([encoded[at] for at in batch], int(self._model.config.pad_token_id or 0))
                logits = self._model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
                found |= zip((different[at] for at in batch), logits.squeeze(-1).float().tolist(), strict=True)
        return [found[pair] for pair in pairs]


def encode_pair(chat: ChatTokenizer, prompt: str, answer: str, *, max_length: int) -> list[int]:
    """Return a pair's tokens: the chat that asks the prompt, the answer, the end of the turn.

    A pair that is too long loses the end of its answer, down to half of `max_length`, then the beginning of the prompt;
    the end of the turn stays, because the score is read there. Special tokens inside the texts stay text.

    Args:
        chat: The tokenizer; one without a chat template puts prompt and answer as its pair of texts.
        prompt: The user's turn.
        answer: The assistant's.
        max_length: Tokens at most, more than 1.
    """
    tokenizer = chat.tokenizer
    if not tokenizer.chat_template:
        return list(tokenizer(prompt, answer, truncation=True, max_length=max_length)["input_ids"])
    head = chat.render([{"role": "user", "content": prompt}])
    tail = chat.encode(answer)
    room = max_length - 1
    tail = tail[: max(room - len(head), room // 2)]
    head = head[max(0, len(head) + len(tail) - room) :]
    return [*head, *tail, int(tokenizer.eos_token_id)]


def right_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Any, Any]:
    """Return token ids and attention mask of rows, padded on the right, as torch's tensors."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    return ids, mask


def _batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield places of rows of like lengths whose padded batch holds at most `limit` tokens, or of one row alone."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) + 1) * lengths[at] > limit:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
