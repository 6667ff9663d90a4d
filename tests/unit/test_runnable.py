"""`BPORunnable`'s promises: every shape, every entry point, nothing lost, nothing blocked."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from fakes import FakeEngine, fake_rewriter

pytest.importorskip("langchain_core", reason="the langchain extra is not installed")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompt_values import ChatPromptValue, ImagePromptValue, StringPromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run

from bpo_integrations import Decoding, PromptOptimizer
from bpo_integrations.errors import BPOError, ConfigurationError, EngineError, InputError, OptimizationError
from bpo_integrations.langchain import BPORunnable
from bpo_integrations.langchain import runnable as runnable_module
from bpo_integrations.langchain.turns import take

QUESTION = "How do vaccines train the immune system?"


def addition(prompt: str) -> str:
    return f"Say more on {prompt.split()[-1]}"


def better(prompt: str) -> str:
    return f"{prompt} {addition(prompt)}"


def optimizer(answer: Callable[[str], str] = addition, *, delay: float = 0.0, **options: Any) -> PromptOptimizer:
    """The real pipeline around a fake engine, without policy and guards: these have tests of their own."""
    return PromptOptimizer(
        fake_rewriter(answer, delay=delay), policy=lambda prompt, context: None, guards=(), **options
    )


def engine_of(made: PromptOptimizer) -> FakeEngine:
    assert isinstance(made.rewriter.engine, FakeEngine)
    return made.rewriter.engine


@pytest.fixture
def bpo() -> BPORunnable:
    return BPORunnable(optimizer=optimizer())


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str | None]]]:
    """Every rewriter that was loaded, as (spec, mode), each a fake: for what is built from plain options."""
    loaded: list[tuple[str, str | None]] = []

    def load_fake(spec: str, *, mode: Any = None, **options: Any) -> Any:
        if spec == "nonsense":
            raise ConfigurationError("Unknown rewriter.", hint="Use another.")
        loaded.append((spec, mode))
        if mode == "rewrite":
            return fake_rewriter(lambda prompt: f"{prompt} REWRITTEN", mode="rewrite")
        return fake_rewriter(addition)

    monkeypatch.setattr("bpo_integrations.optimizer.load_rewriter", load_fake)
    monkeypatch.setattr("bpo_integrations.judging.default_policy", lambda prompt, context: None)
    monkeypatch.setattr("bpo_integrations.judging.ADDITION_GUARDS", ())
    monkeypatch.setattr("bpo_integrations.judging.REWRITE_GUARDS", ())
    runnable_module._shared_optimizer.cache_clear()
    yield loaded
    runnable_module._shared_optimizer.cache_clear()


# -- every entry point gives the same result --------------------------------------------------------------------------


async def _collect(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


async def _events(bpo: BPORunnable, value: Any) -> Any:
    events = await _collect(bpo.astream_events(value, version="v2"))
    return events[-1]["data"]["output"]


async def _one_by_one(value: Any) -> AsyncIterator[Any]:
    yield value


async def _completed(bpo: BPORunnable, value: Any) -> Any:
    return (await _collect(bpo.abatch_as_completed([value])))[0][1]


async def _now(value: Any) -> Any:
    return value


ENTRY_POINTS: dict[str, Callable[[BPORunnable, Any], Awaitable[Any]]] = {
    "invoke": lambda bpo, value: _now(bpo.invoke(value)),
    "ainvoke": lambda bpo, value: bpo.ainvoke(value),
    "batch": lambda bpo, value: _now(bpo.batch([value])[0]),
    "abatch": lambda bpo, value: _first(bpo.abatch([value])),
    "stream": lambda bpo, value: _now(next(iter(bpo.stream(value)))),
    "astream": lambda bpo, value: _first(_collect(bpo.astream(value))),
    "transform": lambda bpo, value: _now(next(iter(bpo.transform(iter([value]))))),
    "atransform": lambda bpo, value: _first(_collect(bpo.atransform(_one_by_one(value)))),
    "astream_events": _events,
    "batch_as_completed": lambda bpo, value: _now(next(iter(bpo.batch_as_completed([value])))[1]),
    "abatch_as_completed": _completed,
    "map": lambda bpo, value: _now(bpo.map().invoke([value])[0]),
    "retry": lambda bpo, value: _now(bpo.with_retry().invoke(value)),
    "fallbacks": lambda bpo, value: _now(bpo.with_fallbacks([RunnableLambda(lambda _: "?")]).invoke(value)),
}


async def _first(results: Awaitable[list[Any]]) -> Any:
    return (await results)[0]


CONVERSATION: list[BaseMessage] = [
    SystemMessage("Be kind."),
    HumanMessage("Hi"),
    AIMessage("Hello!"),
    HumanMessage(QUESTION),
]


def _last_text(value: Any) -> str:
    return str(value[-1].text)


SHAPES: dict[str, tuple[Any, type, Callable[[Any], str]]] = {
    "str": (QUESTION, str, str),
    "string prompt value": (StringPromptValue(text=QUESTION), StringPromptValue, lambda value: value.text),
    "chat prompt value": (ChatPromptValue(messages=CONVERSATION), ChatPromptValue, lambda v: _last_text(v.messages)),
    "messages": (CONVERSATION, list, _last_text),
    "tuples": ([("system", "Be kind."), ("human", QUESTION)], list, _last_text),
    "dicts": ([{"role": "user", "content": QUESTION}], list, _last_text),
    "message": (HumanMessage(QUESTION), HumanMessage, lambda value: value.content),
    "dict": ({"question": QUESTION, "k": 3}, dict, lambda value: value["question"]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("entry", ENTRY_POINTS)
async def test_every_entry_point_returns_the_optimized_prompt_in_the_shape_of_its_input(entry: str, shape: str) -> None:
    value, kind, text_of = SHAPES[shape]
    bpo = BPORunnable(optimizer=optimizer(), input_key="question")
    result = await ENTRY_POINTS[entry](bpo, value)
    assert isinstance(result, kind)
    assert text_of(result) == better(QUESTION)
    assert text_of(result).startswith(QUESTION)


# -- what is touched, and what is not ---------------------------------------------------------------------------------


def test_only_the_last_human_message_changes_and_it_keeps_what_it_carries(bpo: BPORunnable) -> None:
    earlier = [SystemMessage("Be kind.", id="s"), HumanMessage("Hi", id="1"), AIMessage("Hello!", id="2")]
    turn = HumanMessage(
        QUESTION, id="3", name="ann", response_metadata={"a": 1}, additional_kwargs={"mine": True}, example=True
    )
    result = bpo.invoke([*earlier, turn])
    assert all(after is before for after, before in zip(result[:3], earlier, strict=True))
    changed = result[3]
    assert changed.content == better(QUESTION)
    assert (changed.id, changed.name, changed.response_metadata, changed.example) == ("3", "ann", {"a": 1}, True)
    assert changed.additional_kwargs == {
        "mine": True,
        "bpo": {"original": QUESTION, "kind": "augmented", "reason": "added by the model"},
    }
    assert (turn.content, turn.additional_kwargs) == (QUESTION, {"mine": True}), "the caller's message was altered"


def test_a_kept_message_is_marked_too() -> None:
    result = BPORunnable(optimizer=optimizer(lambda _: "")).invoke([HumanMessage(QUESTION)])
    assert result[0].content == QUESTION
    assert result[0].additional_kwargs["bpo"]["kind"] == "kept"


@pytest.mark.parametrize("value", [QUESTION, [HumanMessage(QUESTION)]])
def test_a_kept_turn_is_put_to_a_later_optimizer_and_a_proposal_is_not_made_twice(value: Any, bpo: BPORunnable) -> None:
    kept = BPORunnable(optimizer=optimizer(lambda _: "")).invoke(value)
    later = bpo.invoke(kept)
    assert (later if isinstance(later, str) else later[0].content) == better(QUESTION)
    shadow = optimizer(shadow=True)
    BPORunnable(optimizer=shadow).invoke(BPORunnable(optimizer=shadow).invoke(value))
    assert len(engine_of(shadow).calls) == 1
    assert engine_of(bpo._ready()).calls == [[QUESTION]]


def test_an_assistant_s_chat_message_is_history() -> None:
    dialogue = [HumanMessage("Hi"), ChatMessage("Hello!", role="assistant"), HumanMessage(QUESTION)]
    assert take(dialogue).history == ("Hi", "Hello!")


def test_the_mark_of_a_str_tells_the_original(bpo: BPORunnable) -> None:
    result = bpo.invoke(QUESTION)
    assert result == better(QUESTION)
    assert result.bpo["original"] == QUESTION
    assert pickle.loads(pickle.dumps(result)).bpo == result.bpo
    assert json.dumps(result) == json.dumps(better(QUESTION))


@pytest.mark.parametrize(
    "tail",
    [
        [AIMessage("Hello!")],
        [AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]), ToolMessage("42", tool_call_id="1")],
    ],
)
def test_messages_that_do_not_end_with_the_user_s_turn_are_left_alone(bpo: BPORunnable, tail: list[Any]) -> None:
    messages = [HumanMessage(QUESTION), *tail]
    assert bpo.invoke(messages) == messages
    assert bpo.optimizer is not None
    assert engine_of(bpo.optimizer).calls == []


def test_a_system_message_behind_the_turn_does_not_hide_it(bpo: BPORunnable) -> None:
    result = bpo.invoke([HumanMessage(QUESTION), SystemMessage("Be brief.")])
    assert [message.content for message in result] == [better(QUESTION), "Be brief."]


def test_the_earlier_turns_are_the_history() -> None:
    seen: list[tuple[str, ...]] = []

    def policy(prompt: str, context: Any) -> str | None:
        seen.append(context.history)
        return None

    made = PromptOptimizer(fake_rewriter(addition), policy=policy, guards=())
    BPORunnable(optimizer=made).invoke(CONVERSATION)
    BPORunnable(optimizer=made).batch([CONVERSATION, "A lonely question?"])
    assert seen == [("Hi", "Hello!"), ("Hi", "Hello!"), ()]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_of_a_multimodal_message_only_the_last_text_part_changes(bpo: BPORunnable) -> None:
    parts = [{"type": "text", "text": "A report."}, IMAGE, {"type": "text", "text": QUESTION, "cache": 1}, IMAGE]
    (result,) = bpo.invoke([HumanMessage(parts)])
    assert result.content == [parts[0], IMAGE, {"type": "text", "text": better(QUESTION), "cache": 1}, IMAGE]
    assert parts[2]["text"] == QUESTION
    (plain,) = bpo.invoke([HumanMessage([QUESTION, IMAGE])])
    assert plain.content == [better(QUESTION), IMAGE]


def test_a_message_without_text_passes(bpo: BPORunnable) -> None:
    message = HumanMessage([IMAGE])
    assert bpo.invoke([message])[0] is message
    value = ImagePromptValue(image_url={"url": "data:image/png;base64,AAAA"})
    assert bpo.invoke(value) is value


def test_a_dict_keeps_its_other_values_and_is_not_altered() -> None:
    documents = [object()]
    value = {"question": QUESTION, "documents": documents}
    result = BPORunnable(optimizer=optimizer(), input_key="question").invoke(value)
    assert result["question"] == better(QUESTION)
    assert result["documents"] is documents
    assert value == {"question": QUESTION, "documents": documents}


def test_a_dict_may_hold_messages() -> None:
    result = BPORunnable(optimizer=optimizer(), input_key="messages").invoke({"messages": CONVERSATION, "step": 1})
    assert result["messages"][:-1] == CONVERSATION[:-1]
    assert (result["messages"][-1].content, result["step"]) == (better(QUESTION), 1)


@pytest.mark.parametrize("value", [None, 7, [], b"bytes", [1, 2], {"question": "Hi"}, object(), [None]])
@pytest.mark.parametrize("entry", ["invoke", "ainvoke", "batch", "abatch"])
async def test_bad_input_is_a_value_error_that_says_what_to_pass(bpo: BPORunnable, entry: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"Pass|input_key") as caught:
        await ENTRY_POINTS[entry](bpo, value)
    assert isinstance(caught.value, BPOError)


def test_a_missing_key_is_named_and_so_are_those_that_are_there() -> None:
    with pytest.raises(InputError, match=r"'question'.*query, k"):
        BPORunnable(optimizer=optimizer(), input_key="question").invoke({"query": "Hi", "k": 1})


def test_options_of_the_llm_are_refused_rather_than_lost(bpo: BPORunnable) -> None:
    with pytest.raises(InputError, match=r"llm\.bind"):
        (bpo | FakeListChatModel(responses=["x"])).invoke(QUESTION, stop=["."])


# -- idempotence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_second_step_changes_nothing(shape: str) -> None:
    value, _, text_of = SHAPES[shape]
    first, second = (BPORunnable(optimizer=optimizer(), input_key="question") for _ in range(2))
    once = first.invoke(value)
    twice = second.invoke(once)
    if shape != "string prompt value":  # a prompt value cannot carry a mark, only the same optimizer knows its own text
        assert text_of(twice) == better(QUESTION)
    assert text_of((first | first).invoke(value)) == better(QUESTION)


def test_an_edited_message_is_optimized_again(bpo: BPORunnable) -> None:
    (once,) = bpo.invoke([HumanMessage(QUESTION)])
    (again,) = bpo.invoke([once.model_copy(update={"content": "Another question?"})])
    assert again.content == better("Another question?")
    assert again.additional_kwargs["bpo"]["original"] == "Another question?"


# -- in chains --------------------------------------------------------------------------------------------------------


def seen_by(answers: list[Any]) -> RunnableLambda[Any, str]:
    def remember(value: Any) -> str:
        answers.append(value)
        return "answer"

    return RunnableLambda(remember)


def test_in_rag_only_the_question_is_touched(bpo: BPORunnable) -> None:
    prompt = ChatPromptTemplate.from_template("Context: {context}\nQuestion: {question}")
    searched: list[str] = []
    retriever = RunnableLambda(lambda query: searched.append(query) or "a document")
    (chain := {"question": bpo, "context": retriever} | prompt).invoke(QUESTION)
    assert chain.invoke(QUESTION).messages[0].content == f"Context: a document\nQuestion: {better(QUESTION)}"
    assert searched == [QUESTION, QUESTION]


def test_it_works_in_assign_and_after_a_prompt(bpo: BPORunnable) -> None:
    keyed = RunnablePassthrough.assign(better=(lambda value: value["question"]) | bpo)
    assert keyed.invoke({"question": QUESTION}) == {"question": QUESTION, "better": better(QUESTION)}
    chain = ChatPromptTemplate.from_messages([("system", "Be kind."), ("human", "{q}")]) | bpo
    assert [message.content for message in chain.invoke({"q": QUESTION}).messages] == ["Be kind.", better(QUESTION)]


async def test_the_tokens_of_the_llm_still_stream(bpo: BPORunnable) -> None:
    chain = bpo | FakeListChatModel(responses=["abcdef"])
    assert [chunk.content for chunk in chain.stream(QUESTION) if chunk.content] == list("abcdef")
    assert [chunk.content async for chunk in chain.astream(QUESTION) if chunk.content] == list("abcdef")


async def test_a_batch_is_one_call_of_the_engine() -> None:
    prompts = [f"What is question {index}?" for index in range(9)]
    sync, awaited = optimizer(), optimizer()
    answers: list[Any] = []
    (BPORunnable(optimizer=sync) | seen_by(answers)).batch(prompts, config={"max_concurrency": 1})
    assert answers == [better(prompt) for prompt in prompts]
    assert await BPORunnable(optimizer=awaited).abatch(prompts) == answers
    assert engine_of(sync).calls == engine_of(awaited).calls == [prompts]


async def test_an_empty_batch_is_an_empty_list(bpo: BPORunnable) -> None:
    assert bpo.batch([]) == await bpo.abatch([]) == []


async def test_32_concurrent_calls_each_get_their_own_result_back() -> None:
    bpo = BPORunnable(optimizer=optimizer(delay=0.02))
    prompts = [f"Please explain topic{index}." for index in range(32)]
    assert await asyncio.gather(*(bpo.ainvoke(prompt) for prompt in prompts)) == [better(each) for each in prompts]


# -- failures ---------------------------------------------------------------------------------------------------------


def _broken(_: str) -> str:
    raise EngineError("Out of memory.", hint="Buy some.")


FAILURES: dict[str, Callable[..., PromptOptimizer]] = {
    "raises": lambda **options: optimizer(_broken, **options),
    "hangs": lambda **options: optimizer(delay=0.5, timeout=0.05, **options),
    "returns nothing": lambda **options: optimizer(lambda _: (), **options),  # type: ignore[arg-type,return-value]
}


@pytest.mark.parametrize("entry", ["invoke", "ainvoke", "batch", "abatch"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failing_model_lets_the_original_go_on_with_the_reason(failure: str, entry: str) -> None:
    result = await ENTRY_POINTS[entry](BPORunnable(optimizer=FAILURES[failure]()), [HumanMessage(QUESTION)])
    assert result[0].content == QUESTION
    assert result[0].additional_kwargs["bpo"]["reason"].startswith("failed: ")


@pytest.mark.parametrize("entry", ["invoke", "ainvoke", "batch", "abatch"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_on_error_raise_raises(failure: str, entry: str) -> None:
    with pytest.raises(OptimizationError):
        await ENTRY_POINTS[entry](BPORunnable(optimizer=FAILURES[failure](on_error="raise")), QUESTION)


async def test_return_exceptions_puts_each_error_in_its_place() -> None:
    def fragile(prompt: str) -> str:
        return _broken(prompt) if "bad" in prompt else addition(prompt)

    bpo = BPORunnable(optimizer=optimizer(fragile, on_error="raise"))
    inputs: list[Any] = ["A good question?", None, "Another one?"]
    for results in (
        bpo.batch(inputs, return_exceptions=True),
        await bpo.abatch(inputs, return_exceptions=True),
    ):
        assert results[0] == better("A good question?")
        assert isinstance(results[1], InputError)
        assert results[2] == better("Another one?")
    results = bpo.batch(["A bad question?"], return_exceptions=True)
    assert isinstance(results[0], OptimizationError)


def test_fallbacks_and_retries_see_the_error() -> None:
    failing = BPORunnable(optimizer=optimizer(_broken, on_error="raise"))
    assert failing.with_fallbacks([RunnableLambda(lambda value: value)]).invoke(QUESTION) == QUESTION
    with pytest.raises(OptimizationError):
        failing.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke(QUESTION)
    assert failing.optimizer is not None
    assert len(engine_of(failing.optimizer).calls) == 3, "one call before the fallback, two with the retry"


async def test_the_event_loop_is_not_blocked_while_the_engine_works() -> None:
    bpo = BPORunnable(optimizer=optimizer(delay=0.5))
    longest, running = 0.0, True

    async def watch() -> None:
        nonlocal longest
        while running:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - before - 0.005)

    watchdog = asyncio.create_task(watch())
    await asyncio.sleep(0)
    await bpo.ainvoke(QUESTION)
    await bpo.abatch(["One question?", "Two questions?"])
    await _collect(bpo.astream("A third question?"))
    running = False
    await watchdog
    assert longest < 0.25, f"the loop stood still for {longest * 1000:.0f} ms; a call that blocks it takes 500"


# -- tracing ----------------------------------------------------------------------------------------------------------


class Recorder(BaseCallbackHandler):
    """Keeps what callbacks tell."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.tags: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.names: list[str] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.events.append(("start", inputs))
        self.tags += kwargs.get("tags") or []
        self.metadata |= kwargs.get("metadata") or {}
        self.names.append(kwargs.get("name", ""))

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.events.append(("end", outputs))

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(("error", error))


