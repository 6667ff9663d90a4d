"""The contract of a runnable, for `BPORunnable` in each set-up: every entry point tells the same story.

LangChain has no standard suite for runnables; this is ours. It also runs at the lowest and the newest supported
versions of langchain-core, so it uses nothing that only some of them have.
"""

from __future__ import annotations

import operator
import pickle
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Annotated, Any, TypedDict

import pytest
from fakes import FakeEngine, fake_rewriter

pytest.importorskip("langchain_core", reason="the langchain extra is not installed")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import ConfigurableField, RunnableConfig, RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.langchain import LangChainTracer
from langchain_core.tracers.schemas import Run
from langsmith import Client

from bpo_integrations import PromptOptimizer
from bpo_integrations.errors import EngineError, InputError, OptimizationError
from bpo_integrations.langchain import BPORunnable
from bpo_integrations.langchain import runnable as runnable_module

QUESTION = "How do vaccines train the immune system?"
ADDITION = "Cover memory cells."
BETTER = f"{QUESTION} {ADDITION}"


KIND_OF = {"augment": "augmented", "rewrite": "rewritten"}


def _fail(_: str) -> str:
    raise EngineError("Out of memory.", hint="Buy some.")


SETUPS: dict[str, Callable[..., BPORunnable]] = {
    "a ready optimizer": lambda: BPORunnable(optimizer=PromptOptimizer(fake_rewriter(lambda _: ADDITION))),
    "a rewriter": lambda: BPORunnable(model=fake_rewriter(lambda _: ADDITION)),
    "an LLM's object": lambda: BPORunnable(model=FakeListChatModel(responses=[ADDITION])),
    "a rewrite": lambda: BPORunnable(model=fake_rewriter(lambda _: BETTER, mode="rewrite"), mode="rewrite"),
}


@pytest.fixture(params=SETUPS)
def bpo(request: pytest.FixtureRequest) -> BPORunnable:
    return SETUPS[request.param]()


# -- every entry point -------------------------------------------------------------------------------------------------

Entry = Callable[[Any, Any, RunnableConfig], Awaitable[Any]]


async def _now(value: Any) -> Any:
    return value


async def _only(items: Awaitable[list[Any]]) -> Any:
    (item,) = await items
    return item


async def _gather(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def _async_one(value: Any) -> AsyncIterator[Any]:
    yield value


async def _events(bpo: Any, value: Any, config: RunnableConfig) -> Any:
    events = await _gather(bpo.astream_events(value, config, version="v2"))
    assert (events[0]["event"], events[-1]["event"]) == ("on_chain_start", "on_chain_end")
    return events[-1]["data"]["output"]


async def _completed(bpo: Any, value: Any, config: RunnableConfig) -> Any:
    ((index, output),) = await _gather(bpo.abatch_as_completed([value], config))
    assert index == 0
    return output


ENTRIES: dict[str, Entry] = {
    "invoke": lambda bpo, value, config: _now(bpo.invoke(value, config)),
    "ainvoke": lambda bpo, value, config: bpo.ainvoke(value, config),
    "batch": lambda bpo, value, config: _only(_now(bpo.batch([value], config))),
    "abatch": lambda bpo, value, config: _only(bpo.abatch([value], config)),
    "stream": lambda bpo, value, config: _only(_now(list(bpo.stream(value, config)))),
    "astream": lambda bpo, value, config: _only(_gather(bpo.astream(value, config))),
    "astream_events": _events,
    "transform": lambda bpo, value, config: _only(_now(list(bpo.transform(iter([value]), config)))),
    "atransform": lambda bpo, value, config: _only(_gather(bpo.atransform(_async_one(value), config))),
    "batch_as_completed": lambda bpo, value, config: _now(next(iter(bpo.batch_as_completed([value], config)))[1]),
    "abatch_as_completed": _completed,
}

every_entry = pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)


class Tracer(BaseTracer):
    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.runs.append(run)


