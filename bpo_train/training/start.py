"""Where preference training of a rewriter starts, and what it leaves behind; shared by `dpo.py` and `grpo.py`.

Promises: the adapter that training starts from is trainable, and the base under it is not; what is written is one
adapter (or a whole model) with `run.json` and `bpo.json` beside it, which `hf:DIR` loads.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bpo_integrations.errors import ConfigurationError, ModelFormatError
from bpo_integrations.models.adapter import ADAPTER_CONFIG
from bpo_integrations.result import Mode
from bpo_integrations.rewriter import RECORD_FILE, Record
from bpo_integrations.templates import PromptFormat
from bpo_train.data.outputs import replacing
from bpo_train.training.arguments import FORMATS, SFTArguments
from bpo_train.training.run import RUN_FILE, describe_run, holding, read_run, write_run
from bpo_train.training.sft import load_model

SHIPPED = "shipped"
"""Names the adapter inside the package, of the mode that is trained."""

REFERENCE = "ref"
"""TRL's name of the frozen copy of the adapter that training starts from."""


def start_folder(adapter: str | None, spec: str, mode: Mode) -> Path | None:
    """Return the folder of the adapter that training starts from; None where a new one is made.

    Args:
        adapter: `shipped`, a folder that PEFT or `bpo-train` wrote, or None for a new adapter on a model that was
            fine-tuned as a whole.
        spec: The base's spec.
        mode: Chooses the shipped adapter.

    Raises:
        ConfigurationError: The shipped adapter is wanted for another base, or the folder holds no adapter.
    """
    if adapter is None:
        return None
    if adapter == SHIPPED:
        if spec != "embedded":
            msg = f"The shipped adapter is for the embedded base, not for {spec}."
            raise ConfigurationError(msg, hint="Give the adapter that was trained on that model with --adapter DIR.")
        return _shipped(mode)
    folder = Path(adapter).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        msg = f"{folder} holds no {ADAPTER_CONFIG}."
        raise ConfigurationError(msg, hint="Give the output folder of a LoRA run with --adapter DIR.")
    return folder


def prompt_format(start: Path | None, spec: str, mode: Mode) -> PromptFormat:
    """Return how a prompt is put to the model: as its `bpo.json` or `run.json` says, else as the mode has it.

    Args:
        start: The adapter that training starts from.
        spec: The model's spec; a folder may have the two files as well.
        mode: The mode.

    Raises:
        ConfigurationError: It was trained in the other mode.
    """
    for folder in (start, Path(spec)):
        if folder is not None and (place := holding(RECORD_FILE, folder)):
            record = Record.read(place)
            return _of_mode(record.mode, mode, folder, record.format)
        if folder is not None and (place := holding(RUN_FILE, folder)):
            run = read_run(place)
            return _of_mode(run.get("mode", mode), mode, folder, PromptFormat(**run["format"]))
    return FORMATS[mode]


def _of_mode(trained: str, wanted: str, folder: Path, form: PromptFormat) -> PromptFormat:
    if trained != wanted:
        msg = f"{folder} was trained in mode {trained!r}, not {wanted!r}."
        raise ConfigurationError(msg, hint=f"Give --mode {trained}, and rows of that mode.")
    return form


def load_start(folder: Path | None, config: Any, model_config: Any) -> tuple[Any, Any, Any]:
    """Load the model to train.

    Args:
        folder: The adapter to go on from; None for a new one, or for the whole model.
        config: TRL's configuration of the training.
        model_config: TRL's `ModelConfig`; its options of LoRA count only where there is no adapter yet.

    Returns:
        The model, its tokenizer, and PEFT's configuration of the new adapter (None where there is one, or none is
        wanted).

    Raises:
        ModelNotFoundError: The weights are not on this machine.
        ModelFormatError: The adapter does not fit.
        ConfigurationError: A quantized base was asked for.
    """
    from trl import get_peft_config

    if model_config.load_in_4bit or model_config.load_in_8bit:
        msg = "Preference training does not take a quantized base."
        raise ConfigurationError(msg, hint="Leave out load_in_4bit and load_in_8bit; --dtype bfloat16 halves it.")
    model: Any
    model, tokenizer = load_model(config, model_config)
    if folder is None:
        return model, tokenizer, get_peft_config(model_config)
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        msg = f"The adapter {folder} cannot be put on {model_config.model_name_or_path or 'embedded'}: {error}"
        raise ModelFormatError(msg, hint="Give the base that it was trained on with --model_name_or_path.") from error
    return model, tokenizer, None


def finish(
    trainer: Any,
    *,
    start: Path | None,
    mode: Mode,
    form: PromptFormat,
    model_config: Any,
    run: Mapping[str, Any],
) -> None:
    """Save the trained adapter (or model), and write `run.json` and, where the start has one, `bpo.json` beside it.

    Args:
        trainer: TRL's trainer, after training.
        start: The adapter that training started from.
        mode: The mode.
        form: The prompt format.
        model_config: TRL's `ModelConfig`.
        run: What else `run.json` shall say: `stage`, `data`, `metrics`, and what is the stage's own.

    Raises:
        FileError: A file cannot be written.
    """
    output = Path(trainer.args.output_dir)
    trainer.save_model(str(output))
    if not trainer.is_world_process_zero():
        return
    shutil.rmtree(output / REFERENCE, ignore_errors=True)  # the start, which is kept in the checkpoints alone
    if start is not None and (place := holding(RECORD_FILE, start)):
        record = replace(Record.read(place), name=output.name)
        with replacing(output / RECORD_FILE) as file:
            file.write(record.to_json())
    said = SimpleNamespace(mode=mode, format_name=_name(form), format=form)
    described = describe_run(trainer, cast("SFTArguments", said), model_config)
    if start is not None:
        described["method"] = "lora"
        described["start"] = str(start) if start != _shipped(mode) else SHIPPED
    training = {**described["training"], **run.get("training", {})}
    write_run(output, {**described, "files": [], **run, "training": training})


def _name(form: PromptFormat) -> str:
    return next((name for name, known in FORMATS.items() if known == form), "other")


def _shipped(mode: Mode) -> Path:
    import bpo_integrations

    return Path(bpo_integrations.__file__).parent / "models" / mode
