"""BPO for SFT data: an instruction set in Alpaca's format, its prompts optimized, answered anew (paper, section 4.4).

Promises: as `construct.py`: every row ends once, a run goes on where it was stopped, `reproduced.jsonl` stands in the
input's order. The optimizer's pipeline is the one that an application has, with its policy and guards: a prompt that it
leaves alone is answered as it is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Mode
from bpo_train.data.journal import Entry, Journal, Plan
from bpo_train.data.layouts import digest
from bpo_train.data.llm import Annotator, Backend, Budget, Limits, RowFailedError, Usage, estimated
from bpo_train.data.outputs import SUMMARY, Spent, kind, replacing, summary
from bpo_train.data.rows import read_rows
from bpo_train.data.work import Item, Tally, work_off

REPRODUCED = "reproduced.jsonl"


@dataclass(frozen=True, slots=True)
class Task:
    """A row of the instruction set; `input` may be empty, `output` is the answer that it had."""

    instruction: str
    input: str
    output: str

    @property
    def prompt(self) -> str:
        r"""The instruction with its input below, as a user would send it.

        Example:
            >>> Task("Sum up:", "A long text.", "").prompt
            'Sum up:\nA long text.'
        """
        return f"{self.instruction}\n{self.input}" if self.input.strip() else self.instruction


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A run over an instruction set.

    Args:
        source: A file, folder or hub id in Alpaca's format: `instruction`, and perhaps `input` and `output`.
        annotator: Names the LLM that answers.
        output: The folder that the files go to.
        model: The rewriter's spec.
        mode: The rewriter's mode; None takes its own.
        split: The split of the source; None takes `train`, or the only one.
        temperature: Of the answers.
        max_tokens: Most tokens of an answer.
        budget_tokens: Tokens of the LLM's, in all runs together, at which it stops; None is no limit.
        retry_failed: Ask again about rows that failed before.
        prices: Of a million tokens read, and written; None leaves the cost out.

    Example:
        >>> reproduction = Reproduction("alpaca.json", "openai:gpt-4o-mini", Path("out"))  # doctest: +SKIP
        >>> asyncio.run(reproduction.run(open_backend("openai:gpt-4o-mini")))["kept"]  # doctest: +SKIP
        52002
    """

    source: str
    annotator: str
    output: Path
    model: str = "embedded"
    mode: Mode | None = None
    split: str | None = None
    temperature: float = 0.7
    max_tokens: int = 1024
    budget_tokens: int | None = None
    retry_failed: bool = False
    prices: tuple[float, float] | None = None

    def options(self) -> dict[str, Any]:
        """Return everything that the results depend on besides the rows."""
        names = ("source", "split", "annotator", "model", "mode", "temperature", "max_tokens")
        return {"command": "reproduce", **{name: getattr(self, name) for name in names}}

    def estimate(self) -> Plan:
        """Return how many rows there are and what they will cost; asks nobody, writes nothing."""
        rows, cost = 0, Usage()
        for item in self.items():
            rows += 1
            cost += _expected(item.row.prompt)
        return Plan(rows, rows, cost.prompt_tokens, cost.completion_tokens)

    def items(self) -> Iterator[Item[Task]]:
        """Yield the rows.

        Raises:
            ConfigurationError: A row has no instruction.
        """
        for number, row in enumerate(read_rows(self.source, split=self.split), start=1):
            if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
                msg = f"{self.source}, row {number}: no instruction."
                raise ConfigurationError(msg, hint="Rows have instruction, and perhaps input and output.")
            task = Task(*(str(row.get(name) or "") for name in ("instruction", "input", "output")))
            yield Item(number, str(row.get("id", number)), digest(task.instruction, task.input, task.output), task)

    async def run(
        self,
        backend: Backend,
        limits: Limits | None = None,
        progress: Callable[[Tally], None] = lambda tally: None,
        *,
        optimizer: PromptOptimizer | None = None,
    ) -> dict[str, Any]:
        """Do what is left to do, and write `reproduced.jsonl` and `summary.json`.

        Args:
            backend: Reaches the LLM; closed at the end.
            limits: What it keeps to.
            progress: Called after each row.
            optimizer: Optimizes; None makes one of `model`. One that is given should be what `model` says.

        Returns:
            What `summary.json` holds.

        Raises:
            BPOError: As `Construction.run`; also where the rewriter cannot be loaded.
        """
        limits = limits or Limits()
        started = time.monotonic()
        try:
            with Journal(self.output, self.options()) as journal:
                if journal.plan is None:
                    journal.plan_is(self.estimate())
                optimizer = optimizer or PromptOptimizer(self.model, mode=self.mode, on_error="raise")
                annotator = Annotator(backend, limits)
                ended = await work_off(
                    self.items(),
                    partial(_reproduced, optimizer, annotator),
                    lambda item: _expected(item.row.prompt).tokens,
                    journal,
                    concurrency=limits.concurrency,
                    budget=Budget(self.budget_tokens, journal.usage.tokens),
                    retry_failed=self.retry_failed,
                    progress=progress,
                )
                spent = Spent(time.monotonic() - started, self.prices, stopped="" if ended == "done" else ended)
                return _write(self.output, journal, spent)
        finally:
            await backend.close()


async def _reproduced(optimizer: PromptOptimizer, annotator: Annotator, item: Item[Task]) -> Entry:
    task = item.row
    optimized = (await optimizer.aoptimize(task.prompt)).text
    try:
        found, usage = await annotator.ask([{"role": "user", "content": optimized}])
    except RowFailedError as error:
        return Entry(item.number, item.id, item.digest, "failed", error.reason, usage=error.usage)
    if not found.finished[0]:
        return Entry(item.number, item.id, item.digest, "dropped", "answer cut off", usage=usage)
    result = {
        "instruction": task.instruction,
        "input": task.input,
        "output": task.output,
        "optimized_prompt": optimized,
        "res": found.texts[0].strip(),
    }
    if not result["res"]:
        return Entry(item.number, item.id, item.digest, "dropped", "answer empty", usage=usage)
    return Entry(item.number, item.id, item.digest, "kept", result=result, usage=usage)


def _expected(prompt: str) -> Usage:
    return estimated([{"role": "user", "content": prompt}])


def _write(folder: Path, journal: Journal, spent: Spent) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    with replacing(folder / REPRODUCED) as file:
        for entry in journal.entries():
            if entry.reason:
                reasons[kind(entry.reason)] += 1
            if entry.status == "kept":
                file.write(dump(entry.result) + "\n")
    found = summary(journal, reasons, spent)
    with replacing(folder / SUMMARY) as file:
        file.write(dump(found, indent=2) + "\n")
    return found
