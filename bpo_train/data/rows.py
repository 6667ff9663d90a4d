"""Rows of any data set as dictionaries, one after the other: a local file, a folder, or an id on the Hugging Face hub.

Promises: memory does not grow with the file; a file that is damaged is an error that names the line or the row, never
a row that is silently missing. It does not know what the fields mean: see `layouts.py`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from bpo_integrations.errors import ConfigurationError, MissingExtraError

Row: TypeAlias = dict[str, Any]

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
MAX_CELL = 16 * 2**20
"""Characters in a CSV cell; more means a quotation mark that is never closed."""
BATCH = 256
"""Parquet rows that are in memory at a time."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def read_rows(spec: str | Path, *, split: str | None = None) -> Iterator[Row]:
    r"""Yield the rows of a data set.

    Args:
        spec: A file (.jsonl, .json, .csv or .parquet, text also with .gz), a folder of such files, or a hub id, with
            the configuration's name behind a colon where there are several (`owner/name:configuration`).
        split: The split of a folder or a hub id; None takes `train`, or the only one. A file has none.

    Yields:
        One dictionary a row. Cells of CSV are strings.

    Raises:
        ConfigurationError: There is no such file, it is of another format, it is damaged, or there is no such split.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("two.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
        >>> list(read_rows("two.jsonl"))
        [{'a': 1}, {'a': 2}]
    """
    path = Path(spec)
    if path.is_file():
        yield from _read_file(path)
    elif path.is_dir() or _is_hub_id(str(spec)):
        yield from _read_dataset(str(spec), split)
    else:
        msg = f"There is no file or folder {spec}."
        raise ConfigurationError(msg, hint="Give a file, a folder, or a hub id such as OpenAssistant/oasst1.")


def _is_hub_id(spec: str) -> bool:
    """Whether it can be an id on the hub; a path to a file that is not there is not taken for one."""
    return _HUB_ID.fullmatch(spec) is not None and not spec.lower().endswith((*FORMATS, ".gz")) and spec[0] not in "./"


def _read_file(path: Path) -> Iterator[Row]:
    kind = _format(path)
    try:
        if kind == ".parquet":
            yield from _read_parquet(path)
            return
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as opened:
            binary = cast("IO[bytes]", opened)
            if kind == ".csv":
                yield from _read_csv(binary, path)
            elif kind == ".json" and _first_character(binary) == b"[":
                yield from _read_array(binary, path)
            else:
                yield from _read_lines(binary, path)
    except (EOFError, UnicodeDecodeError, OSError) as error:
        msg = f"{path} cannot be read: {error}."
        raise ConfigurationError(msg, hint="Is the file complete, and is it UTF-8?") from error


def _format(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        msg = f"{path} is of no known format."
        raise ConfigurationError(msg, hint=f"Known are {', '.join(FORMATS)}; all but .parquet also with .gz.")
    return suffixes[-1]


def _first_character(binary: IO[bytes]) -> bytes:
    """Return the first byte that is no white space, and go back to the start."""
    head = binary.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    binary.seek(0)
    return head


def _read_lines(binary: IO[bytes], path: Path) -> Iterator[Row]:
    for number, line in enumerate(io.TextIOWrapper(binary, encoding="utf-8-sig"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            msg = f"{path}, line {number}: not JSON ({error})."
            raise ConfigurationError(msg, hint="Give one JSON object a line, or one array of objects.") from error
        yield _checked(row, f"{path}, line {number}")


def _read_array(binary: IO[bytes], path: Path) -> Iterator[Row]:
    try:
        import ijson
    except ImportError as error:
        raise MissingExtraError("ijson", extra="train") from error
    number = 0
    try:
        if binary.read(3) != b"\xef\xbb\xbf":
            binary.seek(0)
        for number, row in enumerate(ijson.items(binary, "item", use_float=True), start=1):
            yield _checked(row, f"{path}, row {number}")
    except ijson.JSONError as error:
        msg = f"{path}: not JSON after row {number} ({error})."
        raise ConfigurationError(msg, hint="Was the file cut off?") from error


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        msg = f"{where}: not a JSON object."
        raise ConfigurationError(msg, hint="Each row must be one JSON object.")
    return row


def _read_csv(binary: IO[bytes], path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.DictReader(io.TextIOWrapper(binary, encoding="utf-8-sig", newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                msg = f"{path}, line {reader.line_num}: a record with more or fewer cells than the header."
                raise ConfigurationError(msg, hint="Put cells with commas or line breaks in quotation marks.")
            yield dict(row)
    except csv.Error as error:
        msg = f"{path}, line {reader.line_num}: {error}."
        raise ConfigurationError(msg, hint="Is a quotation mark never closed?") from error


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="train") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        msg = f"{path} is no Parquet file that can be read: {error}."
        raise ConfigurationError(msg, hint="Is the file complete?") from error


def _read_dataset(spec: str, split: str | None) -> Iterator[Row]:
    """Stream a folder or a hub id through `datasets`, which never runs code from the data set."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError("datasets", extra="train") from error
    name, _, configuration = spec.partition(":") if not Path(spec).is_dir() else (spec, "", "")
    try:
        found = load_dataset(name, configuration or None, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # what `datasets` raises: not found, offline, gated, no files
        msg = f"The data set {spec} cannot be opened: {error}."
        raise ConfigurationError(msg, hint="Check the name; a gated data set needs `hf auth login`.") from error
    splits = list(found)
    chosen = split or ("train" if "train" in splits else splits[0] if len(splits) == 1 else None)
    if chosen not in splits:
        msg = f"The data set {spec} has {'no split ' + repr(split) if split else 'several splits'}."
        raise ConfigurationError(msg, hint=f"Choose one of: {', '.join(map(str, splits))}.")
    try:
        yield from found[chosen]
    except (OSError, ValueError, RuntimeError) as error:  # Arrow's errors are among them
        msg = f"The data set {spec} cannot be read to its end: {error}."
        raise ConfigurationError(msg, hint="Are its files complete? If it was the network, start again.") from error
