"""The files of a finished run, written from its journal alone.

Promises: rows stand in the input's order; a file is replaced in one step, so that nobody reads half of one; which rows
are for validation and test depends on each row's own prompt, so that no prompt is on both sides and more rows move
none. Only `summary.json` holds what differs between runs: requests, tokens, seconds.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bpo_integrations.cli.exits import os_error
from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.result import Mode
from bpo_train.data import card
from bpo_train.data.journal import Journal
from bpo_train.data.words import words

PAIRS = "pairs.jsonl"
SUMMARY = "summary.json"
SPLITS = ("train", "validation", "test")
FIELDS: dict[Mode, str] = {"augment": "addition", "rewrite": "optimized_prompt"}


@dataclass(frozen=True, slots=True)
class Shares:
    """How many of the rows are held out, from 0 to 1.

    Raises:
        ConfigurationError: They leave nothing to train on.
    """

    validation: float = 0.05
    test: float = 0.05

    def __post_init__(self) -> None:
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            msg = "The shares of validation and test must be 0 or more, and together less than 1."
            raise ConfigurationError(msg, hint="For example 0.05 each.")

    def split(self, prompt: str) -> str:
        """Return the split of a prompt; case, spaces and punctuation do not matter.

        Example:
            >>> Shares(0, 0).split("Tell me about tea")
            'train'
        """
        bits = hashlib.sha256(" ".join(words(prompt)).encode("utf-8", "surrogatepass")).digest()[:8]
        place = int.from_bytes(bits, "big") / 2**64
        if place < self.test:
            return "test"
        return "validation" if place < self.test + self.validation else "train"


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run took.

    Args:
        seconds: Wall-clock seconds of this run.
        prices: Of a million tokens read, and written; None where the cost is not wanted.
        stopped: Why it stopped before the last row; empty where it did not.
    """

    seconds: float = 0.0
    prices: tuple[float, float] | None = None
    stopped: str = ""


def write_outputs(
    folder: Path, journal: Journal, modes: Sequence[Mode], shares: Shares, spent: Spent | None = None
) -> dict[str, Any]:
    """Write `pairs.jsonl`, the splits of each mode, the summary, the card and its plots.

    Args:
        folder: The output folder.
        journal: What is finished.
        modes: What was asked for.
        shares: How much is held out.
        spent: What the run took.

    Returns:
        What `summary.json` holds.

    Raises:
        FileError: A file cannot be written.
    """
    reasons: Counter[str] = Counter()
    with ExitStack() as files:
        pairs = files.enter_context(replacing(folder / PAIRS))
        splits = {
            (mode, name): files.enter_context(replacing(folder / mode / f"{name}.jsonl"))
            for mode in modes
            for name in SPLITS
        }
        for entry in journal.entries():
            if entry.reason:
                reasons[kind(entry.reason)] += 1
            if entry.status != "kept":
                continue
            pairs.write(dump(entry.result) + "\n")
            split = shares.split(entry.result["prompt"])
            for mode in modes:
                if (row := _training_row(entry.result, mode)) is not None:
                    splits[mode, split].write(dump(row) + "\n")
    found = summary(journal, reasons, spent or Spent())
    with replacing(folder / SUMMARY) as file:
        file.write(dump(found, indent=2) + "\n")
    # The card says what the data are; what a run took differs from run to run.
    card.write(folder, {name: found[name] for name in ("total", "kept", "dropped", "failed", "reasons")})
    return found


def summary(journal: Journal, reasons: Mapping[str, int], spent: Spent) -> dict[str, Any]:
    """Return what `summary.json` holds; requests and tokens are of all runs, seconds of this one."""
    counts, usage = journal.counts(), journal.usage
    total = journal.plan.rows if journal.plan else sum(counts.values())
    found: dict[str, Any] = {
        "total": total,
        **{status: counts.get(status, 0) for status in ("kept", "dropped", "failed")},
        "left": total - sum(counts.values()),
        "stopped": spent.stopped,
        "skipped": dict(sorted(journal.plan.skipped.items())) if journal.plan else {},
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "requests": usage.requests,
        "tokens": usage.tokens,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "seconds": round(spent.seconds, 1),
    }
    if spent.prices is not None:
        found["cost"] = round(cost(usage.prompt_tokens, usage.completion_tokens, spent.prices), 4)
    return found


def cost(prompt_tokens: int, completion_tokens: int, prices: tuple[float, float]) -> float:
    """Return what tokens cost, at prices of a million of each.

    Example:
        >>> cost(2_000_000, 500_000, (0.15, 0.6))
        0.6
    """
    return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6


def kind(reason: str) -> str:
    """Return the kind of a reason: what stands before its colon.

    Example:
        >>> kind("guard numbers: 1985")
        'guard numbers'
    """
    return reason.partition(":")[0]


def _training_row(result: Mapping[str, Any], mode: Mode) -> dict[str, Any] | None:
    """Return a row of TRL's prompt-completion type, which `bpo-train sft` reads, too."""
    if (completion := result.get(FIELDS[mode])) is None:
        return None
    kept = {name: result[name] for name in ("id", "source", "licence", "prompt")}
    return {**kept, "completion": completion, FIELDS[mode]: completion}


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Write a file that takes the name of an older one when it is complete.

    Raises:
        FileError: It cannot be written.
    """
    made = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with made.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
    except OSError as error:
        with suppress(OSError):  # where its folder is none, for example
            made.unlink(missing_ok=True)
        raise os_error(error, f"{path} cannot be written") from error
