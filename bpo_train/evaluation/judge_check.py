"""Does a judge agree with people? It compares pairs of LLMBar, of which people have said which answer is better.

Promises: the judge is asked exactly as in an evaluation (`verdicts.py`), each pair in both orders, journalled and
within a budget; the same verdicts give the same figures, however often the run was stopped. The figures are
`judge_figures.py`'s. It does not say that a judge who agrees with people here does so on your prompts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_train.data.llm import Budget, Limits, Usage
from bpo_train.data.outputs import cost, replacing
from bpo_train.data.rows import Row, read_rows
from bpo_train.data.sample import Sampler
from bpo_train.data.work import Tally
from bpo_train.evaluation.judge import Shown
from bpo_train.evaluation.judge_figures import OTHER, PREFERRED, Pair, figures
from bpo_train.evaluation.records import VERDICTS, write_records
from bpo_train.evaluation.steps import Step, Terms
from bpo_train.evaluation.testsets import data_folder, stem
from bpo_train.evaluation.verdicts import Judge, paired

CHECK = "judge_check.json"
"""What is written into the output folder, and what reports read."""


def load_pairs(folder: str | Path | None = None) -> list[Pair]:
    """Return the pairs of LLMBar (Zeng et al., ICLR 2024), or others of the same form.

    Args:
        folder: A folder of files with rows {input, output_1, output_2, label}, where label (1 or 2) names the output
            that people prefer; each file is a subset. Or one such file. None is `llmbar` in the data folder.

    Raises:
        ConfigurationError: There is nothing, a row is not of this form, or two files have the same name.

    Example:
        >>> from pathlib import Path
        >>> row = '{"input": "Name a prime.", "output_1": "7", "output_2": "8", "label": 1}'
        >>> _ = Path("mine.jsonl").write_text(row)
        >>> load_pairs("mine.jsonl")[0].preferred
        '7'
    """
    path = Path(folder) if folder is not None else data_folder() / "llmbar"
    files = sorted(file for file in path.glob("*.json*") if file.is_file()) if path.is_dir() else [path]
    subsets = [stem(file) for file in files]
    if twice := next((name for name in subsets if subsets.count(name) > 1), None):
        msg = f"Two files in {path} are the subset {twice}."
        raise ConfigurationError(msg, hint="Rename or remove one.")
    found = [_pair(row, file, number) for file in files for number, row in enumerate(read_rows(file), start=1)]
    if not found:
        msg = f"There are no pairs in {path}."
        raise ConfigurationError(msg, hint="Give the folder llmbar of the data with --data, or set BPO_DATA_DIR.")
    return found


def sampled(pairs: Sequence[Pair], limit: int | None, *, seed: int = 0) -> list[Pair]:
    """Return at most `limit` pairs, each subset by its share, in their order."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    sampler = Sampler(limit, seed=seed)
    for number, pair in enumerate(pairs):
        sampler.offer(number, id=pair.id, stratum=pair.subset)
    drawn = sampler.drawn()
    return [pair for number, pair in enumerate(pairs) if number in drawn]


