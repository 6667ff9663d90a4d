"""What an addition must be, beside what it must not bring in: whole new sentences that instruct, on nothing invented.

The addition stands behind the prompt, which stays byte for byte; so only what is added is judged.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter

from rapidfuzz import fuzz, process

from bpo_integrations.guards.base import guard
from bpo_integrations.guards.known import KNOWN_NAMES
from bpo_integrations.guards.meaning import ANSWERS, reads_as_english
from bpo_integrations.guards.request import IMPERATIVES, instructs
from bpo_integrations.guards.text import (
    REQUEST_WORDS,
    STOPWORDS,
    content_words,
    flat,
    number_values,
    same_as_number,
    sentences,
    stem,
    stems,
    words,
)

SMALL_NUMBER = 12
"""Numbers up to this may structure an answer ("two examples"), unless they measure something."""

SHORT_QUESTION = 9
"""Words. In the additions that people wrote, no question behind the first sentence has fewer."""

ECHO_WORDS, ECHO_SHARE = 8, 0.8
"""So many of the prompt's words in a row, or such a share of the content words, repeat the prompt."""

_END = re.compile(r"[.!?。！？…؟][\"'”’»)\]`*]*$")
_LOOSE_END = re.compile(
    r"(?:\.\.\.|…|,|;|:|\b(?:and|or|but|nor|the|an|a|such as|including|because|its|their|your|my|every|e\.g|i\.e"
    r"|than|between"
    r"|as well as|of (?:the|a)|along with|together with|according to|due to))[\s.!?]*$",
    re.IGNORECASE,
)
_AS_EXAMPLE = re.compile(r"\b(?:such as|for example|for instance|e\.g\.?|like)\b", re.IGNORECASE)
_MEASURED = re.compile(
    r"(?P<price>[$€£¥₹]\s?\d+(?:[.,]\d+)*)|(?<![\w.,-])(?P<number>\d+(?:[.,]\d+)*|[a-z]+)(?P<after>\s?(?:%"
    r"|percent\b|per cent\b|[$€£¥₹°](?!\s?\d)|degrees?\b|dollars?\b|euros?\b"
    r"|pounds?\b|bucks?\b|years?\b|months?\b|weeks?\b|days?\b|hours?\b|minutes?\b|k[mg]\b|miles?\b|meters?\b"
    r"|metres?\b|feet\b|inch(?:es)?\b|kilo\w*\b"
    r"|grams?\b|lit(?:er|re)s?\b|ounces?\b|cm\b|mm\b|[ap]\.?m\b|people\b|million\b|billion\b|thousand\b|hundred\b))",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(
    r"(?<!\w)\w{0,40}?[^\W\d]-?\d[\w.]*|(?<!\d)\d+(?:[-‑–]?bit\b|[-‑–]byte\b|D\b|s\b|e\b|:\d+)|\b\d+ (?:and"
    r"|or) \d+[- ]bits?\b"
    r"|(?<=[=<>≤≥] )\d+|(?<=[=<>≤≥])\d+"
)
_WORDS_OF_NOISE = re.compile(r"[^\W\d_]{25,}|(?<![^\W\d_])[bcdfghjklmnpqrstvwxz]{6,}(?![^\W\d_])")
_CAPITALISED = re.compile(r"(?<![\w.@/\\'’-])[^\W\d_a-z][\w’']*(?:[-.+#][\w+#]+)*[+#]*")
_ACRONYM_BEFORE = re.compile(r"(?<!\w)\.?[A-Z]{2,6} $")
_STATES = re.compile(
    r"\b(?:is|are|was|were|has|have|had|consists?|became|means|refers|includes|contains|began|wrote|born|lies"
    r"|costs|equals)\b",
    re.IGNORECASE,
)
_SETS = re.compile(
    r"^(?:(?:i|we)(?:'m|'ll|'d|'re| am| are| will) (?:a |an |only |also |using |on |new |test\b|use\b|run\b"
    r"|like\b)|i (?:mean|own|use|have|already|only|prefer)\b|my \w+ (?:is|are)\b|it's (?:for|about|my|meant|a|an) "
    r"|you (?:don't have to|needn't|may|must|are|will) "
    r"|(?:it|this|they|the [\w ,'-]{1,60}?|each|every|all|both|no|any|answers?)\b[\w ,'-]{0,60}? (?:should|must"
    r"|needs? to|has to|have to)\b)",
    re.IGNORECASE,
)


@guard("instruction")
def is_an_instruction(original: str, addition: str) -> str | None:
    """Each sentence asks for something, or sets a condition; none is an answer."""
    if not reads_as_english(addition):
        return None
    for sentence in sentences(addition):
        plain = sentence.replace("’", "'")
        if not words(plain) or (not ANSWERS.match(plain) and (instructs(plain) or _SETS.match(plain))):
            continue
        return f"it does not instruct: {sentence}"
    return None


@guard("asks back")
def asks_no_short_question(original: str, addition: str) -> str | None:
    """No short question, alone or at the end: an LLM is asked at more length, the user is not."""
    said = sentences(addition)
    for sentence in said[1:] or said:
        if sentence.endswith("?") and len(words(sentence)) < SHORT_QUESTION and flat(sentence) not in flat(original):
            return sentence
    return None


@guard("unfinished")
def is_finished(original: str, addition: str) -> str | None:
    """The addition ends as a sentence does."""
    text = addition.strip()
    if not text:
        return None
    if not _END.search(text):
        return f"no end mark after: {text[-40:]}"
    loose = _LOOSE_END.search(text[-60:])
    if loose and not text.endswith("?"):
        return f"it breaks off: {text[-40:]}"
    if text.count("(") != text.count(")") or text.count("```") % 2:
        return "an open bracket or code block"
    return None


@guard("new numbers")
def invents_no_numbers(original: str, addition: str) -> str | None:
    """No number that the prompt does not hold, but small ones for structure, and those in names and examples."""
    known = {*number_values(original), *same_as_number(original)}
    for sentence in sentences(addition):
        plain = _IDENTIFIER.sub(" ", sentence)
        for match in _MEASURED.finditer(plain):
            spelled = (match["number"] or "").isalpha() and match["after"][-1:].isalpha()
            if spelled and not match["after"].endswith("s"):
                continue  # "one or two day trips"
            for value in number_values(match["price"] or match["number"]):
                if value not in known and not _as_example(plain, match.start()):
                    return match.group().strip()
        for value in number_values(plain):
            if value not in known and not _is_small(value) and not _as_example(plain, plain.find(value)):
                return value
    return None


@guard("new names")
def invents_no_names(original: str, addition: str) -> str | None:
    """No name that the prompt does not hold, but of technologies, languages and peoples, acronyms, and in examples."""
    if not reads_as_english(addition):
        return None
    known, roots = original.lower(), stems(original)
    for sentence in sentences(addition):
        for match in _CAPITALISED.finditer(sentence):
            name = match.group().rstrip(".'’").removesuffix("'s").removesuffix("’s")
            lower = name.lower()
            if (
                lower in known
                or stem(lower) in roots
                or _is_like(lower, original)
                or not _is_a_name(name, sentence, match.start())
            ):
                continue
            if _as_example(sentence, match.start()):
                continue
            return name
    return None


@guard("repetition")
def repeats_nothing(original: str, addition: str) -> str | None:
    """No phrase twice."""
    said = words(addition)
    for first, second in itertools.pairwise(said):
        if first == second and first.isalpha() and first not in ("that", "had", "very", "so", "bye", "knock"):
            return f"{first} {second}"
    for size in (4, 3, 2):
        counts = Counter(zip(*(said[i:] for i in range(size)), strict=False))
        for run, count in counts.items():
            heavy = sum(word not in STOPWORDS for word in run)
            if count > 1 and heavy >= (2 if size > 2 else 3 - (count > 2)) - (size == 4):
                return " ".join(run)
    lines = Counter(flat(sentence) for sentence in sentences(addition))
    return next((line.strip() for line, count in lines.items() if count > 1 and not line.isspace()), None)


@guard("echo", passes_identity=False)
def says_something_new(original: str, addition: str) -> str | None:
    """The addition is not the prompt again."""
    said = words(addition)
    if not said:
        return None
    known = flat(original)
    if flat(addition) in known:
        return "the prompt says it already"
    for sentence in sentences(addition):
        line = words(sentence)
        size = min(ECHO_WORDS, max(4, int(0.75 * len(line))))
        for i in range(len(line) - size + 1):
            if f" {' '.join(line[i : i + size])} " in known and any(w not in STOPWORDS for w in line[i : i + size]):
                return " ".join(line[i : i + size])
    subject = content_words(addition)
    there = stems(original)
    old = sum(stem(word) in there for word in subject)
    if len(subject) >= 2 and old >= ECHO_SHARE * len(subject) and len(words(original)) <= 60:
        return "no new content word" if old == len(subject) else "hardly a new content word"
    return None


@guard("nonsense")
def is_language(original: str, addition: str) -> str | None:
    """The addition is made of words, and of the words that sentences need."""
    dense = [sign for sign in addition if not sign.isspace()]
    if not dense:
        return None
    letters = sum(sign.isalpha() for sign in dense)
    said = words(addition)
    if letters < 0.6 * len(dense) or not said:
        return "hardly a letter"
    noise = _WORDS_OF_NOISE.search(addition)
    if noise and noise.group() not in original:
        return noise.group()
    if any(sign in "\ufffd\x00" or (ord(sign) < 32 and sign not in "\n\t\r") for sign in addition):
        return "control characters"
    if reads_as_english(addition) and len(said) >= 5 and not any(word in STOPWORDS for word in said):
        return "a heap of words"
    return None


def _is_small(value: str) -> bool:
    return value.isdigit() and len(value) <= 2 and int(value) <= SMALL_NUMBER


def _as_example(text: str, at: int) -> bool:
    """Whether "such as" or the like stands before a place in its sentence."""
    return at >= 0 and _AS_EXAMPLE.search(text[:at]) is not None


def _is_like(name: str, original: str) -> bool:
    return process.extractOne(name, words(original), scorer=fuzz.ratio, score_cutoff=80.0) is not None


def _is_a_name(name: str, sentence: str, at: int) -> bool:
    """Whether a capitalised word is a name that an addition may not invent."""
    lower = name.lower()
    if name == "I" or lower.startswith(("i'", "i’")) or lower in KNOWN_NAMES or lower.rstrip("s") in KNOWN_NAMES:
        return False
    if any(part in KNOWN_NAMES for part in re.split(r"[-.]", lower)):
        return False
    if name[1:2] == "-" or any(sign.isdigit() or sign.isupper() or sign in "+#._" for sign in name[1:]):
        return False  # acronyms, identifiers, CamelCase
    if len(name) == 1 or _ACRONYM_BEFORE.search(sentence[:at]):
        return False  # "SQL Server"
    before = sentence[:at].rstrip(" \"'“‘(*")[-1:]
    if not before:
        return (
            lower not in IMPERATIVES
            and lower not in STOPWORDS
            and lower not in REQUEST_WORDS
            and _followed_by_statement(sentence)
        )
    return before not in ":.!?"


def _followed_by_statement(sentence: str) -> bool:
    second = words(sentence)[1:2]
    return bool(second) and _STATES.fullmatch(second[0]) is not None
