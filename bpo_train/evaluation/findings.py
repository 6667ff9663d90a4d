"""What `summary.json` of an evaluation says: counts of everything that was asked, what it cost, and warnings.

Pure. Win rates are `winrate.py`'s; here is what a reader must know before believing them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bpo_train.data.llm import Usage
from bpo_train.data.outputs import cost
from bpo_train.evaluation.conclusions import POSITION_VERDICTS
from bpo_train.evaluation.records import Answer, TestPrompt, Verdict
from bpo_train.evaluation.respond import Sent
from bpo_train.evaluation.verdicts import Judged

POSITION = 90.0
"""Percent of the verdicts that name one position, from which on the judge is said to go by position."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What a run has done.

    Args:
        llm: Names the LLM.
        judge: Names the judge.
        positional: Whether the order of the answers may matter to it.
        prompts: All prompts.
        arms: All arms' names, the baseline first.
        sent: What was sent, in all arms.
        answers: All answers.
        failed: By arm, prompts that the LLM gave no answer to.
        verdicts: All verdicts.
        judged: What the judge said of each.
        stopped: Why the run stopped before its end; empty where it did not.
    """

    llm: str
    judge: str
    positional: bool
    prompts: Sequence[TestPrompt]
    arms: Sequence[str]
    sent: Sequence[Sent] = ()
    answers: Sequence[Answer] = ()
    failed: Mapping[str, int] = field(default_factory=dict)
    verdicts: Sequence[Verdict] = ()
    judged: Sequence[Judged] = ()
    stopped: str = ""


def summary(
    counts: Counts,
    usage: Mapping[str, Usage],
    *,
    seconds: float,
    prices: tuple[float, float] | None = None,
    judge_prices: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return what `summary.json` holds; requests and tokens are of all runs, seconds of this one."""
    total = sum(usage.values(), Usage())
    found: dict[str, Any] = {
        "llm": counts.llm,
        "judge": counts.judge,
        "baseline": counts.arms[0],
        "prompts": len(counts.prompts),
        "sets": dict(Counter(prompt.set for prompt in counts.prompts)),
        "arms": {arm: _arm(counts, arm) for arm in counts.arms},
        "warnings": warnings(counts),
        "stopped": counts.stopped,
        "steps": {
            name: {
                "requests": spent.requests,
                "prompt_tokens": spent.prompt_tokens,
                "completion_tokens": spent.completion_tokens,
            }
            for name, spent in usage.items()
        },
        "requests": total.requests,
        "tokens": total.tokens,
        "seconds": round(seconds, 1),
    }
    if prices or judge_prices:
        found["cost"] = round(spent_money(usage, prices, judge_prices), 4)
    return found


def spent_money(
    usage: Mapping[str, Usage], prices: tuple[float, float] | None, judge_prices: tuple[float, float] | None
) -> float:
    """Return what steps cost, at prices of a million tokens read, and written; a step without a price costs nothing.

    Example:
        >>> spent_money({"answers": Usage(1, 1_000_000, 0), "verdicts": Usage(1, 0, 500_000)}, (0.15, 0.6), (2.0, 8.0))
        4.15
    """
    return sum(
        cost(spent.prompt_tokens, spent.completion_tokens, at)
        for name, spent in usage.items()
        if (at := judge_prices if name == "verdicts" else prices) is not None
    )


def _arm(counts: Counts, arm: str) -> dict[str, int]:
    sent = [row for row in counts.sent if row.arm == arm]
    answers = [answer for answer in counts.answers if answer.arm == arm]
    found = {
        "changed": sum(row.kind != "kept" for row in sent),
        "not_optimized": 0 if counts.stopped else len(counts.prompts) - len(sent),
        "answers": len(answers),
        "unanswered": counts.failed.get(arm, 0),
        "empty": sum(not answer.answer.strip() for answer in answers),
        "cut_off": sum(not answer.finished for answer in answers),
    }
    if arm == counts.arms[0]:
        return found
    own = [
        (verdict, judged) for verdict, judged in zip(counts.verdicts, counts.judged, strict=True) if verdict.arm == arm
    ]
    return found | {
        "judged": len(own) // 2,
        "equal": sum(not judged.asked for _, judged in own) // 2,
        "unreadable": sum(verdict.verdict is None and not judged.failed for verdict, judged in own),
        "judge_failed": sum(bool(judged.failed) for _, judged in own),
    }


def warnings(counts: Counts) -> list[str]:
    """Return what a reader must know before believing the figures, a sentence each."""
    found = []
    if counts.judge.startswith(f"{counts.llm} ("):
        found.append("The judge is the LLM that answers: such judges favour their own manner.")
    share = position_share(counts.verdicts) if counts.positional else None
    if share is not None and not 100 - POSITION < share < POSITION:
        place = "first" if share > 50 else "second"
        per = share if share > 50 else 100 - share
        found.append(f"The judge names the answer that stands {place} in {per:.0f}% of its verdicts: those are ties.")
    of_arms = {arm: _arm(counts, arm) for arm in counts.arms}
    totals = Counter[str]()
    for row in of_arms.values():
        totals.update(row)
    for name, text in (
        ("not_optimized", "Prompts that could not be optimized: {}; they are left out of their arm."),
        ("unanswered", "Prompts without an answer, because the LLM failed: {}; they are left out of their arm."),
        ("empty", "Empty answers: {}; they are judged as they are."),
        ("cut_off", "Answers cut off at the limit of tokens: {}."),
        ("unreadable", "Verdicts that could not be read: {}; they count as ties."),
        ("judge_failed", "Verdicts that are missing, because the judge failed: {}; they count as ties."),
    ):
        if totals[name]:
            found.append(text.format(totals[name]))
    return found


def position_share(verdicts: Sequence[Verdict]) -> float | None:
    """Return the percentage of verdicts that name the answer shown first; None where too few name any.

    Only verdicts that came from different answers say something; a tie names none.
    """
    named = [verdict.verdict for verdict in verdicts if verdict.verdict in ("A", "B")]
    return 100 * named.count("A") / len(named) if len(named) >= POSITION_VERDICTS else None
