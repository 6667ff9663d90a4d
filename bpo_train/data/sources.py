"""Preferences of any source, in one schema, streamed; rows that cannot be used are counted by reason.

    for row in load("oasst1.jsonl.gz"): ...

`rows.py` reads the files, `layouts.py` knows the fields. Memory holds a hash of each row's id, no texts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bpo_integrations.errors import ConfigurationError
from bpo_train.data.checked import Loaded, Skip, digest
from bpo_train.data.layouts import LAYOUTS, recognise
from bpo_train.data.preference import Preference
from bpo_train.data.rows import read_rows


class Source:
    """Preferences that can be read as often as wanted: every `for` begins anew.

    Attributes:
        skips: How many rows were skipped, by reason (`checked.SKIPS`), in the last reading.
    """

    def __init__(self, specs: tuple[str, ...], *, kind: str | None = None, split: str | None = None) -> None:
        self.specs = specs
        self.kind = kind
        self.split = split
        self.skips: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Preference]:
        """Read from the start."""
        self.skips = Counter()
        return self._unique(self.skips)

    def _unique(self, skips: Counter[str]) -> Iterator[Preference]:
        contents: dict[int, int] = {}  # of each id: whole numbers, no texts
        for spec in self.specs:
            for row in self._loaded(spec):
                if isinstance(row, Skip):
                    skips[row.reason] += 1
                    continue
                key, content = int(digest(row.id), 16), int(digest(*_content(row)), 16)
                if key not in contents:
                    contents[key] = content
                    yield row
                elif contents[key] == content:
                    skips["repeated"] += 1
                else:
                    msg = f"{spec}: two different rows have the id {row.id}."
                    raise ConfigurationError(msg, hint="Make the ids unique, or leave them out.")

    def _loaded(self, spec: str) -> Iterator[Loaded]:
        rows = read_rows(spec, split=self.split)
        first = next(rows, None)
        if first is None:
            return
        kind = self.kind or recognise(first)
        if kind is None:
            msg = f"{spec}: no preferences are recognised in a row with the fields {', '.join(map(str, first))}."
            raise ConfigurationError(
                msg, hint=f"Two responses a row are needed; name the layout with kind=: {', '.join(LAYOUTS)}."
            )
        yield from LAYOUTS[kind](itertools.chain([first], rows))


def _content(row: Preference) -> tuple[str | None, ...]:
    return row.instruction, row.context, row.good_res, row.bad_res


def load(*specs: str | Path, kind: str | None = None, split: str | None = None) -> Source:
    """Return the preferences of files, folders or hub ids.

    Args:
        specs: What to read, one after the other (see `rows.read_rows`).
        kind: The layout, one of `layouts.LAYOUTS`; None recognises it by the fields of the first row.
        split: The split of a folder or a hub id; None takes `train`, or the only one.

    Returns:
        An iterable of `Preference` with unique ids, that counts in `skips` what it left out. Nothing is read before it
        is iterated over; errors of the files are raised there.

    Raises:
        ConfigurationError: There is no such kind.

    Example:
        >>> source = load("preferences.jsonl")
        >>> source.skips
        Counter()
    """
    if kind is not None and kind not in LAYOUTS:
        msg = f"There is no kind of source {kind!r}."
        raise ConfigurationError(msg, hint=f"Known are {', '.join(LAYOUTS)}.")
    return Source(tuple(map(str, specs)), kind=kind, split=split)
