"""What a gate is fitted to: for each prompt that was changed, what is known when it is optimized, and what it gained.

From an evaluation's records, or from shadow logs with outcomes of the user's own. Pure but for reading files; it fits
nothing. A prompt that was kept has nothing to decide, gains 0, and counts in the figures.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.gate import Facts
from bpo_integrations.guards.text import words
from bpo_integrations.prompt_kinds import kind_of
from bpo_integrations.result import Mode, OptimizedPrompt
from bpo_train.data.rows import Row, read_rows
from bpo_train.evaluation.records import (
    ANSWERS,
    BASELINE,
    PROMPTS,
    VERDICTS,
    Answer,
    Choice,
    TestPrompt,
    Verdict,
    read_records,
)
from bpo_train.evaluation.winrate import outcomes, pairings

MODES: dict[str, Mode] = {"augmented": "augment", "rewritten": "rewrite"}
"""The mode that a kind of change belongs to."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt that was changed and judged.

    Args:
        id: The prompt's id.
        facts: What a gate knows of it.
        gain: 1 where the answer to the changed prompt is better, -1 where it is worse, 0 for a tie.
    """

    id: str
    facts: Facts
    gain: float


@dataclass(frozen=True, slots=True)
class Examples:
    """What there is to fit a gate to.

    Args:
        changed: The prompts that were changed and judged.
        kept: How many prompts were sent as they are.
        unjudged: How many were changed and have no verdict; they count nowhere.
        mode: What was done to the prompts; None where nothing was.
        judge: Who judged.
        sets: How many of the prompts are of which set.
    """

    changed: tuple[Example, ...]
    kept: int = 0
    unjudged: int = 0
    mode: Mode | None = None
    judge: str = ""
    sets: Mapping[str, int] = field(default_factory=dict)

    @property
    def prompts(self) -> int:
        """The prompts that figures are about."""
        return len(self.changed) + self.kept


def from_evaluation(folder: Path, *, arm: str = "augment", judge: str | None = None) -> Examples:
    """Return the examples in the output folder of `bpo-train evaluate`.

    Args:
        folder: The folder, with `prompts.jsonl`, `answers.jsonl` and `verdicts.jsonl`.
        arm: The arm that is to be gated.
        judge: The judge whose verdicts count; None is for evaluations with one judge.

    Raises:
        ConfigurationError: A file is missing or damaged, there is no such arm or judge, or several judges.
    """
    return from_records(
        read_records(folder / PROMPTS, TestPrompt),
        read_records(folder / ANSWERS, Answer),
        read_records(folder / VERDICTS, Verdict),
        arm=arm,
        judge=judge,
    )


def from_records(
    prompts: Iterable[TestPrompt],
    answers: Iterable[Answer],
    verdicts: Iterable[Verdict],
    *,
    arm: str = "augment",
    judge: str | None = None,
) -> Examples:
    """Return the examples in an evaluation's records; arguments and errors are those of `from_evaluation`."""
    known = {prompt.id: prompt for prompt in prompts}
    of_arm = [answer for answer in answers if answer.arm == arm]
    if not of_arm:
        msg = f"The evaluation has no arm {arm!r}."
        raise ConfigurationError(msg, hint="Name one that it has with --arm.")
    found = {key[0]: judged for key, judged in pairings(verdicts).items() if key[1:] == (arm, BASELINE) and judged}
    if judge is None and len(found) > 1:
        msg = f"The evaluation has several judges: {', '.join(sorted(found))}."
        raise ConfigurationError(msg, hint="Choose one with --judge.")
    if not found or (judge is not None and judge not in found):
        wanted = f"of the judge {judge!r} " if judge else ""
        msg = f"The evaluation has no verdicts {wanted}on the arm {arm!r}."
        raise ConfigurationError(msg, hint=f"It has those of: {', '.join(sorted(found)) or 'nobody'}.")
    judge = judge if judge is not None else next(iter(found))
    gains = {outcome.id: float(outcome.value) for outcome in outcomes(found[judge])}
    changed, counts, sets, modes = [], Counter[str](), Counter[str](), set[Mode]()
    for answer in of_arm:
        if answer.id not in known:
            msg = f"There is an answer to {answer.id}, which is not among the prompts."
            raise ConfigurationError(msg, hint="Take prompts and answers of the same evaluation.")
        prompt = known[answer.id]
        if answer.sent == prompt.prompt or answer.kind == "softened":  # a gate lets softening through
            counts["kept"] += 1
        elif answer.id not in gains:
            counts["unjudged"] += 1
            continue
        else:
            mode = _mode(answer)
            modes.add(mode)
            changed.append(Example(answer.id, facts(prompt.prompt, answer, mode), gains[answer.id]))
        sets[prompt.set or "without a name"] += 1
    if len(modes) > 1:
        msg = f"The arm {arm!r} holds additions and rewrites, for which one gate cannot decide."
        raise ConfigurationError(msg, hint="Evaluate each mode as an arm of its own.")
    return Examples(
        tuple(changed), counts["kept"], counts["unjudged"], next(iter(modes), None), judge, dict(sorted(sets.items()))
    )