class Tracer(BaseTracer):
    """Keeps whole run trees."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


@pytest.mark.parametrize("entry", ["invoke", "ainvoke", "batch", "abatch", "stream", "astream"])
async def test_callbacks_tags_metadata_and_name_reach_the_run(entry: str) -> None:
    recorder = Recorder()
    bpo = BPORunnable(optimizer=optimizer()).with_config(
        callbacks=[recorder], tags=["mine"], metadata={"user": "ann"}, run_name="improve"
    )
    await ENTRY_POINTS[entry](bpo, QUESTION)  # type: ignore[arg-type]
    assert recorder.events == [("start", QUESTION), ("end", better(QUESTION))]
    assert recorder.events[1][1].bpo["kind"] == "augmented"
    assert recorder.tags == ["mine"]
    assert recorder.metadata["user"] == "ann"
    assert recorder.names == ["improve"]


@pytest.mark.parametrize("entry", ["invoke", "ainvoke", "batch", "abatch"])
async def test_the_trace_shows_original_result_kind_and_reason_in_one_child_run(entry: str) -> None:
    tracer = Tracer()
    chain = (BPORunnable(optimizer=optimizer()) | seen_by([])).with_config(callbacks=[tracer])
    await ENTRY_POINTS[entry](chain, QUESTION)  # type: ignore[arg-type]
    (root,) = tracer.runs
    assert [run.name for run in root.child_runs] == ["BPORunnable", "remember"]
    run = root.child_runs[0]
    assert run.inputs == {"input": QUESTION}
    assert run.outputs == {"output": better(QUESTION)}
    assert run.metadata["bpo_kind"] == "augmented"
    assert run.metadata["bpo_reason"] == "added by the model"
    assert run.metadata["bpo_rewriter"].startswith("fake:augment")


def test_the_metadata_holds_no_piece_of_the_prompt() -> None:
    from bpo_integrations.result import Violation

    tracer = Tracer()
    made = PromptOptimizer(
        fake_rewriter(addition),
        policy=lambda prompt, context: None,
        guards=[lambda original, candidate: Violation("numbers", "SECRET")],
    )
    (message,) = BPORunnable(optimizer=made).invoke([HumanMessage(QUESTION)], {"callbacks": [tracer]})
    assert "SECRET" in message.additional_kwargs["bpo"]["reason"]
    assert tracer.runs[0].metadata["bpo_reason"] == "guard numbers"


def test_a_bad_input_closes_its_run_with_the_error() -> None:
    recorder = Recorder()
    with pytest.raises(InputError):
        BPORunnable(optimizer=optimizer()).invoke(None, {"callbacks": [recorder]})  # type: ignore[arg-type]
    assert [name for name, _ in recorder.events] == ["start", "error"]


# -- configuration ----------------------------------------------------------------------------------------------------


def test_options_reach_the_optimizer(specs: list[tuple[str, str | None]]) -> None:
    bpo = BPORunnable(
        model="hf:THUDM/BPO", mode="rewrite", decoding="stable", n=2, passes=3, timeout=5, on_error="raise"
    )
    made = bpo._ready()
    assert specs == [("hf:THUDM/BPO", "rewrite")]
    assert (made.decoding, made.passes, made.timeout, made.on_error) == (
        Decoding(temperature=0.6, top_p=0.9, n=2),
        3,
        5.0,
        "raise",
    )


def test_what_is_built_of_the_same_options_loads_one_model(specs: list[tuple[str, str | None]]) -> None:
    first, second = BPORunnable(), BPORunnable(input_key="question")
    assert first._ready() is second._ready()
    assert first.invoke(QUESTION) == pickle.loads(pickle.dumps(first)).invoke(QUESTION) == better(QUESTION)
    assert first.model_copy(deep=True)._ready() is first._ready()
    assert specs == [("embedded", None)]


def test_a_forked_child_gets_an_optimizer_of_its_own(
    specs: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bpo = BPORunnable()
    parents = bpo._ready()
    monkeypatch.setattr("bpo_integrations.langchain.runnable.os.getpid", lambda: -1)
    assert bpo._ready() is not parents


def test_configurable_fields_choose_at_run_time_without_loading_again(specs: list[tuple[str, str | None]]) -> None:
    chain = BPORunnable().configurable_fields(mode=ConfigurableField(id="bpo_mode")) | RunnableLambda(str)
    for _ in range(3):
        assert chain.invoke(QUESTION) == better(QUESTION)
        assert chain.with_config(configurable={"bpo_mode": "rewrite"}).invoke(QUESTION) == f"{QUESTION} REWRITTEN"
    assert specs == [("embedded", None), ("embedded", "rewrite")]


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_dumpd_and_load_keep_the_options(specs: list[tuple[str, str | None]]) -> None:
    bpo = BPORunnable(
        decoding=Decoding(temperature=0.7, seed=3, stop=("x",)), protect=("BPO",), mode="rewrite", input_key="q"
    )
    stored = json.loads(json.dumps(dumpd(bpo)))
    again = load(stored, valid_namespaces=["bpo_integrations"], allowed_objects=[BPORunnable])
    assert again == bpo
    assert again._ready() is bpo._ready()


def test_a_runnable_around_an_object_is_not_serialized(bpo: BPORunnable, specs: list[tuple[str, str | None]]) -> None:
    assert dumpd(bpo)["type"] == "not_implemented"
    assert dumpd(BPORunnable(protect=(re.compile("x"),), mode="rewrite"))["type"] == "not_implemented"


@pytest.mark.parametrize(
    "options",
    [
        {"model": "nonsense"},
        {"modle": "embedded"},
        {"on_error": "ignore"},
        {"timeout": -1.0},
        {"passes": 9, "mode": "rewrite"},
        {"decoding": "wild"},
        {"engine_options": {"threads": []}},
        {"optimizer": "embedded"},
    ],
)
def test_a_wrong_configuration_raises_when_built(specs: list[tuple[str, str | None]], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        BPORunnable(**options)


def test_an_optimizer_and_options_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="shadow"):
        BPORunnable(optimizer=optimizer(), shadow=True)


def test_shadow_changes_nothing_and_shows_the_proposal() -> None:
    (message,) = BPORunnable(optimizer=optimizer(shadow=True)).invoke([HumanMessage(QUESTION)])
    assert message.content == QUESTION
    assert message.additional_kwargs["bpo"]["proposal"] == better(QUESTION)


def test_the_schemas_are_those_of_a_runnable(bpo: BPORunnable) -> None:
    assert bpo.get_name() == "BPORunnable"
    assert bpo.get_input_jsonschema()["title"] == "BPORunnableInput"
    graph = (bpo | FakeListChatModel(responses=["x"])).get_graph()
    assert [node.name for node in graph.nodes.values()][1] == "BPORunnable"
