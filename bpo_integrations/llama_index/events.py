"""What LlamaIndex's instrumentation is told of an optimization.

Any event handler on the root dispatcher receives both events, between those of the query, chat or agent step that they
belong to. Like LlamaIndex's own events they carry the texts themselves.
"""

from __future__ import annotations

from llama_index.core.instrumentation.events.base import BaseEvent

from bpo_integrations.result import Kind, OptimizedPrompt


class PromptOptimizationStartEvent(BaseEvent):
    """A prompt goes to the optimizer.

    Args:
        original: The user's words.
        rewriter: The rewriter's id.
    """

    original: str
    rewriter: str

    @classmethod
    def class_name(cls) -> str:
        """Return the name that handlers and traces show."""
        return "PromptOptimizationStartEvent"


class PromptOptimizationEndEvent(BaseEvent):
    """A prompt came back from the optimizer, changed or kept.

    Args:
        original: The user's words.
        text: What goes on.
        kind: `kept`, `augmented`, `rewritten` or `softened`.
        reason: Why.
        rewriter: The rewriter's id.
        seconds: Wall-clock seconds that it took.
        proposal: With `shadow=True`, what would have gone on.
    """

    original: str
    text: str
    kind: Kind
    reason: str
    rewriter: str
    seconds: float
    proposal: str | None = None

    @classmethod
    def class_name(cls) -> str:
        """Return the name that handlers and traces show."""
        return "PromptOptimizationEndEvent"

    @classmethod
    def of(cls, result: OptimizedPrompt) -> PromptOptimizationEndEvent:
        """Return the event that tells of `result`."""
        return cls(
            original=result.original,
            text=result.text,
            kind=result.kind,
            reason=result.reason,
            rewriter=result.rewriter,
            seconds=result.seconds,
            proposal=result.proposal,
        )
