"""The progress bar of a file job: on standard error, and only where that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from bpo_integrations.cli.jobs import Tally


@contextmanager
def progress_bar() -> Iterator[Callable[[Tally], None]]:
    """Show a bar while the block runs; yields what updates it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[details]}"),
    )
    started = time.monotonic()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None, details="")

        def update(tally: Tally) -> None:
            what = "optimizing" if tally.rows < tally.total else "writing"
            shown = details(tally, time.monotonic() - started)
            bar.update(task, description=what, completed=tally.rows, total=tally.total, details=shown)

        yield update


def details(tally: Tally, seconds: float) -> str:
    """Return rate, time left and counts in a line.

    Args:
        tally: How far the job is.
        seconds: Since this run began; rows of earlier runs do not count for the rate.

    Example:
        >>> details(Tally(100, rows=60, resumed=20, fates=Counter(kept=10, augmented=50)), 20.0)
        '2.0 rows/s, 0:00:20 left; 50 augmented, 10 kept'
    """
    rate = (tally.rows - tally.resumed) / max(seconds, 1e-9)
    left = f", {timedelta(seconds=round((tally.total - tally.rows) / rate))} left" if rate else ""
    fates = ", ".join(f"{count:,} {fate}" for fate, count in tally.fates.most_common())
    return f"{rate:,.1f} rows/s{left}{'; ' + fates if fates else ''}"
