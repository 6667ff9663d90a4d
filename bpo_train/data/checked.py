"""The parts of a row become a `Preference`, or a `Skip` that says why not, so that nothing is left out uncounted."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from bpo_train.data.preference import Preference
from bpo_train.data.rows import Row


@dataclass(frozen=True, slots=True)
class Skip:
    """A row that cannot be used, and why (see `SKIPS`)."""

    reason: str


SKIPS = {
    "missing": "a field is not there",
    "empty": "the instruction or a response is empty",
    "broken": "characters that cannot be written (half of a surrogate pair)",
    "same": "both responses are the same",
    "tie": "neither response is better",
    "multi_turn": "a dialogue of more than one turn",
    "no_prompt": "the two sides do not begin with the same instruction",
    "unranked": "fewer than two ranked or rated responses",
    "withdrawn": "deleted, or rejected by the source's own review",
    "scattered": "a message that lies apart from its tree",
    "other_model": "not a pair of the models that are compared",
    "repeated": "a row that was there before",
}
"""Reasons for which a row of a source is skipped."""

Loaded: TypeAlias = Preference | Skip


def digest(*parts: str | None) -> str:
    """Return 16 hexadecimal digits that tell contents apart.

    Example:
        >>> digest("a", "b") == digest("ab", None)
        False
    """
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def preference(
    instruction: Any,
    good: Any,
    bad: Any,
    *,
    source: str,
    licence: str = "",
    context: Any = None,
    category: Any = "",
    id: Any = None,
) -> Loaded:
    """Check the parts of a row and make a preference of them; the id is made of the content where there is none."""
    if not (isinstance(instruction, str) and isinstance(good, str) and isinstance(bad, str)):
        return Skip("missing")
    if not (instruction.strip() and good.strip() and bad.strip()):
        return Skip("empty")
    if good.strip() == bad.strip():
        return Skip("same")
    if not _can_be_written(instruction + good + bad + (context if isinstance(context, str) else "")):
        return Skip("broken")
    context = context if isinstance(context, str) and context.strip() else None
    return Preference(
        id=str(id) if id not in (None, "") else f"{source or 'row'}:{digest(instruction, context, good, bad)}",
        instruction=instruction,
        good_res=good,
        bad_res=bad,
        context=context,
        source=source,
        licence=licence,
        category=str(category or ""),
    )


def _can_be_written(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def number_of(value: Any) -> float | None:
    """Return a score, or None where there is none: missing, NaN, "N/A"."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def rows_in(value: Any) -> list[Row]:
    """Return the objects of a list; none where it is no list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
