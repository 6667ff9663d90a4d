"""`ChatBPO(llm=...)`: a chat model around any chat model, which optimizes the user's turn first.

For places that demand a chat model; elsewhere write `BPORunnable() | llm`. Everything but the user's turn passes
through: tools, structured output, streaming, usage, profile, the parameters that traces show.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, PrivateAttr

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.langchain.runnable import BPORunnable
from bpo_integrations.langchain.tracing import below_llm
from bpo_integrations.langchain.turns import MARK, tools_at_work, user_text, users_turn
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Mode

_HANDED_ON = (
    "cache",
    "rate_limiter",
    "callbacks",
    "tags",
    "metadata",
    "custom_get_token_ids",
    "disable_streaming",
    "output_version",
    "profile",
)
"""What LangChain does around a chat model, and so would no longer do for one that is wrapped: taken from the LLM."""

_OF_THE_LLM = frozenset(
    {"temperature", "max_tokens", "timeout", "max_retries", "stop", "streaming", "api_key", "base_url"}
)
"""LangChain's standard parameters, which belong to the LLM."""
_Asked = tuple[list[BaseMessage], dict[str, Any]]
"""What the LLM is asked, and what its answer says about it."""


class ChatBPO(BaseChatModel):
    """A chat model that optimizes the user's turn and asks `llm`.

    The answer's `response_metadata["bpo"]` holds `original`, `text` (what the LLM saw), `kind` and `reason`. While
    tools are at work the LLM goes on seeing the optimized turn. The LLM's own cache and rate limiter are used, with
    the user's own words as the cache's key.

    Its limits: earlier turns of a conversation are seen as the user wrote them (in agents `BPOMiddleware` does better);
    with unseeded sampling each call of a tool loop draws anew; what else `llm` can do (methods of its own, `isinstance`
    checks for its class) is reached at `.llm` only.

    Args:
        llm: The answering model.
        model: The rewriter: a spec (`embedded`), a `Rewriter`, or an LLM's object, asked to optimize by meta-prompt.
        optimizer: A ready `PromptOptimizer`, instead of `model`, `mode`, `policy` and `shadow`.
        mode: `augment` or `rewrite`; None takes the rewriter's own.
        policy: Which prompts are worth it for `llm`: a policy file's path, `small` or `strong` (docs/gate.md), or a
            function. It has this name only, because LangChain's chat models have a `profile` of another meaning.
        shadow: Run everything, but let the original go on; the proposal is in the answer's `response_metadata["bpo"]`.

    Raises:
        ConfigurationError: Something is configured wrongly, a model is missing, or an extra is not installed.

    Example:
        >>> from bpo_integrations.langchain import ChatEmbedded
        >>> ChatBPO(llm=ChatEmbedded()).invoke("Tell me about Harry Potter").content  # doctest: +SKIP
        'Harry Potter is ...'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    llm: BaseChatModel
    model: Any = "embedded"
    optimizer: PromptOptimizer | None = None
    mode: Mode | None = None
    policy: Any = None
    shadow: bool = False
    _bpo: BPORunnable = PrivateAttr()

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, **options: Any) -> None:
            llm = options.get("llm")
            if not isinstance(llm, BaseChatModel):
                msg = f"ChatBPO needs a chat model as llm=, not {type(llm).__name__}."
                raise ConfigurationError(msg, hint="For any other runnable write BPORunnable() | llm.")
            _refuse_unknown(set(options) - set(type(self).model_fields))
            super().__init__(**{name: getattr(llm, name) for name in _HANDED_ON if hasattr(llm, name)} | options)
            chosen = {name: getattr(self, name) for name in ("model", "mode", "policy", "shadow", "optimizer")}
            self._bpo = BPORunnable(**chosen)

    # -- asking --------------------------------------------------------------------------------------------------------

    def _optimized(self, messages: list[BaseMessage], run: CallbackManagerForLLMRun | None) -> _Asked:
        end = tools_at_work(messages)
        optimized = self._bpo.invoke(messages[:end], below_llm(run))
        return [*optimized, *messages[end:]], _mark(optimized)

    async def _aoptimized(self, messages: list[BaseMessage], run: AsyncCallbackManagerForLLMRun | None) -> _Asked:
        end = tools_at_work(messages)
        optimized = await self._bpo.ainvoke(messages[:end], below_llm(run))
        return [*optimized, *messages[end:]], _mark(optimized)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        asked, mark = self._optimized(messages, run_manager)
        return _signed(self.llm._generate(asked, stop=stop, run_manager=run_manager, **kwargs), mark)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        asked, mark = await self._aoptimized(messages, run_manager)
        return _signed(await self.llm._agenerate(asked, stop=stop, run_manager=run_manager, **kwargs), mark)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if not _streams(self.llm):
            yield _whole(self._generate(messages, stop, run_manager, **kwargs))
            return
        asked, mark = self._optimized(messages, run_manager)
        for chunk in self.llm._stream(asked, stop=stop, run_manager=run_manager, **kwargs):
            yield chunk.model_copy(update={"message": _sign(chunk.message, mark)}) if mark else chunk
            mark = {}

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        if not _streams(self.llm):
            yield _whole(await self._agenerate(messages, stop, run_manager, **kwargs))
            return
        asked, mark = await self._aoptimized(messages, run_manager)
        async for chunk in self.llm._astream(asked, stop=stop, run_manager=run_manager, **kwargs):
            yield chunk.model_copy(update={"message": _sign(chunk.message, mark)}) if mark else chunk
            mark = {}

    def _should_stream(self, **kwargs: Any) -> bool:
        return not self._streaming_disabled(**kwargs) and self.llm._should_stream(**kwargs)

    def _should_use_protocol_streaming(self, **kwargs: Any) -> bool:
        return _streams(self.llm) and super()._should_use_protocol_streaming(**kwargs)

    # -- tools and structured output: the LLM's own way ----------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools, in the form that the LLM gives them."""
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        bound = self.llm.bind_tools(tools, **kwargs)
        if isinstance(bound, BaseChatModel):
            return self._around(bound)
        if isinstance(bound, RunnableBinding) and isinstance(bound.bound, BaseChatModel):
            return bound.model_copy(update={"bound": self._around(bound.bound)})
        return self._bpo | bound

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """Ask for structured output in the LLM's own way, for example by its JSON mode."""
        return self._bpo | self.llm.with_structured_output(schema, include_raw=include_raw, **kwargs)

    def _around(self, llm: BaseChatModel) -> ChatBPO:
        return self if llm is self.llm else self.model_copy(update={"llm": llm})

    # -- what others ask about the model: the LLM's answers ------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return f"bpo-{self.llm._llm_type}"

    @property
    def model_name(self) -> str:
        """The LLM's name, by which LangChain's agents know what it can do."""
        names = (getattr(self.llm, name, None) for name in ("model_name", "model", "model_id"))
        return next((name for name in names if isinstance(name, str) and name), self.llm._llm_type)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """The LLM's, and the optimizer's: a cached answer belongs to both."""
        optimizer = self._bpo._ready()
        ours = {
            "rewriter": optimizer.rewriter.id,
            "decoding": str(optimizer.decoding),
            **{name: getattr(optimizer, name) for name in ("mode", "unsafe", "passes", "shadow")},
            "gate": optimizer.gate and optimizer.gate.id,
            "function": id(self.policy) if callable(self.policy) else None,
            "ready": None if self.optimizer is None else id(self.optimizer),  # its guards and policy have no names
        }
        return {**self.llm._identifying_params, "llm": self.llm._llm_type, MARK: ours}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.llm._get_ls_params(stop=stop, **kwargs)

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return self.llm._combine_llm_outputs(llm_outputs)

    def get_token_ids(self, text: str) -> list[int]:
        """Return the LLM's token ids."""
        return self.llm.get_token_ids(text)

    def get_num_tokens(self, text: str) -> int:
        """Return the LLM's number of tokens."""
        return self.llm.get_num_tokens(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Return the LLM's number of tokens of messages as they are, without what the optimizer would add."""
        return self.llm.get_num_tokens_from_messages(messages, tools=tools)


def _refuse_unknown(names: set[str]) -> None:
    if wrong := names - _OF_THE_LLM:
        msg = f"ChatBPO does not know {', '.join(sorted(wrong))}."
        raise ConfigurationError(msg, hint="Give options of the optimizer as optimizer=PromptOptimizer(...).")
    if names:
        warnings.warn(f"ChatBPO ignores {', '.join(sorted(names))}: give it to the llm.", stacklevel=3)


def _streams(llm: BaseChatModel) -> bool:
    kind = type(llm)
    return kind._stream is not BaseChatModel._stream or kind._astream is not BaseChatModel._astream


def _mark(asked: Sequence[BaseMessage]) -> dict[str, Any]:
    """Return what the answer says about the user's turn; nothing where there was none to optimize."""
    place = users_turn(asked)
    found = None if place is None else asked[place].additional_kwargs.get(MARK)
    if place is None or found is None:
        return {}
    _, text = user_text(asked[place]) or (None, "")
    return {MARK: {**found, "text": text}}


def _sign(answer: BaseMessage, mark: dict[str, Any]) -> BaseMessage:
    """Return a copy of the answer, or of its first chunk, with the mark: the LLM may hold on to its own."""
    return answer.model_copy(update={"response_metadata": {**answer.response_metadata, **mark}})


def _signed(result: ChatResult, mark: dict[str, Any]) -> ChatResult:
    generations = [each.model_copy(update={"message": _sign(each.message, mark)}) for each in result.generations]
    return result.model_copy(update={"generations": generations})


def _whole(result: ChatResult) -> ChatGenerationChunk:
    """Return an LLM's whole answer as one chunk."""
    message = result.generations[0].message
    return ChatGenerationChunk(message=AIMessageChunk(**message.model_dump(exclude={"type"}), chunk_position="last"))
