"""Merges rankings that several queries gave into one.

Pure functions, of no framework: an item is whatever a retriever returns, and `key` says which two are the same. The
items come out as the objects that went in; of the same item in two rankings, the first ranking's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal, TypeVar

from bpo_integrations.errors import ConfigurationError

T = TypeVar("T")

Fusion = Literal["rrf", "union"]

RRF_CONSTANT = 60
"""The constant of reciprocal rank fusion, as its authors chose it (Cormack, Clarke and Büttcher, SIGIR 2009)."""

ORIGINAL_WEIGHT = 2.0
"""What the user's own words weigh in `fuse`, where any other query weighs 1.

With 2, what only one other query found cannot come before any of the first 62 that the user's own words found
(2 / (60 + 62) is 1 / 61), so that of a search for up to 62 documents the order may change, and no document is lost.
With equal weights documents were lost: docs/rag.md has the figures.
"""


def unique(items: Iterable[T], *, key: Callable[[T], Hashable]) -> list[T]:
    """Return `items` in their order, each once.

    Example:
        >>> unique(["b", "a", "B"], key=str.lower)
        ['b', 'a']
    """
    first: dict[Hashable, T] = {}
    for item in items:
        first.setdefault(key(item), item)
    return list(first.values())


def rrf(
    rankings: Sequence[Sequence[T]], *, key: Callable[[T], Hashable], weights: Sequence[float] | None = None
) -> list[T]:
    """Merge by reciprocal rank fusion: an item's score is the sum of weight / (60 + rank) over the rankings it is in.

    Args:
        rankings: Items, best first. Only the ranks count, so the rankings' scores need not be comparable.
        key: Tells which two items are the same.
        weights: One for each ranking; None weighs all alike.

    Returns:
        Each item once, best first; of equal scores, the one that stands earlier in the earlier ranking.

    Raises:
        ConfigurationError: There are not as many weights as rankings.

    Example:
        >>> rrf([["a", "b", "c"], ["c", "d"]], key=str)
        ['c', 'a', 'b', 'd']
    """
    shares = [1.0] * len(rankings) if weights is None else list(weights)
    if len(shares) != len(rankings):
        msg = f"There are {len(shares)} weights for {len(rankings)} rankings."
        raise ConfigurationError(msg, hint="Give one weight a ranking, or none at all.")
    scores: dict[Hashable, float] = {}
    for ranking, share in zip(rankings, shares, strict=True):
        for rank, item in enumerate(unique(ranking, key=key), start=1):
            scores[key(item)] = scores.get(key(item), 0.0) + share / (RRF_CONSTANT + rank)
    # A stable sort of what stands in reading order: ties go to the earlier ranking.
    return sorted(union(rankings, key=key), key=lambda item: -scores[key(item)])


def union(rankings: Sequence[Sequence[T]], *, key: Callable[[T], Hashable]) -> list[T]:
    """Merge by appending: the first ranking as it is, then what each later one has besides.

    Example:
        >>> union([["a", "b", "c"], ["c", "d"]], key=str)
        ['a', 'b', 'c', 'd']
    """
    return unique((item for ranking in rankings for item in ranking), key=key)


def fuse(
    rankings: Sequence[Sequence[T]], fusion: Fusion, *, key: Callable[[T], Hashable], k: int | None = None
) -> list[T]:
    """Merge what the user's own words found, the first ranking, with what other queries found.

    Args:
        rankings: Items, best first; there is at least one ranking.
        fusion: `rrf`, in which the first ranking weighs `ORIGINAL_WEIGHT`, or `union`.
        key: Tells which two items are the same.
        k: Most items returned. None: with `rrf` as many as the longest ranking has, with `union` all.

    Example:
        >>> fuse([["a", "b"], ["b", "c"]], "rrf", key=str), fuse([["a", "b"], ["b", "c"]], "union", key=str)
        (['b', 'a'], ['a', 'b', 'c'])
    """
    if fusion == "rrf":
        weights = [ORIGINAL_WEIGHT] + [1.0] * (len(rankings) - 1)
        return rrf(rankings, key=key, weights=weights)[: max(map(len, rankings)) if k is None else k]
    return union(rankings, key=key)[:k]
