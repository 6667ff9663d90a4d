"""Asks a model about many rows at once, within limits: the annotator of `construct`, the answering LLM of `reproduce`.

Promises: never more than `concurrency` requests at once, nor more requests or tokens a minute than allowed; what may
succeed later is tried again, after the time that the server names or else a growing one; what never can succeed stops
the run at once; every request and every token is counted. How a model is reached is told in `backends.py`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from bpo_integrations.engines.remote import estimate_tokens
from bpo_integrations.errors import ConfigurationError, EngineError
from bpo_integrations.templates import Message

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
"""Seconds between two attempts, doubled each time; half of it is drawn at random, so that rows come back one by one."""

LONGEST_WAIT = 600.0
"""Seconds up to which a server's Retry-After is heeded."""

EXPECTED_ANSWER = 250
"""Tokens that an answer is expected to have, for estimates before the first one is there."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was spent: requests sent (failed ones too), tokens read and tokens written by the model."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's answers to one request, which of them came to their own end, and how long the request took.

    The seconds are those of the request that succeeded, without what was waited before it; of a batch its share.
    """

    texts: tuple[str, ...]
    finished: tuple[bool, ...]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class RequestError(EngineError):
    """A request failed; the run goes on.

    Args:
        reason: Why, in a few words without any text of the row's.
        again: Whether the same request may succeed later.
        wait: Seconds that the server asks to wait, or None.
    """

    def __init__(self, reason: str, *, again: bool, wait: float | None = None) -> None:
        super().__init__(f"The model gave no answer ({reason}).", hint="Ask again with --retry-failed.")
        self.reason = reason
        self.retryable = again
        self.wait = wait


class RowFailedError(EngineError):
    """A row got no answer, for `reason`, after `usage`."""

    def __init__(self, reason: str, usage: Usage) -> None:
        super().__init__(f"The model gave no answer ({reason}).", hint="Ask again with --retry-failed.")
        self.reason = reason
        self.usage = usage


class Backend(Protocol):
    """Reaches a model: one request, no retries."""

    async def complete(self, messages: Sequence[Message], n: int) -> Completion:
        """Return up to `n` answers, and at least one.

        Raises:
            RequestError: This request failed.
            BPOError: Every request will fail: the key is wrong, there is no such model.
        """

    async def close(self) -> None:
        """Drop the connections."""


class Pace:
    """Lets so many units through in a minute, evenly, first come, first served.

    Args:
        per_minute: Units a minute; None lets everything through.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._free = 0.0

    async def take(self, amount: float) -> None:
        """Wait until `amount` units may start."""
        if not self._seconds:
            return
        now = asyncio.get_running_loop().time()
        start = max(now, self._free)
        self._free = start + amount * self._seconds
        await asyncio.sleep(start - now)

    def settle(self, amount: float) -> None:
        """Correct what was taken by the difference that became known."""
        self._free += amount * self._seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """What an `Annotator` keeps to.

    Args:
        concurrency: Most requests at once.
        requests_per_minute: Most requests that start in a minute; None is no limit.
        tokens_per_minute: Most tokens, read and written, in a minute; None is no limit.
        retries: Further attempts at a request that may succeed later.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    retries: int = 6

    def __post_init__(self) -> None:
        for ok, what in (
            (self.concurrency >= 1, "concurrency must be 1 or more"),
            (self.requests_per_minute is None or self.requests_per_minute > 0, "requests a minute must be more than 0"),
            (self.tokens_per_minute is None or self.tokens_per_minute > 0, "tokens a minute must be more than 0"),
            (self.retries >= 0, "retries must be 0 or more"),
        ):
            if not ok:
                msg = f"Impossible limit: {what}."
                raise ConfigurationError(msg, hint="Correct it, or leave it out.")


