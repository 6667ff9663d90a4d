"""What an engine is: chat messages in, candidates out.

An engine knows nothing of a prompt's quality: no policy, no guard, no selection. It applies its model's chat template,
keeps special tokens that stand inside the user's text as text, hands whole batches down in one call, and keeps order.
Constructing one is cheap; weights load at first use, once a process, shared by all that name the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

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


@dataclass(frozen=True, slots=True)
class Traits:
    """What an engine guarantees beyond the protocol; `docs/engines.md` has the table, one test suite proves it for all.

    Args:
        literal: Special tokens in a message stay text, because the engine tokenizes by itself.
        repeats: A seeded call gives the same candidates again.
        gate: It reads P(nothing), as `Engine` describes; elsewhere `empty_threshold` is ignored.
        stops: A cancelled `agenerate` stops computing within a decoding step (or drops the connection at once).
        forks: In a child forked after loading it `works`, or is `refused` with an EngineError that says what to do.
        coalesce: Calls that arrive together are faster as one batch, so `batching.py` merges them; False where the
            engine (or the server behind it) batches by itself.
    """

    literal: bool
    repeats: bool
    gate: bool
    stops: bool
    forks: Literal["works", "refused"]
    coalesce: bool


@runtime_checkable
class Engine(Protocol):
    """Generates candidates.

    `decoding.empty_threshold`, where it is not None, asks for the gate of augmenting models: the engine reads the
    probability that the model ends its answer at once, reports it as `Candidate.p_empty`, returns a single empty
    candidate where it is at least the threshold, and elsewhere decodes with an empty answer forbidden.
    """

    @property
    def traits(self) -> Traits:
        """What this engine guarantees."""

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


@runtime_checkable
class RowEngine(Engine, Protocol):
    """An engine with `traits.coalesce`: it can give up single rows of a batch, so that many callers can share one."""

    @property
    def batch_rows(self) -> int:
        """Rows that it decodes at once with the best yield."""

    def generate_rows(
        self, requests: Sequence[Request], decoding: Decoding, stopped: Callable[[int], bool]
    ) -> list[list[Candidate]]:
        """As `generate`; row `i` ends as soon as `stopped(i)`, which is asked at each decoding step.

        What a stopped row holds is of no use to anybody; the other rows are as they would have been.
        """
