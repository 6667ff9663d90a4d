"""How fast the embedded engine is, as ratios to the model card's loop, prompt by prompt in one run.

    python tests/benchmarks/speed.py               # the 80 prompts of vicuna_eval (about 10 minutes on two cores)

The loop is THUDM/BPO's model card: transformers, one prompt after the other, its sampling (T 0.6, top-p 0.9, at most
1,024 new tokens), here in float32 on the same merged weights (the embedded rewriting adapter). Every prompt goes
through the loop, the embedded rewriter and the embedded augmenter in turn, so that all meet the same noise. Policy,
guards and cache are left out: this times the models. Needs the extras `local` and `hf`, and the test sets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from peft import PeftModel
from quality import load_set
from report import ROOT, put, stamp, table

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.causal_lm import load_causal_lm
from bpo_integrations.models.embedded import load_embedded
from bpo_integrations.templates import REWRITE_FORMAT


def model_card_loop() -> Callable[[str], int]:
    """Return the model card's loop: prompt in, number of new tokens out."""
    model, tokenizer = load_causal_lm("embedded")
    merged: Any = PeftModel.from_pretrained(model, str(ROOT / "bpo_integrations" / "models" / "rewrite"))
    merged = merged.merge_and_unload().eval()
    torch.manual_seed(0)

    def rewrite(prompt: str) -> int:
        ids = tokenizer.apply_chat_template(
            REWRITE_FORMAT.messages(prompt), add_generation_prompt=True, return_dict=False, return_tensors="pt"
        )
        with torch.inference_mode():
            out = merged.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=1024,
                do_sample=True,
                top_p=0.9,
                temperature=0.6,
                num_beams=1,
            )
        return int(out.shape[1] - ids.shape[1])

    return rewrite


def timed(call: Callable[[], int]) -> tuple[float, int]:
    """Return seconds and what the call returned."""
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


@click.command()
@click.option("--limit", type=int, default=None, help="Use the first N prompts only.")
@click.option("--write/--no-write", default=True, help="Write docs/benchmarks.md.")
def main(limit: int | None, write: bool) -> None:
    """Time the embedded engine against the model card's loop."""
    prompts = [prompt for prompt, _ in load_set("vicuna_eval")][:limit]
    loop = model_card_loop()
    rewriter, augmenter = load_embedded("rewrite"), load_embedded("augment")
    always = Decoding(empty_threshold=2.0)  # an addition for every prompt: the augmenter's dearest case

    def tokens(found: list[list[Any]]) -> int:
        return sum(candidate.tokens for row in found for candidate in row)

    ways: dict[str, Callable[[list[str]], int]] = {
        "model card's loop": lambda batch: sum(loop(prompt) for prompt in batch),
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
    base = "model card's loop"
    loop_median, loop_rate = statistics.median(seconds[base]), len(prompts) / sum(seconds[base])
    rows = []
    for name, way in ways.items():
        median = statistics.median(seconds[name])
        rate, at_once = len(prompts) / sum(seconds[name]), ""
        if name != base:
            took, _ = timed(lambda way=way: way(prompts))  # type: ignore[misc]
            at_once = f"{len(prompts) / took / loop_rate:.1f}x"
        rows.append(
            [
                name,
                f"{statistics.median(new[name]):.0f}",
                f"{median:.2f} s",
                f"1/{loop_median / median:.1f}",
                f"{rate / loop_rate:.1f}x",
                at_once,
            ]
        )
        print(rows[-1], flush=True)
    header = ["way", "new tokens (median)", "latency (median)", "of the loop's", "prompts/s, one by one", "all at once"]
    if write:
        put(ROOT / "docs" / "benchmarks.md", "speed", f"{table(header, rows)}\n\n{stamp()}")


if __name__ == "__main__":
    main()
