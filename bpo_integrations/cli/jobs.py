"""A file of prompts through the optimizer, in blocks, resuming where an earlier run of the same job was stopped.

Promises: constant memory; every row once, in the input's order; nothing that was finished is done again. Where the
blocks are worked off is a parameter: in this process (`Here`), or on a cluster (`cluster.py`).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bpo_integrations.cache import CandidateCache
from bpo_integrations.cli.exits import FileError, one_line, os_error
from bpo_integrations.cli.journal import CACHE, Journal, check_target
from bpo_integrations.cli.options import Settings
from bpo_integrations.cli.outputs import Output, blocks, open_files
from bpo_integrations.cli.rows import Fields, Outcome, Row, Rows
from bpo_integrations.errors import OptimizationError
from bpo_integrations.optimizer import PromptOptimizer

BLOCK = 32
"""Rows that go to the model in one call and are made safe together: what a `kill -9` costs a worker at most."""

Block = Sequence[Row]
Answer = Outcome | OptimizationError


class Workers(Protocol):
    """Where blocks are worked off."""

    def map(self, work: Iterator[Block]) -> Generator[tuple[Block, Sequence[Answer]], None, None]:
        """Yield each block with the answers to its rows, in any order; takes few blocks ahead."""


@dataclass(frozen=True, slots=True)
class Job:
    """A file to work through.

    Args:
        source: The file of prompts.
        target: The output.
        fields: Which fields are read and written.
        overwrite: Replace an existing output.
        block: Rows in a block.

    Example:
        >>> Job(Path("prompts.csv"), Path("better.csv")).fields.prompt
        'prompt'
    """

    source: Path
    target: Path
    fields: Fields = field(default_factory=Fields)
    overwrite: bool = False
    block: int = BLOCK

    def check(self) -> tuple[Rows, Output]:
        """Return what reads and writes, after everything that can be refused without reading the rows.

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
        return open_files(self.source, self.target, self.fields)


@dataclass(slots=True)
class Tally:
    """How far a job is.

    Args:
        total: Rows of the input.
        rows: Rows that have their result.
        resumed: Those of them that an earlier run did.
        fates: How many rows ended as what (`kept`, `augmented`, ..., `failed`).
        failure: The reason of a row that failed.
    """

    total: int
    rows: int = 0
    resumed: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    failure: str = ""

    def add(self, outcomes: Sequence[Outcome], *, resumed: bool = False) -> None:
        """Count results."""
        self.rows += len(outcomes)
        self.resumed += len(outcomes) if resumed else 0
        for outcome in outcomes:
            self.fates[outcome.fate] += 1
            if outcome.fate == "failed":
                self.failure = self.failure or outcome.reason


@dataclass(frozen=True, slots=True)
class Here:
    """Works blocks off in this process, one after the other."""

    optimizer: PromptOptimizer

    def map(self, work: Iterator[Block]) -> Generator[tuple[Block, Sequence[Answer]], None, None]:
        """Yield each block with the answers to its rows, in order."""
        for block in work:
            yield block, optimize_block(self.optimizer, [row.prompt for row in block])


def run_job(
    job: Job,
    settings: Settings,
    optimizer: PromptOptimizer,
    progress: Callable[[Tally], None],
    workers: Workers | None = None,
) -> Tally:
    """Optimize every row of a file.

    The whole input is read once before the model starts, so that a bad row is found in the first seconds.

    Args:
        job: The files.
        settings: What `optimizer` was built from.
        optimizer: Optimizes.
        progress: Called after each block.
        workers: Where the blocks are worked off; None is here.

    Returns:
        What was written.

    Raises:
        FileError: The input or the output cannot be used.
        OptimizationError: A row failed and `settings.strict`.
    """
    rows, output = job.check()
    checksum = _checksum(job.source)
    fields = [job.fields.prompt, job.fields.result, job.fields.id]
    options = {"fields": fields, **settings.fingerprint(optimizer.rewriter)}
    if settings.seed is not None:  # seeded samples depend on the rows that they are drawn with
        options["block"] = job.block
    tally = Tally(_check_rows(rows))
    output.check()
    grows = job.fields.id is not None
    with Journal(job.target, options, checksum, grows=grows, overwrite=job.overwrite) as journal:
        with closing(_results(workers or Here(optimizer), _open_blocks(rows, job.block, journal, tally))) as results:
            for block, outcomes in results:
                journal.add(block, outcomes)
                tally.add(outcomes)
                progress(tally)
        if tally.rows != tally.total or _checksum(job.source) != checksum:
            raise _changed(job.source)

        def look_up(block: Block) -> list[Outcome]:
            found = [outcome for outcome in journal.find(block) if outcome is not None]
            if len(found) != len(block):
                raise _changed(job.source)
            return found

        progress(tally)
        journal.finish(lambda file: output.write(file, look_up))
        return tally


