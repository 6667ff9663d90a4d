"""How `bpo` ends: exit codes, the errors that only a command line has, and what each error becomes.

Pure: nothing is printed or ended here.
"""

from __future__ import annotations

import errno
from enum import IntEnum

from bpo_integrations.errors import BPOError, ConfigurationError


class Exit(IntEnum):
    """The exit codes of every `bpo` command."""

    OK = 0
    FAILED = 1
    """A model failed: the rewriter under `--strict`, or the LLM of `bpo compare`."""
    USAGE = 2
    """An option or an argument is wrong (click's own code)."""
    CONFIGURATION = 3
    """A model, a package or a key is missing, or options do not go together."""
    FILE = 4
    """An input or output cannot be read or written."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT, as shells count."""
    BROKEN_PIPE = 141
    """Whoever read the output went away: 128 + SIGPIPE."""


class FileError(BPOError):
    """An input or output file that cannot be used."""


class LLMError(BPOError):
    """The LLM that answers in `bpo compare` failed."""

    retryable = True


def exit_code(error: BPOError) -> Exit:
    """Return the exit code for an error.

    Example:
        >>> exit_code(FileError("There is no file x.csv."))
        <Exit.FILE: 4>
    """
    if isinstance(error, FileError):
        return Exit.FILE
    return Exit.CONFIGURATION if isinstance(error, ConfigurationError) else Exit.FAILED


def os_error(error: OSError, doing: str, *, hint: str = "") -> FileError:
    """Return what an error of the operating system means for the user.

    Args:
        error: What was raised.
        doing: What could not be done, for example `out.csv cannot be written`.
        hint: What to do; a full disk and a refused permission have hints of their own.
    """
    own = {
        errno.ENOSPC: "Free some space.",
        errno.EDQUOT: "Free some space.",
        errno.EACCES: "Check its permissions.",
    }.get(error.errno or 0, "")
    return FileError(f"{doing}: {error.strerror or error}.", hint=f"{own} {hint}".strip())


def one_line(text: str) -> str:
    """Return `text` as one line: each stretch of white space becomes a space."""
    return " ".join(text.split())
