"""A reward model as the judge: it scores each answer by itself, needs no API, and knows no position.

Promises: an answer is scored once, whatever it is compared with; a difference within `tie` is a tie; with another `tie`
nothing is scored anew. Whether the model is a good judge is told by `bpo-train judge-check`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bpo_integrations.errors import ConfigurationError, ModelNotFoundError
from bpo_train.data.journal import Entry
from bpo_train.data.llm import Usage
from bpo_train.data.work import Ended, Item
from bpo_train.evaluation.judge import Shown, Which
from bpo_train.evaluation.steps import Step, Terms, content, weights
from bpo_train.evaluation.verdicts import REWARD, Judged

if TYPE_CHECKING:
    from bpo_train.reward_model import RewardModel

BLOCK = 32
"""Answers that are scored in one call."""

Pair = tuple[str, str]


class RewardJudge:
    """A reward model as the judge.

    Args:
        folder: What `bpo-train baseline reward` wrote, or another reward model of transformers.
        tie: The difference of scores up to which two answers are equally good.

    Raises:
        ConfigurationError: `tie` is less than 0.
        ModelNotFoundError: There is no such folder.
    """

    positional = False

    def __init__(self, folder: Path, *, tie: float = 0.0) -> None:
        if tie < 0:
            msg = f"The margin of a tie is {tie}; it must be 0 or more."
            raise ConfigurationError(msg, hint="Leave it out: then only equal scores are a tie.")
        if not (folder / "config.json").is_file():
            msg = f"There is no reward model in {folder}."
            raise ModelNotFoundError(msg, hint="Train one with `bpo-train baseline reward --output DIR`.")
        self.name = f"{REWARD}{folder}"
        self._folder = folder
        self._tie = tie
        self._model: RewardModel | None = None
        self._turn = asyncio.Lock()

    async def judge(self, pairs: Sequence[Shown], step: Step, terms: Terms) -> tuple[list[Judged | None], Ended]:
        """Judge pairs; see `Judge.judge`."""
        wanted = [
            (pair.prompt, answer) for pair in pairs if pair.first != pair.second for answer in (pair.first, pair.second)
        ]
        scored = list(dict.fromkeys(wanted))
        blocks = [scored[start : start + BLOCK] for start in range(0, len(scored), BLOCK)]
        how = f"{self.name} {weights(self.name)}"
        items = [
            content(f"{number} answers", block, how, *(text for pair in block for text in pair))
            for number, block in enumerate(blocks)
        ]
        ended = await step.run(
            items, self._scored, lambda item: 0, Terms(terms.budget, 1, terms.retry_failed, terms.progress)
        )
        done = step.results()
        scores: dict[Pair, float | None] = {}
        for item in items:
            if item.digest in done:
                scores |= zip(item.row, done[item.digest].result["scores"], strict=True)
        return [self._said(pair, scores) for pair in pairs], ended

    def expected(self, pair: Shown) -> Usage:
        """Return nothing: no tokens are paid for."""
        return Usage()

    async def close(self) -> None:
        """Release the weights."""
        self._model = None

    def _said(self, pair: Shown, scores: dict[Pair, float | None]) -> Judged | None:
        if pair.first == pair.second:
            return Judged("tie", "equal answers", asked=False)
        keys = (pair.prompt, pair.first), (pair.prompt, pair.second)
        if not all(key in scores for key in keys):
            return None
        first, second = (scores[key] for key in keys)
        if first is None or second is None:
            return Judged(None, failed="the score is no number")
        margin = first - second
        which: Which = "tie" if abs(margin) <= self._tie else "first" if margin > 0 else "second"
        return Judged(which, f"{first:.4f} against {second:.4f}", margin)

    async def _scored(self, item: Item[list[Pair]]) -> Entry:
        async with self._turn:
            found = await asyncio.to_thread(self._score, item.row)
        scores = [score if math.isfinite(score) else None for score in found]
        return Entry(item.number, item.id, item.digest, "kept", result={"scores": scores})

    def _score(self, pairs: list[Pair]) -> list[float]:
        if self._model is None:
            from bpo_train.reward_model import RewardModel

            self._model = RewardModel(self._folder)
        return self._model.score(pairs)
