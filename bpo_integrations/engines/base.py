"""What an engine is: chat messages in, candidates out.

An engine knows nothing of a prompt's quality: no policy, no guard, no selection. It applies its model's chat template,
keeps special tokens that stand inside the user's text as text, hands whole batches down in one call, and keeps order.
Constructing one is cheap; weights load at first use, once a process, shared by all that name the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bpo_integrations.decoding import Decoding
from bpo_integrations.result import Candidate
from bpo_integrations.templates import Message


@dataclass(frozen=True, slots=True)
class Request:
    """One thing to generate.

    Args:
        messages: The chat messages; the last one is the user's.
        max_new_tokens: Upper bound on each candidate.
        min_new_tokens: Lower bound on each candidate.
    """

    messages: tuple[Message, ...]
    max_new_tokens: int = 256
    min_new_tokens: int = 0


@runtime_checkable
class Engine(Protocol):
    """Generates candidates.

    `decoding.empty_threshold`, where it is not None, asks for the gate of augmenting models: the engine reads the
    probability that the model ends its answer at once, reports it as `Candidate.p_empty`, returns a single empty
    candidate where it is at least the threshold, and elsewhere decodes with an empty answer forbidden.
    """

    @property
    def id(self) -> str:
        """Names the weights and the way they run; two engines of the same id give the same candidates."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without any template."""

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """Return `decoding.n` candidates for each request, in the requests' order.

        Raises:
            EngineError: Generation failed; `retryable` says whether the same call may succeed later.
        """

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As `generate`, without blocking the event loop."""

    def close(self) -> None:
        """Release the weights. Closing twice is harmless; generating afterwards raises EngineClosedError."""
