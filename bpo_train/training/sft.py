"""Supervised fine-tuning of a rewriter: `prompt -> what to add` (augment) or `prompt -> better prompt` (rewrite).

    bpo-train sft --config smollm2-135m/augment --data additions.jsonl --held_out held_out_ids.txt --output_dir runs/a
    bpo-train sft --config llama-2-7b-chat/rewrite --data out/rewrite --accelerate_config zero2 --num_processes 8

Reads rows, puts each prompt in the format that is later stored beside the weights (`bpo.json`), and trains with TRL's
`SFTTrainer`, the loss on the completion only (paper, section 3.3). A run that was killed goes on from its last complete
checkpoint, with the losses that it would have had. Writes the weights, `run.json` and `loss.png`. It does not choose
data: see `bpo_train.data`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpo_integrations.cli.exits import FileError, os_error
from bpo_integrations.errors import ConfigurationError, EngineError, MissingExtraError
from bpo_train.cli_data import exits
from bpo_train.training.arguments import COMPLETION_FIELD, FORMATS, SFTArguments
from bpo_train.training.checkpoints import keep_to_options, last_checkpoint
from bpo_train.training.curves import draw_curves
from bpo_train.training.launch import launch, launch_command, wants_launch
from bpo_train.training.rows import (
    Example,
    encode,
    fitting,
    load_data,
    read_rows,
    render,
    split_examples,
    to_dataset,
    write_chat_rows,
)
from bpo_train.training.run import describe_data, describe_run, sha256, write_run
from bpo_train.training.setup import Machine, accumulation, check_setup

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "COMPLETION_FIELD",
    "FORMATS",
    "Example",
    "SFTArguments",
    "encode",
    "load_model",
    "main",
    "read_rows",
    "render",
    "split_examples",
    "to_dataset",
    "train",
]

logger = logging.getLogger(__name__)

DECISIVE = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("weight_decay", "max_grad_norm", "max_length", "train_sampling_strategy", "seed", "data_seed", "bf16", "fp16"),
    *("model_name_or_path", "dtype", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
    *("load_in_4bit", "load_in_8bit", "use_rslora", "use_dora"),
)
"""TRL's options that decide the losses. Not the number of steps: a finished run may be made longer."""


def train(arguments: SFTArguments, config: Any, model_config: Any) -> dict[str, float]:
    """Train, resume where a checkpoint is found, and save the adapter (or the model) into `config.output_dir`.

    Args:
        arguments: The data and the mode.
        config: TRL's `SFTConfig`.
        model_config: TRL's `ModelConfig`; `model_name_or_path` may be `embedded`.

    Returns:
        The last evaluation's metrics, empty without held-out rows.

    Raises:
        ConfigurationError: The data or the output folder do not go with the options.
        FileError: A file cannot be written.
    """
    from bpo_train.training.watch import GenerationWatch

    began = time.monotonic()
    output = Path(config.output_dir)
    data = load_data(arguments)
    config.gradient_accumulation_steps = accumulation(
        arguments.total_batch_size,
        config.per_device_train_batch_size,
        config.world_size,
        config.gradient_accumulation_steps,
    )
    checkpoint = last_checkpoint(output)
    decisive = decisive_options(arguments, config, model_config, data.file)
    keep_to_options(output, decisive, started=checkpoint is not None, write=config.process_index == 0)

    model, tokenizer = load_model(config, model_config)
    encoded = encode(data.train, arguments.format, tokenizer)
    rows = fitting(encoded, config.max_length, allow_dropping=arguments.allow_dropping)
    held_out = encode(data.held_out, arguments.format, tokenizer)
    dropped = {**data.dropped, "too long": len(encoded) - len(rows)}
    logger.info("%d rows to train on, %d held out; left out: %s", len(rows), len(held_out), dropped)
    trainer = make_trainer(
        model, tokenizer, config, model_config, train=to_dataset(rows), held_out=to_dataset(held_out)
    )
    watch = GenerationWatch(trainer, [example.prompt for example in data.held_out], arguments)
    if watch.possible:
        trainer.add_callback(watch)
    with failures():
        result = trainer.train(resume_from_checkpoint=config.resume_from_checkpoint or (checkpoint and str(checkpoint)))
        metrics = last_evaluation(trainer) if held_out else {}
        trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        run = describe_run(trainer, arguments, model_config)
        run["data"] = describe_data(data.file, rows, dropped, arguments)
        run["eval_data"] = describe_data(data.eval_file, held_out) if held_out else None
        run["training"] |= {"resumed_from": checkpoint and int(checkpoint.name.rpartition("-")[2])}
        run["training"] |= {"seconds": round(time.monotonic() - began, 1)}
        run["metrics"] = {**metrics, "train_loss": result.training_loss}
        write_run(output, run | {"files": draw_curves(output, trainer.state.log_history)})
    trainer.accelerator.end_training()
    return metrics


def make_trainer(
    model: Any, tokenizer: Any, config: Any, model_config: Any, *, train: Dataset, held_out: Dataset
) -> Any:
    """Return the trainer; the rows are in TRL's prepared form, and are neither tokenised nor cut again.

    Raises:
        ConfigurationError: TRL or PEFT refuses the options.
    """
    from trl import get_peft_config

    from bpo_train.training.loss import CompletionLossTrainer

    config.dataset_kwargs = {**(config.dataset_kwargs or {}), "skip_prepare_dataset": True}
    if config.padding_free:
        config.max_length = None  # TRL asks for it; the rows keep to it already
    if not held_out:
        config.eval_strategy = "no"
    try:
        return CompletionLossTrainer(
            model=model,
            args=config,
            train_dataset=train,
            eval_dataset=held_out or None,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )
    except (ValueError, ImportError) as error:
        msg = f"The trainer refuses these options: {error}"
        raise ConfigurationError(msg, hint="Correct the recipe or the command line.") from error


