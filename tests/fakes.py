"""A fake at the edge of the pipeline: an engine that answers from a function, without any model."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Sequence

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.errors import EngineClosedError
from bpo_integrations.result import Candidate, Mode
from bpo_integrations.rewriter import Record, Rewriter
from bpo_integrations.templates import PromptFormat, last_user_text

_numbers = itertools.count()


class FakeEngine:
    """Answers each request with `answer(user's text)`; a list or tuple of texts gives several candidates.

    `calls` holds the user texts of every call, `delay` is slept through in each, `answer` may raise.
    """

    def __init__(self, answer: Callable[[str], str | Sequence[str]] = lambda text: "", *, delay: float = 0.0) -> None:
        self.answer = answer
        self.delay = delay
        self.calls: list[list[str]] = []
        self.closed = False
        self._id = f"fake-{next(_numbers)}"
        self._lock = threading.Lock()

    @property
    def traits(self) -> Traits:
        return Traits(literal=False, repeats=True, gate=False, stops=True, forks="works", coalesce=False)

    @property
    def id(self) -> str:
        return self._id

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def _answers(self, requests: Sequence[Request], n: int) -> list[list[Candidate]]:
        if self.closed:
            raise EngineClosedError("The engine is closed.", hint="Make a new one.")
        texts = [last_user_text(request.messages) for request in requests]
        with self._lock:
            self.calls.append(texts)
        found = []
        for text in texts:
            answer = self.answer(text)
            answers = [answer] * n if isinstance(answer, str) else list(answer)
            found.append([Candidate(each, tokens=len(each.split())) for each in answers])
        return found

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        time.sleep(self.delay)
        return self._answers(requests, decoding.n)

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        await asyncio.sleep(self.delay)
        return self._answers(requests, decoding.n)

    def close(self) -> None:
        self.closed = True


def fake_rewriter(
    answer: Callable[[str], str | Sequence[str]] = lambda text: "",
    *,
    mode: Mode = "augment",
    delay: float = 0.0,
    max_prompt_tokens: int = 1024,
    history: str = "",
) -> Rewriter:
    """Return a rewriter around a `FakeEngine`, which is its `.engine`; with a `history` template it uses history."""
    record = Record(
        name="fake",
        mode=mode,
        format=PromptFormat(system="Improve.", history=history),
        languages=("en",),
        max_prompt_tokens=max_prompt_tokens,
        empty_threshold=0.5 if mode == "augment" else None,
    )
    return Rewriter(FakeEngine(answer, delay=delay), record)
