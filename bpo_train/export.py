"""From a training run to what a rewriter is loaded from: adapter, merged weights, CTranslate2, GGUF.

Promises: every form carries `bpo.json` and a model card written from the run; all forms appear together and whole, or
not at all. The forms are modules of `bpo_train.exporting`; this one puts the steps in a row. It uploads nothing: see
`exporting/hub.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_integrations.models.base import BASE_ID
from bpo_integrations.models.convert import Quantization
from bpo_integrations.result import Mode
from bpo_integrations.rewriter import RECORD_FILE, Record
from bpo_train.exporting.adapter import copy_tokenizer, export_adapter
from bpo_train.exporting.ct2 import check_prompts, write_ct2
from bpo_train.exporting.folder import whole_folder
from bpo_train.exporting.gguf_writer import GGUFType, write_gguf
from bpo_train.exporting.merged import write_merged
from bpo_train.exporting.record import record_of
from bpo_train.exporting.trained import TrainedRun, load_merged, read_trained
from bpo_train.model_card import Card, render

Form = Literal["adapter", "merged", "ct2", "gguf"]
FORMS: tuple[Form, ...] = get_args(Form)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Export:
    """What is exported from where, and how.

    Args:
        runs: Outputs of `bpo-train sft` or `dpo`, or checkpoints of theirs. The adapters of several are averaged.
        output: The folder of the export. One form lies in it, several in folders of their names (`output/ct2`).
        forms: What is written; empty is `adapter` for an adapter, `merged` for whole weights.
        mode: What the model was trained for; None takes what the run says.
        name: The rewriter's name; None takes the output folder's.
        base: The base model's hub id or folder; None takes the run's.
        record: Fields of `bpo.json` that override what the run says, for example `{"languages": ("de",)}`.
        dtype: Of `adapter` and `merged`; None is bfloat16 for the first and float32 for the second.
        ct2_type: Of `ct2`.
        gguf_type: Of `gguf`.
        licence: What the model card shall name as the model's licence; empty leaves it open.
        overwrite: Replace an earlier export in `output`.

    Raises:
        ConfigurationError: A form or a type is unknown.

    Example:
        >>> export(Export([Path("runs/mine")], Path("mine"), ("ct2", "gguf")))  # doctest: +SKIP
        {'ct2': PosixPath('mine/ct2'), 'gguf': PosixPath('mine/gguf')}
    """

    runs: Sequence[Path]
    output: Path
    forms: Sequence[Form] = ()
    mode: Mode | None = None
    name: str | None = None
    base: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    ct2_type: Quantization = "int8"
    gguf_type: GGUFType = "q8_0"
    licence: str = ""
    overwrite: bool = False

    def __post_init__(self) -> None:
        for value, known, what in (
            *((form, FORMS, "form") for form in self.forms),
            (self.dtype, (None, *DTYPES), "dtype"),
            (self.ct2_type, get_args(Quantization), "CTranslate2 type"),
            (self.gguf_type, get_args(GGUFType), "GGUF type"),
        ):
            if value not in known:
                msg = f"Unknown {what} {value!r}."
                raise ConfigurationError(msg, hint=f"Use one of {', '.join(filter(None, known))}.")


def export(wanted: Export) -> dict[Form, Path]:
    """Write the forms.

    Returns:
        Each form's folder, which `load_rewriter` loads: `hf:` (adapter, merged), `ct2:` or `gguf:` and the folder.

    Raises:
        ConfigurationError: The run cannot be read, or does not say what has to be known; a form does not go with it.
        ModelNotFoundError: The base is not on this machine.
        ModelFormatError: The model cannot be put into a form.
        MissingExtraError: A package is not installed.
        FileError: The output folder is in use, or cannot be written.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("torch", extra="train") from error
    run = read_trained(wanted.runs, base=wanted.base)
    forms: list[Form] = list(dict.fromkeys(wanted.forms)) or ["adapter" if run.adapter else "merged"]
    if "adapter" in forms and not run.adapter:
        msg = f"{run.folders[0]} holds whole weights, no adapter."
        raise ConfigurationError(msg, hint="Export it with --to merged, ct2 or gguf.")
    name = wanted.name or wanted.output.resolve().name
    record = record_of(run, name=name, mode=wanted.mode, chosen=wanted.record)
    sources = [*run.folders, *([Path(run.base)] if run.base and Path(run.base).exists() else [])]
    with whole_folder(wanted.output, overwrite=wanted.overwrite, sources=sources) as unfinished:
        folders = {form: unfinished / form if len(forms) > 1 else unfinished for form in forms}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        _write(run, record, folders, wanted)
        for form, folder in folders.items():
            (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
            card = Card(record, form, _storage(form, wanted), run.facts, wanted.licence)
            (folder / "README.md").write_text(render(card), encoding="utf-8")
    return {form: wanted.output / form if len(forms) > 1 else wanted.output for form in forms}


def _storage(form: Form, wanted: Export) -> str:
    """Return how the weights of a form are stored."""
    if form in ("adapter", "merged"):
        return wanted.dtype or ("bfloat16" if form == "adapter" else "float32")
    return wanted.ct2_type if form == "ct2" else wanted.gguf_type.upper()


def _write(run: TrainedRun, record: Record, folders: Mapping[Form, Path], wanted: Export) -> None:
    """Write the weights of every form; merged ones last, which rounds the model in memory."""
    if "adapter" in folders:
        folder = folders["adapter"]
        export_adapter(run.folders, folder, record, base=run.base, dtype=_storage("adapter", wanted))
        if run.base != BASE_ID:
            copy_tokenizer(run.folders[0], folder)
    if set(folders) <= {"adapter"}:
        return
    with tempfile.TemporaryDirectory(prefix="bpo-") as averaged:
        adapter = run.folders[0]
        if len(run.folders) > 1:
            adapter = export_adapter(run.folders, Path(averaged), record, base=run.base, dtype="float32")
        model, tokenizer = load_merged(run, adapter)
    if {"ct2", "gguf"} & set(folders):  # one engine runs both
        check_prompts(tokenizer, record.format)
    if "ct2" in folders:
        write_ct2(model, tokenizer, folders["ct2"], quantization=wanted.ct2_type)
    if "gguf" in folders:
        path = folders["gguf"] / f"{_file_name(record.name)}.{wanted.gguf_type.upper()}.gguf"
        write_gguf(model, tokenizer, path, kind=wanted.gguf_type, name=record.name)
    if "merged" in folders:
        write_merged(model, tokenizer, folders["merged"], dtype=_storage("merged", wanted))


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
