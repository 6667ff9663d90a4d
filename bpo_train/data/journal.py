"""The journal of a run: one JSON object a line, appended when a row is finished; it is the run's only state.

Promises: `kill -9` at any point loses no finished row (a torn last line is cut off); after a loss of power at most the
last second is gone. One process at a time; other options than the journal's are refused. Memory does not grow with
rows: what is finished is looked up in a temporary SQLite file, and the lines stay on disk.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from bpo_integrations.cli.exits import FileError, os_error
from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_train.data.llm import Usage

NAME = "journal.jsonl"
SCHEMA = 1
SYNC_LINES = 64
SYNC_SECONDS = 1.0
"""Lines are written one by one, and forced to the disk after so many, or so long."""

Status = Literal["kept", "dropped", "failed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a row.

    Args:
        number: The row's place in the input, from 1.
        id: The row's id.
        digest: Tells its content from another's.
        status: `kept`; `dropped`, by a filter, the parser or a guard; or `failed`: the model gave no answer.
        reason: Why, the kind of reason before the first colon.
        result: What is written to the outputs for a kept row.
        answers: What the model wrote, word for word.
        usage: What it cost.
    """

    number: int
    id: str
    digest: str
    status: Status
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    answers: tuple[dict[str, Any], ...] = ()
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the filters left: written once they are through, before the first request.

    Args:
        rows: Rows of the input.
        asked: Rows that the model is asked about.
        prompt_tokens: What it will read, estimated.
        completion_tokens: What it will write, estimated.
        skipped: Rows of the source that are no row of the input, by reason.
    """

    rows: int
    asked: int
    prompt_tokens: int
    completion_tokens: int
    skipped: dict[str, int] = field(default_factory=dict)


class Journal:
    """The journal of one output folder; a context manager that holds its lock.

    Args:
        folder: The output folder; made when missing.
        options: Everything that results depend on besides the rows.

    Raises:
        ConfigurationError: The journal was made with other options, or a line before the last is damaged.
        FileError: Another process writes it, or the folder cannot be written.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.path = folder / NAME
        self.plan: Plan | None = None
        self.usage = Usage()
        self._unsynced, self._synced_at = 0, time.monotonic()
        # Named "", the database is a temporary file of SQLite's own, of which little is in memory.
        self._index = sqlite3.connect("", isolation_level=None)
        self._index.execute("CREATE TABLE entries (number INTEGER PRIMARY KEY, digest, status, offset, length)")
        self._index.execute("BEGIN")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self.path)
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise os_error(error, f"{self.path} cannot be written") from error
        try:
            self._end = self._read(options)
            if not self._end:
                self._write({"journal": SCHEMA, "options": options})
        except BaseException:
            self.close()
            raise

    def find(self, number: int) -> tuple[Status, str] | None:
        """Return status and digest of a row, or None where it is not finished."""
        found = self._index.execute("SELECT status, digest FROM entries WHERE number = ?", (number,)).fetchone()
        return (found[0], found[1]) if found else None

    def counts(self) -> dict[Status, int]:
        """Return how many rows ended as what."""
        return dict(self._index.execute("SELECT status, count(*) FROM entries GROUP BY status"))

    def append(self, entry: Entry) -> None:
        """Write that a row is finished; a row that failed before may come a second time, and then this counts.

        Raises:
            FileError: It cannot be written.
        """
        names = ("id", "digest", "status", "reason", "result", "answers")
        data = {"row": entry.number, **{name: getattr(entry, name) for name in names}, "usage": asdict(entry.usage)}
        place, length = self._write(data)
        self._add(entry.number, entry.digest, entry.status, place, length)
        self.usage += entry.usage

    def plan_is(self, plan: Plan) -> None:
        """Write that the filters are through.

        Raises:
            FileError: It cannot be written.
        """
        self._write({"plan": asdict(plan)})
        self.sync()
        self.plan = plan

    def entries(self) -> Iterator[Entry]:
        """Yield what is finished, in the order of the input."""
        with self.path.open("rb") as file:
            for place, length in self._index.execute("SELECT offset, length FROM entries ORDER BY number"):
                file.seek(place)
                yield _entry(json.loads(file.read(length)))

    def sync(self) -> None:
        """Force everything to the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise os_error(error, f"{self.path} cannot be written") from error
        self._unsynced, self._synced_at = 0, time.monotonic()

    def close(self) -> None:
        """Release the lock; what is written stays."""
        self._file.close()
        self._index.close()
        self._lock.release()

    def _write(self, data: dict[str, Any]) -> tuple[int, int]:
        line = (dump(data) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                msg = f"{self.path} cannot be written to its end."
                raise FileError(msg, hint="Free some space; the same command goes on from there.")
        except OSError as error:
            raise os_error(error, f"{self.path} cannot be written") from error
        place, self._end = self._end, self._end + len(line)
        self._unsynced += 1
        if self._unsynced >= SYNC_LINES or time.monotonic() - self._synced_at > SYNC_SECONDS:
            self.sync()
        return place, len(line)

    def _read(self, options: dict[str, Any]) -> int:
        """Read what earlier runs wrote, cut off a torn end, and return the length."""
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    data = json.loads(line)
                except ValueError as error:
                    if line.endswith(b"\n"):
                        raise _damaged(self.path, number) from error
                    break
                if not line.endswith(b"\n"):
                    break
                try:
                    self._take(data, number, options, end, len(line))
                except (KeyError, TypeError) as error:
                    raise _damaged(self.path, number) from error
                end += len(line)
        self._file.truncate(end)
        return end

    def _take(self, data: dict[str, Any], number: int, options: dict[str, Any], place: int, length: int) -> None:
        if number == 1:
            _check_options(self.path, data, options)
        elif "plan" in data:
            self.plan = Plan(**data["plan"])
        else:
            entry = _entry(data)
            self._add(entry.number, entry.digest, entry.status, place, length)
            self.usage += entry.usage

    def _add(self, number: int, digest: str, status: Status, place: int, length: int) -> None:
        values = (number, digest, status, place, length)
        self._index.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", values)

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock; what is written stays."""
        self.close()


def _entry(data: dict[str, Any]) -> Entry:
    usage, answers = Usage(**data.pop("usage")), tuple(data.pop("answers"))
    return Entry(number=data.pop("row"), usage=usage, answers=answers, **data)


def _check_options(path: Path, data: dict[str, Any], options: dict[str, Any]) -> None:
    if data.get("journal") != SCHEMA:
        msg = f"{path} is no journal of this version."
        raise ConfigurationError(msg, hint="Name another --output.")
    then: dict[str, Any] = data["options"]
    now = json.loads(dump(options))
    if then != now:
        names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
        msg = f"{path} was made with other options: {', '.join(names)}."
        raise ConfigurationError(msg, hint="Name another --output, or give the options that it was begun with.")


def _damaged(path: Path, number: int) -> ConfigurationError:
    return ConfigurationError(f"{path}, line {number}, is damaged.", hint="Remove that line: its row is asked again.")


def _locked(path: Path) -> Any:
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise MissingExtraError("filelock", extra="train") from error
    lock = FileLock(f"{path}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        msg = f"Another process is writing {path}."
        raise FileError(msg, hint="Wait for it, or name another --output.") from error
    return lock
