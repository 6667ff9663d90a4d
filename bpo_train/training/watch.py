"""What the model writes while it trains: at each evaluation it optimizes a few held-out prompts for real.

`eval_unchanged` is the share of the prompts to which it adds nothing (augment: by the gate at 0.5, rewrite: the prompt
itself), `eval_violations` the share whose candidate a guard rejects. Decoding is greedy and takes no random number, so
a run that is watched has the losses of one that is not. It says nothing about how good an addition is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, TrainerCallback

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.causal_decode import Job, decode
from bpo_integrations.engines.causal_lm import ChatTokenizer
from bpo_integrations.judging import Judge
from bpo_integrations.policy import PolicyContext
from bpo_integrations.result import Candidate, Mode
from bpo_integrations.templates import PromptFormat
from bpo_train.exporting.record import record_for
from bpo_train.training.arguments import SFTArguments

logger = logging.getLogger(__name__)

ROWS = 16
"""Prompts that are decoded together."""


@dataclass(frozen=True, slots=True)
class _Model:
    """The model that trains, as `causal_decode` wants it."""

    model: Any
    tokenizer: Any
    chat: ChatTokenizer

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def ends(self) -> list[int]:
        return [self.end]

    @property
    def control(self) -> dict[int, str]:
        return self.chat.control

    def encode(self, text: str) -> list[int]:
        return self.chat.encode(text)


def optimize(model: Any, tokenizer: Any, prompts: Sequence[str], *, mode: Mode, form: PromptFormat) -> list[Candidate]:
    """Return one greedy candidate for each prompt, decoded as an exported rewriter does by default.

    Args:
        model: A causal language model of transformers, with or without an adapter.
        tokenizer: Its tokenizer.
        prompts: What is optimized.
        mode: Whether it adds or rewrites.
        form: How a prompt is put to it.
    """
    running: Any = _Model(model, tokenizer, ChatTokenizer(tokenizer))
    record = record_for(mode, name="", base="")
    decoding = Decoding(empty_threshold=record.empty_threshold, repetition_penalty=record.repetition_penalty)
    context = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
    jobs = []
    for index, prompt in enumerate(prompts):
        ids = running.chat.render(form.messages(prompt.strip()))
        longest = record.budget(len(running.encode(prompt)))
        jobs.append(Job(index, tuple(ids), max(1, min(longest, context - len(ids))), 0))
    jobs.sort(key=lambda job: len(job.ids))
    found: dict[int, list[Candidate]] = {}
    with _for_inference(model), torch.no_grad():  # not inference_mode: some models keep buffers from a forward pass
        for at in range(0, len(jobs), ROWS):
            found |= decode(running, jobs[at : at + ROWS], decoding, lambda index: False)
    return [found[index][0] for index in range(len(prompts))]


@contextmanager
def _for_inference(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode, without its checkpoint's own sampling, and back."""
    training, settings = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = settings
        model.train(training)


def judged(prompts: Sequence[str], candidates: Sequence[Candidate], mode: Mode) -> tuple[int, int]:
    """Return how many candidates have a violation, and how many leave their prompt as it is.

    Example:
        >>> judged(["Why is the sky blue?"], [Candidate("")], "augment")
        (0, 1)
    """
    judge = Judge(mode, None, None, ())
    violations = unchanged = 0
    for prompt, candidate in zip(prompts, candidates, strict=True):
        text = candidate.text.strip()
        if text == ("" if mode == "augment" else prompt.strip()):
            unchanged += 1
        elif judge.violation(prompt, candidate, mode, softens=False):
            violations += 1
    return violations, unchanged


def watched_prompts(prompts: Sequence[str], count: int, mode: Mode) -> list[str]:
    """Return the first `count` prompts that get to the model: the policy leaves the others alone."""
    judge, context = Judge(mode, None, None, ()), PolicyContext(mode=mode)
    chosen: list[str] = []
    for prompt in prompts:
        if len(chosen) == count:
            break
        if judge.reason_to_keep(prompt, context) is None:
            chosen.append(prompt)
    return chosen


class GenerationWatch(TrainerCallback):
    """Adds `eval_violations` and `eval_unchanged` to each evaluation. The prompts are shared out among the processes.

    Args:
        trainer: A trainer of transformers, whose log it writes to.
        prompts: Held-out prompts; the first of them are taken that get to the model.
        arguments: The mode, the format, and how many prompts.
    """

    def __init__(self, trainer: Any, prompts: Sequence[str], arguments: SFTArguments) -> None:
        self.trainer = trainer
        self._mode: Mode = "augment" if arguments.mode == "augment" else "rewrite"
        self._form = arguments.format
        self.prompts = watched_prompts(prompts, arguments.eval_generations, self._mode)

    @property
    def possible(self) -> bool:
        """Whether there are prompts, and each process has the whole model."""
        trainer = self.trainer
        plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        shared = trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
        if shared and self.prompts:
            logger.warning("The weights are in parts: only the loss is evaluated, nothing is generated.")
        return bool(self.prompts) and not shared

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Optimize the prompts, and put the shares into the log and the metrics."""
        accelerator = self.trainer.accelerator
        mine = self.prompts[accelerator.process_index :: accelerator.num_processes]
        counts = (0, 0)
        if mine:
            model, tokenizer = self.trainer.model, self.trainer.processing_class
            counts = judged(mine, optimize(model, tokenizer, mine, mode=self._mode, form=self._form), self._mode)
        sums = accelerator.reduce(torch.tensor(counts, device=accelerator.device), "sum").tolist()
        shares = {
            f"eval_{name}": count / len(self.prompts)
            for name, count in zip(("violations", "unchanged"), sums, strict=True)
        }
        if metrics is not None:
            metrics.update(shares)
        self.trainer.log(shares)
