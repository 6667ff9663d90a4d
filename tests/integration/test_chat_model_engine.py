"""General LLMs as optimizers: real LangChain and LlamaIndex objects, with scripted answers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import pytest

from bpo_integrations.decoding import GREEDY, STABLE, Decoding
from bpo_integrations.engines.base import Engine, Request
from bpo_integrations.engines.chat_model import ChatModelEngine, load_chat_model
from bpo_integrations.errors import (
    ConfigurationError,
    EngineClosedError,
    EngineError,
    EngineTimeoutError,
    MissingExtraError,
)
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.rewriter import load_rewriter

pytest.importorskip("langchain_core")
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda

ADDITION = "Explain why, step by step."
PROMPT = "How do tides come about?"


class ScriptedChat(BaseChatModel):
    """Answers by a function of the last message; remembers what it was asked, and as what it was set up."""

    answer: Callable[[str], Any] = lambda text: ADDITION
    asked: list[tuple[list[BaseMessage], dict[str, Any]]]
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _result(self, messages: list[BaseMessage], kwargs: dict[str, Any]) -> ChatResult:
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": self.seed, **kwargs}
        self.asked.append((messages, settings))
        answer = self.answer(str(messages[-1].content))
        message = answer if isinstance(answer, AIMessage) else AIMessage(answer)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return self._result(messages, kwargs)

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return self._result(messages, kwargs)


def scripted(answer: Callable[[str], Any] = lambda text: ADDITION, **fields: Any) -> ScriptedChat:
    return ScriptedChat(answer=answer, asked=[], **fields)


def asks(*texts: str) -> list[Request]:
    return [Request(({"role": "system", "content": "S"}, {"role": "user", "content": text})) for text in texts]


def llama_index_llm(answer: Callable[[str], str], seconds: float = 0.0) -> Any:
    """Return a LlamaIndex LLM whose async half is its sync half, as local ones are; it remembers its threads."""
    pytest.importorskip("llama_index.core")
    from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata

    class Scripted(CustomLLM):
        threads: list[str]
        temperature: float = 0.1

        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(model_name="scripted")

        def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
            self.threads.append(threading.current_thread().name)
            time.sleep(seconds)
            return CompletionResponse(text=answer(prompt), raw={"finish_reason": "stop"})

        def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
            raise NotImplementedError

    return Scripted(threads=[])


# -- end to end -------------------------------------------------------------------------------------------------------


def test_a_langchain_model_augments_by_default() -> None:
    llm = scripted()
    result = PromptOptimizer(llm).optimize(PROMPT)
    assert (result.kind, result.text) == ("augmented", f"{PROMPT} {ADDITION}")
    ((system, user), _) = llm.asked[0]
    assert "NOTHING" in str(system.content)
    assert f"<user_prompt>\n{PROMPT}\n</user_prompt>" in str(user.content)


def test_the_word_nothing_leaves_the_prompt_alone() -> None:
    result = PromptOptimizer(scripted(lambda text: "<think>Fine.</think>\nNOTHING")).optimize(PROMPT)
    assert (result.kind, result.reason) == ("kept", "model: nothing to add")


def test_rewrite_must_be_asked_for_and_is_unwrapped() -> None:
    better = "How do tides come about, and why are there two a day?"
    optimizer = PromptOptimizer(scripted(lambda text: f'Improved prompt: "{better}"'), mode="rewrite")
    assert optimizer.optimize(PROMPT).text == better


async def test_the_async_twin_gives_the_same() -> None:
    assert (await PromptOptimizer(scripted()).aoptimize(PROMPT)).text == PromptOptimizer(scripted()).optimize(
        PROMPT
    ).text


@pytest.mark.parametrize(
    ("prompt", "addition"),
    [
        ("Wie entstehen Ebbe und Flut?", "Erkläre auch, warum es sie zweimal am Tag gibt."),
        ("¿Cómo se forman las mareas?", "Explica también por qué ocurren dos veces al día."),
        ("潮汐是怎么形成的？", "请说明为什么一天有两次。"),
    ],
)
def test_any_language_is_improved(prompt: str, addition: str) -> None:
    result = PromptOptimizer(scripted(lambda text: addition)).optimize(prompt)
    assert result.kind == "augmented", result.reason


def test_the_dialogue_reaches_the_model() -> None:
    llm = scripted()
    load_chat_model(llm, mode="rewrite").candidates(["And in Germany?"], None, [["Who rules France?", "A president."]])
    asked = str(llm.asked[0][0][-1].content)
    assert asked.index("Who rules France?") < asked.index("A president.") < asked.index("And in Germany?")


def test_a_llama_index_llm_works_sync_and_async() -> None:
    llm = llama_index_llm(lambda prompt: ADDITION)
    optimizer = PromptOptimizer(llm)
    assert optimizer.optimize(PROMPT).text == f"{PROMPT} {ADDITION}"
    assert asyncio.run(optimizer.aoptimize(PROMPT + " Really?")).kind == "augmented"
    assert "Scripted" in optimizer.rewriter.id


def test_the_mock_llm_of_llama_index_does_no_harm() -> None:
    core = pytest.importorskip("llama_index.core.llms")
    result = PromptOptimizer(core.MockLLM()).optimize(PROMPT)
    assert result.text == PROMPT
    assert result.reason.startswith("guard ")


def test_a_generic_fake_chat_model_works() -> None:
    llm = GenericFakeChatModel(messages=iter([AIMessage(ADDITION)]))
    assert PromptOptimizer(llm).optimize(PROMPT).kind == "augmented"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda llm: llm.bind(user="me"),
        lambda llm: llm.with_config(tags=["mine"]),
        lambda llm: llm.with_retry(stop_after_attempt=2),
        lambda llm: llm.bind(user="me").with_config(tags=["mine"]),
        lambda llm: llm.with_fallbacks([scripted()]),
    ],
)
def test_a_model_inside_a_binding_works(wrap: Callable[[Any], Any]) -> None:
    llm = scripted()
    rewriter = load_rewriter(wrap(llm))
    assert rewriter.candidates([PROMPT], Decoding(0.5))[0][0].text == ADDITION
    assert llm.asked[0][1]["temperature"] == 0.5
    assert "ScriptedChat" in rewriter.id


@pytest.mark.model
def test_a_weak_llm_that_answers_the_prompt_does_no_harm() -> None:
    from bpo_integrations.langchain import ChatEmbedded

    result = PromptOptimizer(ChatEmbedded(max_tokens=12)).optimize(
        "What are the most effective ways to deal with stress?"
    )
    assert result.text == result.original
    assert result.reason.startswith("guard "), result.reason


# -- what is passed ---------------------------------------------------------------------------------------------------


def test_greedy_passes_nothing_but_a_bound_and_the_owner_s_bound_stays() -> None:
    for own, passed in ((None, 256), (99, 99)):
        llm = scripted(max_tokens=own)
        ChatModelEngine(llm).generate(asks("x"), Decoding(stop=("END",)))
        assert llm.asked[0][1] == {"temperature": None, "max_tokens": passed, "seed": None}
        assert llm.max_tokens == own


def test_a_temperature_is_set_where_the_decoding_has_one_and_the_owner_s_object_stays_as_it_was() -> None:
    llm = scripted(temperature=0.0)
    rows = ChatModelEngine(llm).generate(asks("x"), Decoding(0.6, 0.9, n=3, seed=4))
    assert len(rows[0]) == 3
    assert sorted(settings["seed"] for _, settings in llm.asked) == [4, 5, 6]
    assert {settings["temperature"] for _, settings in llm.asked} == {0.6}
    assert (llm.temperature, llm.seed) == (0.0, None)


def test_a_model_without_such_settings_samples_as_it_does() -> None:
    llm = GenericFakeChatModel(messages=iter([AIMessage("a"), AIMessage("b")]))
    (row,) = ChatModelEngine(llm, concurrency=1).generate(asks("x"), Decoding(0.6, n=2, seed=1))
    assert {candidate.text for candidate in row} == {"a", "b"}


def test_stop_strings_cut_the_answer_but_not_the_thoughts() -> None:
    engine = ChatModelEngine(scripted(lambda text: "<think>a\nb</think>one\ntwo"))
    (candidate,) = engine.generate(asks("x"), Decoding(stop=("\n",)))[0]
    assert (candidate.text, candidate.finish_reason) == ("one", "stop")


@pytest.mark.parametrize(
    ("told", "finish"),
    [
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": "length"}, "length"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"done_reason": "length"}, "length"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({}, "stop"),
    ],
)
def test_an_answer_that_was_cut_off_counts_as_unfinished(told: dict[str, str], finish: str) -> None:
    usage = {"input_tokens": 1, "output_tokens": 7, "total_tokens": 8}
    message = AIMessage("one", response_metadata=told, usage_metadata=usage)
    (candidate,) = ChatModelEngine(scripted(lambda text: message)).generate(asks("x"), GREEDY)[0]
    assert (candidate.finish_reason, candidate.tokens) == (finish, 7)


def test_of_content_blocks_only_the_text_counts() -> None:
    message = AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "one"}])
    assert ChatModelEngine(scripted(lambda text: message)).generate(asks("x"), GREEDY)[0][0].text == "one"


# -- runs and streams -------------------------------------------------------------------------------------------------


class Runs(BaseCallbackHandler):
    """Notes the runs: name, tags, and the parent's id."""

    run_inline = True

    def __init__(self) -> None:
        self.chains: dict[Any, str] = {}
        self.models: list[tuple[Any, list[str], dict[str, Any]]] = []

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.chains[run_id] = kwargs.get("name") or ""

    def on_chat_model_start(self, serialized: Any, messages: Any, *, parent_run_id: Any, **kwargs: Any) -> None:
        self.models.append((parent_run_id, kwargs["tags"], kwargs["metadata"]))


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
async def test_its_runs_nest_below_the_caller_s_and_are_tagged(way: str) -> None:
    optimizer = PromptOptimizer(scripted(), cache=0)

    async def step(prompt: str) -> str:
        return (await optimizer.aoptimize(prompt)).text

    runnable = RunnableLambda(lambda prompt: optimizer.optimize(prompt).text, step, name="step")
    runs = Runs()
    config: Any = {"callbacks": [runs], "tags": ["mine"], "metadata": {"user": "u"}}
    prompts = [PROMPT, "Why is the sky blue?"]
    if way == "invoke":
        runnable.invoke(PROMPT, config)
    elif way == "ainvoke":
        await runnable.ainvoke(PROMPT, config)
    elif way == "batch":
        runnable.batch(prompts, config)
    else:
        await runnable.abatch(prompts, config)
    assert len(runs.models) == (2 if "batch" in way else 1)
    for parent, tags, metadata in runs.models:
        assert runs.chains[parent] == "step"
        assert {"bpo", "nostream", "mine"} <= set(tags)
        assert metadata["user"] == "u"


