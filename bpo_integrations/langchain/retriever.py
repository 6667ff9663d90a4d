"""`BPORetriever`: a retriever that searches with the user's own words and with the optimized query, and fuses the two.

The optimization is a `BPORunnable`, the fusion is `bpo_integrations.fusion`: this module only lets them run at the same
time. It ranks by no model of its own and never changes a document. docs/rag.md says what it is worth, in figures.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, MessageLikeRepresentation
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import ContextThreadPoolExecutor
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from bpo_integrations.dialogue import leans_on_history
from bpo_integrations.fusion import Fusion, fuse
from bpo_integrations.langchain.conversation import split
from bpo_integrations.langchain.runnable import BPORunnable, wrong_options
from bpo_integrations.langchain.tracing import NO_STREAM
from bpo_integrations.langchain.turns import OptimizedText, PromptLike, take
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Mode

logger = logging.getLogger(__name__)

_Found = list[Document] | Exception | None
_Run = CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun


class BPORetriever(BaseRetriever):
    """Searches with the user's own words and with the optimized query at the same time, and fuses what they find.

    By default the user's own words weigh twice (`fusion.ORIGINAL_WEIGHT`): of a search for up to 62 documents the order
    may change, and none is lost. Where the optimizer leaves the query alone or fails, the result is the plain
    retriever's. A query is optimized once, also where `BPORunnable` stands before the retriever.

    A follow-up question ("and in Germany?") needs its history: `with_history()`, or `invoke(question, history=[...])`.
    A model that can use history, such as any LLM with `mode="rewrite"`, makes it stand alone, and only that is searched
    for; the embedded model leaves it as it is.

    Two documents are the same if their ids are, or, without ids, their text and metadata.

    Args:
        retriever: The retriever to search with.
        model: The rewriter: a spec, a `Rewriter`, or an LLM's object, as in `BPORunnable`.
        mode: `augment` or `rewrite`; None takes the rewriter's own.
        profile: Which prompts are worth it, as in `BPORunnable`.
        optimizer: A ready `PromptOptimizer`, instead of `model`, `mode` and `profile`.
        include_original: Search with the user's own words too. False searches with the optimized query alone.
        fusion: `rrf` (reciprocal rank fusion) returns as many documents as one search; `union` returns the documents of
            the user's own words in their order, and behind them what the optimized query found besides.
        k: Most documents returned, and asked for in each search where the retriever's calls take a `k`. None leaves the
            number to the retriever.

    Raises:
        ConfigurationError: Something is configured wrongly, a model is missing, or an extra is not installed.

    Example:
        >>> from langchain_core.vectorstores import InMemoryVectorStore
        >>> store = InMemoryVectorStore.from_texts(["The library opens at nine."], embeddings)  # doctest: +SKIP
        >>> BPORetriever(retriever=store.as_retriever()).invoke("When can I come?")  # doctest: +SKIP
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    retriever: RetrieverLike
    model: Any = "embedded"
    mode: Mode | None = None
    profile: str | Path | None = None
    optimizer: PromptOptimizer | None = Field(default=None, exclude=True, repr=False)
    include_original: bool = True
    fusion: Fusion = "rrf"
    k: int | None = Field(default=None, ge=1)
    _step: tuple[tuple[Any, ...], BPORunnable] | None = PrivateAttr(default=None)

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise wrong_options("BPORetriever", error) from error
            self._bpo()  # what is configured wrongly shows now

    def with_history(
        self, *, input_key: str = "input", history_key: str = "chat_history"
    ) -> Runnable[PromptLike, list[Document]]:
        """Return this retriever as a step that takes a conversation.

        Args:
            input_key: In a dict, the key of the user's turn.
            history_key: In a dict, the key of the messages before it; there may be none.

        Returns:
            A runnable whose input is a dict with these two keys, the state of a graph (`messages`), a prompt value, or
            messages that end with the user's turn.

        Example:
            >>> documents = retriever.with_history()  # doctest: +SKIP
            >>> documents.invoke({"input": "And in Germany?", "chat_history": messages})  # doctest: +SKIP
        """

        def search(value: PromptLike, config: RunnableConfig) -> list[Document]:
            question, history = split(value, input_key, history_key)
            return self.invoke(question, config, history=history)

        async def asearch(value: PromptLike, config: RunnableConfig) -> list[Document]:
            question, history = split(value, input_key, history_key)
            return await self.ainvoke(question, config, history=history)

        return RunnableLambda(search, asearch, name=f"{self.get_name()}.with_history")

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        history: Sequence[MessageLikeRepresentation] = (),
        k: int | None = None,
        **options: Any,
    ) -> list[Document]:
        plan = self._plan(query, history)

        def search(text: str) -> list[Document] | Exception:
            try:
                return self.retriever.invoke(text, _below(run_manager), **self._search_options(options, k))
            except Exception as error:  # judged in `_fused`: the user's own words may have found something
                return error

        with ContextThreadPoolExecutor(max_workers=1) as pool:
            own = pool.submit(search, plan.own) if plan.beside else None
            better = _text(self._bpo().invoke(plan.prompt, _below(run_manager, NO_STREAM)))
            other = search(better) if plan.needs(better) else None
            return self._fused(None if own is None else own.result(), other, k or self.k)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        history: Sequence[MessageLikeRepresentation] = (),
        k: int | None = None,
        **options: Any,
    ) -> list[Document]:
        plan = await asyncio.to_thread(self._plan, query, history)

        async def search(text: str) -> list[Document] | Exception:
            try:
                return await self.retriever.ainvoke(text, _below(run_manager), **self._search_options(options, k))
            except Exception as error:  # judged in `_fused`: the user's own words may have found something
                return error

        async def own() -> list[Document] | Exception | None:
            return await search(plan.own) if plan.beside else None

        async def other() -> list[Document] | Exception | None:
            better = _text(await self._bpo().ainvoke(plan.prompt, _below(run_manager, NO_STREAM)))
            return await search(better) if plan.needs(better) else None

        return self._fused(*await asyncio.gather(own(), other()), k or self.k)

    def _bpo(self) -> BPORunnable:
        """Return the step that optimizes; a new one where the options changed since."""
        options, step = (self.model, self.mode, self.profile, self.optimizer), self._step
        if step is None or any(new is not old for new, old in zip(options, step[0], strict=True)):
            names = ("model", "mode", "profile", "optimizer")
            runnable = BPORunnable(**dict(zip(names, options, strict=True)))
            self._step = step = (options, runnable)
        return step[1]

    def _search_options(self, options: dict[str, Any], k: int | None) -> dict[str, Any]:
        """Return the options of a search; a runnable that is no retriever may not know what `k` is."""
        k = k or self.k
        return options if k is None or not isinstance(self.retriever, BaseRetriever) else {**options, "k": k}

    def _plan(self, query: str, history: Sequence[MessageLikeRepresentation]) -> _Plan:
        """Plan the searches: a follow-up finds nothing by its own words, so its rewrite is searched for alone."""
        own = str(query.bpo.get("original", query)) if isinstance(query, OptimizedText) else query
        turn = take([*history, HumanMessage(own)])
        settled = take(query).text is None
        prompt: PromptLike = [*history, HumanMessage(own)] if history and not settled else query
        modes = (self.mode, getattr(self.optimizer, "mode", None), getattr(self.model, "mode", None))
        stands_alone = "rewrite" in modes and leans_on_history(own, turn.history)
        return _Plan(own, self.include_original and not stands_alone, prompt)

    def _fused(self, own: _Found, other: _Found, k: int | None) -> list[Document]:
        """Merge what the searches found. Only the failure of a search that stands alone, or of the user's, counts."""
        found = [each for each in (own, other) if each is not None]
        if isinstance(found[0], Exception):
            raise found[0]
        if isinstance(found[-1], Exception):
            logger.warning("The search with the optimized query failed: %s", type(found[-1]).__name__)
        rankings = [each for each in found if not isinstance(each, Exception)]
        return rankings[0][:k] if len(rankings) == 1 else fuse(rankings, self.fusion, key=_identity, k=k)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is searched for.

    Args:
        own: The user's own words.
        beside: Whether they are searched for beside the optimized query.
        prompt: What is optimized.
    """

    own: str
    beside: bool
    prompt: PromptLike

    def needs(self, better: str) -> bool:
        """Whether the optimized query is worth a search of its own."""
        return not self.beside or better != self.own


def _text(optimized: Any) -> str:
    """Return the text that came out of `BPORunnable`, for a str or for messages that end with the question."""
    return str(optimized if isinstance(optimized, str) else optimized[-1].content)


def _below(run: _Run, *tags: str) -> RunnableConfig:
    """Return the config of a run inside the retriever's."""
    return RunnableConfig(callbacks=run.get_child(), tags=list(tags))


def _identity(document: Document) -> Hashable:
    """Return the document's id, or what stands for it."""
    if document.id is not None:
        return document.id
    return document.page_content, repr(sorted(map(repr, document.metadata.items())))
