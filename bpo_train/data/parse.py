"""What an annotator answered, taken apart: the comparison, and the improved instruction or the addition.

Promises: pure and total: every string is either an `Annotation` or an `Unusable` with a reason. No eval: quoted text
and JSON are read with parsers. What surely is wrapping comes off; what is unclear stays, for filters and guards.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass

from bpo_integrations.metaprompt import drop_thoughts, parse_addition, parse_rewrite
from bpo_integrations.result import Mode
from bpo_train.data.annotate import COMPARISON, LABELS


@dataclass(frozen=True, slots=True)
class Annotation:
    """A usable answer: the improved instruction, or the addition (empty: nothing to add)."""

    text: str
    comparison: str = ""


@dataclass(frozen=True, slots=True)
class Unusable:
    """An answer that does not hold what was asked for."""

    reason: str


_FENCE = re.compile(r"\A\s*(`{3,}|~{3,})[\w-]*[ \t]*\n(?P<inner>.*?)(?:\n[ \t]*\1\s*)?\Z", re.DOTALL)
_JSON_KEYS: dict[Mode, str] = {
    "rewrite": r"(?:optimized|improved|new)[ _]?(?:instruction|prompt)|instruction",
    "augment": r"addition|what[ _]to[ _]add",
}
_JSON_COMPARISON = r"(?:detailed[ _])?comparison(?:[ _]result)?|critique|analysis"
_MARKED = re.compile(r"\A<instruction(?:_\d+)?>(.*)</instruction(?:_\d+)?>\Z", re.DOTALL)
_END = re.compile(r"\[\s*END\s*\]", re.IGNORECASE)
_TORN_END = re.compile(r"\s*\[\s*E?N?D?\s*\Z", re.IGNORECASE)
_COMPARISON = re.compile(rf"{re.escape(COMPARISON.rstrip(':'))}[*_\s]*[:：][*_]*", re.IGNORECASE)


def parse(answer: str, mode: Mode, *, instruction: str = "", finished: bool = True) -> Annotation | Unusable:
    r"""Take an annotator's answer apart.

    Args:
        answer: What it wrote.
        mode: What it was asked for.
        instruction: What it worked on; marks of quotation around it belong to it.
        finished: Whether the answer came to its own end; one that did not needs its `[END]`.

    Example:
        >>> parse('Detailed Comparison Result: B is vague.\nOptimized Instruction: "Name a \\"big\\" city."', "rewrite")
        Annotation(text='Name a "big" city.', comparison='B is vague.')
        >>> parse("Paris is a city.", "rewrite")
        Unusable(reason='no Optimized Instruction')
    """
    text = drop_thoughts(answer)
    fenced = _FENCE.match(text)
    inner = fenced["inner"].strip() if fenced else text
    if inner.startswith("{"):
        found = _from_json(inner, mode)
        if found is not None:
            return _finished(found, mode, instruction)
    label = _label(mode)
    places = list(label.finditer(inner))
    if not places:
        return Unusable(f"no {LABELS[mode].rstrip(':')}")
    place = places[0]
    head, tail = inner[: place.start()], inner[place.end() :]
    end = _END.search(tail)
    if end:
        tail = tail[: end.start()]
    elif not finished:
        return Unusable("cut off")
    else:
        tail = _TORN_END.sub("", tail)
    started = _COMPARISON.search(head)
    return _finished(Annotation(tail, head[started.end() if started else 0 :]), mode, instruction)


def _label(mode: Mode) -> re.Pattern[str]:
    """Return what finds the label at the start of a line, perhaps in bold or as a heading."""
    name = LABELS[mode].rstrip(":").replace(" ", r"[ _]?")
    return re.compile(rf"^[ \t>*_#]*{name}[*_ \t]*[:：][*_]*", re.IGNORECASE | re.MULTILINE)


def _finished(found: Annotation | Unusable, mode: Mode, instruction: str) -> Annotation | Unusable:
    """Take off what is around the text; an empty improved instruction is none."""
    if isinstance(found, Unusable):
        return found
    text = found.text.strip()
    if marked := _MARKED.match(text):
        text = marked[1].strip()
    text = _unquoted(text, instruction.strip())
    text = parse_addition(text) if mode == "augment" else text
    if mode == "rewrite" and not text:
        return Unusable("empty")
    return Annotation(text, " ".join(found.comparison.strip().strip("*_ ").split()))


def _unquoted(text: str, instruction: str) -> str:
    """Return the string that a literal stands for, out of a fence, unless the instruction is written so too."""
    if text == instruction or text[:1] == instruction[:1] in ("'", '"', "`", "“"):
        return text
    fenced = _FENCE.match(text)
    if fenced and "```" not in fenced["inner"]:
        text = fenced["inner"].strip()
    if len(text) > 1 and text[0] == text[-1] in ("'", '"'):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(value, str):
                return value.strip()
    return parse_rewrite(text)


def _from_json(text: str, mode: Mode) -> Annotation | Unusable | None:
    """Read an answer that is a JSON object, also one that is cut off; None where it has no key of ours."""
    found = _json_string(text, _JSON_KEYS[mode])
    if found is None:
        return None
    if isinstance(found, Unusable):
        return found
    comparison = _json_string(text, _JSON_COMPARISON)
    return Annotation(_END.split(found)[0], comparison if isinstance(comparison, str) else "")


def _json_string(text: str, keys: str) -> str | Unusable | None:
    """Return a key's string; `Unusable` where the object ends within it."""
    place = re.search(rf'"(?:{keys})"\s*:\s*', text, re.IGNORECASE)
    if place is None:
        return None
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text, place.end())
    except ValueError:
        return Unusable("cut off")
    return value if isinstance(value, str) else Unusable("no text in the JSON")