class Annotator:
    """Asks a backend, within limits.

    Args:
        backend: Reaches the model.
        limits: What it keeps to.

    Example:
        >>> annotator = Annotator(open_backend("openai:gpt-4o-mini"), Limits(concurrency=32))  # doctest: +SKIP
        >>> completion, usage = await annotator.ask([{"role": "user", "content": "Hi"}])  # doctest: +SKIP
    """

    def __init__(self, backend: Backend, limits: Limits | None = None) -> None:
        self.backend = backend
        self.limits = limits or Limits()
        self._slots = asyncio.Semaphore(self.limits.concurrency)
        self._requests = Pace(self.limits.requests_per_minute)
        self._tokens = Pace(self.limits.tokens_per_minute)

    async def ask(self, messages: Sequence[Message], n: int = 1) -> tuple[Completion, Usage]:
        """Return `n` answers and what they cost; servers that give fewer at a time are asked several times.

        Raises:
            RowFailedError: The request cannot succeed, or did not in all its attempts.
            BPOError: Every request will fail.
        """
        texts: list[str] = []
        finished: list[bool] = []
        seconds, usage = 0.0, Usage()
        while len(texts) < n:
            try:
                found, spent = await self._ask(messages, n - len(texts))
            except RowFailedError as error:
                raise RowFailedError(error.reason, usage + error.usage) from error.__cause__
            usage += spent
            texts += found.texts
            finished += found.finished
            seconds += found.seconds
        whole = Completion(tuple(texts[:n]), tuple(finished[:n]), usage.prompt_tokens, usage.completion_tokens, seconds)
        return whole, usage

    async def _ask(self, messages: Sequence[Message], n: int) -> tuple[Completion, Usage]:
        expected = estimated(messages, n).tokens
        for attempt in range(1, self.limits.retries + 2):
            try:
                async with self._slots:
                    await self._requests.take(1)
                    await self._tokens.take(expected)
                    started = time.perf_counter()
                    found = await self.backend.complete(messages, n)
                    seconds = found.seconds or time.perf_counter() - started
            except RequestError as error:
                if not error.retryable or attempt > self.limits.retries:
                    raise RowFailedError(error.reason, Usage(requests=attempt)) from error
                self._tokens.settle(-expected)
                await asyncio.sleep(pause(attempt, error.wait))  # without a slot: others go on meanwhile
                continue
            usage = Usage(attempt, found.prompt_tokens, found.completion_tokens)
            self._tokens.settle(usage.tokens - expected)
            return replace(found, seconds=seconds), usage
        raise AssertionError


def pause(attempt: int, wait: float | None = None) -> float:
    """Return how many seconds to wait after a failed attempt.

    Args:
        attempt: Its number, from 1.
        wait: What the server asks for.
    """
    longest = min(FIRST_PAUSE * 2.0 ** (attempt - 1), LONGEST_PAUSE)
    drawn = longest * random.uniform(0.5, 1.0)  # noqa: S311  (no secret)
    return drawn if wait is None else min(max(wait, 0.0), LONGEST_WAIT) + 0.1 * drawn


def estimated(messages: Sequence[Message], n: int = 1) -> Usage:
    """Return about what a request will cost, before it is sent.

    Example:
        >>> estimated([{"role": "user", "content": "Tell me a story."}])
        Usage(requests=1, prompt_tokens=4, completion_tokens=250)
    """
    return Usage(1, sum(estimate_tokens(message["content"]) for message in messages), n * EXPECTED_ANSWER)


class Budget:
    """Says when to stop: as soon as the tokens spent and those under way would exceed it.

    Args:
        tokens: The budget; None is none.
        spent: Tokens of earlier runs.
    """

    def __init__(self, tokens: int | None, spent: int = 0) -> None:
        self.tokens = tokens
        self.spent = spent
        self._under_way = 0

    def start(self, expected: int) -> bool:
        """Set tokens aside for a row; False where there is no room for them."""
        if self.tokens is not None and self.spent + self._under_way + expected > self.tokens:
            return False
        self._under_way += expected
        return True

    def end(self, expected: int, spent: int) -> None:
        """Put what a row cost in the place of what was expected."""
        self._under_way -= expected
        self.spent += spent
