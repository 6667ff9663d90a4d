"""What the answering models say to the prompts of their arms: greedy, in large batches, on transformers.

Promises: a prompt that several arms of a model send is answered once; an arm that is on disk already is not answered
again; a prompt that fills the model's context gets an empty answer, which is judged like any other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bpo_train.baselines.arms import ARMS, BY_NAME, GROUPS
from bpo_train.baselines.prompts import read_sent
from bpo_train.evaluation.records import Answer, read_records, write_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batches:
    """How much is decoded at once.

    Args:
        rows: Prompts.
        tokens: Tokens of prompts and answers, padding included: of keys and values a 135M model holds 23 kB each.
        spread: Largest difference of prompt lengths within a batch, in tokens.
    """

    rows: int
    tokens: int
    spread: int


ON_CPU = Batches(rows=48, tokens=32_768, spread=64)
ON_GPU = Batches(rows=512, tokens=400_000, spread=512)


def answers_file(folder: Path, arm: str) -> Path:
    """Return where an arm's answers are."""
    return folder / "answers" / f"{arm}.jsonl"


def answer_group(folder: Path, group: str, model: str, *, new_tokens: int) -> None:
    """Answer the prompts of a group's arms.

    Args:
        folder: The table's folder, with `sent/<arm>.jsonl`; receives `answers/<arm>.jsonl`.
        group: One of `GROUPS`.
        model: The answering model, a folder.
        new_tokens: An answer is cut after so many tokens.

    Raises:
        ConfigurationError: The prompts of an arm were not made yet.
    """
    kind = BY_NAME[GROUPS[group][0]].model
    known: dict[str, Answer] = {}
    for arm in ARMS:
        if arm.model == kind and answers_file(folder, arm.name).is_file():
            known |= {row.sent: row for row in read_records(answers_file(folder, arm.name), Answer)}
    for name in GROUPS[group]:
        if answers_file(folder, name).is_file():
            continue
        rows = read_sent(folder, BY_NAME[name].sends)
        new = [text for text in dict.fromkeys(row.sent for row in rows) if text not in known]
        logger.info("%s: %d prompts, %d not answered yet", name, len(rows), len(new))
        known |= zip(new, answer(model, new, new_tokens=new_tokens), strict=True)
        write_records(answers_file(folder, name), (_with_answer(row, name, known[row.sent]) for row in rows))


def answer(model: str, prompts: Sequence[str], *, new_tokens: int, batches: Batches | None = None) -> list[Answer]:
    """Answer prompts, each as the only turn of a chat.

    Args:
        model: A causal model: a folder, or `embedded`.
        prompts: The prompts.
        new_tokens: An answer is cut after so many tokens.
        batches: None takes what the device can hold.

    Returns:
        An answer each, in the prompts' order, without id and arm; `seconds` is its share of its batch.
    """
    from bpo_integrations.decoding import GREEDY
    from bpo_integrations.engines.base import Request
    from bpo_integrations.engines.causal_decode import Job, decode
    from bpo_integrations.engines.causal_lm import CausalModel
    from bpo_integrations.engines.generation import chunks
    from bpo_integrations.engines.transformers import best_device
    from bpo_train.baselines.models import compute_dtype

    if not prompts:
        return []
    import torch

    device = best_device()
    loaded = CausalModel(model, None, device, compute_dtype(), allow_download=False)
    requests = [Request(({"role": "user", "content": prompt},), max_new_tokens=new_tokens) for prompt in prompts]
    jobs = [Job.of(at, one, loaded.render(one.messages), loaded.context) for at, one in enumerate(requests)]
    found = {job.index: Answer("", "", prompts[job.index], "", finished=False) for job in jobs if job.longest <= 0}
    limits = batches or (ON_GPU if device.startswith("cuda") else ON_CPU)
    groups = chunks(
        [job for job in jobs if job.longest > 0],
        lambda job: len(job.ids),
        rows=limits.rows,
        tokens=limits.tokens,
        spread=limits.spread,
        cost=lambda job: len(job.ids) + job.longest,
    )
    with torch.inference_mode():
        for group in groups:
            started = time.perf_counter()
            made = decode(loaded, group, GREEDY, lambda index: False)
            seconds = round((time.perf_counter() - started) / len(group), 4)
            for job in group:
                (candidate,) = made[job.index]
                found[job.index] = Answer(
                    id="",
                    arm="",
                    sent=prompts[job.index],
                    answer=candidate.text.strip(),
                    finished=candidate.finish_reason == "stop",
                    prompt_tokens=len(job.ids),
                    completion_tokens=candidate.tokens,
                    seconds=seconds,
                )
    return [found[at] for at in range(len(prompts))]


def _with_answer(row: Answer, arm: str, said: Answer) -> Answer:
    return replace(
        row,
        arm=arm,
        answer=said.answer,
        finished=said.finished,
        prompt_tokens=said.prompt_tokens,
        completion_tokens=said.completion_tokens,
        seconds=said.seconds,
    )
