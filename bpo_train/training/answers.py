"""The LLM that answers and the judge that compares, as plain functions of texts: for rewards and for mining.

Promises: requests go out together, within limits, with retries (`bpo_train.data.llm`); what cannot be had is None, and
an error that every further request would meet is raised. The judge sees each pair in both orders.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.result import Mode
from bpo_integrations.templates import Message
from bpo_train.data.backends import open_backend
from bpo_train.data.llm import Annotator, Backend, Limits, RowFailedError
from bpo_train.evaluation.judge import Shown, messages, parse_pairwise
from bpo_train.training.rewards import AnswerGain, Compare, Duel, LengthControl

if TYPE_CHECKING:
    from bpo_train.reward_model import RewardModel

logger = logging.getLogger(__name__)

VERDICT_TOKENS = 1024
"""Most tokens of a judge's comparison and verdict."""

CONCURRENCY = 64
"""Requests at once; an engine in this process makes batches of them."""


class Chat:
    """An LLM that is asked from code that is not asynchronous. Its backend lives in one event loop for good.

    Args:
        backend: Reaches the model.
        limits: What it keeps to.
    """

    def __init__(self, backend: Backend, limits: Limits | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._annotator = Annotator(backend, limits or Limits(concurrency=CONCURRENCY))

    @classmethod
    def of(cls, spec: str, *, base_url: str | None = None, temperature: float = 0.0, max_tokens: int = 256) -> Chat:
        """Return the chat of a spec, as `bpo_train.data.backends.open_backend` knows it; greedy by default.

        Raises:
            ConfigurationError: The spec cannot work.
        """
        return cls(open_backend(spec, base_url=base_url, temperature=temperature, max_tokens=max_tokens))

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        """Return an answer for each prompt; equal prompts are asked once.

        Raises:
            BPOError: Every request will fail.
        """
        different = list(dict.fromkeys(prompts))
        asked: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in different]
        found = dict(zip(different, self.replies(asked), strict=True))
        return [found[prompt] for prompt in prompts]

    def replies(self, conversations: Sequence[Sequence[Message]]) -> list[str | None]:
        """Return an answer for each conversation; None where the model gave none.

        Raises:
            BPOError: Every request will fail.
        """

        async def all_of_them() -> list[str | None]:
            return list(await asyncio.gather(*(self._reply(asked) for asked in conversations)))

        return self._loop.run_until_complete(all_of_them())

    async def _reply(self, asked: Sequence[Message]) -> str | None:
        try:
            completion, _ = await self._annotator.ask(asked)
        except RowFailedError as error:
            logger.warning("The LLM gave no answer: %s", error.reason)
            return None
        return completion.texts[0] if completion.texts else None

    def close(self) -> None:
        """Drop the connections."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._annotator.backend.close())
            self._loop.close()


def by_reward_model(model: RewardModel) -> Compare:
    """Return the comparison by a reward model: the difference of the scores, for the user's own prompt."""

    def compare(duels: Sequence[Duel]) -> list[float | None]:
        pairs = [(duel.prompt, text) for duel in duels for text in (duel.answer, duel.baseline)]
        scores = model.score(pairs)
        return [scores[2 * at] - scores[2 * at + 1] for at in range(len(duels))]

    return compare


def by_judge(judge: Chat) -> Compare:
    """Return the comparison by an LLM: 1 where it prefers the answer in both orders, -1 the baseline, else between.

    The prompts are those of `bpo-train judge`. A verdict that cannot be read in either order leaves None.
    """

    def compare(duels: Sequence[Duel]) -> list[float | None]:
        shown = [Shown(str(at), duel.prompt, duel.answer, duel.baseline) for at, duel in enumerate(duels)]
        asked = [messages(each, "pairwise") for pair in shown for each in (pair, pair.turned())]
        worth = {"first": 1.0, "second": -1.0, "tie": 0.0}
        verdicts = [parse_pairwise(text) if text else None for text in judge.replies(asked)]
        found: list[float | None] = []
        for at in range(len(duels)):
            straight, turned = verdicts[2 * at : 2 * at + 2]
            known = straight is not None and turned is not None
            found.append((worth[str(straight)] - worth[str(turned)]) / 2 if known else None)
        return found

    return compare


@contextmanager
def answer_gain(
    mode: Mode,
    *,
    llm: str,
    reward_model: str | None = None,
    judge: str | None = None,
    llm_base_url: str | None = None,
    judge_base_url: str | None = None,
    max_tokens: int = 192,
    control: LengthControl | None = None,
) -> Iterator[AnswerGain]:
    """Open the models that say what a rewriter's text gains; they are closed in the end.

    Args:
        mode: Of the rewriter.
        llm: Spec of the LLM that answers.
        reward_model: Folder of the reward model that compares.
        judge: Spec of the LLM that compares instead.
        llm_base_url: An OpenAI-compatible server that has the LLM.
        judge_base_url: One that has the judge.
        max_tokens: Of an answer.
        control: What is known of length.

    Raises:
        ConfigurationError: Not exactly one of reward model and judge is given, or a model is not to be had.
    """
    if (reward_model is None) == (judge is None):
        msg = "Answers are compared by a reward model or by a judge."
        raise ConfigurationError(msg, hint="Give one of the two.")
    with ExitStack() as opened:
        chat = Chat.of(llm, base_url=llm_base_url, max_tokens=max_tokens)
        opened.callback(chat.close)
        if reward_model is not None:
            from bpo_train.reward_model import RewardModel

            compare = by_reward_model(RewardModel(reward_model))
        else:
            asked = Chat.of(str(judge), base_url=judge_base_url, max_tokens=VERDICT_TOKENS)
            opened.callback(asked.close)
            compare = by_judge(asked)
        yield AnswerGain(chat, compare, mode, control)
