"""How an addition is put behind a prompt: the original stays byte for byte, and the joint reads well.

Pure functions, defined for every str. `join` gives the original back where nothing can follow it: it ends in what the
answer is to continue. Whether adding is wise at all is for the policy, the model and the guards to say.
"""

from __future__ import annotations

import re
import unicodedata

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from bpo_integrations.guards.request import IMPERATIVES, asks
from bpo_integrations.guards.text import content_words, sentences, stem, words

SAID = 0.75
"""Share of the addition's content words that the prompt holds when it says the addition already."""
_ALIKE = 0.8
"""Two stems are the same word from this similarity on: one wrong letter in five."""
_PASSAGE = 12
"""From so many words on, what is quoted or follows a colon at the end is a passage, not a phrase."""

_FINAL = ".?!…。！？؟।՞"
_CLOSING = "\"'”’»)]*_`」』"
_AWAITS = re.compile(
    r"(?:[:：=([{–—]|=>|->|→|\.\.\.:?|_{2,})\Z"  # a colon, an equation, an open bracket, a blank to fill in
    r"|(?:^|\n)[ \t]*(?:[QA]|answer|output|response|solution|result|assistant|ai|bot)[ \t]*[:.\-]?[ \t]*\Z"
    r"|(?:^|\n)[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]*\Z",  # an empty item
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+\Z|\S+@\S+\.\w+\Z")
_ITEM = re.compile(r"[ \t]*(?:[-*•]|\d{1,3}[.)]|\(?[A-Za-z][.)])[ \t]|[ \t]*\||[ \t]*>|\t| {4}")
_QUOTED_TAIL = re.compile(r"[\"“«](?P<text>[^\"“”«»]*)[\"”»][.?!]?\Z")
_COLON_TAIL = re.compile(r":[ \t]+(?P<text>[^:\n]*)\Z")


def join(original: str, addition: str) -> str:
    r"""Put `addition` behind `original`.

    Args:
        original: The user's prompt; the result starts with it, byte for byte.
        addition: One or two whole sentences; blank edges are cut.

    Returns:
        The two with a joint between them: after prose one space, with a full stop where it is missing; after a pasted
        passage, code, a list or a table a blank line. The original itself where there is nothing to add, or where
        nothing can follow: it ends with a colon, a blank to fill in, or an open code fence.

    Example:
        >>> join("Tell me about Harry Potter", "Cover the main characters.")
        'Tell me about Harry Potter. Cover the main characters.'
        >>> join("Shorten this:\n> a long text", "Keep the names.")
        'Shorten this:\n> a long text\n\nKeep the names.'
    """
    addition = addition.strip()
    separator = joint_after(original) if addition else None
    return original if separator is None else original + separator + addition


def joint_after(original: str) -> str | None:
    """Return what stands between a prompt and an addition, or None where nothing can follow the prompt."""
    body = original.rstrip()
    blank = original[len(body) :]
    if not body or body.count("```") % 2 or _AWAITS.search(body[-80:]):
        return None
    lines = body.splitlines()
    if _ends_in_material(lines):
        return "\n" * max(0, 2 - blank.count("\n"))
    if blank.count("\n"):
        return ""
    if _is_finished(body):
        return "" if blank or _is_wide(body[-1]) else " "
    if blank:  # a full stop cannot stand behind a space
        return "\n"
    return "。" if _is_wide(body[-1]) else ". "


def already_said(original: str, addition: str) -> bool:
    """Whether a prompt says already what would be put behind it.

    Its content words are compared by stem, with room for a wrong letter.

    Args:
        original: The user's prompt.
        addition: What would be added.

    Returns:
        True when at least three quarters of the addition's content words stand in the prompt; False for an addition of
        fewer than three.

    Example:
        >>> already_said("List the causes and effects of inflation.", "Cover both causes and effects of inflation.")
        True
    """
    openers = {words(sentence)[0] for sentence in sentences(addition) if words(sentence)} & IMPERATIVES
    wanted = {stem(word) for word in content_words(addition) if word not in openers}
    if len(wanted) < 3:
        return False
    there = {stem(word) for word in words(original)}
    missing = wanted - there
    allowed = len(wanted) - SAID * len(wanted)
    if len(missing) <= allowed:
        return True
    if not there or len(missing) > 2 * allowed + 1:
        return False
    unlike = sum(
        process.extractOne(word, there, scorer=Levenshtein.normalized_similarity, score_cutoff=_ALIKE) is None
        for word in missing
    )
    return unlike <= allowed


def _ends_in_material(lines: list[str]) -> bool:
    """Whether the prompt ends in something that is not the user's own sentence."""
    last = lines[-1]
    if last.rstrip().endswith((";", "}", "```", ">", "|", "\\", "/", "#", ",")) or _ADDRESS.search(last[-300:]):
        return True
    if len(lines) > 1:
        return bool(_ITEM.match(last)) or len(words(last)) < 3 or not asks(last)
    tail = _QUOTED_TAIL.search(last[-4000:]) or _COLON_TAIL.search(last[-4000:])
    return tail is not None and len(words(tail["text"])) >= _PASSAGE


def _is_finished(body: str) -> bool:
    """Whether the last sentence has its final mark, or a sign such as an emoji in its place."""
    text = body[-20:].rstrip(_CLOSING) or body[-1]
    return text[-1] in _FINAL or unicodedata.category(body[-1]) in ("So", "Sk", "Cf", "Mn")


def _is_wide(char: str) -> bool:
    """Whether a character belongs to a script that is written without spaces."""
    return unicodedata.east_asian_width(char) in ("W", "F") and unicodedata.category(char) in ("Lo", "Po", "Pe")
