"""Preference training of a rewriter: what was written for a prompt is preferred to what the model gets wrong.

    bpo-train dpo --config bpo_train/recipes/smollm2-135m/dpo.yaml --pairs runs/mined/pairs.jsonl --output_dir runs/dpo

TRL's `DPOTrainer` on the pairs of `bpo-train mine`, or any others with `prompt`, `chosen` and `rejected`. Training goes
on from a fine-tuned adapter, and a frozen copy of that adapter is the reference. Beside DPO's loss (Rafailov et al.,
2023, equation 7) stands the chosen text's own negative log-likelihood (Pang et al., 2024, "Iterative Reasoning
Preference Optimization", equation 1; TRL: `loss_type: [sigmoid, sft]`), for DPO alone lowers the likelihood of both.
A run that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_integrations.models.adapter import ADAPTER_WEIGHTS
from bpo_integrations.result import Mode
from bpo_integrations.templates import PromptFormat
from bpo_train.cli_data import exits
from bpo_train.data.outputs import Shares
from bpo_train.training.arguments import COMPLETION_FIELD
from bpo_train.training.checkpoints import keep_to_options, last_checkpoint
from bpo_train.training.mining import GUARD, Pair
from bpo_train.training.rows import Encoded, Example, encode, read_rows
from bpo_train.training.run import describe_data, sha256
from bpo_train.training.sft import failures, last_evaluation, load_model, trainers_options
from bpo_train.training.start import SHIPPED, finish, load_start, prompt_format, start_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

UNFINISHED = f"{GUARD}: unfinished"
"""Why a text was rejected that the model did not end itself: it is compared without an end."""


@dataclass
class DPOArguments:
    """What to train on; everything else is TRL's `DPOConfig` and `ModelConfig`."""

    pairs: str = field(metadata={"help": "JSONL with `prompt`, `chosen` and `rejected`, as `bpo-train mine` writes."})
    mode: str = field(default="augment", metadata={"help": "`augment` or `rewrite`."})
    adapter: str | None = field(
        default=SHIPPED,
        metadata={
            "help": "The adapter to go on from, and the reference: `shipped`, or a run's folder; `none`: a new one."
        },
    )
    validation: float = field(default=0.05, metadata={"help": "Share of the prompts whose pairs are held out."})
    limit: int | None = field(default=None, metadata={"help": "Use the first N training pairs only (smoke runs)."})

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigurationError: The mode is unknown.
        """
        if self.mode not in COMPLETION_FIELD:
            msg = f"Unknown mode {self.mode!r}."
            raise ConfigurationError(msg, hint="Use mode=augment or mode=rewrite.")
        if self.adapter and self.adapter.lower() == "none":
            self.adapter = None


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair in tokens."""

    pair: Pair
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def read_pairs(path: str | Path) -> list[Pair]:
    """Read pairs; `id`, `why`, `licence` and `source` may be missing.

    Raises:
        ConfigurationError: The file is missing, a line is no JSON object, or a row has no such texts.
    """
    found = []
    for number, row in enumerate(read_rows(path), start=1):
        texts = [row.get(name) for name in ("prompt", "chosen", "rejected")]
        if not all(isinstance(text, str) for text in texts):
            msg = f"{path}, row {number}: prompt, chosen and rejected must be texts."
            raise ConfigurationError(msg, hint="Write them as plain strings, not as chat messages.")
        others = {name: str(row.get(name) or "") for name in ("why", "licence", "source")}
        found.append(Pair(str(row.get("id", number)), *map(str, texts), **others))
    return found