def test_a_batch_of_prompts_nests_every_call() -> None:
    optimizer = PromptOptimizer(scripted(), cache=0)
    prompts = [PROMPT, "Why is the sky blue?", "How do bees find home?"]
    runs = Runs()
    RunnableLambda(lambda _: [result.text for result in optimizer.optimize_batch(prompts)], name="step").invoke(
        "", {"callbacks": [runs]}
    )
    assert [runs.chains[parent] for parent, *_ in runs.models] == ["step"] * 3


async def test_its_tokens_stay_out_of_a_graph_s_stream() -> None:
    graph_module = pytest.importorskip("langgraph.graph")
    optimizer = PromptOptimizer(GenericFakeChatModel(messages=iter([AIMessage(ADDITION)] * 2)), cache=0)
    llm = GenericFakeChatModel(messages=iter([AIMessage("the answer"), AIMessage("the answer")]))
    seen: list[str] = []

    class State(TypedDict):
        text: str

    def sync(state: State) -> State:
        seen.append(optimizer.optimize(state["text"]).text)
        return {"text": str(llm.invoke(seen[-1]).content)}

    async def step(state: State) -> State:
        seen.append((await optimizer.aoptimize(state["text"])).text)
        return {"text": str((await llm.ainvoke(seen[-1])).content)}

    graph = graph_module.StateGraph(State)
    graph.add_node("step", RunnableLambda(sync, step)).add_edge("__start__", "step")
    compiled = graph.compile()
    one = [chunk.content for chunk, _ in compiled.stream({"text": PROMPT}, stream_mode="messages")]
    two = [chunk.content async for chunk, _ in compiled.astream({"text": PROMPT}, stream_mode="messages")]
    assert seen == [f"{PROMPT} {ADDITION}"] * 2
    assert "".join(one) == "".join(two) == "the answer"


