"""What a rewrite must keep of the prompt's meaning: numbers, limits, negations, names.

Each rule is read as finely as measurement allows (docs/guards.md): by value, by class of synonym, by scope, by
likeness; not by the letter. What must stay letter for letter is in `literal.py`.
"""

from __future__ import annotations

import itertools
import re
from functools import lru_cache

from rapidfuzz import fuzz, process

from bpo_integrations.guards.base import guard
from bpo_integrations.guards.text import (
    REQUEST_WORDS,
    STOPWORDS,
    number_values,
    same_as_number,
    sentences,
    stem,
    words,
)

NAME_LIKENESS = 75.0
"""Least likeness, in percent of rapidfuzz's ratio, at which a name counts as kept (design: fuzzy >= .75)."""

SHORT_NAME, SHORT_NAME_LIKENESS = 5, 82.0
"""To a short name too many words are alike ("Hong", "long")."""

_MOST_FUZZY_NAMES = 50  # so many lost names are a violation without a closer look: bounds the work

_NUMBER = r"(?P<number>\d+(?:[.,]\d+)*|[a-z]+(?:-[a-z]+)?)"
_NO = r"(?<!\bno )(?<!\bnot )"
_BOUNDS = {
    "at most": rf"at most|(?:no|not) more than|{_NO}(?:less|fewer) than|under|up to|no longer than|shorter than"
    rf"|within"
    r"|not exceed(?:ing)?|max(?:imum)?(?: of)?|limit(?:ed)? (?:it |this |your answer |the answer )?to|below",
    "at least": rf"at least|no (?:less|fewer) than|not (?:less|fewer) than|min(?:imum)?(?: of)?|{_NO}more than|over"
    rf"|greater than|{_NO}longer than|above",
    "exactly": r"exactly|precisely",
}
_LIMIT = {kind: re.compile(rf"\b(?:{bound})[\s-]+(?:a |an |the )?{_NUMBER}\b") for kind, bound in _BOUNDS.items()}
_LIMIT_BEHIND = {
    "at most": re.compile(rf"\b{_NUMBER}(?:[\s-]+\w+){{0,2}}[\s-]+(?:or|and) (?:less|fewer|under|below|shorter)\b"),
    "at least": re.compile(rf"\b{_NUMBER}(?:[\s-]+\w+){{0,2}}[\s-]+(?:or|and) (?:more|over|above|up|longer)\b"),
}
_BOUND_BEHIND = re.compile(r"\b(?:or|and) (?:less|fewer|under|below|shorter|more|over|above|up|longer)\b")
_ONE_UNIT = re.compile(
    r"\b(?:in|to|with|only|exactly|just|as|into|using|within)\s+(?:only |just |exactly )?(?:one|a single|1)[\s-]+"
    r"(sentence|word|paragraph|line|page|liner)s?\b"
)
_ONE_UNIT_KEPT = re.compile(r"\b(?:one|single|1|a)[\s-]+(?:\w+[\s-]+)?(sentence|word|paragraph|line|page|liner)s?\b")

_NEGATORS = frozenset(
    "not never without cannot no neither nor except avoid avoiding excluding exclude none nothing".split()
)
_KINDS_OF_NOT = _NEGATORS | frozenset(
    """nobody nowhere unable impossible unlikely unwilling fail fails failed failing failure lack lacks lacking refrain
    refraining prevent prevents preventing instead rather stop skip omit omitting absent absence missing non free ban
    prohibit prohibited forbid forbidden forbids refuse refuses refusing hardly barely excluded excludes avoids avoided
    dislike dislikes ineligible stuck trouble struggle difficulty ignore ignoring only solely exclusively incorrect
    incorrectly nonexistent devoid""".split()
)
_NOT_A_NEGATION = re.compile(
    r"\b(?:why (?:not|(?:don't|can't) (?:you|we))|(?:or|if|not|no) (?:not|no)|not (?:only|just|sure|to mention)"
    r"|no (?:matter|doubt|problem|one)|(?:no|not) (?:more|less|fewer|later|longer|earlier|greater) than"
    r"|(?:isn't|aren't|don't|can't|doesn't|won't|wouldn't|couldn't|didn't) (?:it|you|they|we|he|she)(?=\s*[?.]?$)"
    r"|no\.)"
)
_NEGATION_SCOPE = 3  # words of content behind a negation that say what it denies
_DENIES_WITHIN = 4  # words within which a negative word denies a pair of words
_SCOPE_REACH = 10  # words within which a rewrite must deny them


