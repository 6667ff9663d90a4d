"""What a guard is, and how one is made of a rule.

A guard never repairs and never raises: it says what is wrong with a candidate, or nothing. It is a pure function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from bpo_integrations.result import Violation

Guard = Callable[[str, str], Violation | None]
"""(the user's prompt, the candidate) -> what is wrong with the candidate, or None.

The candidate is the whole new prompt in rewrite mode, and the addition alone in augment mode.
"""

Rule = Callable[[str, str], str | None]
"""As a guard, but it says only what it found."""


def guard(name: str, *, passes_identity: bool = True) -> Callable[[Rule], Guard]:
    """Make a guard of a rule: a decorator.

    It gives the rule a name, its finding a bounded length, and sees to it that what equals the prompt is no violation.

    Args:
        name: The guard's short name, which stands in `Violation.guard` and in the result's `reason`.
        passes_identity: False for rules on additions to which the prompt itself is no good addition.

    Example:
        >>> @guard("shouting")
        ... def no_shouting(prompt: str, candidate: str) -> str | None:
        ...     return "it shouts" if candidate.isupper() else None
        >>> str(no_shouting("hello", "HELLO"))
        'shouting: it shouts'
    """

    def decorate(rule: Rule) -> Guard:
        def checked(original: str, candidate: str) -> Violation | None:
            if passes_identity and candidate == original:
                return None
            found = rule(original, candidate)
            return None if found is None else Violation(guard=name, detail=shortened(found))

        checked.__name__ = checked.__qualname__ = rule.__name__
        checked.__doc__ = rule.__doc__
        checked.__module__ = rule.__module__
        return checked

    return decorate


def first_violation(guards: Sequence[Guard], original: str, candidate: str) -> Violation | None:
    """Return what the first guard that objects says, or None when all pass.

    Example:
        >>> first_violation([], "Tell me.", "Tell me more.") is None
        True
    """
    for check in guards:
        violation = check(original, candidate)
        if violation is not None:
            return violation
    return None


def protected(patterns: Sequence[str | re.Pattern[str]]) -> Guard:
    r"""Make a guard that keeps what `patterns` match in the prompt.

    Args:
        patterns: Literals (found anywhere, case and all) and compiled patterns. Each text that one of them matches in
            the prompt must stand in the candidate at least as often.

    Example:
        >>> keep = protected(["ACME", re.compile(r"#\d+")])
        >>> str(keep("ACME ticket #12?", "What is ACME ticket 12?"))
        'protected: #12'
    """
    compiled = [
        re.compile(re.escape(pattern)) if isinstance(pattern, str) else pattern for pattern in patterns if pattern
    ]

    @guard("protected")
    def keeps_protected(original: str, candidate: str) -> str | None:
        for pattern in compiled:
            for text in dict.fromkeys(match.group() for match in pattern.finditer(original)):
                if text and candidate.count(text) < original.count(text):
                    return text
        return None

    return keeps_protected


def shortened(text: str, limit: int = 80) -> str:
    """Return `text` on one line, cut to `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
