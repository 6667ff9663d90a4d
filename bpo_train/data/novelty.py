"""Does a prompt bring anything new? Three checks: near-duplicates, self-BLEU, and overlap with test sets.

Each check is asked row by row and remembers what it needs: hashes and sketches, or a fixed number of texts. What it
says depends on the rows before it and on its own seed alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_train.data.rows import FORMATS, Row, read_rows
from bpo_train.data.words import fingerprint, ngrams, words

SHINGLE = 3
"""Words in a run that MinHash compares; a shorter prompt is one run."""
PERMUTATIONS = 128
"""Values in a MinHash sketch: the standard error of a similarity of 0.8 is 0.035, sqrt(0.8 * 0.2 / 128)."""
RESERVOIR = 64
"""Prompts that self-BLEU is measured against: the cost of a row stays the same however many there are."""
OVERLAP = 13
"""Words in a run that gives a test set away (GPT-3, arXiv 2005.14165, appendix C); a shorter prompt is one run."""
LEAST_OVERLAP = 6
"""A test prompt of fewer words counts only as a whole: "what is the capital of" proves nothing."""


class NearDuplicates:
    """Finds prompts whose three-word runs are those of an earlier prompt, by MinHash and LSH (`datasketch`).

    Args:
        similarity: The least Jaccard similarity, between 0 and 1, that makes a duplicate.

    Example:
        >>> seen = NearDuplicates(0.8)
        >>> seen.check("How do vaccines work?"), seen.check("how do vaccines work")
        (False, True)
    """

    def __init__(self, similarity: float) -> None:
        try:
            from datasketch import LeanMinHash, MinHash, MinHashLSH
        except ImportError as error:
            raise MissingExtraError("datasketch", extra="train") from error
        self._similarity = similarity
        self._sketch: Callable[[list[bytes]], Any] = lambda runs: LeanMinHash(
            MinHash.bulk([runs], num_perm=PERMUTATIONS)[0]
        )
        self._index = MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)
        self._kept: list[Any] = []

    def check(self, text: str) -> bool:
        """Whether the text is a duplicate; one that is not is remembered."""
        tokens = words(text)
        sketch = self._sketch(
            [run.encode(errors="surrogatepass") for run in ngrams(tokens, min(SHINGLE, len(tokens) or 1))] or [b""]
        )
        if any(sketch.jaccard(self._kept[number]) >= self._similarity for number in self._index.query(sketch)):
            return True
        self._index.insert(len(self._kept), sketch)
        self._kept.append(sketch)
        return False


class SelfBleu:
    """Finds prompts that are made of what other prompts say: BLEU-4 against a random sample of the kept ones.

    The paper (section 3.1) filters by self-BLEU and names neither the threshold nor the sample. BLEU is sacreBLEU's,
    with its tokenisation and effective order, on small letters.

    Args:
        limit: The highest BLEU, between 0 and 1, that is let through.
        seed: Chooses the sample.
    """

    def __init__(self, limit: float, *, seed: int = 0) -> None:
        try:
            from sacrebleu.metrics.bleu import BLEU
        except ImportError as error:
            raise MissingExtraError("sacrebleu", extra="train") from error
        self._bleu = BLEU
        self._metric: BLEU | None = None
        self._limit = limit
        self._random = random.Random(seed)  # noqa: S311 - a sample, no secret
        self._sample: list[str] = []
        self._kept = 0

    def check(self, text: str) -> bool:
        """Whether the text says too little that is new; one that is new may join the sample."""
        if self.score(text) > self._limit:
            return True
        self._kept += 1
        place = len(self._sample) if len(self._sample) < RESERVOIR else self._random.randrange(self._kept)
        if place < RESERVOIR:  # reservoir sampling: each kept prompt is as likely to be in it
            self._sample[place : place + 1] = [text.lower()]
            self._metric = None
        return False

    def score(self, text: str) -> float:
        """Return the BLEU-4 of a text against the sample, between 0 and 1."""
        if not self._sample:
            return 0.0
        if self._metric is None:  # the sample's n-grams are counted once, not for every row
            self._metric = self._bleu(effective_order=True, references=[[entry] for entry in self._sample])
        return float(self._metric.corpus_score([text.lower()], None).score) / 100


class TestSets:
    """Finds prompts that share a run of 13 words with a test set, or hold a shorter test prompt whole.

    Args:
        paths: Files, or folders that are searched for them (.jsonl, .json, .csv, .parquet).

    Raises:
        ConfigurationError: There is no such file, or it holds no field that is known to be a prompt (`PROMPT_FIELDS`).
    """

    __test__ = False  # no test case, whatever pytest makes of the name

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._runs: dict[int, set[int]] = defaultdict(set)  # by length in words
        self._whole: set[int] = set()
        for path in paths:
            for file in _files(Path(path)):
                before = self.size
                for row in read_rows(file):
                    for text in _prompts(row):
                        self._add(words(text))
                if self.size == before:
                    msg = f"{file} holds no prompts that could be looked for."
                    raise ConfigurationError(msg, hint=f"Known fields are {', '.join(PROMPT_FIELDS)}.")

    @property
    def size(self) -> int:
        """How many runs and short prompts are looked for."""
        return len(self._whole) + sum(map(len, self._runs.values()))

    def _add(self, tokens: list[str]) -> None:
        if 0 < len(tokens) < LEAST_OVERLAP:
            self._whole.add(fingerprint(" ".join(tokens)))
        elif tokens:
            length = min(len(tokens), OVERLAP)
            self._runs[length].update(map(fingerprint, ngrams(tokens, length)))

    def check(self, text: str) -> bool:
        """Whether the text shares a run with a test set."""
        tokens = words(text)
        if fingerprint(" ".join(tokens)) in self._whole:
            return True
        return any(fingerprint(run) in known for length, known in self._runs.items() for run in ngrams(tokens, length))


PROMPT_FIELDS = ("prompt", "instruction", "context", "text", "question", "input", "turns", "raw_utterance")
"""Fields in which test sets keep what is asked; `turns` is MT-bench's list."""


def _prompts(row: Row) -> Iterator[str]:
    for field in PROMPT_FIELDS:
        value = row.get(field)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in FORMATS)
    if not found:
        msg = f"There are no test sets in {path}."
        raise ConfigurationError(msg, hint=f"Known are {', '.join(FORMATS)}.")
    return found
