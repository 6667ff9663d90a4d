"""Words and n-grams as the filters and the statistics count them.

Hashes are the same in every process and on every machine, so that nothing depends on where a row was read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

_WIDE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Han, which are written without spaces
_WORD = re.compile(f"[{_WIDE}]|[^\\W{_WIDE}]+")


def words(text: str) -> list[str]:
    """Return the words of a text in small letters; a kana or Han character counts as one, punctuation as none.

    Example:
        >>> words("It's 5 o'clock, 東京!")
        ['it', 's', '5', 'o', 'clock', '東', '京']
    """
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> Iterator[str]:
    """Yield the runs of `n` tokens, joined by spaces.

    Example:
        >>> list(ngrams(["tell", "me", "more"], 2))
        ['tell me', 'me more']
    """
    return (" ".join(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def fingerprint(text: str) -> int:
    """Return 64 bits that stand for a text.

    Example:
        >>> fingerprint("tell me") == fingerprint("tell me more")
        False
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
