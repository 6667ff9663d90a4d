"""`run.json`: what a finished training run was. The exporter writes `bpo.json` and the model card from it.

Promises: plain JSON, written in one step when the run is finished, and again when it goes on. Its keys:

- `schema`: 1. `stage`: `sft` (or `dpo`, `grpo`: the same keys, where they apply). `finished`: when, in UTC, ISO 8601.
- `mode`: `augment` or `rewrite`.
- `format_name`: the prompt format's name. `format`: `{"system", "user", "history"}`, the arguments of `PromptFormat`.
- `base`: the base model's hub id where it is known, else the spec. `model`: the spec that was trained (`embedded`, a
  file, a folder, a hub id).
- `method`: `full`, `lora` or `qlora`; after the last two the output folder holds an adapter.
- `data`, of the training rows: `file` (as it was given), `sha256`, `rows` (with repetitions), `distinct`, `licences`
  and `sources` (rows by name), `tokens`, `completion_tokens`, `dropped` (rows by `licence`, `limit`, `too long`),
  and what was asked for: `licences_asked`, `weights`.
- `eval_data`: the same of the rows that were held out; null without.
- `hyperparameters`: every option of TRL's `SFTConfig` and `ModelConfig` that differs from its default, and the
  optimizer's in any case; no folders, no names of runs, no keys.
- `training`: `steps`, `epochs`, `rows_a_step`, `processes`, `parameters`, `trainable_parameters`, `resumed_from` (a
  step, or null), `seconds` (since this start of the run).
- `metrics`: of the last evaluation `eval_loss` (nats per completion token), `eval_violations` and `eval_unchanged`
  (shares, see `watch.py`); and `train_loss`.
- `start`, after `dpo` and `grpo`: the adapter that was gone on from, `shipped` or as it was given. `rewards`, after
  `grpo`: who answered and compared.
- `device`: `kind` (`cuda`, `cpu`, `mps`), `name`, `dtype` (of the weights), `bf16`.
- `versions`: of Python and of the packages that trained. `files`: what else lies in the folder (`loss.png`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.models.base import BASE_ID
from bpo_train.data.outputs import replacing

if TYPE_CHECKING:
    from bpo_train.training.arguments import SFTArguments
    from bpo_train.training.rows import Encoded

RUN_FILE = "run.json"
RUN_SCHEMA = 1

PACKAGES = ("bpo-integrations", "torch", "transformers", "trl", "peft", "accelerate", "datasets")
_PRIVATE = ("token", "_dir", "run_name", "hub_", "push_to_hub", "trackio", "project", "mlflow", "report_to")
_DULL = (
    "accelerator_config",
    "activation_checkpointing",
    "dataset_kwargs",
    "debug",
    "disable_tqdm",
    "do_eval",
    "use_cpu",
)
_ALWAYS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_length", "optim", "adam_beta1"),
    *("adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "per_device_train_batch_size", "seed"),
    *("gradient_accumulation_steps", "train_sampling_strategy", "gradient_checkpointing", "bf16"),
)
_OF_LORA = ("lora_r", "lora_alpha", "lora_dropout")


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write `run.json`, in one step.

    Raises:
        FileError: It cannot be written.
    """
    with replacing(folder / RUN_FILE) as file:
        file.write(dump({"schema": RUN_SCHEMA, **run}, indent=2) + "\n")


def read_run(folder: Path) -> dict[str, Any]:
    """Read `run.json` in a run's output folder.

    Raises:
        ConfigurationError: There is none, or it cannot be used.
    """
    path = folder / RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{folder} holds no {RUN_FILE}."
        raise ConfigurationError(msg, hint="Give the output folder of a finished run of bpo-train.") from error
    except ValueError as error:
        msg = f"{path} is no JSON: {error}."
        raise ConfigurationError(msg, hint="Start the same training again; it writes the file anew.") from error
    if not isinstance(run, dict) or run.get("schema") != RUN_SCHEMA:
        msg = f"{path} is not of schema {RUN_SCHEMA}."
        raise ConfigurationError(msg, hint="Train again with this version of bpo-train.")
    return run


def holding(name: str, folder: Path) -> Path | None:
    """Return the folder that holds a file of a run: the one that is given or, of a checkpoint, the one above.

    Args:
        name: The file's.
        folder: The output of a run, or a checkpoint in it.

    Returns:
        None where neither holds it.
    """
    whole = folder.resolve()
    places = (folder, whole.parent) if whole.name.startswith("checkpoint-") else (folder,)
    return next((place for place in places if (place / name).is_file()), None)


