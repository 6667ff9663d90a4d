"""DPO of the answering model: the paper's other RLHF baseline (section 4.3), with TRL's `DPOTrainer`.

    bpo-train baseline dpo --config bpo_train/recipes/baselines/h200/dpo.yaml \
        --data preferences.jsonl --output_dir runs/dpo

The same pairs that the rewriter's data was made of, turned on the answering model itself. A run that was interrupted
goes on from its last checkpoint. It does not train the rewriter: see `bpo_train.training`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpo_train.baselines.common import parse, resume_point, trainable
from bpo_train.baselines.models import load_model, save_trained, write_metrics
from bpo_train.baselines.split import Pair, read_pairs

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclass
class DPOArguments:
    """What to train on; everything else is TRL's `DPOConfig` and `ModelConfig`."""

    data: str = field(metadata={"help": "JSONL with `instruction`, `good_res` and `bad_res` (or TRL's names)."})
    limit: int | None = field(default=None, metadata={"help": "Use the first N pairs only (smoke runs)."})


def to_dataset(pairs: Sequence[Pair], tokenizer: Any) -> Dataset:
    """Turn pairs into TRL's conversational form; those that hold role marks of the model are left out."""
    from datasets import Dataset

    special = [token for token in tokenizer.all_special_tokens if token]
    clean = [pair for pair in pairs if not any(mark in pair.prompt + pair.chosen + pair.rejected for mark in special)]
    logger.info("%d pairs, %d left out for their role marks", len(clean), len(pairs) - len(clean))
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": pair.prompt}] for pair in clean],
            "chosen": [[{"role": "assistant", "content": pair.chosen}] for pair in clean],
            "rejected": [[{"role": "assistant", "content": pair.rejected}] for pair in clean],
        }
    )


def train(arguments: DPOArguments, config: Any, model_config: Any) -> dict[str, float]:
    """Train, and save the whole model into `config.output_dir`.

    Args:
        arguments: The data.
        config: TRL's `DPOConfig`.
        model_config: TRL's `ModelConfig`; `model_name_or_path` may be `embedded`.

    Returns:
        The last logged figures: loss, margin between the implicit rewards, share of pairs that they rank rightly.
    """
    from trl import DPOTrainer, get_peft_config

    pairs = read_pairs(arguments.data)[: arguments.limit]
    model, tokenizer = load_model(model_config.model_name_or_path or "embedded", model_config.dtype or "float32")
    peft = get_peft_config(model_config)
    dataset = to_dataset(pairs, tokenizer)
    trainable(dataset, "preference pairs without role marks")
    trainer = DPOTrainer(
        model=model,
        # Without an adapter to switch off, a copy is the reference: an embedded base has no name to load it again by.
        ref_model=None if peft is not None or config.precompute_ref_log_probs else copy.deepcopy(model),
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft,
    )
    output = Path(config.output_dir)
    trainer.train(resume_from_checkpoint=resume_point(output))
    save_trained(trainer, tokenizer, output)
    if not trainer.is_world_process_zero():
        return {}
    logged: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        logged |= entry
    names = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "train_accuracy"}
    metrics = {"trained_pairs": float(len(dataset)), "steps": float(trainer.state.global_step)}
    metrics |= {name: float(logged[key]) for key, name in names.items() if key in logged}
    write_metrics(output, metrics)
    return metrics


def main(argv: Sequence[str] | None = None) -> None:
    """Parse `--config recipe.yaml` and options over it, then train."""
    arguments, config, model_config = parse(DPOArguments, "DPOConfig", argv)
    for name, value in train(arguments, config, model_config).items():
        click.echo(f"{name}: {value:.4g}")
