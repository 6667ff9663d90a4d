"""What the engines share whose model runs elsewhere: one request a row, failures, token estimates, a bound on calls.

Each row of a batch is a call of its own, so each may fail by itself: a row that failed is left without a candidate, and
only where all of them failed does the batch fail. Nothing here knows a client.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager

from bpo_integrations.engines.generation import encodable
from bpo_integrations.errors import BPOError
from bpo_integrations.result import Candidate
from bpo_integrations.templates import Message

logger = logging.getLogger(__name__)

BYTES_PER_TOKEN = 4
"""The usual rule of thumb for English text; in UTF-8 bytes, so that a character of another script counts for more."""


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has, without a tokenizer.

    Example:
        >>> estimate_tokens("Tell me a story.")
        4
    """
    return -(-len(text.encode("utf-8", errors="replace")) // BYTES_PER_TOKEN)


def sendable(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with lone surrogates, which no request can carry, replaced by `?`."""
    return [{"role": message["role"], "content": encodable(message["content"])} for message in messages]


def settle_rows(outcomes: Sequence[list[Candidate] | BaseException]) -> list[list[Candidate]]:
    """Return each row's candidates; a row that failed gets none, which its prompt alone then fails for.

    Raises:
        BPOError: Every row failed: the first row's error.

    Example:
        >>> settle_rows([[Candidate("a")], BPOError("gone")])[1]
        []
    """
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for error in errors:
        if not isinstance(error, BPOError):  # a cancelled task, an interrupt, a fault of our own
            raise error
    if errors and len(errors) == len(outcomes):
        raise errors[0]
    if errors:
        logger.warning("%d of %d requests failed; the first: %s", len(errors), len(outcomes), errors[0])
    return [[] if isinstance(outcome, BaseException) else outcome for outcome in outcomes]


class Slots:
    """Bounds how many calls are under way, over all threads and event loops alike; first come, first served.

    Neither `threading.Semaphore`, which would block an event loop, nor `asyncio.Semaphore`, which belongs to one, does.

    Args:
        size: Most calls at once.

    Example:
        >>> slots = Slots(1)
        >>> with slots.held():
        ...     pass
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a slot while the block runs; waits for it in this thread."""
        ticket = self._queue()
        try:
            ticket.result()
        except BaseException:  # an interrupt while waiting
            self._withdraw(ticket)
            raise
        try:
            yield
        finally:
            self._release()

    @asynccontextmanager
    async def aheld(self) -> AsyncIterator[None]:
        """As `held`, without blocking the event loop."""
        ticket = self._queue()
        try:
            await asyncio.wrap_future(ticket)
        except BaseException:  # cancelled while waiting
            self._withdraw(ticket)
            raise
        try:
            yield
        finally:
            self._release()

    def _queue(self) -> Future[None]:
        ticket: Future[None] = Future()
        with self._lock:
            if not self._free:
                self._waiting.append(ticket)
                return ticket
            self._free -= 1
        ticket.set_result(None)
        return ticket

    def _withdraw(self, ticket: Future[None]) -> None:
        if not ticket.cancel():  # it was served in the same moment
            self._release()

    def _release(self) -> None:
        with self._lock:
            while self._waiting:
                ticket = self._waiting.popleft()
                if ticket.set_running_or_notify_cancel():
                    break
            else:
                self._free += 1
                return
        ticket.set_result(None)
