"""`ChatBPO`'s promises: LangChain's own suite of chat models; all but the user's turn passes through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from fakes import FakeEngine, fake_rewriter

pytest.importorskip("langchain_tests", reason="langchain-tests is not installed")

from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel, Field

from bpo_integrations import PromptOptimizer
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.langchain import BPORunnable, ChatBPO, ChatEmbedded

QUESTION = "How do vaccines train the immune system?"
BETTER = f"{QUESTION} Cover memory cells."


class ChatPlain(BaseChatModel):
    """An inner model that can do nothing but answer: no streaming, no tools, no name."""

    seen: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "plain"

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        self.seen.append(messages)
        return ChatResult(generations=[ChatGeneration(message=AIMessage("one two"))])

    def texts(self, call: int = -1) -> list[str]:
        return [str(message.text) for message in self.seen[call]]


class ChatProvider(ChatPlain):
    """An inner model as providers' are: tools in a format of its own, streaming, usage, a JSON mode, a profile."""

    model_name: str = "provider-large"
    given: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "provider"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name}

    def _resolve_model_profile(self) -> Any:
        return {"structured_output": True, "max_input_tokens": 1234}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        name = kwargs.get("model", self.model_name)
        return LangSmithParams(ls_provider="provider", ls_model_name=name, ls_model_type="chat")

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        self.seen.append(messages)
        self.given.append({"stop": stop, **kw})
        usage = UsageMetadata(input_tokens=5, output_tokens=2, total_tokens=7)
        answer = AIMessage("one two", usage_metadata=usage, response_metadata={"model_name": self.model_name})
        if kw.get("tools") and not isinstance(messages[-1], ToolMessage):
            name = kw["tools"][0]["provider_tool"]["name"]
            answer = AIMessage("", usage_metadata=usage, tool_calls=[{"name": name, "args": {"text": "x"}, "id": "1"}])
        return ChatResult(generations=[ChatGeneration(message=answer)], llm_output={"id": "abc"})

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> Iterator[ChatGenerationChunk]:
        answer = self._generate(messages, stop, **kw).generations[0].message
        assert isinstance(answer, AIMessage)
        for word in str(answer.content).split():
            yield ChatGenerationChunk(message=AIMessageChunk(content=f"{word} "))
        last = AIMessageChunk(content="", usage_metadata=answer.usage_metadata, tool_calls=answer.tool_calls)
        yield ChatGenerationChunk(message=last)

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: Any = None, **kwargs: Any) -> Any:
        formatted = [{"provider_tool": convert_to_openai_tool(each)["function"]} for each in tools]
        return self.bind(tools=formatted, **kwargs)

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Any:
        return RunnableLambda(self._native).bind(schema=schema)

    def _native(self, value: Any, schema: Any = None) -> Any:
        self.invoke(value, json_schema=schema.__name__)
        return schema(text="native")

    def get_token_ids(self, text: str) -> list[int]:
        return [7] * len(text)


def rewriter() -> Any:
    return fake_rewriter(lambda _: "Cover memory cells.")


def around(llm: BaseChatModel, **options: Any) -> ChatBPO:
    return ChatBPO(llm=llm, model=rewriter(), **options)


def engine_of(chat: ChatBPO) -> FakeEngine:
    engine = chat._bpo._ready().rewriter.engine
    assert isinstance(engine, FakeEngine)
    return engine


# -- LangChain's own suite ---------------------------------------------------------------------------------------------


class Suite(ChatModelUnitTests):
    __test__ = False

    @property
    def chat_model_class(self) -> type[ChatBPO]:
        return ChatBPO


@pytest.mark.filterwarnings("ignore:ChatBPO ignores")
class TestAroundAProvider(Suite):
    __test__ = True

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"llm": ChatProvider(), "model": rewriter()}

    @property
    def has_structured_output(self) -> bool:
        return True


@pytest.mark.filterwarnings("ignore:ChatBPO ignores")
class TestAroundAModelWithoutTools(Suite):
    __test__ = True

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"llm": ChatEmbedded(), "model": rewriter()}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False


# -- every entry point -------------------------------------------------------------------------------------------------


async def _collected(chunks: AsyncIterator[Any]) -> Any:
    found = [chunk async for chunk in chunks]
    return sum(found[1:], found[0])


