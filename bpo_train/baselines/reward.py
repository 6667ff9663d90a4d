"""A reward model from preference pairs: what PPO and RLOO maximize, and a judge that needs no API.

    bpo-train baseline reward --config bpo_train/recipes/baselines/h200/reward.yaml \
        --data preferences.jsonl --output_dir runs/reward

The answering model's trunk with a head of one output, trained with TRL's `RewardTrainer` (the paper's for one epoch).
Pairs are put to it as `bpo_train.reward_model` does; those that are too long are cut, not dropped. A run that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpo_integrations.engines.causal_lm import ChatTokenizer
from bpo_train.baselines.common import parse, resume_point, trainable
from bpo_train.baselines.models import compute_dtype, load_model, reward_model_from, save_trained, write_metrics
from bpo_train.baselines.split import Pair, divide, length_balanced, read_pairs
from bpo_train.reward_model import MAX_LENGTH, SETTINGS, RewardModel, encode_pair

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclass
class RewardArguments:
    """What to train on; everything else is TRL's `RewardConfig` and `ModelConfig`."""

    data: str = field(metadata={"help": "JSONL with `instruction`, `good_res` and `bad_res` (or TRL's names)."})
    eval_data: str | None = field(default=None, metadata={"help": "Other pairs, where the accuracy is measured."})
    held_out: float = field(default=0.1, metadata={"help": "Without --eval_data: the share that is held out."})
    balance_lengths: bool = field(
        default=False, metadata={"help": "Repeat pairs until the longer answer is as often the worse one."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use the first N training pairs only (smoke runs)."})
    eval_limit: int | None = field(default=None, metadata={"help": "Use the first N other pairs only (smoke runs)."})


def to_dataset(pairs: Sequence[Pair], chat: ChatTokenizer, max_length: int) -> Dataset:
    """Tokenize pairs into TRL's prepared form, `chosen_ids` and `rejected_ids`."""
    from datasets import Dataset

    columns = {
        name: [encode_pair(chat, pair.prompt, getattr(pair, side), max_length=max_length) for pair in pairs]
        for name, side in (("chosen_ids", "chosen"), ("rejected_ids", "rejected"))
    }
    return Dataset.from_dict(columns)


def accuracy(model: RewardModel, pairs: Sequence[Pair]) -> dict[str, float]:
    """Return how often a reward model agrees with pairs, and how much it goes by length.

    Returns:
        `pairs`; `accuracy`, a share; `accuracy_longer` and `accuracy_shorter`, the same where the preferred answer is
        the longer one and where it is not (a model that only counts words has 1 and 0); `length_correlation`,
        Pearson's, of score and words over both answers of all pairs (NaN where one does not vary is 0).
    """
    import numpy as np

    scores = model.score([(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)])
    right = np.array(scores[::2]) > np.array(scores[1::2])
    longer = np.array([pair.chosen_is_longer for pair in pairs], dtype=bool)
    lengths = [len(text.split()) for pair in pairs for text in (pair.chosen, pair.rejected)]
    varies = len(set(lengths)) > 1 and len(set(scores)) > 1
    return {
        "pairs": float(len(pairs)),
        "accuracy": _share(right),
        "accuracy_longer": _share(right[longer]),
        "accuracy_shorter": _share(right[~longer]),
        "length_correlation": float(np.corrcoef(scores, lengths)[0, 1]) if varies else 0.0,
    }


def train(arguments: RewardArguments, config: Any, model_config: Any) -> dict[str, float]:
    """Train, save the whole model into `config.output_dir`, and measure it.

    Args:
        arguments: The data.
        config: TRL's `RewardConfig`; `max_length` is where pairs are cut.
        model_config: TRL's `ModelConfig`; `model_name_or_path` may be `embedded`.

    Returns:
        What `accuracy` measures on pairs that were not trained on.
    """
    import torch
    from trl import RewardTrainer, get_peft_config

    pairs = read_pairs(arguments.data)
    if arguments.eval_data:
        other = read_pairs(arguments.eval_data)
    else:
        other, pairs = divide(pairs, arguments.held_out, seed=config.seed)
    pairs, other = pairs[: arguments.limit], other[: arguments.eval_limit]
    if arguments.balance_lengths:
        pairs = length_balanced(pairs, seed=config.seed)
    causal, tokenizer = load_model(model_config.model_name_or_path or "embedded", model_config.dtype or "float32")
    torch.manual_seed(config.seed)  # the head is drawn here
    model = reward_model_from(causal, tokenizer)
    max_length = config.max_length or MAX_LENGTH
    peft = get_peft_config(model_config)
    if peft is not None:
        peft.task_type = "SEQ_CLS"  # the new head is trained, too; TRL's default is for language models alone
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=to_dataset(trainable(pairs, "preference pairs"), ChatTokenizer(tokenizer), max_length),
        processing_class=tokenizer,
        peft_config=peft,
    )
    output = Path(config.output_dir)
    trainer.train(resume_from_checkpoint=resume_point(output))
    save_trained(trainer, tokenizer, output)
    if not trainer.is_world_process_zero():
        return {}
    (output / SETTINGS).write_text(f'{{"max_length": {max_length}}}\n', encoding="utf-8")
    metrics = {"trained_pairs": float(len(pairs))}
    if other:
        metrics |= accuracy(RewardModel(output, dtype=compute_dtype()), other)
    write_metrics(output, metrics)
    return metrics


def main(argv: Sequence[str] | None = None) -> None:
    """Parse `--config recipe.yaml` and options over it, then train."""
    arguments, config, model_config = parse(RewardArguments, "RewardConfig", argv)
    for name, value in train(arguments, config, model_config).items():
        click.echo(f"{name}: {value:.4g}")


def _share(right: Any) -> float:
    return float(right.mean()) if len(right) else 0.0
