"""What the constructed pairs look like: the paper's Table 1, lengths before and after, and whose licence they carry.

Reads the pairs once, in memory that does not grow with them.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpo_integrations.joint import join
from bpo_train.data.words import fingerprint, ngrams, words

GRAM = 4
"""Words in a run (paper, Table 1: distinct-4)."""


class Distinct:
    """The share of unique 4-grams among all 4-grams of a collection (Li et al., 2016, as in the paper's Table 1).

    Exact up to `limit` different ones. Beyond, only those whose hash ends in zeros are held, which gives the share with
    a standard error of about 1/sqrt(limit/2), 0.14% of it (adaptive sampling, Flajolet 1990).

    Args:
        limit: The most hashes, of 8 bytes each, in memory.

    Example:
        >>> found = Distinct()
        >>> found.add("to be or not to be or not".split())
        >>> found.share
        0.8
    """

    def __init__(self, limit: int = 2**20) -> None:
        self._limit = limit
        self._bits = 0
        self._seen: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._new: list[int] = []
        self.total = 0

    def add(self, tokens: list[str]) -> None:
        """Count the 4-grams of one text."""
        mask = (1 << self._bits) - 1
        for gram in ngrams(tokens, GRAM):
            self.total += 1
            hashed = fingerprint(gram)
            if not hashed & mask:
                self._new.append(hashed)
        if len(self._new) >= min(self._limit, 2**14):
            self._merge()

    def _merge(self) -> None:
        self._seen = np.unique(np.concatenate([self._seen, np.array(self._new, np.uint64)]))
        self._new = []
        while len(self._seen) > self._limit:
            self._bits += 1
            self._seen = self._seen[self._seen & np.uint64((1 << self._bits) - 1) == 0]

    @property
    def is_exact(self) -> bool:
        """Whether every different 4-gram was counted."""
        return self._bits == 0

    @property
    def share(self) -> float:
        """Unique 4-grams by all; 1.0 of a collection without any."""
        self._merge()
        return (len(self._seen) << self._bits) / self.total if self.total else 1.0


class Spread:
    """Counts of values, from which come the mean and any quantile; whole numbers, or rounded to hundredths."""

    def __init__(self) -> None:
        self.counts: Counter[float] = Counter()

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[round(value, 2)] += 1

    def quantile(self, share: float) -> float:
        """Return the least value that at least this share of the values does not exceed; 0 without values."""
        need, seen = share * self.counts.total(), 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= need:
                return value
        return 0.0

    def summary(self) -> dict[str, float]:
        """Return `mean`, `p10`, `median` and `p90`."""
        mean = statistics.fmean(self.counts.keys(), weights=self.counts.values()) if self.counts else 0.0
        return {
            "mean": round(mean, 3),
            "p10": self.quantile(0.1),
            "median": self.quantile(0.5),
            "p90": self.quantile(0.9),
        }


class _Part:
    """Counts over the pairs of one source, or of all."""

    def __init__(self) -> None:
        self.rows = self.unchanged = self.shorter = 0
        self.before, self.after = Distinct(), Distinct()
        self.words_before, self.words_after, self.ratio = Spread(), Spread(), Spread()

    def add(self, prompt: str, optimized: str) -> None:
        before, after = words(prompt), words(optimized)
        self.rows += 1
        self.unchanged += optimized.strip() == prompt.strip()
        self.shorter += len(after) < len(before)
        self.before.add(before)
        self.after.add(after)
        self.words_before.add(len(before))
        self.words_after.add(len(after))
        if before:
            self.ratio.add(len(after) / len(before))

    def summary(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "distinct_4": {
                "prompt": round(self.before.share, 4),
                "optimized_prompt": round(self.after.share, 4),
                "exact": self.before.is_exact and self.after.is_exact,
            },
            "words": {"prompt": self.words_before.summary(), "optimized_prompt": self.words_after.summary()},
            "length_ratio": self.ratio.summary(),
            "unchanged": round(self.unchanged / self.rows, 4) if self.rows else 0.0,
            "shorter": round(self.shorter / self.rows, 4) if self.rows else 0.0,
        }


def summarize(pairs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the statistics of constructed pairs.

    Args:
        pairs: Rows with `prompt` and `optimized_prompt` or `addition`, as in `pairs.jsonl`; `source` and `licence`
            where known. A row without `optimized_prompt` counts as its prompt with the addition behind it.

    Returns:
        `rows`; `distinct_4` of the prompts and of the optimized prompts, and whether both are exact; `words` and
        `length_ratio` (words after by words before) as mean, p10, median, p90; the shares `unchanged` and `shorter`;
        `additions` (rows with the field, share empty, words of the others) or None; `licences` in rows; `sources`,
        with the same figures for each; `histograms`: rows by ratio, and by words before and after.

    Example:
        >>> pairs = [{"prompt": "Tell me about tea", "optimized_prompt": "Tell me about tea and how it is made"}]
        >>> found = summarize(pairs)
        >>> found["length_ratio"]["median"], found["unchanged"]
        (2.25, 0.0)
    """
    total, sources, licences = _Part(), defaultdict[str, _Part](_Part), Counter[str]()
    additions, empty = Spread(), 0
    for pair in pairs:
        prompt, addition = pair["prompt"], pair.get("addition")
        optimized = pair.get("optimized_prompt")
        if optimized is None:
            optimized = join(prompt, addition) if addition else prompt
        for part in (total, sources[str(pair.get("source") or "")]):
            part.add(prompt, optimized)
        licences[str(pair.get("licence") or "")] += 1
        if addition:
            additions.add(len(words(addition)))
        elif addition is not None:
            empty += 1
    with_field = additions.counts.total() + empty
    return {
        **total.summary(),
        "additions": {"rows": with_field, "empty": round(empty / with_field, 4), "words": additions.summary()}
        if with_field
        else None,
        "licences": dict(licences.most_common()),
        "sources": {name: part.summary() for name, part in sorted(sources.items())},
        "histograms": {
            "length_ratio": _sorted(total.ratio),
            "words": {"prompt": _sorted(total.words_before), "optimized_prompt": _sorted(total.words_after)},
        },
    }


def _sorted(spread: Spread) -> list[tuple[float, int]]:
    return sorted(spread.counts.items())
