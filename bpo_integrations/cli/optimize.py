"""`bpo optimize`: one prompt, or a file of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bpo_integrations.cli import show
from bpo_integrations.cli.exits import one_line
from bpo_integrations.cli.jobs import Job, run_job, summary
from bpo_integrations.cli.options import Parts, Settings, optimizer_options, read_prompt
from bpo_integrations.cli.rows import Fields

_EPILOG = """\b
Examples:
  bpo optimize "Tell me about Harry Potter"
  bpo optimize "Tell me about Harry Potter" --diff
  cat prompt.md | bpo optimize | llm
  bpo optimize --file prompts.csv --field question --output better.csv
"""


@click.command("optimize", epilog=_EPILOG)
@click.argument("prompt", required=False)
@optimizer_options
@click.option("--diff", is_flag=True, help="Show the change word by word.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
@click.option("--explain", is_flag=True, help="Say why, and what became of each candidate.")
@click.option("--file", "source", metavar="IN", help="Optimize a file of prompts: .jsonl, .csv or .txt.")
@click.option("--field", metavar="NAME", help="The field (column) that holds the prompt.  [default: prompt]")
@click.option("--output", "target", metavar="OUT", help="Where the rows go, with the results beside them.")
@click.option("--output-field", metavar="NAME", help="The field for the result.  [default: optimized_prompt]")
@click.option("--overwrite", is_flag=True, help="Replace OUT, and drop what another job left unfinished.")
@click.pass_context
def optimize(
    ctx: click.Context,
    prompt: str | None,
    settings: Settings,
    diff: bool,
    as_json: bool,
    explain: bool,
    source: str | None,
    field: str | None,
    target: str | None,
    output_field: str | None,
    overwrite: bool,
) -> None:
    """Print the optimized PROMPT, and nothing else.

    Without PROMPT, or where it is '-', standard input is read: all of it is one prompt.
    """
    views = [name for name, given in (("--diff", diff), ("--json", as_json), ("--explain", explain)) if given]
    if as_json and len(views) > 1:
        msg = f"{' and '.join(views)} cannot go together."
        raise click.UsageError(msg)
    parts: Parts = ctx.obj or Parts()
    files = {"--field": field, "--output": target, "--output-field": output_field, "--overwrite": overwrite}
    if source is None:
        _refuse(files, "without --file")
        _optimize_prompt(prompt, settings, parts, diff=diff, as_json=as_json, explain=explain)
        return
    _refuse({"PROMPT": prompt, **dict.fromkeys(views, True)}, "with --file")
    if target is None:
        msg = "Missing --output: where the rows of --file go."
        raise click.UsageError(msg)
    fields = Fields(field or "prompt", output_field or "optimized_prompt")
    _optimize_file(Job(Path(source), Path(target), fields, overwrite), settings, parts)


def _refuse(given: dict[str, Any], where: str) -> None:
    wrong = [name for name, value in given.items() if value not in (None, False)]
    if wrong:
        msg = f"{', '.join(wrong)} cannot be used {where}."
        raise click.UsageError(msg)


def _optimize_prompt(
    argument: str | None, settings: Settings, parts: Parts, *, diff: bool, as_json: bool, explain: bool
) -> None:
    prompt = read_prompt(argument)
    optimizer = settings.build(parts.rewriter)
    result = optimizer.optimize(prompt.text)
    if result.reason.startswith("failed:"):
        click.echo(f"bpo: The prompt is unchanged; {one_line(result.reason)}", err=True)
    if as_json:
        show.emit(show.dump(result.to_dict(), indent=2))
        return
    if diff:
        color = show.use_color()
        show.emit(show.difference(result, color=color), prompt.ending)
    else:
        show.emit(result.text, prompt.ending)
    if explain:
        threshold = optimizer.decoding.empty_threshold
        if threshold is None:
            threshold = optimizer.rewriter.record.empty_threshold
        show.emit("\n" + show.explanation(result, threshold))


def _optimize_file(job: Job, settings: Settings, parts: Parts) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    job.check()
    optimizer = settings.build(parts.rewriter)
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done = 0
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)

        def progress(rows: int, total: int) -> None:
            nonlocal done
            done = rows
            bar.update(task, description="optimizing", completed=rows, total=total)

        try:
            written = run_job(job, settings, optimizer, progress)
        except KeyboardInterrupt:
            bar.stop()
            click.echo(f"bpo: {done:,} rows are safe; the same command goes on from there.", err=True)
            raise
    click.echo(f"bpo: {summary(written, job.target)}", err=True)
