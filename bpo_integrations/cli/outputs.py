"""Outputs of a job: the input's rows in the input's order, each with its result; written in constant memory.

An output is written only when every row has its result. Which input may become which output is told here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from bpo_integrations.cli.exits import FileError
from bpo_integrations.cli.formats import CsvRows, JsonRows, TextRows
from bpo_integrations.cli.rows import Fields, LineRows, Outcome, Row, Rows
from bpo_integrations.cli.show import dump

LookUp = Callable[[Sequence[Row]], Sequence[Outcome]]
"""Returns the results of rows."""

WRITE_BLOCK = 1024
"""Rows that are looked up and written at a time."""

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "txt", ".parquet": "parquet"}

T = TypeVar("T")


def blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in lists of `size`; the last one may be shorter.

    Example:
        >>> list(blocks("abcde", 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    rest = iter(items)
    while block := list(islice(rest, size)):
        yield block


class Output(Protocol):
    """Writes an output file."""

    def check(self) -> None:
        """Read what the output's shape depends on, before any model runs.

        Raises:
            FileError: These rows cannot be written in this format.
        """

    def write(self, file: BinaryIO, look_up: LookUp) -> None:
        """Write every row with its result.

        Raises:
            FileError: A row cannot be written.
            OSError: The file cannot be written.
        """


@dataclass(frozen=True, slots=True)
class SameLines:
    """The input's lines as they stood, with the results behind them."""

    rows: LineRows

    def check(self) -> None:
        """Nothing stands against it."""

    def write(self, file: BinaryIO, look_up: LookUp) -> None:
        """Write the file."""
        head = (self.rows.head(),)
        lines = (
            self.rows.render(row, outcome)
            for block in blocks(self.rows, WRITE_BLOCK)
            for row, outcome in zip(block, look_up(block), strict=True)
        )
        file.writelines(text.encode("utf-8") for text in chain(head, lines))


@dataclass(frozen=True, slots=True)
class JsonLines:
    """JSON objects made of the fields of an input of another format."""

    rows: Rows

    def check(self) -> None:
        """Refuse fields of the same name, of which an object can have one only."""
        refuse_twins(self.rows)

    def write(self, file: BinaryIO, look_up: LookUp) -> None:
        """Write the file."""
        for block in blocks(self.rows.records(), WRITE_BLOCK):
            for (_, record), outcome in zip(block, look_up([row for row, _ in block]), strict=True):
                file.write(f"{dump(_finite({**record, **self.rows.fields.added(outcome)}))}\n".encode())


def refuse_twins(rows: Rows) -> None:
    """Refuse an input with two fields of the same name.

    Raises:
        FileError: As said.
    """
    names = rows.names() or []
    for name in names:
        if names.count(name) > 1:
            msg = f"{rows.path} names the field {name!r} more than once."
            raise FileError(msg, hint="Rename one of the columns.")


def open_files(source: Path, target: Path, fields: Fields) -> tuple[Rows, Output]:
    """Return the rows of `source` and what writes `target`; formats are told by the extensions.

    Raises:
        FileError: An extension is unknown, or the two do not go together.
        MissingExtraError: Parquet is asked for and pyarrow is not installed.
    """
    for path in (source, target):
        if path.suffix.lower() not in KINDS:
            msg = f"{path} has the unknown extension {path.suffix!r}."
            raise FileError(msg, hint="Known are .jsonl, .csv, .txt and .parquet.")
    kind, wanted = KINDS[source.suffix.lower()], KINDS[target.suffix.lower()]
    if wanted not in (kind, "jsonl", "parquet"):
        msg = f"{source} cannot be written as {target.suffix}."
        also = dict.fromkeys([source.suffix, ".jsonl", ".parquet"])
        raise FileError(msg, hint=f"Give --output a name that ends in {' or '.join(also)}.")
    if kind == "txt" and fields.id is not None:
        msg = f"{source} has no fields, so there is no {fields.id!r} in it."
        raise FileError(msg, hint="Leave out --id-field: the number of the line is the row's id.")
    if "parquet" in (kind, wanted):
        from bpo_integrations.cli.tables import open_tables

        return open_tables(source, target, fields, kind, wanted)
    rows = line_rows(source, fields, kind)
    return rows, SameLines(rows) if kind == wanted else JsonLines(rows)


def line_rows(source: Path, fields: Fields, kind: str) -> LineRows:
    """Return the rows of a file of lines."""
    readers: dict[str, Callable[[Path, Fields], LineRows]] = {"jsonl": JsonRows, "csv": CsvRows, "txt": TextRows}
    return readers[kind](source, fields)


def _finite(value: Any) -> Any:
    """Put null for numbers that JSON does not have; tables write a missing number as NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