@guard("numbers")
def keeps_numbers(original: str, candidate: str) -> str | None:
    """Each number's value stands in the candidate, in digits or in words; list markers do not count."""
    wanted = number_values(original)
    if not wanted:
        return None
    there = {*number_values(candidate), *same_as_number(candidate)}
    return next((value for value in wanted if value not in there), None)


@guard("limits")
def keeps_limits(original: str, candidate: str) -> str | None:
    """Upper, lower and exact bounds stay of their kind; "in one sentence" stays."""
    wanted = _limits(original)
    kept = set(_limits(candidate)) if wanted else set()
    for kind, value in wanted:
        if (kind, value) not in kept:
            return f"{kind} {value}"
    single = _ONE_UNIT.findall(original.lower())
    units = set(_ONE_UNIT_KEPT.findall(candidate.lower())) if single else set()
    return next((f"one {unit}" for unit in single if unit not in units), None)


@guard("negations")
def keeps_negations(original: str, candidate: str) -> str | None:
    """What the prompt denies, the candidate denies too, in any of the words for it."""
    denied = _denials(original)
    if not denied:
        return None
    turned = _bigrams(original, denied=True) - _bigrams(original, denied=False)
    turned &= _bigrams(candidate, denied=False) - _bigrams(candidate, denied=True)
    if turned:
        return f"not {min(turned)}"
    lines = [words(sentence) for sentence in sentences(candidate)]
    places = [[i for i, word in enumerate(line) if _is_negative(word)] for line in lines]
    total = sum(map(len, places))
    there = {stem(word) for line in lines for word in line}
    under_not = {
        stem(word)
        for line, spots in zip(lines, places, strict=True)
        for i in spots
        for word in line[max(0, i - 3) : i + 1 + _SCOPE_REACH]
    }
    prefixed = {
        stem(word[cut:]) for line in lines for word in line for cut in (2, 3) if word[:cut] in ("un", "in", "non")
    }
    for negator, scope in denied:
        if scope & (under_not | prefixed):
            continue
        if (scope & there) or total < len(denied):
            return f"{negator} {' '.join(sorted(scope))}".strip()
    return None


@guard("names")
def keeps_names(original: str, candidate: str) -> str | None:
    """Each name stands in the candidate: in any case, spelled nearly alike, or as its acronym."""
    there = frozenset(words(candidate))
    lost = [name for name in names(original) if not _stands_in(name.lower(), there)]
    if len(lost) > _MOST_FUZZY_NAMES:
        return lost[0]
    if not lost:
        return None
    choices = sorted(there)
    said = words(candidate)
    together = {first + second for first, second in itertools.pairwise(said)}
    initials = "".join(word[0] for word in words(candidate))
    for name in lost:
        lower = name.lower()
        likeness = NAME_LIKENESS if len(name) > SHORT_NAME else SHORT_NAME_LIKENESS
        if process.extractOne(lower, choices, scorer=fuzz.ratio, score_cutoff=likeness) or lower in together:
            continue
        if name.isupper() and len(name) > 1 and lower in initials:
            continue
        if _acronym_of(name, original) in there:
            continue
        return name
    return None


@lru_cache(maxsize=32)
def names(text: str) -> tuple[str, ...]:
    """Return the different capitalised words that stand where no capital is due.

    Left out: first words of sentences, headings and lines in capitals, identifiers (digits or capitals inside).

    Example:
        >>> names("Tell me what Maria saw in Rome. Then stop.")
        ('Maria', 'Rome')
    """
    found: dict[str, None] = {}
    for sentence in sentences(text):
        if _is_heading(sentence):
            continue
        for match in _CAPITALISED.finditer(sentence):
            word = match.group()
            before = sentence[: match.start()].rstrip(" ")[-1:]
            if not before or before in _OPENERS or word.lower() in STOPWORDS or word.lower() in REQUEST_WORDS:
                continue
            if len(word) > 1 and (word[1:].islower() or (word.isupper() and len(word) <= 6)):
                found[word] = None
    return tuple(found)


