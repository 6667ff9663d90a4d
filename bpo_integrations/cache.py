"""Candidates that were generated before, or are being generated now.

Exact: the key is everything that decides what the model writes. Bounded: least recently used entries go first.
Single-flight: whoever asks for a key that is being generated waits for that generation. It keeps candidates, not
results, so that policy, guards and selection judge anew each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from concurrent.futures import Future

from bpo_integrations.errors import ConfigurationError, EngineError
from bpo_integrations.result import Candidate

Candidates = tuple[Candidate, ...]


class CandidateCache:
    """Thread-safe store of candidates, by key.

    Args:
        size: Most entries kept; 0 keeps none (calls in flight are still shared).

    Raises:
        ConfigurationError: `size` is negative.

    Example:
        >>> cache = CandidateCache(size=2)
        >>> futures, mine = cache.claim(["a", "a"])
        >>> mine
        ['a']
        >>> cache.settle("a", [Candidate("x")])
        >>> futures[1].result()[0].text
        'x'
    """

    def __init__(self, size: int = 1024) -> None:
        if size < 0:
            msg = f"A cache cannot have {size} entries."
            raise ConfigurationError(msg, hint="Give cache=0 to keep nothing, or a positive number.")
        self.size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Candidates] = OrderedDict()
        self._flying: dict[Hashable, Future[Candidates]] = {}

    def claim(self, keys: Sequence[Hashable]) -> tuple[list[Future[Candidates]], list[Hashable]]:
        """Look up keys.

        Returns:
            A future for each key, in order, and the keys that the caller must now generate: for each of these it calls
            `settle` or `fail`, exactly once, whatever happens.
        """
        futures: list[Future[Candidates]] = []
        mine: list[Hashable] = []
        with self._lock:
            for key in keys:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    done: Future[Candidates] = Future()
                    done.set_result(self._kept[key])
                    futures.append(done)
                    continue
                if key not in self._flying:
                    self._flying[key] = Future()
                    mine.append(key)
                futures.append(self._flying[key])
        return futures, mine

    def settle(self, key: Hashable, candidates: Sequence[Candidate]) -> None:
        """Hand `candidates` to all that wait for `key`, and keep them."""
        found = tuple(candidates)
        with self._lock:
            future = self._flying.pop(key)
            if self.size and found:
                self._kept[key] = found
                while len(self._kept) > self.size:
                    self._kept.popitem(last=False)
        future.set_result(found)

    def fail(self, key: Hashable, error: BaseException) -> None:
        """Tell all that wait for `key` that its generation failed; the next to ask tries again."""
        with self._lock:
            future = self._flying.pop(key)
        if not isinstance(error, Exception):  # a cancelled task, say: the waiters were not cancelled
            msg = f"The generation was ended ({type(error).__name__})."
            error = EngineError(msg, hint="Call again.")
        future.set_exception(error)

    def clear(self) -> None:
        """Forget everything that is kept; calls in flight go on."""
        with self._lock:
            self._kept.clear()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)
