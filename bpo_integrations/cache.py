"""Candidates that were generated before, or are being generated now.

Exact: the key is everything that decides what the model writes. Bounded: least recently used entries go first.
Single-flight: whoever asks for a key that is being generated waits for that generation, which is given up when the last
of them has gone away. It keeps candidates, not results, so that policy, guards and selection judge anew each time.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from bpo_integrations.errors import ConfigurationError, EngineError
from bpo_integrations.result import Candidate

Candidates = tuple[Candidate, ...]


@dataclass(eq=False, slots=True)
class Flight:
    """A key's candidates, on their way or there.

    Args:
        key: What they are found by.
        future: Where they arrive.
        waiting: How many callers wait for them.
        give_up: Called when nobody waits any more, by whoever was the last.
        loop: The event loop that the generation lives on, if it lives on one.
    """

    key: Hashable
    future: Future[Candidates] = field(default_factory=Future)
    waiting: int = 0
    give_up: Callable[[], object] | None = None
    loop: asyncio.AbstractEventLoop | None = None


_caches: weakref.WeakSet[CandidateCache] = weakref.WeakSet()


def _after_fork() -> None:
    for cache in list(_caches):
        cache._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class CandidateCache:
    """Thread-safe store of candidates, by key.

    Args:
        size: Most entries kept; 0 keeps none (calls in flight are still shared).

    Raises:
        ConfigurationError: `size` is negative.

    Example:
        >>> cache = CandidateCache(size=2)
        >>> flights, mine = cache.claim(["a", "a"])
        >>> [flight.key for flight in mine]
        ['a']
        >>> cache.settle(mine[0], [Candidate("x")])
        >>> flights[1].future.result()[0].text
        'x'
    """

    def __init__(self, size: int = 1024) -> None:
        if size < 0:
            msg = f"A cache cannot have {size} entries."
            raise ConfigurationError(msg, hint="Give cache=0 to keep nothing, or a positive number.")
        self.size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Candidates] = OrderedDict()
        self._flying: dict[Hashable, Flight] = {}
        _caches.add(self)

    def claim(self, keys: Sequence[Hashable], *, blocks: bool = False) -> tuple[list[Flight], list[Flight]]:
        """Look up keys.

        Args:
            keys: What to look for.
            blocks: Whether the caller will block its thread while it waits.

        Returns:
            A flight for each key, in order, and those that the caller must now generate: for each of these it calls
            `settle` or `fail`, exactly once, whatever happens.
        """
        flights: list[Flight] = []
        mine: list[Flight] = []
        here = asyncio._get_running_loop() if blocks else None
        with self._lock:
            for key in keys:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    done = Flight(key)
                    done.future.set_result(self._kept[key])
                    flights.append(done)
                    continue
                flying = self._flying.get(key)
                # What lives on a loop that has ended, or that the caller is about to block, would never come.
                if flying is None or (flying.loop is not None and (flying.loop.is_closed() or flying.loop is here)):
                    self._flying[key] = Flight(key)
                    mine.append(self._flying[key])
                self._flying[key].waiting += 1
                flights.append(self._flying[key])
        return flights, mine

    def wait_no_more(self, flight: Flight) -> None:
        """Say that a caller has run out of time; the flight goes on, for the next one may profit from it."""
        with self._lock:
            flight.waiting -= 1

    def leave(self, flights: Sequence[Flight]) -> None:
        """Say that one caller, each, waits for these flights no more. A flight that nobody waits for is given up."""
        left: list[Flight] = []
        with self._lock:
            for flight in flights:
                flight.waiting -= 1
                if flight.waiting == 0 and flight.give_up is not None and self._flying.get(flight.key) is flight:
                    del self._flying[flight.key]  # whoever asks from now on starts anew
                    left.append(flight)
        for flight in left:
            if flight.give_up is not None:
                flight.give_up()

    def is_wanted(self, flight: Flight) -> bool:
        """Whether somebody still waits for the flight."""
        with self._lock:
            return self._flying.get(flight.key) is flight and flight.waiting > 0

    def settle(self, flight: Flight, candidates: Sequence[Candidate], *, keep: bool = True) -> None:
        """Hand `candidates` to all that wait for the flight, and keep them."""
        found = tuple(candidates)
        with self._lock:
            self._land(flight)
            if self.size and found and keep:
                self._kept[flight.key] = found
                while len(self._kept) > self.size:
                    self._kept.popitem(last=False)
        with suppress(InvalidStateError):
            flight.future.set_result(found)

    def fail(self, flight: Flight, error: BaseException) -> None:
        """Tell all that wait for the flight that its generation failed; the next to ask tries again."""
        with self._lock:
            self._land(flight)
        if not isinstance(error, Exception):  # a cancelled task, say: the waiters were not cancelled
            msg = f"The generation was ended ({type(error).__name__})."
            error = EngineError(msg, hint="Call again.")
        with suppress(InvalidStateError):
            flight.future.set_exception(error)

    def clear(self) -> None:
        """Forget everything that is kept; calls in flight go on."""
        with self._lock:
            self._kept.clear()

    def _after_fork(self) -> None:
        """In a child nothing is under way, and a thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._flying = {}

    def _land(self, flight: Flight) -> None:
        if self._flying.get(flight.key) is flight:
            del self._flying[flight.key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)
