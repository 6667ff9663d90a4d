"""Whether a rewrite is still this user's request: a request at all, on the subject, in the language, of a sane length.

Lexical rules alone let 28 to 38% of real answers through as rewrites; these close the gap.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from rapidfuzz import fuzz, process

from bpo_integrations.guards.base import guard
from bpo_integrations.guards.request import asks
from bpo_integrations.guards.text import STOPWORDS, content_words, flat, sentences, stem, stems, words

SUBJECT_KEPT, SUBJECT_KEPT_BY_REQUESTS = 0.5, 1 / 3
"""Share of the prompt's content words that must stay (design: half). Less where the candidate opens with a request, as
answers seldom do: two weak signs together."""

WORDS_TIMES, WORDS_MORE = 6, 40
"""A rewrite may have six times the prompt's words and forty more: with twenty more, 1.5% more of gold is lost."""

ANSWERS = re.compile(
    r"(?:sure|great|sorry|umm?|hmm?|ok(?:ay)?, so|certainly|of course|absolutely|great question|good question"
    r"|no problem|well|oh|actually|unfortunately)\b[,!.: ]"
    r"|(?:yes|no|yeah|nope|indeed)[,.!] (?!please|can|could|what|how|but)"
    r"|as an? (?:ai|artificial|large) (?:language )?(?:model|assistant|intelligence)|as of my\b"
    r"|(?:i'm|i am) (?:sorry|afraid|unable|not able|just an? ai|glad|happy|here|not sure)\b|i (?:would"
    r"|'d) (?:be happy|recommend|suggest)\b"
    r"|i (?:apologize|cannot|can't|don't (?:have|know|understand|think)|understand|know|think|believe|guess"
    r"|recommend|suggest)\b"
    r"|(?:here's|here is|here are)(?! my\b| the (?:code|text|problem|error))\b|here you go|(?:below is|below are"
    r"|the following (?:is|are))\b"
    r"|it depends|(?:it's|it is) (?:not |never |always |generally |usually )?(?:appropriate|possible|important"
    r"|worth|crucial|essential|best|hard|difficult|clear|ok|okay)\b"
    r"|there (?:are|is) (?:several|many|a number|a few|various|some)\b|thank you for"
    r"|while i (?:cannot|can't|don't)|if you (?:want help|provide)|you (?:can|could|may|might|should|would|cannot"
    r"|can't|couldn't)\b|one (?:way|option|possible)\b"
    r"|to [^.?!\n]{3,300}?, (?:you|we|i|one|let's|here)\b|first, (?:let's|we|you|i)\b|let's (?:start|begin|break"
    r"|assume|calculate|first)\b"
    r"|in (?:this|these) (?:case|situation)s?\b|some (?:[\w'-]+ ){1,8}(?:include|are)\b|the (?:best|easiest|short"
    r"|right|correct) (?:answer|way|approach)[^.?!\n]{0,200}? is\b"
    r"|the (?:answer|information provided|solution|result)\b[^.?!\n]{0,60} (?:is|isn't)\b|step 1:|title:"
    r"|do you (?:mean|need|want|have any)\b|have you (?:considered|tried|thought)\b|why do you (?:think|want"
    r"|ask)\b|what do you mean\b"
    r"|are you (?:talking|asking|looking|trying|sure|angry|from)\b|would you like\b|that (?:doesn't|does not"
    r"|sounds|seems|depends)\b",
    re.IGNORECASE,
)
"""How answers open, and prompts do not."""

_SCRIPTS = (
    ("Latin", "A", "ɏ"),
    ("Latin", "Ḁ", "ỿ"),
    ("Greek", "Ͱ", "Ͽ"),
    ("Cyrillic", "Ѐ", "ԯ"),
    ("Hebrew", "\u0590", "\u05ff"),
    ("Arabic", "\u0600", "\u077f"),
    ("Indic", "\u0900", "\u0dff"),
    ("Thai", "\u0e00", "\u0e7f"),
    ("Chinese or Japanese", "\u3040", "\u30ff"),
    ("Chinese or Japanese", "\u3400", "\u9fff"),
    ("Hangul", "\uac00", "\ud7af"),
)
_MIN_LANGUAGE_WORDS = 4
_SOME_LETTERS = 5
_ENGLISH_WORDS, _ENGLISH_SHARE = 4, 0.3
_LETTERS_A_SIGN = 4  # a Chinese sign says as much as a short word
_ALIKE = ({"sr", "hr", "bs"}, {"da", "no", "nb", "nn"}, {"id", "ms"}, {"cs", "sk"}, {"gl", "pt", "es"})


