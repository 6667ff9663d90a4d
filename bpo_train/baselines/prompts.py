"""The prompts of every arm of the paper's table: what BPO makes of them, in one pass and in five.

Promises: an arm that is on disk already is not made again; each arm's file has one row a prompt, in the test prompts'
order, so that an arm that leaves a prompt alone shows it. It sends nothing: see `answers.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bpo_integrations.cache import CandidateCache
from bpo_integrations.errors import EngineError, MissingExtraError
from bpo_integrations.joint import join
from bpo_integrations.metaprompt import PARSERS, meta_record
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Mode, OptimizedPrompt
from bpo_integrations.rewriter import Rewriter, load_rewriter
from bpo_train.baselines.arms import AUGMENT, META, PASSES, PLACEBO, REWRITE
from bpo_train.baselines.models import compute_dtype
from bpo_train.evaluation.arms import PLACEBO as PLACEBO_SENTENCE
from bpo_train.evaluation.records import BASELINE, Answer, TestPrompt, read_records, write_records

logger = logging.getLogger(__name__)

MODES: dict[str, Mode] = {AUGMENT: "augment", REWRITE: "rewrite"}

META_TOKENS = 256
"""New tokens that a model which rewrites by meta-prompt may write, beside twice the prompt's."""


def sent_file(folder: Path, arm: str) -> Path:
    """Return where an arm's prompts are; the rows are `Answer`s that wait for their answers."""
    return folder / "sent" / f"{arm}.jsonl"


def read_sent(folder: Path, arm: str) -> list[Answer]:
    """Read an arm's prompts.

    Raises:
        ConfigurationError: The arm's prompts were not made yet.
    """
    return read_records(sent_file(folder, arm), Answer)


def optimize_prompts(prompts: Sequence[TestPrompt], folder: Path) -> None:
    """Write the prompts of the arms `original`, `placebo`, `augment` and `rewrite`.

    Args:
        prompts: The test prompts.
        folder: The table's folder; receives `sent/<arm>.jsonl`.
    """
    _write(folder, BASELINE, (_kept(prompt) for prompt in prompts))
    _write(folder, PLACEBO, (_placebo(prompt) for prompt in prompts))
    texts = [prompt.prompt for prompt in prompts]
    for arm, mode in MODES.items():
        if not sent_file(folder, arm).is_file():
            with closing(PromptOptimizer(_embedded(mode), timeout=None, on_error="raise")) as optimizer:
                _write(folder, arm, _rows(arm, prompts, optimizer.optimize_batch(texts)))


def rewrite_again(prompts: Sequence[TestPrompt], folder: Path) -> None:
    """Write the prompts of two to five passes of the rewriter; each pass finds the earlier ones in a cache.

    Args:
        prompts: The test prompts.
        folder: The table's folder; receives `sent/rewrite-2.jsonl` to `sent/rewrite-5.jsonl`.
    """
    rewriter = _embedded("rewrite")
    cache = CandidateCache(size=8 * len(prompts) + 1)
    for passes, arm in enumerate(PASSES, start=2):
        if not sent_file(folder, arm).is_file():
            optimizer = PromptOptimizer(rewriter, timeout=None, on_error="raise", passes=passes, cache=cache)
            _write(folder, arm, _rows(arm, prompts, optimizer.optimize_batch([prompt.prompt for prompt in prompts])))
    rewriter.close()


def rewrite_by_llm(prompts: Sequence[TestPrompt], folder: Path, model: str) -> None:
    """Write the prompts of the ablation without feedback: the answering model rewrites them by meta-prompt.

    Args:
        prompts: The test prompts.
        folder: The table's folder; receives `sent/meta.jsonl`.
        model: The answering model, a folder.

    Raises:
        EngineError: The model failed on every prompt; one that is too long for it is left as it is.
    """
    from bpo_integrations.engines.transformers import TransformersEngine

    if sent_file(folder, META).is_file():
        return
    record = replace(meta_record("the LLM itself", "rewrite"), new_tokens=META_TOKENS, new_tokens_per_token=2.0)
    rewriter = Rewriter(TransformersEngine(model, dtype=compute_dtype()), record, PARSERS["rewrite"])
    with closing(PromptOptimizer(rewriter, timeout=None)) as optimizer:
        results = optimizer.optimize_batch([prompt.prompt for prompt in prompts])
    if all(result.reason.startswith("failed") for result in results):
        msg = f"No prompt could be rewritten: {results[0].reason}."
        raise EngineError(msg, hint="Give a model with a longer context, or see the log.")
    _write(folder, META, _rows(META, prompts, results))


def _embedded(mode: Mode) -> Rewriter:
    """Return the embedded rewriter; without CTranslate2 the same adapter on transformers, there in float32.

    Both are greedy; int8 and float32 choose another token here and there.
    """
    try:
        return load_rewriter("embedded", mode=mode)
    except MissingExtraError as missing:
        logger.warning("%s The embedded rewriter runs on transformers instead.", missing)
    import bpo_integrations.models

    return load_rewriter(f"hf:{Path(bpo_integrations.models.__file__).parent / mode}", dtype="float32")


def _rows(arm: str, prompts: Sequence[TestPrompt], results: Sequence[OptimizedPrompt]) -> list[Answer]:
    return [
        Answer(
            id=prompt.id,
            arm=arm,
            sent=result.text,
            answer="",
            kind=result.kind,
            reason=result.reason,
            addition=result.addition,
            optimizer_seconds=round(result.seconds, 4),
            p_empty=result.candidates[0].p_empty if result.candidates else None,
        )
        for prompt, result in zip(prompts, results, strict=True)
    ]


def _kept(prompt: TestPrompt) -> Answer:
    return Answer(id=prompt.id, arm=BASELINE, sent=prompt.prompt, answer="")


def _placebo(prompt: TestPrompt) -> Answer:
    sent = join(prompt.prompt, PLACEBO_SENTENCE)
    addition = "" if sent == prompt.prompt else PLACEBO_SENTENCE
    return Answer(id=prompt.id, arm=PLACEBO, sent=sent, answer="", kind="placebo", addition=addition)


def _write(folder: Path, arm: str, rows: Iterable[Answer]) -> None:
    write_records(sent_file(folder, arm), rows)
