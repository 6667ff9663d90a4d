"""The figures of an evaluation's report, as plain data: what `report.json` holds.

Promises: computed from the rows alone, the same each time; works with what there is, be it no verdict yet, one arm or
one prompt; the figures at equal answer length stand beside the raw ones. What each figure is stands in docs/winrate.md.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bpo_train.data.words import words
from bpo_train.evaluation.breakdown import ANSWER_PARTS, PROMPT_PARTS, answer_part, breakdown, prompt_part
from bpo_train.evaluation.conclusions import WEAKEST, remarks, sentences, standing
from bpo_train.evaluation.costs import cost
from bpo_train.evaluation.examples import examples
from bpo_train.evaluation.kinds import ADDED, added_kind
from bpo_train.evaluation.length import length_controlled
from bpo_train.evaluation.records import (
    ANSWERS,
    BASELINE,
    PROMPTS,
    VERDICTS,
    Answer,
    TestPrompt,
    Verdict,
    read_records,
)
from bpo_train.evaluation.winrate import (
    Outcome,
    Pairing,
    difference,
    mean_delta,
    outcomes,
    pairings,
    paper_win_rate,
    reading,
    win_rate,
)

SCHEMA: Final = 1
"""The version of report.json's form."""

PLACEBO: Final = "placebo"
"""The arm that shows what any added sentence does; the check for CI does not ask it to be good."""

FEWEST: Final = 10
"""Prompts that a category must have to be a part of its own."""

SMALL: Final = f"categories of fewer than {FEWEST}"

Answers = Mapping[str, Answer]
"""By the prompt's id."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The rows of one evaluation.

    Args:
        prompts: All that were asked.
        answers: All that were given, of every arm.
        verdicts: All of every judge.
    """

    prompts: Sequence[TestPrompt]
    answers: Sequence[Answer] = ()
    verdicts: Sequence[Verdict] = ()

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Read the files of a folder; answers and verdicts may be missing.

        Raises:
            ConfigurationError: There are no prompts, or a row is damaged or there twice.
        """
        return cls(
            read_records(folder / PROMPTS, TestPrompt),
            read_records(folder / ANSWERS, Answer) if (folder / ANSWERS).is_file() else (),
            read_records(folder / VERDICTS, Verdict) if (folder / VERDICTS).is_file() else (),
        )


def compute(
    evaluation: Evaluation, *, title: str = "", judge_check: Mapping[str, Any] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return what `report.json` holds; docs/report.md describes its form.

    Args:
        evaluation: The rows. Answers and verdicts on other prompts than its own are left out and counted.
        title: Of the report.
        judge_check: As for `report.write_report`.
        seed: Of the bootstraps and of the paper's orders.
    """
    prompts = {prompt.id: prompt for prompt in evaluation.prompts}
    arms: dict[str, dict[str, Answer]] = {}
    for answer in evaluation.answers:
        if answer.id in prompts:
            arms.setdefault(answer.arm, {})[answer.id] = answer
    judged = pairings(verdict for verdict in evaluation.verdicts if verdict.id in prompts)
    checks = {judge: checked(judge, judge_check) for judge in dict.fromkeys(judge for judge, _, _ in judged)}
    results = [
        _result(pairing, verdicts, prompts, arms, checks[pairing[0]], seed, judged)
        for pairing, verdicts in judged.items()
    ]
    texts = {id_: prompt.prompt for id_, prompt in prompts.items()}
    reference = next((name for name in (*(name for _, _, name in judged), BASELINE) if name in arms), BASELINE)
    ids = [answer.id for answer in evaluation.answers] + [verdict.id for verdict in evaluation.verdicts]
    costs = [{"arm": arm, **cost(list(found.values()), texts, arms.get(reference, {}))} for arm, found in arms.items()]
    return {
        "schema": SCHEMA,
        "title": title,
        "remarks": remarks(costs, results),
        "prompts": _prompts(evaluation.prompts),
        "baseline": reference,
        "arms": costs,
        "judges": [{"judge": judge, **found} for judge, found in checks.items()],
        "results": results,
        "left_out": sum(id_ not in prompts for id_ in ids),
    }


