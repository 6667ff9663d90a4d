"""The server engine against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai_server import Body, OpenAIServer, Reply, openai_server, user_text

from bpo_integrations.decoding import AGGRESSIVE, GREEDY, STABLE, Decoding
from bpo_integrations.engines.base import Engine, Request
from bpo_integrations.engines.server import ServerEngine, load_server
from bpo_integrations.errors import (
    ConfigurationError,
    EngineClosedError,
    EngineError,
    EngineTimeoutError,
    ModelFormatError,
    PromptTooLongError,
)
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.rewriter import PAPER_RECORD, load_rewriter

pytest.importorskip("openai")

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.lower().endswith("_proxy") or name.startswith(("OPENAI_", "BPO_API_KEY")):
            monkeypatch.delenv(name)


def ask(text: str, **options: int) -> Request:
    return Request(({"role": "system", "content": "Improve."}, {"role": "user", "content": text}), **options)


@contextlib.contextmanager
def engine_for(server: OpenAIServer, **options: object) -> Iterator[ServerEngine]:
    engine = ServerEngine("rewriter", **{"base_url": server.base_url, "max_retries": 0, "timeout": 20.0, **options})
    try:
        yield engine
    finally:
        engine.close()


def wait_for(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; the bound only ends a test that fails."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


# -- what is asked, and what comes back -------------------------------------------------------------------------------


def test_rows_keep_their_order_though_later_ones_answer_first() -> None:
    def answer(body: Body) -> Reply:
        text = user_text(body)
        return Reply((text.upper(),), seconds=0.1 if text == "a" else 0.0)

    with openai_server(answer) as server, engine_for(server) as engine:
        assert isinstance(engine, Engine)
        rows = engine.generate([ask(text) for text in "abcd"], GREEDY)
    assert [[candidate.text for candidate in row] for row in rows] == [["A"], ["B"], ["C"], ["D"]]


def test_the_async_twin_gives_the_same() -> None:
    with openai_server() as server, engine_for(server) as engine:
        requests = [ask("one"), ask("zwei drei")]
        assert asyncio.run(engine.agenerate(requests, GREEDY)) == engine.generate(requests, GREEDY)


def test_an_empty_batch_asks_nothing() -> None:
    with openai_server() as server, engine_for(server) as engine:
        assert engine.generate([], GREEDY) == []
        assert asyncio.run(engine.agenerate([], GREEDY)) == []
        assert server.bodies == []


def test_the_decoding_goes_into_the_request() -> None:
    with openai_server() as server, engine_for(server) as engine:
        engine.generate([ask("x", max_new_tokens=17)], Decoding(0.6, 0.9, n=2, seed=7, stop=("END",)))
    (body,) = server.bodies
    assert body == {
        "model": "rewriter",
        "messages": [{"role": "system", "content": "Improve."}, {"role": "user", "content": "x"}],
        "max_tokens": 17,
        "temperature": 0.6,
        "top_p": 0.9,
        "n": 2,
        "seed": 7,
        "stop": ["END"],
    }


def test_greedy_is_said_outright_because_servers_have_other_defaults() -> None:
    with openai_server() as server, engine_for(server) as engine:
        engine.generate([ask("x")], GREEDY)
    assert (server.bodies[0]["temperature"], server.bodies[0]["top_p"]) == (0.0, 1.0)
    assert "seed" not in server.bodies[0]


def test_only_vllm_is_told_what_only_vllm_knows() -> None:
    request = ask("x", min_new_tokens=9)
    with openai_server() as server:
        with engine_for(server) as engine:
            engine.generate([request], AGGRESSIVE)
        with engine_for(server, vllm=True, extra_body={"top_k": 5}) as engine:
            engine.generate([request], AGGRESSIVE)
    plain, vllm = server.bodies
    assert not {"min_tokens", "bad_words", "top_k"} & set(plain)
    assert (vllm["min_tokens"], vllm["bad_words"], vllm["top_k"]) == (9, list(AGGRESSIVE.banned), 5)


@pytest.mark.parametrize("honours_n", [True, False])
def test_n_candidates_come_even_from_a_server_that_gives_one_at_a_time(honours_n: bool) -> None:
    with openai_server(honours_n=honours_n) as server, engine_for(server) as engine:
        (row,) = engine.generate([ask("x")], Decoding(0.9, n=3, seed=1))
    assert len(row) == 3
    assert [body["seed"] for body in server.bodies] == ([1] if honours_n else [1, 2, 3])


def test_finish_reason_and_tokens_are_the_servers() -> None:
    with openai_server(lambda body: Reply(("one two three",), finish="length")) as server, engine_for(server) as engine:
        (cut,) = engine.generate([ask("x")], GREEDY)[0]
        pair = engine.generate([ask("x")], Decoding(0.5, n=2))[0]
    assert (cut.finish_reason, cut.tokens) == ("length", 3)
    assert sum(candidate.tokens for candidate in pair) == 6


def test_text_that_a_filter_cut_off_counts_as_unfinished() -> None:
    with openai_server(lambda body: Reply(("one",), finish="content_filter")) as server, engine_for(server) as engine:
        assert engine.generate([ask("x")], GREEDY)[0][0].finish_reason == "length"


@pytest.mark.parametrize(
    "text", ["Grüße, 世界 🙂 \u202e‮", "<|im_start|>system [INST]", "x" * 10_000, "line\r\n\ttab\x00"]
)
def test_any_text_goes_there_and_back(text: str) -> None:
    with openai_server() as server, engine_for(server) as engine:
        assert engine.generate([ask(text)], GREEDY)[0][0].text == text


def test_a_lone_surrogate_is_sent_as_a_question_mark() -> None:
    with openai_server() as server, engine_for(server) as engine:
        assert engine.generate([ask("a\ud800b")], GREEDY)[0][0].text == "a?b"


def test_tokens_are_estimated_without_the_server() -> None:
    engine = ServerEngine("rewriter", base_url="http://127.0.0.1:9/v1")
    assert engine.count_tokens(["", "abcd", "abcde", "\ud800"]) == [0, 1, 2, 1]


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again_after_the_time_that_the_server_names(status: int) -> None:
    replies = iter([Reply(status=status, headers=(("Retry-After", "0.01"),)), Reply(("done",))])
    with openai_server(lambda body: next(replies)) as server, engine_for(server, max_retries=2) as engine:
        assert engine.generate([ask("x")], GREEDY)[0][0].text == "done"
        assert len(server.bodies) == 2


def test_retries_are_bounded_and_the_error_says_that_it_may_work_later() -> None:
    reply = Reply(status=429, headers=(("Retry-After", "0.01"),))
    with (
        openai_server(lambda body: reply) as server,
        engine_for(server, max_retries=1) as engine,
        pytest.raises(EngineError, match="429") as caught,
    ):
        engine.generate([ask("x")], GREEDY)
    assert caught.value.retryable
    assert len(server.bodies) == 2


def test_a_server_that_is_too_slow_is_a_timeout() -> None:
    with (
        openai_server(lambda body: Reply(("late",), seconds=30)) as server,
        engine_for(server, timeout=0.1) as engine,
        pytest.raises(EngineTimeoutError, match="in time") as caught,
    ):
        engine.generate([ask("x")], GREEDY)
    assert caught.value.retryable


def test_a_dropped_connection_and_a_dead_server_may_work_later() -> None:
    with openai_server(lambda body: Reply(drop=True)) as server, engine_for(server) as engine:
        with pytest.raises(EngineError, match="hung up") as dropped:
            engine.generate([ask("x")], GREEDY)
        address = server.base_url
    with pytest.raises(EngineError, match="cannot be reached") as dead:
        ServerEngine("rewriter", base_url=address, max_retries=0).generate([ask("x")], GREEDY)
    assert dropped.value.retryable
    assert dead.value.retryable


def test_a_wrong_model_is_final_and_names_those_that_there_are() -> None:
    with openai_server(models=("alpha", "beta")) as server:
        engine = ServerEngine("gamma", base_url=server.base_url)
        with pytest.raises(EngineError, match="alpha, beta") as caught:
            engine.generate([ask("x")], GREEDY)
    assert not caught.value.retryable


def test_a_prompt_that_is_too_long_for_the_model_says_so() -> None:
    reply = Reply(status=400, message="This model's maximum context length is 2048 tokens.")
    with openai_server(lambda body: reply) as server, engine_for(server) as engine, pytest.raises(PromptTooLongError):
        engine.generate([ask("x")], GREEDY)


def test_a_refusal_is_final_and_does_not_repeat_the_servers_words() -> None:
    reply = Reply(status=422, message="bad input: as private as it gets")
    with (
        openai_server(lambda body: reply) as server,
        engine_for(server) as engine,
        pytest.raises(EngineError, match="422") as caught,
    ):
        engine.generate([ask("x")], GREEDY)
    assert not caught.value.retryable
    assert "as private" not in "".join(traceback.format_exception(caught.value))


def test_one_failing_row_leaves_the_others_unharmed(caplog: pytest.LogCaptureFixture) -> None:
    def answer(body: Body) -> str | Reply:
        return Reply(status=400) if user_text(body) == "bad secret" else user_text(body)

    with openai_server(answer) as server, engine_for(server) as engine:
        rows = engine.generate([ask("one"), ask("bad secret"), ask("two")], GREEDY)
    assert [[candidate.text for candidate in row] for row in rows] == [["one"], [], ["two"]]
    assert "1 of 3 requests failed" in caplog.text
    assert "bad secret" not in caplog.text


def test_in_the_pipeline_only_the_prompt_that_failed_goes_on_as_it_was() -> None:
    def answer(body: Body) -> str | Reply:
        return Reply(status=400) if "volcano" in user_text(body) else "Explain why, step by step."

    with openai_server(answer) as server:
        options = {"base_url": server.base_url, "mode": "augment", "max_retries": 0}
        optimizer = PromptOptimizer("server:rewriter", **options)
        good, bad = optimizer.optimize_batch(["How do tides come about?", "How does a volcano form?"])
        optimizer.close()
    assert good.kind == "augmented"
    assert (bad.text, bad.reason.split(":")[0]) == ("How does a volcano form?", "failed")


# -- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_argument_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with openai_server() as server:
        for own, openai, given, sent in [
            (None, None, None, "no-key"),
            (None, "o", None, "o"),
            ("b", "o", None, "b"),
            ("b", "o", "arg", "arg"),
        ]:
            for name, value in (("BPO_API_KEY", own), ("OPENAI_API_KEY", openai)):
                if value is not None:
                    monkeypatch.setenv(name, value)
            with engine_for(server, api_key=given) as engine:
                engine.generate([ask("x")], GREEDY)
            assert server.headers[-1]["authorization"] == f"Bearer {sent}"


def test_the_key_shows_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="bpo_integrations")
    with openai_server(key="another") as server:
        url = server.base_url.replace("http://", "http://user:pass-word@")
        rewriter = load_server("rewriter", base_url=url, api_key=SECRET, mode="augment", max_retries=0)
        with pytest.raises(EngineError, match="401") as caught:
            rewriter.candidates(["x"])
        engine = rewriter.engine
        shown = [repr(engine), str(engine), engine.id, rewriter.id, caplog.text]
        shown += traceback.format_exception(caught.value)
        engine.close()
    assert not caught.value.retryable
    assert "BPO_API_KEY" in caught.value.hint
    assert not [text for text in shown if SECRET in text or "pass-word" in text]


# -- concurrency ------------------------------------------------------------------------------------------------------


def test_no_more_than_the_bound_is_under_way_over_threads_and_event_loops_together() -> None:
    with (
        openai_server(lambda body: Reply(("ok",), seconds=0.02)) as server,
        engine_for(server, concurrency=3) as engine,
        ThreadPoolExecutor(6) as pool,
    ):
        batch = [ask(str(index)) for index in range(6)]
        jobs = [pool.submit(engine.generate, batch, GREEDY) for _ in range(3)]
        jobs += [pool.submit(lambda: asyncio.run(engine.agenerate(batch, GREEDY))) for _ in range(3)]
        assert all(len(job.result()) == 6 for job in jobs)
    assert server.most_busy == 3


def test_a_cancelled_call_drops_its_connections_and_frees_its_slots() -> None:
    async def cancel(engine: ServerEngine, server: OpenAIServer) -> None:
        task = asyncio.create_task(engine.agenerate([ask("slow"), ask("slow")], GREEDY))
        await asyncio.to_thread(wait_for, lambda: server.busy == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        rows = await engine.agenerate([ask("fast")], GREEDY)
        assert rows[0][0].text == "fast"

    def answer(body: Body) -> Reply:
        return Reply((user_text(body),), seconds=30 if user_text(body) == "slow" else 0)

    with openai_server(answer) as server, engine_for(server, concurrency=2, timeout=60) as engine:
        asyncio.run(cancel(engine, server))
        assert wait_for(lambda: server.left == 2)


def test_the_event_loop_is_free_while_the_server_works() -> None:
    async def both(engine: ServerEngine) -> int:
        task = asyncio.create_task(engine.agenerate([ask("x")], GREEDY))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        return turns

    with openai_server(lambda body: Reply(("ok",), seconds=0.2)) as server, engine_for(server) as engine:
        assert asyncio.run(both(engine)) > 5


def test_close_ends_calls_under_way_and_is_harmless_twice() -> None:
    with openai_server(lambda body: Reply(("late",), seconds=30)) as server:
        engine = ServerEngine("rewriter", base_url=server.base_url, timeout=60)
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(engine.generate, [ask("x")], GREEDY)
            assert wait_for(lambda: server.busy == 1)
            engine.close()
            engine.close()
            with pytest.raises(EngineClosedError):
                job.result(20)
        with pytest.raises(EngineClosedError):
            engine.generate([ask("x")], GREEDY)
        assert wait_for(lambda: server.left == 1)


def test_an_engine_that_nobody_holds_lets_its_thread_go() -> None:
    earlier = set(threading.enumerate())  # with threads of other tests' engines, which may end at any moment
    with openai_server() as server:
        engine = ServerEngine("rewriter", base_url=server.base_url)
        engine.generate([ask("x")], GREEDY)
        (own,) = [one for one in set(threading.enumerate()) - earlier if one.name == "bpo-server"]
        del engine
        gc.collect()
        assert wait_for(lambda: not own.is_alive())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_opens_its_own_connections_and_the_parent_keeps_its_own() -> None:
    with openai_server() as server, engine_for(server) as engine:
        assert engine.generate([ask("before")], GREEDY)[0][0].text == "before"
        pid = os.fork()
        if pid == 0:
            try:
                good = engine.generate([ask("child")], GREEDY)[0][0].text == "child"
                engine.close()
                del engine
                gc.collect()
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert engine.generate([ask("after")], GREEDY)[0][0].text == "after"


# -- construction -----------------------------------------------------------------------------------------------------


def test_building_one_asks_nobody() -> None:
    with openai_server() as server:
        load_rewriter("server:rewriter", mode="augment", base_url=server.base_url)
        assert server.bodies == []
    load_server("THUDM/BPO", base_url="http://no-such-host.invalid/v1")


def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://10.0.0.1:8000/v1")
    assert ServerEngine("m").id == "server:m@10.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "OPENAI_BASE_URL"),
        ({"base_url": "localhost:8000"}, "http"),
        ({"base_url": "http://h/v1", "concurrency": 0}, "concurrency"),
        ({"base_url": "http://h/v1", "timeout": 0}, "timeout"),
        ({"base_url": "http://h/v1", "max_retries": -1}, "max_retries"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load_server("THUDM/BPO", **options)


def test_other_options_make_another_id() -> None:
    ids = {
        ServerEngine("m", base_url="http://h/v1", **options).id
        for options in ({}, {"vllm": True}, {"extra_body": {"top_k": 1}}, {"extra_body": {"top_k": 2}})
    }
    assert len(ids) == 4


def test_the_record_is_given_or_known_or_the_embedded_one_of_the_mode(tmp_path: Path) -> None:
    url = "http://localhost:8000/v1"
    file = tmp_path / "bpo.json"
    file.write_text(PAPER_RECORD.to_json())
    for given in (PAPER_RECORD, file, str(tmp_path)):
        assert load_server("mine", base_url=url, record=given).record == PAPER_RECORD
    assert load_server("/models/THUDM/BPO", base_url=url).record == PAPER_RECORD
    augmenting = load_server("mine", base_url=url, mode="augment").record
    assert (augmenting.name, augmenting.mode, augmenting.languages) == ("mine", "augment", ("en",))
    assert load_server("mine", base_url=url, mode="rewrite").mode == "rewrite"
    with pytest.raises(ConfigurationError, match=r"bpo\.json"):
        load_server("mine", base_url=url)
    with pytest.raises(ModelFormatError):
        load_server("mine", base_url=url, record=tmp_path / "nowhere")


def test_the_papers_model_is_asked_in_its_own_words() -> None:
    with openai_server(lambda body: "Better.", models=("THUDM/BPO",)) as server:
        rewriter = load_server("THUDM/BPO", base_url=server.base_url)
        assert rewriter.candidates(["Tell me about Harry Potter"], STABLE)[0][0].text == "Better."
        rewriter.close()
    (body,) = server.bodies
    said = (
        "You are an expert prompt engineer. Please help me improve this prompt to get a more helpful and harmless "
        "response:\nTell me about Harry Potter"
    )
    assert body["messages"] == [{"role": "user", "content": said}]
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (1024, 0.6, 0.9)
