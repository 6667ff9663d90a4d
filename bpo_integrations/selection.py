"""Which of the clean candidates is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bpo_integrations.result import Candidate

Selector = Callable[[str, Sequence[Candidate]], Candidate]
"""Takes the original prompt and the candidates that no guard rejected (at least one), and returns one of them."""


def first(original: str, candidates: Sequence[Candidate]) -> Candidate:
    """Return the first candidate, as the engine ordered them."""
    return candidates[0]


def most_likely(original: str, candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the highest mean log-probability of a token; the first where no engine tells it.

    Example:
        >>> most_likely("", [Candidate("a", logprob=-2.0), Candidate("b", logprob=-1.0)]).text
        'b'
    """
    if any(candidate.logprob is None for candidate in candidates):
        return candidates[0]
    return max(candidates, key=lambda candidate: candidate.logprob or 0.0)


def shortest(original: str, candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the fewest words: the one that changes the cost of the answer least."""
    return min(candidates, key=lambda candidate: len(candidate.text.split()))
