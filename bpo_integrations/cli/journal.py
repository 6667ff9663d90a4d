"""An output file that grows block by block and survives `kill -9`: every row once, the finished file at once.

`OUT.partial` holds what is written so far, `OUT.partial.json` how many rows and bytes of it are safe. A block is synced
before the record says so; on resuming, whatever stands behind the recorded bytes is cut off and made again. At the end
the partial file takes the output's name in one step.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bpo_integrations.cli.exits import FileError, os_error

try:
    import fcntl
except ImportError:  # Windows: two jobs on one output are not noticed there
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Progress:
    """What is safely written.

    Args:
        job: Tells this job from another: the input's checksum and everything that the results depend on.
        total: Rows of the input.
        rows: Rows written.
        bytes: Bytes written.
        kinds: How many rows ended as what (`kept`, `augmented`, ..., `failed`).
        failure: The reason of the first row that failed.
    """

    job: dict[str, Any]
    total: int
    rows: int = 0
    bytes: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    failure: str = ""


class Journal:
    """Writes one output file; a context manager that holds its lock.

    Args:
        target: The output.
        job: See `Progress`.
        total: Rows of the input.
        overwrite: Replace an existing output, and drop a partial file of another job.

    Raises:
        FileError: The output is there already, another job left a partial file, another process writes it, or the
            folder cannot be written.
    """

    def __init__(self, target: Path, job: dict[str, Any], total: int, *, overwrite: bool = False) -> None:
        self.target = Path(os.path.realpath(target))
        self.partial = Path(f"{self.target}.partial")
        self.record = Path(f"{self.target}.partial.json")
        self.progress = Progress(job, total)
        self._fd = -1
        found = self._found(overwrite)
        self.complete = found.bytes > 0 and found.rows == total and self.target.exists() and not self.partial.exists()
        if self.complete:  # killed between the last two steps: the output has its name, the record is still there
            self.progress = found
            return
        check_target(self.target, overwrite=overwrite)
        with self._errors():
            self._fd = _open_locked(self.partial)
            try:
                self._resume(found, overwrite)
            except BaseException:
                os.close(self._fd)
                raise

    def _found(self, overwrite: bool) -> Progress:
        """Return what an earlier run recorded, where it was the same job."""
        fresh = self.progress
        try:
            found = Progress(**json.loads(self.record.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return fresh
        except OSError as error:
            raise os_error(error, f"{self.record} cannot be read") from error
        except (ValueError, TypeError) as error:
            if overwrite:
                return fresh
            msg = f"{self.record} cannot be read."
            raise FileError(msg, hint="Remove it, or start anew with --overwrite.") from error
        if found.job == fresh.job:
            return found
        if overwrite or not self.partial.exists():
            return fresh
        what = "of another input" if found.job.get("input") != fresh.job.get("input") else "made with other options"
        msg = f"{self.partial} is {what}."
        raise FileError(msg, hint="Remove it, name another --output, or start anew with --overwrite.")

    def _resume(self, found: Progress, overwrite: bool) -> None:
        size = os.fstat(self._fd).st_size
        if size and not self.record.exists() and not overwrite:
            msg = f"{self.partial} is there, but {self.record.name} is not, which says how far it got."
            raise FileError(msg, hint="Remove it, or start anew with --overwrite.")
        if size >= found.bytes:
            self.progress = found
        os.ftruncate(self._fd, self.progress.bytes)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._save()

    def append(self, text: str, results: list[tuple[str, str]]) -> None:
        """Write a block and make it safe.

        Args:
            text: The rows as they stand in the file.
            results: Kind and reason of each of them.

        Raises:
            FileError: It cannot be written; what was safe before stays so.
        """
        data = text.encode("utf-8")
        with self._errors():
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
            old = self.progress
            failures = [reason for kind, reason in results if kind == "failed"]
            self.progress = replace(
                old,
                rows=old.rows + len(results),
                bytes=old.bytes + len(data),
                kinds=dict(Counter(old.kinds) + Counter(kind for kind, _ in results)),
                failure=old.failure or next(iter(failures), ""),
            )
            self._save()

    def finish(self) -> None:
        """Give the output its name and remove the record."""
        with self._errors():
            if not self.complete:
                self.partial.replace(self.target)
                _sync_folder(self.target.parent)
            self.record.unlink(missing_ok=True)

    def _save(self) -> None:
        temporary = Path(f"{self.record}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(self.progress), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.record)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            done = self.progress.rows
            hint = f"{done:,} rows are safe; the same command goes on from there." if done else ""
            raise os_error(error, f"{self.partial} cannot be written", hint=hint) from error

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock; what is written stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


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


def _open_locked(path: Path) -> int:
    """Open a file for writing, alone."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Had the other job finished in between, this would be its output under another name.
            if not path.exists() or path.stat().st_ino != os.fstat(fd).st_ino:
                raise BlockingIOError
    except BlockingIOError as error:
        os.close(fd)
        msg = f"Another process is writing {path}."
        raise FileError(msg, hint="Wait for it, or name another --output.") from error
    return fd


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable, where the system can."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
