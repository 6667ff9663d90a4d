"""The texts that optimizations in this process made, so that none of them is optimized again.

Messages and strings of LangChain carry a mark, which a template, a parser or another framework may lose; this does not
depend on it. Hashes only, of the latest `SIZE` texts.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

SIZE = 1024

_lock = threading.Lock()
_kept: OrderedDict[int, None] = OrderedDict()


def note(text: str) -> None:
    """Remember a text."""
    with _lock:
        _kept[hash(text)] = None
        _kept.move_to_end(hash(text))
        while len(_kept) > SIZE:
            _kept.popitem(last=False)


def holds(text: str) -> bool:
    """Whether a text was made here."""
    return hash(text) in _kept


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
