"""What the engines that run weights in this process share: checks, cutting texts, grouping, sharing loaded models.

Pure functions, and one small registry. Nothing here knows a runtime.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from bpo_integrations.errors import MissingExtraError

T = TypeVar("T")


def check_packages(packages: Iterable[str], *, extra: str) -> None:
    """Make sure that packages are installed, without importing them.

    Raises:
        MissingExtraError: One is not; the extra that brings it is named.

    Example:
        >>> check_packages(["json"], extra="local")
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra=extra)


def cut_at(text: str, marks: Iterable[str]) -> tuple[str, bool]:
    r"""Cut a text before the first of the marks; say whether there was one.

    Example:
        >>> cut_at("one\ntwo", ["\n"])
        ('one', True)
    """
    ends = [at for mark in marks if mark and (at := text.find(mark)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def held_back(text: str, marks: Iterable[str]) -> int:
    """Return how many characters at the text's end could be the beginning of a mark.

    Example:
        >>> held_back("see [PRO", ["[PROTECT]"])
        4
    """
    return max(
        (size for mark in marks for size in range(1, len(mark)) if text.endswith(mark[:size])),
        default=0,
    )


def encodable(text: str) -> str:
    r"""Return the text with lone surrogates, which no tokenizer takes, replaced by `?`.

    Example:
        >>> encodable("a\ud800b")
        'a?b'
    """
    return text.encode("utf-8", errors="replace").decode("utf-8")


def chunks(
    items: Iterable[T],
    length: Callable[[T], int],
    *,
    rows: int,
    tokens: int,
    spread: int,
    cost: Callable[[T], int] | None = None,
) -> list[list[T]]:
    """Group items of similar length, shortest first.

    Args:
        items: What to group.
        length: An item's length in tokens.
        rows: Most items a group.
        tokens: Most tokens a group, counting every item as the costliest (a single item may cost more).
        spread: Largest difference of length within a group, in tokens.
        cost: The tokens that an item takes up in all; None takes its length.

    Example:
        >>> chunks([5, 1, 2, 9], lambda item: item, rows=2, tokens=100, spread=4)
        [[1, 2], [5, 9]]
    """
    costs = cost or length
    found: list[list[T]] = []
    dearest = 0
    for item in sorted(items, key=length):
        group = found[-1] if found else []
        dearest = max(dearest, costs(item))
        fits = len(group) < rows and (len(group) + 1) * dearest <= tokens
        if group and fits and length(item) - length(group[0]) <= spread:
            group.append(item)
        else:
            found.append([item])
            dearest = costs(item)
    return found


def banned_variants(banned: Sequence[str]) -> list[str]:
    """Return the spellings under which a banned string may be tokenized: as it is, and after a space.

    Example:
        >>> banned_variants(["[KEEP"])
        ['[KEEP', ' [KEEP']
    """
    return [spelling for text in banned if text for spelling in dict.fromkeys((text, f" {text.lstrip(' ')}"))]


class SharedModels(Generic[T]):
    """Loaded models by key: each is loaded once a process, and lives as long as somebody holds it.

    Safe between threads. After a fork, the child starts with none: a model's worker threads do not survive a fork, and
    the parent's objects are kept untouched, because destroying them would wait for those threads. `forked` then says
    that the parent had loaded something.

    Example:
        >>> class Weights: ...
        >>> models = SharedModels[Weights]()
        >>> one = models.get("key", Weights)
        >>> models.get("key", Weights) is one
        True
    """

    def __init__(self) -> None:
        self.forked = False
        self._used = False
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._gates: dict[Hashable, threading.Lock] = {}
        self._held: WeakValueDictionary[Hashable, T] = WeakValueDictionary()

    def _after_fork(self) -> None:
        for model in self.all():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(model))  # never freed in this process, not even at its end
        self.forked = self._used
        self._reset()

    def all(self) -> list[T]:
        """Return the models that are loaded."""
        return list(self._held.values())

    def get(self, key: Hashable, load: Callable[[], T]) -> T:
        """Return the model of this key, loading it where nobody holds it; others that ask meanwhile wait."""
        with self._lock:
            gate = self._gates.setdefault(key, threading.Lock())
        with gate:
            model = self._held.get(key)
            if model is None:
                self._used = True
                model = load()
                self._held[key] = model
            return model
