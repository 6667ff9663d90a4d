"""A file of prompts through the optimizer, in blocks, resuming where an earlier run of the same job was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from bpo_integrations.cache import CandidateCache
from bpo_integrations.cli.exits import FileError, one_line, os_error
from bpo_integrations.cli.journal import Journal, Progress, check_target
from bpo_integrations.cli.options import Settings
from bpo_integrations.cli.rows import Fields, Row, Rows, open_rows
from bpo_integrations.errors import OptimizationError
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import OptimizedPrompt

BLOCK = 32
"""Rows that go to the model in one call and are made safe together: what a `kill -9` costs at most."""


@dataclass(frozen=True, slots=True)
class Job:
    """A file to work through.

    Args:
        source: The file of prompts.
        target: The output.
        fields: Which fields are read and written.
        overwrite: Replace an existing output.

    Example:
        >>> Job(Path("prompts.csv"), Path("better.csv")).fields.prompt
        'prompt'
    """

    source: Path
    target: Path
    fields: Fields = field(default_factory=Fields)
    overwrite: bool = False

    def check(self) -> Rows:
        """Return the input's rows, after everything that can be refused without reading them.

        Raises:
            FileError: A path cannot be used.
        """
        if not self.source.exists():
            msg = f"There is no file {self.source}."
            raise FileError(msg, hint="Check the path after --file.")
        if not self.source.is_file():
            msg = f"{self.source} is no regular file."
            raise FileError(msg, hint="It is read more than once, so it cannot be a pipe or a folder.")
        if self.target.exists() and self.source.samefile(self.target):
            msg = f"{self.target} is the input itself."
            raise FileError(msg, hint="Name another --output.")
        check_target(self.target, overwrite=True)  # whether it may be replaced is the journal's to say
        return open_rows(self.source, self.target, self.fields)


def run_job(job: Job, settings: Settings, optimizer: PromptOptimizer, progress: Callable[[int, int], None]) -> Progress:
    """Optimize every row of a file.

    The whole input is read once before the model starts, so that a bad row is found in the first seconds.

    Args:
        job: The files.
        settings: What `optimizer` was built from.
        optimizer: Optimizes.
        progress: Called with rows done and rows in all, first with what an earlier run had done.

    Returns:
        What was written.

    Raises:
        FileError: The input or the output cannot be used.
        OptimizationError: A row failed and `settings.strict`.
    """
    rows = job.check()
    identity = {
        "input": _checksum(job.source),
        "fields": [job.fields.prompt, job.fields.result],
        **settings.fingerprint(optimizer.rewriter),
    }
    total = sum(1 for _ in rows)
    with Journal(job.target, identity, total, overwrite=job.overwrite) as journal:
        progress(journal.progress.rows, total)
        if not journal.complete and not journal.progress.bytes:
            journal.append(rows.head(), [])
        rest = islice(rows, journal.progress.rows, None)
        while block := list(islice(rest, BLOCK)):
            results = _optimized(block, optimizer)
            text = "".join(rows.render(row, result) for row, result in zip(block, results, strict=True))
            journal.append(text, [(_kind(result), result.reason) for result in results])
            progress(journal.progress.rows, total)
        if journal.progress.rows != total or _checksum(job.source) != identity["input"]:
            msg = f"{job.source} was changed while it was read."
            raise FileError(msg, hint="Start anew with --overwrite, and leave the file alone meanwhile.")
        journal.finish()
        return journal.progress


def _optimized(block: list[Row], optimizer: PromptOptimizer) -> list[OptimizedPrompt]:
    if not optimizer.decoding.greedy:
        # A block's samples must not depend on the blocks before it, or a resumed job would differ from an unbroken one.
        optimizer.cache = CandidateCache(1024)
    found: list[OptimizedPrompt] = []
    for row, result in zip(block, optimizer.try_batch([row.prompt for row in block]), strict=True):
        if isinstance(result, OptimizationError):
            name = row.name[0].upper() + row.name[1:]
            msg = f"{name}: {result.message}"
            raise OptimizationError(msg, hint="Without --strict such rows are kept.") from result
        found.append(result)
    return found


def _kind(result: OptimizedPrompt) -> str:
    return "failed" if result.reason.startswith("failed:") else result.kind


def summary(progress: Progress, target: Path) -> str:
    """Return in one line what a job came to.

    Example:
        >>> summary(Progress({}, 3, rows=3, kinds={"kept": 1, "augmented": 2}), Path("out.csv"))
        '3 rows: 2 augmented, 1 kept. Written to out.csv.'
    """
    kinds = sorted(progress.kinds.items(), key=lambda item: (item[0] == "failed", -item[1], item[0]))
    parts = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
    why = f" First failure: {one_line(progress.failure)}." if progress.failure else ""
    return f"{progress.rows:,} rows{': ' + parts if parts else ''}. Written to {target}.{why}"


def _checksum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise os_error(error, f"{path} cannot be read") from error
