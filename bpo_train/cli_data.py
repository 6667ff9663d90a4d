"""`bpo-train construct` and `bpo-train reproduce`: options in, progress and one summary line out. No logic.

Exit codes: 0 done, 1 the model fails row after row, 2 wrong usage, 3 wrong configuration (also a refused key or an
unknown model), 4 a file cannot be used, 5 stopped at the budget with rows left, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bpo_integrations.cli.exits import Exit, exit_code, one_line
from bpo_integrations.errors import BPOError, ConfigurationError

if TYPE_CHECKING:
    from bpo_train.data.journal import Plan
    from bpo_train.data.llm import Limits
    from bpo_train.data.work import Tally

AT_BUDGET = 5
"""The exit code of a run that stopped at its budget."""

PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""The settings of commands that hand all their options, `--help` too, to a trainer's own parser."""

Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command) -> Command:
    """Add the options of the model that is asked, its limits and its price."""
    command = limit_options(command)
    options = (
        click.option("--annotator", required=True, metavar="MODEL", help="openai:NAME, vllm:MODEL, PROVIDER:NAME."),
        click.option("--base-url", metavar="URL", help="An OpenAI-compatible server, which has MODEL."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def prompt_sets(command: Command) -> Command:
    """Add the options of the prompts that a command is about."""
    command = click.option("--limit", type=click.IntRange(1), help="Take so many prompts, by set and category.")(
        command
    )
    return click.option(
        "--set",
        "sets",
        multiple=True,
        required=True,
        metavar="NAME|F",
        help="A test set of the paper, a file or an address; NAME=F gives it a name. Several.",
    )(command)


def judge_style(command: Command) -> Command:
    """Add the option of how a judge is asked."""
    return click.option(
        "--judge-style",
        type=click.Choice(["pairwise", "ranking"]),
        default="pairwise",
        show_default=True,
        help="Asks for a verdict (MT-bench), or for a ranking (AlpacaEval).",
    )(command)


def limit_options(command: Command) -> Command:
    """Add the options of how a model is asked: limits, retries, budget and price."""
    options = (
        click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Of an answer."),
        click.option(
            "--timeout", type=float, default=120.0, show_default=True, help="Seconds that a request may take."
        ),
        click.option("--concurrency", type=click.IntRange(1), default=16, show_default=True, help="Requests at once."),
        click.option("--requests-per-minute", type=float, help="Most requests that start in a minute."),
        click.option("--tokens-per-minute", type=float, help="Most tokens, read and written, in a minute."),
        click.option("--retries", type=click.IntRange(0), default=6, show_default=True, help="Of a failed request."),
        click.option("--retry-failed", is_flag=True, help="Ask again about rows that failed in an earlier run."),
        click.option("--budget-tokens", type=click.IntRange(1), help="Stop at so many tokens, all runs together."),
        click.option("--price-in", type=float, help="Price of a million tokens read, to show the cost."),
        click.option("--price-out", type=float, help="Price of a million tokens written."),
        click.option("--dry-run", is_flag=True, help="Show rows, tokens and cost; ask nobody, write nothing."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option(
    "--input", "inputs", required=True, multiple=True, metavar="F|ID", help="Preferences: a file or a hub id; several."
)
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the files.")
@click.option("--kind", help="The layout of the input; default: recognised by its fields.")
@click.option("--split", help="The split of the input; default: train.")
@click.option("--mode", type=click.Choice(["augment", "rewrite", "both"]), default="augment", show_default=True)
@click.option("--candidates", type=click.IntRange(1), default=1, show_default=True, help="Answers a row; best is kept.")
@click.option("--no-feedback", is_flag=True, help="Do not show the responses: the paper's ablation.")
@click.option("--no-guards", is_flag=True, help="Keep what only our guards reject.")
@click.option("--temperature", type=click.FloatRange(0), default=0.9, show_default=True, help="The paper's is 0.9.")
@click.option("--min-words", type=click.IntRange(0), default=3, show_default=True, help="Of an instruction.")
@click.option("--languages", metavar="en,de,...", help="Languages that are taken; default: all.")
@click.option("--licences", metavar="MIT,...", help="Licences that are taken; default: all.")
@click.option(
    "--near-duplicates", type=float, default=0.8, show_default=True, help="Similarity at which a row is one; 0: off."
)
@click.option("--self-bleu", type=float, default=0.6, show_default=True, help="Most BLEU against other rows; 0: off.")
@click.option(
    "--decontaminate", multiple=True, type=click.Path(exists=True), help="Test set that no row may overlap; several."
)
@click.option("--sample", type=click.IntRange(1), help="Take so many rows, by source and category.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the sample and of the contexts' forms.")
@click.option("--validation", type=float, default=0.05, show_default=True, help="Share of the rows.")
@click.option("--test", type=float, default=0.05, show_default=True, help="Share of the rows.")
@model_options
def construct(**options: Any) -> None:
    """Turn preferences into training data: `bpo-train construct --input F --output DIR --annotator MODEL`.

    The same command goes on where an earlier run stopped.
    """
    from bpo_train.data.construct import Construction, Recipe
    from bpo_train.data.filters import Filters
    from bpo_train.data.outputs import Shares

    with exits():
        recipe = Recipe(
            inputs=options["inputs"],
            annotator=options["annotator"],
            mode=options["mode"],
            kind=options["kind"],
            split=options["split"],
            filters=Filters(
                licences=_list(options["licences"]),
                min_words=options["min_words"],
                languages=_list(options["languages"]),
                decontaminate=options["decontaminate"],
                near_duplicates=options["near_duplicates"] or None,
                self_bleu=options["self_bleu"] or None,
                sample=options["sample"],
                seed=options["seed"],
            ),
            candidates=options["candidates"],
            feedback=not options["no_feedback"],
            guards=not options["no_guards"],
            temperature=options["temperature"],
            max_tokens=options["max_tokens"],
            seed=options["seed"],
        )
        prices = _prices(options)
        construction = Construction(
            recipe,
            options["output"],
            Shares(options["validation"], options["test"]),
            options["budget_tokens"],
            options["retry_failed"],
            prices,
        )
        if options["dry_run"]:
            click.echo(planned(construction.estimate(), prices))
            return
        backend = _backend(options)
        with progress(prices) as update:
            summary = _run(construction.run(backend, _limits(options), update))
        _finish(summary, options["output"])


@click.command()
@click.option("--input", "source", required=True, metavar="F|ID", help="Alpaca format: instruction, input, output.")
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the files.")
@click.option("--split", help="The split of the input; default: train.")
@click.option("--model", default="embedded", show_default=True, help="The rewriter, by its spec.")
@click.option("--mode", type=click.Choice(["augment", "rewrite"]), help="The rewriter's mode; default: its own.")
@click.option("--temperature", type=click.FloatRange(0), default=0.7, show_default=True, help="Of the answers.")
@model_options
def reproduce(**options: Any) -> None:
    """Answer an instruction set anew, its prompts optimized: BPO for SFT data (paper, section 4.4).

    `bpo-train reproduce --input alpaca.json --output DIR --model embedded --annotator MODEL`; the annotator is the LLM
    that answers.
    """
    from bpo_train.data.reproduce import Reproduction

    with exits():
        prices = _prices(options)
        reproduction = Reproduction(
            source=options["source"],
            split=options["split"],
            model=options["model"],
            mode=options["mode"],
            annotator=options["annotator"],
            temperature=options["temperature"],
            max_tokens=options["max_tokens"],
            output=options["output"],
            budget_tokens=options["budget_tokens"],
            retry_failed=options["retry_failed"],
            prices=prices,
        )
        if options["dry_run"]:
            click.echo(planned(reproduction.estimate(), prices))
            return
        backend = _backend(options)
        with progress(prices) as update:
            summary = _run(reproduction.run(backend, _limits(options), update))
        _finish(summary, options["output"])


@contextmanager
def exits() -> Iterator[None]:
    """Turn errors into one line and an exit code."""
    try:
        yield
    except BPOError as error:
        click.echo(f"bpo-train: {one_line(str(error))}", err=True)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        click.echo("bpo-train: Interrupted. The same command goes on from here.", err=True)
        sys.exit(Exit.INTERRUPTED)


def planned(plan: Plan, prices: tuple[float, float] | None) -> str:
    """Return in a line what a run would do.

    Example:
        >>> from bpo_train.data.journal import Plan
        >>> planned(Plan(1178, 1021, 900_000, 255_000), (0.15, 0.6))
        '1,021 of 1,178 rows; about 900,000 tokens to read and 255,000 to write; cost about 0.29.'
    """
    from bpo_train.data.outputs import cost

    price = f"; cost about {cost(plan.prompt_tokens, plan.completion_tokens, prices):.2f}" if prices else ""
    tokens = f"{plan.prompt_tokens:,} tokens to read and {plan.completion_tokens:,} to write"
    skipped = f" ({sum(plan.skipped.values()):,} more rows hold no preference)" if plan.skipped else ""
    return f"{plan.asked:,} of {plan.rows:,} rows{skipped}; about {tokens}{price}."


@contextmanager
def progress(prices: tuple[float, float] | None) -> Iterator[Callable[[Tally], None]]:
    """Show a bar on standard error, where that is a terminal; yields what updates it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[what]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("filtering", total=None, what="")

        def update(tally: Tally) -> None:
            if console.is_terminal:
                what = state(tally, time.monotonic() - tally.started, prices)
                bar.update(task, description="asking", completed=tally.total - tally.left, total=tally.total, what=what)

        yield update


def state(tally: Tally, seconds: float, prices: tuple[float, float] | None) -> str:
    """Return what the bar says behind the count: time left, tokens, cost, what became of the rows.

    Args:
        tally: How far the run is.
        seconds: Since this run began.
        prices: Of a million tokens read, and written.

    Example:
        >>> from collections import Counter
        >>> from bpo_train.data.llm import Usage
        >>> from bpo_train.data.work import Tally
        >>> state(Tally(100, Counter(kept=40), Usage(50, 9_000, 1_000), asked=50, left=50), 10.0, (1.0, 2.0))
        '0:00:10 left, 10,000 tokens, cost 0.01; 40 kept'
    """
    from bpo_train.data.outputs import cost

    left = [f"{timedelta(seconds=round(seconds * tally.left / tally.asked))} left"] if tally.asked else []
    spent = [f"{tally.usage.tokens:,} tokens"]
    if prices:
        spent.append(f"cost {cost(tally.usage.prompt_tokens, tally.usage.completion_tokens, prices):.2f}")
    return f"{', '.join(left + spent)}; {', '.join(f'{count:,} {name}' for name, count in tally.statuses.items())}"


def _finish(summary: dict[str, Any], folder: Path) -> None:
    """Say what was done; leave with the budget's exit code where rows are left."""
    fates = ", ".join(f"{summary[name]:,} {name}" for name in ("kept", "dropped", "failed"))
    cost = f", cost {summary['cost']:.2f}" if "cost" in summary else ""
    click.echo(f"{summary['total']:,} rows: {fates}; {summary['tokens']:,} tokens{cost}. Written to {folder}.")
    if summary["failed"]:
        click.echo("bpo-train: Rows that failed are asked again with --retry-failed.", err=True)
    if summary["stopped"]:
        left = f"{summary['left']:,} rows are left; the same command with a larger --budget-tokens goes on."
        click.echo(f"bpo-train: Stopped at the budget. {left}", err=True)
        sys.exit(AT_BUDGET)


def _run(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    return asyncio.run(work)


def _backend(options: dict[str, Any]) -> Any:
    from bpo_train.data.backends import open_backend

    return open_backend(
        options["annotator"],
        base_url=options["base_url"],
        temperature=options["temperature"],
        max_tokens=options["max_tokens"],
        timeout=options["timeout"],
    )


def _limits(options: dict[str, Any]) -> Limits:
    from bpo_train.data.llm import Limits

    return Limits(
        concurrency=options["concurrency"],
        requests_per_minute=options["requests_per_minute"],
        tokens_per_minute=options["tokens_per_minute"],
        retries=options["retries"],
    )


def _prices(options: dict[str, Any]) -> tuple[float, float] | None:
    prices = (options["price_in"], options["price_out"])
    if prices == (None, None):
        return None
    if None in prices:
        msg = "Only one price is given."
        raise ConfigurationError(msg, hint="Give --price-in and --price-out, or neither.")
    return prices


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()
