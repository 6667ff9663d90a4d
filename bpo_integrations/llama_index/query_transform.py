"""`BPOQueryTransform`: improves the query that the LLM reads; an embedding search keeps the user's own words.

Unlike LlamaIndex's own transforms it has an `arun` that does not block the event loop; `BPOQueryEngine` and
`BPOTransformRetriever` await it.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from typing import Any, Literal

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import QueryBundle, QueryType

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.llama_index.traced import TracedOptimizer, dispatcher, traced
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import OptimizedPrompt
from bpo_integrations.rewriter import Rewriter
from bpo_integrations.templates import PromptFormat

Embed = Literal["original", "optimized", "both"]
"""What an embedding search looks for."""

PROMPT_KEY = "bpo_prompt"


class BPOQueryTransform(BaseQueryTransform):
    """Optimizes a query on its way to the LLM.

    A query is optimized once: asked again for the same text, the transform answers from memory, and a query that was
    optimized already is left alone. Where the model fails, the query goes on as it was. Everything else in a bundle
    (its image, strings that other transforms put there for the embedding) is kept.

    `get_prompts()` shows the rewriter's instruction as `bpo_prompt`. `update_prompts` can replace it where a general
    LLM is the rewriter; a trained one knows only the words that it was trained with, and refuses.

    Args:
        model: The rewriter: a spec such as `embedded` or `hf:THUDM/BPO`, a `Rewriter`, or an LLM (of LlamaIndex, too).
        optimizer: A ready `PromptOptimizer`, instead of `model` and `options`.
        embed: What the embedding search looks for: the user's own words (`original`), the optimized query
            (`optimized`), or the mean of the two (`both`). A keyword search gets the optimized query in any case, which
            is all that LlamaIndex hands to it; `BPOTransformRetriever` searches for both.
        options: Options of `PromptOptimizer`, for example `mode`, `shadow`, `on_error`.

    Raises:
        ConfigurationError: Something is configured wrongly, a model is missing, or an extra is not installed.

    Example:
        >>> BPOQueryTransform().run("Tell me about Harry Potter").query_str  # doctest: +SKIP
        'Tell me about Harry Potter. Cover the main characters, ...'
    """

    def __init__(
        self,
        model: str | Rewriter | Any = "embedded",
        *,
        optimizer: PromptOptimizer | None = None,
        embed: Embed = "original",
        **options: Any,
    ) -> None:
        super().__init__()
        if embed not in ("original", "optimized", "both"):
            msg = f"embed is {embed!r}; it must be 'original', 'optimized' or 'both'."
            raise ConfigurationError(msg, hint="Correct embed=.")
        self.embed: Embed = embed
        self._traced = traced(model, optimizer, options)

    @property
    def optimizer(self) -> PromptOptimizer:
        """The optimizer that does the work."""
        return self._traced.optimizer

    @dispatcher.span
    async def arun(self, query_bundle_or_str: QueryType, metadata: dict[str, Any] | None = None) -> QueryBundle:
        """As `run`, without blocking the event loop.

        Args:
            query_bundle_or_str: The query.
            metadata: `history`, where there is one: earlier turns and answers, oldest first.

        Raises:
            OptimizationError: The model failed and `on_error="raise"`.
        """
        query = (
            query_bundle_or_str if isinstance(query_bundle_or_str, QueryBundle) else QueryBundle(query_bundle_or_str)
        )
        return self._put(query, await self._traced.aoptimize(query.query_str, (metadata or {}).get("history", ())))

    def _run(self, query_bundle: QueryBundle, metadata: dict[str, Any]) -> QueryBundle:
        return self._put(query_bundle, self._traced.optimize(query_bundle.query_str, metadata.get("history", ())))

    def _put(self, query: QueryBundle, result: OptimizedPrompt) -> QueryBundle:
        """Return the query with the result in it."""
        if not result.changed:
            return query
        strings = _embedding_strings(query, result.text, self.embed)
        same = strings == query.embedding_strs
        # A vector that was computed before belongs to the strings that it was computed from.
        vector = query.embedding if same else None
        return dataclasses.replace(query, query_str=result.text, custom_embedding_strs=strings, embedding=vector)

    def _get_prompts(self) -> PromptDictType:
        return {PROMPT_KEY: _to_template(self.optimizer.rewriter.record.format)}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        if PROMPT_KEY not in prompts_dict:
            return
        rewriter = self.optimizer.rewriter
        if rewriter.parse is None:
            msg = f"The rewriter {rewriter.record.name} was trained with its prompt and knows no other."
            raise ConfigurationError(msg, hint="Use a general LLM as model=, such as 'openai:gpt-4o-mini'.")
        form = _to_format(prompts_dict[PROMPT_KEY], rewriter.record.format)
        # The name is part of the cache's key: what another prompt gave must not be served.
        name = f"{rewriter.record.name}+{zlib.crc32(repr(form).encode()):08x}"
        optimizer = copy.copy(self.optimizer)
        optimizer.rewriter = Rewriter(
            rewriter.engine, dataclasses.replace(rewriter.record, name=name, format=form), rewriter.parse
        )
        self._traced = TracedOptimizer(optimizer)


def _embedding_strings(query: QueryBundle, text: str, embed: Embed) -> list[str]:
    """Return what to embed: the query itself is replaced or joined, what others put there stays."""
    if embed == "original":
        return list(query.embedding_strs)
    found: list[str] = []
    for string in query.embedding_strs:
        if string != query.query_str or embed == "both":
            found.append(string)
        if string == query.query_str:
            found.append(text)
    return found


def _to_template(form: PromptFormat) -> ChatPromptTemplate:
    """Return a prompt format as LlamaIndex shows prompts; braces that mean themselves are doubled."""
    messages = [] if form.system is None else [ChatMessage(role="system", content=_escaped(form.system))]
    before, after = form.user.split("{prompt}")
    user = f"{_escaped(before)}{{prompt}}{_escaped(after)}"
    return ChatPromptTemplate(message_templates=[*messages, ChatMessage(role="user", content=user)])


def _to_format(template: BasePromptTemplate, old: PromptFormat) -> PromptFormat:
    """Read a prompt format from a chat template (a system and a user message) or a plain one (the user message).

    Raises:
        ConfigurationError: It is neither, or its user message does not hold `{prompt}` once.
    """
    if isinstance(template, PromptTemplate):
        messages = [ChatMessage(role="user", content=template.template)]
    elif isinstance(template, ChatPromptTemplate):
        messages = list(template.message_templates)
    else:
        messages = []
    if [str(message.role.value) for message in messages] not in (["user"], ["system", "user"]):
        msg = (
            f"A {PROMPT_KEY} of type {type(template).__name__} must be one user message, or a system message before it."
        )
        raise ConfigurationError(msg, hint="Take what get_prompts() returns and change its words.")
    system = _plain(messages[0].content or "") if len(messages) == 2 else None
    return PromptFormat(system=system, user=_plain(messages[-1].content or ""), history=old.history)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _plain(text: str) -> str:
    return text.replace("{{", "{").replace("}}", "}")
