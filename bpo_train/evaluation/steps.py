"""A step of an evaluation: its journal, in which each row is found by its content, whatever stands around it.

Promises: as `data/journal.py` and `data/work.py`; besides, what is finished counts in any later run of the same folder
that has a row of the same content: another arm, more prompts or another order cost only what is new.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from bpo_train.data.journal import Entry, Journal, Plan
from bpo_train.data.layouts import digest
from bpo_train.data.llm import Budget, Limits, Usage
from bpo_train.data.work import Ended, Item, Tally, work_off

Row = TypeVar("Row")

WEIGHTS = (".safetensors", ".bin", ".gguf", ".json")
SAMPLES, SAMPLE_BYTES = 32, 4096
"""Which files of a folder tell its weights from others, and how much of each is read."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all steps of a run.

    Args:
        budget: Says when to stop; shared, so that it counts the tokens of all steps.
        concurrency: Requests that may be under way at once.
        retry_failed: Work on rows again that failed before.
        progress: Called after each row.
    """

    budget: Budget = field(default_factory=lambda: Budget(None))
    concurrency: int = Limits().concurrency
    retry_failed: bool = False
    progress: Callable[[Tally], None] = lambda tally: None


def content(id: str, row: Row, *parts: str | None) -> Item[Row]:
    """Return a row as an item that is found by `parts`.

    Args:
        id: Names the row for people who read the journal.
        row: The row.
        parts: Everything that its result depends on, besides the step's options.
    """
    told = digest(*parts)
    return Item(int(told, 16) >> 1, id, told, row)  # SQLite's whole numbers have a sign


def weights(spec: str) -> str:
    """Return what tells the weights of a folder from others that lay there before; empty where a spec names no folder.

    Of each file count its name, its size and samples spread over it: a model that was trained anew differs there, a
    copy does not.

    Args:
        spec: As for `open_backend`, `load_rewriter` or `open_judge`, such as `hf:runs/dpo`.

    Example:
        >>> weights("openai:gpt-4o")
        ''
    """
    folder = Path(spec.partition(":")[2]).expanduser() if ":" in spec else None
    if folder is None or not folder.is_dir():
        return ""
    told = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file()):
        size = path.stat().st_size
        told.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                told.update(file.read(SAMPLE_BYTES))
    return told.hexdigest()[:16]


class Step:
    """The journal of one step; a context manager that holds its lock.

    Args:
        folder: Where it is.
        options: What every result depends on.

    Raises:
        ConfigurationError: The folder was begun with other options.
        FileError: Another process writes it, or it cannot be written.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.journal = Journal(folder, options)

    @property
    def usage(self) -> Usage:
        """What was spent here, in all runs."""
        return self.journal.usage

    async def run(
        self,
        items: Iterable[Item[Row]],
        work: Callable[[Item[Row]], Awaitable[Entry]],
        expected: Callable[[Item[Row]], int],
        terms: Terms,
    ) -> Ended:
        """Work on what the journal has not; rows of the same content are one.

        Args:
            items: Made by `content`.
            work: Turns one into its entry.
            expected: About how many tokens it costs.
            terms: What holds for the run.

        Raises:
            BPOError: As `work_off` does.
        """
        rows = list({item.number: item for item in items}.values())
        done = Counter[str](found[0] for row in rows if (found := self.journal.find(row.number)))
        settled = done.total() - (done["failed"] if terms.retry_failed else 0)
        if self.journal.plan is None or self.journal.plan.rows != len(rows):
            self.journal.plan_is(Plan(len(rows), len(rows), 0, 0))
        before = Counter[str](self.journal.counts()) - done  # of other runs' rows, which are not shown

        def shown(tally: Tally) -> None:
            left = len(rows) - settled - tally.asked
            terms.progress(replace(tally, statuses=tally.statuses - before, left=left))

        return await work_off(
            rows,
            work,
            expected,
            self.journal,
            concurrency=terms.concurrency,
            budget=terms.budget,
            retry_failed=terms.retry_failed,
            progress=shown,
        )

    def results(self) -> dict[str, Entry]:
        """Return what is finished, by the digest of its content."""
        return {entry.digest: entry for entry in self.journal.entries()}

    def close(self) -> None:
        """Release the lock; what is written stays."""
        self.journal.close()

    def __enter__(self) -> Self:
        """Return the step."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock; what is written stays."""
        self.close()