def test_its_runs_carry_langchain_s_mark_of_internal_calls() -> None:
    internal = pytest.importorskip("langchain.agents.middleware.internal_call_transformer")
    runs = Runs()
    engine = ChatModelEngine(scripted())
    RunnableLambda(lambda _: engine.generate(asks("x"), GREEDY)[0][0].text).invoke("", {"callbacks": [runs]})
    assert internal.internal_call_metadata().items() <= runs.models[0][2].items()


# -- failures ---------------------------------------------------------------------------------------------------------


class RateLimitError(Exception):
    status_code = 429


class NotFoundError(Exception):
    status_code = 404


class ReadTimeoutError(Exception):
    pass


class ServiceUnavailable(Exception):  # noqa: N818
    def __init__(self) -> None:
        self.response = type("Response", (), {"status_code": 503})()


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (RateLimitError("the prompt"), EngineError, True),
        (ServiceUnavailable(), EngineError, True),
        (ConnectionError("the prompt"), EngineError, True),
        (ReadTimeoutError("the prompt"), EngineTimeoutError, True),
        (NotFoundError("the prompt"), EngineError, False),
        (ValueError("the prompt"), EngineError, False),
    ],
)
async def test_a_failure_says_whether_it_may_pass_and_not_what_the_prompt_was(
    error: Exception, kind: type[EngineError], retryable: bool
) -> None:
    def fail(text: str) -> str:
        raise error

    engine = ChatModelEngine(scripted(fail))
    with pytest.raises(kind) as caught:
        engine.generate(asks("x"), GREEDY)
    with pytest.raises(kind):
        await engine.agenerate(asks("x"), GREEDY)
    assert caught.value.retryable is retryable
    assert caught.value.__cause__ is error
    assert "the prompt" not in str(caught.value)


