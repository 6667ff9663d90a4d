"""Test sets as `TestPrompt`s: the paper's four, MT-bench's and Arena-Hard's files, and anyone's own prompts.

Promises: every row becomes one prompt or an error that names the row, never a prompt that is silently missing; ids are
unique and carry the set's name; the context stands below its instruction, as in the paper's evaluation. Nothing is
fetched unless an address is given.
"""

from __future__ import annotations

import http.client
import os
import re
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from bpo_integrations.errors import ConfigurationError
from bpo_train.data.context import Form
from bpo_train.data.rows import FORMATS, Row, read_rows
from bpo_train.data.sample import Sampler
from bpo_train.evaluation.records import TestPrompt

PAPER_SETS = ("vicuna_eval", "self_instruct_eval", "dolly_eval", "bpo_test")
"""The sets of the paper (section 4); `bpo_test` has gold rewrites."""

PROMPT_FIELDS = ("prompt", "turns", "instruction", "text", "question")
CONTEXT_FIELDS = ("context", "input")
ID_FIELDS = ("id", "question_id", "uid", "idx")
"""Where a row may have its parts; the first that is there counts."""

SECONDS = 60.0
"""How long a server that has a test set may be silent."""


def data_folder() -> Path:
    """Return where the paper's test sets are: `BPO_DATA_DIR`, else `../shared/data` beside the repository."""
    return Path(os.environ.get("BPO_DATA_DIR") or Path(__file__).resolve().parents[3] / "shared" / "data")


def load_testset(spec: str | Path, *, name: str | None = None) -> list[TestPrompt]:
    r"""Return the prompts of a test set.

    Args:
        spec: One of `PAPER_SETS` (any file in the folder `testsets` of the data, by its name); a file, a folder of
            files, each of which is a set, or a hub id (see `rows.read_rows`); or an http(s) address of a file.
        name: What the set is called; None takes the file's name. For a folder it stands before the files' names.

    Raises:
        ConfigurationError: There is no such set, it is empty, a row has no prompt, or two have the same id.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("mine.jsonl").write_text('{"instruction": "Translate to French:", "context": "Good morning"}\n')
        >>> load_testset("mine.jsonl")[0].prompt
        'Translate to French:\nGood morning'
    """
    text = str(spec)
    if text.lower().startswith(("http://", "https://")):
        return _fetched(text, name)
    known = {file.stem: file for file in _files(data_folder() / "testsets")}
    if text in known:
        return _prompts(read_rows(known[text]), name or text, text)
    if text in PAPER_SETS:
        msg = f"The test set {text} is not in {data_folder() / 'testsets'}."
        raise ConfigurationError(msg, hint="Set BPO_DATA_DIR to the folder that holds testsets/.")
    path = Path(spec)
    if path.is_dir():
        sets = [load_testset(file, name=f"{name}/{stem(file)}" if name else None) for file in _files(path)]
        if not sets:
            msg = f"There is no test set in the folder {path}."
            raise ConfigurationError(msg, hint=f"Put a file there: {', '.join(FORMATS)}.")
        return _distinct([prompt for found in sets for prompt in found])
    if not path.exists() and "/" not in text:
        msg = f"There is no test set {text}."
        raise ConfigurationError(msg, hint=f"Name one of {', '.join(PAPER_SETS)}, a file, a folder or an address.")
    return _prompts(read_rows(spec), name or stem(path), text)


def load_testsets(specs: Iterable[str | Path]) -> list[TestPrompt]:
    """Return the prompts of several sets, in their order.

    Args:
        specs: As in `load_testset`; `NAME=SPEC` gives a set a name of its own.

    Raises:
        ConfigurationError: As `load_testset` does, there is none, or two sets have the same name.
    """
    found: list[TestPrompt] = []
    for spec in specs:
        name, mark, rest = str(spec).partition("=")
        named = bool(mark) and name.replace("_", "").replace("-", "").isalnum() and not Path(spec).exists()
        found += load_testset(rest, name=name) if named else load_testset(spec)
    if not found:
        msg = "There is no test set."
        raise ConfigurationError(msg, hint=f"Name one: {', '.join(PAPER_SETS)}, or a file of your own.")
    return _distinct(found)


