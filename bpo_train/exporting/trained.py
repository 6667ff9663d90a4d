"""What a training run left behind: an adapter or whole weights, its base, and what `run.json` says of it.

Reads; writes nothing. A checkpoint inside a run's folder is a run, too: it shares the run's `run.json`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.errors import ConfigurationError, ModelFormatError, ModelNotFoundError
from bpo_integrations.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from bpo_integrations.models.base import BASE_ID, download_allowed, find_base
from bpo_train.training.run import RUN_FILE, holding, read_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WHOLE = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """One run, or several whose adapters are averaged.

    Args:
        folders: What was given: outputs of runs, or checkpoints.
        adapter: Whether they hold adapters; else whole weights.
        base: The base model's hub id or folder; empty where a full fine-tune does not say.
        facts: What the `run.json` of each folder says, in order; None where it has none.
    """

    folders: tuple[Path, ...]
    adapter: bool
    base: str
    facts: tuple[Mapping[str, Any] | None, ...] = field(default=(), repr=False)

    def fact(self, name: str) -> Any:
        """Return what all the runs say under a key of `run.json`; None where one says nothing, or another thing."""
        values = [None if facts is None else facts.get(name) for facts in self.facts]
        return values[0] if values and all(value == values[0] for value in values) else None


def read_trained(folders: Sequence[Path], *, base: str | None = None) -> TrainedRun:
    """Find out what runs hold; loads no weights.

    Args:
        folders: Outputs of runs, or checkpoints of theirs. Several must all hold adapters.
        base: The base model, instead of the one that the run names.

    Raises:
        ConfigurationError: A folder holds no weights, or several are not all adapters of one base.
    """
    if not folders:
        msg = "There is no run to export."
        raise ConfigurationError(msg, hint="Give the output folder of a run with --run.")
    kinds = {_is_adapter(folder) for folder in folders}
    if len(folders) > 1 and kinds != {True}:
        msg = "Only adapters are averaged; one of these runs holds whole weights."
        raise ConfigurationError(msg, hint="Give one run.")
    facts = tuple(_facts(folder) for folder in folders)
    adapter = kinds == {True}
    found = {_named_base(folder, about) for folder, about in zip(folders, facts, strict=True)}
    if base is None and len(found) > 1:
        msg = f"These runs have different bases: {', '.join(sorted(found))}."
        raise ConfigurationError(msg, hint="Average runs of one recipe.")
    named = base if base is not None else found.pop()
    if adapter and not named:
        msg = f"{folders[0]} does not say what it was trained on."
        raise ConfigurationError(msg, hint="Give --base, a hub id or a folder.")
    if named and Path(named).exists():
        named = str(Path(named).resolve())  # so that an adapter finds it from everywhere
    return TrainedRun(tuple(folders), adapter, named, facts)


def _is_adapter(folder: Path) -> bool:
    if (folder / ADAPTER_WEIGHTS).is_file():
        return True
    if any((folder / name).is_file() for name in _WHOLE):
        return False
    msg = f"{folder} holds neither {ADAPTER_WEIGHTS} nor {_WHOLE[0]}."
    raise ConfigurationError(msg, hint="Give the output folder of a finished run, or one of its checkpoints.")


def _facts(folder: Path) -> Mapping[str, Any] | None:
    place = holding(RUN_FILE, folder)
    return read_run(place) if place else None


def _named_base(folder: Path, facts: Mapping[str, Any] | None) -> str:
    if not (folder / ADAPTER_CONFIG).is_file():
        return str((facts or {}).get("base") or "")
    return str(adapter_config(folder).get("base_model_name_or_path") or (facts or {}).get("base") or "")


def adapter_config(folder: Path) -> dict[str, Any]:
    """Read the adapter's configuration.

    Raises:
        ModelFormatError: There is none, or it cannot be used.
    """
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): value for name, value in config.items()}
    except (OSError, ValueError, AttributeError) as error:
        msg = f"{path} cannot be used: {error}."
        raise ModelFormatError(msg, hint="Train again, or give another checkpoint.") from error


def loadable(base: str) -> str:
    """Return the spec under which this machine has a base: the embedded one is found without any hub."""
    if base != BASE_ID:
        return base
    try:
        find_base()
    except ModelNotFoundError:
        return base
    return "embedded"


def load_merged(run: TrainedRun, adapter: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load what a run learned as one model, in float32 on the CPU: 4 bytes a parameter.

    Args:
        run: What `read_trained` returned.
        adapter: The folder with the adapter that is merged into the base; not used for whole weights.

    Returns:
        The model, in evaluation mode, and the tokenizer that the run saved, else the base's.

    Raises:
        MissingExtraError: torch, transformers or peft is not installed.
        ModelNotFoundError: The base is not on this machine.
        ModelFormatError: The adapter does not fit the base.
    """
    from bpo_integrations.engines.causal_lm import load_causal_lm

    if not run.adapter:
        return load_causal_lm(str(run.folders[0]), allow_download=False)
    from peft import PeftModel
    from transformers import AutoTokenizer

    model, tokenizer = load_causal_lm(loadable(run.base), allow_download=download_allowed())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers in words of yesterday
            merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        msg = f"The adapter of {run.folders[0]} cannot be put on {run.base}: {error}"
        raise ModelFormatError(msg, hint="Give the base that it was trained on with --base.") from error
    if (run.folders[0] / "tokenizer.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(run.folders[0], local_files_only=True)
    return merged.eval(), tokenizer
