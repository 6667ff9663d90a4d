"""A folder that appears whole or not at all, and the rules about what may be replaced.

The files are written beside it, into `.NAME.unfinished`, synced and moved into place; an export that fails leaves
nothing, one that is killed leaves that folder, which the next one clears away. Two exports into one folder at once are
not provided for.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bpo_integrations.cli.exits import FileError, os_error
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.rewriter import RECORD_FILE


@contextmanager
def whole_folder(output: Path, *, overwrite: bool = False, sources: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield an empty folder to write into; it becomes `output` when the block ends without an error.

    Args:
        output: The folder; it must be missing, or empty, unless `overwrite`.
        overwrite: Replace what an earlier export wrote there. Anything else is never replaced.
        sources: Folders that are read: `output` may not be, nor hold, one of them.

    Raises:
        FileError: `output` is in use, or cannot be written (a full disk, no permission).
        ConfigurationError: It is one of the sources, or holds one.

    Example:
        >>> import tempfile
        >>> with whole_folder(Path(tempfile.mkdtemp()) / "out") as folder:
        ...     _ = (folder / "hello").write_text("hello")
    """
    check_output(output, overwrite=overwrite, sources=sources)
    output = output.resolve()
    unfinished, old = (output.with_name(f".{output.name}.{what}") for what in ("unfinished", "replaced"))
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        _settle(unfinished)
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
            output.rename(old)
        unfinished.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        if (cause := _cause(error)) is None:
            raise
        raise os_error(cause, f"{output} cannot be written") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_output(output: Path, *, overwrite: bool, sources: Sequence[Path] = ()) -> None:
    """Refuse an output folder that must not be written, before any work is done.

    Raises:
        FileError: It is in use.
        ConfigurationError: It is one of the sources, or holds one.
    """
    if any(source.resolve().is_relative_to(output.resolve()) for source in sources):
        msg = f"{output} holds the run that is exported, or its base."
        raise ConfigurationError(msg, hint="Give another folder with --output.")
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir():
        msg = f"{output} is not a folder."
        raise FileError(msg, hint="Give another name with --output.")
    if not any(output.iterdir()):
        return
    if not overwrite:
        msg = f"{output} is not empty."
        raise FileError(msg, hint="Give another folder, or replace an earlier export with --overwrite.")
    if not (output / RECORD_FILE).is_file() and not all((part / RECORD_FILE).is_file() for part in output.iterdir()):
        msg = f"{output} holds other files than an export."
        raise FileError(msg, hint="--overwrite replaces an earlier export only; give another folder.")


def _settle(folder: Path) -> None:
    """Give every file the usual permissions (safetensors writes for the owner alone), and put all on the disk."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        path.chmod(0o644)
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _cause(error: Exception) -> OSError | None:
    """Return the system's error behind one that was raised while files were written; None where there is none.

    safetensors, written in Rust, knows it as a text with `(os error N)` only; numpy's `tofile` says how many items were
    written, and nothing else, when the disk is full.
    """
    if isinstance(error, OSError):
        cut_off = error.errno is None and " requested and " in str(error)
        return OSError(errno.ENOSPC, "the disk is full, or the file too large for it") if cut_off else error
    if type(error).__name__ != "SafetensorError":
        return None
    number = str(error).partition("(os error ")[2].partition(")")[0]
    return OSError(int(number), os.strerror(int(number))) if number.isdigit() else None
