"""Files of prompts: JSONL, CSV and TXT, read row by row and written back with the results beside the other fields.

Promises: constant memory; what stood in a row stays as it was; an error names the row, the line or the byte. Knows
nothing of models.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bpo_integrations.cli.exits import FileError, os_error
from bpo_integrations.cli.show import dump
from bpo_integrations.result import OptimizedPrompt

KIND_FIELD = "bpo_kind"
REASON_FIELD = "bpo_reason"

MAX_CELL = 16 * 2**20
"""Characters in a CSV cell; more means a quotation mark that is never closed."""

_BOM = "\ufeff"
_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt of a file.

    Args:
        number: Its place among the rows, from 1.
        line: The line on which it begins, from 1.
        prompt: The prompt.
        source: What stood there: the line (JSONL), the line's ending (TXT) or the record (CSV).
    """

    number: int
    line: int
    prompt: str
    source: str

    @property
    def name(self) -> str:
        """The row in words, for messages."""
        return f"row {self.number} (line {self.line})"


class Rows(Protocol):
    """A file of prompts."""

    def head(self) -> str:
        """Return what the output begins with."""

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows, reading the file as it goes.

        Raises:
            FileError: A row cannot be used.
        """

    def render(self, row: Row, result: OptimizedPrompt) -> str:
        """Return the row with its result, as it stands in the output, line ending included."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields are read and written.

    Args:
        prompt: Holds the prompt.
        result: Receives the optimized prompt.
    """

    prompt: str = "prompt"
    result: str = "optimized_prompt"

    def added(self, result: OptimizedPrompt) -> dict[str, str]:
        """Return the fields that a result adds to its row."""
        return {self.result: result.text, KIND_FIELD: result.kind, REASON_FIELD: result.reason}

    def check(self, present: list[str], where: str) -> None:
        """Refuse a row without the prompt, or with a field that would be overwritten.

        Raises:
            FileError: As said.
        """
        if self.prompt not in present:
            found = ", ".join(map(repr, present[:12])) or "none"
            msg = f"{where} has no field {self.prompt!r}; its fields: {found}."
            raise FileError(msg, hint="Name the field with --field.")
        for name in (self.result, KIND_FIELD, REASON_FIELD):
            if name in present:
                msg = f"{where} has a field {name!r} already, which would be overwritten."
                hint = "Name another with --output-field." if name == self.result else "Is it an output of bpo?"
                raise FileError(msg, hint=hint)


def open_rows(source: Path, target: Path, fields: Fields) -> Rows:
    """Return the rows of `source`, to be written to `target`; both kinds are told by their extensions.

    Raises:
        FileError: An extension is unknown, or the two do not go together.
    """
    kinds = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".txt": "txt"}
    for path in (source, target):
        if path.suffix.lower() not in kinds:
            msg = f"{path} has the unknown extension {path.suffix!r}."
            raise FileError(msg, hint="Known are .jsonl, .csv and .txt.")
    kind, wanted = kinds[source.suffix.lower()], kinds[target.suffix.lower()]
    if kind == "txt" and wanted in ("txt", "jsonl"):
        return TextRows(source, fields, as_json=wanted == "jsonl")
    if kind != wanted:
        also = " or .jsonl" if kind == "txt" else ""
        msg = f"{source} cannot be written as {target.suffix}."
        raise FileError(msg, hint=f"Give --output a name that ends in {source.suffix}{also}.")
    return JsonRows(source, fields) if kind == "jsonl" else CsvRows(source, fields)


@dataclass(frozen=True, slots=True)
class JsonRows:
    """JSON objects, one a line; blank lines are skipped, and what stood in an object is copied as it stood."""

    path: Path
    fields: Fields

    def head(self) -> str:
        """Nothing: the first row begins the file."""
        return ""

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        number = 0
        for line, text in read_lines(self.path):
            body = text.strip(" \t\r\n")
            if not body:
                continue
            number += 1
            row = Row(number, line, "", body)
            yield replace(row, prompt=self._prompt(body, f"{self.path}, {row.name}"))

    def _prompt(self, body: str, where: str) -> str:
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            msg = f"{where} is not JSON: {error}."
            raise FileError(msg, hint="Each line must be a JSON object.") from error
        if not isinstance(data, dict):
            msg = f"{where} is no JSON object."
            raise FileError(msg, hint=f'Each line must look like {{"{self.fields.prompt}": "..."}}.')
        self.fields.check(list(data), where)
        prompt = data[self.fields.prompt]
        if not isinstance(prompt, str):
            msg = f"{where}: the field {self.fields.prompt!r} is {dump(prompt)[:40]}, not a string."
            raise FileError(msg, hint="Correct the row, or name another field with --field.")
        return prompt

    def render(self, row: Row, result: OptimizedPrompt) -> str:
        """Return the object as it stood, with the result's fields behind its own."""
        return f"{row.source[:-1].rstrip()}, {dump(self.fields.added(result))[1:]}\n"


