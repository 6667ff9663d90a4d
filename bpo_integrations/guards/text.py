"""Reading text for the guards: words, stems, sentences, numbers.

Pure functions, linear in the text's length, defined for every str. The last few results are kept, because every guard
reads the same two texts.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+(?:['’][^\W_{_CJK}]+)*")
_ABBREVIATIONS = "".join(
    rf"(?<!\b{short})" for short in (r"e\.g\.", r"i\.e\.", r"vs\.", r"Mr\.", r"Dr\.", r"St\.", r"cf\.", r"No\.")
)
_SENTENCE_END = re.compile(rf"(?<=[.!?。！？]){_ABBREVIATIONS}[\"”’)\]]?\s+|\n+")
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_LIST_MARKER = re.compile(r"(?m)^[ \t]*(?:[-*•][ \t]*)?\d{1,3}[.)](?=\s)")

_UNITS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
        " seventeen "
        "eighteen nineteen".split()
    )
}
_TENS = {word: 20 + 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split())}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_SAME_AS_NUMBER = {"both": "2", "pair": "2", "couple": "2", "double": "2", "twice": "2", "dozen": "12"}

STOPWORDS = frozenset(
    """a about above after again all also am an and any are aren't as at be because been before being below between
    both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each either
    else etc few for from further get gets getting got had has hasn't have haven't having he her here hers him
    his how however i i'd i'll i'm i've if in into is isn't it it's its itself just least less let let's like
    lot made make makes many may me might more most much must my myself need needs neither no nor not now of off
    on once one ones only or other our out over own per rather same she should shouldn't so some such than that
    that's the their them then there these they thing things this those through to too under until up upon us
    use used using very want was wasn't way we were what what's when where whether which while who whom whose
    why will with within without won't would wouldn't yes yet you your yours yourself actually basically best
    general generally good great important maybe much new perhaps possible pretty really seem seemed seems
    various want able different etc hi hello hey thanks thank""".split()
)
"""English words that carry no subject of their own."""

REQUEST_WORDS = frozenset(
    """add answer ask assist come complete create define describe detail detailed develop discuss do ensure examples
    example explain find following form generate give given go help identify include including kind know list
    name output please prepare prompt provide provided question recommend response say sentence set show
    specific suggest take talk task tell text think try using various work write written""".split()
)
"""Words that say what to do, not what about: a rewrite may exchange them."""


@lru_cache(maxsize=32)
def words(text: str) -> tuple[str, ...]:
    """Return the words of `text`, lower-cased, apostrophes made alike; a Chinese or Japanese sign is a word.

    Example:
        >>> words("Don’t panic: 42!")
        ("don't", 'panic', '42')
    """
    return tuple(match.group().lower().replace("’", "'") for match in _WORD.finditer(text))


@lru_cache(maxsize=32)
def flat(text: str) -> str:
    """Return the words of `text`, each between single spaces, so that `in` compares whole words."""
    return f" {' '.join(words(text))} "


def contains(candidate: str, text: str) -> bool:
    """Whether the words of `text` stand in `candidate` one after the other."""
    inner = flat(text)
    return inner.isspace() or inner in flat(candidate)


@lru_cache(maxsize=8192)
def stem(word: str) -> str:
    """Return the part of a word that its forms share: without plural and possessive, five letters at most.

    Example:
        >>> stem("explanation") == stem("explaining")
        True
    """
    word = word.removesuffix("'s").removesuffix("'")
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    for ending in ("ing", "ed", "e", "y"):
        if len(word) > len(ending) + 2 and word.endswith(ending):
            word = word.removesuffix(ending)
            break
    return word[:5]


@lru_cache(maxsize=32)
def content_words(text: str) -> tuple[str, ...]:
    """Return the different words that carry the subject, in the order in which they come."""
    return tuple(
        dict.fromkeys(
            word
            for word in words(text)
            if word not in STOPWORDS and word not in REQUEST_WORDS and (len(word) > 1 or not word.isascii())
        )
    )


@lru_cache(maxsize=32)
def stems(text: str) -> frozenset[str]:
    """Return the stems of all words of `text`."""
    return frozenset(stem(word) for word in words(text))


@lru_cache(maxsize=32)
def sentences(text: str) -> tuple[str, ...]:
    """Return the sentences and lines of `text`, without surrounding space."""
    return tuple(part.strip() for part in _SENTENCE_END.split(text) if part and part.strip())


@lru_cache(maxsize=32)
def number_values(text: str) -> tuple[str, ...]:
    """Return the values of the numbers in `text`, digits and English words alike, without list markers.

    "one" is left out: it is a pronoun as often as a number.

    Example:
        >>> number_values("1. Two of 1,000 or twenty-five")
        ('2', '1000', '25')
    """
    found: list[tuple[int, str]] = []
    plain = _LIST_MARKER.sub(lambda match: " " * len(match.group()), text)
    for match in _DIGITS.finditer(plain):
        number = _ascii_digits(match.group())
        parts = [number.replace(",", "")] if _THOUSANDS.fullmatch(number) else number.split(",")
        found += [(match.start(), _canonical(part)) for part in parts]
    found += _spelled(plain)
    return tuple(value for _, value in sorted(found, key=lambda item: item[0]))


def same_as_number(text: str) -> frozenset[str]:
    """Return the values that words such as "both" and "dozen" stand for in `text`."""
    return frozenset(_SAME_AS_NUMBER[word] for word in words(text) if word in _SAME_AS_NUMBER)


def _spelled(text: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    value: int | None = None
    start = last_end = 0
    for match in _WORD.finditer(text):
        word = match.group().lower()
        joined = value is not None and text[last_end : match.start()] in (" ", "-")
        if joined and value is not None and value < 10**12 and word in _SCALES:
            value *= _SCALES[word]
        elif joined and value is not None and word in _UNITS and value >= 20 and value % 10 == 0 and _UNITS[word] < 10:
            value += _UNITS[word]
        else:
            if value is not None and value != 1:
                found.append((start, str(value)))
            value, start = (_UNITS.get(word, _TENS.get(word)), match.start())
        last_end = match.end()
    if value is not None and value != 1:
        found.append((start, str(value)))
    return found


def _ascii_digits(number: str) -> str:
    if number.isascii():
        return number
    return "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in number)


def _canonical(number: str) -> str:
    if number.count(".") == 1:
        number = number.rstrip("0").rstrip(".")
    return number.lstrip("0") or "0" if "." not in number else number


def shown(text: str) -> str:
    """Return `text` without the signs that only cut a match off from its surroundings."""
    return text.strip(" \t\r\n.,;:")
