"""What a rewriter draws for the prompts of its training rows, kept in a file so that nothing is drawn twice.

Promises: prompts are drawn for in fixed blocks, each with a seed of its own, and a block is written as one line when it
is finished; a run that was killed loses at most the block in flight, and goes on to the very draws of an undisturbed
one. Draws of other settings or other rows are refused, never mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpo_integrations.cli.exits import os_error
from bpo_integrations.cli.show import dump
from bpo_integrations.decoding import Decoding
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.result import Candidate, Violation
from bpo_integrations.rewriter import Rewriter
from bpo_train.training.mining import Draw
from bpo_train.training.rows import Example

DRAWS = "draws.jsonl"
SCHEMA = 1
BLOCK = 64
"""Prompts that are drawn for together."""

ALWAYS_ADD = 2.0
"""A threshold on the probability of adding nothing that no probability reaches: what is mined are additions."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How candidates are drawn.

    Args:
        n: Candidates a prompt.
        temperature: 1 is the model's own distribution.
        top_p: Nucleus mass.
        seed: Of the first block; the next has the next.
    """

    n: int = 4
    temperature: float = 1.0
    top_p: float = 0.95
    seed: int = 0

    def decoding(self, block: int) -> Decoding:
        """Return the decoding of a block."""
        return Decoding(
            temperature=self.temperature,
            top_p=self.top_p,
            n=self.n,
            seed=self.seed + block,
            empty_threshold=ALWAYS_ADD,
        )


def draw(
    rewriter: Rewriter,
    examples: Sequence[Example],
    path: Path,
    sampling: Sampling | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Draw]:
    """Draw candidates for every row's prompt, or read those that are in the file already.

    Args:
        rewriter: The model whose own mistakes are wanted.
        examples: Rows that may be trained on; a row that stands there several times is drawn for once.
        path: The file; made when missing.
        sampling: How to draw.
        progress: Called with the prompts that are done, and all of them.

    Raises:
        ConfigurationError: The file holds draws of another model, other settings or other rows, or is damaged.
        FileError: It cannot be written.
    """
    sampling = sampling or Sampling()
    rows = list({example.id: example for example in examples}.values())
    digest = hashlib.sha256(dump([[row.id, row.prompt] for row in rows]).encode("utf-8", "surrogatepass")).hexdigest()
    head = {"draws": SCHEMA, "model": rewriter.id, "rows": digest, "block": BLOCK, **asdict(sampling)}
    found = _read(path, head)
    blocks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            if not found and not file.tell():
                file.write(dump(head) + "\n")
            for number, block in enumerate(blocks):
                if number >= len(found):
                    drawn = rewriter.candidates([row.prompt for row in block], sampling.decoding(number))
                    line = [[_packed(candidate) for candidate in candidates] for candidates in drawn]
                    file.write(dump({"number": number, "candidates": line}) + "\n")
                    file.flush()
                    found.append(line)
                if progress is not None:
                    progress(min(len(rows), (number + 1) * BLOCK), len(rows))
    except OSError as error:
        raise os_error(error, f"{path} cannot be written") from error
    return [
        Draw(row.id, row.prompt, row.completion, tuple(map(_unpacked, candidates)), row.licence, row.source)
        for block, line in zip(blocks, found, strict=True)
        for row, candidates in zip(block, line, strict=True)
    ]


def _packed(candidate: Candidate) -> dict[str, Any]:
    """Return what is kept of a candidate."""
    kept: dict[str, Any] = {"text": candidate.text, "tokens": candidate.tokens, "finish": candidate.finish_reason}
    if candidate.violation is not None:
        kept["violation"] = [candidate.violation.guard, candidate.violation.detail]
    return kept


def _unpacked(kept: dict[str, Any]) -> Candidate:
    violation = Violation(*kept["violation"]) if "violation" in kept else None
    return Candidate(kept["text"], kept["tokens"], finish_reason=kept["finish"], violation=violation)


def _read(path: Path, head: dict[str, Any]) -> list[list[list[dict[str, Any]]]]:
    """Return the finished blocks; a line that was torn by a crash is cut off."""
    if not path.is_file():
        return []
    try:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with path.open("r+b") as file:
                file.truncate(len(whole))
    except OSError as error:
        raise os_error(error, f"{path} cannot be read") from error
    try:
        first, *rest = [json.loads(line) for line in whole.splitlines()] or [head]
        blocks = [block["candidates"] for block in rest]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} is damaged: {error}."
        raise ConfigurationError(msg, hint="Delete it to draw anew.") from error
    if first != head:
        different = [name for name in head if not isinstance(first, dict) or first.get(name) != head[name]]
        msg = f"{path} holds draws with another {', '.join(different)}."
        raise ConfigurationError(msg, hint="Give the settings it was made with, or another --output.")
    return blocks