async def test_one_failing_row_leaves_the_others_unharmed(caplog: pytest.LogCaptureFixture) -> None:
    def answer(text: str) -> str:
        if text == "bad":
            raise RateLimitError
        return text.upper()

    engine = ChatModelEngine(scripted(answer))
    with caplog.at_level(logging.WARNING):
        rows = engine.generate(asks("a", "bad", "c"), GREEDY)
    assert [[candidate.text for candidate in row] for row in rows] == [["A"], [], ["C"]]
    assert await engine.agenerate(asks("a", "bad", "c"), GREEDY) == rows
    assert "1 of 3 requests failed" in caplog.text


def test_of_n_calls_those_that_succeed_count() -> None:
    numbers = iter(range(3))

    def answer(text: str) -> str:
        if next(numbers) == 1:
            raise RateLimitError
        return "ok"

    (row,) = ChatModelEngine(scripted(answer), concurrency=1).generate(asks("x"), Decoding(0.5, n=3))
    assert len(row) == 2


def test_in_the_pipeline_a_failing_llm_lets_the_original_go_on() -> None:
    def fail(text: str) -> str:
        raise RateLimitError

    result = PromptOptimizer(scripted(fail)).optimize(PROMPT)
    assert result.text == PROMPT
    assert result.reason.startswith("failed: EngineError")


# -- concurrency ------------------------------------------------------------------------------------------------------


