"""How fast optimizing is on the CPU: every figure a ratio of two things that were timed side by side in one run.

    python tests/benchmarks/optimize.py                     # everything (about 20 minutes on two cores)
    python tests/benchmarks/optimize.py --only latency      # latency, concurrency, overhead or start

The yardstick is the loop of THUDM/BPO's model card: transformers, one prompt after the other, at most 1,024 new tokens;
here greedy and in float32, on the same merged weights as the embedded rewriter. `latency` leaves policy, guards and
cache out: it times the models. Needs the extras `local`, `hf` and `langchain`, and the test sets.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from langchain_core.runnables import RunnableLambda
from peft import PeftModel
from report import ROOT, put, stamp, table

from bpo_integrations import BPORunnable, PromptOptimizer
from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.engines.causal_lm import load_causal_lm
from bpo_integrations.models.embedded import load_embedded
from bpo_integrations.result import Candidate
from bpo_integrations.rewriter import Rewriter
from bpo_integrations.templates import REWRITE_FORMAT
from bpo_train.evaluation.testsets import load_testset

PAGE = ROOT / "docs" / "benchmarks.md"


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds, and what the call returned."""
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def asked(ask: str, met: bool) -> str:
    """Say what was asked, and whether it was met."""
    return f"{ask}: {'met' if met else '**missed**'}"


def model_card_loop() -> Callable[[str], int]:
    """Return the model card's loop: prompt in, number of new tokens out."""
    model, tokenizer = load_causal_lm("embedded")
    merged: Any = PeftModel.from_pretrained(model, str(ROOT / "bpo_integrations" / "models" / "rewrite"))
    merged = merged.merge_and_unload().eval()

    def rewrite(prompt: str) -> int:
        ids = tokenizer.apply_chat_template(
            REWRITE_FORMAT.messages(prompt), add_generation_prompt=True, return_dict=False, return_tensors="pt"
        )
        with torch.inference_mode():
            out = merged.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1024, do_sample=False)
        return int(out.shape[1] - ids.shape[1])

    return rewrite


def latency(limit: int | None) -> str:
    """Time the embedded model against the loop, prompt by prompt in turn, so that all meet the same noise."""
    prompts = [row.prompt for row in load_testset("vicuna_eval")][:limit]
    loop = model_card_loop()
    rewriter, augmenter = load_embedded("rewrite"), load_embedded("augment")
    always = Decoding(empty_threshold=2.0)  # an addition for every prompt: the augmenter's dearest case

    def tokens(found: Sequence[Sequence[Candidate]]) -> int:
        return sum(candidate.tokens for row in found for candidate in row)

    base = "model card's loop"
    ways: dict[str, Callable[[list[str]], int]] = {
        base: lambda batch: sum(loop(prompt) for prompt in batch),
        "embedded, rewrite": lambda batch: tokens(rewriter.candidates(batch)),
        "embedded, augment": lambda batch: tokens(augmenter.candidates(batch)),
        "embedded, augment, always adding": lambda batch: tokens(augmenter.candidates(batch, always)),
    }
    for way in ways.values():
        way(["What is the capital of France?"])  # loads the weights
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    new: dict[str, list[int]] = {name: [] for name in ways}
    for number, prompt in enumerate(prompts, start=1):
        for name, way in ways.items():
            took, count = timed(lambda way=way, prompt=prompt: way([prompt]))  # type: ignore[misc]
            seconds[name].append(took)
            new[name].append(count)
        if number % 10 == 0:
            print(number, {name: round(statistics.median(values), 3) for name, values in seconds.items()}, flush=True)
    loop_median, loop_rate = statistics.median(seconds[base]), len(prompts) / sum(seconds[base])
    rows = []
    for name, way in ways.items():
        median = statistics.median(seconds[name])
        at_once, asks = "", ""
        if name != base:
            took, _ = timed(lambda way=way: way(prompts))  # type: ignore[misc]
            gain, share = len(prompts) / took / loop_rate, loop_median / median
            at_once = f"{gain:.1f}x"
            if name == "embedded, rewrite":
                asks = f"{asked('1/5', share >= 5)}; {asked('8x', gain >= 8)}"
            elif name == "embedded, augment":
                asks = asked("1/10", share >= 10)
        rows.append(
            [
                name,
                f"{statistics.median(new[name]):.0f}",
                f"{median:.2f} s",
                f"1/{loop_median / median:.1f}",
                f"{len(prompts) / sum(seconds[name]) / loop_rate:.1f}x",
                at_once,
                asks,
            ]
        )
        print(rows[-1], flush=True)
    header = ["way", "new tokens (median)", "latency (median)", "of the loop's", "prompts/s, one by one", "all at once"]
    return f"{len(prompts)} prompts of vicuna_eval.\n\n{table([*header, 'asked'], rows)}"


