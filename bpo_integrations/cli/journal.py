"""The results of an unfinished job, in a SQLite file that survives `kill -9`: every row once, in any order.

`OUT.partial` holds each row's result under its id (or its number) with a digest of its prompt. A block of results is
one transaction, synced before it counts. At the end the output is written beside it and takes its name in one step;
only then does the journal go.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from bpo_integrations.cli.exits import FileError, os_error
from bpo_integrations.cli.rows import Outcome, Row
from bpo_integrations.cli.show import dump

SCHEMA = 1
"""Of the file; SQLite keeps it as `user_version`."""

CACHE = 512
"""Kilobytes of it that SQLite keeps in memory: less than its own 2,000, so that long jobs take what short ones do."""

_TABLES = (
    "CREATE TABLE job (options TEXT NOT NULL, input TEXT NOT NULL, finished INTEGER NOT NULL)",
    # A key is a whole number or a text, so its column has no type that would turn one into the other.
    "CREATE TABLE results (key PRIMARY KEY, prompt BLOB NOT NULL, result TEXT NOT NULL)",
    f"PRAGMA user_version = {SCHEMA}",
)

_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}


class Journal:
    """Keeps the results of one output; a context manager that holds its lock.

    Args:
        target: The output.
        options: Everything that the results depend on besides the prompts.
        checksum: Tells this input from another.
        grows: Go on although the input has changed: rows are known by their ids, and by their prompts.
        overwrite: Replace an existing output, and drop a journal of another job.

    Raises:
        FileError: The output is there already, another job left a journal, another process writes it, or the folder
            cannot be written.
    """

    def __init__(
        self, target: Path, options: dict[str, Any], checksum: str, *, grows: bool = False, overwrite: bool = False
    ) -> None:
        self.target = Path(os.path.realpath(target))
        self.path = Path(f"{self.target}.partial")
        self.made = Path(f"{self.target}.partial.out")
        self.finished = False
        self._checksum = checksum
        if not self.path.exists():
            check_target(self.target, overwrite=overwrite)
        self._db = self._open(overwrite)
        try:
            with self._errors():
                self._take_over(json.dumps(options, sort_keys=True), grows, overwrite)
            if not self.finished:
                check_target(self.target, overwrite=overwrite)
        except BaseException:
            self._db.close()
            raise

    def _open(self, overwrite: bool) -> sqlite3.Connection:
        """Open the database, alone; one that is no journal is refused, or made anew."""
        db: sqlite3.Connection | None = None
        try:
            with self._errors():
                db = sqlite3.connect(self.path, isolation_level=None, timeout=0)
                # The lock is held until the end, which also spares the shared memory that network drives lack.
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute(f"PRAGMA cache_size = -{CACHE}")
                db.execute("BEGIN IMMEDIATE")
                empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
                if not empty and db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
                    raise _foreign(self.path)
                for statement in _TABLES if empty else ():
                    db.execute(statement)
                db.execute("COMMIT")
        except _ForeignFileError:
            if db is not None:
                db.close()
            if not overwrite:
                raise
            self._remove()
            return self._open(overwrite=False)
        except BaseException:
            if db is not None:
                db.close()
            raise
        return db

    def _take_over(self, options: str, grows: bool, overwrite: bool) -> None:
        """Go on with what an earlier run did, where it was the same job."""
        found = self._db.execute("SELECT options, input, finished FROM job").fetchone()
        if found is not None:
            same_input = found[1] == self._checksum
            if found[0] == options and (same_input or grows):
                # Killed after the output took its name, and before the journal went?
                self.finished = bool(found[2]) and same_input and self.target.exists() and not self.made.exists()
            elif not overwrite:
                what = "made with other options" if same_input or grows else "of another input"
                msg = f"{self.path} is {what}."
                raise FileError(msg, hint="Remove it, name another --output, or start anew with --overwrite.")
            else:
                with self._transaction():
                    self._db.execute("DELETE FROM results")
        if not self.finished:
            with self._transaction():
                self._db.execute("DELETE FROM job")
                self._db.execute("INSERT INTO job VALUES (?, ?, 0)", (options, self._checksum))

    def find(self, rows: Sequence[Row]) -> list[Outcome | None]:
        """Return the results that are safe, None for a row that has none, or had another prompt then."""
        marks = ", ".join("?" * len(rows))
        with self._errors():
            query = f"SELECT key, prompt, result FROM results WHERE key IN ({marks})"  # noqa: S608  (only marks)
            found = {
                key: (digest, result) for key, digest, result in self._db.execute(query, [row.key for row in rows])
            }
        outcomes: list[Outcome | None] = []
        for row in rows:
            digest, result = found.get(row.key, (b"", ""))
            outcomes.append(Outcome(*json.loads(result)) if digest == _digest(row.prompt) else None)
        return outcomes

    def add(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> None:
        """Make results safe, all of them or none.

        Raises:
            FileError: They cannot be written; what was safe before stays so.
        """
        values = [
            (row.key, _digest(row.prompt), dump([outcome.text, outcome.kind, outcome.reason]))
            for row, outcome in zip(rows, outcomes, strict=True)
        ]
        with self._errors(), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", values)

    def count(self) -> int:
        """Return how many results are safe."""
        count: int = self._db.execute("SELECT count(*) FROM results").fetchone()[0]
        return count

    def finish(self, write: Callable[[BinaryIO], None]) -> None:
        """Write the output, give it its name in one step, and remove the journal.

        Args:
            write: Writes the output into a file.

        Raises:
            FileError: It cannot be written; the results stay.
        """
        if not self.finished:
            with self._errors(self.made):
                try:
                    with self.made.open("wb") as file:
                        write(file)
                        file.flush()
                        os.fsync(file.fileno())
                except BaseException:
                    self.made.unlink(missing_ok=True)  # it may be what fills the disk
                    raise
            with self._errors(), self._transaction():
                self._db.execute("UPDATE job SET finished = 1")
            with self._errors(self.target):
                self.made.replace(self.target)
                _sync_folder(self.target.parent)
        with self._errors():
            self._db.execute("PRAGMA journal_mode = DELETE")  # one file again, so that it goes in one step
            self._db.close()
            self._remove()

    def _remove(self) -> None:
        for end in ("", "-wal"):  # SQLite itself removes a log that has lost its database
            Path(f"{self.path}{end}").unlink(missing_ok=True)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self, path: Path | None = None) -> Iterator[None]:
        """Say what an error of the disk or of SQLite means for the user."""
        path = path or self.path
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_NOTADB:
                raise _foreign(path) from error
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                msg = f"Another process is writing {path}."
                raise FileError(msg, hint="Wait for it, or name another --output.") from error
            if code == sqlite3.SQLITE_CORRUPT:
                msg = f"{path} is damaged."
                raise FileError(msg, hint="Start anew with --overwrite, after removing it.") from error
            known = _ERRORS.get(code)
            cause = OSError(known, os.strerror(known)) if known else OSError(0, str(error))
            raise os_error(cause, f"{path} cannot be written", hint=self._safe()) from error
        except OSError as error:
            raise os_error(error, f"{path} cannot be written", hint=self._safe()) from error

    def _safe(self) -> str:
        try:
            done = self.count()
        except (AttributeError, sqlite3.Error):
            return ""
        return f"{done:,} rows are safe; the same command goes on from there." if done else ""

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock; what is written stays."""
        self._db.close()


class _ForeignFileError(FileError):
    """What stands where the journal should be is none."""


def _foreign(path: Path) -> _ForeignFileError:
    msg = f"{path} is there, and is no journal of this version of bpo."
    return _ForeignFileError(msg, hint="Remove it, or start anew with --overwrite.")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        FileError: It exists, it is no regular file, or its folder does not exist.
    """
    if target.exists():
        if not target.is_file():
            msg = f"{target} is no regular file."
            raise FileError(msg, hint="Name another --output.")
        if not overwrite:
            msg = f"{target} exists already."
            raise FileError(msg, hint="Name another --output, or give --overwrite.")
    if not target.parent.is_dir():
        msg = f"The folder {target.parent} does not exist."
        raise FileError(msg, hint="Create it first.")


def _digest(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()[:16]


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable, where the system can."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
