"""Rows through an asynchronous piece of work: many at once, each journalled when it is finished, and never twice.

Promises: rows and results in memory are bounded by the concurrency; a row that the journal has is not worked on again
(a failed one only when asked for); the first error that concerns all rows stops the run, and what is finished stays.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from bpo_integrations.errors import BPOError, ConfigurationError, EngineError
from bpo_train.data.journal import Entry, Journal
from bpo_train.data.llm import Budget, Usage

AHEAD = 2
"""Rows under way for each request that may be: some wait for a server that is busy, others are being judged."""

BLOCK = 64
"""Rows that are read at a time, in a thread: an input may come over the network."""

FAILURES_IN_A_ROW = 20
"""So many rows that fail one after the other, with none between that succeeds, stop the run."""

GRACE = 20.0
"""Seconds that requests under way have when the run stops because of an error: their answers are paid for."""

Row = TypeVar("Row")
Ended = Literal["done", "budget"]


@dataclass(frozen=True, slots=True)
class Item(Generic[Row]):
    """A row to be worked on.

    Args:
        number: Its place in the input, from 1.
        id: Its id.
        digest: Tells its content from another's.
        row: The row.
    """

    number: int
    id: str
    digest: str
    row: Row


@dataclass(slots=True)
class Tally:
    """How far a run is.

    Args:
        total: Rows of the input.
        statuses: How many ended as `kept`, `dropped`, `failed`, earlier runs' included.
        usage: What was spent, earlier runs' included.
        asked: Rows that this run has asked about.
        left: Rows that it has still to ask about.
        started: When it began (`time.monotonic`).
    """

    total: int
    statuses: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)
    asked: int = 0
    left: int = 0
    started: float = field(default_factory=time.monotonic)


async def work_off(
    items: Iterable[Item[Row]],
    work: Callable[[Item[Row]], Awaitable[Entry]],
    expected: Callable[[Item[Row]], int],
    journal: Journal,
    *,
    concurrency: int,
    budget: Budget,
    retry_failed: bool = False,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> Ended:
    """Work on all rows that the journal has not.

    Args:
        items: All rows of the input, in its order.
        work: Turns a row into its entry.
        expected: About how many tokens a row costs.
        journal: Where entries go; its plan says how many rows there are.
        concurrency: Requests that may be under way at once.
        budget: Says when to stop.
        retry_failed: Work on rows again that failed before.
        progress: Called after each row.

    Returns:
        `done`, or `budget` where rows are left for which there was no room.

    Raises:
        ConfigurationError: The input is not the journal's.
        EngineError: Row after row fails.
        BPOError: As `work` does, about something that concerns all rows.
    """
    assert journal.plan is not None
    counts = Counter[str](journal.counts())
    settled = counts.total() - (counts["failed"] if retry_failed else 0)
    tally = Tally(journal.plan.rows, counts, journal.usage, left=journal.plan.rows - settled)
    feed = _Feed(iter(items), journal, retry_failed)
    at_budget, streak = False, 0
    errors: list[BPOError] = []

    async def worker() -> None:
        nonlocal at_budget
        while not (errors or at_budget) and (item := await feed.next()) is not None:
            tokens = expected(item)
            if not budget.start(tokens):
                at_budget = True
                return
            entry = await work(item)
            budget.end(tokens, entry.usage.tokens)
            finish(entry)

    def finish(entry: Entry) -> None:
        nonlocal streak
        before = journal.find(entry.number)
        journal.append(entry)
        if before is not None:
            tally.statuses[before[0]] -= 1
        tally.statuses[entry.status] += 1
        tally.usage += entry.usage
        tally.asked, tally.left = tally.asked + 1, tally.left - 1
        progress(tally)
        streak = streak + 1 if entry.status == "failed" else 0
        if streak >= FAILURES_IN_A_ROW:
            msg = f"{streak} rows failed one after the other, the last with: {entry.reason}."
            raise EngineError(msg, hint="When the model is back, the same command with --retry-failed goes on.")

    async def careful() -> None:
        try:
            await worker()
        except BPOError as error:  # the others bring home what they have asked for
            errors.append(error)
            end.reschedule(asyncio.get_running_loop().time() + GRACE)

    progress(tally)
    try:
        async with asyncio.timeout(None) as end, asyncio.TaskGroup() as group:
            for _ in range(AHEAD * concurrency):
                group.create_task(careful())
    except TimeoutError:
        if not errors:
            raise
    finally:
        journal.sync()
    if errors:
        raise errors[0]
    if not at_budget and feed.seen != journal.plan.rows:
        raise changed()
    return "budget" if at_budget else "done"


class _Feed(Generic[Row]):
    """The rows that are left, for whichever worker asks next."""

    def __init__(self, items: Iterator[Item[Row]], journal: Journal, retry_failed: bool) -> None:
        self.seen = 0
        self._items = items
        self._block: list[Item[Row]] = []
        self._journal = journal
        self._again = retry_failed
        self._lock = asyncio.Lock()

    async def next(self) -> Item[Row] | None:
        async with self._lock:
            while True:
                if not self._block:
                    self._block = await asyncio.to_thread(self._read)
                    if not self._block:
                        return None
                item = self._block.pop()
                self.seen += 1
                found = self._journal.find(item.number)
                if found is None:
                    return item
                if found[1] != item.digest:
                    raise changed()
                if found[0] == "failed" and self._again:
                    return item

    def _read(self) -> list[Item[Row]]:
        return [*itertools.islice(self._items, BLOCK)][::-1]


def changed() -> ConfigurationError:
    """Return the error for an input that is not the one that the journal was begun with."""
    msg = "The input is not the one that this output was begun with."
    return ConfigurationError(msg, hint="Give the same input in the same order, or name another --output.")
