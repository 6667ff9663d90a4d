"""RLOO of the answering model, beside PPO: the same reward, no value head (Ahmadian et al. 2024, arXiv 2402.14740).

    bpo-train baseline rloo --config bpo_train/recipes/baselines/h200/rloo.yaml \
        --data preferences.jsonl --reward_model runs/reward --output_dir runs/rloo

TRL's `RLOOTrainer` with a reward model of ours as its reward function: several answers a prompt, each compared with the
mean of the others. A run that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from bpo_integrations.engines.causal_lm import ChatTokenizer
from bpo_train.baselines.common import parse, resume_point, trainable
from bpo_train.baselines.models import as_folder, compute_dtype, load_model, save_trained, write_metrics
from bpo_train.baselines.split import read_pairs
from bpo_train.reward_model import RewardModel


@dataclass
class RLOOArguments:
    """Which prompts are answered, and who scores the answers; everything else is TRL's `RLOOConfig`."""

    data: str = field(metadata={"help": "JSONL whose `instruction` (or `prompt`) is answered; as for `dpo`."})
    reward_model: str = field(metadata={"help": "Folder of a reward model."})
    max_prompt_tokens: int = field(default=384, metadata={"help": "Longer prompts are left out."})
    max_minutes: float | None = field(default=None, metadata={"help": "Stop learning after this, and save."})
    limit: int | None = field(default=None, metadata={"help": "Use the first N prompts only (smoke runs)."})


def reward_function(model: RewardModel) -> Callable[..., list[float | None]]:
    """Return a reward model as a function of TRL's: of conversations and completions to scores."""

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        pairs = [(prompt[-1]["content"], made[0]["content"]) for prompt, made in zip(prompts, completions, strict=True)]
        return [*model.score(pairs)]

    return reward


def train(arguments: RLOOArguments, config: Any, model_config: Any) -> dict[str, float]:
    """Train, and save the whole model into `config.output_dir`.

    Args:
        arguments: The prompts and the reward model.
        config: TRL's `RLOOConfig`.
        model_config: TRL's `ModelConfig`; `model_name_or_path` may be `embedded`.

    Returns:
        Steps, and the mean score of the first and the last of them.
    """
    from datasets import Dataset
    from trl import RLOOTrainer, get_peft_config

    output = Path(config.output_dir)
    # TRL loads its reference by the model's name, so that the embedded base needs a folder.
    spec = as_folder(model_config.model_name_or_path or "embedded", output / "base")
    model, tokenizer = load_model(spec, model_config.dtype or "float32")
    chat = ChatTokenizer(tokenizer)
    prompts = list(dict.fromkeys(pair.prompt for pair in read_pairs(arguments.data)))[: arguments.limit]
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    special = [token for token in tokenizer.all_special_tokens if token]
    kept = [
        turn
        for turn, prompt in zip(turns, prompts, strict=True)
        if not any(mark in prompt for mark in special)
        and len(chat.render([{"role": "user", "content": prompt}])) <= arguments.max_prompt_tokens
    ]
    trainer = RLOOTrainer(
        model=model,
        reward_funcs=reward_function(
            RewardModel(arguments.reward_model, device=str(config.device), dtype=compute_dtype(str(config.device)))
        ),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": trainable(kept, "prompts")}),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
        callbacks=[] if arguments.max_minutes is None else [_time_limit(60 * arguments.max_minutes)],
    )
    trainer.train(resume_from_checkpoint=resume_point(output))
    save_trained(trainer, tokenizer, output)
    if not trainer.is_world_process_zero():
        return {}
    scores = [float(entry["reward"]) for entry in trainer.state.log_history if "reward" in entry]
    metrics = {"steps": float(trainer.state.global_step)}
    if scores:
        metrics |= {"score_first": _mean(scores[:5]), "score_last": _mean(scores[-5:])}
    write_metrics(output, metrics)
    return metrics


def main(argv: Sequence[str] | None = None) -> None:
    """Parse `--config recipe.yaml` and options over it, then train."""
    arguments, config, model_config = parse(RLOOArguments, "RLOOConfig", argv)
    for name, value in train(arguments, config, model_config).items():
        click.echo(f"{name}: {value:.4g}")


def _time_limit(seconds: float) -> Any:
    from transformers import TrainerCallback

    class TimeLimit(TrainerCallback):
        """Ends the training after the step in which the time is up."""

        def __init__(self) -> None:
            self.started = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if time.monotonic() - self.started > seconds:  # never False: that would take back the end after max_steps
                control.should_training_stop = True
            return control

    return TimeLimit()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
