"""What the tests of file jobs share: prompts about machines, a model that leaves every third one alone, and a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result
from fakes import fake_rewriter

from bpo_integrations.cli import Parts, main

ADDITION = "Explain the main steps in order, with one example."


def prompt(number: int) -> str:
    return f"How does machine number {number} work inside a large factory?"


def answer(text: str) -> str:
    """Leave every third machine alone."""
    number = int(text.split()[4])
    return "" if number % 3 == 0 else ADDITION


def better(number: int) -> str:
    return prompt(number) if number % 3 == 0 else f"{prompt(number)} {ADDITION}"


def parts(answer: Callable[[str], str] = answer) -> Parts:
    rewriter = fake_rewriter(answer)
    rewriter.engine._id = "fake-0"  # the same model every time, so that a job can go on
    return Parts(rewriter=rewriter)


def run(source: Path, target: Path, *options: str, answer: Callable[[str], str] = answer) -> Result:
    args = ["optimize", "--file", str(source), "--output", str(target), *options]
    return CliRunner().invoke(main, args, obj=parts(answer))


def refused(result: Result, code: int = 4) -> str:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("bpo: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def jsonl(path: Path, rows: int) -> Path:
    return write(path, "".join(json.dumps({"id": i, "prompt": prompt(i)}) + "\n" for i in range(rows)))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name)