def encode_pairs(
    pairs: Sequence[Pair], form: PromptFormat, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[EncodedPair]:
    """Return the pairs in tokens, exactly as `bpo-train sft` renders them; what is too long is left out, never cut.

    Both texts end with the end-of-turn token, but for a rejected one that the model did not end: to compare it with
    an end would teach something about ends that was never seen.
    """
    chosen = encode([Example(pair.id, pair.prompt, pair.chosen) for pair in pairs], form, tokenizer)
    rejected = encode([Example(pair.id, pair.prompt, pair.rejected) for pair in pairs], form, tokenizer)
    rows = [
        EncodedPair(pair, good.prompt, good.completion, bad.completion[: -1 if pair.why == UNFINISHED else None])
        for pair, good, bad in zip(pairs, chosen, rejected, strict=True)
    ]
    return [row for row in rows if row.rejected and (max_length is None or len(row) <= max_length)]


def to_dataset(rows: Sequence[EncodedPair]) -> Dataset:
    """Return rows in TRL's tokenised form."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt_ids": [list(row.prompt) for row in rows],
            "chosen_ids": [list(row.chosen) for row in rows],
            "rejected_ids": [list(row.rejected) for row in rows],
        }
    )


def train(arguments: DPOArguments, config: Any, model_config: Any) -> dict[str, float]:
    """Train, resume where a checkpoint is found, and save the adapter (or the model) into `config.output_dir`.

    Args:
        arguments: The pairs and where to start.
        config: TRL's `DPOConfig`.
        model_config: TRL's `ModelConfig`; `model_name_or_path` may be `embedded`.

    Returns:
        The last evaluation's metrics; of the training where no pairs are held out.

    Raises:
        ConfigurationError: There are no pairs, or the options do not go together.
    """
    began, output = time.monotonic(), Path(config.output_dir)
    mode = cast("Mode", arguments.mode)
    spec = model_config.model_name_or_path or "embedded"
    start = start_folder(arguments.adapter, spec, mode)
    form = prompt_format(start, spec, mode)
    pairs = read_pairs(arguments.pairs)
    checkpoint = last_checkpoint(output)
    decisive = decisive_options(arguments, config, model_config, start)
    keep_to_options(output, decisive, started=checkpoint is not None, write=config.process_index == 0)
    model, tokenizer, peft_config = load_start(start, config, model_config)
    shares = Shares(arguments.validation, 0)
    rows = encode_pairs(pairs, form, tokenizer, config.max_length)
    trained = [row for row in rows if shares.split(row.pair.prompt) == "train"][: arguments.limit]
    held_out = [row for row in rows if shares.split(row.pair.prompt) != "train"]
    if not trained:
        msg = f"{arguments.pairs} holds no pairs to train on ({len(pairs) - len(rows)} are too long)."
        raise ConfigurationError(msg, hint="Mine more, raise --max_length, or lower --validation.")
    logger.info("%d pairs to train on, %d held out, %d too long", len(trained), len(held_out), len(pairs) - len(rows))
    if not held_out:
        config.eval_strategy = "no"
    from bpo_train.training.pair_trainer import PairTrainer

    trainer = PairTrainer(
        model=model,
        # The start once more, as the reference of a model that is trained as a whole.
        ref_model=load_model(config, model_config)[0] if start is None and peft_config is None else None,
        args=config,
        train_dataset=to_dataset(trained),
        eval_dataset=to_dataset(held_out) if held_out else None,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    with failures():
        trainer.train(resume_from_checkpoint=config.resume_from_checkpoint or (str(checkpoint) if checkpoint else None))
        metrics = last_evaluation(trainer) if held_out else _last_logged(trainer)
        finish(
            trainer,
            start=start,
            mode=mode,
            form=form,
            model_config=model_config,
            run={
                "stage": "dpo",
                "data": _described(arguments.pairs, trained, len(pairs) - len(rows)),
                "eval_data": _described(arguments.pairs, held_out, 0) if held_out else None,
                "training": {
                    "resumed_from": checkpoint and int(checkpoint.name.rpartition("-")[2]),
                    "seconds": round(time.monotonic() - began, 1),
                },
                "metrics": metrics,
            },
        )
    return metrics


def decisive_options(arguments: DPOArguments, config: Any, model_config: Any, start: Path | None) -> dict[str, Any]:
    """Return what decides the losses of a run, by name, as JSON has it."""
    found: dict[str, Any] = {
        "pairs": sha256(Path(arguments.pairs)),
        "start": sha256(start / ADAPTER_WEIGHTS) if start else None,
        "validation": arguments.validation,
        "limit": arguments.limit,
    }
    more = ("beta", "loss_type", "loss_weights", "label_smoothing", "ld_alpha", "f_divergence_type")
    return found | trainers_options(config, model_config, *more)


def _described(file: str, rows: Sequence[EncodedPair], too_long: int) -> dict[str, Any]:
    """Return what `run.json` says about pairs."""
    examples = [
        Encoded(
            Example(row.pair.id, row.pair.prompt, row.pair.chosen, row.pair.licence, row.pair.source),
            row.prompt,
            row.chosen,
        )
        for row in rows
    ]
    reasons = Counter(row.pair.why or "not said" for row in rows)
    described = describe_data(file, examples, {"too long": too_long})
    return {**described, "reasons": dict(reasons.most_common())}


def _last_logged(trainer: Any) -> dict[str, float]:
    """Return the last figures of the training."""
    logged: dict[str, Any] = {}
    for entry in trainer.state.log_history:
        logged |= entry
    names = ("loss", "rewards/margins", "rewards/accuracies")
    return {name: float(logged[name]) for name in names if name in logged}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse `--config recipe.yaml` and options over it, then train, or start the processes that do.

    Raises:
        ConfigurationError: The options cannot work.
    """
    try:
        from bpo_train.training.preference_options import DPOOptions, parsed
    except ImportError as error:
        raise MissingExtraError(error.name or "trl", extra="train") from error
    arguments, config, model_config = parsed(
        DPOArguments, DPOOptions, argv, stage="dpo", module="bpo_train.training.dpo"
    )
    for name, value in sorted(train(arguments, config, model_config).items()):
        if config.process_index == 0:
            click.echo(f"{name}: {value:.4f}")


if __name__ == "__main__":  # one of several processes
    with exits():
        main()
