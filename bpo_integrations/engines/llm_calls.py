"""One call of a general LLM, in the words of LangChain and of LlamaIndex; and what their failures mean.

Neither framework is imported but by whoever has an object of it. `LangChainCalls` marks its runs, so that they stay out
of the tokens that an application streams to its user; they nest below the caller's run as usual.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bpo_integrations.engines.remote import sendable
from bpo_integrations.engines.server_errors import is_retryable
from bpo_integrations.errors import BPOError, EngineError, EngineTimeoutError
from bpo_integrations.templates import Message

TAGS = ("bpo", "nostream")
"""Tags of our runs; LangGraph streams no tokens of a run that is tagged `nostream`."""

_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "content_filter", "safety"})
_WHY_ENDED = ("finish_reason", "stop_reason", "done_reason")


@dataclass(frozen=True, slots=True)
class Reply:
    """What an LLM answered: its text, its tokens where it tells them (else 0), and whether it came to an end."""

    text: str
    tokens: int = 0
    finished: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """What a call asks for, of the settings that an LLM may have as fields; None leaves the LLM's own."""

    max_tokens: int
    temperature: float | None = None
    seed: int | None = None

    def applied(self, llm: Any) -> Any:
        """Return the LLM with the settings that it has; what its owner bounded stays bounded so."""
        has = type(llm).model_fields
        changes: dict[str, Any] = {
            name: value
            for name, value in (("temperature", self.temperature), ("seed", self.seed))
            if name in has and value is not None
        }
        if "max_tokens" in has and llm.max_tokens is None:
            changes["max_tokens"] = self.max_tokens
        return llm.model_copy(update=changes) if changes else llm


class Calls(Protocol):
    """Calls an LLM."""

    @property
    def label(self) -> str:
        """Names the LLM's class and model."""

    def call(self, messages: Sequence[Message], settings: Settings) -> Reply:
        """Call it in this thread."""

    async def acall(self, messages: Sequence[Message], settings: Settings) -> Reply:
        """Call it on this event loop, without blocking that."""


class LangChainCalls:
    """Calls a LangChain chat model, perhaps inside `bind`, `with_config`, `with_retry` or `with_fallbacks`."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    @staticmethod
    def model_inside(thing: object) -> Any:
        """Return the chat model that `thing` is or wraps, or None."""
        models = sys.modules.get("langchain_core.language_models.chat_models")
        while models is not None:
            if isinstance(thing, models.BaseChatModel):
                return thing
            wrapped = _wrapped(thing)
            if wrapped is None:
                break
            thing = getattr(thing, wrapped)
        return None

    @property
    def label(self) -> str:
        """Names the LLM's class and model."""
        return _label(self.model_inside(self._llm))

    def call(self, messages: Sequence[Message], settings: Settings) -> Reply:
        """Call it in this thread."""
        return _from_langchain(_settled(self._llm, settings).invoke(sendable(messages), _config()))

    async def acall(self, messages: Sequence[Message], settings: Settings) -> Reply:
        """Call it on this event loop."""
        return _from_langchain(await _settled(self._llm, settings).ainvoke(sendable(messages), _config()))


class LlamaIndexCalls:
    """Calls a LlamaIndex LLM."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    @staticmethod
    def knows(thing: object) -> bool:
        """Whether `thing` is a LlamaIndex LLM."""
        module = sys.modules.get("llama_index.core.base.llms.base")
        return module is not None and isinstance(thing, module.BaseLLM)

    @property
    def label(self) -> str:
        """Names the LLM's class and model."""
        return _label(self._llm)

    def call(self, messages: Sequence[Message], settings: Settings) -> Reply:
        """Call it in this thread."""
        return _from_llama_index(settings.applied(self._llm).chat(_chat_messages(messages)))

    async def acall(self, messages: Sequence[Message], settings: Settings) -> Reply:
        """Call it on this event loop; an LLM whose async half is its sync half goes into a thread."""
        llm = settings.applied(self._llm)
        achats_owner = next(base for base in type(llm).__mro__ if "achat" in vars(base))
        if achats_owner.__name__ == "CustomLLM":
            return _from_llama_index(await asyncio.to_thread(llm.chat, _chat_messages(messages)))
        return _from_llama_index(await llm.achat(_chat_messages(messages)))


def explained(error: Exception, label: str) -> BPOError:
    """Return our error for whatever an LLM raised; providers share no exceptions, so their marks are read.

    Example:
        >>> explained(TimeoutError(), "ChatOpenAI").retryable
        True
    """
    if isinstance(error, BPOError):
        return error
    kind = type(error).__name__
    status = _status(error)
    seen = kind if status is None else f"{kind}, HTTP status {status}"
    if isinstance(error, TimeoutError) or "Timeout" in kind:
        return EngineTimeoutError(f"The LLM {label} did not answer in time ({seen}).", hint="Give it a longer timeout.")
    found = EngineError(f"The LLM {label} failed ({seen}).", hint="The cause is chained to this error.")
    lost = isinstance(error, ConnectionError) or "Connect" in kind
    found.retryable = is_retryable(status) if status is not None else lost
    return found


def _status(error: Exception) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def _wrapped(thing: object) -> str | None:
    """Return under which name a runnable holds the one that it wraps."""
    from langchain_core.runnables.base import RunnableBindingBase
    from langchain_core.runnables.fallbacks import RunnableWithFallbacks

    if isinstance(thing, RunnableBindingBase):
        return "bound"
    return "runnable" if isinstance(thing, RunnableWithFallbacks) else None


def _settled(llm: Any, settings: Settings) -> Any:
    """Return a chat model with the settings applied, inside whatever is around it."""
    wrapped = _wrapped(llm)
    if wrapped is None:
        return settings.applied(llm)
    return llm.model_copy(update={wrapped: _settled(getattr(llm, wrapped), settings)})


def _config() -> dict[str, Any]:
    """Return the config of our runs; the caller's callbacks come in by themselves, through LangChain's context."""
    config: dict[str, Any] = {"tags": list(TAGS), "run_name": "bpo_llm"}
    # Its token hides a run from the agent's stream; it matters only where LangChain's agents are loaded.
    agents = sys.modules.get("langchain.agents.middleware.internal_call_transformer")
    if agents is not None:
        config["metadata"] = agents.internal_call_metadata()
    return config


def _from_langchain(message: Any) -> Reply:
    usage = message.usage_metadata or {}
    return Reply(str(message.text), usage.get("output_tokens", 0), _ended(message.response_metadata))


def _chat_messages(messages: Sequence[Message]) -> list[Any]:
    from llama_index.core.base.llms.types import ChatMessage

    return [ChatMessage(role=message["role"], content=message["content"]) for message in sendable(messages)]


def _from_llama_index(response: Any) -> Reply:
    choices = _get(response.raw, "choices")
    told = choices[0] if isinstance(choices, list) and choices else response.raw
    tokens = (response.additional_kwargs or {}).get("completion_tokens")
    return Reply(response.message.content or "", tokens if isinstance(tokens, int) else 0, _ended(told))


def _ended(told: object) -> bool:
    """Whether what a provider tells about the end of an answer does not say that it was cut off."""
    return not any(str(_get(told, name)).lower() in _CUT_OFF for name in _WHY_ENDED)


def _get(holder: object, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)


def _label(llm: Any) -> str:
    for name in ("model_name", "model", "model_id"):
        model = getattr(llm, name, None)
        if isinstance(model, str) and model:
            return f"{type(llm).__name__}({model})"
    return type(llm).__name__
