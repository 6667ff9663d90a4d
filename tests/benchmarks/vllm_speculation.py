"""When n-gram speculation pays in vLLM: the time with it as a ratio to the time without, for 1, 8 and 32 prompts.

    .venv-vllm/bin/python tests/benchmarks/vllm_speculation.py FOLDER     # a rewriting model, exported with bpo.json

Both engines are in memory, and take turns on the same prompts of vicuna_eval, greedy, so that both meet the same noise;
a row is the median of its rounds. Policy, guards and cache are left out. What it says of a CPU says little of a GPU,
where checking five tokens costs about as much as making one. On a CPU that others use, give vLLM one thread
(VLLM_CPU_OMP_THREADS_BIND=0): several wait for each other in every layer.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import click
from report import ROOT, put, stamp, table

from bpo_integrations.decoding import Decoding
from bpo_integrations.rewriter import Rewriter, load_rewriter

DATA = Path(os.environ.get("BPO_DATA_DIR") or ROOT.parent / "shared" / "data")


def timed(rewriter: Rewriter, prompts: list[str], new_tokens: int) -> tuple[float, list[str]]:
    """Return the seconds for one call, and what came of it."""
    started = time.perf_counter()
    rows = rewriter.candidates(prompts, Decoding(max_new_tokens=new_tokens))
    return time.perf_counter() - started, [row[0].text for row in rows]


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--rounds", default=3, help="Rounds a row.")
@click.option("--new-tokens", default=64, help="Most new tokens a prompt.")
@click.option("--dtype", default="float32", help="vLLM's name of the weights' type.")
@click.option("--page", type=click.Path(path_type=Path), help="A page of the documentation to put the table into.")
def main(folder: str, rounds: int, new_tokens: int, dtype: str, page: Path | None) -> None:
    """Measure and print."""
    with (DATA / "testsets" / "vicuna_eval.jsonl").open(encoding="utf-8") as lines:
        prompts = [json.loads(line)["text"] for line in lines]
    # No prefix cache: the second engine would not profit from it more than the first, but rounds would.
    options = {"dtype": dtype, "max_model_len": 1024, "enforce_eager": True, "enable_prefix_caching": False}
    plain = load_rewriter(f"vllm:{folder}", **options)
    ngram = load_rewriter(f"vllm:{folder}", speculation="ngram", **options)
    rows = []
    for size in (1, 8, 32):
        for rewriter in (plain, ngram):
            timed(rewriter, prompts[:size], 8)  # what is compiled at first use is not measured
        ratios, same = [], 0
        for number in range(rounds):
            batch = [prompts[(number * size + place) % len(prompts)] for place in range(size)]
            without, first = timed(plain, batch, new_tokens)
            with_it, second = timed(ngram, batch, new_tokens)
            ratios.append(with_it / without)
            same += sum(one == other for one, other in zip(first, second, strict=True))
            print(f"{size:3} prompts, round {number}: {without:.2f} s without, {with_it:.2f} s with", flush=True)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([size, f"{statistics.median(ratios):.2f}", spread, f"{same} of {rounds * size}"])
    text = f"{stamp()}\n\n{table(['prompts at once', 'time with / without', 'rounds', 'same text'], rows)}"
    print(text)
    if page is not None:
        put(page, "vllm-speculation", text)


if __name__ == "__main__":
    main()
