"""Batching: what arrives together is decoded together, and nobody suffers from anybody else."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from bpo_integrations.decoding import STABLE, Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.engines.batching import Batcher, coalesced
from bpo_integrations.errors import EngineBusyError, EngineClosedError, EngineError
from bpo_integrations.result import Candidate

GREEDY = Decoding()


def ask(text: str, new: int = 4) -> Request:
    return Request(({"role": "user", "content": text},), max_new_tokens=new)


class StepEngine:
    """Echoes each request after as many steps as it may have new tokens; `gate` holds up whole batches.

    `batches` holds the texts of each batch, `steps` how many steps each row took.
    """

    batch_rows = 8
    traits = Traits(literal=True, repeats=True, gate=False, stops=True, forks="works", coalesce=True)

    def __init__(self, name: str, step: float = 0.001) -> None:
        self.id = name
        self.step = step
        self.batches: list[list[str]] = []
        self.steps: dict[str, int] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def generate_rows(
        self, requests: Sequence[Request], decoding: Decoding, stopped: Callable[[int], bool]
    ) -> list[list[Candidate]]:
        if self.closed:
            raise EngineClosedError("closed", hint="Make a new one.")
        texts = [request.messages[-1]["content"] for request in requests]
        self.batches.append(texts)
        self.gate.wait(10)
        if "bad" in texts:
            raise EngineError("a bad row", hint="None.")
        for row, request in enumerate(requests):
            for _ in range(request.max_new_tokens):
                if stopped(row):
                    break
                self.steps[texts[row]] = self.steps.get(texts[row], 0) + 1
                time.sleep(self.step)
        return [[Candidate(text)] * decoding.n for text in texts]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        return self.generate_rows(requests, decoding, lambda _: False)

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        return await asyncio.to_thread(self.generate, requests, decoding)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> StepEngine:
    return StepEngine(request.node.name)


def texts(found: Sequence[Sequence[Candidate]]) -> list[str]:
    return [row[0].text for row in found]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in other threads
            await asyncio.sleep(0.001)


async def test_tasks_that_start_together_share_a_batch(engine: StepEngine) -> None:
    batcher = Batcher(engine, wait=0.2)
    found = await asyncio.gather(*(batcher.agenerate([ask(str(n))], GREEDY) for n in range(8)))
    assert [texts(each) for each in found] == [[str(n)] for n in range(8)]
    assert len(engine.batches) == 1


def test_threads_and_event_loops_share_batches_and_everyone_gets_their_own(engine: StepEngine) -> None:
    batchers = [Batcher(engine), Batcher(engine)]

    def one(number: int) -> bool:
        names = [f"{number}.{row}" for row in range(random.Random(number).randint(1, 12))]
        requests, batcher = [ask(name, 1) for name in names], batchers[number % 2]
        if number % 3:
            return texts(batcher.generate(requests, GREEDY)) == names
        return texts(asyncio.run(batcher.agenerate(requests, GREEDY))) == names

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(one, range(64)))
    assert max(map(len, engine.batches)) == engine.batch_rows
    assert len({name.split(".")[0] for batch in engine.batches for name in batch if len(batch) > 1}) > 1


async def test_no_candidates_no_work(engine: StepEngine) -> None:
    assert await Batcher(engine).agenerate([], GREEDY) == []
    assert engine.batches == []


async def test_a_seeded_call_is_never_merged_nor_split(engine: StepEngine) -> None:
    batcher, seeded = Batcher(engine, wait=0.05), replace(STABLE, seed=7)
    many = [ask(f"s{n}", 1) for n in range(12)]
    found = await asyncio.gather(
        batcher.agenerate([ask("a")], seeded), batcher.agenerate(many, seeded), batcher.agenerate([ask("b")], GREEDY)
    )
    assert [len(each) for each in found] == [1, 12, 1]
    assert sorted(map(len, engine.batches)) == [1, 1, 12]


async def test_other_decodings_get_their_turn_beside_a_long_list(engine: StepEngine) -> None:
    batcher = Batcher(engine)
    long = asyncio.create_task(batcher.agenerate([ask(f"l{n}", 1) for n in range(200)], GREEDY))
    await until(lambda: engine.batches)
    await batcher.agenerate([ask("other", 1)], STABLE)
    assert next(place for place, batch in enumerate(engine.batches) if "other" in batch) <= 2
    assert not long.done()
    assert len(await long) == 200


async def test_a_long_list_holds_up_a_short_call_for_one_batch(engine: StepEngine) -> None:
    batcher = Batcher(engine)
    long = asyncio.create_task(batcher.agenerate([ask(f"l{n}", 1) for n in range(200)], GREEDY))
    await until(lambda: engine.batches)
    await batcher.agenerate([ask("short", 1)], GREEDY)
    assert next(place for place, batch in enumerate(engine.batches) if "short" in batch) <= 2
    assert texts(await long) == [f"l{n}" for n in range(200)]


async def test_a_long_prompt_holds_up_fifty_short_ones_for_one_batch_at_most(engine: StepEngine) -> None:
    engine.batch_rows = 64
    batcher = Batcher(engine, wait=0.05)
    long = "word " * 3000
    shorts = [f"short {n}" for n in range(50)]
    await asyncio.gather(*(batcher.agenerate([ask(text, 64)], GREEDY) for text in [long, *shorts]))
    place = next(place for place, batch in enumerate(engine.batches) if long in batch)
    assert len(engine.batches[place]) <= 4, "it would make every row of its batch as dear as itself"
    done = [text for batch in engine.batches[: place + 2] for text in batch]
    assert set(shorts) <= set(done)


async def test_a_cancelled_call_frees_its_rows_at_the_next_step_and_harms_nobody(engine: StepEngine) -> None:
    batcher = Batcher(engine, wait=0.05)
    gone = asyncio.create_task(batcher.agenerate([ask("gone", 5000)], GREEDY))
    stays = asyncio.create_task(batcher.agenerate([ask("stays", 3)], GREEDY))
    await until(lambda: engine.steps.get("gone") or engine.steps.get("stays"))
    gone.cancel()
    assert texts(await stays) == ["stays"]
    assert engine.steps["stays"] == 3
    assert engine.steps.get("gone", 0) < 1000
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert texts(await batcher.agenerate([ask("next")], GREEDY)) == ["next"]


async def test_a_call_that_is_cancelled_while_it_waits_is_never_run(engine: StepEngine) -> None:
    engine.gate.clear()
    batcher = Batcher(engine)
    first = asyncio.create_task(batcher.agenerate([ask("first")], GREEDY))
    await until(lambda: engine.batches)
    waiting = asyncio.create_task(batcher.agenerate([ask("waiting")], GREEDY))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.sleep(0)
    engine.gate.set()
    await first
    await batcher.agenerate([ask("last")], GREEDY)
    assert not any("waiting" in batch for batch in engine.batches)


async def test_a_call_that_fails_fails_alone(engine: StepEngine) -> None:
    batcher = Batcher(engine, wait=0.1)
    bad, good, other = await asyncio.gather(
        *(batcher.agenerate([ask(text)], GREEDY) for text in ("bad", "good", "other")), return_exceptions=True
    )
    assert isinstance(bad, EngineError)
    assert not isinstance(good, BaseException)
    assert not isinstance(other, BaseException)
    assert (texts(good), texts(other)) == (["good"], ["other"])
    assert sorted(engine.batches[0]) == ["bad", "good", "other"]


async def test_a_full_queue_says_so_at_once_and_takes_calls_again_later(engine: StepEngine) -> None:
    engine.gate.clear()
    batcher = Batcher(engine, queue_rows=10)
    first = asyncio.create_task(batcher.agenerate([ask("first")], GREEDY))
    await until(lambda: engine.batches)
    waiting = asyncio.create_task(batcher.agenerate([ask(f"w{n}") for n in range(9)], GREEDY))
    await asyncio.sleep(0.01)
    with pytest.raises(EngineBusyError, match="9 prompts wait") as caught:
        await batcher.agenerate([ask("a"), ask("b")], GREEDY)
    assert caught.value.retryable
    engine.gate.set()
    assert len(await waiting) == 9
    await first
    assert len(await batcher.agenerate([ask(f"m{n}") for n in range(30)], GREEDY)) == 30


async def test_closing_one_engine_leaves_calls_on_another_of_the_same_weights(request: pytest.FixtureRequest) -> None:
    one, other = StepEngine(request.node.name), StepEngine(request.node.name)
    first, second = Batcher(one, wait=0.1), Batcher(other, wait=0.1)
    first.close()
    first.close()
    closed, fine = await asyncio.gather(
        first.agenerate([ask("a")], GREEDY), second.agenerate([ask("b")], GREEDY), return_exceptions=True
    )
    assert isinstance(closed, EngineClosedError)
    assert not isinstance(fine, BaseException)
    assert texts(fine) == ["b"]


def test_the_engine_is_let_go_when_nothing_is_to_be_done(engine: StepEngine) -> None:
    import gc
    import weakref

    own = StepEngine(engine.id + "-own")
    held = weakref.ref(own)
    Batcher(own).generate([ask("a")], GREEDY)
    del own
    deadline = time.monotonic() + 5
    while held() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert held() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_has_a_queue_of_its_own(engine: StepEngine) -> None:
    batcher = Batcher(engine)
    batcher.generate([ask("parent")], GREEDY)
    child = os.fork()
    if child == 0:
        fine = texts(batcher.generate([ask("child")], GREEDY)) == ["child"]
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_only_engines_that_want_it_are_put_behind_a_batcher(engine: StepEngine) -> None:
    batcher = coalesced(engine)
    assert isinstance(batcher, Batcher)
    assert coalesced(batcher) is batcher
    engine.traits = replace(StepEngine.traits, coalesce=False)
    assert coalesced(engine) is engine


async def test_an_engine_that_breaks_between_batches_is_told_to_all_and_the_queue_goes_on(engine: StepEngine) -> None:
    class Breaking(StepEngine):
        broken = True

        @property
        def batch_rows(self) -> int:  # type: ignore[override]
            if self.broken:
                raise RuntimeError("broken")
            return 8

    breaking = Breaking(engine.id + "-breaking")
    batcher = Batcher(breaking)
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(batcher.agenerate([ask("a")], GREEDY), 10)
    breaking.broken = False
    assert texts(await asyncio.wait_for(batcher.agenerate([ask("b")], GREEDY), 10)) == ["b"]
