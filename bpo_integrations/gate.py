"""A gate: a policy that was fitted to one LLM, and the JSON file that it is kept in.

It says before any model runs which kinds and lengths of prompts are left alone, and afterwards whether a candidate is
worth its place: a sum of a few weighted figures must pass a threshold. Promises: plain data and arithmetic, no code in
the file; a file that is not exactly of this form is an error that says where. `bpo-train calibrate` writes such files.
What it does not do: replace the rules of the default policy, behind which it is asked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from bpo_integrations.errors import ModelFormatError
from bpo_integrations.guards.text import words
from bpo_integrations.policy import PolicyContext
from bpo_integrations.prompt_kinds import KINDS, kind_of
from bpo_integrations.result import Candidate, Mode
from bpo_integrations.safety import is_unsafe

SCHEMA: Final = 1
"""The version of the file's form."""

FIGURES: Final = ("log_words", "log_added", "p_empty", "logprob")
"""What a score may weigh besides the prompt's kind: ln(1 + words of the prompt), ln(1 + words that are added), and of
the candidate the probability of adding nothing and the mean log-probability of a token."""

Acts = Literal["all", "some", "none"]

_FIELDS: Final = ("schema", "name", "acts", "mode", "note", "made_for", "measured", "before", "after")
_HINT: Final = "Write it anew with bpo-train calibrate; docs/gate.md describes the form."


@dataclass(frozen=True, slots=True)
class Facts:
    """What a gate knows of a prompt and what was written for it.

    Args:
        kind: The prompt's kind.
        words: Words of the prompt.
        added: Words that are added to it; None before the model ran.
        p_empty: The candidate's probability of adding nothing, where it is known.
        logprob: The candidate's mean log-probability of a token, where it is known.
    """

    kind: str
    words: int
    added: int | None = None
    p_empty: float | None = None
    logprob: float | None = None

    @classmethod
    def of(cls, prompt: str, candidate: Candidate, mode: Mode) -> Facts:
        """Return the facts of a candidate; in rewrite mode what is added is what it has more than the prompt."""
        length, written = len(words(prompt)), len(words(candidate.text))
        added = written if mode == "augment" else max(0, written - length)
        return cls(kind_of(prompt), length, added, candidate.p_empty, candidate.logprob)

    def figures(self) -> dict[str, float | None]:
        """Return the figures that a score weighs, by the names of `FIGURES`."""
        return {
            "log_words": math.log1p(self.words),
            "log_added": None if self.added is None else math.log1p(self.added),
            "p_empty": self.p_empty,
            "logprob": self.logprob,
        }


@dataclass(frozen=True, slots=True)
class Weight:
    """How much a figure counts: `weight * (figure - center) / scale`, the figure kept within `low` and `high`.

    The bounds are those of the prompts that the gate was fitted on, so that it never extrapolates. A figure that is not
    known counts as `center`.
    """

    weight: float
    center: float = 0.0
    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf

    def term(self, figure: float | None) -> float:
        """Return what a figure adds to the score."""
        if figure is None or math.isnan(figure):
            return 0.0
        return self.weight * (min(max(figure, self.low), self.high) - self.center) / self.scale

    def best(self) -> float:
        """Return the most that any figure can add."""
        return max(0.0, self.term(self.low), self.term(self.high))


@dataclass(frozen=True, slots=True)
class Score:
    """The gain that is expected of a candidate, and what it must exceed.

    Args:
        intercept: The gain to begin with, from -1 (always loses) to 1 (always wins).
        threshold: The candidate is used where the expected gain is more.
        figures: Weights of `FIGURES`; one that is missing does not count.
        kinds: What a prompt's kind adds; one that is missing adds nothing.
    """

    intercept: float
    threshold: float = 0.0
    figures: Mapping[str, Weight] = field(default_factory=dict)
    kinds: Mapping[str, float] = field(default_factory=dict)

    def gain(self, facts: Facts) -> float:
        """Return the expected gain.

        Example:
            >>> score = Score(0.1, figures={"log_words": Weight(-0.2, center=3.0)}, kinds={"estimate": 0.3})
            >>> round(score.gain(Facts("estimate", words=19)), 3)
            0.401
        """
        figures = facts.figures()
        terms = (weight.term(figures[name]) for name, weight in self.figures.items())
        return self.intercept + self.kinds.get(facts.kind, 0.0) + sum(terms)

    def highest(self, kind: str, length: int) -> float:
        """Return the highest gain that can be expected for a prompt, whatever the model writes."""
        known = Facts(kind, length).figures()
        terms = (
            weight.term(known[name]) if name == "log_words" else weight.best() for name, weight in self.figures.items()
        )
        return self.intercept + self.kinds.get(kind, 0.0) + sum(terms)


