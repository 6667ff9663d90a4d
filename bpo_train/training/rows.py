"""From a file of rows to tokens: which rows are trained on, and which of their tokens.

Promises: a prompt is put to the model exactly as an engine does it later; special tokens inside a text stay text; a row
is never cut. It does not choose what is worth training on: see `bpo_train.data`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.templates import PromptFormat
from bpo_train.data.outputs import replacing
from bpo_train.training.arguments import COMPLETION_FIELD, FORMATS, SFTArguments

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"
"""The files of a folder of data, as `bpo-train construct` writes them."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a prompt and what the model shall answer to it (empty: nothing to add)."""

    id: str
    prompt: str
    completion: str
    licence: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Data:
    """The rows that a user named, in the order of the files.

    Args:
        file: Where the training rows are from.
        eval_file: Where the held-out rows are from; `file` where they were named by id.
        train: Rows to train on, repetitions included.
        held_out: Rows to measure on.
        dropped: Rows that are not trained on, by reason.
    """

    file: str
    eval_file: str
    train: list[Example]
    held_out: list[Example]
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row in tokens; `len` is what it takes of `max_length`."""

    example: Example
    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


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


def load_data(arguments: SFTArguments) -> Data:
    """Read the rows that the user named.

    Raises:
        ConfigurationError: A file cannot be read, or nothing is left to train on.
    """
    file, eval_file = arguments.data, arguments.eval_data
    if (folder := Path(file)).is_dir():
        file = str(folder / TRAIN)
        if eval_file is None and (folder / VALIDATION).is_file():
            eval_file = str(folder / VALIDATION)
    rows = read_rows(file)
    train, held_out = split_examples(
        rows,
        mode=arguments.mode,
        held_out=read_ids(arguments.held_out),
        licences=arguments.licences,
        weights=arguments.weights,
    )
    if eval_file is not None:
        held_out += split_examples(read_rows(eval_file), mode=arguments.mode)[0]
    taken = train[: arguments.limit]
    if not taken:
        msg = "No training rows are left."
        raise ConfigurationError(msg, hint="Check --licences and --held_out against the data.")
    others = sum(row.get("licence") not in arguments.licences for row in rows) if arguments.licences else 0
    dropped = {"licence": others, "limit": len(train) - len(taken)}
    return Data(file, eval_file or file, taken, held_out[: arguments.eval_limit], dropped)


def read_ids(path: str | Path | None) -> list[str]:
    """Read a file of ids, one a line; None is no ids.

    Raises:
        ConfigurationError: It cannot be read.
    """
    if path is None:
        return []
    try:
        return Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}."
        raise ConfigurationError(msg, hint="Give a file of ids, one a line.") from error


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
        rows: Rows with `id`, `prompt`, `licence` and the completion's field (`completion` does as well).
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
        example = _example(row, mode)
        if example.id in kept_out:
            test.append(example)
        elif not licences or row.get("licence") in licences:
            due = taken.get(example.source, 0.0) + shares.get(example.source, 1.0)
            train.extend([example] * int(due))
            taken[example.source] = due - int(due)
    return train, test


def _example(row: dict[str, Any], mode: str) -> Example:
    """Read a row; a `completion` counts where the row is not plainly one of the other mode."""
    wanted = COMPLETION_FIELD[mode]
    others = set(COMPLETION_FIELD.values()) - {wanted}
    field = "completion" if wanted not in row and "completion" in row and not others & row.keys() else wanted
    try:
        identifier, *texts = str(row["id"]), row["prompt"], row[field]
    except KeyError as error:
        msg = f"A row lacks the field {error}."
        raise ConfigurationError(msg, hint=f"Mode {mode} needs id, prompt and {wanted}.") from error
    if not all(isinstance(text, str) for text in texts):
        msg = f"Row {identifier}: prompt and {field} must be texts."
        raise ConfigurationError(msg, hint="Write them as plain strings, not as chat messages.")
    return Example(identifier, texts[0], texts[1], str(row.get("licence", "")), str(row.get("source")))


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


def render(
    example: Example, form: PromptFormat | str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """Turn an example into (prompt ids, completion ids), exactly as an engine puts a prompt to the model.

    The completion ends with the end-of-turn token, which is all that an empty one consists of. Special tokens inside
    the text stay text.

    Args:
        example: The row.
        form: The prompt format, or its name (a mode's name is that of its own format).
        tokenizer: The model's.
    """
    (row,) = encode([example], form, tokenizer)
    return list(row.prompt), list(row.completion)


def encode(examples: Iterable[Example], form: PromptFormat | str, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """As `render`, for many rows; the same row is encoded once."""
    from bpo_integrations.engines.causal_lm import ChatTokenizer

    chat = ChatTokenizer(tokenizer)
    form = FORMATS[form] if isinstance(form, str) else form
    end: Any = tokenizer.eos_token_id
    known: dict[Example, Encoded] = {}
    for example in (examples := list(examples)):
        if example not in known:
            head = tuple(chat.render(form.messages(example.prompt.strip())))  # as a rewriter strips it
            known[example] = Encoded(example, head, (*chat.encode(example.completion), int(end)))
    return [known[example] for example in examples]


def fitting(rows: Sequence[Encoded], max_length: int | None, *, allow_dropping: bool = False) -> list[Encoded]:
    """Return the rows of at most `max_length` tokens: a cut completion would teach to stop in the middle.

    Raises:
        ConfigurationError: A row is longer, and rows may not be left out; or all rows are.
    """
    if max_length is None:
        return list(rows)
    kept = [row for row in rows if len(row) <= max_length]
    if len(kept) < len(rows) and not allow_dropping:
        longest = max(map(len, rows))
        msg = f"{len(rows) - len(kept)} of {len(rows)} training rows are longer than max_length={max_length} tokens."
        hint = f"Give --max_length {longest}, which fits all, or leave them out with --allow_dropping true."
        raise ConfigurationError(msg, hint=hint)
    if not kept:
        msg = f"All training rows are longer than max_length={max_length} tokens."
        raise ConfigurationError(msg, hint=f"Give --max_length {max(map(len, rows))}, which fits all.")
    return kept


def to_dataset(rows: Iterable[Encoded]) -> Dataset:
    """Return rows in TRL's prepared form: `input_ids`, and `labels` that are -100 over the prompt."""
    from datasets import Dataset

    rows = list(rows)
    return Dataset.from_dict(
        {
            "input_ids": [[*row.prompt, *row.completion] for row in rows],
            "labels": [[-100] * len(row.prompt) + list(row.completion) for row in rows],
        }
    )


def write_chat_rows(folder: Path, data: Data, form: PromptFormat) -> None:
    """Write rows as chats in TRL's prompt-completion form, which `trl sft` puts through the model's chat template.

    Raises:
        FileError: A file cannot be written.
    """
    for name, examples in ((TRAIN, data.train), (VALIDATION, data.held_out)):
        with replacing(folder / name) as file:
            for example in examples:
                completion = [{"role": "assistant", "content": example.completion}]
                row = {"id": example.id, "prompt": form.messages(example.prompt.strip()), "completion": completion}
                file.write(dump(row) + "\n")