def concurrency(limit: int | None) -> str:
    """Time 64 calls of `ainvoke` that start together against one `batch`, in three interleaved rounds."""
    prompts = [row.prompt for row in load_testset("vicuna_eval")][: min(limit or 64, 64)]
    # The same number of tokens for every prompt and round, and nothing from the cache.
    optimizer = PromptOptimizer(
        mode="rewrite", decoding=Decoding(max_new_tokens=24), cache=0, timeout=None, policy=lambda prompt, context: None
    )
    runnable = BPORunnable(optimizer=optimizer)

    async def together() -> None:
        await asyncio.gather(*(runnable.ainvoke(prompt) for prompt in prompts))

    runnable.batch(prompts[:2])
    rounds = []
    for number in range(6):  # who goes first changes
        calls = [lambda: asyncio.run(together()), lambda: runnable.batch(prompts)]
        first, second = (timed(call)[0] for call in (calls if number % 2 else calls[::-1]))
        rounds.append((first, second) if number % 2 else (second, first))
        print("concurrency", [round(took, 2) for took in rounds[-1]], flush=True)
    ratio = statistics.median(batch for _, batch in rounds) / statistics.median(tasks for tasks, _ in rounds)
    return table(
        ["what", "measured", "asked"],
        [
            [
                f"{len(prompts)} concurrent `ainvoke` against one `batch`, prompts/s, 24 new tokens each, medians of 6",
                f"{ratio:.2f}x",
                asked("at least 0.9x", ratio >= 0.9),
            ]
        ],
    )


class Instant:
    """An engine that returns at once."""

    id = "instant"
    traits = Traits(literal=True, repeats=True, gate=False, stops=True, forks="works", coalesce=False)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        return [[Candidate("Cover how the parts work together, and why it still works in winter.")] for _ in requests]

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        return self.generate(requests, decoding)

    def close(self) -> None:
        pass


def overhead(_: int | None) -> str:
    """Time `BPORunnable` around an engine that returns at once against a runnable that does nothing."""
    prompt = "Please explain in plain and simple words how a heat pump warms a house when it is freezing cold outside"
    assert len(prompt.split()) == 20
    bpo = BPORunnable(optimizer=PromptOptimizer(Rewriter(Instant(), load_embedded("augment").record)))
    fresh = BPORunnable(optimizer=PromptOptimizer(Rewriter(Instant(), load_embedded("augment").record), cache=0))
    identity = RunnableLambda(lambda value: value)
    assert bpo.invoke(prompt) != prompt
    took: dict[str, list[float]] = {"identity": [], "same": [], "new": []}
    for number in range(3000):
        took["identity"].append(timed(lambda: identity.invoke(prompt))[0])
        took["same"].append(timed(lambda: bpo.invoke(prompt))[0])
        if number % 10 == 0:
            text = f"{prompt} {number}"
            took["new"].append(timed(lambda text=text: fresh.invoke(text))[0])  # type: ignore[misc]
    base, same, new = (statistics.median(took[name]) for name in ("identity", "same", "new"))
    what = "`invoke` around an engine that returns at once, 20 words, guards on, against `RunnableLambda`, medians"
    rows = [
        [f"{what}: the same prompt again", f"{same / base:.1f}x ({same * 1e6:.0f} µs)", asked("3x", same / base <= 3)],
        [f"{what}: a prompt never seen", f"{new / base:.1f}x ({new * 1e6:.0f} µs)", ""],
    ]
    return table(["what", "measured", "asked"], rows)


def start(_: int | None) -> str:
    """Time a process from its start to its first result against one that only loads the weights."""
    folder = load_embedded("augment").engine._loaded().folder  # type: ignore[attr-defined]  # converts when needed
    ours = (
        "from bpo_integrations import PromptOptimizer;"
        "assert PromptOptimizer(threads=1, preload=True).optimize('Tell me about Harry Potter').changed"
    )
    bare = (
        f"import ctranslate2;ctranslate2.Generator({str(folder)!r}, device='cpu', compute_type='int8', intra_threads=1)"
    )

    def run(code: str) -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))[0]

    run(ours), run(bare)
    pairs = [(run(ours), run(bare)) for _ in range(9)]
    ratio = statistics.median(first for first, _ in pairs) / statistics.median(second for _, second in pairs)
    seconds = statistics.median(first for first, _ in pairs)
    row = [
        "process start to first result, against `import ctranslate2` and loading the weights, medians of 9",
        f"{ratio:.1f}x ({seconds:.2f} s)",
        asked("2.5x", ratio <= 2.5),
    ]
    return table(["what", "measured", "asked"], [row])


PARTS: dict[str, Callable[[int | None], str]] = {
    "latency": latency,
    "concurrency": concurrency,
    "overhead": overhead,
    "start": start,
}


@click.command()
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Run only this part; may be repeated.")
@click.option("--limit", type=int, default=None, help="Use the first N prompts only.")
@click.option("--write/--no-write", default=True, help="Write docs/benchmarks.md.")
def main(only: tuple[str, ...], limit: int | None, write: bool) -> None:
    """Time the optimizer on the CPU."""
    for name in only or PARTS:
        text = PARTS[name](limit)
        print(f"\n{text}\n", flush=True)
        if write:
            put(PAGE, f"optimize-{name}", f"{text}\n\n{stamp()}")


if __name__ == "__main__":
    main()