@guard("request")
def stays_a_request(original: str, candidate: str) -> str | None:
    """The first or the last sentence asks for something, and the text does not open like an answer."""
    said = [sentence for sentence in sentences(candidate) if words(sentence)]
    if not said:
        return "nothing is said" if original.strip() else None
    opening = said[0].lstrip("\"'“*#> ").replace("’", "'")
    if ANSWERS.match(opening) and f" {' '.join(words(opening)[:2])} " not in flat(original):
        return f"it opens like an answer: {opening}"
    if not original.strip() or candidate.startswith(original):
        return None
    if _asks_enough(candidate) or not _asks_enough(original) or not reads_as_english(candidate):
        return None
    return f"no question or instruction: {said[0]}"


def _asks_enough(text: str) -> bool:
    """Whether the first or the last sentence asks, or half of all."""
    said = [sentence for sentence in sentences(text) if words(sentence)]
    if not said:
        return False
    return asks(said[0]) or asks(said[-1]) or sum(map(asks, said)) >= 0.5 * len(said)


@guard("subject")
def stays_on_the_subject(original: str, candidate: str) -> str | None:
    """At least half of the prompt's content words stay, in any form and with typing errors corrected."""
    wanted = content_words(original)
    if not wanted:
        return None
    there = stems(candidate)
    lost = [word for word in wanted if stem(word) not in there]
    share = SUBJECT_KEPT_BY_REQUESTS if any(map(asks, sentences(candidate)[:1])) else SUBJECT_KEPT
    if len(wanted) - len(lost) >= share * len(wanted):
        return None
    choices = sorted(set(words(candidate)))[:2000]
    missing = 0
    for word in lost[:200]:
        missing += process.extractOne(word, choices, scorer=fuzz.ratio, score_cutoff=75.0) is None
    missing += len(lost[200:])
    if len(wanted) - missing >= share * len(wanted):
        return None
    return f"{missing} of {len(wanted)} content words are gone, such as {lost[0]}"


@guard("length")
def stays_of_a_length(original: str, candidate: str) -> str | None:
    """No more than six times the words, and forty."""
    most = WORDS_TIMES * len(words(original)) + WORDS_MORE
    count = len(words(candidate))
    return f"{count} words, at most {most}" if count > most else None


@guard("language")
def stays_in_the_language(original: str, candidate: str) -> str | None:
    """The script and the language of the prompt stay (where both are certain)."""
    if len(words(candidate)) < _MIN_LANGUAGE_WORDS or not words(original):
        return None
    before, after = script(original), script(candidate)
    if before and after and before != after:
        return None if _has_script(original, after) else f"{before} became {after}"
    spoken, now = _language(original), _language(candidate)
    if not spoken or not now or spoken == now or any({spoken, now} <= alike for alike in _ALIKE) or _is_code(original):
        return None
    return f"{spoken} became {now}"


def _has_script(text: str, name: str) -> bool:
    """Whether a few letters at least are of a script: code with a question in another language, for instance."""
    return sum(_script_of(sign) == name for sign in text if sign.isalpha()) >= _SOME_LETTERS


def _is_code(text: str) -> bool:
    """Whether so many signs stand between the words that no language can be told for sure."""
    dense = [sign for sign in text if not sign.isspace()]
    return sum(not sign.isalpha() for sign in dense) > 0.2 * len(dense)


def _script_of(sign: str) -> str:
    return next((name for name, first, last in _SCRIPTS if first <= sign <= last), "other")


@lru_cache(maxsize=64)
def script(text: str) -> str | None:
    """Return the script that most letters of `text` belong to, or None without a clear majority.

    Example:
        >>> script("Привет, Bob")
        'Cyrillic'
    """
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else None
    counts: Counter[str] = Counter()
    for sign in text:
        if not sign.isalpha():
            continue
        name = _script_of(sign)
        counts[name] += _LETTERS_A_SIGN if name == "Chinese or Japanese" else 1
    if not counts:
        return None
    name, count = counts.most_common(1)[0]
    return name if count > 0.6 * counts.total() else None


@lru_cache(maxsize=64)
def _language(text: str) -> str | None:
    said = words(text)
    english = [word for word in said if word in STOPWORDS]
    if len(set(english)) >= _ENGLISH_WORDS and len(english) >= _ENGLISH_SHARE * len(said):
        return "en"  # so plainly that the identifier, the costliest step of all, is not asked
    from bpo_integrations.language import detect

    return detect(text)


@lru_cache(maxsize=64)
def reads_as_english(text: str) -> bool:
    """Whether the rules that know English words may judge `text`: Latin script, and not surely another language."""
    return script(text) in ("Latin", None) and _language(text) in ("en", None)
