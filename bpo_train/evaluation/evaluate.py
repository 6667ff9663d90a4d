"""Does it help? Prompts go through arms, the LLM answers, a judge compares: one folder, which any command goes on in.

Promises: every prompt of every arm ends once, and what has no answer or no readable verdict is counted; the same
prompts and answers give the same files, whatever the concurrency and however often the run was stopped, but for the
seconds that were measured; what is finished is never asked again, also where prompts, arms or judges were added. The
steps are `respond.py` and `verdicts.py`; figures are `winrate.py`'s, the report is `report.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.rewriter import Rewriter
from bpo_train.data.llm import EXPECTED_ANSWER, Annotator, Backend, Budget, Limits, Usage, estimated
from bpo_train.data.outputs import SUMMARY, replacing
from bpo_train.data.work import Ended, Tally
from bpo_train.evaluation.arms import Arm
from bpo_train.evaluation.findings import Counts, summary
from bpo_train.evaluation.judge import Shown
from bpo_train.evaluation.meta import meta_rewriter
from bpo_train.evaluation.records import ANSWERS, PROMPTS, VERDICTS, Answer, TestPrompt, Verdict, write_records
from bpo_train.evaluation.respond import META_TOKENS, Sent, answered, asking, optimized, unoptimized
from bpo_train.evaluation.steps import Step, Terms, weights
from bpo_train.evaluation.verdicts import Judge, Judged, paired

FOLDERS = ("prompts", "answers", "verdicts")
"""Where each step has its journal, below the output folder."""

NO_BUDGET = Budget(0, spent=1)
"""Lets nothing through, not even what costs no tokens."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A run.

    Args:
        prompts: What users would send; see `testsets.load_testsets`.
        arms: What is done to them; the first is what the others are compared with.
        llm: Names the LLM that answers.
        judge: Compares the answers.
        output: The folder that the files go to.
        model: The rewriter of the arms that name none.
        temperature: Of the answers.
        max_tokens: Most tokens of an answer.
        seed: Of rewrites that are sampled.
        budget_tokens: Tokens of LLM and judge, in all runs together, at which it stops; None is no limit.
        retry_failed: Ask again about what failed before.
        prices: Of a million tokens that the LLM reads, and writes; None leaves its cost out.
        judge_prices: The same of the judge.
        llm_base: Where the LLM is an adapter: the base that it was put on, if that is not the one that it names.

    Raises:
        ConfigurationError: There is nothing to compare.

    Example:
        >>> judge = open_judge("openai:gpt-4o")  # doctest: +SKIP
        >>> prompts, arms = load_testset("vicuna_eval"), parse_arms(["augment"])  # doctest: +SKIP
        >>> evaluation = Evaluation(prompts, arms, "openai:gpt-4o-mini", judge, Path("out"))  # doctest: +SKIP
        >>> asyncio.run(evaluation.run(open_backend("openai:gpt-4o-mini", temperature=0)))["prompts"]  # doctest: +SKIP
        80
    """

    prompts: Sequence[TestPrompt]
    arms: Sequence[Arm]
    llm: str
    judge: Judge
    output: Path
    model: str | Rewriter = "embedded"
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    budget_tokens: int | None = None
    retry_failed: bool = False
    prices: tuple[float, float] | None = None
    judge_prices: tuple[float, float] | None = None
    llm_base: str | None = None

    def __post_init__(self) -> None:
        if not self.prompts or len(self.arms) < 2:
            msg = "An evaluation needs a prompt, and two arms."
            raise ConfigurationError(msg, hint="See load_testsets and parse_arms.")

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0].name

    def estimate(self) -> dict[str, Usage]:
        """Return at most how much each step asks and spends, as if every arm changed every prompt."""
        texts = [prompt.prompt for prompt in self.prompts]
        metas = sum(arm.passes for arm in self.arms if arm.kind == "meta")
        one = sum((estimated(asking(text)) for text in texts), Usage())
        answer = "word " * (4 * EXPECTED_ANSWER // 5)
        pair = sum((self.judge.expected(Shown("", text, answer, answer)) for text in texts), Usage())
        orders = 2 * (len(self.arms) - 1)
        meta = Usage(one.requests, one.prompt_tokens + META_TOKENS * len(texts), one.prompt_tokens + 50 * len(texts))
        return {
            "prompts": _times(meta, metas),
            "answers": _times(one, len(self.arms)),
            "verdicts": _times(pair, orders),
        }

    async def run(
        self,
        backend: Backend,
        limits: Limits | None = None,
        progress: Callable[[Tally], None] = lambda tally: None,
    ) -> dict[str, Any]:
        """Do what is left to do, and write the files.

        Args:
            backend: Reaches the LLM that answers; closed at the end, as is the judge.
            limits: What requests keep to.
            progress: Called after each row of each step.

        Returns:
            What `summary.json` holds.

        Raises:
            ConfigurationError: The folder was begun with another LLM, or LLM, judge or a rewriter are not there.
            EngineError: LLM or judge fail row after row.
            FileError: The folder cannot be written, or another process writes it.
        """
        limits = limits or Limits()
        started = time.monotonic()
        try:
            with ExitStack() as opened:
                steps = {name: opened.enter_context(Step(self.output / name, self._options(name))) for name in FOLDERS}
                spent = sum(step.usage.tokens for step in steps.values())
                terms = Terms(Budget(self.budget_tokens, spent), limits.concurrency, self.retry_failed, progress)
                write_records(self.output / PROMPTS, self.prompts)
                counts = await self._work(Annotator(backend, limits), steps, terms)
                found = summary(
                    counts,
                    {name: step.usage for name, step in steps.items()},
                    seconds=time.monotonic() - started,
                    prices=self.prices,
                    judge_prices=self.judge_prices,
                )
                with replacing(self.output / SUMMARY) as file:
                    file.write(dump(found, indent=2) + "\n")
                return found
        finally:
            await backend.close()
            await self.judge.close()

    def _options(self, step: str) -> dict[str, Any]:
        """Return what all results of a step depend on; what only some do is in their content."""
        if step != "answers":
            return {"command": "evaluate"}
        named = {name: getattr(self, name) for name in ("llm", "temperature", "max_tokens")}
        if self.llm_base is not None:  # the same adapter on another base is another model
            named |= {"llm_base": self.llm_base, "base_weights": weights(f"hf:{self.llm_base}")}
        return {"command": "evaluate", **named, "weights": weights(self.llm)}

    async def _work(self, annotator: Annotator, steps: dict[str, Step], terms: Terms) -> Counts:
        """Go through the steps.

        Behind one that stopped at the budget nothing more is done, but what is known of these rows already is written,
        so that the files never hold answers to other prompts, or verdicts on other answers.
        """
        sent: list[Sent] = []
        stopped = ""
        for arm in self.arms:
            rows, ended = await self._sent(arm, annotator, steps["prompts"], terms)
            sent += rows
            if ended == "budget":
                stopped, terms = ended, replace(terms, budget=NO_BUDGET)
                break
        answers, failed, ended = await answered(sent, annotator, steps["answers"], terms)
        write_records(self.output / ANSWERS, answers)
        if ended == "budget":
            stopped, terms = ended, replace(terms, budget=NO_BUDGET)
        verdicts, judged, ended = await self._judged(answers, steps["verdicts"], terms)
        write_records(self.output / VERDICTS, verdicts)
        return Counts(
            self.llm,
            self.judge.name,
            self.judge.positional,
            self.prompts,
            [arm.name for arm in self.arms],
            sent=sent,
            answers=answers,
            failed=failed,
            verdicts=verdicts,
            judged=judged,
            stopped="budget" if "budget" in (stopped, ended) else "",
        )

    async def _sent(self, arm: Arm, annotator: Annotator, step: Step, terms: Terms) -> tuple[list[Sent], Ended]:
        if arm.kind in ("original", "placebo"):
            return unoptimized(arm, self.prompts), "done"
        meta = meta_rewriter(annotator, self.llm, arm.mode or "rewrite") if arm.kind == "meta" else None
        optimizer = arm.optimizer(meta or self.model, seed=self.seed)
        try:
            return await optimized(arm, self.prompts, optimizer, step, terms, of=arm.model or self.model)
        finally:
            if arm.model or isinstance(self.model, str):  # one that was given stays its owner's
                optimizer.close()

    async def _judged(
        self, answers: Sequence[Answer], step: Step, terms: Terms
    ) -> tuple[list[Verdict], list[Judged], Ended]:
        """Judge each answer against the baseline's, in both orders."""
        by_key = {(answer.arm, answer.id): answer for answer in answers}
        pairs: list[tuple[str, str, str]] = []
        shown: list[Shown] = []
        for arm in self.arms[1:]:
            for prompt in self.prompts:
                own, other = by_key.get((arm.name, prompt.id)), by_key.get((self.baseline, prompt.id))
                if own is None or other is None:
                    continue  # counted as unanswered
                pair = Shown(prompt.id, prompt.prompt, own.answer, other.answer)
                pairs.append((prompt.id, prompt.category, arm.name))
                shown += [pair, pair.turned()]
        found, ended = await self.judge.judge(shown, step, terms)
        return *paired(pairs, found, baseline=self.baseline, judge=self.judge.name), ended


def _times(usage: Usage, number: int) -> Usage:
    return Usage(usage.requests * number, usage.prompt_tokens * number, usage.completion_tokens * number)
