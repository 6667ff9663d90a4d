"""`ChatEmbedded`: a tiny language model that answers on this machine, as a LangChain chat model.

It is the embedded optimizer's base, SmolLM2-135M-Instruct, without its adapter: real enough to run a chain from end to
end offline, in demos and tests. It is *not* a good assistant. It calls no tools and reads text only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.errors import InputError
from bpo_integrations.models.base import BASE_ID
from bpo_integrations.result import Candidate
from bpo_integrations.templates import Message

if TYPE_CHECKING:
    from bpo_integrations.engines.ctranslate2 import CTranslate2Engine

_PER_CALL = ("temperature", "max_tokens", "seed")


class ChatEmbedded(BaseChatModel):
    """SmolLM2-135M-Instruct on the CPU, for demos and tests: it runs offline, and it often errs.

    The weights load at the first call, once a process, and are shared. `temperature`, `max_tokens` and `seed` can be
    overridden a call (`llm.bind(max_tokens=20)`). The token counts in `usage_metadata` leave out the chat template.

    Args:
        temperature: 0 is greedy, and so repeatable.
        max_tokens: Most tokens of an answer.
        seed: Makes sampling repeatable.
        base: A GGUF file of the base, where it is not to be looked for.

    Raises:
        ModelNotFoundError: The base's weights are not on this machine; the message says how to install them.

    Example:
        >>> ChatEmbedded(max_tokens=20).invoke("What is the capital of France?").content  # doctest: +SKIP
        'The capital of France is Paris.'
    """

    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=256, ge=1)
    seed: int | None = None
    base: str | None = None

    @property
    def _llm_type(self) -> str:
        return "bpo-embedded"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": BASE_ID, **{name: getattr(self, name) for name in _PER_CALL}}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        found = LangSmithParams(
            ls_provider="embedded",
            ls_model_name=kwargs.get("model", BASE_ID),
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if stop:
            found["ls_stop"] = stop
        return found

    def _engine(self) -> CTranslate2Engine:
        """Return the engine; the process holds it, not this object."""
        return _shared_engine(self.base)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine = self._engine()
        request, decoding = self._ask(messages, stop, kwargs)
        return _result(engine, request, engine.generate([request], decoding)[0][0])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        engine = self._engine()
        request, decoding = self._ask(messages, stop, kwargs)
        return _result(engine, request, (await engine.agenerate([request], decoding))[0][0])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        # The base class turns this into `_astream`, with each step in a thread: the event loop is never blocked.
        engine = self._engine()
        request, decoding = self._ask(messages, stop, kwargs)
        pieces: list[str] = []
        for piece in engine.stream(request, decoding):
            pieces.append(piece)
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        usage = _usage(engine, request, engine.count_tokens(["".join(pieces)])[0])
        finished = "length" if usage["output_tokens"] >= request.max_new_tokens else "stop"
        about = {"model_name": BASE_ID, "finish_reason": finished}
        last = AIMessageChunk(content="", usage_metadata=usage, response_metadata=about, chunk_position="last")
        yield ChatGenerationChunk(message=last)

    def _ask(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: dict[str, Any]
    ) -> tuple[Request, Decoding]:
        """Return what to ask of the engine."""
        if unknown := sorted(set(kwargs) - set(_PER_CALL)):
            msg = f"ChatEmbedded does not know the option {unknown[0]!r}."
            raise InputError(msg, hint=f"It knows {', '.join(_PER_CALL)} and stop; tools it cannot call.")
        settled = {name: kwargs.get(name, getattr(self, name)) for name in _PER_CALL}
        request = Request(tuple(_plain(message) for message in messages), max_new_tokens=settled["max_tokens"])
        decoding = Decoding(temperature=settled["temperature"], seed=settled["seed"], stop=tuple(stop or ()))
        return request, decoding


@lru_cache(maxsize=2)
def _shared_engine(base: str | None) -> CTranslate2Engine:
    """Hold the engine, whose weights live only as long as somebody does."""
    from bpo_integrations.models.embedded import embedded_base_engine

    return embedded_base_engine(base=base)


def _plain(message: BaseMessage) -> Message:
    """Return a message as the engine wants it."""
    content = message.content
    if not isinstance(content, str):
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        if other := [str(part.get("type")) for part in parts if part.get("type") != "text"]:
            msg = f"ChatEmbedded reads text only, not {other[0]!r}."
            raise InputError(msg, hint="Send text, or use a multimodal LLM.")
        content = "".join(str(part.get("text", "")) for part in parts)
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": content}
    if isinstance(message, HumanMessage) or (isinstance(message, ChatMessage) and message.role == "user"):
        return {"role": "user", "content": content}
    if isinstance(message, AIMessage) and not message.tool_calls:
        return {"role": "assistant", "content": content}
    msg = f"ChatEmbedded cannot read a message of type {message.type!r}, or one that calls tools."
    raise InputError(msg, hint="It knows system, human and AI messages.")


def _usage(engine: CTranslate2Engine, request: Request, output: int) -> UsageMetadata:
    asked = sum(engine.count_tokens([message["content"] for message in request.messages]))
    return UsageMetadata(input_tokens=asked, output_tokens=output, total_tokens=asked + output)


def _result(engine: CTranslate2Engine, request: Request, candidate: Candidate) -> ChatResult:
    message = AIMessage(
        content=candidate.text,
        usage_metadata=_usage(engine, request, candidate.tokens),
        response_metadata={"model_name": BASE_ID, "finish_reason": candidate.finish_reason},
    )
    return ChatResult(generations=[ChatGeneration(message=message)])