def sampled(prompts: list[TestPrompt], limit: int | None, *, seed: int = 0) -> list[TestPrompt]:
    """Return at most `limit` prompts, each set and category by its share, in their order.

    Args:
        prompts: All of them.
        limit: How many; None takes all.
        seed: Another seed draws others.

    Example:
        >>> prompts = [TestPrompt(str(number), "Why?", set="ab"[number % 2]) for number in range(10)]
        >>> [prompt.set for prompt in sampled(prompts, 4)]
        ['a', 'b', 'a', 'b']
    """
    if limit is None or limit >= len(prompts):
        return prompts
    sampler = Sampler(limit, seed=seed)
    for number, prompt in enumerate(prompts):
        sampler.offer(number, id=prompt.id, stratum=(prompt.set, prompt.category))
    drawn = sampler.drawn()
    return [prompt for number, prompt in enumerate(prompts) if number in drawn]


def stem(path: Path) -> str:
    """Return a file's name without what tells its format.

    Example:
        >>> stem(Path("sets/mine.v2.jsonl.gz"))
        'mine.v2'
    """
    name = path.name.removesuffix(".gz")
    return name.removesuffix(next((form for form in FORMATS if name.lower().endswith(form)), ""))


def _files(folder: Path) -> list[Path]:
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in names if file.is_file() and file.name.lower().removesuffix(".gz").endswith(FORMATS)]


def _fetched(address: str, name: str | None) -> list[TestPrompt]:
    """Fetch a file; it is read to its announced end, so that a cut one is an error."""
    file = unquote(PurePosixPath(urlsplit(address).path).name)
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as response:  # noqa: S310 - checked to be http(s)
            content = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        msg = f"The test set {address} cannot be fetched: {error}."
        raise ConfigurationError(msg, hint="Check the address; or fetch it yourself and name the file.") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (file or "testset")
        path.write_bytes(content)
        return _prompts(read_rows(path), name or stem(path), address)


def _prompts(rows: Iterable[Row], name: str, spec: str) -> list[TestPrompt]:
    found = []
    places: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{spec}, row {number}"
        prompt = _prompt(row, name, number, where)
        if prompt.id in places:
            msg = f"{where}: the same id as in row {places[prompt.id]}, {prompt.id.removeprefix(f'{name}:')}."
            raise ConfigurationError(msg, hint="Make the ids unique, or leave them out.")
        places[prompt.id] = number
        found.append(prompt)
    if not found:
        msg = f"The test set {spec} is empty."
        raise ConfigurationError(msg, hint='Give at least one row, such as {"prompt": "Why is the sky blue?"}.')
    return found


def _prompt(row: Row, name: str, number: int, where: str) -> TestPrompt:
    field = next((field for field in PROMPT_FIELDS if row.get(field) is not None), None)
    value = row[field] if field else None
    instruction = _first_turn(value) if field in ("turns", "prompt") else value
    if not isinstance(instruction, str) or not instruction.strip():
        msg = f"{where}: no prompt, in a row with the fields {', '.join(map(str, row)) or 'none'}."
        raise ConfigurationError(msg, hint=f"A text is looked for in: {', '.join(PROMPT_FIELDS)}.")
    context = next((row[field] for field in CONTEXT_FIELDS if row.get(field) is not None), None)
    if context is not None and not isinstance(context, str):
        msg = f"{where}: the context is no text."
        raise ConfigurationError(msg, hint=f"Correct the field {' or '.join(CONTEXT_FIELDS)}, or rename it.")
    context = context if context and context.strip() else None
    whole = context is None or _holds(instruction, context)
    given = next((row[field] for field in ID_FIELDS if row.get(field) not in (None, "")), number)
    gold = row.get("optimized_prompt")
    return TestPrompt(
        id=f"{name}:{given}",
        prompt=instruction if context is None or whole else Form.BELOW.write(instruction, context),
        set=name,
        category=str(row.get("category") or ""),
        instruction=instruction,
        context=context,
        gold=gold if isinstance(gold, str) and gold.strip() else None,
    )


def _holds(instruction: str, context: str) -> bool:
    """Tell whether the context stands in the instruction, as whole words: "man" is not in "German"."""
    return re.search(rf"(?<!\w){re.escape(context.strip())}(?!\w)", instruction, re.IGNORECASE) is not None


def _first_turn(value: Any) -> Any:
    """Return the first turn of MT-bench's (texts), Arena-Hard's (`content`) or a chat's (the user's) turns."""
    if not isinstance(value, list):
        return value
    turns = [turn for turn in value if not isinstance(turn, dict) or turn.get("role", "user") == "user"]
    first = turns[0] if turns else None
    return first.get("content") if isinstance(first, dict) else first


def _distinct(prompts: list[TestPrompt]) -> list[TestPrompt]:
    common, count = Counter(prompt.id for prompt in prompts).most_common(1)[0]
    if count > 1:
        msg = f"Two test sets have a prompt with the id {common}."
        raise ConfigurationError(msg, hint="Give each set a name of its own: NAME=FILE.")
    return prompts
