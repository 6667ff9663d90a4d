"""`BPOLLM`: an LLM around any LLM, for places that take nothing else.

It improves what the user said, where LlamaIndex says what that is, and hands all else on: streaming, tools, structured
output, metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.llms.llm import LLM
from pydantic import PrivateAttr

from bpo_integrations.llama_index.passing_llm import PassingLLM
from bpo_integrations.llama_index.traced import TracedOptimizer, traced
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Mode


class BPOLLM(PassingLLM):
    """An LLM around any LLM that improves the user's turn, and hands all else on as it is.

    The user's turn is, in chat messages, the last one of the user; in a template its variable `query_str`; and with
    `completions=True` a bare prompt. Give it to the part that answers the user, not to `Settings.llm`: LlamaIndex also
    chats on its own behalf, to summarize or to extract, and there its words cannot be told from the user's. For agents
    `BPOAgentMixin` and for chat engines `BPOChatEngine` know better what the user said.

    Args:
        llm: The LLM that answers.
        model: The rewriter: a spec, a `Rewriter`, or an LLM.
        mode: `augment` or `rewrite`; None takes the rewriter's own.
        profile: `small`, `strong`, or a policy file's path: which turns are worth it for `llm` (docs/gate.md).
        optimizer: A ready `PromptOptimizer`, instead of `model`, `mode` and `profile`.
        completions: Whether `complete` and its kin are given the user's turns. LlamaIndex sends its own instructions
            that way (to condense a dialogue, to make up queries), so by default they pass as they are.

    Raises:
        ConfigurationError: Something is configured wrongly, a model is missing, or an extra is not installed.

    Example:
        >>> from llama_index.core.llms import ChatMessage, MockLLM
        >>> llm = BPOLLM(llm=MockLLM())  # doctest: +SKIP
        >>> llm.chat([ChatMessage(role="user", content="Tell me about Harry Potter")])  # doctest: +SKIP
    """

    _traced: TracedOptimizer = PrivateAttr()

    def __init__(
        self,
        llm: LLM,
        *,
        model: Any = "embedded",
        mode: Mode | None = None,
        profile: str | Path | None = None,
        optimizer: PromptOptimizer | None = None,
        completions: bool = False,
        **fields: Any,
    ) -> None:
        super().__init__(llm, completions=completions, **fields)
        chosen = {"mode": mode, "profile": profile}
        self._traced = traced(model, optimizer, {name: value for name, value in chosen.items() if value is not None})

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex serializes it under."""
        return "BPOLLM"

    @property
    def optimizer(self) -> PromptOptimizer:
        """The optimizer that does the work."""
        return self._traced.optimizer

    def _improve(self, text: str, history: Sequence[str]) -> str:
        return self._traced.optimize(text, history).text

    async def _aimprove(self, text: str, history: Sequence[str]) -> str:
        return (await self._traced.aoptimize(text, history)).text
