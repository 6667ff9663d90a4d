"""Files of lines: JSONL, CSV and TXT, read row by row; what stood in a row can be written back as it stood.

Promises: constant memory; nothing is changed but what is added. Parquet is in `tables.py`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpo_integrations.cli.exits import FileError
from bpo_integrations.cli.rows import Fields, Outcome, Row, byte_order_mark, read_lines
from bpo_integrations.cli.show import dump

MAX_CELL = 16 * 2**20
"""Characters in a CSV cell; more means a quotation mark that is never closed."""

_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


@dataclass(frozen=True, slots=True)
class JsonRows:
    """JSON objects, one a line; blank lines are skipped, and what stood in an object is copied as it stood."""

    path: Path
    fields: Fields

    def names(self) -> list[str] | None:
        """None: each object has fields of its own."""
        return None

    def head(self) -> str:
        """Nothing: the first row begins the file."""
        return ""

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        for row, _ in self.records():
            yield row

    def records(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield the rows with their objects."""
        number = 0
        for line, text in read_lines(self.path):
            body = text.strip(" \t\r\n")
            if not body:
                continue
            number += 1
            data = self._object(body, f"{self.path}, {Row(number, line, '').name}")
            given_id = data[self.fields.id] if self.fields.id is not None else None
            yield self.fields.row(number, line, data[self.fields.prompt], body, given_id, self.path), data

    def _object(self, body: str, where: str) -> dict[str, Any]:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            msg = f"{where} is not JSON: {error}."
            raise FileError(msg, hint="Each line must be a JSON object; was the file cut off?") from error
        if not isinstance(data, dict):
            msg = f"{where} is no JSON object."
            raise FileError(msg, hint=f'Each line must look like {{"{self.fields.prompt}": "..."}}.')
        self.fields.check(list(data), where)
        return data

    def render(self, row: Row, outcome: Outcome) -> str:
        """Return the object as it stood, with the result's fields behind its own."""
        return f"{row.source[:-1].rstrip()}, {dump(self.fields.added(outcome))[1:]}\n"


@dataclass(frozen=True, slots=True)
class TextRows:
    """One prompt a line; an empty line is an empty prompt, so that lines keep their numbers.

    Written back as TXT, line breaks inside a changed prompt become a space; elsewhere they stay.
    """

    path: Path
    fields: Fields

    def names(self) -> list[str] | None:
        """The prompt is all there is."""
        return [self.fields.prompt]

    def head(self) -> str:
        """Return the byte order mark, if there is one."""
        return byte_order_mark(self.path)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        for line, text in read_lines(self.path):
            prompt = text.removesuffix("\n")
            if prompt != text:
                prompt = prompt.removesuffix("\r")
            yield Row(line, line, prompt, text[len(prompt) :])

    def records(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield the rows, each with its prompt as the only field."""
        for row in self:
            yield row, {self.fields.prompt: row.prompt}

    def render(self, row: Row, outcome: Outcome) -> str:
        """Return the optimized prompt with the line's own ending."""
        text = outcome.text
        return (text if text == row.prompt else _LINE_BREAK.sub(" ", text)) + row.source


@dataclass(frozen=True, slots=True)
class CsvRows:
    """Comma-separated values with a header; quoted line breaks, the file's own line ending and byte order mark stay."""

    path: Path
    fields: Fields

    def names(self) -> list[str] | None:
        """Return the header."""
        return next(self._records())[1]

    def head(self) -> str:
        """Return the header with the result's columns."""
        _, header = next(self._records())
        return byte_order_mark(self.path) + _csv_record([*header, *self.fields.new]) + self._ending()

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        for row, _, _ in self._rows():
            yield row

    def records(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield the rows with their cells, which are strings."""
        for row, header, cells in self._rows():
            yield row, dict(zip(header, cells, strict=True))

    def _rows(self) -> Iterator[tuple[Row, list[str], list[str]]]:
        records = self._records()
        _, header = next(records)
        self.fields.check(header, f"{self.path}, the header")
        for name in (self.fields.prompt, self.fields.id):
            if name is not None and header.count(name) > 1:
                msg = f"{self.path}, the header names the field {name!r} more than once."
                raise FileError(msg, hint="Rename one of the columns.")
        column, ending = header.index(self.fields.prompt), self._ending()
        id_column = header.index(self.fields.id) if self.fields.id is not None else column
        for number, (line, cells) in enumerate(records, 1):
            if len(cells) != len(header):
                msg = f"{self.path}, {Row(number, line, '').name} has {len(cells)} cells; the header has {len(header)}."
                raise FileError(msg, hint="Correct the row; cells are separated by commas.")
            source = _csv_record(cells) + ending
            yield self.fields.row(number, line, cells[column], source, cells[id_column], self.path), header, cells

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the header and the records, each with the line on which it begins; blank lines are skipped."""
        csv.field_size_limit(MAX_CELL)
        reader = csv.reader((text for _, text in read_lines(self.path)), strict=True)
        empty, line = True, 1
        try:
            for cells in reader:
                if cells:
                    empty = False
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            msg = f"{self.path}, the record that begins on line {line} is not CSV: {error}."
            raise FileError(msg, hint="Check its quotation marks; was the file cut off?") from error
        if empty:
            msg = f"{self.path} is empty; a CSV file begins with its header."
            raise FileError(msg, hint="Write the names of the columns on the first line.")

    def _ending(self) -> str:
        first = next((text for _, text in read_lines(self.path)), "")
        return "\r\n" if first.endswith("\r\n") else "\n"

    def render(self, row: Row, outcome: Outcome) -> str:
        """Return the record with the result's cells behind its own."""
        record = row.source.rstrip("\r\n")
        return f"{record},{_csv_record(list(self.fields.added(outcome).values()))}{row.source[len(record) :]}"


def _csv_record(cells: list[str]) -> str:
    """Return cells as a CSV record without its line ending."""
    buffer = io.StringIO()
    # With this terminator a cell that holds any line break is quoted, in every version of Python.
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n")
