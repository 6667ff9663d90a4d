"""What the embedded model does to real prompts: how many it changes, with what, and what its guards catch.

    python tests/benchmarks/quality.py                 # both modes, all three sets (about 15 minutes on two cores)
    python tests/benchmarks/quality.py --mode augment --set vicuna_eval

Writes docs/benchmarks.md (between its markers) and docs/samples.md (30 random results of each set). Needs the test
sets and the extras `local` and `dev`.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
from collections import Counter
from pathlib import Path

import click
from report import ROOT, put, stamp, table

from bpo_integrations.engines.base import Request
from bpo_integrations.engines.ctranslate2 import CTranslate2Engine
from bpo_integrations.models.embedded import load_embedded
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Mode, OptimizedPrompt

DATA = Path(os.environ.get("BPO_DATA_DIR", ROOT.parent / "shared" / "data"))
PAGE = ROOT / "docs" / "benchmarks.md"
SAMPLES = ROOT / "docs" / "samples.md"
MODES: tuple[Mode, ...] = ("augment", "rewrite")
SETS = ("vicuna_eval", "bpo_test", "dolly_eval")
LONGEST_JUDGED = 600
"""Characters of the longest prompt whose addition is judged for its subject."""
RIVALS = 9
"""Other prompts of the set that an addition is compared with, to see whether it is about its own."""


def load_set(name: str) -> list[tuple[str, str | None]]:
    """Return (prompt, gold rewrite or None). A context follows its instruction on a new line."""
    if name == "vicuna_eval":
        lines = (DATA / "testsets" / "vicuna_eval.jsonl").read_text(encoding="utf-8").splitlines()
        return [(json.loads(line)["text"], None) for line in lines]
    rows = json.loads((DATA / "testsets" / f"{name}.json").read_text(encoding="utf-8"))
    if name == "bpo_test":
        return [(row["prompt"], row["optimized_prompt"]) for row in rows]
    return [("\n".join(filter(None, (row["instruction"], row["context"]))), None) for row in rows]


def kept_because(result: OptimizedPrompt) -> str:
    """Return the kind of reason: without the words that a guard quotes."""
    reason = result.reason.split(":")
    return ":".join(reason[:2]) if reason[0] in ("policy", "model", "joint") else reason[0]


def distinct_share(texts: list[str], words: int = 5) -> float:
    """Return how many texts share their first words with no other text."""
    heads = [" ".join(re.findall(r"\w+", text.lower())[:words]) for text in texts]
    counts = Counter(heads)
    return sum(counts[head] == 1 for head in heads) / max(1, len(heads))


def on_subject_share(results: list[OptimizedPrompt], rng: random.Random) -> float:
    """Return how many additions the model finds likelier after their own prompt than after each of nine others.

    Chance is 10%. The judge is the augmenting model itself, on up to 60 prompts of the same set that it changed.
    """
    results = [result for result in results if len(result.original) <= LONGEST_JUDGED]
    results = rng.sample(results, min(60, len(results)))
    rewriter = load_embedded("augment")
    engine = rewriter.engine
    assert isinstance(engine, CTranslate2Engine)
    hits = 0
    for result in results:
        others = rng.sample([other.original for other in results if other.original != result.original], RIVALS)
        pairs = [
            (Request(tuple(rewriter.record.format.messages(prompt.strip()))), result.addition)
            for prompt in (result.original, *others)
        ]
        scores = engine.score(pairs)
        hits += scores[0] == max(scores)
    return hits / max(1, len(results))


def measure(name: str, mode: Mode, rng: random.Random) -> tuple[list[object], Counter[str], list[OptimizedPrompt]]:
    """Run one set in one mode; return a row of the table, the violations by guard, and the results."""
    rows = load_set(name)
    optimizer = PromptOptimizer("embedded", mode=mode, timeout=None, on_error="raise")
    results = optimizer.optimize_batch([prompt for prompt, _ in rows])
    changed = [result for result in results if result.changed]
    raw = [result.candidates[0] for result in results if result.candidates and result.candidates[0].text]
    bad = Counter(candidate.violation.guard for candidate in raw if candidate.violation)
    line: list[object] = [
        name,
        mode,
        len(rows),
        f"{len(changed)} ({100 * len(changed) / len(rows):.0f}%)",
        f"{100 * sum(bad.values()) / max(1, len(raw)):.1f}% of {len(raw)}",
    ]
    if mode == "augment":
        texts = [result.addition for result in changed]
        line += [
            f"{statistics.median(len(text.split()) for text in texts):.0f}" if texts else "",
            f"{100 * distinct_share(texts):.0f}%",
            f"{100 * on_subject_share(changed, rng):.0f}%" if len(changed) > RIVALS else "",
        ]
    elif name == "bpo_test":
        from sacrebleu.metrics import CHRF

        gold = [[str(row[1]) for row in rows]]
        ours = CHRF().corpus_score([result.text for result in results], gold).score
        as_is = CHRF().corpus_score([prompt for prompt, _ in rows], gold).score
        line += [f"{ours:.1f} (prompts as they are: {as_is:.1f})"]
    else:
        line += [""]
    return line, bad, results


def samples_page(found: dict[tuple[str, Mode], list[OptimizedPrompt]], rng: random.Random) -> str:
    """Write 30 random results of each set, as they are."""
    parts = ["# Samples", "", "30 random results of each test set, chosen by a seed, none left out."]
    for (name, mode), results in found.items():
        parts += ["", f"## {name}, {mode}", ""]
        for result in rng.sample(results, min(30, len(results))):
            prompt = " ".join(result.original.split())
            prompt = prompt if len(prompt) <= 300 else prompt[:300] + " ..."
            after = result.addition or " ".join(result.text.split()) if result.changed else f"_{result.reason}_"
            sign = "**+**" if result.kind == "augmented" else "**=>**" if result.changed else "kept:"
            parts.append(f"- {_plain(prompt)}<br>{sign} {_plain(after)}")
    return "\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return text.replace("<br>", " ").replace("<", "&lt;").replace("|", "\\|")


@click.command()
@click.option("--mode", "modes", type=click.Choice(MODES), multiple=True, default=MODES)
@click.option("--set", "names", type=click.Choice(SETS), multiple=True, default=SETS)
@click.option("--write/--no-write", default=True, help="Write the docs pages.")
def main(modes: tuple[Mode, ...], names: tuple[str, ...], write: bool) -> None:
    """Measure the embedded model's quality on the test sets."""
    rng = random.Random(0)
    found: dict[tuple[str, Mode], list[OptimizedPrompt]] = {}
    parts = []
    for mode in modes:
        rows, guards, reasons = [], [], []
        for name in names:
            line, bad, results = measure(name, mode, rng)
            rows.append(line)
            guards.append([name, ", ".join(f"{guard} {count}" for guard, count in bad.most_common()) or "none"])
            kept = Counter(kept_because(result) for result in results if not result.changed)
            reasons.append([name, ", ".join(f"{reason} {count}" for reason, count in kept.most_common()) or "none"])
            found[name, mode] = results
            print(line, dict(bad), dict(kept), flush=True)
        tail = ["chrF against gold"]
        if mode == "augment":
            tail = ["words added (median)", "alone in its first five words", "on the subject"]
        head = ["set", "mode", "prompts", "changed", "raw candidates with a violation"]
        parts += [
            table([*head, *tail], rows),
            f"Violations of raw candidates by guard, {mode}:",
            table(["set", "guards"], guards),
            f"Left alone because, {mode}:",
            table(["set", "reasons"], reasons),
        ]
    if write:
        put(PAGE, "quality", "\n\n".join([*parts, stamp()]))
        SAMPLES.write_text(samples_page(found, rng), encoding="utf-8")


if __name__ == "__main__":
    main()