class Recorder(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        about = (kwargs.get("name"), tuple(kwargs.get("tags") or ()), dict(kwargs.get("metadata") or {}))
        self.events.append(("start", inputs, *about))

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.events.append(("end", outputs))

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(("error", type(error)))


@every_entry
async def test_every_entry_point_gives_the_same_result(bpo: BPORunnable, entry: Entry) -> None:
    result = await entry(bpo, QUESTION, {})
    assert result == BETTER
    assert (result.bpo["original"], result.bpo["kind"]) == (QUESTION, KIND_OF[bpo._ready().mode])


@every_entry
async def test_callbacks_see_one_start_and_one_end_with_name_tags_and_metadata(bpo: BPORunnable, entry: Entry) -> None:
    recorder = Recorder()
    made = bpo.with_config(run_name="improve", tags=["ours"], metadata={"team": "a"})
    await entry(made, QUESTION, {"callbacks": [recorder], "tags": ["mine"], "metadata": {"user": "ann"}})
    (started, *about), ended = recorder.events
    assert (started, about[0], about[1]) == ("start", QUESTION, "improve")
    assert set(about[2]) == {"mine", "ours"}
    assert about[3].items() >= {"user": "ann", "team": "a"}.items()
    assert ended == ("end", BETTER)


@every_entry
async def test_the_run_tree_is_the_same_and_holds_the_prompts_only_in_inputs_and_outputs(
    bpo: BPORunnable, entry: Entry
) -> None:
    tracer = Tracer()
    await entry(RunnableLambda(lambda value: value) | bpo, QUESTION, {"callbacks": [tracer]})
    (root,) = tracer.runs
    run = root.child_runs[-1]
    assert (run.name, run.run_type, run.error) == ("BPORunnable", "chain", None)
    assert (run.inputs, run.outputs) == ({"input": QUESTION}, {"output": BETTER})
    assert run.metadata["bpo_kind"] == KIND_OF[bpo._ready().mode]
    assert run.metadata["bpo_reason"].endswith("by the model")
    assert run.metadata["bpo_rewriter"] == bpo._ready().rewriter.id
    assert run.metadata["bpo_seconds"] >= 0
    assert "vaccines" not in str(run.metadata)


async def test_an_llm_as_optimizer_is_a_run_inside_ours() -> None:
    for entry in (ENTRIES["invoke"], ENTRIES["ainvoke"], ENTRIES["batch"], ENTRIES["abatch"]):
        tracer = Tracer()
        await entry(SETUPS["an LLM's object"](), QUESTION, {"callbacks": [tracer]})
        (root,) = tracer.runs
        assert [run.run_type for run in root.child_runs] in (["llm"], ["chat_model"])


# -- errors ------------------------------------------------------------------------------------------------------------


@every_entry
async def test_a_bad_input_raises_the_same_error_everywhere_and_ends_its_run(bpo: BPORunnable, entry: Entry) -> None:
    recorder = Recorder()
    with pytest.raises(InputError, match="no prompt"):
        await entry(bpo, 17, {"callbacks": [recorder]})
    assert [event[0] for event in recorder.events] == ["start", "error"]


@every_entry
async def test_a_failing_model_raises_the_same_error_everywhere_where_that_is_asked_for(entry: Entry) -> None:
    recorder = Recorder()
    failing = BPORunnable(model=fake_rewriter(_fail), on_error="raise")
    with pytest.raises(OptimizationError, match="Out of memory"):
        await entry(failing, QUESTION, {"callbacks": [recorder]})
    assert [event[0] for event in recorder.events] == ["start", "error"]


@every_entry
async def test_a_failing_model_lets_the_original_go_on_otherwise(entry: Entry) -> None:
    result = await entry(BPORunnable(model=fake_rewriter(_fail)), QUESTION, {})
    assert result == QUESTION
    assert result.bpo["reason"].startswith("failed: EngineError")


async def test_return_exceptions_puts_each_error_in_its_place_in_every_batch(bpo: BPORunnable) -> None:
    inputs: list[Any] = [QUESTION, 17]
    found = [
        bpo.batch(inputs, return_exceptions=True),
        await bpo.abatch(inputs, return_exceptions=True),
        [output for _, output in sorted(bpo.batch_as_completed(inputs, return_exceptions=True))],
        [output for _, output in sorted(await _gather(bpo.abatch_as_completed(inputs, return_exceptions=True)))],
    ]
    for results in found:
        assert results[0] == BETTER
        assert isinstance(results[1], InputError)


def test_each_input_of_a_batch_has_its_own_config_and_run(bpo: BPORunnable) -> None:
    tracers = [Tracer(), Tracer()]
    bpo.batch([QUESTION, QUESTION], [{"callbacks": [each], "run_name": f"n{i}"} for i, each in enumerate(tracers)])
    assert [(len(each.runs), each.runs[0].name) for each in tracers] == [(1, "n0"), (1, "n1")]


# -- what comes with every runnable ------------------------------------------------------------------------------------


async def test_retry_fallbacks_map_and_pipes_keep_the_result(bpo: BPORunnable) -> None:
    assert bpo.with_retry().invoke(QUESTION) == BETTER
    assert await bpo.with_fallbacks([RunnableLambda(lambda _: "?")]).ainvoke(QUESTION) == BETTER
    assert bpo.map().invoke([QUESTION, QUESTION]) == [BETTER, BETTER]
    assert (bpo | RunnableLambda(len)).invoke(QUESTION) == len(BETTER)


def test_a_retry_tries_again_and_succeeds() -> None:
    answers = iter([EngineError("Gone.", hint="Wait."), ADDITION])

    def flaky(_: str) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    bpo = BPORunnable(model=fake_rewriter(flaky), on_error="raise")
    assert bpo.with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke(QUESTION) == BETTER


def test_configurable_fields_share_one_optimizer_for_each_choice() -> None:
    rewriter = fake_rewriter(lambda _: ADDITION)
    chain = BPORunnable(model=rewriter).configurable_fields(shadow=ConfigurableField(id="bpo_shadow"))
    shadow = chain.with_config(configurable={"bpo_shadow": True})
    for _ in range(3):
        assert chain.invoke(QUESTION) == BETTER
        assert shadow.invoke(QUESTION) == QUESTION
    assert isinstance(rewriter.engine, FakeEngine)
    assert len(rewriter.engine.calls) == 2, "each choice has its cache, which lives on between the calls"


def test_a_changed_field_counts_at_the_next_call() -> None:
    bpo = BPORunnable(model=fake_rewriter(lambda _: ADDITION))
    assert bpo.invoke(QUESTION) == BETTER
    shadow = bpo.model_copy(update={"shadow": True})
    assert (shadow.invoke(QUESTION), bpo.invoke(QUESTION)) == (QUESTION, BETTER)
    bpo.shadow = True
    assert bpo.invoke(QUESTION) == QUESTION


def test_options_of_an_engine_reach_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []

    def load(spec: Any, *, mode: Any = None, **options: Any) -> Any:
        seen.append((spec, options))
        return fake_rewriter(lambda _: ADDITION)

    monkeypatch.setattr("bpo_integrations.optimizer.load_rewriter", load)
    runnable_module._shared_optimizer.cache_clear()
    try:
        BPORunnable(model="server:mine", engine_options={"base_url": "http://127.0.0.1:9/v1"})
    finally:
        runnable_module._shared_optimizer.cache_clear()
    assert seen == [("server:mine", {"base_url": "http://127.0.0.1:9/v1"})]


def test_around_an_object_it_is_not_serialized_and_shows_no_secret(bpo: BPORunnable) -> None:
    assert dumpd(bpo)["type"] == "not_implemented"


def test_around_an_llm_it_is_pickled_with_the_llm() -> None:
    bpo = SETUPS["an LLM's object"]()
    assert bpo.invoke(QUESTION) == BETTER
    assert pickle.loads(pickle.dumps(bpo)).invoke(QUESTION) == BETTER


# -- as a node of a graph ----------------------------------------------------------------------------------------------


def test_a_state_gives_the_update_of_its_messages_alone(bpo: BPORunnable) -> None:
    earlier = [HumanMessage("Hi", id="1"), AIMessage("Hello!", id="2")]
    state = {"messages": [*earlier, HumanMessage(QUESTION, id="3")], "log": ["x"]}
    bpo = BPORunnable(optimizer=PromptOptimizer(bpo._ready().rewriter, policy=lambda prompt, context: None))
    update = bpo.invoke(state)
    assert set(update) == {"messages"}
    assert update["messages"][:2] == earlier
    assert (update["messages"][2].text, update["messages"][2].id) == (BETTER, "3")
    whole = BPORunnable(optimizer=bpo.optimizer, input_key="messages").invoke(state)
    assert (whole["log"], whole["messages"][2].text) == (["x"], BETTER)


def test_a_state_whose_messages_do_not_end_with_the_user_s_turn_comes_back_as_it_is(bpo: BPORunnable) -> None:
    messages = [HumanMessage(QUESTION, id="1"), AIMessage("Hello!", id="2")]
    assert bpo.invoke({"messages": messages}) == {"messages": messages}


@dataclass
class DataState:
    messages: list[Any]


def test_a_state_may_be_an_object_or_hold_one_message(bpo: BPORunnable) -> None:
    assert bpo.invoke(DataState([HumanMessage(QUESTION)]))["messages"][0].text == BETTER  # type: ignore[arg-type]
    assert bpo.invoke({"messages": QUESTION})["messages"][0].text == BETTER


async def test_in_a_real_graph_the_node_replaces_the_turn_and_leaves_the_other_keys(bpo: BPORunnable) -> None:
    graphs = pytest.importorskip("langgraph.graph", reason="the agents extra is not installed")
    seen: list[list[Any]] = []

    fields = {"messages": Annotated[list[Any], graphs.add_messages], "log": Annotated[list[str], operator.add]}
    schema = TypedDict("State", fields)  # type: ignore[misc]  # the class form would look for `graphs` at module level

    def answer(state: Any) -> dict[str, Any]:
        seen.append(state["messages"])
        return {"messages": [AIMessage("Well.")], "log": ["answered"]}

    graph = graphs.StateGraph(schema).add_node("bpo", bpo).add_node("llm", answer)
    app = graph.add_edge(graphs.START, "bpo").add_edge("bpo", "llm").compile()
    value = {"messages": [HumanMessage(QUESTION)], "log": ["began"]}
    for state in (app.invoke(value), await app.ainvoke(value)):
        assert [message.text for message in state["messages"]] == [BETTER, "Well."]
        assert state["messages"][0].additional_kwargs["bpo"]["original"] == QUESTION
        assert state["log"] == ["began", "answered"]
    assert [len(messages) for messages in seen] == [1, 1]
    streamed = [chunk.text for chunk, _ in app.stream(value, stream_mode="messages")]
    assert streamed == ["Well."], "neither the improved turn nor an optimizing LLM's tokens"


# -- LangSmith ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def langsmith() -> Iterator[tuple[str, list[str]]]:
    """A server that takes what LangSmith's client sends; its address, and the bodies."""
    bodies: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_PATCH = do_GET = _take  # noqa: N815

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("hidden", [False, True])
def test_what_langsmith_is_told_to_hide_is_hidden(langsmith: tuple[str, list[str]], hidden: bool) -> None:
    address, bodies = langsmith
    client = Client(
        api_url=address, api_key="none", hide_inputs=hidden, hide_outputs=hidden, auto_batch_tracing=False, info={}
    )
    tracer = LangChainTracer(client=client)
    BPORunnable(model=fake_rewriter(lambda _: ADDITION)).invoke([HumanMessage(QUESTION)], {"callbacks": [tracer]})
    tracer.wait_for_futures()
    sent = "".join(bodies)
    assert "BPORunnable" in sent
    assert "bpo_kind" in sent
    assert ("vaccines" in sent, "memory cells" in sent) == (not hidden, not hidden)
