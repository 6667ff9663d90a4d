"""The optimizer as LlamaIndex's components need it: once a turn, seen by the instrumentation.

LlamaIndex asks again and again for the same turn (a router retrieves and then synthesizes, an agent steps through a
loop), so results are remembered for a while; and a text that came out of an optimization is never optimized again,
whichever component made it. No logic of the optimization itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from llama_index.core.instrumentation import get_dispatcher

from bpo_integrations import made
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.llama_index.events import PromptOptimizationEndEvent, PromptOptimizationStartEvent
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import OptimizedPrompt

dispatcher = get_dispatcher(__name__)

REMEMBERED = 256
"""So many results an instance remembers; a turn is long over when as many others came after it."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """The latest entries, safe in threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)


class TracedOptimizer:
    """A `PromptOptimizer` that LlamaIndex's instrumentation sees, and that is asked once a turn.

    A failure is not remembered: the next call tries again.

    Args:
        optimizer: Does the work.

    Example:
        >>> from bpo_integrations import PromptOptimizer
        >>> traced = TracedOptimizer(PromptOptimizer())  # doctest: +SKIP
        >>> traced.optimize("Tell me about Harry Potter").kind  # doctest: +SKIP
        'augmented'
    """

    def __init__(self, optimizer: PromptOptimizer) -> None:
        self.optimizer = optimizer
        self._results: _Recent[tuple[str, tuple[str, ...]], OptimizedPrompt] = _Recent(REMEMBERED)

    def optimize(self, prompt: str, history: Sequence[str] = ()) -> OptimizedPrompt:
        """Return the result for a turn.

        Args:
            prompt: The user's turn.
            history: Earlier turns and answers, oldest first.

        Raises:
            OptimizationError: The model failed, and the optimizer has `on_error="raise"`.
        """
        return self._known(prompt, history) or self._keep(history, self._optimize(prompt, history))

    async def aoptimize(self, prompt: str, history: Sequence[str] = ()) -> OptimizedPrompt:
        """As `optimize`, without blocking the event loop."""
        return self._known(prompt, history) or self._keep(history, await self._aoptimize(prompt, history))

    @dispatcher.span
    def _optimize(self, prompt: str, history: Sequence[str]) -> OptimizedPrompt:
        dispatcher.event(PromptOptimizationStartEvent(original=prompt, rewriter=self.optimizer.rewriter.id))
        result = self.optimizer.optimize(prompt, history)
        dispatcher.event(PromptOptimizationEndEvent.of(result))
        return result

    @dispatcher.span
    async def _aoptimize(self, prompt: str, history: Sequence[str]) -> OptimizedPrompt:
        dispatcher.event(PromptOptimizationStartEvent(original=prompt, rewriter=self.optimizer.rewriter.id))
        result = await self.optimizer.aoptimize(prompt, history)
        dispatcher.event(PromptOptimizationEndEvent.of(result))
        return result

    def _known(self, prompt: str, history: Sequence[str]) -> OptimizedPrompt | None:
        if made.holds(prompt):  # no marks: integrations send a message's `additional_kwargs` on to the provider
            return OptimizedPrompt(prompt, prompt, "kept", "optimized before", rewriter=self.optimizer.rewriter.id)
        return self._results.get((prompt, tuple(history)))

    def _keep(self, history: Sequence[str], result: OptimizedPrompt) -> OptimizedPrompt:
        if not result.reason.removeprefix("shadow: ").startswith("failed: "):
            self._results.put((result.original, tuple(history)), result)
        return result


def traced(model: Any, optimizer: PromptOptimizer | None, options: Mapping[str, Any]) -> TracedOptimizer:
    """Return the optimizer that a component was configured with.

    Args:
        model: A spec, a `Rewriter` or an LLM.
        optimizer: A ready optimizer, instead of `model` and `options`.
        options: Options of `PromptOptimizer`.

    Raises:
        ConfigurationError: Both an optimizer and other options are given, or something is configured wrongly.
    """
    if optimizer is None:
        return TracedOptimizer(PromptOptimizer(model, **options))
    others = [*options] if isinstance(model, str) and model == "embedded" else ["model", *options]
    if others:
        msg = f"There is an optimizer= and also {', '.join(others)}."
        raise ConfigurationError(msg, hint="Give these options to the PromptOptimizer itself.")
    return TracedOptimizer(optimizer)
