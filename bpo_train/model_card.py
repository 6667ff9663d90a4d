"""The model card of an exported rewriter (README.md): what `run.json` says, in words and tables, and what it does not.

Promises: every figure in it is one of the run's; whatever the run does not say is named as unknown. It never says that
the model helps: that is measured elsewhere. The head is the metadata that the Hugging Face hub reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpo_integrations.errors import MissingExtraError
from bpo_integrations.rewriter import Record
from bpo_train.data.card import is_non_commercial, table

FORMS: dict[str, tuple[str, str, str]] = {
    "adapter": ("peft", "hf", "A LoRA adapter for {base}, which is loaded with it"),
    "merged": ("transformers", "hf", "Whole weights, as safetensors"),
    "ct2": ("ctranslate2", "ct2", "Whole weights, converted for CTranslate2, which runs them on a CPU without torch"),
    "gguf": ("gguf", "gguf", "Whole weights in one GGUF file, as llama.cpp and what is built on it read them"),
}
"""By form: the hub's name of the library, the kind of spec that loads it, and what it is."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SFT_METRICS = {
    "train_loss": "loss on the training rows, nats a token, mean over the run",
    "eval_loss": "loss on the held-out rows, nats a token",
    "eval_violations": "share of generations on held-out prompts that a guard rejects",
    "eval_unchanged": "share of held-out prompts that are left as they are",
}
_NO_FIGURE = re.compile(r"_(runtime|per_second|num_tokens)$|^eval_generations$|^epoch$")
"""Metrics that tell how long something took or how much there was, and nothing about the model."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a card is written from.

    Args:
        record: The exported `bpo.json`.
        form: `adapter`, `merged`, `ct2` or `gguf`.
        storage: How the weights are stored, for example `int8`.
        runs: What the `run.json` of each run says; None where there is none. More than one means that their adapters
            were averaged.
        licence: The licence that the user gives the model, as the hub writes it; empty where they gave none.
    """

    record: Record
    form: str
    storage: str
    runs: Sequence[Mapping[str, Any] | None] = (None,)
    licence: str = ""


