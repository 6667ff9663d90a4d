"""What comes out of an optimization: the text to use, the original, and why.

Plain frozen data. `OptimizedPrompt.text` is always usable: where nothing was improved, it is the original.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["kept", "augmented", "rewritten", "softened"]
Mode = Literal["augment", "rewrite"]

_WORDS = re.compile(r"\s+|[^\s\w]|\w+")


@dataclass(frozen=True, slots=True)
class Violation:
    """A guard's reason for rejecting a candidate.

    Args:
        guard: The guard's name.
        detail: What it found, in a few words.
    """

    guard: str
    detail: str

    def __str__(self) -> str:
        return f"{self.guard}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One output of the rewriting model.

    Args:
        text: In augment mode what to add (empty: nothing), in rewrite mode the whole new prompt.
        tokens: Number of tokens generated.
        logprob: Mean log-probability of a token, where the engine tells it.
        finish_reason: `stop` when the model ended it, `length` when it was cut off.
        p_empty: Probability, at the first step, of adding nothing, where the engine tells it.
        violation: Why the candidate was rejected, or None.
    """

    text: str
    tokens: int = 0
    logprob: float | None = None
    finish_reason: Literal["stop", "length"] = "stop"
    p_empty: float | None = None
    violation: Violation | None = None


@dataclass(frozen=True, slots=True)
class DiffPart:
    """A stretch of text that was kept, removed or added."""

    op: Literal["same", "removed", "added"]
    text: str


@dataclass(frozen=True, slots=True)
class OptimizedPrompt:
    """The result of one optimization.

    Args:
        original: The user's prompt, as it came.
        text: The prompt to use.
        kind: `kept` (text equals original), `augmented`, `rewritten`, or `softened` (an unsafe request made harmless).
        reason: Why it is kept, or how it was changed, for example `policy: fixed output` or `guard numbers: 1985`.
        candidates: What the model wrote, with the violation that each was rejected for.
        seconds: Wall-clock seconds that this prompt took (in a batch: its share).
        tokens: Tokens generated, all candidates together.
        rewriter: The rewriter's id.
        proposal: With `shadow=True`, the text that would have been used.

    Example:
        >>> OptimizedPrompt("Tell me", "Tell me. Be brief.", "augmented", "added by the model").addition
        'Be brief.'
    """

    original: str
    text: str
    kind: Kind
    reason: str
    candidates: tuple[Candidate, ...] = field(default=())
    seconds: float = 0.0
    tokens: int = 0
    rewriter: str = ""
    proposal: str | None = None

    @property
    def changed(self) -> bool:
        """Whether `text` differs from `original`."""
        return self.text != self.original

    @property
    def addition(self) -> str:
        """What was put behind the original, without the joint; empty unless the original is a prefix of the text."""
        if not self.changed or not self.text.startswith(self.original):
            return ""
        tail = self.text[len(self.original) :]
        return tail.removeprefix(". ").removeprefix("。").strip()  # the joint may end the original's sentence

    def diff(self) -> list[DiffPart]:
        """Return the change word by word, in reading order; the `same` and `added` parts together are `text`.

        Example:
            >>> [part.op for part in OptimizedPrompt("a b", "a c", "rewritten", "").diff()]
            ['same', 'removed', 'added']
        """
        before, after = _WORDS.findall(self.original), _WORDS.findall(self.text)
        parts: list[DiffPart] = []
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        for tag, i1, i2, j1, j2 in matcher.get_opcodes():
            if tag == "equal":
                parts.append(DiffPart("same", "".join(before[i1:i2])))
                continue
            if i2 > i1:
                parts.append(DiffPart("removed", "".join(before[i1:i2])))
            if j2 > j1:
                parts.append(DiffPart("added", "".join(after[j1:j2])))
        return parts

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the fields, `changed` and `addition`."""
        return {**asdict(self), "changed": self.changed, "addition": self.addition}
