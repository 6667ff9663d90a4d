"""How results look: bytes for pipes, JSON for programs, differences and reasons for people. Pure but for `emit`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console, RenderableType

from bpo_integrations.cli.exits import os_error
from bpo_integrations.result import Candidate, DiffPart, OptimizedPrompt


def emit(text: str, ending: str = "\n") -> None:
    """Write text to standard output as UTF-8, whatever the locale.

    Bytes of the command line that were no UTF-8 come out as they came in.

    Raises:
        FileError: It cannot be written, because the disk is full for example.
        BrokenPipeError: Nobody reads it any more.
    """
    errors = "surrogatepass" if os.name == "nt" else "surrogateescape"
    try:
        click.echo((text + ending).encode("utf-8", errors), nl=False)
    except BrokenPipeError:
        drop_output()
        raise
    except OSError as error:
        drop_output()
        raise os_error(error, "Standard output cannot be written") from error


def drop_output() -> None:
    """Send what is still buffered nowhere, so that Python does not fail over it once more at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no real file: there is nothing to drop
        return


def dump(data: Any, *, indent: int | None = None) -> str:
    r"""Return JSON that is valid UTF-8: readable characters stay, and lone surrogates are escaped.

    Example:
        >>> dump({"a": "é"})
        '{"a": "é"}'
        >>> dump("\ud800")
        '"\\ud800"'
    """
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(data, indent=indent)
    return text


def use_color() -> bool:
    """Whether standard output shows colours: a capable terminal, and `NO_COLOR` is not set (`FORCE_COLOR` counts)."""
    console = Console(file=sys.stdout)
    return console.color_system is not None and not console.no_color


def rendered(renderable: RenderableType, *, width: int | None = None) -> str:
    """Return what rich would print on standard output, with colours only where `use_color()`."""
    console = Console(file=sys.stdout, width=width, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().split("\n"))


def difference(result: OptimizedPrompt, *, color: bool) -> str:
    """Return the change word by word: coloured, or marked as `wdiff` does.

    Example:
        >>> difference(OptimizedPrompt("a b", "a c", "rewritten", ""), color=False)
        'a [-b-]{+c+}'
    """
    return "".join(_marked(part, color) for part in result.diff())


def _marked(part: DiffPart, color: bool) -> str:
    if part.op == "same":
        return part.text
    if color:
        removed = part.op == "removed"
        return click.style(part.text, fg="red" if removed else "green", strikethrough=removed or None)
    return f"[-{part.text}-]" if part.op == "removed" else f"{{+{part.text}+}}"


def explanation(result: OptimizedPrompt, threshold: float | None = None) -> str:
    """Return for people why the result is what it is.

    Args:
        result: The result.
        threshold: Augment mode: the probability of adding nothing from which nothing is added.
    """
    lines = [
        ("kind", result.kind),
        ("reason", result.reason),
        ("seconds", f"{result.seconds:.2f}"),
        ("tokens", str(result.tokens)),
        ("rewriter", result.rewriter),
    ]
    empty = [candidate.p_empty for candidate in result.candidates if candidate.p_empty is not None]
    if empty:
        limit = "" if threshold is None else f" (nothing is added from {threshold:g})"
        lines.append(("p(empty)", f"{empty[0]:.3f}{limit}"))
    lines.append(("candidates", str(len(result.candidates))))
    table = [f"{name:<12}{value}" for name, value in lines]
    return "\n".join([*table, *_candidate_lines(result)])


def _candidate_lines(result: OptimizedPrompt) -> Iterator[str]:
    for number, candidate in enumerate(result.candidates, 1):
        yield f"  {number}. {_fate(candidate, result)}: {json.dumps(candidate.text, ensure_ascii=False)}"


def _fate(candidate: Candidate, result: OptimizedPrompt) -> str:
    if candidate.violation is not None:
        return f"rejected ({candidate.violation})"
    if not candidate.text:
        return "adds nothing"
    return "used" if result.changed and result.text.endswith(candidate.text) else "clean"
