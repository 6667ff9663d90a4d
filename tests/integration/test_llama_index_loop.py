"""The event loop goes on while a query is optimized: a watchdog ticks every 5 ms and remembers the longest gap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="the llama-index extra is not installed")

from fakes import fake_rewriter
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import TransformQueryEngine
from llama_index.core.schema import QueryBundle
from llama_parts import ADDED, QUESTION, Script, library

from bpo_integrations.llama_index import (
    BPOLLM,
    BPOChatEngine,
    BPOFunctionAgent,
    BPOQueryEngine,
    BPOQueryTransform,
    BPOTransformRetriever,
)
from bpo_integrations.rewriter import Rewriter

TICK = 0.005
GENERATION = 0.4
"""Seconds that the fake model takes: far more than any gap that the machine's other work makes."""


async def longest_gap(work: Callable[[], Awaitable[Any]]) -> float:
    """Return the longest time, in seconds, for which the event loop did not go on while `work` ran."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    watchdog = asyncio.create_task(tick())
    await asyncio.sleep(2 * TICK)
    await work()
    await asyncio.sleep(2 * TICK)
    watchdog.cancel()
    return longest


def slow() -> Rewriter:
    return fake_rewriter(lambda prompt: ADDED, delay=GENERATION)


def engine(rewriter: Rewriter) -> Callable[[str], Awaitable[Any]]:
    return BPOQueryEngine(library().as_query_engine(llm=MockLLM()), BPOQueryTransform(rewriter)).aquery


def steps(rewriter: Rewriter) -> Callable[[str], Awaitable[Any]]:
    asked = BPOQueryEngine(library().as_query_engine(llm=MockLLM()), BPOQueryTransform(rewriter))

    async def both(question: str) -> Any:
        query = QueryBundle(question)
        return await asked.asynthesize(query, await asked.aretrieve(query))

    return both


def retriever(rewriter: Rewriter) -> Callable[[str], Awaitable[Any]]:
    return BPOTransformRetriever(library().as_retriever(), BPOQueryTransform(rewriter, embed="optimized")).aretrieve


def agent(rewriter: Rewriter) -> Callable[[str], Awaitable[Any]]:
    made = BPOFunctionAgent(model=rewriter, llm=Script("Fine.").llm, tools=[])

    async def run(question: str) -> Any:
        return await made.run(question)

    return run


def chat(rewriter: Rewriter) -> Callable[[str], Awaitable[Any]]:
    made = BPOChatEngine(SimpleChatEngine.from_defaults(llm=Script("Fine.").llm), rewriter)
    return lambda question: made.achat(question, chat_history=[])


def llm(rewriter: Rewriter) -> Callable[[str], Awaitable[Any]]:
    return BPOLLM(llm=MockLLM(), model=rewriter, completions=True).acomplete


@pytest.mark.parametrize("door", [engine, steps, retriever, agent, chat, llm])
async def test_no_door_blocks_the_event_loop_while_the_model_generates(
    door: Callable[[Rewriter], Callable[[str], Awaitable[Any]]],
) -> None:
    ask = door(slow())
    await ask("Explain to me how owls fly")  # what is imported or built at first use
    started = time.perf_counter()
    gap = await longest_gap(lambda: ask(QUESTION))
    assert time.perf_counter() - started > GENERATION, "the model did generate"
    assert gap < GENERATION / 2


async def test_the_watchdog_notices_the_engine_that_llama_index_has() -> None:
    blocking = TransformQueryEngine(library().as_query_engine(llm=MockLLM()), BPOQueryTransform(slow()))
    assert await longest_gap(lambda: blocking.aquery(QUESTION)) > GENERATION / 2


@pytest.mark.model
async def test_the_embedded_model_generates_beside_the_event_loop() -> None:
    ask = BPOQueryEngine(library().as_query_engine(llm=MockLLM()), BPOQueryTransform()).aquery
    questions = ["Tell me about Harry Potter", "How do vaccines work?", "Explain how tides come about"]
    await ask(questions.pop())  # loads the weights
    gaps, took = [], []
    for question in questions:
        started = time.perf_counter()
        gaps.append(await longest_gap(lambda question=question: ask(question)))
        took.append(time.perf_counter() - started)
    # Relative, for the machine may be busy: a blocked loop would stand still for as long as the model generates.
    assert min(gap / seconds for gap, seconds in zip(gaps, took, strict=True)) < 0.3