def facts(prompt: str, answer: Answer, mode: Mode) -> Facts:
    """Return what a gate would have known when the prompt was optimized."""
    before = len(words(prompt))
    added = len(words(answer.addition)) if mode == "augment" else max(0, len(words(answer.sent)) - before)
    return Facts(kind_of(prompt), before, added, answer.p_empty, answer.logprob)


def _mode(answer: Answer) -> Mode:
    if answer.kind not in MODES:
        msg = f"The prompt {answer.id} was changed in the way {answer.kind!r}, for which there is no gate."
        raise ConfigurationError(msg, hint="Calibrate an arm whose prompts an optimizer changed.")
    return MODES[answer.kind]


def together(parts: Sequence[Examples]) -> Examples:
    """Return several sources as one.

    Raises:
        ConfigurationError: They are of several modes.
    """
    modes = {part.mode for part in parts if part.mode is not None}
    if len(modes) > 1:
        msg = "Some of these were made by adding, some by rewriting."
        raise ConfigurationError(msg, hint="Calibrate each mode by itself.")
    sets: Counter[str] = Counter()
    for part in parts:
        sets.update(part.sets)
    return Examples(
        tuple(example for part in parts for example in part.changed),
        sum(part.kept for part in parts),
        sum(part.unjudged for part in parts),
        next(iter(modes), None),
        ", ".join(dict.fromkeys(part.judge for part in parts if part.judge)),
        dict(sorted(sets.items())),
    )


# -- shadow logs -------------------------------------------------------------------------------------------------------

SHADOW = "shadow"
"""What shadow logs are called as a test set and as an arm, and their outcomes as a judge."""

CHOICES: dict[int, tuple[Choice, Choice]] = {1: ("A", "B"), 0: ("C", "C"), -1: ("B", "A")}
"""An outcome as the verdicts in the orders AB and BA."""

MADE_HARMLESS = "made harmless"
"""What the reason of a softened prompt ends in; its kind is `kept`, as everything that was only tried."""


def from_shadow(path: Path) -> Examples:
    """Return the examples in a log of `PromptOptimizer(shadow=True)`: one JSON object a line.

    Each line is what `OptimizedPrompt.to_dict()` returned, or only its fields `original` and `proposal` (with
    `p_empty`, `logprob` and `addition` where they are known), and `outcome`: 1 where the answer to the proposal was
    better, -1 where it was worse, 0 where neither. Lines without an outcome are counted as unjudged.

    Args:
        path: The log (.jsonl, .csv or .parquet).

    Raises:
        ConfigurationError: There is no such file, a line is no such object, or none has an outcome.

    Example:
        >>> from pathlib import Path
        >>> line = '{"original": "Tell me about tea", "proposal": "Tell me about tea. Name its kinds.", "outcome": 1}'
        >>> _ = Path("shadow.jsonl").write_text(line)
        >>> from_shadow(Path("shadow.jsonl")).changed[0].gain
        1.0
    """
    prompts, answers, verdicts = shadow_records(read_rows(path), where=str(path))
    if not verdicts:
        msg = f"No line of {path} has an outcome."
        raise ConfigurationError(msg, hint="Add outcome: 1, 0 or -1, from your own A/B test or from thumbs.")
    return replace(from_records(prompts, answers, verdicts, arm=SHADOW), judge="outcomes of shadow logs")


