"""On-policy preference training of a rewriter: it writes, the LLM answers, and what the answers gain is the reward.

    bpo-train grpo --config bpo_train/recipes/smollm2-135m/grpo.yaml --data additions.jsonl \
        --llm hf:embedded --reward_model runs/reward --output_dir runs/grpo

TRL's `GRPOTrainer` (group-relative advantages, Shao et al., 2024, section 4.1) on the prompts of the training rows;
what was written for them is not used. Two rewards, weighted by `reward_weights`: guards, and the LLM's answer to the
optimized prompt against its answer to the original, as a reward model or a judge sees them, at equal length
(`rewards.py`). Without an LLM there is the first alone, which teaches to break no guard and nothing else. A run that
was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_integrations.models.adapter import ADAPTER_WEIGHTS
from bpo_integrations.result import Mode
from bpo_integrations.templates import PromptFormat
from bpo_train.cli_data import exits
from bpo_train.training.arguments import COMPLETION_FIELD
from bpo_train.training.checkpoints import keep_to_options, last_checkpoint
from bpo_train.training.rewards import AnswerGain, AnswerReward, GuardReward, LengthControl
from bpo_train.training.rows import Encoded, Example, encode, read_ids, read_rows, split_examples
from bpo_train.training.run import describe_data, sha256
from bpo_train.training.sft import failures, trainers_options
from bpo_train.training.start import SHIPPED, finish, load_start, prompt_format, start_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LENGTH_STATE = "length_control.json"
"""What is known of the worth of length, in the output folder."""


@dataclass
class GRPOArguments:
    """What to train on, and what the rewards ask; everything else is TRL's `GRPOConfig` and `ModelConfig`."""

    data: str = field(metadata={"help": "Training rows, as for sft; their prompts are used."})
    mode: str = field(default="augment", metadata={"help": "`augment` or `rewrite`."})
    adapter: str | None = field(
        default=SHIPPED,
        metadata={"help": "The adapter to go on from: `shipped`, or a run's folder; `none`: a new one."},
    )
    held_out: str | None = field(default=None, metadata={"help": "File of ids, one a line, never trained on."})
    licences: list[str] = field(
        default_factory=list, metadata={"help": "Train only on rows of these licences; none given means all."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use the first N training rows only (smoke runs)."})
    max_prompt_tokens: int = field(default=512, metadata={"help": "Longer prompts are left out."})
    llm: str | None = field(
        default=None, metadata={"help": "The LLM that answers: `hf:embedded`, `hf:DIR`, `openai:NAME`, ..."}
    )
    llm_base_url: str | None = field(default=None, metadata={"help": "An OpenAI-compatible server that has the LLM."})
    llm_max_tokens: int = field(default=192, metadata={"help": "Most tokens of an answer."})
    reward_model: str | None = field(
        default=None, metadata={"help": "Folder of a reward model that compares the answers."}
    )
    judge: str | None = field(default=None, metadata={"help": "An LLM that compares the answers instead."})
    judge_base_url: str | None = field(default=None, metadata={"help": "An OpenAI-compatible server that has it."})
    reward_scale: float = field(
        default=1.0, metadata={"help": "The gain, in units of the reward model, at which a reward is tanh(1) = 0.76."}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigurationError: The mode is unknown, or the answers have nobody who writes or compares them.
        """
        if self.mode not in COMPLETION_FIELD:
            msg = f"Unknown mode {self.mode!r}."
            raise ConfigurationError(msg, hint="Use mode=augment or mode=rewrite.")
        if self.adapter and self.adapter.lower() == "none":
            self.adapter = None
        if (self.llm is None) != (self.reward_model is None and self.judge is None):
            msg = "Answers need an LLM that writes them, and a reward model or a judge that compares them."
            raise ConfigurationError(msg, hint="Give --llm with --reward_model or --judge; or none, for guards alone.")
        if self.reward_model is not None and self.judge is not None:
            msg = "Both a reward model and a judge are given."
            raise ConfigurationError(msg, hint="Give --reward_model or --judge.")
        if self.reward_scale <= 0:
            msg = f"reward_scale is {self.reward_scale}; it must be more than 0."
            raise ConfigurationError(msg, hint="About the standard deviation of the reward model's differences.")


def usable(
    examples: Sequence[Example], mode: Mode, form: PromptFormat, tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[Encoded]:
    """Return the rows whose prompts can be trained on, each prompt once.

    Left out are prompts that hold a mark of the model, which TRL's own tokenising would take as one; those of more than
    `longest` tokens; and in augment mode those that nothing is to be added to: silence breaks no guard, and would be
    the safest text for every prompt.
    """
    marks = [mark for mark in tokenizer.all_special_tokens if mark]
    found = {
        example.prompt: example
        for example in examples
        if not any(mark in example.prompt for mark in marks) and (example.completion or mode == "rewrite")
    }
    return [row for row in encode(found.values(), form, tokenizer) if len(row.prompt) <= longest]


def to_dataset(examples: Sequence[Example], form: PromptFormat) -> Dataset:
    """Return rows in TRL's conversational form, the user's own prompt beside them for the rewards."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            # As an engine has it: blank edges carry nothing, and a leading newline would merge with the template's own.
            "prompt": [form.messages(example.prompt.strip()) for example in examples],
            "original": [example.prompt for example in examples],
        }
    )


def train(arguments: GRPOArguments, config: Any, model_config: Any) -> dict[str, float]:
    """Train, resume where a checkpoint is found, and save the adapter (or the model) into `config.output_dir`.

    Args:
        arguments: The prompts, the start, and what the rewards ask.
        config: TRL's `GRPOConfig`.
        model_config: TRL's `ModelConfig`; `model_name_or_path` may be `embedded`.

    Returns:
        The last logged figures of the training.

    Raises:
        ConfigurationError: There are no prompts, or the options do not go together.
    """
    from bpo_train.training.reward_trainer import RewardTrainer

    began, output = time.monotonic(), Path(config.output_dir)
    mode = cast("Mode", arguments.mode)
    spec = model_config.model_name_or_path or "embedded"
    start = start_folder(arguments.adapter, spec, mode)
    form = prompt_format(start, spec, mode)
    held_out = read_ids(arguments.held_out)
    rows, _ = split_examples(read_rows(arguments.data), mode=mode, held_out=held_out, licences=arguments.licences)
    checkpoint = last_checkpoint(output)
    decisive = decisive_options(arguments, config, model_config, start)
    keep_to_options(output, decisive, started=checkpoint is not None, write=config.process_index == 0)
    model, tokenizer, peft_config = load_start(start, config, model_config)
    kept = usable(rows, mode, form, tokenizer, arguments.max_prompt_tokens)[: arguments.limit]
    if not kept:
        msg = "No prompts are left to train on."
        raise ConfigurationError(msg, hint="Check --licences and --held_out against the data.")
    guards = GuardReward(mode, int(tokenizer.eos_token_id))
    rewards: list[Any] = [guards]
    with ExitStack() as opened:
        if arguments.llm is not None:
            known = LengthControl.load(output / LENGTH_STATE) if checkpoint else None
            gain = opened.enter_context(_gain(arguments, mode, known))
            state = output / LENGTH_STATE if config.process_index == 0 else None
            rewards.append(AnswerReward(gain, guards, scale=arguments.reward_scale, state=state))
        elif config.reward_weights is not None:
            config.reward_weights = config.reward_weights[:1]
        opened.enter_context(failures())
        trainer = RewardTrainer(
            model=model,
            reward_funcs=rewards,
            args=config,
            train_dataset=to_dataset([row.example for row in kept], form),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        trainer.train(resume_from_checkpoint=config.resume_from_checkpoint or (str(checkpoint) if checkpoint else None))
        metrics = last_logged(trainer)
        finish(
            trainer,
            start=start,
            mode=mode,
            form=form,
            model_config=model_config,
            run={
                "stage": "grpo",
                "data": describe_data(arguments.data, kept),
                "eval_data": None,
                "rewards": {
                    name: getattr(arguments, name) for name in ("llm", "reward_model", "judge", "reward_scale")
                },
                "training": {
                    "resumed_from": checkpoint and int(checkpoint.name.rpartition("-")[2]),
                    "seconds": round(time.monotonic() - began, 1),
                },
                "metrics": metrics,
            },
        )
    return metrics


def _gain(arguments: GRPOArguments, mode: Mode, control: LengthControl | None) -> AbstractContextManager[AnswerGain]:
    """Return what compares the LLM's answers, to be opened."""
    from bpo_train.training.answers import answer_gain

    return answer_gain(
        mode,
        llm=str(arguments.llm),
        reward_model=arguments.reward_model,
        judge=arguments.judge,
        llm_base_url=arguments.llm_base_url,
        judge_base_url=arguments.judge_base_url,
        max_tokens=arguments.llm_max_tokens,
        control=control,
    )


def decisive_options(arguments: GRPOArguments, config: Any, model_config: Any, start: Path | None) -> dict[str, Any]:
    """Return what decides a run, by name, as JSON has it."""
    found: dict[str, Any] = {
        "data": sha256(Path(arguments.data)),
        "start": sha256(start / ADAPTER_WEIGHTS) if start else None,
        "held_out": sha256(Path(arguments.held_out)) if arguments.held_out else None,
    }
    found |= {name: getattr(arguments, name) for name in ("licences", "limit", "llm", "llm_max_tokens")}
    found |= {name: getattr(arguments, name) for name in ("reward_model", "judge", "reward_scale")}
    more = ("beta", "loss_type", "num_generations", "temperature", "top_p", "reward_weights")
    return found | trainers_options(config, model_config, *more)


def last_logged(trainer: Any) -> dict[str, float]:
    """Return the last figures of the training: rewards, their spread, lengths, and the distance from the start."""
    logged: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        logged |= entry
    kept = ("reward", "rewards/", "kl", "completions/mean_length", "completions/clipped_ratio", "loss", "train_loss")
    return {name: float(value) for name, value in sorted(logged.items()) if name.startswith(kept)}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse `--config recipe.yaml` and options over it, then train, or start the processes that do.

    Raises:
        ConfigurationError: The options cannot work.
    """
    try:
        from bpo_train.training.preference_options import GRPOOptions, parsed
    except ImportError as error:
        raise MissingExtraError(error.name or "trl", extra="train") from error
    arguments, config, model_config = parsed(
        GRPOArguments, GRPOOptions, argv, stage="grpo", module="bpo_train.training.grpo"
    )
    for name, value in train(arguments, config, model_config).items():
        if config.process_index == 0:
            click.echo(f"{name}: {value:.4f}")


if __name__ == "__main__":  # one of several processes
    with exits():
        main()