def describe_data(
    file: str,
    rows: Sequence[Encoded],
    dropped: Mapping[str, int] | None = None,
    arguments: SFTArguments | None = None,
) -> dict[str, Any]:
    """Return what `run.json` says about rows.

    Args:
        file: The file that they are from, as the user named it.
        rows: The rows that are used.
        dropped: Rows that are not, by reason.
        arguments: What the user asked for; None of rows that only measure.
    """
    examples = [row.example for row in rows]
    found = {
        "file": file,
        "sha256": sha256(Path(file)),
        "rows": len(rows),
        "distinct": len({example.id for example in examples}),
        "licences": _counted(example.licence for example in examples),
        "sources": _counted(example.source for example in examples),
        "tokens": sum(map(len, rows)),
        "completion_tokens": sum(len(row.completion) for row in rows),
        "dropped": {reason: count for reason, count in (dropped or {}).items() if count},
    }
    if arguments is not None:
        found |= {"licences_asked": arguments.licences, "weights": arguments.weights}
    return found


def describe_run(trainer: Any, arguments: SFTArguments, model_config: Any) -> dict[str, Any]:
    """Return what `run.json` says about a finished run, without its data, metrics and seconds.

    Args:
        trainer: TRL's trainer, after `train()`.
        arguments: The mode and the format.
        model_config: TRL's `ModelConfig`.
    """
    config, state = trainer.args, trainer.state
    spec = model_config.model_name_or_path or "embedded"
    quantized = model_config.load_in_4bit or model_config.load_in_8bit
    kind = config.device.type
    parameters = list(trainer.model.parameters())
    return {
        "stage": "sft",
        "finished": now(),
        "mode": arguments.mode,
        "format_name": arguments.format_name,
        "format": asdict(arguments.format),
        "base": BASE_ID if spec == "embedded" else spec,
        "model": spec,
        "method": "qlora" if quantized else "lora" if model_config.use_peft else "full",
        "hyperparameters": hyperparameters(config, model_config),
        "training": {
            "steps": state.global_step,
            "epochs": round(state.epoch or 0.0, 4),
            "rows_a_step": config.train_batch_size * config.gradient_accumulation_steps * config.world_size,
            "processes": config.world_size,
            "parameters": sum(map(_size, parameters)),
            "trainable_parameters": sum(_size(parameter) for parameter in parameters if parameter.requires_grad),
        },
        "device": {
            "kind": kind,
            "name": _device_name(kind),
            "dtype": model_config.dtype or "float32",
            "bf16": bool(config.bf16),
        },
        "versions": versions(),
    }


def _size(parameter: Any) -> int:
    """Return how many numbers a parameter has: ZeRO-3 leaves none in place, and 4-bit weights lie two in a byte."""
    size = int(getattr(parameter, "ds_numel", parameter.numel()))
    return 2 * parameter.element_size() * size if type(parameter).__name__ == "Params4bit" else size


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _device_name(kind: str) -> str:
    if kind != "cuda":
        return platform.machine()
    import torch

    return torch.cuda.get_device_name()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        ConfigurationError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}."
        raise ConfigurationError(msg, hint="Give the training data with --data FILE.jsonl.") from error


def hyperparameters(*configs: Any) -> dict[str, Any]:
    """Return the options of dataclasses that differ from their defaults, and those that a reader asks for anyway.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Options:
        ...     learning_rate: float = 2e-5
        ...     lora_r: int = 16
        ...     output_dir: str = "out"
        >>> hyperparameters(Options(lora_r=8, output_dir="/home/me"))
        {'learning_rate': 2e-05, 'lora_r': 8}
    """
    found: dict[str, Any] = {}
    for config in configs:
        adapted = getattr(config, "use_peft", False)
        for name, field in config.__dataclass_fields__.items():
            value = getattr(config, name)
            default = field.default_factory() if callable(field.default_factory) else field.default
            shown = value != default or name in (_ALWAYS + _OF_LORA if adapted else _ALWAYS)
            if field.init and shown and name not in _DULL and not any(part in name for part in _PRIVATE):
                found[name] = _plain(value)
    return dict(sorted(found.items()))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that train."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return getattr(value, "value", value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return str(getattr(value, "value", value))