def shadow_records(
    rows: Iterable[Row], *, where: str = "the log"
) -> tuple[list[TestPrompt], list[Answer], list[Verdict]]:
    """Return shadow logs as the records of an evaluation, whose verdicts are the outcomes, in both orders.

    Args:
        rows: As `from_shadow` describes them.
        where: What errors call the log.

    Raises:
        ConfigurationError: A row is not of this form.
    """
    prompts, answers, verdicts = [], [], []
    for number, row in enumerate(rows, start=1):
        original, proposal = row.get("original"), row.get("proposal")
        if not isinstance(original, str) or not isinstance(proposal, str):
            msg = f"{where}, row {number}: original and proposal must be texts."
            raise ConfigurationError(msg, hint="Log OptimizedPrompt.to_dict() of an optimizer with shadow=True.")
        id_ = f"{SHADOW}:{row.get('id') or number}"
        candidate = _candidate(row, proposal)
        changed = "augmented" if proposal.startswith(original) else "rewritten"
        if str(row.get("reason") or "").endswith(MADE_HARMLESS):
            changed = "softened"
        prompts.append(TestPrompt(id_, original, set=SHADOW))
        answers.append(
            Answer(
                id_,
                SHADOW,
                sent=proposal,
                answer="",
                kind="kept" if proposal == original else changed,
                addition=str(row.get("addition") or OptimizedPrompt(original, proposal, "augmented", "").addition),
                p_empty=_figure(candidate, "p_empty", f"{where}, row {number}"),
                logprob=_figure(candidate, "logprob", f"{where}, row {number}"),
            )
        )
        outcome = _outcome(row.get("outcome"), f"{where}, row {number}")
        if outcome is not None:
            choice, other = CHOICES[outcome]
            verdicts.append(Verdict(id_, "AB", choice, arm=SHADOW, judge=SHADOW))
            verdicts.append(Verdict(id_, "BA", other, arm=SHADOW, judge=SHADOW))
    return prompts, answers, verdicts


def _candidate(row: Row, proposal: str) -> Mapping[str, Any]:
    """Return the candidate that was used, or the row itself where it holds the figures."""
    candidates = row.get("candidates")
    if isinstance(candidates, str):  # a cell of CSV
        try:
            candidates = json.loads(candidates)
        except ValueError:
            candidates = None
    if not isinstance(candidates, (list, tuple)):
        return row
    used = (
        each
        for each in candidates
        if isinstance(each, dict) and not each.get("violation") and each.get("text") and proposal.endswith(each["text"])
    )
    return next(used, row)


def _figure(candidate: Mapping[str, Any], name: str, where: str) -> float | None:
    value = candidate.get(name)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        msg = f"{where}: {name} is {value!r}."
        raise ConfigurationError(msg, hint="Give a number, or leave it out.") from error


def _outcome(value: Any, where: str) -> int | None:
    if value is None or value == "":
        return None
    text = str(value).strip()
    if isinstance(value, bool) or text not in ("1", "+1", "1.0", "0", "0.0", "-1", "-1.0"):
        msg = f"{where}: outcome is {value!r}."
        raise ConfigurationError(msg, hint="Give 1 (the proposal was better), 0 or -1, or leave it out.")
    return int(float(text))
