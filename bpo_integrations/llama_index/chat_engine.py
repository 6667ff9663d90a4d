"""`BPOChatEngine`: a chat engine whose LLM sees the improved turn.

The engine itself is given the user's own words: those it condenses, searches for and remembers. Only on the way to the
LLM that answers are they exchanged, in the one place where they stand as the user's turn.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine.types import AGENT_CHAT_RESPONSE_TYPE, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.llms.llm import LLM
from pydantic import PrivateAttr

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.llama_index.passing_llm import PassingLLM
from bpo_integrations.llama_index.traced import traced
from bpo_integrations.llama_index.turns import texts
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import OptimizedPrompt


class BPOChatEngine(BaseChatEngine):
    """Optimizes the user's turn on its way to the LLM of a chat engine.

    The memory keeps the user's own words, a retriever searches for them, and a dialogue is condensed from them. The
    earlier turns are the optimizer's history. For `SimpleChatEngine`, `ContextChatEngine`,
    `CondensePlusContextChatEngine` and their like; the engine that is passed in stays as it is and shares its memory.

    Args:
        chat_engine: The chat engine.
        model: The rewriter: a spec, a `Rewriter`, or an LLM.
        optimizer: A ready `PromptOptimizer`, instead of `model` and `options`.
        options: Options of `PromptOptimizer`, for example `mode`, `shadow`, `on_error`.

    Raises:
        ConfigurationError: The chat engine lets a query engine answer, something is configured wrongly, a model is
            missing, or an extra is not installed.

    Example:
        >>> from llama_index.core.chat_engine import SimpleChatEngine
        >>> from llama_index.core.llms import MockLLM
        >>> chat = BPOChatEngine(SimpleChatEngine.from_defaults(llm=MockLLM()))  # doctest: +SKIP
        >>> chat.chat("Tell me about Harry Potter").response  # doctest: +SKIP
    """

    def __init__(
        self,
        chat_engine: BaseChatEngine,
        model: Any = "embedded",
        *,
        optimizer: PromptOptimizer | None = None,
        **options: Any,
    ) -> None:
        llm = getattr(chat_engine, "_llm", None)
        if hasattr(chat_engine, "_query_engine") or not isinstance(llm, LLM) or not hasattr(chat_engine, "_memory"):
            msg = f"In a {type(chat_engine).__name__} it is not an LLM of its own that answers."
            raise ConfigurationError(msg, hint="Give it a query engine that optimizes: BPOQueryEngine(query_engine).")
        self._engine: Any = chat_engine
        self._traced = traced(model, optimizer, options)

    def chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> AGENT_CHAT_RESPONSE_TYPE:
        """Answer a turn.

        Args:
            message: The user's turn.
            chat_history: Takes the place of what is remembered.
            kwargs: Options of the chat engine.
        """
        engine = self._answering(self._optimized(message, chat_history))
        response: AGENT_CHAT_RESPONSE_TYPE = engine.chat(message, chat_history, **kwargs)
        return response

    def stream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> StreamingAgentChatResponse:
        """As `chat`, and stream the answer."""
        engine = self._answering(self._optimized(message, chat_history))
        response: StreamingAgentChatResponse = engine.stream_chat(message, chat_history, **kwargs)
        return response

    async def achat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> AGENT_CHAT_RESPONSE_TYPE:
        """As `chat`, without blocking the event loop."""
        engine = self._answering(await self._aoptimized(message, chat_history))
        response: AGENT_CHAT_RESPONSE_TYPE = await engine.achat(message, chat_history, **kwargs)
        return response

    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None, **kwargs: Any
    ) -> StreamingAgentChatResponse:
        """As `stream_chat`, without blocking the event loop."""
        engine = self._answering(await self._aoptimized(message, chat_history))
        response: StreamingAgentChatResponse = await engine.astream_chat(message, chat_history, **kwargs)
        return response

    def reset(self) -> None:
        """Forget the conversation."""
        self._engine.reset()

    @property
    def chat_history(self) -> list[ChatMessage]:
        """The conversation, in the user's own words."""
        history: list[ChatMessage] = self._engine.chat_history
        return history

    def _optimized(self, message: str, chat_history: list[ChatMessage] | None) -> OptimizedPrompt:
        earlier = self._engine._memory.get_all() if chat_history is None else chat_history
        return self._traced.optimize(message, texts(earlier))

    async def _aoptimized(self, message: str, chat_history: list[ChatMessage] | None) -> OptimizedPrompt:
        earlier = await self._engine._memory.aget_all() if chat_history is None else chat_history
        return await self._traced.aoptimize(message, texts(earlier))

    def _answering(self, result: OptimizedPrompt) -> Any:
        """Return the engine for this turn: the same, memory included, but for its LLM."""
        # LlamaIndex has no public way to exchange it. A stream is read long after the call, so it is bound to the turn.
        engine = copy.copy(self._engine)
        engine._llm = _TurnLLM(self._engine._llm, result)
        return engine


class _TurnLLM(PassingLLM):
    """Exchanges one turn, and nothing else."""

    _result: OptimizedPrompt = PrivateAttr()

    def __init__(self, llm: LLM, result: OptimizedPrompt) -> None:
        super().__init__(llm)
        self._result = result

    def _improve(self, text: str, history: Sequence[str]) -> str:
        return self._result.text if text == self._result.original else text

    async def _aimprove(self, text: str, history: Sequence[str]) -> str:
        return self._improve(text, history)
