"""`BPORunnable() | llm` for real: the embedded model improves prompts, and the same base answers them."""

from __future__ import annotations

import asyncio
import time

import pytest

pytest.importorskip("langchain_core", reason="the langchain extra is not installed")
pytest.importorskip("ctranslate2", reason="the local extra is not installed")

from bpo_integrations import BPORunnable
from bpo_integrations.langchain import ChatEmbedded

pytestmark = pytest.mark.model

PROMPTS = [
    "Tell me about Harry Potter",
    "How do I grow tomatoes on a balcony?",
    "What are good habits for a healthy life?",
    "Explain black holes",
]


@pytest.fixture(scope="module")
def bpo() -> BPORunnable:
    return BPORunnable(on_error="raise")


def test_it_improves_prompts_and_keeps_every_word(bpo: BPORunnable) -> None:
    results = bpo.batch(PROMPTS)
    assert all(result.startswith(prompt) for result, prompt in zip(results, PROMPTS, strict=True))
    assert sum(result != prompt for result, prompt in zip(results, PROMPTS, strict=True)) >= 2
    assert [bpo.invoke(prompt) for prompt in PROMPTS] == results


def test_a_batch_is_answered_in_order(bpo: BPORunnable) -> None:
    llm = ChatEmbedded(max_tokens=12)
    answers = (bpo | llm).batch(PROMPTS)
    assert all(answer.content and answer.usage_metadata["output_tokens"] <= 12 for answer in answers)
    assert [answer.content for answer in answers] == [llm.invoke(bpo.invoke(each)).content for each in PROMPTS]


async def test_the_answer_streams_and_the_loop_stays_free(bpo: BPORunnable) -> None:
    longest, running = 0.0, True

    async def watch() -> None:
        nonlocal longest
        while running:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - before)

    chain = bpo | ChatEmbedded(max_tokens=40)
    await chain.ainvoke("Explain black holes")  # loads the weights
    watchdog = asyncio.create_task(watch())
    started = time.perf_counter()
    chunks = [chunk.content async for chunk in chain.astream("What makes bread rise?")]
    seconds = time.perf_counter() - started
    running = False
    await watchdog
    assert sum(bool(chunk) for chunk in chunks) >= 5
    whole = await chain.ainvoke("What makes bread rise?")
    assert "".join(chunks) == whole.content
    assert longest < max(0.2, seconds / 4), f"the loop stood still for {longest:.2f} s of {seconds:.2f}"


async def test_concurrent_calls_get_their_own_results_back(bpo: BPORunnable) -> None:
    assert await asyncio.gather(*map(bpo.ainvoke, PROMPTS)) == bpo.batch(PROMPTS)