@dataclass(frozen=True, slots=True)
class JudgeCheck:
    """A run.

    Args:
        pairs: What the judge compares; see `load_pairs`.
        judge: The judge; closed at the end.
        output: The folder that the files go to.
        style: How the judge is asked, as `judge_check.json` says: `pairwise`, `ranking` or `reward`.
        budget_tokens: Tokens, in all runs together, at which it stops; None is no limit.
        retry_failed: Ask again about what failed before.
        prices: Of a million tokens that the judge reads, and writes; None leaves the cost out.

    Example:
        >>> judge = open_judge("openai:gpt-4o")  # doctest: +SKIP
        >>> asyncio.run(JudgeCheck(load_pairs(), judge, Path("check")).run())["agreement"]  # doctest: +SKIP
        81.5
    """

    pairs: Sequence[Pair]
    judge: Judge
    output: Path
    style: str = "pairwise"
    budget_tokens: int | None = None
    retry_failed: bool = False
    prices: tuple[float, float] | None = None

    def estimate(self) -> Usage:
        """Return about what it asks and spends."""
        shown = (Shown(pair.id, pair.prompt, pair.preferred, pair.other) for pair in self.pairs)
        once = sum((self.judge.expected(one) for one in shown), Usage())
        return once + once

    async def run(
        self, limits: Limits | None = None, progress: Callable[[Tally], None] = lambda tally: None
    ) -> dict[str, Any]:
        """Do what is left to do, and write `verdicts.jsonl` and `judge_check.json`.

        Args:
            limits: What requests keep to.
            progress: Called after each verdict.

        Returns:
            What `judge_check.json` holds.

        Raises:
            ConfigurationError: The folder was begun for something else, or the judge refuses every request.
            EngineError: The judge fails row after row.
            FileError: The folder cannot be written, or another process writes it.
        """
        limits = limits or Limits()
        started = time.monotonic()
        try:
            with Step(self.output / "verdicts", {"command": "judge-check"}) as step:
                budget = Budget(self.budget_tokens, step.usage.tokens)
                terms = Terms(budget, limits.concurrency, self.retry_failed, progress)
                shown = [
                    one
                    for pair in self.pairs
                    for first in (Shown(pair.id, pair.prompt, pair.preferred, pair.other),)
                    for one in (first, first.turned())
                ]
                found, ended = await self.judge.judge(shown, step, terms)
                pairs = [(pair.id, pair.subset, PREFERRED) for pair in self.pairs]
                verdicts, judged = paired(pairs, found, baseline=OTHER, judge=self.judge.name)
                write_records(self.output / VERDICTS, verdicts)
                checked = {
                    "judge": self.judge.name,
                    "style": self.style,
                    **figures(self.pairs, verdicts, positional=self.judge.positional),
                    "judge_failed": sum(bool(one.failed) for one in judged),
                    "left": len(self.pairs) - len(verdicts) // 2,
                    "stopped": "budget" if ended == "budget" else "",
                    **self._spent(step.usage, time.monotonic() - started),
                }
                with replacing(self.output / CHECK) as file:
                    file.write(dump(checked, indent=2) + "\n")
                return checked
        finally:
            await self.judge.close()

    def _spent(self, usage: Usage, seconds: float) -> dict[str, Any]:
        found = {"requests": usage.requests, "tokens": usage.tokens, "seconds": round(seconds, 1)}
        if self.prices is None:
            return found
        return {**found, "cost": round(cost(usage.prompt_tokens, usage.completion_tokens, self.prices), 4)}


def read_check(path: Path) -> dict[str, Any]:
    """Return what a check has written.

    Args:
        path: Its output folder, or the file `judge_check.json`.

    Raises:
        ConfigurationError: There is no such file, or it is none.
    """
    file = path / CHECK if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not {"judge", "agreement"} <= set(found):
            msg = "it names no judge and no agreement"
            raise ValueError(msg)
        if not isinstance(found["agreement"], (int, float, type(None))):
            msg = f"agreement is {found['agreement']!r}"
            raise ValueError(msg)
    except (OSError, ValueError) as error:
        msg = f"{file} is no judge check: {getattr(error, 'strerror', None) or error}."
        raise ConfigurationError(msg, hint="Give the output folder of bpo-train judge-check.") from error
    return found


def _pair(row: Row, file: Path, number: int) -> Pair:
    texts = [row.get(name) for name in ("input", "output_1", "output_2")]
    label = str(row.get("label")).strip()
    if not all(isinstance(text, str) for text in texts) or label not in ("1", "2"):
        msg = f"{file}, row {number}: no pair with a label."
        raise ConfigurationError(msg, hint="A row has the texts input, output_1 and output_2, and label: 1 or 2.")
    prompt, one, two = (str(text) for text in texts)
    better, worse = (one, two) if label == "1" else (two, one)
    subset = stem(file)
    return Pair(f"{subset}:{number}", subset, prompt, better, worse)