_CAPITALISED = re.compile(r"(?<![\w.@/\\'’-])[^\W\d_a-z][^\W\d_]*(?![\w(@\\/=]|[.:]\w)")
_OPENERS = "\"“‘'«([{*•#|>:;-–—.!?=+/\\"


def _is_heading(sentence: str) -> bool:
    alphabetic = [word for word in sentence.split() if word[:1].isalpha() and len(word) > 3]
    capitalised = sum(word[0].isupper() for word in alphabetic)
    letters = sum(sign.isalpha() for sign in sentence)
    shouting = letters > 12 and sum(sign.isupper() for sign in sentence) > 0.6 * letters
    titled = (
        len(alphabetic) > 2 and capitalised >= 0.75 * len(alphabetic) and not any(sign in sentence for sign in ",:;?.!")
    )
    return shouting or titled


def _stands_in(name: str, there: frozenset[str]) -> bool:
    if name in there or f"{name}'s" in there or f"{name}s" in there or name.removesuffix("s") in there:
        return True
    return len(name) > 3 and any(word.startswith(name[:-1]) for word in there)  # Rome, Roman; Iran, Iranian


def _acronym_of(name: str, text: str) -> str:
    """The initials of the run of capitalised words that `name` stands in."""
    parts = text[max(0, text.find(name) - 60) : text.find(name) + 60].split()
    at = next((i for i, part in enumerate(parts) if name in part), None)
    if at is None:
        return ""
    start = end = at
    while start > 0 and parts[start - 1][:1].isupper():
        start -= 1
    while end + 1 < len(parts) and parts[end + 1][:1].isupper():
        end += 1
    return "".join(part[0] for part in parts[start : end + 1]).lower() if end - start > 0 else ""


@lru_cache(maxsize=32)
def _limits(text: str) -> tuple[tuple[str, str], ...]:
    """Return (kind, value) of every bound on a number."""
    lower = text.lower()
    found: dict[tuple[str, str], None] = {}
    for patterns in (_LIMIT, _LIMIT_BEHIND) if _BOUND_BEHIND.search(lower) else (_LIMIT,):
        for kind, pattern in patterns.items():
            for match in pattern.finditer(lower):
                for value in number_values(match["number"])[:1]:
                    found[kind, value] = None
    return tuple(found)


def _is_negative(word: str) -> bool:
    return word in _KINDS_OF_NOT or word.endswith("n't") or word in ("dont", "cant", "doesnt", "wont", "isnt", "didnt")


@lru_cache(maxsize=32)
def _denials(text: str) -> tuple[tuple[str, frozenset[str]], ...]:
    """Return each negator with the stems of what it denies."""
    found = []
    for line in _plain_lines(text):
        for i, word in enumerate(line):
            if word in _NEGATORS or word.endswith("n't"):
                scope = [w for w in line[i + 1 : i + 8] if w not in STOPWORDS and not w.isdigit()][:_NEGATION_SCOPE]
                found.append((word, frozenset(map(stem, scope))))
    return tuple(found)


@lru_cache(maxsize=64)
def _bigrams(text: str, *, denied: bool) -> frozenset[str]:
    """Return the pairs of words right behind a negator, or those that have none before them."""
    found = set()
    for line in _plain_lines(text):
        last = -_DENIES_WITHIN - 1  # where the last negative word stood
        direct = False
        for i, (word, following) in enumerate(itertools.pairwise(line)):
            if direct if denied else i - last > _DENIES_WITHIN:
                found.add(f"{word} {following}")
            direct = word in _NEGATORS or word.endswith("n't")
            last = i if _is_negative(word) else last
    return frozenset(found)


@lru_cache(maxsize=32)
def _plain_lines(text: str) -> tuple[tuple[str, ...], ...]:
    """Return the words of each sentence, without phrases that deny nothing ("why not", "not only")."""
    return tuple(words(_NOT_A_NEGATION.sub(" ", sentence.lower().replace("’", "'"))) for sentence in sentences(text))