def last_evaluation(trainer: Any) -> dict[str, float]:
    """Return the evaluation of the last step; from the log where there was one."""
    step = trainer.state.global_step
    logged = [entry for entry in trainer.state.log_history if entry["step"] == step]
    found = {name: value for entry in logged for name, value in entry.items()}
    found = found if "eval_loss" in found else trainer.evaluate()
    return {name: value for name, value in found.items() if name.startswith("eval_")}


def load_model(config: Any, model_config: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return the model and its tokenizer; quantized for QLoRA, and then on its device already.

    Raises:
        ModelNotFoundError: The weights are not to be found.
        ConfigurationError: The tokenizer names no token that ends a turn.
    """
    from bpo_integrations.engines.causal_lm import load_causal_lm
    from bpo_integrations.engines.generation import check_packages

    quantize: Any = "4bit" if model_config.load_in_4bit else "8bit" if model_config.load_in_8bit else None
    if quantize:
        check_packages(["bitsandbytes"], extra="quantize")
    spec = model_config.model_name_or_path or "embedded"
    model, tokenizer = load_causal_lm(
        spec, dtype=model_config.dtype or "float32", quantize=quantize, device=str(config.device)
    )
    if model_config.attn_implementation is not None:
        model.set_attn_implementation(model_config.attn_implementation)
    if tokenizer.eos_token_id is None:
        msg = f"The tokenizer of {spec} names no token that ends a turn."
        raise ConfigurationError(msg, hint="Take the family's chat model, or set eos_token in tokenizer_config.json.")
    return model, tokenizer


def decisive_options(arguments: SFTArguments, config: Any, model_config: Any, file: str) -> dict[str, Any]:
    """Return what decides the losses of a run, by name, as JSON has it."""
    found: dict[str, Any] = {
        "data": sha256(Path(file)),
        "mode": arguments.mode,
        "prompt_format": arguments.format_name,
        "held_out": sha256(Path(arguments.held_out)) if arguments.held_out else None,
        "licences": arguments.licences,
        "weights": arguments.weights,
        "limit": arguments.limit,
    }
    return found | trainers_options(config, model_config)


def trainers_options(config: Any, model_config: Any, *more: str) -> dict[str, Any]:
    """Return those of TRL's options that decide the losses: `DECISIVE`, `more`, and how many rows make a step."""
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    found: dict[str, Any] = {"rows_a_step": rows}
    for name in (*DECISIVE, *more):
        value = getattr(config, name, getattr(model_config, name, None))
        found[name] = getattr(value, "value", value)
    return found


@contextmanager
def failures() -> Iterator[None]:
    """Turn a full disk and a full GPU, in the middle of a run, into errors of ours.

    Raises:
        FileError: A file cannot be written.
        EngineError: The device's memory is full.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        msg = "The GPU's memory is full."
        hint = (
            "Halve --per_device_train_batch_size and double --gradient_accumulation_steps (or give --total_batch_size);"
            " or --gradient_checkpointing true; or LoRA instead of full training."
        )
        raise EngineError(msg, hint=hint) from error
    except OSError as error:
        raise os_error(error, "The run cannot be saved", hint="The same command goes on from here.") from error
    except Exception as error:
        # torch and safetensors have errors of their own for a disk that is full.
        signs = ("no space left", "file write failed", "failed writing file")
        if not any(sign in str(error).lower() for sign in signs):
            raise
        msg = "The run cannot be saved: the disk is full."
        raise FileError(msg, hint="Free some space; the same command goes on from here.") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Parse `--config recipe.yaml` and the options over it, then train, or start the processes that do.

    Raises:
        ConfigurationError: The options cannot work; nothing has been loaded then.
    """
    try:
        from bpo_train.training.options import sft_parser, with_recipe_path
    except ImportError as error:
        raise MissingExtraError(error.name or "trl", extra="train") from error
    options = with_recipe_path(sys.argv[1:] if argv is None else argv)
    parser = sft_parser()
    values, unknown = parser.preview(options)
    if wants_launch(unknown):
        import torch

        sys.exit(launch(launch_command("bpo_train.training.sft", options, unknown, gpus=torch.cuda.device_count())))
    if unknown:
        msg = f"Unknown options: {' '.join(unknown)}."
        raise ConfigurationError(msg, hint="All options: bpo-train sft --help.")
    machine = Machine.here()
    check_setup(values, machine, options)
    if machine.processes > 1 and not machine.gpus:
        options += ["--use_cpu", "true"]  # else each process trains on its own, and says nothing
    arguments, config, model_config = parser.parse(options)
    logging.basicConfig(level=logging.INFO)
    if arguments.write_rows is not None:
        data = load_data(arguments)
        write_chat_rows(Path(arguments.write_rows), data, arguments.format)
        click.echo(f"{len(data.train)} and {len(data.held_out)} rows written to {arguments.write_rows}.")
        return
    for name, value in sorted(train(arguments, config, model_config).items()):
        if config.process_index == 0:
            click.echo(f"{name}: {value:.4f}")


if __name__ == "__main__":  # one of several processes
    with exits():
        main()