def _check_rows(rows: Rows) -> int:
    """Read all rows and return how many they are; ids are compared on disk, for they may be many.

    Raises:
        FileError: A row cannot be used, or two have the same id.
    """
    total = 0
    with closing(sqlite3.connect("", isolation_level=None)) as db:  # a temporary file of its own, gone when closed
        db.execute(f"PRAGMA cache_size = -{CACHE}")
        db.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, name TEXT)")
        db.execute("BEGIN")
        for row in rows:
            total += 1
            if not row.id:
                continue
            try:
                db.execute("INSERT INTO ids VALUES (?, ?)", (row.id, row.name))
            except sqlite3.IntegrityError as error:
                (first,) = db.execute("SELECT name FROM ids WHERE id = ?", (row.id,)).fetchone()
                msg = f"{rows.path}: {first} and {row.name} have the same id {row.id[:40]}."
                raise FileError(msg, hint="Correct one of them, or leave out --id-field.") from error
    return total


def _open_blocks(rows: Rows, size: int, journal: Journal, tally: Tally) -> Iterator[Block]:
    """Yield the rows that have no result yet, and count those that have one."""
    for block in blocks(rows, size):
        found = journal.find(block)
        tally.add([outcome for outcome in found if outcome is not None], resumed=True)
        if left := [row for row, outcome in zip(block, found, strict=True) if outcome is None]:
            yield left


def _results(workers: Workers, work: Iterator[Block]) -> Generator[tuple[Block, list[Outcome]], None, None]:
    """Yield results; the first error ends it, which there is under `--strict` only."""
    with closing(workers.map(work)) as answered:
        for block, answers in answered:
            outcomes: list[Outcome] = []
            for row, answer in zip(block, answers, strict=True):
                if isinstance(answer, OptimizationError):
                    msg = f"{row.name[0].upper()}{row.name[1:]}: {answer.message}"
                    raise OptimizationError(msg, hint="Without --strict such rows are kept.") from answer
                outcomes.append(answer)
            yield block, outcomes


def optimize_block(optimizer: PromptOptimizer, prompts: Sequence[str]) -> list[Answer]:
    """Return what becomes of prompts that go to the model in one call."""
    if not optimizer.decoding.greedy:
        # A block's samples must not depend on the blocks before it, or a resumed job would differ from an unbroken one.
        optimizer.cache = CandidateCache(1024)
    return [
        result if isinstance(result, OptimizationError) else Outcome.of(result)
        for result in optimizer.try_batch(prompts)
    ]


def summary(tally: Tally, target: Path) -> str:
    """Return in one line what a job came to.

    Example:
        >>> summary(Tally(3, rows=3, fates=Counter(kept=1, augmented=2)), Path("out.csv"))
        '3 rows: 2 augmented, 1 kept. Written to out.csv.'
    """
    fates = sorted(tally.fates.items(), key=lambda item: (item[0] == "failed", -item[1], item[0]))
    parts = ", ".join(f"{count:,} {fate}" for fate, count in fates)
    why = f" First failure: {one_line(tally.failure)}." if tally.failure else ""
    return f"{tally.rows:,} rows{': ' + parts if parts else ''}. Written to {target}.{why}"


def _changed(path: Path) -> FileError:
    msg = f"{path} was changed while it was read."
    return FileError(msg, hint="Start anew with --overwrite, and leave the file alone meanwhile.")


def _checksum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise os_error(error, f"{path} cannot be read") from error
