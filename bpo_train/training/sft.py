"""Supervised fine-tuning of a rewriter: `prompt -> what to add` (augment) or `prompt -> better prompt` (rewrite).

    bpo-train sft --config bpo_train/recipes/smollm2-135m/augment.yaml --data additions.jsonl --output_dir runs/augment

Reads rows of `additions.jsonl` or `pairs.jsonl`, renders them with the prompt format that is stored beside the weights
(`bpo.json`), and trains with TRL's `SFTTrainer`, the loss on the completion only (paper, section 3.3). A run that was
interrupted goes on from its last checkpoint. It does not choose data: see `bpo_train.data`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_integrations.templates import AUGMENT_FORMAT, REWRITE_FORMAT, PromptFormat

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FORMATS: dict[str, PromptFormat] = {"augment": AUGMENT_FORMAT, "rewrite": REWRITE_FORMAT}
COMPLETION_FIELD = {"augment": "addition", "rewrite": "optimized_prompt"}


@dataclass
class SFTArguments:
    """What to train on; everything else is TRL's `SFTConfig` and `ModelConfig`."""

    data: str = field(metadata={"help": "JSONL with `id`, `prompt` and `addition` (augment) or `optimized_prompt`."})
    mode: str = field(default="augment", metadata={"help": "`augment` or `rewrite`."})
    held_out: str | None = field(
        default=None, metadata={"help": "File of ids, one a line, never trained on; the loss is measured there."}
    )
    licences: list[str] = field(
        default_factory=list, metadata={"help": "Train only on rows of these licences; none given means all."}
    )
    weights: list[str] = field(
        default_factory=list,
        metadata={"help": "SOURCE=N: the rows of this source count N times (2, or 0.5 for every other row)."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use the first N training rows only (smoke runs)."})
    eval_limit: int | None = field(default=None, metadata={"help": "Use the first N held-out rows only (smoke runs)."})


@dataclass(frozen=True, slots=True)
class Example:
    """One training row: a prompt and what the model shall answer to it (empty: nothing to add)."""

    id: str
    prompt: str
    completion: str


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSONL file.

    Raises:
        ConfigurationError: The file is missing, or a line is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no file {path}."
        raise ConfigurationError(msg, hint="Give the training data with --data FILE.jsonl.")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                msg = f"{path}, line {number}: not JSON ({error})."
                raise ConfigurationError(msg, hint="Each line must be one JSON object.") from error
            if not isinstance(row, dict):
                msg = f"{path}, line {number}: not a JSON object."
                raise ConfigurationError(msg, hint="Each line must be one JSON object.")
            rows.append(row)
    return rows


def split_examples(
    rows: Iterable[dict[str, Any]],
    *,
    mode: str,
    held_out: Iterable[str] = (),
    licences: Sequence[str] = (),
    weights: Sequence[str] = (),
) -> tuple[list[Example], list[Example]]:
    """Split rows into training and held-out examples.

    Args:
        rows: Rows with `id`, `prompt`, `licence` and the completion's field.
        mode: `augment` or `rewrite`.
        held_out: Ids that are never trained on.
        licences: Licences whose rows may be trained on; empty means any. Held-out rows are kept whatever their licence:
            they only measure.
        weights: `SOURCE=N` for each source whose training rows are taken N times; N < 1 takes a share of them.

    Returns:
        Training examples, held-out examples.

    Raises:
        ConfigurationError: The mode is unknown or a row lacks a field.

    Example:
        >>> rows = [{"id": 0, "prompt": "Hi", "addition": ""}, {"id": 1, "prompt": "Why?", "addition": "Be brief."}]
        >>> train, test = split_examples(rows, mode="augment", held_out=["1"])
        >>> train[0].prompt, test[0].completion
        ('Hi', 'Be brief.')
    """
    if mode not in COMPLETION_FIELD:
        msg = f"Unknown mode {mode!r}."
        raise ConfigurationError(msg, hint="Use mode=augment or mode=rewrite.")
    kept_out = {str(identifier) for identifier in held_out}
    shares, taken = _shares(weights), dict[str, float]()
    train, test = [], []
    for row in rows:
        try:
            example = Example(str(row["id"]), str(row["prompt"]), str(row[COMPLETION_FIELD[mode]]))
        except KeyError as error:
            msg = f"A row lacks the field {error}."
            raise ConfigurationError(msg, hint=f"Mode {mode} needs id, prompt and {COMPLETION_FIELD[mode]}.") from error
        if example.id in kept_out:
            test.append(example)
        elif not licences or row.get("licence") in licences:
            source = str(row.get("source"))
            due = taken.get(source, 0.0) + shares.get(source, 1.0)
            train.extend([example] * int(due))
            taken[source] = due - int(due)
    return train, test


def _shares(weights: Sequence[str]) -> dict[str, float]:
    shares = {}
    for entry in weights:
        source, _, number = entry.rpartition("=")
        try:
            shares[source] = float(number)
        except ValueError:
            shares[source] = -1.0
        if not source or not 0 < shares[source] <= 100:
            msg = f"weights={entry!r} cannot be read."
            raise ConfigurationError(msg, hint="Write SOURCE=N, for example mt_bench=2.")
    return shares


def render(example: Example, mode: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Turn an example into (prompt ids, completion ids), exactly as an engine puts a prompt to the model.

    The completion ends with the end-of-turn token, which is all that an empty one consists of. Special tokens inside
    the text stay text.
    """
    head = tokenizer.apply_chat_template(
        [{"role": m["role"], "content": m["content"]} for m in FORMATS[mode].messages(example.prompt)],
        add_generation_prompt=True,
        return_dict=False,
        tokenizer_kwargs={"split_special_tokens": False},
    )
    tail = tokenizer.encode(example.completion, add_special_tokens=False, split_special_tokens=True)
    return list(head), [*tail, int(tokenizer.eos_token_id)]


def to_dataset(
    examples: Iterable[Example], *, mode: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Dataset:
    """Tokenise examples into TRL's prepared form: `input_ids`, and `labels` of -100 over the prompt.

    Rows longer than `max_length` tokens are left out rather than cut: a cut completion teaches to stop in the middle.
    """
    from datasets import Dataset

    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    special = [token for token in tokenizer.all_special_tokens if token]
    dropped = 0
    for example in examples:
        if any(token in example.prompt for token in special):
            dropped += 1
            continue
        head, tail = render(example, mode, tokenizer)
        if max_length is not None and len(head) + len(tail) > max_length:
            dropped += 1
            continue
        columns["input_ids"].append(head + tail)
        columns["labels"].append([-100] * len(head) + tail)
    logger.info("%d rows, %d left out (too long, or with role marks)", len(columns["input_ids"]), dropped)
    return Dataset.from_dict(columns)


def train(arguments: SFTArguments, config: Any, model_config: Any) -> dict[str, float]:
    """Train, resume where a checkpoint is found, and save the adapter (or the model) into `config.output_dir`.

    Args:
        arguments: The data and the mode.
        config: TRL's `SFTConfig`.
        model_config: TRL's `ModelConfig`; `model_name_or_path` may be `embedded`.

    Returns:
        The last evaluation's metrics, empty without held-out rows.
    """
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTTrainer, get_peft_config

    from bpo_integrations.engines.causal_lm import load_causal_lm
    from bpo_train.training.loss import CompletionLossTrainer

    spec = model_config.model_name_or_path or "embedded"
    model, tokenizer = load_causal_lm(spec, dtype=model_config.dtype or "float32")
    held_out = Path(arguments.held_out).read_text(encoding="utf-8").split() if arguments.held_out else []
    train_rows, test_rows = split_examples(
        read_rows(arguments.data),
        mode=arguments.mode,
        held_out=held_out,
        licences=arguments.licences,
        weights=arguments.weights,
    )
    if not train_rows:
        msg = "No training rows are left."
        raise ConfigurationError(msg, hint="Check --licences and --held_out against the data.")
    trainer_class = SFTTrainer if config.device.type == "cuda" else CompletionLossTrainer
    max_length = config.max_length
    config.dataset_kwargs = {**(config.dataset_kwargs or {}), "skip_prepare_dataset": True}  # prepared here, never cut
    trainer = trainer_class(
        model=model,
        args=config,
        train_dataset=to_dataset(
            train_rows[: arguments.limit], mode=arguments.mode, tokenizer=tokenizer, max_length=max_length
        ),
        eval_dataset=to_dataset(
            test_rows[: arguments.eval_limit], mode=arguments.mode, tokenizer=tokenizer, max_length=None
        )
        if test_rows
        else None,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
    )
    output = Path(config.output_dir)
    checkpoint = get_last_checkpoint(str(output)) if output.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics: dict[str, float] = trainer.evaluate() if test_rows else {}
    trainer.save_model(str(output))
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    return metrics


def main(argv: Sequence[str] | None = None) -> None:
    """Parse `--config recipe.yaml` and options over it, then train."""
    try:
        from trl import ModelConfig, SFTConfig, TrlParser
    except ImportError as error:
        raise MissingExtraError("trl", extra="train") from error
    kinds: Any = [SFTArguments, SFTConfig, ModelConfig]
    parser = TrlParser(kinds)
    arguments, config, model_config = parser.parse_args_and_config(args=list(argv) if argv is not None else None)
    logging.basicConfig(level=logging.INFO)
    metrics = train(arguments, config, model_config)
    for name, value in sorted(metrics.items()):
        click.echo(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
