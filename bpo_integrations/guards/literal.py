"""What a rewrite must keep letter for letter, or nearly: quotations, pasted passages, placeholders, code, addresses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from bpo_integrations.guards.base import guard
from bpo_integrations.guards.request import asks, opens_with_verb
from bpo_integrations.guards.text import contains, flat, sentences, words

QUOTED_WHOLE = 0.8
"""A quotation that is at least this share of the prompt is the prompt itself, in quotation marks."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How much of a stretch must stay.

    Args:
        words: Share of its words that must stay in order, or else
        signs: likeness, in percent, of the most similar stretch of the candidate (rapidfuzz's partial ratio), which
            lets typing errors be corrected.
    """

    words: float
    signs: float


PASTED = Kept(0.9, 88.0)
"""Material that the prompt introduces ("the following text:")."""

TOLD = Kept(0.75, 82.0)
"""Other lines, and long sentences, that ask for nothing."""

CODE = Kept(0.95, 93.0)
"""Lines with the signs of code or markup."""

ASKED = Kept(0.5, 65.0)
"""Further lines that ask for something: a rewrite may word them anew."""

_CODE_SIGNS = re.compile(r"[(){}\[\];=<>/\\_|]")

_INSTRUCTION_WORDS = 5
_MOST_LOOKS, _LONGEST_LOOK = 40, 1000  # bound the work of partial ratios

LONG_LINE = 25
"""From so many words on, words kept in order are counted."""

LONG_SENTENCE, LONG_PROMPT = 12, 80
"""From so many words on, a sentence that asks for nothing counts as a passage, in a prompt of so many."""

_QUOTATIONS = (
    re.compile(r"(?<![\w\"])\"(?=\S)([^\"]{1,2000})\"(?![\w\"])"),
    re.compile(r"“([^“”]{1,2000})”"),
    re.compile(r"„([^„“”]{1,2000})[“”]"),
    re.compile(r"«([^«»]{1,2000})»"),
    re.compile(r"「([^「」]{1,2000})」"),
    re.compile(r"(?<![\w’])‘(?=\w)([^‘’\n]{2,500})’(?!\w)"),
    re.compile(r"(?<![\w'])'(?=\w)([^'\n]{2,500})(?<=[^\s])'(?![\w'])"),
)
_FENCE = re.compile(r"```[^\n`]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_INLINE_CODE = re.compile(r"(?<!`)`([^`\n]{1,200})`(?!`)")
_ADDRESS = re.compile(
    r"https?://[^\s<>\"'`)\]}]+|\bwww\.[^\s<>\"'`)\]}]+|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}"
    r"|(?<![\w/.])(?:~|\.{1,2})?/(?:[\w.-]{1,64}/){1,12}[\w.-]{0,64}|\b[A-Za-z]:\\[^\s\"'<>|]{1,200}"
)
_PLACEHOLDERS = (
    re.compile(r"\{\{[^{}\n]{1,60}\}\}"),
    re.compile(r"\$\{[^{}\n]{1,60}\}"),
    re.compile(r"(?<![{$\w])\{[^\W\d][\w .:-]{0,40}\}(?!\})"),
    re.compile(r"<[A-Za-z][\w '/-]{0,40}>"),
    re.compile(r"\[[A-Za-z][\w '/,.:-]{0,60}\](?!\()"),
    re.compile(r"(?<![\w%])%(?:\([\w]{1,30}\)[sdifr]|[sd]\b|[A-Z_]{2,30}%)"),
    re.compile(r"(?<![\w_])__[A-Z][A-Z_]{0,30}__(?!\w)"),
    re.compile(r"(?<!\S)\$[A-Z][A-Z_]{1,30}\b"),
)
_INTRODUCES = re.compile(
    r"(?:\b(?:following|below|given|these|this|here (?:is|are)|here's|text|sentence|passage|article|input|data"
    r"|paragraph"
    r"|context|question|email|code|list)\b[^:\n]{0,80}):",
    re.IGNORECASE,
)


@guard("quotations")
def keeps_quotations(original: str, candidate: str) -> str | None:
    """The words of each quotation stay together; the marks may change. A prompt that is one quotation is none."""
    size = max(1, len(original.strip()))
    candidate = candidate.replace("\\n", "\n")
    for text in quotations(original.replace("\\n", "\n")):
        if len(text) < QUOTED_WHOLE * size and not _is_instruction(text) and not _stands(text, candidate):
            return text
    return None


@guard("placeholders")
def keeps_placeholders(original: str, candidate: str) -> str | None:
    """Slots such as {name}, {{name}}, <name>, [NAME] and %s stay as they are."""
    return next((slot for slot in placeholders(original) if slot not in candidate), None)


@guard("code")
def keeps_code(original: str, candidate: str) -> str | None:
    """Fenced blocks and `inline code` stay, white space apart."""
    squeezed = " ".join(candidate.split())
    for block in code(original):
        if " ".join(block.split()) not in squeezed:
            return block
    return None


@guard("urls")
def keeps_addresses(original: str, candidate: str) -> str | None:
    """Web addresses, e-mail addresses and file paths stay."""
    for match in _ADDRESS.finditer(original):
        address = match.group().rstrip(".,;:!?")
        if address not in candidate:
            return address
    return None


@guard("passages")
def keeps_passages(original: str, candidate: str) -> str | None:
    """Pasted material stays word for word; a long prompt's other lines keep 90% of their words, in order."""
    wanted = passages(original)
    if not wanted:
        return None
    rest = flat(candidate)
    missing: list[tuple[str, Kept]] = []
    for text, kept in sorted(wanted, key=lambda item: -len(item[0])):
        line = flat(text)
        if line in rest:  # what is there is taken out, so that no other line, nearly alike, finds itself in it
            rest = rest.replace(line, " \n ", 1)
        elif not any(len(other) > len(text) and text in other for other, _ in wanted):
            missing.append((text, kept))
    left = tuple(rest.split())
    for looks, (text, kept) in enumerate(missing):
        said = words(text)
        if len(said) >= LONG_LINE:  # in a short line, common words scattered over the candidate could pass for it
            least = math.ceil(kept.words * len(said))
            if LCSseq.similarity(said, left, score_cutoff=least) >= least:
                continue
        if looks >= _MOST_LOOKS or len(text) > _LONGEST_LOOK:
            return text
        if fuzz.partial_ratio(flat(text), rest, score_cutoff=kept.signs) < kept.signs:
            return text
    return None


@lru_cache(maxsize=32)
def quotations(text: str) -> tuple[str, ...]:
    """Return what stands between paired quotation marks, code left out."""
    plain = _INLINE_CODE.sub(" ", _FENCE.sub(" ", text))
    return tuple(match[1] for pattern in _QUOTATIONS for match in pattern.finditer(plain))


@lru_cache(maxsize=32)
def placeholders(text: str) -> tuple[str, ...]:
    """Return the different placeholders of every common style."""
    return tuple(dict.fromkeys(match.group() for pattern in _PLACEHOLDERS for match in pattern.finditer(text)))


def code(text: str) -> Iterator[str]:
    """Yield what stands between code marks."""
    for pattern in (_FENCE, _INLINE_CODE):
        yield from (match[1] for match in pattern.finditer(text) if match[1].strip())
        text = pattern.sub(" ", text)


@lru_cache(maxsize=32)
def passages(text: str) -> tuple[tuple[str, Kept], ...]:
    """Return the stretches that are material rather than request, each with how much of it must stay."""
    plain = _FENCE.sub("\n", text)
    lines = [line.strip() for line in plain.splitlines() if words(line.strip())]
    found: dict[str, Kept] = {}
    pasted, head = False, True
    for place, line in enumerate(lines):
        rest = _behind_introduction(line)
        if rest is not None:
            pasted = True
            if words(rest) and not _all_ask(rest):
                found[rest] = PASTED
        elif place:
            requests = _all_ask(line)
            head = head and requests and _all_ask(lines[place - 1])
            if head or (requests and place == len(lines) - 1):
                continue
            prose = _CODE_SIGNS.search(line) is None
            if prose and not pasted and (line.endswith(":") or (line[0].islower() and _runs_on(lines[place - 1]))):
                continue
            found[line] = (ASKED if requests else PASTED if pasted else TOLD) if prose else CODE
    if len(words(plain)) >= LONG_PROMPT:
        for sentence in (sentence for line in lines for sentence in sentences(line)):
            if len(words(sentence)) >= LONG_SENTENCE and not asks(sentence):
                found.setdefault(sentence, TOLD)
    return tuple(found.items())


def _behind_introduction(line: str) -> str | None:
    """What follows "the following text:" on its line; None where nothing is introduced."""
    match = _INTRODUCES.search(line)
    return None if match is None else line[match.end() :].strip()


def _runs_on(line: str) -> bool:
    """Whether a line of a request goes on in the next one."""
    return len(words(line)) >= _INSTRUCTION_WORDS and line[-1] not in ".!?:;,{}" and _all_ask(line)


def _all_ask(line: str) -> bool:
    return all(asks(sentence) for sentence in sentences(line))


def _is_instruction(text: str) -> bool:
    """Whether a quoted sentence is itself the request: it may be rewritten as the rest."""
    return text.endswith((".", "?", "!")) and len(words(text)) >= _INSTRUCTION_WORDS and opens_with_verb(text)


def _stands(text: str, candidate: str) -> bool:
    return contains(candidate, text) if words(text) else text.strip() in candidate
