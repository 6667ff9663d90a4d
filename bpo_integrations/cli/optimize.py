"""`bpo optimize`: one prompt, or a file of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import click

from bpo_integrations.cli import show
from bpo_integrations.cli.bar import progress_bar
from bpo_integrations.cli.exits import one_line
from bpo_integrations.cli.jobs import BLOCK, Job, Tally, Workers, run_job, summary
from bpo_integrations.cli.options import Parts, Settings, optimizer_options, read_prompt
from bpo_integrations.cli.rows import Fields

_EPILOG = """\b
Examples:
  bpo optimize "Tell me about Harry Potter"
  bpo optimize "Tell me about Harry Potter" --diff
  cat prompt.md | bpo optimize | llm
  bpo optimize --file prompts.csv --field question --output better.csv
  bpo optimize --file prompts.parquet --id-field id --output better.parquet --ray --workers 2
"""


@dataclass(frozen=True, slots=True)
class FileOptions:
    """What the options say about files; each field is the option of that name."""

    source: str | None
    field: str | None
    id_field: str | None
    target: str | None
    output_field: str | None
    overwrite: bool
    block: int | None
    ray: str | None
    workers: int | None
    worker_cpus: float | None
    worker_gpus: float | None

    def refuse(self) -> None:
        """Refuse options that say nothing without others.

        Raises:
            click.UsageError: As said.
        """
        given = {
            "--field": self.field, "--id-field": self.id_field, "--output": self.target,
            "--output-field": self.output_field, "--overwrite": self.overwrite, "--block": self.block,
        }  # fmt: skip
        cluster = {"--workers": self.workers, "--worker-cpus": self.worker_cpus, "--worker-gpus": self.worker_gpus}
        if self.source is None:
            _refuse({**given, "--ray": self.ray, **cluster}, "without --file")
        if self.ray is None:
            _refuse(cluster, "without --ray")

    def job(self) -> Job:
        """Return the files to work through.

        Raises:
            click.UsageError: There is no output.
        """
        if self.source is None or self.target is None:
            msg = "Missing --output: where the rows of --file go."
            raise click.UsageError(msg)
        fields = Fields(self.field or "prompt", self.output_field or "optimized_prompt", self.id_field)
        return Job(Path(self.source), Path(self.target), fields, self.overwrite, self.block or BLOCK)

    def cluster(self, settings: Settings, rewriter: str, parts: Parts) -> Workers | None:
        """Return the cluster to work on, or None for this process.

        Raises:
            click.UsageError: A ready-made rewriter cannot go to other machines.
        """
        if self.ray is None:
            return None
        if parts.rewriter is not None:
            msg = "--ray needs a model that workers can load by its name; give --model."
            raise click.UsageError(msg)
        from bpo_integrations.cli.cluster import Cluster, import_ray

        import_ray()  # that it is missing is said before the file is read
        cpus = 1.0 if self.worker_cpus is None else self.worker_cpus
        return Cluster(settings, rewriter, self.ray, self.workers, cpus, self.worker_gpus or 0.0)


_FILE_OPTIONS = (
    click.option("--file", "source", metavar="IN", help="Optimize a file of prompts: .jsonl, .csv, .txt or .parquet."),
    click.option("--field", metavar="NAME", help="The field (column) that holds the prompt.  [default: prompt]"),
    click.option("--id-field", metavar="NAME", help="The field that tells rows apart.  [default: their numbers]"),
    click.option("--output", "target", metavar="OUT", help="Where the rows go, with the results beside them."),
    click.option("--output-field", metavar="NAME", help="The field for the result.  [default: optimized_prompt]"),
    click.option("--overwrite", is_flag=True, help="Replace OUT, and drop what another job left unfinished."),
    click.option(
        "--block", metavar="N", type=click.IntRange(min=1),
        help=f"Rows that go to the model in one call and are made safe together.  [default: {BLOCK}]",
    ),
    click.option(
        "--ray", metavar="[ADDRESS]", is_flag=False, flag_value="local",
        help="Work on a Ray cluster; without ADDRESS on one that is started here for the job.",
    ),
    click.option(
        "--workers", metavar="N", type=click.IntRange(min=1),
        help="Workers on the cluster, each with the model.  [default: as many as fit]",
    ),
    click.option(
        "--worker-cpus", metavar="N", type=click.FloatRange(min=0, min_open=True),
        help="CPU cores of a worker.  [default: 1]",
    ),
    click.option("--worker-gpus", metavar="N", type=click.FloatRange(min=0), help="GPUs of a worker.  [default: 0]"),
)  # fmt: skip


def _file_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command the options of files; it receives them as one `files`."""

    @functools.wraps(command)
    def packed(*args: Any, **given: Any) -> None:
        files = FileOptions(**{part.name: given.pop(part.name) for part in dataclass_fields(FileOptions)})
        command(*args, files=files, **given)

    for option in reversed(_FILE_OPTIONS):
        packed = option(packed)
    return packed


@click.command("optimize", epilog=_EPILOG)
@click.argument("prompt", required=False)
@optimizer_options
@click.option("--diff", is_flag=True, help="Show the change word by word.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
@click.option("--explain", is_flag=True, help="Say why, and what became of each candidate.")
@_file_options
@click.pass_context
def optimize(
    ctx: click.Context,
    prompt: str | None,
    settings: Settings,
    diff: bool,
    as_json: bool,
    explain: bool,
    files: FileOptions,
) -> None:
    """Print the optimized PROMPT, and nothing else.

    Without PROMPT, or where it is '-', standard input is read: all of it is one prompt.
    """
    views = [name for name, given in (("--diff", diff), ("--json", as_json), ("--explain", explain)) if given]
    if as_json and len(views) > 1:
        msg = f"{' and '.join(views)} cannot go together."
        raise click.UsageError(msg)
    parts: Parts = ctx.obj or Parts()
    files.refuse()
    if files.source is None:
        _optimize_prompt(prompt, settings, parts, diff=diff, as_json=as_json, explain=explain)
        return
    _refuse({"PROMPT": prompt, **dict.fromkeys(views, True)}, "with --file")
    _optimize_file(files, settings, parts)


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


def _optimize_file(files: FileOptions, settings: Settings, parts: Parts) -> None:
    job = files.job()
    job.check()
    optimizer = settings.build(parts.rewriter)
    workers = files.cluster(settings, optimizer.rewriter.id, parts)
    done = 0
    try:
        with progress_bar() as show_progress:

            def progress(tally: Tally) -> None:
                nonlocal done
                done = tally.rows
                show_progress(tally)

            written = run_job(job, settings, optimizer, progress, workers)
    except KeyboardInterrupt:
        click.echo(f"bpo: {done:,} rows are safe; the same command goes on from there.", err=True)
        raise
    click.echo(f"bpo: {summary(written, job.target)}", err=True)
