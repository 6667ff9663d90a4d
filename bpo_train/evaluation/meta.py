"""The answering LLM as its own rewriter: the paper's ablation without feedback (section 5.2).

Promises: each candidate is one request of the same `Annotator` that the answers come from, within its limits; what it
costs is told to whoever asked, also across tasks. It adds nothing to the meta-prompt of `bpo_integrations`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.engines.remote import estimate_tokens, settle_rows
from bpo_integrations.errors import BPOError
from bpo_integrations.metaprompt import PARSERS, meta_record
from bpo_integrations.result import Candidate, Mode
from bpo_integrations.rewriter import Rewriter
from bpo_train.data.llm import Annotator, RowFailedError, Usage

_spent: ContextVar[list[Usage] | None] = ContextVar("spent", default=None)


def meta_rewriter(annotator: Annotator, name: str, mode: Mode = "rewrite") -> Rewriter:
    """Return the rewriter that asks an LLM for a better prompt.

    Args:
        annotator: Asks the LLM.
        name: Names it.
        mode: `rewrite`, as in the paper, or `augment`.
    """
    return Rewriter(AskingEngine(annotator, name), meta_record(name, mode), PARSERS[mode])


@contextmanager
def counting() -> Iterator[list[Usage]]:
    """Yield a list that is told what the requests of the block cost."""
    spent: list[Usage] = []
    token = _spent.set(spent)
    try:
        yield spent
    finally:
        _spent.reset(token)


class AskingEngine:
    """An engine around an `Annotator`; one candidate a request, drawn as the backend was set up to.

    Args:
        annotator: Asks the LLM.
        name: Names it.
    """

    traits = Traits(literal=False, repeats=False, gate=False, stops=False, forks="refused", coalesce=False)

    def __init__(self, annotator: Annotator, name: str) -> None:
        self._annotator = annotator
        self._name = name

    @property
    def id(self) -> str:
        """Names the LLM."""
        return f"asked:{self._name}"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return estimates, of a token for every four bytes."""
        return [estimate_tokens(text) for text in texts]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As `agenerate`, on an event loop of its own; only where the annotator has not been used on another."""
        return asyncio.run(self.agenerate(requests, decoding))

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """Return one candidate for each request.

        Raises:
            BPOError: The LLM gave no answer to any, or will give none at all.
        """
        return settle_rows(await asyncio.gather(*map(self._ask, requests)))

    def close(self) -> None:
        """The annotator is its owner's."""

    async def _ask(self, request: Request) -> list[Candidate] | BPOError:
        spent = _spent.get()
        try:
            found, usage = await self._annotator.ask(request.messages)
        except RowFailedError as error:
            if spent is not None:
                spent.append(error.usage)
            return error
        if spent is not None:
            spent.append(usage)
        text, finished = found.texts[0], found.finished[0]
        return [Candidate(text, found.completion_tokens, finish_reason="stop" if finished else "length")]
