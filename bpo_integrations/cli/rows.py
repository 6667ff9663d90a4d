"""Rows of a file of prompts, and what becomes of each: the words that readers, journal and outputs share.

Promises: an error names the row, the line or the byte. Knows nothing of models, and of no format but UTF-8 lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bpo_integrations.cli.exits import FileError, os_error
from bpo_integrations.cli.show import dump
from bpo_integrations.result import OptimizedPrompt

KIND_FIELD = "bpo_kind"
REASON_FIELD = "bpo_reason"

_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt of a file.

    Args:
        number: Its place among the rows, from 1.
        line: The line on which it begins, from 1; None where the format has no lines.
        prompt: The prompt.
        source: What stood there: the line (JSONL), the line's ending (TXT) or the record (CSV).
        id: What its id field holds, as JSON; empty where no such field is named.
    """

    number: int
    line: int | None
    prompt: str
    source: str = ""
    id: str = ""

    @property
    def name(self) -> str:
        """The row in words, for messages."""
        return f"row {self.number}" if self.line is None else f"row {self.number} (line {self.line})"

    @property
    def key(self) -> int | str:
        """What its result is kept under: the id, else the number."""
        return self.id or self.number


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row: the part of an `OptimizedPrompt` that files keep."""

    text: str
    kind: str
    reason: str

    @classmethod
    def of(cls, result: OptimizedPrompt) -> Outcome:
        """Return what is kept of a result."""
        return cls(result.text, result.kind, result.reason)

    @property
    def fate(self) -> str:
        """The kind for counting, in which a row whose model failed is `failed`."""
        return "failed" if self.reason.startswith("failed:") else self.kind


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields are read and written.

    Args:
        prompt: Holds the prompt.
        result: Receives the optimized prompt.
        id: Holds a string or a whole number that no other row has; None counts the rows instead.
    """

    prompt: str = "prompt"
    result: str = "optimized_prompt"
    id: str | None = None

    @property
    def new(self) -> tuple[str, str, str]:
        """The fields that are added to a row."""
        return (self.result, KIND_FIELD, REASON_FIELD)

    def added(self, outcome: Outcome) -> dict[str, str]:
        """Return the fields that a result adds to its row."""
        return dict(zip(self.new, (outcome.text, outcome.kind, outcome.reason), strict=True))

    def check(self, present: Sequence[str], where: str) -> None:
        """Refuse a row without the prompt or the id, or with a field that would be overwritten.

        Raises:
            FileError: As said.
        """
        for name, option in ((self.prompt, "--field"), (self.id, "--id-field")):
            if name is not None and name not in present:
                found = ", ".join(map(repr, present[:12])) or "none"
                msg = f"{where} has no field {name!r}; its fields: {found}."
                raise FileError(msg, hint=f"Name the field with {option}.")
        for name in self.new:
            if name in present:
                msg = f"{where} has a field {name!r} already, which would be overwritten."
                hint = "Name another with --output-field." if name == self.result else "Is it an output of bpo?"
                raise FileError(msg, hint=hint)

    def row(self, number: int, line: int | None, prompt: Any, source: str, given_id: Any, path: Path) -> Row:
        """Return a row, after a look at its prompt and its id.

        Raises:
            FileError: The prompt is no string, or the id is neither a string nor a whole number.
        """
        where = f"{path}, {Row(number, line, '').name}"
        if not isinstance(prompt, str):
            msg = f"{where}: the field {self.prompt!r} is {_shown(prompt)}, not a string."
            raise FileError(msg, hint="Correct the row, or name another field with --field.")
        if self.id is None:
            return Row(number, line, prompt, source)
        if isinstance(given_id, bool) or not isinstance(given_id, str | int):
            msg = f"{where}: the id field {self.id!r} is {_shown(given_id)}, neither a string nor a whole number."
            raise FileError(msg, hint="Correct the row, or name another field with --id-field.")
        return Row(number, line, prompt, source, dump(given_id))


class Rows(Protocol):
    """A file of prompts. It may be read any number of times, also by several readers at once."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def fields(self) -> Fields:
        """The fields that count."""

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows, reading the file as it goes.

        Raises:
            FileError: A row cannot be used.
        """

    def records(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield the rows with all their fields by name, for outputs of another format."""

    def names(self) -> list[str] | None:
        """Return the names of the fields that all rows have; None where each row has its own."""


class LineRows(Rows, Protocol):
    """A file whose rows can be written back as they stood."""

    def head(self) -> str:
        """Return what the output begins with."""

    def render(self, row: Row, outcome: Outcome) -> str:
        """Return the row with its result, as it stands in the output, line ending included."""


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


def byte_order_mark(path: Path) -> str:
    """Return the byte order mark that a file begins with, or nothing."""
    try:
        with path.open("rb") as file:
            return _BOM if file.read(3) == _BOM.encode() else ""
    except OSError as error:
        raise os_error(error, f"{path} cannot be read") from error


def _shown(value: Any) -> str:
    try:
        return dump(value)[:40]
    except TypeError:  # a value that only Parquet has
        return repr(value)[:40]