def render(card: Card) -> str:
    """Return the text of the card.

    Raises:
        MissingExtraError: huggingface_hub is not installed.

    Example:
        >>> from bpo_integrations.rewriter import PAPER_RECORD
        >>> "does not say what data" in render(Card(PAPER_RECORD, "merged", "float32"))
        True
    """
    record = card.record
    parts = [
        _head(card),
        f"# {record.name}",
        _summary(card),
        "**Not claimed:** that what it writes makes any LLM's answers better. Nothing in this card has measured that; "
        "`bpo-train evaluate` does, on your LLM and your prompts.",
        _use(card),
        _prompts(record),
    ]
    for number, run in enumerate(_distinct(card.runs), start=1):
        heading = f" of run {number}" if len(_distinct(card.runs)) > 1 else ""
        parts += [_data(run, heading), _training(run, heading), _figures(run, heading)]
    parts += [_licences(card), _versions(card.runs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _distinct(runs: Sequence[Mapping[str, Any] | None]) -> list[Mapping[str, Any]]:
    """Return each run once: averaged checkpoints share theirs."""
    found: list[Mapping[str, Any]] = []
    for run in runs:
        if (run or {}) not in found:
            found.append(run or {})
    return found


def _head(card: Card) -> str:
    try:
        from huggingface_hub import ModelCardData
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", extra="train") from error
    data = ModelCardData(
        base_model=card.record.base if _HUB_ID.fullmatch(card.record.base) else None,
        library_name=FORMS[card.form][0],
        license=card.licence or None,
        language=list(card.record.languages) or None,
        pipeline_tag="text-generation",
        tags=["prompt-optimization", "bpo", card.record.mode, *(["lora"] if card.form == "adapter" else [])],
    )
    return f"---\n{data.to_yaml()}\n---"


def _summary(card: Card) -> str:
    what = {
        "augment": "Says what to add to a prompt: `prompt -> one or two sentences, or nothing`. Code appends that to "
        "the prompt, whose own words stay byte for byte.",
        "rewrite": "Rewrites a prompt: `prompt -> better prompt`.",
    }[card.record.mode]
    kind = FORMS[card.form][2].format(base=card.record.base or "its base")
    merged = f", trained from {card.record.base}" if card.record.base and card.form != "adapter" else ""
    text = (
        f"{what} Made by black-box prompt optimization (BPO, [arXiv 2311.04155](https://arxiv.org/abs/2311.04155)). "
        f"{kind} ({card.storage}){merged}."
    )
    if len(card.runs) > 1:
        text += f" Its weights are the mean of {len(card.runs)} trained adapters."
    return text


def _use(card: Card) -> str:
    kind = FORMS[card.form][1]
    return (
        "## Use\n\n```python\nfrom bpo_integrations import BPORunnable\n\n"
        f'chain = BPORunnable(model="{kind}:DIR") | llm  # DIR: the folder with these files\n```'
    )


def _prompts(record: Record) -> str:
    turns = {"system": record.format.system, "user": record.format.user, "history": record.format.history or None}
    lines = [f"{name}: {json.dumps(text, ensure_ascii=False)}" for name, text in turns.items() if text is not None]
    rows: list[tuple[str, Any]] = [
        ("languages", ", ".join(record.languages) or "any"),
        ("longest prompt, tokens", f"{record.max_prompt_tokens:,}"),
        ("new tokens, at most", _budget(record)),
        ("repetition penalty", f"{record.repetition_penalty:g}"),
    ]
    if record.empty_threshold is not None:
        rows.append(("adds nothing from this probability of nothing on", f"{record.empty_threshold:g}"))
    return (
        "## How it is asked\n\nIn the base model's chat template, with these turns (`bpo.json` says the same, and the "
        "package reads it there):\n\n```text\n" + "\n".join(lines) + "\n```\n\n" + table(["", "value"], rows)
    )


def _budget(record: Record) -> str:
    more = f" + {record.new_tokens_per_token:g} for each token of the prompt" if record.new_tokens_per_token else ""
    return f"{record.new_tokens:,}{more}"


def _data(run: Mapping[str, Any], heading: str) -> str:
    data = run.get("data")
    if not isinstance(data, Mapping):
        return f"## Data{heading}\n\nUnknown: the run does not say what data it was trained on."
    rows, distinct = data.get("rows"), data.get("distinct")
    text = f"Trained on {_number(rows)} rows"
    if distinct is not None and distinct != rows:
        text += f" ({_number(distinct)} different ones)"
    if data.get("completion_tokens") is not None:
        text += f", {_number(data['completion_tokens'])} tokens of completions"
    text += "." + _held_out(run.get("eval_data"))
    if dropped := data.get("dropped"):
        reasons = ", ".join(f"{reason} {_number(count)}" for reason, count in dropped.items())
        text += f" Left out: {reasons}."
    weights = [entry for entry in data.get("weights") or () if entry.rpartition("=")[0] in (data.get("sources") or ())]
    if weights:
        text += f" Sources weighted: {_plain(weights)}."
    if data.get("sha256"):
        text += f" SHA-256 of the file: `{data['sha256']}`."
    for name, head in (("sources", "source"), ("licences", "licence of the source")):
        counts = data.get(name)
        if isinstance(counts, Mapping) and counts:
            lines = [(_known(key), _number(count)) for key, count in counts.items()]
            text += "\n\n" + table([head, "rows"], lines)
    return f"## Data{heading}\n\n{text}"


def _held_out(data: Any) -> str:
    if not isinstance(data, Mapping):
        return " No rows were held out."
    return f" {_number(data.get('rows'))} rows were held out."


def _training(run: Mapping[str, Any], heading: str) -> str:
    stage, method = run.get("stage"), run.get("method")
    training, chosen = run.get("training"), run.get("hyperparameters")
    if not isinstance(chosen, Mapping) or not chosen:
        return f"## Training{heading}\n\nUnknown: the run does not say its hyper-parameters."
    text = f"`bpo-train {stage}`" if stage else "Trained"
    text += f", {method}" if method else ""
    if start := run.get("start"):
        text += f", from the adapter {Path(str(start)).name}"
    if isinstance(training, Mapping):
        facts = [
            f"{_number(training[name])} {words}"
            for name, words in (("steps", "steps"), ("rows_a_step", "rows a step"), ("epochs", "epoch(s)"))
            if training.get(name) is not None
        ]
        if training.get("trainable_parameters") is not None and training.get("parameters"):
            share = training["trainable_parameters"] / training["parameters"]
            facts.append(f"{_number(training['trainable_parameters'])} trainable parameters ({share:.1%})")
        text += ": " + ", ".join(facts) if facts else ""
    device = run.get("device")
    if isinstance(device, Mapping):
        text += f"; on {device.get('name') or device.get('kind')}, weights in {device.get('dtype')}"
    lines = [(f"`{name}`", _plain(value)) for name, value in chosen.items()]
    return f"## Training{heading}\n\n{text}.\n\n{table(['hyper-parameter', 'value'], lines)}"


def _figures(run: Mapping[str, Any], heading: str) -> str:
    metrics = run.get("metrics")
    if not run:
        return f"## Figures{heading}\n\nUnknown: the run left no run.json."
    words = _SFT_METRICS if run.get("stage", "sft") == "sft" else {}
    lines = [
        (words.get(name, f"`{name}`"), f"{value:.4g}")
        for name, value in (metrics.items() if isinstance(metrics, Mapping) else ())
        if isinstance(value, int | float) and not _NO_FIGURE.search(name)
    ]
    if not lines:
        return f"## Figures{heading}\n\nNothing was measured in this run."
    return (
        f"## Figures{heading}\n\nMeasured at the end of the training, on the model as it was trained; what is stored "
        f"here in fewer bits was not measured again.\n\n{table(['figure', 'value'], lines)}"
    )


def _licences(card: Card) -> str:
    counts: dict[str, int] = {}
    for run in _distinct(card.runs):
        data = run.get("data")
        found = data.get("licences") if isinstance(data, Mapping) else None
        for licence, rows in (found if isinstance(found, Mapping) else {}).items():
            counts[str(licence)] = counts.get(str(licence), 0) + int(rows)
    lines = [
        f"- This model: {card.licence or 'not stated by who exported it'}.",
        f"- Its base, {card.record.base}: see there." if card.record.base else "- Its base: unknown.",
    ]
    if not counts:
        lines.append("- Its training data: unknown.")
    else:
        lines.append("- Its training data: " + ", ".join(_known(licence) for licence in counts) + " (rows above).")
        if barred := sum(rows for licence, rows in counts.items() if is_non_commercial(licence)):
            lines.append(f"- **{barred:,} of the rows come from sources that forbid commercial use.**")
        if counts.get(""):
            lines.append(f"- **Of {counts['']:,} of the rows the licence is unknown.**")
    return "## Licences\n\n" + "\n".join(lines)


def _versions(runs: Sequence[Mapping[str, Any] | None]) -> str:
    versions = (runs[0] or {}).get("versions") if runs else None
    if not isinstance(versions, Mapping) or not versions:
        return "## Versions\n\nUnknown: the run does not say with what it was trained."
    return "## Versions\n\nTrained with " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."


def _known(name: Any) -> str:
    return "unknown" if name in ("", None, "None") else str(name)


def _number(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return "an unknown number of"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_plain(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value).replace("\n", " ")
    return Path(text).name if Path(text).is_absolute() else text  # where it lay is this machine's business
