"""Which of an annotator's answers becomes training data: parsed, filtered as in the paper, judged by the guards.

Promises: pure: the same row and answers give the same verdict. Nothing is repaired. A reason's kind stands before its
first colon, so that reasons can be counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from bpo_integrations.joint import join
from bpo_integrations.judging import Judge
from bpo_integrations.language import detect
from bpo_integrations.result import Candidate, Mode
from bpo_integrations.safety import is_unsafe
from bpo_train.data.annotate import LABELS
from bpo_train.data.context import put_back
from bpo_train.data.parse import Unusable, parse
from bpo_train.data.preference import Preference
from bpo_train.data.words import words

SHRINKS = 2.0
GROWS = 6.0
"""A rewrite of fewer than half, or more than six times the words is dropped (the paper's code, after annotation)."""

PROTECTED = "[protected"
"""What gpt-3.5 left in its rewrites, which the paper drops."""

UNREADABLE = "answer"
"""How the reasons of answers begin that do not have the form that was asked for."""

MARKS = ("instruction>", "</context", "_response>")
"""What of the annotator's material must not be in its answer."""


@dataclass(frozen=True, slots=True)
class Part:
    """One mode's half of a row that is kept.

    Args:
        prompt: The prompt, its context put back.
        optimized_prompt: The improved prompt, or the prompt with the addition behind it.
        addition: The addition (`augment` only), perhaps empty.
        comparison: What the annotator said about the responses.
    """

    prompt: str
    optimized_prompt: str
    addition: str | None
    comparison: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Why an answer, or a row, is not kept."""

    reason: str


def best(
    preference: Preference, answers: Sequence[Mapping[str, object]], mode: Mode, *, guards: bool = True, seed: int = 0
) -> Part | Drop:
    """Return the best of a row's answers.

    Of the answers that nothing stands against, the one of median length is taken: annotators err by saying too much and
    by saying too little, and where most of them would add nothing, nothing is added.

    Args:
        preference: The row.
        answers: What the annotator wrote: `text`, and whether it `finished`.
        mode: What it was asked for.
        guards: Whether our guards judge, too.
        seed: Deals the forms in which contexts are put back.

    Returns:
        The part that is kept; or why none is.

    Example:
        >>> row = Preference("1", "Tell me about tea", "Tea is ...", "No.")
        >>> answer = {"text": "Addition: Compare green, black and oolong tea. [END]", "finished": True}
        >>> best(row, [answer], "augment").optimized_prompt
        'Tell me about tea. Compare green, black and oolong tea.'
    """
    found = [
        _verdict(preference, str(answer["text"]), bool(answer["finished"]), mode, guards=guards, seed=seed)
        for answer in answers
    ]
    clean = [part for part in found if isinstance(part, Part)]
    if not clean:  # an answer that could be read says more than one that could not
        drops = [part for part in found if isinstance(part, Drop)]
        return min(drops, key=lambda drop: drop.reason.startswith(UNREADABLE))
    clean.sort(key=lambda part: (len(words(part.optimized_prompt)), part.optimized_prompt))
    return clean[(len(clean) - 1) // 2]


def usable(answers: Sequence[Mapping[str, object]], mode: Mode) -> bool:
    """Whether one of the answers has the form that was asked for."""
    return any(
        not isinstance(parse(str(answer["text"]), mode, finished=bool(answer["finished"])), Unusable)
        for answer in answers
    )


def prepare(modes: Sequence[Mode]) -> None:
    """Load what judging takes a second to load, rules and languages, before the first answer is there."""
    sample = Preference("", "Wie funktioniert eine Pumpe mit zwei Rädern?", "", "")
    for mode in modes:
        answer = {"text": f"{LABELS[mode]} Erkläre die Teile der Pumpe der Reihe nach.", "finished": True}
        best(sample, [answer], mode)
    detect(sample.instruction)


def _verdict(preference: Preference, text: str, finished: bool, mode: Mode, *, guards: bool, seed: int) -> Part | Drop:
    instruction, context = preference.instruction, preference.context
    found = parse(text, mode, instruction=instruction, finished=finished)
    if isinstance(found, Unusable):
        return Drop(f"{UNREADABLE} {found.reason}")
    if any(mark in found.text and mark not in instruction for mark in MARKS):
        return Drop("marks in the answer")
    if PROTECTED in found.text.lower():
        return Drop("paper's filter, protected")
    if mode == "augment":
        prompt, _ = put_back(instruction, instruction, context, id=preference.id, seed=seed)
        part = Part(prompt, join(prompt, found.text), found.text, found.comparison)
        if found.text and part.optimized_prompt == prompt:
            return Drop("nothing can follow the prompt")
    else:
        if context is None and (reason := _length(instruction, found.text)):
            return Drop(reason)
        prompt, optimized = put_back(instruction, found.text, context, id=preference.id, seed=seed)
        part = Part(prompt, optimized, None, found.comparison)
    if guards:
        candidate = Candidate(found.text if mode == "augment" else part.optimized_prompt)
        violation = _judge(mode).violation(prompt, candidate, mode, softens=mode == "rewrite" and is_unsafe(prompt))
        if violation is not None:
            return Drop(f"guard {violation}")
    return part


def _length(instruction: str, rewrite: str) -> str | None:
    before, after = max(1, len(words(instruction))), max(1, len(words(rewrite)))
    if before / after > SHRINKS:
        return f"paper's filter, too short: {before} to {after} words"
    if after / before > GROWS:
        return f"paper's filter, too long: {before} to {after} words"
    return None


@cache
def _judge(mode: Mode) -> Judge:
    return Judge(mode, None, None, ())
