"""`PassingLLM`: the plumbing of an LLM around an LLM.

Every call of LlamaIndex's LLM interface goes on to the inner LLM, one line a method; only the user's turn in it is what
`_improve` returns. Which text of a call is the user's turn is decided here, what becomes of it in the subclasses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, SelectorPromptTemplate
from llama_index.core.types import TokenAsyncGen, TokenGen
from pydantic import Field, SerializeAsAny

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.llama_index.turns import last_turn, texts

QUERY = "query_str"
"""The variable in which LlamaIndex's templates hold the user's query."""

_SHARED = ("callback_manager", "system_prompt", "query_wrapper_prompt", "output_parser", "pydantic_program_mode")
"""Fields of the inner LLM that others read from the outer one, such as the prompt helper when it counts tokens."""


class PassingLLM(FunctionCallingLLM):
    """Hands every call on to `llm`, the user's turn in it as `_improve` returns it.

    What counts as the user's turn: in chat messages the last one of the user, also where tool calls and their results
    follow; in a template its variable `query_str`; a bare completion only with `completions=True`, because LlamaIndex
    sends its own instructions that way. All else passes as it is.

    Callbacks, events and rate limits are those of `llm`, which gets the improved turn.
    """

    llm: SerializeAsAny[LLM] = Field(description="The LLM that answers.")
    completions: bool = Field(default=False, description="Whether bare completions are the user's turns, too.")

    def __init__(self, llm: LLM, **fields: Any) -> None:
        super().__init__(llm=llm, **{**{name: getattr(llm, name) for name in _SHARED}, **fields})

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _SHARED:  # `Settings`, for one, hands its callback manager to the LLM in this way
            setattr(self.llm, name, value)

    @abstractmethod
    def _improve(self, text: str, history: Sequence[str]) -> str:
        """Return what goes on in place of the user's turn."""

    @abstractmethod
    async def _aimprove(self, text: str, history: Sequence[str]) -> str:
        """As `_improve`, without blocking the event loop."""

    @property
    def metadata(self) -> LLMMetadata:
        """What the LLM says of itself."""
        return self.llm.metadata

    # -- chat and completion -------------------------------------------------------------------------------------------

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Chat."""
        return self.llm.chat(self._messages(messages), **kwargs)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Chat, without blocking the event loop."""
        return await self.llm.achat(await self._amessages(messages), **kwargs)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Chat and stream the answer."""
        return self.llm.stream_chat(self._messages(messages), **kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Chat and stream the answer, without blocking the event loop."""
        return await self.llm.astream_chat(await self._amessages(messages), **kwargs)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Complete a prompt."""
        return self.llm.complete(self._prompt(prompt, formatted), formatted=formatted, **kwargs)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Complete a prompt, without blocking the event loop."""
        return await self.llm.acomplete(await self._aprompt(prompt, formatted), formatted=formatted, **kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Complete a prompt and stream the answer."""
        return self.llm.stream_complete(self._prompt(prompt, formatted), formatted=formatted, **kwargs)

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Complete a prompt and stream the answer, without blocking the event loop."""
        return await self.llm.astream_complete(await self._aprompt(prompt, formatted), formatted=formatted, **kwargs)

    # -- templates, which is how query engines ask ---------------------------------------------------------------------

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Answer a template."""
        return self.llm.predict(prompt, **self._args(prompt, prompt_args))

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Answer a template, without blocking the event loop."""
        return await self.llm.apredict(prompt, **await self._aargs(prompt, prompt_args))

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """Answer a template and stream the answer."""
        return self.llm.stream(prompt, **self._args(prompt, prompt_args))

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """Answer a template and stream the answer, without blocking the event loop."""
        return await self.llm.astream(prompt, **await self._aargs(prompt, prompt_args))

    def structured_predict(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any) -> Any:
        """Answer a template with an object."""
        args = self._args(prompt, prompt_args)
        return self.llm.structured_predict(output_cls, self._final(prompt, args), llm_kwargs, **args)

    async def astructured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
    ) -> Any:
        """Answer a template with an object, without blocking the event loop."""
        args = await self._aargs(prompt, prompt_args)
        return await self.llm.astructured_predict(output_cls, await self._afinal(prompt, args), llm_kwargs, **args)

    def stream_structured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
    ) -> Any:
        """Answer a template with an object, and stream what is known of it."""
        args = self._args(prompt, prompt_args)
        return self.llm.stream_structured_predict(output_cls, self._final(prompt, args), llm_kwargs, **args)

    async def astream_structured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
    ) -> Any:
        """As `stream_structured_predict`, without blocking the event loop."""
        args = await self._aargs(prompt, prompt_args)
        final = await self._afinal(prompt, args)
        return await self.llm.astream_structured_predict(output_cls, final, llm_kwargs, **args)

    # -- tools ---------------------------------------------------------------------------------------------------------

    def chat_with_tools(  # type: ignore[override]  # what else there is goes on by its name
        self,
        tools: Any,
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        **kwargs: Any,
    ) -> ChatResponse:
        """Chat with tools to call."""
        messages = self._messages(_joined(user_msg, chat_history))
        return self._caller().chat_with_tools(tools, chat_history=messages, **kwargs)

    async def achat_with_tools(  # type: ignore[override]
        self,
        tools: Any,
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        **kwargs: Any,
    ) -> ChatResponse:
        """Chat with tools to call, without blocking the event loop."""
        messages = await self._amessages(_joined(user_msg, chat_history))
        return await self._caller().achat_with_tools(tools, chat_history=messages, **kwargs)

    def stream_chat_with_tools(  # type: ignore[override]
        self,
        tools: Any,
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        **kwargs: Any,
    ) -> ChatResponseGen:
        """Chat with tools to call, and stream the answer."""
        messages = self._messages(_joined(user_msg, chat_history))
        return self._caller().stream_chat_with_tools(tools, chat_history=messages, **kwargs)

    async def astream_chat_with_tools(  # type: ignore[override]
        self,
        tools: Any,
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        **kwargs: Any,
    ) -> ChatResponseAsyncGen:
        """As `stream_chat_with_tools`, without blocking the event loop."""
        messages = await self._amessages(_joined(user_msg, chat_history))
        return await self._caller().astream_chat_with_tools(tools, chat_history=messages, **kwargs)

    def predict_and_call(  # type: ignore[override]
        self,
        tools: Any,
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Let the LLM choose a tool, and call it."""
        return self.llm.predict_and_call(tools, chat_history=self._messages(_joined(user_msg, chat_history)), **kwargs)

    async def apredict_and_call(  # type: ignore[override]
        self,
        tools: Any,
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `predict_and_call`, without blocking the event loop."""
        messages = await self._amessages(_joined(user_msg, chat_history))
        return await self.llm.apredict_and_call(tools, chat_history=messages, **kwargs)

    def get_tool_calls_from_response(self, response: ChatResponse, *args: Any, **kwargs: Any) -> list[ToolSelection]:
        """Return the tool calls that the LLM asks for."""
        return self._caller().get_tool_calls_from_response(response, *args, **kwargs)

    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._caller()._prepare_chat_with_tools(*args, **kwargs)

    def _caller(self) -> FunctionCallingLLM:
        if not isinstance(self.llm, FunctionCallingLLM):
            msg = f"{type(self.llm).__name__} calls no tools."
            raise ConfigurationError(msg, hint="Use an LLM that does, or an agent that asks in words: BPOReActAgent.")
        return self.llm

    # -- the user's turn, wherever it stands ---------------------------------------------------------------------------

    def _messages(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        turn = last_turn(messages)
        return list(messages) if turn is None else turn.put(messages, self._improve(turn.text, turn.history))

    async def _amessages(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        turn = last_turn(messages)
        return list(messages) if turn is None else turn.put(messages, await self._aimprove(turn.text, turn.history))

    def _prompt(self, prompt: str, formatted: bool) -> str:
        return self._improve(prompt, ()) if self.completions and not formatted else prompt

    async def _aprompt(self, prompt: str, formatted: bool) -> str:
        return await self._aimprove(prompt, ()) if self.completions and not formatted else prompt

    def _args(self, prompt: BasePromptTemplate, args: dict[str, Any]) -> dict[str, Any]:
        query = _query(prompt, args)
        return args if query is None else {**args, QUERY: self._improve(query, self._history(prompt))}

    async def _aargs(self, prompt: BasePromptTemplate, args: dict[str, Any]) -> dict[str, Any]:
        query = _query(prompt, args)
        return args if query is None else {**args, QUERY: await self._aimprove(query, self._history(prompt))}

    def _history(self, prompt: BasePromptTemplate) -> tuple[str, ...]:
        """Return the dialogue in a template: chat engines put it before the message that holds the query."""
        chosen = prompt.select(self.llm) if isinstance(prompt, SelectorPromptTemplate) else prompt
        if not isinstance(chosen, ChatPromptTemplate):
            return ()
        return texts(chosen.message_templates[:-1])

    def _final(self, prompt: Any, args: dict[str, Any]) -> Any:
        messages = _final_messages(prompt, args)
        return prompt if messages is None else ChatPromptTemplate(message_templates=self._messages(messages))

    async def _afinal(self, prompt: Any, args: dict[str, Any]) -> Any:
        messages = _final_messages(prompt, args)
        return prompt if messages is None else ChatPromptTemplate(message_templates=await self._amessages(messages))


def _joined(user_msg: str | ChatMessage | None, chat_history: Sequence[ChatMessage] | None) -> list[ChatMessage]:
    """Return the messages of a call with tools."""
    if user_msg is None:
        return [*(chat_history or ())]
    message = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
    return [*(chat_history or ()), message]


def _query(prompt: BasePromptTemplate, args: dict[str, Any]) -> str | None:
    """Return the user's query in a template, given now or filled in before."""
    query = {**prompt.kwargs, **args}.get(QUERY)
    return query if isinstance(query, str) and query else None


def _final_messages(prompt: Any, args: dict[str, Any]) -> list[ChatMessage] | None:
    """Return the messages of a template without variables, which is how a structured LLM passes on a chat."""
    if not isinstance(prompt, ChatPromptTemplate) or args or prompt.kwargs or prompt.template_vars:
        return None
    return list(prompt.message_templates)