@dataclass(frozen=True, slots=True)
class TextRows:
    """One prompt a line; an empty line is an empty prompt, so that lines keep their numbers.

    Written as TXT, line breaks inside a changed prompt become a space; as JSONL they stay.
    """

    path: Path
    fields: Fields
    as_json: bool = False

    def head(self) -> str:
        """Nothing, or the byte order mark."""
        return "" if self.as_json else _byte_order_mark(self.path)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        for line, text in read_lines(self.path):
            prompt = text.removesuffix("\n")
            if prompt != text:
                prompt = prompt.removesuffix("\r")
            yield Row(line, line, prompt, text[len(prompt) :])

    def render(self, row: Row, result: OptimizedPrompt) -> str:
        """Return the optimized prompt with its own line ending, or a JSON object."""
        if self.as_json:
            return dump({self.fields.prompt: row.prompt, **self.fields.added(result)}) + "\n"
        return (_LINE_BREAK.sub(" ", result.text) if result.changed else result.text) + row.source


@dataclass(frozen=True, slots=True)
class CsvRows:
    """Comma-separated values with a header; quoted line breaks, the file's own line ending and byte order mark stay."""

    path: Path
    fields: Fields

    def head(self) -> str:
        """Return the header with the result's columns."""
        _, header = next(self._records())
        names = [*header, self.fields.result, KIND_FIELD, REASON_FIELD]
        return _byte_order_mark(self.path) + _csv_record(names) + self._ending()

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        records = self._records()
        _, header = next(records)
        self.fields.check(header, f"{self.path}, the header")
        if header.count(self.fields.prompt) > 1:
            msg = f"{self.path}, the header names the field {self.fields.prompt!r} more than once."
            raise FileError(msg, hint="Rename one of the columns.")
        column, ending = header.index(self.fields.prompt), self._ending()
        for number, (line, cells) in enumerate(records, 1):
            row = Row(number, line, "", "")
            if len(cells) != len(header):
                msg = f"{self.path}, {row.name} has {len(cells)} cells; the header has {len(header)}."
                raise FileError(msg, hint="Correct the row; cells are separated by commas.")
            yield replace(row, prompt=cells[column], source=_csv_record(cells) + ending)

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
            raise FileError(msg, hint="Check its quotation marks.") from error
        if empty:
            msg = f"{self.path} is empty; a CSV file begins with its header."
            raise FileError(msg, hint="Write the names of the columns on the first line.")

    def _ending(self) -> str:
        first = next((text for _, text in read_lines(self.path)), "")
        return "\r\n" if first.endswith("\r\n") else "\n"

    def render(self, row: Row, result: OptimizedPrompt) -> str:
        """Return the record with the result's cells behind its own."""
        record = row.source.rstrip("\r\n")
        return f"{record},{_csv_record(list(self.fields.added(result).values()))}{row.source[len(record) :]}"


def _csv_record(cells: list[str]) -> str:
    """Return cells as a CSV record without its line ending."""
    buffer = io.StringIO()
    # With this terminator a cell that holds any line break is quoted, in every version of Python.
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Yield the number and the text of each line, its `\n` included; a byte order mark is dropped.

    Raises:
        FileError: The file cannot be read, or is not UTF-8.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                text = decode_utf8(data, str(path), offset=offset, line=number)
                offset += len(data)
                yield number, text.removeprefix(_BOM) if number == 1 else text
    except OSError as error:
        raise os_error(error, f"{path} cannot be read") from error


def decode_utf8(data: bytes, name: str, *, offset: int = 0, line: int = 1) -> str:
    """Decode bytes.

    Args:
        data: The bytes.
        name: Whose they are, for the message.
        offset: Where they begin in it, in bytes.
        line: The line on which they begin, from 1.

    Raises:
        FileError: They are not UTF-8; the message names the first bad byte.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        msg = f"{name} is not UTF-8: byte 0x{data[error.start]:02X} at offset {offset + error.start} (line {line})."
        raise FileError(msg, hint="Convert it first, for example with iconv.") from error


def _byte_order_mark(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _BOM if file.read(3) == _BOM.encode() else ""
    except OSError as error:
        raise os_error(error, f"{path} cannot be read") from error
