"""The thread that steps vLLM's engine: who joins, who leaves, and who is told what. The engine here only counts."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from bpo_integrations import load_rewriter
from bpo_integrations.engines.vllm_runtime import EngineThread, Job, LoopRoute, _threads, aresults, results
from bpo_integrations.errors import EngineClosedError, EngineError, MissingExtraError


class CountingEngine:
    """Ends a request after as many steps as its prompt's first id says; steps only when the test lets it."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.batches: list[int] = []
        self.tickets = threading.Semaphore(0)
        self.added = threading.Semaphore(0)
        self.closed = threading.Event()
        self.vllm_config = "config"
        self.engine_core = SimpleNamespace(shutdown=self.closed.set)
        self.broken = False

    def add_request(self, number: str, prompt: dict[str, list[int]], params: Any, lora_request: Any = None) -> None:
        if params == "bad":
            raise ValueError("no such parameter")
        self.left[number] = prompt["prompt_token_ids"][0]
        self.added.release()

    def abort_request(self, numbers: list[str]) -> None:
        for number in numbers:
            self.left.pop(number, None)

    def step(self) -> list[Any]:
        self.tickets.acquire()
        if self.broken:
            raise RuntimeError("out of memory")
        self.batches.append(len(self.left))
        self.left = {number: steps - 1 for number, steps in self.left.items()}
        done = [number for number, steps in self.left.items() if steps == 0]
        for number in done:
            del self.left[number]
        return [SimpleNamespace(request_id=number, finished=True) for number in done]


def job(steps: int, params: str = "good") -> Job:
    return Job([steps], params)  # type: ignore[arg-type]


def admitted(engine: CountingEngine, count: int) -> None:
    for _ in range(count):
        assert engine.added.acquire(timeout=60)


def test_what_arrives_later_joins_the_running_batch() -> None:
    engine = CountingEngine()
    runtime = EngineThread(lambda: engine, owned=True)
    first = runtime.submit(job(3))
    admitted(engine, 1)
    second = runtime.submit(job(1))
    engine.tickets.release(3)
    assert second.result(60).finished
    assert first.result(60).finished
    assert max(engine.batches) == 2
    assert len(engine.batches) == 3


def test_a_cancelled_job_is_gone_at_the_next_step_and_the_others_run_on() -> None:
    engine = CountingEngine()
    runtime = EngineThread(lambda: engine, owned=True)
    stays, goes = runtime.submit(job(4)), runtime.submit(job(100))
    admitted(engine, 2)
    assert goes.cancel()
    engine.tickets.release(4)
    assert stays.result(60).finished
    assert engine.left == {}
    assert 1 in engine.batches


def test_a_job_that_is_refused_fails_alone() -> None:
    engine = CountingEngine()
    runtime = EngineThread(lambda: engine, owned=True)
    good, bad = runtime.submit(job(1)), runtime.submit(job(1, "bad"))
    engine.tickets.release(9)
    assert good.result(60).finished
    with pytest.raises(ValueError, match="no such parameter"):
        bad.result(60)


def test_a_step_that_fails_is_told_to_all_in_it_and_the_next_job_runs() -> None:
    engine = CountingEngine()
    engine.broken = True
    runtime = EngineThread(lambda: engine, owned=True)
    futures = [runtime.submit(job(2)), runtime.submit(job(2))]
    admitted(engine, 2)
    engine.tickets.release(2)
    for future in futures:
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result(60)
    engine.broken = False
    engine.tickets.release(9)
    assert runtime.submit(job(1)).result(60).finished


def test_the_engine_is_shut_down_when_the_last_user_lets_go_and_a_borrowed_one_is_not() -> None:
    owned, borrowed = CountingEngine(), CountingEngine()
    before = set(_threads)
    EngineThread(lambda: owned, owned=True)
    EngineThread(lambda: borrowed, owned=False)
    for thread in set(_threads) - before:
        thread.join(60)
        assert not thread.is_alive()
    assert owned.closed.is_set()
    assert not borrowed.closed.is_set()


def test_what_goes_wrong_while_building_is_raised_to_the_builder() -> None:
    def build() -> Any:
        raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        EngineThread(build, owned=True)


async def test_a_cancelled_task_cancels_what_it_waits_for() -> None:
    engine = CountingEngine()
    runtime = EngineThread(lambda: engine, owned=True)
    futures = [runtime.submit(job(100)) for _ in range(3)]
    task = asyncio.create_task(aresults(futures))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(future.cancelled() for future in futures)
    engine.tickets.release(9)
    last = runtime.submit(job(1))
    await asyncio.to_thread(last.result, 60)
    assert engine.left == {}


def test_one_failure_cancels_the_rest_of_the_call() -> None:
    engine = CountingEngine()
    runtime = EngineThread(lambda: engine, owned=True)
    bad, slow = runtime.submit(job(1, "bad")), runtime.submit(job(100))
    engine.tickets.release(1)
    with pytest.raises(ValueError, match="no such parameter"):
        results([bad, slow])
    assert slow.cancelled()
    engine.tickets.release(9)


class LoopEngine:
    """Stands for an `AsyncLLM`: tells in which loop it was called."""

    output_handler = None
    vllm_config = "config"

    def __init__(self) -> None:
        self.aborted = 0

    async def generate(self, prompt: Any, params: Any, number: str, lora_request: Any = None) -> Any:
        try:
            for step in range(prompt["prompt_token_ids"][0]):
                await asyncio.sleep(0)
                yield SimpleNamespace(step=step, loop=asyncio.get_running_loop())
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise


async def test_calls_from_other_loops_run_in_the_loop_of_the_async_engine() -> None:
    route = LoopRoute(LoopEngine())
    home = asyncio.get_running_loop()

    def elsewhere() -> Any:
        async def ask() -> Any:
            assert asyncio.get_running_loop() is not home
            return await aresults([route.submit(job(3))])

        return asyncio.run(ask())

    (here,) = await aresults([route.submit(job(2))])
    (there,) = await asyncio.to_thread(elsewhere)
    (blocking,) = await asyncio.to_thread(lambda: results([route.submit(job(1))]))
    assert [here.loop, there.loop, blocking.loop] == [home] * 3
    assert [here.step, there.step, blocking.step] == [1, 2, 0]


async def test_cancelling_aborts_in_the_async_engine() -> None:
    engine = LoopEngine()
    task = asyncio.create_task(aresults([LoopRoute(engine).submit(job(10**9))]))
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(20):
        await asyncio.sleep(0)
    assert engine.aborted == 1


async def test_blocking_in_the_engines_own_loop_is_refused() -> None:
    route = LoopRoute(LoopEngine())
    with pytest.raises(EngineError, match="would wait for itself"):
        route.check_caller()
    await asyncio.to_thread(route.check_caller)


def test_an_async_engine_needs_a_loop_that_is_open() -> None:
    with pytest.raises(EngineError, match="no event loop"):
        LoopRoute(LoopEngine())
    loop = asyncio.new_event_loop()
    route = LoopRoute(LoopEngine(), loop)
    loop.close()
    with pytest.raises(EngineClosedError, match="closed"):
        route.submit(job(1))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_install_line_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"bpo-integrations\[vllm\]"):
        load_rewriter("vllm:some/model")
