"""Which language a prompt is written in, as far as that can be told from a line or two.

Judges the prose of the instruction: code, links and markup are set aside, and a pasted passage in another language does
not count. Deterministic, thread-safe, offline; the identifier (py3langid) is loaded at first use. Never raises on any
text. It does not translate, and it does not tell close relatives apart (Danish from Norwegian).
"""

from __future__ import annotations

import os
import re
import threading
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_CONSTRUCTED = frozenset({"eo", "ia", "ie", "io", "la", "vo"})
"""Labels that no prompt is expected in; short English prompts fall to them ("Was Jesus an extraterrestrial?" -> la)."""

_NO_LANGUAGE = "zxx"  # py3langid's label for code and noise
_SPAN = 600  # characters judged of each part: more does not change the verdict, and the cost is linear in it
_LOOKED_AT = 20_000  # characters looked at from either end of a long prompt
_FIRM = 10.0
"""How many times likelier than the other side a language must be. Of 2,900 English prompts the highest ratio against
English was 4; of 68 short prompts in 27 other languages the lowest in their favour was 900 (docs/policy.md)."""
_NAMED = 0.2
"""Least probability at which a language is named; it is normalized over a hundred languages."""

_SET_ASIDE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]{1,200}`"  # fenced and inline code
    r"|\b(?:https?://|www\.)\S+|(?<!\S)\S{1,64}@\S{1,64}"  # links and addresses
    r"|\\begin\{[^}]{0,40}\}|\\end\{[^}]{0,40}\}|\\[A-Za-z]{1,40}|\$\$?[^$\n]{1,300}\$\$?"  # TeX
    r"|</?[A-Za-z][^<>]{0,300}>",  # tags
    re.DOTALL,
)
_QUOTED = re.compile(
    r"\"[^\"]{1,2000}\"|\u201c[^\u201d]{1,2000}\u201d|\u00ab[^\u00bb]{1,2000}\u00bb|(?<!\w)'[^']{2,2000}'(?!\w)"
)
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")  # letters of any script
_CODE_MARK = re.compile(r"[{}<>=;\\|_#$\[\]]|\w\(|::|->|//")

_PLAIN = frozenset(
    """about and because been being between could couldn't create describe did didn't does doesn't don't each
    explain following from generate give how i'd i'm i've if it it's its make our please should shouldn't
    summarize tell than that that's the their them then there these they this those through what what's when where
    which who whose why will with without would wouldn't write you your""".split()
)
"""Words that are English and of no other language written in Latin letters."""
_PLAIN_SHARE = 6
"""A line of ASCII with at least two of these words, and one in so many, is English: the identifier, which takes half a
second to load and a third of a millisecond to ask, is not needed. Of 3,747 prompts two thirds are settled so, none of
them otherwise than by the identifier, but for one that it left open."""

_lock = threading.Lock()
_identifier: LanguageIdentifier | None = None


def detect(text: str) -> str | None:
    """Return the language that the instruction in `text` is written in.

    Args:
        text: A prompt, of any length; of a long one the beginning and the end are looked at.

    Returns:
        An ISO 639-1 code, or None where it is not certain: too short, code, formulas, emoji, an unknown language.

    Example:
        >>> detect("Wie geht es dir?"), detect("Tell me about Harry Potter"), detect("x = 1")
        ('de', 'en', None)
    """
    return _judge(text)[0]


def is_english(text: str) -> bool:
    """Whether `text` can be given to a model that knows English only.

    Args:
        text: A prompt, of any length.

    Returns:
        True when its instruction is English, or when it is too short or unclear to tell and its letters are ASCII.

    Example:
        >>> is_english("c# extract hashtags from text"), is_english("¿Qué es la fotosíntesis?")
        (True, False)
    """
    return _judge(text)[1]


def _judge(text: str) -> tuple[str | None, bool]:
    """Return the language's code, where one can be named, and whether it may be taken for English."""
    lines = _prose(text)
    first = [line for line in lines[:1] if _is_long_enough(line, words=3, letters=6)]
    last = [line for line in lines if _is_long_enough(line, words=4, letters=6)][-1:]
    verdicts = [(line, *_verdict(line)) for line in dict.fromkeys((*first, *last))]
    firm = [verdict for verdict in verdicts if verdict[2] is not None]
    if firm:
        # Where one end is English and the other not, it is a task about a foreign passage, or the reverse: the task is
        # the shorter.
        _, code, english = min(firm, key=lambda verdict: len(verdict[0]))
        return code, bool(english)
    whole = " ".join(lines)[:_SPAN]
    code, whole_english = _verdict(whole) if _is_long_enough(whole, words=3, letters=1) else (None, None)
    return code, _mostly_ascii(text) if whole_english is None else whole_english


def _prose(text: str) -> list[str]:
    """Return the lines of prose, in order, shortened, with code, markup and quoted passages set aside."""
    if len(text) > 2 * _LOOKED_AT:
        text = text[:_LOOKED_AT] + "\n" + text[-_LOOKED_AT:]
    text = _SET_ASIDE.sub(" ", text.replace("\u2019", "'"))
    unquoted = _QUOTED.sub(" ", text)
    if len(_WORD.findall(unquoted)) >= 2:
        text = unquoted
    lines = []
    for line in text.splitlines():
        line = line[:_SPAN]
        words = _WORD.findall(line)
        if words and len(_CODE_MARK.findall(line)) * 8 <= sum(map(len, words)):
            lines.append(" ".join(words))
    return lines


def _is_long_enough(line: str, *, words: int, letters: int) -> bool:
    """Whether a language can be told: by so many words, or letters of a script that only a few languages share."""
    return line.count(" ") + 1 >= words or (not _mostly_ascii(line) and len(line) >= letters)


def _verdict(line: str) -> tuple[str | None, bool | None]:
    """Return the code of a line's language if it can be named, and whether it is English; None where that is open."""
    if _is_plain_english(line):
        return "en", True
    code, english = _firmest(line)
    if english is False and not line.isascii() and _mostly_ascii(line):
        # A borrowed word must not outweigh the rest ("café near me"); other languages are recognised without accents.
        folded = "".join(char for char in unicodedata.normalize("NFD", line) if not unicodedata.combining(char))
        if _firmest(folded)[1] is not False:
            return None, None
    return code, english


def _is_plain_english(line: str) -> bool:
    if not line.isascii():
        return False
    words = line.lower().split()
    hits = [word for word in words if word in _PLAIN]
    return len(set(hits)) >= 2 and len(hits) * _PLAIN_SHARE >= len(words)


def _firmest(line: str) -> tuple[str | None, bool | None]:
    scores = dict(_load().rank(line.encode("utf-8", "ignore")))
    english, nothing = scores.pop("en"), scores.pop(_NO_LANGUAGE)
    best = max(scores, key=lambda code: scores[code])
    other = scores[best]
    if nothing > max(english, other):
        return None, None
    if other >= _FIRM * english and other >= _NAMED:
        return best, False
    if english > other and english >= _NAMED:
        return "en", True
    return None, None


def _mostly_ascii(text: str) -> bool:
    """Whether at least three letters in four are ASCII; true of a text without letters."""
    letters = [char for char in text[:_LOOKED_AT] if char.isalpha()]
    return sum(char.isascii() for char in letters) * 4 >= len(letters) * 3


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def is_loaded() -> bool:
    """Whether the identifier is there, so that no call has to wait for it."""
    return _identifier is not None


def _load() -> LanguageIdentifier:
    """Load the identifier once a process (half a second), restricted to living languages with an ISO 639-1 code."""
    global _identifier
    if _identifier is None:
        with _lock:
            if _identifier is None:
                from py3langid.langid import MODEL_FILE, LanguageIdentifier

                # An instance of our own: the module's shared one can be restricted by anybody.
                identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
                kept = [code for code in identifier.labels if len(code) == 2 and code not in _CONSTRUCTED]
                identifier.set_languages([*kept, _NO_LANGUAGE])
                _identifier = identifier
    return _identifier
