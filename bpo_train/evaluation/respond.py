"""Prompts go through an arm, and the LLM answers what comes out.

Promises: every prompt of every arm ends with an answer, or is counted as unanswered; the LLM is asked about each text
once, so that a prompt which an arm left as it is has the original arm's answer and costs nothing; an empty answer is an
answer. Prompts are optimized in fixed blocks, so that a seeded sample does not depend on how often a run was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bpo_integrations import __version__
from bpo_integrations.engines.remote import estimate_tokens
from bpo_integrations.errors import ConfigurationError, OptimizationError, in_a_line
from bpo_integrations.joint import join
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import OptimizedPrompt
from bpo_integrations.rewriter import Rewriter
from bpo_integrations.templates import Message
from bpo_train.data.journal import Entry, Status
from bpo_train.data.llm import Annotator, RowFailedError, Usage, estimated
from bpo_train.data.work import Ended, Item
from bpo_train.evaluation.arms import PLACEBO, Arm
from bpo_train.evaluation.meta import counting
from bpo_train.evaluation.records import Answer, TestPrompt
from bpo_train.evaluation.steps import Step, Terms, content, weights

BLOCK = 32
"""Prompts that an engine which is faster with batches gets in one call."""

META_TOKENS = 1000
"""Tokens that the meta-prompt has around the prompt, for estimates."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What an arm made of a prompt; the fields are those of `Answer`."""

    id: str
    arm: str
    sent: str
    kind: str = "kept"
    reason: str = ""
    addition: str = ""
    optimizer_seconds: float = 0.0
    p_empty: float | None = None
    logprob: float | None = None


def unoptimized(arm: Arm, prompts: Iterable[TestPrompt]) -> list[Sent]:
    """Send prompts through an arm that needs no rewriter: `original` or `placebo`.

    Example:
        >>> unoptimized(Arm.parse("placebo"), [TestPrompt("1", "Tell me about tea")])[0].sent
        'Tell me about tea. Please give a helpful, accurate and complete answer.'
    """
    found = []
    for prompt in prompts:
        text = join(prompt.prompt, PLACEBO) if arm.kind == "placebo" else prompt.prompt
        if text != prompt.prompt:
            found.append(Sent(prompt.id, arm.name, text, "placebo", "the same sentence for all", PLACEBO))
        else:
            reason = "joint: nothing can follow this prompt" if arm.kind == "placebo" else ""
            found.append(Sent(prompt.id, arm.name, text, "kept", reason))
    return found


async def optimized(
    arm: Arm,
    prompts: Sequence[TestPrompt],
    optimizer: PromptOptimizer,
    step: Step,
    terms: Terms,
    *,
    of: str | Rewriter = "",
) -> tuple[list[Sent], Ended]:
    """Send prompts through an arm that has a rewriter.

    Args:
        arm: Which.
        prompts: All prompts of the evaluation.
        optimizer: The arm's.
        step: Where results are kept.
        terms: What holds for the run; its concurrency counts where each prompt is a request.
        of: The rewriter's spec, where it has one: weights that changed in a folder are other weights.

    Returns:
        What is sent, without the prompts that failed, and how it ended.

    Raises:
        BPOError: As `work_off` does; a rewriter that is configured wrongly stops the run.
    """
    batches = optimizer.rewriter.engine.traits.coalesce
    size = BLOCK if batches else 1
    items = list(_blocks(arm, prompts, optimizer, size, weights(of) if isinstance(of, str) else ""))
    own = terms if not batches else Terms(terms.budget, 1, terms.retry_failed, terms.progress)

    async def work(item: Item[tuple[str, ...]]) -> Entry:
        with counting() as spent:
            results = await optimizer.atry_batch(item.row)
        return _optimized(item, results, sum(spent, Usage()))

    def expected(item: Item[tuple[str, ...]]) -> int:
        once = sum(2 * estimate_tokens(text) + META_TOKENS for text in item.row)
        return arm.passes * once if arm.kind == "meta" else 0

    ended = await step.run(items, work, expected, own)
    done = step.results()
    sent: list[Sent] = []
    for item, block in zip(items, _batched(prompts, size), strict=True):
        rows = done[item.digest].result["prompts"] if item.digest in done else [None] * len(block)
        sent += [Sent(prompt.id, arm.name, **row) for prompt, row in zip(block, rows, strict=True) if row]
    return sent, ended


