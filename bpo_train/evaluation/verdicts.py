"""Pairs of answers go before a judge, and each pair gets its verdict.

Promises: the same pair in the same order is judged once; equal answers are a tie, and nobody is asked; a verdict that
cannot be read is asked for again, and then is None; one that could not be had, because the judge failed, is None, too,
and counted apart. Nothing is dropped. What the verdicts say together is `winrate.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bpo_train.data.journal import Entry
from bpo_train.data.llm import Annotator, Limits, RowFailedError, Usage, estimated
from bpo_train.data.work import Ended, Item
from bpo_train.evaluation.judge import PARSERS, TRIES, Shown, Style, Which, again, check_style, fingerprint, messages
from bpo_train.evaluation.records import Choice, Order, Verdict
from bpo_train.evaluation.steps import Step, Terms, content, weights

REWARD = "reward:"
"""What the spec of a reward model begins with."""

KEY = "BPO_JUDGE_API_KEY"
"""The environment's key of the judge's server, where it is not the one that other models' servers get."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge said of a pair.

    Args:
        which: The better answer; None where that could not be read, or the judge failed.
        raw: The judge's words.
        margin: For judges that score: score of the first answer minus score of the second.
        failed: Why the judge gave no answer; empty where it did.
        asked: Whether it was asked: nobody is about equal answers.
    """

    which: Which | None
    raw: str = ""
    margin: float | None = None
    failed: str = ""
    asked: bool = True


class Judge(Protocol):
    """Compares answers."""

    @property
    def name(self) -> str:
        """Names the judge, and the way it is asked."""

    @property
    def positional(self) -> bool:
        """Whether the order of the answers may matter to it."""

    async def judge(self, pairs: Sequence[Shown], step: Step, terms: Terms) -> tuple[list[Judged | None], Ended]:
        """Judge pairs, in the order in which each is shown.

        Args:
            pairs: All of them.
            step: Where verdicts are kept.
            terms: What holds for the run.

        Returns:
            What was said of each, None where the budget ended before it; and how it ended.

        Raises:
            BPOError: Every pair will fail: the key is wrong, there is no such model.
        """

    def expected(self, pair: Shown) -> Usage:
        """Return about what a pair costs."""

    async def close(self) -> None:
        """Drop the connections, or the weights."""


ORDERS: tuple[Order, Order] = ("AB", "BA")
"""The orders in which each pair is shown, as it is and turned."""

CHOICES: dict[Which | None, Choice | None] = {"first": "A", "second": "B", "tie": "C", None: None}
"""What a judge said, as verdicts say it."""


def paired(
    pairs: Sequence[tuple[str, str, str]], found: Sequence[Judged | None], *, baseline: str, judge: str
) -> tuple[list[Verdict], list[Judged]]:
    """Return the verdicts on pairs that were judged in both orders, and what the judge said of each.

    A pair that the budget cut in two is left out.

    Args:
        pairs: Of each pair the prompt's id, its category and the arm.
        found: What was said of each pair as it is, the arm's answer first, and then turned: twice as many.
        baseline: What the arms are judged against.
        judge: The judge's name.
    """
    verdicts: list[Verdict] = []
    kept: list[Judged] = []
    for at, (id_, category, arm) in enumerate(pairs):
        both = [one for one in found[2 * at : 2 * at + 2] if one is not None]
        if len(both) < 2:
            continue
        kept += both
        for one, order in zip(both, ORDERS, strict=True):
            margin = -one.margin if one.margin is not None and order == "BA" else one.margin
            said = one.raw or (f"failed: {one.failed}" if one.failed else "")
            verdicts.append(Verdict(id_, order, CHOICES[one.which], category, arm, baseline, judge, margin, said))
    return verdicts, kept


def open_judge(
    spec: str,
    *,
    style: str = "pairwise",
    base_url: str | None = None,
    limits: Limits | None = None,
    max_tokens: int = 1024,
    timeout: float = 120.0,
    tie: float = 0.0,
) -> Judge:
    """Return a judge.

    Args:
        spec: `reward:FOLDER`, a reward model; else as for `backends.open_backend`.
        style: For an LLM: `pairwise` or `ranking`.
        base_url: As for `open_backend`; the server's key may be in `BPO_JUDGE_API_KEY`.
        limits: What the requests keep to.
        max_tokens: Most tokens of what the LLM says.
        timeout: Seconds that a request may take.
        tie: For a reward model: the difference of scores up to which two answers are equally good.

    Raises:
        ConfigurationError: There is no such judge.

    Example:
        >>> open_judge("openai:gpt-4o", base_url="http://localhost:8000/v1").name
        'openai:gpt-4o (pairwise)'
    """
    if spec.startswith(REWARD):
        from bpo_train.evaluation.reward_judge import RewardJudge

        return RewardJudge(Path(spec.removeprefix(REWARD)), tie=tie)
    from bpo_train.data.backends import open_backend

    checked = check_style(style)
    backend = open_backend(
        spec,
        base_url=base_url,
        temperature=0.0,
        max_tokens=max_tokens,
        timeout=timeout,
        key=os.environ.get(KEY),
    )
    return LLMJudge(Annotator(backend, limits), spec, checked, max_tokens=max_tokens)


class LLMJudge:
    """An LLM as a judge, at temperature 0.

    Args:
        annotator: Asks it.
        spec: Names it.
        style: How it is asked.
        max_tokens: Most tokens of what it says, as its backend was told.

    Attributes:
        how: Everything that a verdict depends on, besides the pair.
    """

    positional = True

    def __init__(self, annotator: Annotator, spec: str, style: Style, *, max_tokens: int = 1024) -> None:
        self._annotator = annotator
        self._style: Style = style
        self.how = f"{spec} {style} {fingerprint(style)} {max_tokens} {weights(spec)}".rstrip()
        self.name = f"{spec} ({style})"

    async def judge(self, pairs: Sequence[Shown], step: Step, terms: Terms) -> tuple[list[Judged | None], Ended]:
        """Judge pairs; see `Judge.judge`."""
        items = [content(pair.id, pair, self.how, pair.prompt, pair.first, pair.second) for pair in pairs]
        asked = [item for item in items if item.row.first != item.row.second]
        ended = await step.run(asked, self._judged, lambda item: self.expected(item.row).tokens, terms)
        done = step.results()
        found: list[Judged | None] = []
        for item in items:
            entry = done.get(item.digest)
            if item.row.first == item.row.second:
                found.append(Judged("tie", "equal answers", asked=False))
            elif entry is None:
                found.append(None)
            elif entry.status == "failed":
                found.append(Judged(None, failed=entry.reason))
            else:
                found.append(Judged(entry.result["which"], entry.answers[-1]["text"]))
        return found, ended

    def expected(self, pair: Shown) -> Usage:
        """Return about what a pair costs."""
        return estimated(messages(pair, self._style))

    async def close(self) -> None:
        """Drop the connections."""
        await self._annotator.backend.close()

    async def _judged(self, item: Item[Shown]) -> Entry:
        first = asked = messages(item.row, self._style)
        answers: list[dict[str, Any]] = []
        usage = Usage()
        tries = 2 if getattr(self._annotator.backend, "repeats", False) else TRIES
        for number in range(1, tries + 1):
            try:
                found, spent = await self._annotator.ask(asked)
            except RowFailedError as error:
                usage += error.usage
                return Entry(item.number, item.id, item.digest, "failed", error.reason, {}, tuple(answers), usage)
            usage += spent
            text, finished = found.texts[0], found.finished[0]
            answers.append({"text": text, "finished": finished})
            which = PARSERS[self._style](text) if finished else None
            if which is not None:
                return Entry(item.number, item.id, item.digest, "kept", "", {"which": which}, tuple(answers), usage)
            if number == tries - 1:
                asked = again(first, text, self._style)
        return Entry(item.number, item.id, item.digest, "dropped", "no verdict", {"which": None}, tuple(answers), usage)