Span = tuple[int, int | None]
"""From how many words to how many, both included; None has no end."""


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """A policy fitted to one LLM.

    Args:
        name: What it is called, in reasons and reports.
        acts: `all` leaves every prompt to the rules and the model, `none` keeps every prompt, `some` asks `before` and
            `score`.
        before: By kind the lengths, in words, of the prompts that may be optimized; a kind that is missing is left
            alone. None asks nothing before the model runs.
        score: Decides between the original and the candidate; None takes the candidate.
        mode: The mode that it was fitted for; None is for both.
        note: What a reader should know.
        made_for: LLM, rewriter, judge and data that it was fitted to.
        measured: The figures by which it was chosen.

    Example:
        >>> gate = Gate("estimates only", "some", before={"estimate": (1, None)})
        >>> gate("Write a poem about the sea.", PolicyContext(mode="augment"))
        'gate: writing'
        >>> gate("How many people have ever lived on Earth?", PolicyContext(mode="augment"))
    """

    name: str
    acts: Acts = "some"
    before: Mapping[str, Span] | None = None
    score: Score | None = None
    mode: Mode | None = None
    note: str = ""
    made_for: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Tells gates apart by what they do."""
        parts = json.loads(self.to_json())
        text = json.dumps([parts[name] for name in ("acts", "mode", "before", "after")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gate) and other.to_json() == self.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __call__(self, prompt: str, context: PolicyContext) -> str | None:
        """Return why a prompt is left alone before any model runs, or None."""
        if self.acts == "all" or _softened(prompt, context):
            return None
        if self.acts == "none":
            return "gate: keeps all"
        if self.before is None:
            return None
        kind = kind_of(prompt)
        if (span := self.before.get(kind)) is None:
            return f"gate: {kind}"
        length = len(words(prompt))
        least, most = span
        return None if least <= length and (most is None or length <= most) else f"gate: {kind}, {length} words"

    def after(self, prompt: str, candidate: Candidate, context: PolicyContext) -> str | None:
        """Return why a prompt is kept although the model wrote something that no guard rejects, or None."""
        if self.acts != "some" or self.score is None or _softened(prompt, context):
            return None
        gain = self.score.gain(Facts.of(prompt, candidate, context.mode))
        if gain > self.score.threshold:
            return None
        return f"gate: expected gain {gain:+.2f}, asked is more than {self.score.threshold:+.2f}"

    def to_json(self) -> str:
        """Return the text of the policy file."""
        after = None
        if self.score is not None:
            figures = {name: _weight_data(weight) for name, weight in self.score.figures.items()}
            after = {
                "intercept": self.score.intercept,
                "threshold": self.score.threshold,
                "figures": figures,
                "kinds": dict(self.score.kinds),
            }
        data = {
            "schema": SCHEMA,
            "name": self.name,
            "acts": self.acts,
            "mode": self.mode,
            "note": self.note,
            "made_for": dict(self.made_for),
            "measured": dict(self.measured),
            "before": None if self.before is None else {kind: list(span) for kind, span in self.before.items()},
            "after": after,
        }
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "The policy file") -> Gate:
        """Read a policy file.

        Args:
            text: Its text.
            where: What errors call it.

        Raises:
            ModelFormatError: It is not JSON, is of another schema, or has a field missing, unknown or of a wrong kind.
        """
        try:
            return _gate(_object(json.loads(text, parse_constant=_no_number), "the file", _FIELDS, ("schema", "acts")))
        except (ValueError, RecursionError) as error:
            msg = f"{where} is no policy file: {error}."
            raise ModelFormatError(msg, hint=_HINT) from error

    @classmethod
    def read(cls, path: str | Path) -> Gate:
        """Read a policy file.

        Raises:
            ModelFormatError: There is none, or it cannot be used.
        """
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"The policy file {path} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})."
            raise ModelFormatError(msg, hint="Give a file that bpo-train calibrate wrote.") from error
        return cls.from_json(text, where=str(path))


def _softened(prompt: str, context: PolicyContext) -> bool:
    """Whether a prompt goes on to be made harmless, which is not for a gate to prevent."""
    return context.unsafe == "soften" and is_unsafe(prompt)


# -- reading: each part says what is wrong and where -------------------------------------------------------------------


def _gate(data: Mapping[str, Any]) -> Gate:
    if data["schema"] != SCHEMA:
        msg = f"its schema is {data['schema']!r}, this version reads {SCHEMA}"
        raise ValueError(msg)
    acts = _one_of(data["acts"], get_args(Acts), "acts")
    mode = None if data.get("mode") is None else _one_of(data["mode"], get_args(Mode), "mode")
    before, after = data.get("before"), data.get("after")
    if acts == "some" and before is None and after is None:
        msg = "with acts 'some' it needs before or after"
        raise ValueError(msg)
    if acts != "some" and not (before is None and after is None):
        msg = f"with acts {acts!r} before and after must be null"
        raise ValueError(msg)
    return Gate(
        name=_text(data.get("name", ""), "name"),
        acts=acts,
        before=None if before is None else {kind: _span(span, kind) for kind, span in _kinds(before, "before")},
        score=None if after is None else _score(_object(after, "after", _SCORE_FIELDS, ("intercept",))),
        mode=mode,
        note=_text(data.get("note", ""), "note"),
        made_for=_object(data.get("made_for", {}), "made_for"),
        measured=_object(data.get("measured", {}), "measured"),
    )


_SCORE_FIELDS: Final = ("intercept", "threshold", "figures", "kinds")
_WEIGHT_FIELDS: Final = ("weight", "center", "scale", "low", "high")


def _score(data: Mapping[str, Any]) -> Score:
    figures = {}
    for name, entry in _object(data.get("figures", {}), "after.figures", FIGURES).items():
        where = f"after.figures.{name}"
        numbers = {
            key: _number(value, f"{where}.{key}")
            for key, value in _object(entry, where, _WEIGHT_FIELDS, ("weight",)).items()
            if value is not None or key not in ("low", "high")
        }
        figures[name] = weight = Weight(**numbers)
        if weight.scale <= 0 or weight.low > weight.high:
            msg = f"{where} needs a scale above 0, and low below high"
            raise ValueError(msg)
    return Score(
        intercept=_number(data["intercept"], "after.intercept"),
        threshold=_number(data.get("threshold", 0.0), "after.threshold"),
        figures=figures,
        kinds={
            kind: _number(value, f"after.kinds.{kind}") for kind, value in _kinds(data.get("kinds", {}), "after.kinds")
        },
    )


def _weight_data(weight: Weight) -> dict[str, float | None]:
    """Return a weight as JSON has it, where a bound that is none is null."""
    found: dict[str, float | None] = {name: getattr(weight, name) for name in _WEIGHT_FIELDS}
    return {name: None if value is not None and math.isinf(value) else value for name, value in found.items()}


def _object(
    data: Any, where: str, allowed: Sequence[str] | None = None, needed: Sequence[str] = ()
) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        msg = f"{where} must be a JSON object"
        raise ValueError(msg)
    unknown = [] if allowed is None else [name for name in data if name not in allowed]
    if unknown:
        msg = f"{where} has the unknown {', '.join(map(repr, unknown))}; it may have {', '.join(allowed or ())}"
        raise ValueError(msg)
    missing = [name for name in needed if name not in data]
    if missing:
        msg = f"{where} lacks {', '.join(map(repr, missing))}"
        raise ValueError(msg)
    return data


def _kinds(data: Any, where: str) -> Sequence[tuple[str, Any]]:
    return list(_object(data, where, KINDS).items())


def _span(data: Any, kind: str) -> Span:
    if isinstance(data, list) and len(data) == 2:
        least, most = data
        if _is_count(least) and (most is None or (_is_count(most) and least <= most)):
            return least, most
    msg = f"before.{kind} must be [LEAST, MOST] in words, MOST perhaps null"
    raise ValueError(msg)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        msg = f"{where} must be a number, not {value!r}"
        raise ValueError(msg)
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        msg = f"{where} must be a text"
        raise ValueError(msg)
    return value


def _one_of(value: Any, allowed: Sequence[Any], where: str) -> Any:
    if value not in allowed:
        msg = f"{where} is {value!r}; it must be one of {', '.join(map(repr, allowed))}"
        raise ValueError(msg)
    return value


def _no_number(name: str) -> float:
    msg = f"{name} is no number that JSON has"
    raise ValueError(msg)