def checked(judge: str, judge_check: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a judge check says of one judge: at least `agreement`, in percent or None, and `weak`.

    Args:
        judge: The judge's name.
        judge_check: One check, for the judge that it names or, without a name, for all; or checks by the judge's name.
    """
    found: Mapping[str, Any] = judge_check or {}
    if "agreement" not in found:
        found = found.get(judge) or {}
    elif found.get("judge") not in (None, "", judge):
        found = {}
    agreement = found.get("agreement")
    weak = agreement is not None and agreement < WEAKEST
    return {**{name: value for name, value in found.items() if name != "judge"}, "agreement": agreement, "weak": weak}


def _prompts(prompts: Sequence[TestPrompt]) -> dict[str, Any]:
    lengths = [len(words(prompt.prompt)) for prompt in prompts]
    return {
        "n": len(prompts),
        "sets": dict(Counter(prompt.set for prompt in prompts)),
        "words_mean": round(statistics.fmean(lengths), 1) if lengths else None,
        "words_median": statistics.median(lengths) if lengths else None,
    }


def _result(
    pairing: Pairing,
    verdicts: Sequence[Verdict],
    prompts: Mapping[str, TestPrompt],
    arms: Mapping[str, Answers],
    check: Mapping[str, Any],
    seed: int,
    judged: Mapping[Pairing, Sequence[Verdict]],
) -> dict[str, Any]:
    judge, arm, baseline = pairing
    own, other = arms.get(arm, {}), arms.get(baseline, {})
    found = outcomes(verdicts)
    rate = win_rate(found, seed=seed)
    lengths = {
        outcome.id: (len(words(own[outcome.id].answer)), len(words(other[outcome.id].answer)))
        for outcome in found
        if outcome.id in own and outcome.id in other
    }
    measured = [outcome for outcome in found if outcome.id in lengths]
    # Equal answers are ties that no judge was asked about: they would make any judge look consistent.
    same = {id_ for id_ in lengths if own[id_].answer == other[id_].answer}
    asked = [verdict for verdict in verdicts if verdict.verdict != "C" or verdict.id not in same]
    orders = Counter(verdict.id for verdict in verdicts)
    result: dict[str, Any] = {
        "judge": judge,
        "arm": arm,
        "baseline": baseline,
        **rate.to_dict(),
        "shown": rate.shown,
        "length_controlled": length_controlled(measured, lengths, seed=seed).to_dict() if measured else None,
        "beyond_placebo": _beyond_placebo(pairing, found, judged, seed),
        "paper": _paper(verdicts, prompts, seed),
        "judge_reading": reading(asked).to_dict(),
        "unjudged": len(prompts) - rate.n,
        "one_order": sum(count == 1 for count in orders.values()),
        "by": {
            name: [part.to_dict() for part in breakdown(of, labels, order, seed=seed)]
            for name, of, labels, order in _parts(found, measured, lengths, prompts, own)
        },
        "hurt": examples(found, -1, prompts, (own, other), verdicts),
        "helped": examples(found, 1, prompts, (own, other), verdicts),
    }
    result["standing"] = standing(result, check["agreement"])
    result["sentences"] = sentences(result, check["agreement"])
    return result


def _beyond_placebo(
    pairing: Pairing, found: Sequence[Outcome], judged: Mapping[Pairing, Sequence[Verdict]], seed: int
) -> dict[str, Any] | None:
    judge, arm, baseline = pairing
    if arm == PLACEBO:
        return None
    placebo = outcomes(judged.get((judge, PLACEBO, baseline), ()))
    apart = difference(found, placebo, seed=seed)
    return None if apart is None else apart.to_dict()


def _paper(verdicts: Sequence[Verdict], prompts: Mapping[str, TestPrompt], seed: int) -> dict[str, Any]:
    """Return the paper's figures: each set by itself, and the mean of their deltas."""
    sets: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        sets.setdefault(prompts[verdict.id].set, []).append(verdict)
    rates = {name: paper_win_rate(of, seed) for name, of in sets.items()}
    return {
        "sets": {name: rate.to_dict() for name, rate in rates.items()},
        "dwr": round(mean_delta(rates.values()), 4),
    }


def _parts(
    found: Sequence[Outcome],
    measured: Sequence[Outcome],
    lengths: Mapping[str, tuple[int, int]],
    prompts: Mapping[str, TestPrompt],
    own: Answers,
) -> list[tuple[str, Sequence[Outcome], dict[str, str], Sequence[str]]]:
    """Return what the win rate is broken down by: the name, the outcomes, the label of each, the labels' order."""
    ids = [outcome.id for outcome in found]
    sent = {id_: own[id_] for id_ in ids if id_ in own}
    added: dict[str, str] = {
        id_: added_kind(prompts[id_].prompt, answer.sent, softened=answer.kind == "softened")
        for id_, answer in sent.items()
    }
    return [
        ("set", found, {id_: prompts[id_].set for id_ in ids}, ()),
        ("category", found, _categories([prompts[id_] for id_ in ids]), ()),
        ("words", found, {id_: prompt_part(len(words(prompts[id_].prompt))) for id_ in ids}, PROMPT_PARTS),
        ("added", [outcome for outcome in found if outcome.id in added], added, ADDED),
        ("answer_words", measured, {id_: answer_part(*pair) for id_, pair in lengths.items()}, ANSWER_PARTS),
    ]


def _categories(prompts: Sequence[TestPrompt]) -> dict[str, str]:
    """Return the category of each prompt; of several sets the set before it, as each has categories of its own."""
    several = len({prompt.set for prompt in prompts}) > 1
    found = {prompt.id: ": ".join(filter(None, (prompt.set * several, prompt.category))) for prompt in prompts}
    sizes = Counter(found.values())
    return {id_: label if sizes[label] >= FEWEST else SMALL for id_, label in found.items()}
