"""`bpo-train score`: what optimizers do to prompts, without any judge. Options in, tables or JSON out; no logic.

Exit codes: 0 done, 1 every prompt failed with some model, 2 wrong usage, 3 wrong configuration, 4 a file cannot be
used, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpo_integrations.cli.exits import Exit
from bpo_train.cli_data import exits, prompt_sets

if TYPE_CHECKING:
    from bpo_integrations.optimizer import PromptOptimizer
    from bpo_train.evaluation.records import TestPrompt
    from bpo_train.evaluation.scoreboard import Scored
    from bpo_train.evaluation.subject import Similarity

FILE = "score.json"
"""The file in the output folder."""

_LOCAL = ("embedded", "ct2", "gguf", "hf", "vllm")
"""Kinds of models that run in this process, and so have no address."""


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("embedded",),
    show_default=True,
    metavar="SPEC",
    help="What optimizes, by its spec; several are shown side by side.",
)
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(["augment", "rewrite"]),
    help="Default: the model's own; both are shown side by side.",
)
@prompt_sets
@click.option("--seed", type=int, default=0, show_default=True, help="Of what --limit draws.")
@click.option("--base-url", metavar="URL", help="The OpenAI-compatible server of models that do not run here.")
@click.option(
    "--embeddings",
    metavar="MODEL",
    help="Tell the subject by sentence embeddings: 'minilm', a folder or a hub id. Default: TF-IDF.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder that keeps the results, from which a later run goes on, and {FILE}.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def score(**options: Any) -> None:
    """Measure what optimizers do to prompts: `bpo-train score --model embedded --set my-prompts.jsonl`.

    No LLM answers and no judge is asked: this tells a broken rewriter from a sound one, not whether it helps.
    """
    from bpo_integrations.cli.show import dump, emit, rendered
    from bpo_train.data.outputs import replacing
    from bpo_train.evaluation.scoreboard import remarks, tables
    from bpo_train.evaluation.subject import embedding_similarity, tfidf_similarity
    from bpo_train.evaluation.testsets import load_testsets, sampled

    with exits(), _loses(nothing=options["output"] is not None):
        prompts = sampled(load_testsets(options["sets"]), options["limit"], seed=options["seed"])
        embeddings = options["embeddings"]
        similarity = embedding_similarity(embeddings) if embeddings else tfidf_similarity
        scored = _scored(_optimizers(options), prompts, similarity, options["output"])
        found = {"subject": embeddings or "TF-IDF", "models": [each.to_dict() for each in scored]}
        if options["output"]:
            with replacing(options["output"] / FILE) as file:
                file.write(dump(found, indent=2) + "\n")
        emit(dump(found, indent=2) if options["as_json"] else "\n\n".join(map(rendered, tables(scored))))
        for remark in remarks(scored):
            click.echo(f"bpo-train: {remark}", err=True)
        if any(total.failed == total.prompts for each in scored for total in list(each.scores.values())[-1:]):
            sys.exit(Exit.FAILED)


def _optimizers(options: dict[str, Any]) -> list[tuple[str, PromptOptimizer]]:
    """Make all of them before any runs, so that what is configured wrongly is said at once."""
    from bpo_integrations.optimizer import PromptOptimizer

    made: list[tuple[str, PromptOptimizer]] = []
    for spec in dict.fromkeys(options["models"]):
        remote = options["base_url"] and spec.partition(":")[0] not in _LOCAL
        engine = {"base_url": options["base_url"]} if remote else {}
        modes = dict.fromkeys(options["modes"] or (None,))
        made += [(spec, PromptOptimizer(spec, mode=mode, timeout=None, engine_options=engine)) for mode in modes]
    return made


def _scored(
    optimizers: list[tuple[str, PromptOptimizer]],
    prompts: list[TestPrompt],
    similarity: Similarity,
    folder: Path | None,
) -> list[Scored]:
    from bpo_train.evaluation.optimized import optimized
    from bpo_train.evaluation.scoreboard import Scored, by_set

    found = []
    with _progress(len(optimizers) * len(prompts)) as update:
        for number, (spec, optimizer) in enumerate(optimizers):
            own = folder and folder / folder_name(f"{spec}-{optimizer.mode}")
            told = partial(update, number * len(prompts))
            results = optimized(optimizer, prompts, folder=own, of=spec, update=told)
            scores = by_set(results, prompts, similarity=similarity)
            found.append(Scored(spec, optimizer.mode, scores, optimizer.rewriter.id))
            optimizer.close()
    return found


def folder_name(text: str) -> str:
    """Return a name for a folder that no other text has.

    Example:
        >>> folder_name("hf:runs/my model-augment")
        'hf_3aruns_2fmy_20model-augment'
    """
    return "".join(char if char.isalnum() or char in "-." else f"_{ord(char):02x}" for char in text)


@contextmanager
def _loses(*, nothing: bool) -> Iterator[None]:
    """Say the truth about an interrupted run that kept nothing."""
    try:
        yield
    except KeyboardInterrupt:
        if nothing:
            raise
        click.echo("bpo-train: Interrupted. Nothing was kept; --output DIR keeps what is done.", err=True)
        sys.exit(Exit.INTERRUPTED)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on standard error, where that is a terminal; yields what is told how much is done, before and now."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("optimizing", total=total)
        yield lambda earlier, own: bar.update(task, completed=earlier + own)
