"""The documentation is executed: what it shows works, in the order in which a reader meets it.

Every fenced `python` block of README.md and docs/*.md runs, one namespace a page; `await` at the top level is allowed.
A block is left out by `<!-- skip: REASON -->` right before it. A `console` block runs where `<!-- run -->` stands right
before it: every line that begins with `$ bpo` must end with exit code 0.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
from sybil import Document, Example
from sybil.evaluators.python import pad
from sybil.parsers.markdown import CodeBlockParser

from bpo_integrations.errors import ModelNotFoundError
from bpo_integrations.models.base import find_base

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_SKIPPED = 8
ELSEWHERE = {"examples.md"}
"""Pages that show files which another test runs (test_examples.py)."""

SKIP = re.compile(r"<!--\s*skip:\s*(?P<reason>[^\n]*\S)\s*-->\s*\Z")
RUN = re.compile(r"<!--\s*run\s*-->\s*\Z")
NEEDS_MODEL = re.compile(r"(BPO\w+|PromptOptimizer|load_rewriter|ChatEmbedded|ChatBPO)\(|^\$ bpo (?!doctor|--)", re.M)


def before(example: Example) -> str:
    return example.document.text[: example.region.start]


def skipped(example: Example) -> bool:
    return SKIP.search(before(example)) is not None


def run_python(example: Example) -> None:
    if skipped(example):
        return
    source = pad(example.parsed, example.line + example.parsed.line_offset)
    code = compile(source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    # A block with a top-level `await` gives a coroutine when it is called; any other is done by then.
    found = FunctionType(code, example.namespace)()
    if inspect.iscoroutine(found):
        asyncio.run(found)


def commands(source: str) -> list[list[str]]:
    lines = source.replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ bpo")]


def run_console(example: Example, folder: Path) -> None:
    if not RUN.search(before(example)):
        return
    for command in commands(example.parsed):
        program = Path(sys.executable).with_name(command[0])
        done = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, text=True, input="")
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


def parse(page: Path, folder: Path) -> Document:
    return Document.parse(
        str(page),
        CodeBlockParser("python", run_python),
        CodeBlockParser("console", lambda example: run_console(example, folder)),
    )


def executed(page: Path, folder: Path) -> list[Example]:
    chosen = []
    for example in parse(page, folder).examples():
        console = example.document.text.startswith("console", example.region.start + 3)
        if (console and RUN.search(before(example))) or not (console or skipped(example)):
            chosen.append(example)
    return chosen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = executed(page, tmp_path)
    if not examples:
        pytest.skip("no example on this page")
    if any(NEEDS_MODEL.search(example.parsed) for example in examples):
        try:
            find_base()
        except ModelNotFoundError as error:
            pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    for example in examples:
        example.evaluate()


def test_few_examples_are_left_out(tmp_path: Path) -> None:
    left_out = [
        f"{page.name}, line {example.line}"
        for page in PAGES
        if page.name not in ELSEWHERE
        for example in parse(page, tmp_path).examples()
        if skipped(example)
    ]
    assert len(left_out) <= MOST_SKIPPED, left_out


def test_an_example_that_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nasync def two():\n    return 2\n```\n\n```python\nassert await two() == 3\n```\n")
    examples = executed(page, tmp_path)
    examples[0].evaluate()
    with pytest.raises(AssertionError):
        examples[1].evaluate()


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run -->\n```console\n$ bpo optimize --no-such-option\n```\n")
    (example,) = executed(page, tmp_path)
    with pytest.raises(AssertionError, match="no-such-option"):
        example.evaluate()
