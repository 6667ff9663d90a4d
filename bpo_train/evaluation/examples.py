"""Examples for a report: the prompts that an arm hurt most, and those that it helped most, side by side.

Promises: only prompts that were changed, and whose verdict is clear in every order that was judged; the same choice
each time. Where the judge scores, the widest margins come first; else the categories take turns, so that one does not
fill the list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rapidfuzz.distance import Postfix, Prefix

from bpo_integrations.result import DiffPart, OptimizedPrompt
from bpo_train.evaluation.records import Answer, TestPrompt, Verdict
from bpo_train.evaluation.winrate import Outcome

MOST: Final = 5
"""Examples of a kind in a report."""

LONGEST: Final = 12_000
"""Characters, of prompt and sent prompt together, that are compared word by word: about a second."""


def examples(
    found: Iterable[Outcome],
    value: int,
    prompts: Mapping[str, TestPrompt],
    answers: tuple[Mapping[str, Answer], Mapping[str, Answer]],
    verdicts: Iterable[Verdict],
    *,
    most: int = MOST,
) -> list[dict[str, Any]]:
    """Return examples with all that is to be seen of them.

    Args:
        found: The outcomes of one arm.
        value: 1 for those that it helped, -1 for those that it hurt.
        prompts: By id.
        answers: By id, the arm's and the baseline's.
        verdicts: Of the same arm, for the judge's margins and words.
        most: How many.

    Returns:
        For each `id`, `category`, `prompt`, `sent`, `reason`, `diff` (pairs of `same`, `removed` or `added` and text),
        `answer`, `baseline`, `margin` (mean over the orders; None where the judge does not score), and `judge` (its
        words on the first verdict).
    """
    own, other = answers
    said: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        said[verdict.id].append(verdict)
    margins = {id_: _margin(of) for id_, of in said.items()}
    ids = [
        outcome.id
        for outcome in found
        if outcome.value == value
        and outcome.id in prompts
        and outcome.id in own
        and outcome.id in other
        and own[outcome.id].sent != prompts[outcome.id].prompt
    ]
    turns: dict[str, int] = defaultdict(int)
    keys = {}
    for place, id_ in enumerate(ids):
        category = prompts[id_].category
        keys[id_] = (-value * (margins.get(id_) or 0.0), turns[category], place)
        turns[category] += 1
    return [
        _example(prompts[id_], own[id_], other[id_], margins.get(id_), said[id_])
        for id_ in sorted(ids, key=keys.__getitem__)[:most]
    ]


def _margin(verdicts: Iterable[Verdict]) -> float | None:
    known = [verdict.margin for verdict in verdicts if verdict.margin is not None]
    return sum(known) / len(known) if known else None


def _example(
    prompt: TestPrompt, own: Answer, other: Answer, margin: float | None, said: list[Verdict]
) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "category": prompt.category,
        "prompt": prompt.prompt,
        "sent": own.sent,
        "reason": own.reason,
        "diff": [[part.op, part.text] for part in _diff(prompt.prompt, own.sent) if part.text],
        "answer": own.answer,
        "baseline": other.answer,
        "margin": None if margin is None else round(margin, 4),
        "judge": said[0].raw if said else "",
    }


def _diff(prompt: str, sent: str) -> list[DiffPart]:
    """Return the change; of long texts, whose words take minutes to align, only where it begins and ends."""
    if len(prompt) + len(sent) <= LONGEST:
        return OptimizedPrompt(prompt, sent, "rewritten", "").diff()
    start = int(Prefix.similarity(prompt, sent))
    before, after = prompt[start:], sent[start:]
    end = int(Postfix.similarity(before, after))
    cut = len(before) - end, len(after) - end
    return [
        DiffPart("same", prompt[:start]),
        DiffPart("removed", before[: cut[0]]),
        DiffPart("added", after[: cut[1]]),
        DiffPart("same", before[cut[0] :]),
    ]