class Gauge:
    """Counts who is inside at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, text: str) -> str:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)
        with self._lock:
            self.now -= 1
        return text


def test_no_more_than_the_bound_is_under_way_over_threads_and_event_loops_together() -> None:
    class Blocking(ScriptedChat):
        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(self._generate, *args, **kwargs)

    gauge = Gauge()
    engine = ChatModelEngine(Blocking(answer=gauge, asked=[]), concurrency=3)
    batch = asks(*"abcdef")
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(engine.generate, batch, GREEDY) for _ in range(2)]
        jobs += [pool.submit(lambda: asyncio.run(engine.agenerate(batch, GREEDY))) for _ in range(2)]
        for job in jobs:
            assert [row[0].text for row in job.result()] == list("abcdef")
    assert gauge.most == 3


async def test_a_cancelled_call_cancels_the_llm_s_and_frees_its_slot() -> None:
    ended: list[str] = []

    class Hanging(ScriptedChat):
        async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
            if messages[-1].content != "slow":
                return self._result(messages, {})
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("slow")

    engine = ChatModelEngine(Hanging(asked=[]), concurrency=1)
    tasks = [asyncio.create_task(engine.agenerate(asks("slow"), GREEDY)) for _ in range(3)]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert ended == ["slow"]
    assert (await asyncio.wait_for(engine.agenerate(asks("fast"), GREEDY), 20))[0][0].text == ADDITION


async def test_a_llama_index_llm_without_an_async_half_does_not_block_the_event_loop() -> None:
    llm = llama_index_llm(lambda prompt: ADDITION, seconds=0.2)
    task = asyncio.create_task(ChatModelEngine(llm).agenerate(asks("x"), GREEDY))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 5
    assert llm.threads
    assert "MainThread" not in llm.threads


# -- construction -----------------------------------------------------------------------------------------------------


def test_it_is_an_engine_and_closes_twice() -> None:
    engine = ChatModelEngine(scripted())
    assert isinstance(engine, Engine)
    assert engine.generate([], GREEDY) == []
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.generate(asks("x"), GREEDY)


@pytest.mark.parametrize(
    "thing", [object(), 3, None, FakeListLLM(responses=["x"]), RunnableLambda(lambda x: x), scripted() | str]
)
def test_what_is_no_llm_is_refused(thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="chat model"):
        load_rewriter(thing)


def test_two_objects_of_one_class_are_told_apart_unless_named() -> None:
    one, two = load_chat_model(scripted()), load_chat_model(scripted(temperature=1.0))
    assert one.id != two.id
    assert load_chat_model(scripted(), name="mine").id == load_chat_model(scripted(), name="mine").id


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="concurrency"):
        load_chat_model(scripted(), concurrency=0)
    with pytest.raises(ConfigurationError, match="temperature"):
        load_chat_model(scripted(), temperature=0)
    with pytest.raises(ConfigurationError, match="mode"):
        load_chat_model(scripted(), mode="shorten")  # type: ignore[arg-type]


def test_a_spec_needs_langchain_and_its_provider_s_package(monkeypatch: pytest.MonkeyPatch) -> None:
    chat_models = pytest.importorskip("langchain.chat_models")

    def built(spec: str, **options: Any) -> BaseChatModel:
        assert (spec, options) == ("openai:gpt-x", {"temperature": 0.5})
        return scripted(temperature=0.5)

    with pytest.raises(ConfigurationError, match="PROVIDER:MODEL"):
        load_rewriter("no-such-provider:x")
    with monkeypatch.context() as patch:
        patch.setattr(chat_models, "init_chat_model", built)
        assert load_rewriter("openai:gpt-x", temperature=0.5).mode == "augment"
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name, package=None: None)
        with pytest.raises(MissingExtraError, match=r"bpo-integrations\[agents\]"):
            load_rewriter("openai:gpt-x")


def test_a_missing_provider_package_says_how_to_install_it() -> None:
    pytest.importorskip("langchain.chat_models")
    import importlib.util

    spec = next((name for name in ("groq", "xai", "openai") if not importlib.util.find_spec(f"langchain_{name}")), None)
    if spec is None:
        pytest.skip("every provider's package is installed")
    with pytest.raises(ConfigurationError, match=f"pip install langchain-{spec}"):
        load_rewriter(f"{spec}:a-model")


def test_a_fault_of_the_llm_s_options_does_not_repeat_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    chat_models = pytest.importorskip("langchain.chat_models")
    monkeypatch.setattr(
        chat_models, "init_chat_model", lambda spec, **options: ScriptedChat(temperature=options["api_key"])
    )
    with pytest.raises(ConfigurationError, match="temperature") as caught:
        load_rewriter("openai:gpt-x", api_key="sk-very-secret")
    assert "sk-very-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_real_openai_model_reaches_a_server() -> None:
    pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    from openai_server import openai_server

    with openai_server(lambda body: ADDITION, models=("gpt-x",)) as server:
        rewriter = load_rewriter("openai:gpt-x", base_url=server.base_url, api_key="k")
        assert rewriter.candidates([PROMPT])[0][0].text == ADDITION
        assert rewriter.candidates([PROMPT], STABLE)[0][0].text == ADDITION
    assert "temperature" not in server.bodies[0]
    assert server.bodies[1]["temperature"] == 0.6