def _blocks(
    arm: Arm, prompts: Sequence[TestPrompt], optimizer: PromptOptimizer, size: int, weights: str
) -> Iterator[Item[tuple[str, ...]]]:
    how = json.dumps(
        arm.settings() | {"decoding": repr(optimizer.decoding), "gate": repr(optimizer.gate), "weights": weights}
    )
    for block in _batched(prompts, size):
        texts = tuple(prompt.prompt for prompt in block)
        yield content(block[0].id, texts, arm.kind, how, optimizer.rewriter.id, __version__, *texts)


def _batched(prompts: Sequence[TestPrompt], size: int) -> Iterator[Sequence[TestPrompt]]:
    return (prompts[start : start + size] for start in range(0, len(prompts), size))


def _optimized(
    item: Item[tuple[str, ...]], results: Sequence[OptimizedPrompt | OptimizationError], usage: Usage
) -> Entry:
    """Return what becomes of a block; one that holds a failure counts as failed, and keeps what did not."""
    rows: list[dict[str, Any] | None] = []
    reason = ""
    for result in results:
        if isinstance(result, OptimizedPrompt):
            rows.append(_row(result))
            continue
        cause = result.__cause__
        if isinstance(cause, ConfigurationError):  # it concerns all prompts
            raise cause
        rows.append(None)
        reason = in_a_line(cause if isinstance(cause, Exception) else result)
    status: Status = "failed" if reason else "kept"
    return Entry(item.number, item.id, item.digest, status, reason, {"prompts": rows}, usage=usage)


def _row(result: OptimizedPrompt) -> dict[str, Any]:
    first = result.candidates[0] if result.candidates else None
    added = [candidate for candidate in result.candidates if candidate.violation is None and result.changed]
    chosen = next((candidate for candidate in added if candidate.text in (result.text, result.addition)), first)
    return {
        "sent": result.text,
        "kind": result.kind,
        "reason": result.reason,
        "addition": result.addition if result.kind == "augmented" else "",
        "optimizer_seconds": round(result.seconds, 4),
        "p_empty": None if first is None else first.p_empty,
        "logprob": None if chosen is None else chosen.logprob,
    }


async def answered(
    sent: Sequence[Sent], annotator: Annotator, step: Step, terms: Terms
) -> tuple[list[Answer], dict[str, int], Ended]:
    """Let the LLM answer.

    Args:
        sent: What is sent, in all arms.
        annotator: Asks the LLM.
        step: Where answers are kept.
        terms: What holds for the run.

    Returns:
        The answers in the order of `sent`; how many of each arm there are none of, because the LLM failed; and how it
        ended.

    Raises:
        BPOError: As `work_off` does.
    """
    items = [content(row.id, row.sent, row.sent) for row in sent]

    async def work(item: Item[str]) -> Entry:
        return await _answered(annotator, item)

    ended = await step.run(items, work, lambda item: estimated(asking(item.row)).tokens, terms)
    done = step.results()
    answers: list[Answer] = []
    failed: dict[str, int] = {}
    for row, item in zip(sent, items, strict=True):
        entry = done.get(item.digest)
        if entry is None:
            continue  # the budget
        if entry.status == "failed":
            failed[row.arm] = failed.get(row.arm, 0) + 1
            continue
        answers.append(Answer(**asdict(row), **_reply(entry.result)))
    return answers, failed, ended


def asking(text: str) -> list[Message]:
    """Return the messages that put a prompt to the LLM."""
    return [{"role": "user", "content": text}]


async def _answered(annotator: Annotator, item: Item[str]) -> Entry:
    try:
        found, usage = await annotator.ask(asking(item.row))
    except RowFailedError as error:
        return Entry(item.number, item.id, item.digest, "failed", error.reason, usage=error.usage)
    result = {
        "answer": found.texts[0],
        "finished": found.finished[0],
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "seconds": round(found.seconds, 4),
    }
    return Entry(item.number, item.id, item.digest, "kept", result=result, usage=usage)


def _reply(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("answer", "finished", "prompt_tokens", "completion_tokens", "seconds")}
