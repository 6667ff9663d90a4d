"""Preferences become training data for a rewriter: filter, annotate, parse, judge, write (paper, section 3.2).

Promises: every row of the input ends once, as kept, dropped (with a reason) or failed (with a reason); a run that was
stopped, in whatever way, goes on where it was; the same rows and answers give the same files, byte for byte, whatever
the concurrency and however often it was stopped. The steps are other modules'; this one puts them in a row.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.result import Mode
from bpo_train.data import annotate
from bpo_train.data.filters import Filters
from bpo_train.data.journal import Entry, Journal, Plan, Status
from bpo_train.data.judge import Drop, Part, best, prepare, usable
from bpo_train.data.layouts import digest
from bpo_train.data.llm import Annotator, Backend, Budget, Limits, RowFailedError, Usage, estimated
from bpo_train.data.outputs import Shares, Spent, write_outputs
from bpo_train.data.preference import Preference
from bpo_train.data.sources import Source, load
from bpo_train.data.work import Item, Tally, work_off

FORM_TRIES = 2
"""How often a row is asked whose answers do not have the form that was asked for."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the results depend on besides the rows: two runs of one recipe may share an output folder.

    Args:
        inputs: Files, folders or hub ids (see `sources.load`).
        annotator: Names the model.
        mode: What is asked for: what to add (`augment`), a rewrite, or both.
        kind: The layout of the inputs; None recognises it.
        split: The split of the inputs; None takes `train`, or the only one.
        filters: What leaves rows out before anything is asked.
        candidates: Answers a row; the best is kept.
        feedback: Whether the annotator sees the responses (without: the paper's ablation).
        guards: Whether our guards judge what comes back.
        temperature: The paper's is 0.9.
        max_tokens: Most tokens of an answer.
        seed: Deals the forms in which contexts are put back.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    inputs: tuple[str, ...]
    annotator: str
    mode: Literal["augment", "rewrite", "both"] = "augment"
    kind: str | None = None
    split: str | None = None
    filters: Filters = field(default_factory=Filters)
    candidates: int = 1
    feedback: bool = True
    guards: bool = True
    temperature: float = 0.9
    max_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for ok, what in (
            (bool(self.inputs), "there must be an input"),
            (self.mode in ("augment", "rewrite", "both"), "mode must be augment, rewrite or both"),
            (self.candidates >= 1, "candidates must be 1 or more"),
            (self.temperature >= 0, "temperature must be 0 or more"),
            (self.max_tokens >= 1, "max_tokens must be 1 or more"),
        ):
            if not ok:
                msg = f"Impossible recipe: {what}."
                raise ConfigurationError(msg, hint="Correct it, or leave it out.")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What is asked for, in the order in which it is asked."""
        return ("rewrite", "augment") if self.mode == "both" else (self.mode,)

    def options(self) -> dict[str, Any]:
        """Return the recipe as the journal keeps it, with a digest of the words in which is asked."""
        filters = {**asdict(self.filters), "decontaminate": [str(path) for path in self.filters.decontaminate]}
        return {"command": "construct", **asdict(self), "filters": filters, "words": annotate.fingerprint()}


@dataclass(frozen=True, slots=True)
class Construction:
    """A run of a recipe.

    Args:
        recipe: What is done.
        output: The folder that the files go to.
        shares: How many of the rows are for validation and test.
        budget_tokens: Tokens, read and written in all runs together, at which it stops; None is no limit.
        retry_failed: Ask again about rows that failed before.
        prices: Of a million tokens read, and written, for the cost in the summary; None leaves it out.

    Example:
        >>> recipe = Recipe(("preferences.jsonl",), "openai:gpt-4o-mini")  # doctest: +SKIP
        >>> backend = open_backend(recipe.annotator)  # doctest: +SKIP
        >>> asyncio.run(Construction(recipe, Path("data")).run(backend))["kept"]  # doctest: +SKIP
        1034
    """

    recipe: Recipe
    output: Path
    shares: Shares = field(default_factory=Shares)
    budget_tokens: int | None = None
    retry_failed: bool = False
    prices: tuple[float, float] | None = None

    def estimate(self) -> Plan:
        """Return what the filters leave and what it will cost; asks nobody, writes nothing."""
        return self._plan(self.source(), lambda number, row, reason: None)

    async def run(
        self, backend: Backend, limits: Limits | None = None, progress: Callable[[Tally], None] = lambda tally: None
    ) -> dict[str, Any]:
        """Do what is left to do, and write the outputs.

        Args:
            backend: Reaches the annotator; closed at the end.
            limits: What it keeps to.
            progress: Called after each row that is asked about.

        Returns:
            What `summary.json` holds.

        Raises:
            ConfigurationError: The recipe is not that of the output folder, a source cannot be read, or the annotator
                refuses every request.
            EngineError: The annotator fails row after row.
            FileError: The output cannot be written, or another process writes it.
        """
        limits = limits or Limits()
        started = time.monotonic()
        source = self.source()
        try:
            with Journal(self.output, self.recipe.options()) as journal:
                if journal.plan is None:
                    journal.plan_is(self._plan(source, _drop_into(journal)))
                if self.recipe.guards:
                    prepare(self.recipe.modes)
                annotator, turn = Annotator(backend, limits), asyncio.Lock()
                ended = await work_off(
                    _items(source),
                    lambda item: self._annotated(annotator, turn, item),
                    lambda item: self._expected(item.row).tokens,
                    journal,
                    concurrency=limits.concurrency,
                    budget=Budget(self.budget_tokens, journal.usage.tokens),
                    retry_failed=self.retry_failed,
                    progress=progress,
                )
                spent = Spent(time.monotonic() - started, self.prices, stopped="" if ended == "done" else ended)
                return write_outputs(self.output, journal, self.recipe.modes, self.shares, spent)
        finally:
            await backend.close()

    def source(self) -> Source:
        """Return the rows of all inputs."""
        return load(*self.recipe.inputs, kind=self.recipe.kind, split=self.recipe.split)

    def _plan(self, source: Source, dropped: Callable[[int, Preference, str], None]) -> Plan:
        rows = asked = 0
        cost = Usage()
        for rows, (row, reason) in enumerate(self.recipe.filters.apply(source), start=1):
            if reason is None:
                asked += 1
                cost += self._expected(row)
            else:
                dropped(rows, row, reason)
        return Plan(rows, asked, cost.prompt_tokens, cost.completion_tokens, dict(source.skips))

    def _expected(self, row: Preference) -> Usage:
        recipe = self.recipe
        requests = (annotate.prompt(row, mode, feedback=recipe.feedback) for mode in recipe.modes)
        return sum((estimated(messages, recipe.candidates) for messages in requests), Usage())

    async def _annotated(self, annotator: Annotator, turn: asyncio.Lock, item: Item[Preference]) -> Entry:
        """Ask about a row and judge the answers."""
        recipe, usage = self.recipe, Usage()
        answers: list[dict[str, Any]] = []
        for mode in recipe.modes:
            messages = annotate.prompt(item.row, mode, feedback=recipe.feedback)
            for _ in range(FORM_TRIES):
                try:
                    found, spent = await annotator.ask(messages, recipe.candidates)
                except RowFailedError as error:
                    usage += error.usage
                    return _entry(item, "failed", error.reason, {}, answers, usage)
                usage += spent
                new = [
                    {"mode": mode, "text": text, "finished": finished}
                    for text, finished in zip(found.texts, found.finished, strict=True)
                ]
                answers += new
                if usable(new, mode):
                    break
        async with turn:  # one at a time, and after all that the network has: judging takes longer than asking
            await asyncio.sleep(0)
            status, reason, result = verdict(item.row, answers, recipe)
        return _entry(item, status, reason, result, answers, usage)


def verdict(row: Preference, answers: list[dict[str, Any]], recipe: Recipe) -> tuple[Status, str, dict[str, Any]]:
    """Return what becomes of a row: status, reason, and for one that is kept its line of `pairs.jsonl`.

    In mode `both` a row is kept when one of the two is; the line lacks the other, and the reason says why.
    """
    parts: dict[Mode, Part] = {}
    drops: dict[Mode, str] = {}
    for mode in recipe.modes:
        of_mode = [answer for answer in answers if answer["mode"] == mode]
        found = best(row, of_mode, mode, guards=recipe.guards, seed=recipe.seed)
        if isinstance(found, Drop):
            drops[mode] = found.reason
        else:
            parts[mode] = found
    if not parts:
        return "dropped", next(iter(drops.values())), {}
    rewrite, augment = parts.get("rewrite"), parts.get("augment")
    part = rewrite or augment
    assert part is not None
    result: dict[str, Any] = {"id": row.id, "prompt": part.prompt}
    if rewrite or recipe.mode == "augment":
        result["optimized_prompt"] = part.optimized_prompt
    if augment:
        result["addition"] = augment.addition
    result |= {"comparison": part.comparison, "source": row.source, "licence": row.licence}
    reason = "; ".join(f"without {mode}, {reason}" for mode, reason in drops.items())
    return "kept", reason, result


def _entry(
    item: Item[Preference], status: Status, reason: str, result: dict[str, Any], answers: list[Any], usage: Usage
) -> Entry:
    return Entry(item.number, item.id, item.digest, status, reason, result, tuple(answers), usage)


def _items(source: Source) -> Iterator[Item[Preference]]:
    return (Item(number, row.id, _digest(row), row) for number, row in enumerate(source, start=1))


def _digest(row: Preference) -> str:
    return digest(row.id, row.instruction, row.context, row.good_res, row.bad_res)


def _drop_into(journal: Journal) -> Callable[[int, Preference, str], None]:
    """Return what journals the rows that filters drop; those of an earlier run, stopped meanwhile, are there."""

    def drop(number: int, row: Preference, reason: str) -> None:
        if journal.find(number) is None:
            journal.append(Entry(number, row.id, _digest(row), "dropped", reason))

    return drop
