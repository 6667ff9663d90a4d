"""Preference pairs, and how they are divided so that no judge has seen what it judges.

Promises: pure functions of the pairs and a seed; pairs whose prompts differ only in case, spaces or punctuation are
never on two sides; every source is divided by the same share.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_train.data.outputs import replacing
from bpo_train.data.rows import read_rows
from bpo_train.data.words import words

FIELDS = (
    ("instruction", "good_res", "bad_res"),
    ("prompt", "good_res", "bad_res"),
    ("prompt", "chosen", "rejected"),
)
"""How the fields of a pair may be called: as in `preferences.jsonl`, in the paper's own data, or by TRL."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, of which people (or a judge) preferred the first."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    source: str = ""

    @property
    def key(self) -> str:
        """The prompt without case, spaces and punctuation; the prompt itself where nothing else is left."""
        return " ".join(words(self.prompt)) or self.prompt

    @property
    def chosen_is_longer(self) -> bool:
        """Whether the preferred answer has more words."""
        return len(self.chosen.split()) > len(self.rejected.split())


def read_pairs(path: str | Path) -> list[Pair]:
    """Read preference pairs from a file; the fields are called as in `preferences.jsonl`, or as TRL calls them.

    Raises:
        ConfigurationError: There is no such file, a row lacks a field, or there is no row.
    """
    pairs = [_pair(row, number, path) for number, row in enumerate(read_rows(path), start=1)]
    if not pairs:
        msg = f"{path} holds no preference pair."
        raise ConfigurationError(msg, hint="Give at least one row with instruction, good_res and bad_res.")
    return pairs


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as JSONL, which `read_pairs` reads.

    Raises:
        FileError: The file cannot be written.
    """
    with replacing(path) as file:
        for pair in pairs:
            row = {"id": pair.id, "source": pair.source, "instruction": pair.prompt}
            file.write(dump({**row, "good_res": pair.chosen, "bad_res": pair.rejected}) + "\n")


def divide(pairs: Sequence[Pair], share: float, *, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Divide pairs into two parts with no prompt in common.

    Args:
        pairs: All of them.
        share: Of the first part, from 0 to 1: 0.5 makes halves.
        seed: Another seed divides otherwise.

    Returns:
        The two parts, each in the pairs' order.

    Example:
        >>> pairs = [Pair("1", "Why?", "a", "b"), Pair("2", "why", "c", "d"), Pair("3", "How?", "e", "f")]
        >>> sorted(len({pair.key for pair in part}) for part in divide(pairs, 0.5))
        [1, 1]
    """
    first: set[str] = set()
    strata: dict[str, dict[str, None]] = {}
    seen: set[str] = set()
    for pair in pairs:
        if pair.key not in seen:
            seen.add(pair.key)
            strata.setdefault(pair.source, {})[pair.key] = None
    rng = random.Random(seed)  # noqa: S311 - a draw, not a secret
    due = 0.0
    for source in sorted(strata):
        keys = list(strata[source])
        rng.shuffle(keys)
        due += share * len(keys)  # what a source leaves over goes to the next
        count = round(due)
        due -= count
        first.update(keys[:count])
    return [pair for pair in pairs if pair.key in first], [pair for pair in pairs if pair.key not in first]


def length_balanced(pairs: Sequence[Pair], *, seed: int = 0) -> list[Pair]:
    """Return pairs in which the preferred answer is the longer one as often as not.

    Where one kind is rarer, its pairs come again until it is not. A reward model that is trained on this cannot gain by
    preferring what is long (in `preferences.jsonl` the preferred answer is the longer one in 73 of 100 pairs).

    Example:
        >>> pairs = [Pair("1", "Why?", "a b", "c"), Pair("2", "How?", "a b", "c"), Pair("3", "When?", "a", "b c")]
        >>> [pair.id for pair in length_balanced(pairs)]
        ['1', '2', '3', '3']
    """
    kinds = [[pair for pair in pairs if pair.chosen_is_longer is longer] for longer in (True, False)]
    if not all(kinds):
        return list(pairs)
    size = max(map(len, kinds))
    rng = random.Random(seed)  # noqa: S311 - a draw, not a secret
    found: list[Pair] = []
    for kind in kinds:
        times, rest = divmod(size, len(kind))
        found += kind * times + rng.sample(kind, rest)
    return found


def _pair(row: Mapping[str, Any], number: int, path: str | Path) -> Pair:
    for names in FIELDS:
        texts = [row.get(name) for name in names]
        if all(isinstance(text, str) and text for text in texts[:1]) and all(isinstance(text, str) for text in texts):
            prompt, chosen, rejected = map(str, texts)
            return Pair(str(row.get("id", number)), prompt, chosen, rejected, str(row.get("source") or ""))
    msg = f"{path}, row {number}: no preference pair, in a row with the fields {', '.join(map(str, row)) or 'none'}."
    raise ConfigurationError(msg, hint="It needs instruction, good_res and bad_res, or prompt, chosen and rejected.")