async def _now(value: Any) -> Any:
    return value


async def _abatch(chat: ChatBPO, value: Any) -> Any:
    return (await chat.abatch([value]))[0]


def _joined(chunks: Iterator[Any]) -> Any:
    found = list(chunks)
    return sum(found[1:], found[0])


ENTRY_POINTS: dict[str, Callable[[ChatBPO, Any], Awaitable[Any]]] = {
    "invoke": lambda chat, value: _now(chat.invoke(value)),
    "ainvoke": lambda chat, value: chat.ainvoke(value),
    "batch": lambda chat, value: _now(chat.batch([value])[0]),
    "abatch": _abatch,
    "stream": lambda chat, value: _now(_joined(chat.stream(value))),
    "astream": lambda chat, value: _collected(chat.astream(value)),
    "generate": lambda chat, value: _now(chat.generate([[HumanMessage(value)]]).generations[0][0].message),
}


@pytest.mark.parametrize("inner", [ChatProvider, ChatPlain])
@pytest.mark.parametrize("entry", ENTRY_POINTS)
async def test_the_llm_gets_the_improved_turn_and_the_answer_says_so(entry: str, inner: type[ChatPlain]) -> None:
    llm = inner()
    answer = await ENTRY_POINTS[entry](around(llm), QUESTION)
    assert llm.texts() == [BETTER]
    assert answer.text.split() == ["one", "two"]
    assert answer.response_metadata["bpo"] == {
        "original": QUESTION,
        "text": BETTER,
        "kind": "augmented",
        "reason": "added by the model",
    }
    if inner is ChatProvider:
        assert answer.usage_metadata["total_tokens"] == 7


def test_it_streams_word_by_word_and_only_where_the_llm_does() -> None:
    assert [chunk.text for chunk in around(ChatProvider()).stream(QUESTION) if chunk.text] == ["one ", "two "]
    assert [chunk.text for chunk in around(ChatPlain()).stream(QUESTION) if chunk.text] == ["one two"]
    whole = around(ChatProvider(disable_streaming=True)).stream(QUESTION)
    assert [chunk.text for chunk in whole if chunk.text] == ["one two"]


@pytest.mark.filterwarnings("ignore:.*experimental|.*beta")
@pytest.mark.parametrize("inner", [ChatProvider, ChatPlain])
def test_the_typed_stream_of_events_works_around_any_llm(inner: type[ChatPlain]) -> None:
    stream = around(inner()).stream_events(QUESTION, version="v3")
    assert str(stream.output.text).split() == ["one", "two"]


def test_call_options_and_stop_reach_the_llm() -> None:
    llm = ChatProvider()
    around(llm).invoke(QUESTION, stop=["."], temperature=0.3)
    assert llm.given == [{"stop": ["."], "temperature": 0.3}]


def test_only_the_last_turn_changes_and_a_marked_one_does_not() -> None:
    llm = ChatProvider()
    made = PromptOptimizer(rewriter(), policy=lambda prompt, context: None)
    earlier = [SystemMessage("Be kind."), HumanMessage("Hi"), AIMessage("Hello!")]
    ChatBPO(llm=llm, optimizer=made).invoke([*earlier, HumanMessage(QUESTION)])
    assert llm.texts() == ["Be kind.", "Hi", "Hello!", BETTER]
    around(around(llm)).invoke(QUESTION)
    (BPORunnable(model=rewriter()) | around(llm)).invoke(QUESTION)
    assert [llm.texts(1), llm.texts(2)] == [[BETTER], [BETTER]]


def test_an_answer_to_no_turn_of_the_user_s_carries_no_mark() -> None:
    llm = ChatProvider()
    answer = around(llm).invoke([HumanMessage(QUESTION), AIMessage("Well,")])
    assert llm.texts() == [QUESTION, "Well,"]
    assert "bpo" not in answer.response_metadata


def test_shadow_changes_nothing_and_tells_the_proposal() -> None:
    llm = ChatProvider()
    answer = around(llm, shadow=True).invoke(QUESTION)
    assert llm.texts() == [QUESTION]
    assert answer.response_metadata["bpo"]["proposal"] == BETTER


