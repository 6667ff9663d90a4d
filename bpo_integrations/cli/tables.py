"""Parquet, in and out, through pyarrow: a batch of rows in memory at a time, columns keep their types.

What becomes Parquet from another format gets its types from a look through the whole input before any model runs:
CSV and TXT are strings, JSON fields get the one type that holds all their values, or are refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from bpo_integrations.cli.exits import FileError, os_error
from bpo_integrations.cli.outputs import WRITE_BLOCK, JsonLines, LookUp, Output, blocks, line_rows, refuse_twins
from bpo_integrations.cli.rows import Fields, Row, Rows
from bpo_integrations.errors import MissingExtraError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyarrow.types as kinds
except ImportError as error:
    raise MissingExtraError("pyarrow", extra="parquet") from error


def open_tables(source: Path, target: Path, fields: Fields, kind: str, wanted: str) -> tuple[Rows, Output]:
    """Return what reads and writes, where one of the two files is Parquet."""
    if kind != "parquet":
        lines = line_rows(source, fields, kind)
        return lines, NewTable(lines)
    rows = TableRows(source, fields)
    return rows, SameTable(rows) if wanted == "parquet" else TableAsJson(rows)


@dataclass(frozen=True, slots=True)
class TableRows:
    """The rows of a Parquet file; only the columns of prompt and id are read until the output is written."""

    path: Path
    fields: Fields

    def names(self) -> list[str] | None:
        """Return the names of the columns."""
        return list(self.schema().names)

    def schema(self) -> pa.Schema:
        """Return the columns with their types.

        Raises:
            FileError: It is no Parquet file, or lacks a column.
        """
        with self._open() as file:
            schema = file.schema_arrow
        where = f"{self.path}, the schema"
        self.fields.check(schema.names, where)
        for name in (self.fields.prompt, self.fields.id):
            if name is not None and schema.names.count(name) > 1:
                msg = f"{where} names the field {name!r} more than once."
                raise FileError(msg, hint="Rename one of the columns.")
        return schema

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows."""
        self.schema()
        columns = [name for name in (self.fields.prompt, self.fields.id) if name is not None]
        for rows, _ in self.batches(columns):
            yield from rows

    def records(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield the rows with all their columns as Python values."""
        for rows, batch in self.batches():
            yield from zip(rows, batch.to_pylist(), strict=True)

    def batches(self, columns: list[str] | None = None) -> Iterator[tuple[list[Row], pa.RecordBatch]]:
        """Yield rows as they are stored, a few at a time.

        Raises:
            FileError: The file is damaged, or a row cannot be used.
        """
        number = 0
        with self._open() as file:
            for batch in file.iter_batches(WRITE_BLOCK, columns=columns, use_threads=False):
                prompts = batch.column(self.fields.prompt).to_pylist()
                ids = batch.column(self.fields.id).to_pylist() if self.fields.id is not None else prompts
                rows = [
                    self.fields.row(number + place, None, prompt, "", given_id, self.path)
                    for place, (prompt, given_id) in enumerate(zip(prompts, ids, strict=True), 1)
                ]
                number += len(rows)
                yield rows, batch

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        try:
            # Without a buffer pyarrow reads each column of a row group whole, however large the group is.
            with pq.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False) as file:
                yield file
        except pa.ArrowInvalid as error:
            msg = f"{self.path} is no Parquet file that can be read: {_first_line(error)}"
            raise FileError(msg, hint="Was it cut off? Write it anew.") from error
        except OSError as error:
            raise os_error(error, f"{self.path} cannot be read") from error


@dataclass(frozen=True, slots=True)
class SameTable:
    """The input's columns as they are, with three more."""

    rows: TableRows

    def check(self) -> None:
        """Nothing stands against it."""

    def write(self, file: BinaryIO, look_up: LookUp) -> None:
        """Write the file."""
        schema = _with_results(self.rows.schema(), self.rows.fields)
        with pq.ParquetWriter(file, schema) as writer:
            for rows, batch in self.rows.batches():
                found = [self.rows.fields.added(outcome) for outcome in look_up(rows)]
                added = [pa.array([each[name] for each in found], pa.string()) for name in self.rows.fields.new]
                writer.write_batch(pa.RecordBatch.from_arrays([*batch.columns, *added], schema=schema))


@dataclass(frozen=True, slots=True)
class TableAsJson:
    """JSON objects made of the columns."""

    rows: TableRows

    def check(self) -> None:
        """Refuse columns whose values JSON does not have, such as times and bytes."""
        refuse_twins(self.rows)
        for column in self.rows.schema():
            if not _is_json(column.type):
                msg = (
                    f"{self.rows.path}: the column {column.name!r} is of type {column.type}, which JSON does not have."
                )
                raise FileError(msg, hint="Give --output a name that ends in .parquet, or convert the column.")

    def write(self, file: BinaryIO, look_up: LookUp) -> None:
        """Write the file."""
        JsonLines(self.rows).write(file, look_up)


@dataclass(frozen=True, slots=True)
class NewTable:
    """Columns made of the fields of lines."""

    rows: Rows
    _types: dict[str, pa.DataType] = field(default_factory=dict)

    def check(self) -> None:
        """Find each field's type.

        Raises:
            FileError: No type holds all values of a field.
        """
        refuse_twins(self.rows)
        self._types.clear()
        if (names := self.rows.names()) is not None:
            self._types.update(dict.fromkeys(names, pa.string()))
        else:
            for block in blocks(self.rows.records(), WRITE_BLOCK):
                for name in dict.fromkeys(name for _, record in block for name in record):
                    self._widen(name, block)
        self._types.setdefault(self.rows.fields.prompt, pa.string())
        with self._errors():
            pq.ParquetWriter(io.BytesIO(), self._schema()).close()
            for block in blocks(self.rows.records(), WRITE_BLOCK):  # a type found later may not hold an earlier value
                pa.RecordBatch.from_pylist([record for _, record in block], schema=pa.schema(list(self._types.items())))

    def _widen(self, name: str, block: list[tuple[Row, dict[str, Any]]]) -> None:
        """Make a field's type hold the values of a block, too."""
        with self._errors(f", the field {name!r} of rows {block[0][0].number} to {block[-1][0].number}"):
            new = pa.array([record.get(name) for _, record in block]).type
            old = self._types.get(name, pa.null())
            both = [pa.schema([(name, old)]), pa.schema([(name, new)])]
            self._types[name] = pa.unify_schemas(both, promote_options="permissive").field(0).type

    @contextmanager
    def _errors(self, where: str = "") -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            msg = f"{self.rows.path}{where} cannot be written as Parquet: {_first_line(error)}"
            raise FileError(msg, hint="Correct the rows, or give --output a name that ends in .jsonl.") from error

    def _schema(self) -> pa.Schema:
        return _with_results(pa.schema(list(self._types.items())), self.rows.fields)

    def write(self, file: BinaryIO, look_up: LookUp) -> None:
        """Write the file."""
        schema, fields = self._schema(), self.rows.fields
        with pq.ParquetWriter(file, schema) as writer:
            for block in blocks(self.rows.records(), WRITE_BLOCK):
                outcomes = look_up([row for row, _ in block])
                full = [
                    {**record, **fields.added(outcome)} for (_, record), outcome in zip(block, outcomes, strict=True)
                ]
                with self._errors():
                    batch = pa.RecordBatch.from_pylist(full, schema=schema)
                writer.write_batch(batch)


def _with_results(schema: pa.Schema, fields: Fields) -> pa.Schema:
    for name in fields.new:
        schema = schema.append(pa.field(name, pa.string()))
    return schema


def _is_json(kind: pa.DataType) -> bool:
    if kinds.is_nested(kind) and not kinds.is_map(kind) and not kinds.is_union(kind):
        return all(_is_json(kind.field(place).type) for place in range(kind.num_fields))
    if kinds.is_dictionary(kind):
        return _is_json(kind.value_type)
    tests = (kinds.is_null, kinds.is_boolean, kinds.is_integer, kinds.is_floating)
    return any(test(kind) for test in tests) or kind in (pa.string(), pa.large_string(), pa.string_view())


def _first_line(error: Exception) -> str:
    return f"{str(error).strip().splitlines()[0].rstrip('.')}."
