"""A stratified sample over row numbers: no text is held, and the rows' order does not matter to who is drawn."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping

from bpo_train.data.words import fingerprint


class Sampler:
    """Draws `size` of all rows it is told of, each stratum by its share.

    Each row has a priority made of its id and the seed; a stratum keeps its lowest ones. So a row's chance does not
    depend on where it stands.

    Args:
        size: How many rows to draw.
        seed: Another seed draws others.

    Example:
        >>> sampler = Sampler(2, seed=0)
        >>> for number in range(10):
        ...     sampler.offer(number, id=str(number), stratum=number % 2)
        >>> sorted(number % 2 for number in sampler.drawn())
        [0, 1]
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self._size = size
        self._seed = seed
        self._lowest: dict[Hashable, list[tuple[int, int]]] = {}
        self._counts: dict[Hashable, int] = {}

    def offer(self, number: int, *, id: str, stratum: Hashable) -> None:
        """Tell of a row that may be drawn."""
        entry = (-fingerprint(f"{self._seed}/{id}"), -number)
        heap = self._lowest.setdefault(stratum, [])
        self._counts[stratum] = self._counts.get(stratum, 0) + 1
        if len(heap) < self._size:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def drawn(self) -> set[int]:
        """Return the numbers of the rows that are drawn."""
        due = shares(self._counts, self._size)
        return {-number for stratum, heap in self._lowest.items() for _, number in heapq.nlargest(due[stratum], heap)}


def shares(counts: Mapping[Hashable, int], size: int) -> dict[Hashable, int]:
    """Divide `size` among strata in proportion to their counts, to the row (largest remainders first).

    Example:
        >>> shares({"a": 70, "b": 20, "c": 10}, 7)
        {'a': 5, 'b': 1, 'c': 1}
    """
    total = sum(counts.values())
    if total <= size:
        return dict(counts)
    exact = {stratum: size * count / total for stratum, count in counts.items()}
    due = {stratum: int(share) for stratum, share in exact.items()}
    left = size - sum(due.values())
    by_remainder = sorted(exact, key=lambda stratum: (due[stratum] - exact[stratum], str(stratum)))
    for stratum in by_remainder[:left]:
        due[stratum] += 1
    return due