# -- tools and structured output ---------------------------------------------------------------------------------------


@tool
def look_up(text: str) -> str:
    """Look something up."""
    return f"found {text}"


class Found(BaseModel):
    """Something found."""

    text: str


def test_tools_keep_the_llm_s_own_format_and_the_turn_stays_improved_while_they_are_at_work() -> None:
    llm = ChatProvider()
    chat = around(llm)
    bound = chat.bind_tools([look_up])
    turn = HumanMessage(QUESTION)
    call = bound.invoke([turn])
    assert llm.given[0]["tools"][0]["provider_tool"]["name"] == "look_up"
    assert call.tool_calls[0]["name"] == "look_up"
    bound.invoke([turn, call, ToolMessage("found x", tool_call_id="1")])
    assert llm.texts() == [BETTER, "", "found x"]
    assert engine_of(chat).calls == [[QUESTION]], "the second time it comes from the cache"


def test_a_system_message_behind_the_tools_does_not_end_the_turn() -> None:
    llm = ChatProvider()
    call = AIMessage("", tool_calls=[{"name": "look_up", "args": {}, "id": "1"}])
    messages = [HumanMessage(QUESTION), call, ToolMessage("found x", tool_call_id="1"), SystemMessage("Be kind.")]
    around(llm).invoke(messages)
    assert llm.texts() == [BETTER, "", "found x", "Be kind."]


def test_the_llm_s_own_answer_is_not_altered() -> None:
    own = AIMessage("one two")

    class Holding(ChatPlain):
        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
            return ChatResult(generations=[ChatGeneration(message=own)])

    assert around(Holding()).invoke(QUESTION).response_metadata["bpo"]["text"] == BETTER
    assert own.response_metadata == {}


def test_tool_calls_stream() -> None:
    answer = _joined(around(ChatProvider()).bind_tools([look_up]).stream(QUESTION))
    assert [call["name"] for call in answer.tool_calls] == ["look_up"]
    assert answer.response_metadata["bpo"]["text"] == BETTER


def test_structured_output_is_the_llm_s_own() -> None:
    llm = ChatProvider()
    assert around(llm).with_structured_output(Found).invoke(QUESTION) == Found(text="native")
    assert llm.given[0]["json_schema"] == "Found"
    assert llm.texts() == [BETTER]


def test_an_llm_that_binds_tools_by_another_model_or_a_chain_is_followed() -> None:
    other = ChatProvider()

    class Switching(ChatProvider):
        def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
            return {"model": other, "chain": RunnableLambda(lambda value: value)}[kwargs["way"]]

    chat = around(Switching())
    chat.bind_tools([look_up], way="model").invoke(QUESTION)
    assert other.texts() == [BETTER]
    assert chat.bind_tools([look_up], way="chain").invoke(QUESTION) == BETTER


