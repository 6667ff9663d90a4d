"""The rows that an evaluation consists of: test prompts, answers, verdicts; and their JSONL files.

Promises: plain frozen data; a file that is damaged, or holds a row twice, is an error that names the line. Everything
that computes (win rates, reports, the gate) reads these and nothing else, so that each step can be run alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from bpo_integrations.cli.exits import os_error
from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_train.data.outputs import replacing

Order = Literal["AB", "BA"]
"""`AB`: the arm's answer was shown as A, the baseline's as B; `BA`: the other way round."""

Choice = Literal["A", "B", "C"]
"""Which of the two that were shown is better; C is a tie."""

BASELINE = "original"
"""The arm whose prompts are sent as they are."""

ANSWERS, VERDICTS, PROMPTS = "answers.jsonl", "verdicts.jsonl", "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class TestPrompt:
    """One prompt of a test set.

    Args:
        id: Unique in the evaluation; a set's own ids are prefixed with its name (`vicuna_eval:12`).
        prompt: What a user would send, a context included, as the paper puts them together.
        set: The test set's name.
        category: The set's own label; empty where it has none.
        instruction: The prompt without its context.
        context: The context; None where the prompt is whole by itself.
        gold: A rewrite that counts as good, where the set has one.
    """

    __test__ = False  # no class of pytest's

    id: str
    prompt: str
    set: str = ""
    category: str = ""
    instruction: str = ""
    context: str | None = None
    gold: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the LLM answered to a prompt in one arm.

    Args:
        id: The prompt's id.
        arm: The arm's name (`original`, `augment`, `rewrite`, `placebo`, ...).
        sent: The prompt that was sent.
        answer: The LLM's text.
        kind: What was done to the prompt, as in `OptimizedPrompt.kind` (`placebo` in that arm).
        reason: Why, as in `OptimizedPrompt.reason`.
        addition: What was put behind the prompt; empty where nothing, or a rewrite.
        finished: Whether the answer came to its own end.
        prompt_tokens: Tokens that the LLM read.
        completion_tokens: Tokens that it wrote.
        seconds: Wall-clock seconds of the LLM's answer.
        optimizer_seconds: Wall-clock seconds of the optimization.
        p_empty: The rewriter's probability of adding nothing, where it tells it.
        logprob: Mean log-probability of a token of the chosen candidate, where the rewriter tells it.
    """

    id: str
    arm: str
    sent: str
    answer: str
    kind: str = "kept"
    reason: str = ""
    addition: str = ""
    finished: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    optimizer_seconds: float = 0.0
    p_empty: float | None = None
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said of a pair: the arm's answer and the baseline's, in one order.

    Args:
        id: The prompt's id.
        order: Which of the two was shown first.
        verdict: The judge's choice; None where it could not be read, however often it was asked. Those are counted as
            ties, never dropped.
        category: The prompt's category.
        arm: The arm that is judged.
        baseline: What it is judged against.
        judge: The judge's name.
        margin: For judges that score: score of the arm's answer minus score of the baseline's.
        raw: The judge's words.
    """

    id: str
    order: Order
    verdict: Choice | None
    category: str = ""
    arm: str = ""
    baseline: str = BASELINE
    judge: str = ""
    margin: float | None = None
    raw: str = ""


Record = TypeVar("Record", TestPrompt, Answer, Verdict)

_KEYS: dict[type, tuple[str, ...]] = {
    TestPrompt: ("id",),
    Answer: ("id", "arm"),
    Verdict: ("id", "arm", "baseline", "judge", "order"),
}


def write_records(path: Path, records: Iterable[TestPrompt | Answer | Verdict]) -> int:
    """Write records as JSONL, in one step; return how many.

    Raises:
        FileError: The file cannot be written.
    """
    count = 0
    with replacing(path) as file:
        for record in records:
            file.write(dump(asdict(record)) + "\n")
            count += 1
    return count


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Read a JSONL file of one kind of record; fields with a default may be missing, others are ignored.

    Raises:
        ConfigurationError: There is no such file, a line is no such record, or two lines are about the same.
    """
    if not path.exists() or path.is_dir():  # a pipe will do
        msg = f"There is no file {path}."
        raise ConfigurationError(msg, hint="Give the file, or the output folder of bpo-train evaluate.")
    found: list[Record] = []
    seen: set[tuple[Any, ...]] = set()
    for number, record in _parsed(path, kind):
        key = tuple(getattr(record, name) for name in _KEYS[kind])
        if key in seen:
            msg = f"{path}, line {number}: a second row for {', '.join(filter(None, key))}."
            raise ConfigurationError(msg, hint="Make the ids unique.")
        seen.add(key)
        found.append(record)
    return found


def _parsed(path: Path, kind: type[Record]) -> Iterator[tuple[int, Record]]:
    names = {field.name for field in fields(kind)}
    texts = {field.name for field in fields(kind) if field.default == ""}  # null is as good as nothing there
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                given = {key: value for key, value in data.items() if key in names}
                record = kind(**{key: value for key, value in given.items() if value is not None or key not in texts})
                _check(record)
            except (ValueError, TypeError, AttributeError) as error:
                msg = f"{path}, line {number}: no {kind.__name__} ({error})."
                raise ConfigurationError(msg, hint="Correct that line.") from error
            yield number, record


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise os_error(error, f"{path} cannot be read") from error


def _check(record: TestPrompt | Answer | Verdict) -> None:
    if isinstance(record.id, int) and not isinstance(record.id, bool):  # ids of users' files may be numbers
        object.__setattr__(record, "id", str(record.id))
    for field in fields(record):
        if field.type == "str" and not isinstance(getattr(record, field.name), str):
            msg = f"{field.name} is {getattr(record, field.name)!r}, no text"
            raise ValueError(msg)
    if not isinstance(record, Verdict):
        return
    for name, known in (("order", ("AB", "BA")), ("verdict", ("A", "B", "C", None))):
        if getattr(record, name) not in known:
            msg = f"{name} is {getattr(record, name)!r}"
            raise ValueError(msg)