def test_it_drives_an_agent_as_the_llm_would() -> None:
    agents = pytest.importorskip("langchain.agents", reason="the agents extra is not installed")
    llm = ChatProvider()
    state = agents.create_agent(around(llm), [look_up]).invoke({"messages": [HumanMessage(QUESTION)]})
    assert [type(each) for each in state["messages"]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert state["messages"][0].text == QUESTION
    assert [llm.texts(0)[0], llm.texts(1)[0]] == [BETTER, BETTER]


# -- what others ask about the model -----------------------------------------------------------------------------------


def test_profile_names_parameters_and_tokens_are_the_llm_s() -> None:
    llm = ChatProvider()
    chat = around(llm)
    assert chat.profile == llm.profile
    assert chat.model_name == "provider-large"
    assert chat._get_ls_params() == llm._get_ls_params()
    assert chat._identifying_params["model_name"] == "provider-large"
    assert chat.get_num_tokens("four") == 4
    assert around(ChatPlain()).model_name == "plain"


def test_the_llm_s_cache_is_used_and_told_apart_from_the_bare_llm_s() -> None:
    cache = InMemoryCache()
    llm = ChatProvider(cache=cache)
    chat = around(llm)
    assert [chat.invoke(QUESTION).text, chat.invoke(QUESTION).text] == ["one two"] * 2
    assert len(llm.seen) == 1
    llm.invoke(QUESTION)
    assert len(llm.seen) == 2


def test_different_optimizers_have_different_parameters() -> None:
    ready = [PromptOptimizer(rewriter(), **options) for options in ({}, {}, {"shadow": True})]
    found = [ChatBPO(llm=ChatPlain(), optimizer=each)._identifying_params for each in ready]
    assert all(one != other for one, other in zip(found, found[1:] + found[:1], strict=True))
    assert found[0] == ChatBPO(llm=ChatPlain(), optimizer=ready[0])._identifying_params
    told = found[0]["bpo"]
    assert (told["mode"], told["unsafe"], told["passes"]) == ("augment", "keep", 1)


def test_the_llm_s_rate_limiter_is_asked() -> None:
    class Counting(BaseRateLimiter):
        asked = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            Counting.asked += 1
            return True

        async def aacquire(self, *, blocking: bool = True) -> bool:
            return self.acquire()

    around(ChatProvider(rate_limiter=Counting())).invoke(QUESTION)
    assert Counting.asked == 1


class Starts(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tags: list[list[str]] = []
        self.metadata: list[dict[str, Any]] = []

    def on_chat_model_start(self, *args: Any, tags: Any = None, metadata: Any = None, **kwargs: Any) -> None:
        self.tags.append(tags)
        self.metadata.append(metadata)


def test_the_llm_s_callbacks_tags_and_metadata_see_the_call_once() -> None:
    seen = Starts()
    around(ChatProvider(callbacks=[seen], tags=["mine"], metadata={"team": "a"})).invoke(QUESTION)
    assert seen.tags == [["mine"]]
    assert seen.metadata[0]["team"] == "a"
    assert seen.metadata[0]["ls_model_name"] == "provider-large"


# -- tracing -----------------------------------------------------------------------------------------------------------


class Tracer(BaseTracer):
    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_optimization_is_a_run_inside_the_llm_s(asynchronous: bool) -> None:
    tracer = Tracer()
    chat, config = around(ChatProvider()), {"callbacks": [tracer], "metadata": {"user": "ann"}}
    if asynchronous:
        await chat.ainvoke(QUESTION, config)  # type: ignore[arg-type]
    else:
        chat.invoke(QUESTION, config)  # type: ignore[arg-type]
    (root,) = tracer.runs
    assert (root.name, root.run_type) == ("ChatBPO", "chat_model" if root.run_type == "chat_model" else "llm")
    (inner,) = root.child_runs
    assert inner.name == "BPORunnable"
    assert inner.metadata["bpo_kind"] == "augmented"
    assert inner.metadata["user"] == "ann"
    assert "ls_provider" not in inner.metadata
    assert inner.outputs is not None
    assert inner.outputs["output"][0].content == BETTER


def test_when_it_streams_in_a_chain_the_optimization_is_a_run_beside_the_llm_s() -> None:
    tracer = Tracer()
    chain = RunnableLambda(lambda value: value) | around(ChatProvider())
    list(chain.stream(QUESTION, {"callbacks": [tracer]}))
    assert {run.name for run in tracer.runs[0].child_runs} == {"RunnableLambda", "ChatBPO", "BPORunnable"}


# -- configuration -----------------------------------------------------------------------------------------------------


def test_a_wrong_configuration_raises_when_built() -> None:
    for options in (
        {},
        {"llm": "openai:gpt-5"},
        {"llm": ChatProvider().bind(stop=["."])},
        {"llm": ChatProvider(), "modle": "embedded"},
        {"llm": ChatProvider(), "model": "nonsense"},
        {"llm": ChatProvider(), "model": rewriter(), "mode": "rewrite"},
        {"llm": ChatProvider(), "optimizer": PromptOptimizer(rewriter()), "shadow": True},
    ):
        with pytest.raises(ConfigurationError):
            ChatBPO(**options)  # type: ignore[arg-type]


def test_options_of_the_llm_are_not_swallowed_in_silence() -> None:
    with pytest.warns(UserWarning, match="temperature"):
        around(ChatProvider(), temperature=0.5)


def test_a_ready_optimizer_is_used() -> None:
    llm = ChatProvider()
    ChatBPO(llm=llm, optimizer=PromptOptimizer(rewriter())).invoke(QUESTION)
    assert llm.texts() == [BETTER]
