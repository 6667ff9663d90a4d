"""Merges calls that arrive together into batches, for threads and tasks of any event loop alike.

Promises: every call gets its own rows, in order; rows are taken from the waiting calls in turn, so a long list holds up
a short call for one batch at most; a cancelled call ends at the next decoding step, and one that fails fails alone; a
seeded call is never merged; the queue is bounded and says when it is full. It does not cache, and knows no prompts.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Engine, Request, RowEngine, Traits
from bpo_integrations.errors import EngineBusyError, EngineError
from bpo_integrations.result import Candidate

Rows = list[list[Candidate]]

QUEUE_ROWS = 4096
"""Rows that may wait; at ten prompts a second these are seven minutes, longer than anybody waits."""

BATCH_TOKENS = 16384
"""Most tokens of a batch, every row counted as the longest (at three characters a token, and its new tokens)."""

WAIT_SECONDS = 0.003
"""How long an idle engine waits for company. Tasks that start together arrive within a few milliseconds, and a lone
call loses less than a hundredth of what its generation takes."""

_IDLE_SECONDS = 10.0
_WAITS = 5


@dataclass(eq=False, slots=True)
class _Call:
    """One caller's requests, and which of them are still to be started."""

    engine: RowEngine
    requests: Sequence[Request]
    decoding: Decoding
    future: Future[Rows] = field(default_factory=Future)
    cancelled: bool = False
    rows: Rows = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    running: int = 0

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.requests]
        # Rows of similar length next to each other: a batch is as slow as its longest row.
        self.waiting.extend(sorted(range(len(self.requests)), key=lambda row: _cost(self.requests[row])))

    @property
    def alone(self) -> bool:
        """Whether it must not be merged: what a seed draws depends on everything in the batch."""
        return self.decoding.seed is not None and not self.decoding.greedy

    def fail(self, error: BaseException) -> None:
        self.waiting.clear()
        with suppress(InvalidStateError):  # cancelled meanwhile
            self.future.set_exception(error)

    def finish(self) -> None:
        if not self.waiting and not self.running:
            with suppress(InvalidStateError):
                self.future.set_result(self.rows)


def _cost(request: Request) -> int:
    """Estimate a row's tokens without tokenizing."""
    return sum(len(message["content"]) for message in request.messages) // 3 + request.max_new_tokens


class _Queue:
    """The calls that wait for the weights of one engine id, and the thread that works them off."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: list[_Call] = []
        self._last = 0.0
        self._thread: threading.Thread | None = None

    def put(self, call: _Call, *, limit: int, wait: float) -> None:
        with self._changed:
            waiting = sum(len(each.waiting) for each in self._calls)
            if waiting and waiting + len(call.requests) > limit:
                msg = f"{waiting} prompts wait for the model already; the limit is {limit}."
                raise EngineBusyError(msg, hint="Call again later, send less at once, or put up more machines.")
            self._calls.append(call)
            self._last = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, args=(wait,), name="bpo-batches", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def cancel(self, call: _Call) -> None:
        """Give up a call; rows of it that run end at the next decoding step."""
        with self._changed:
            call.cancelled = True
            call.waiting.clear()
            if call in self._calls:
                self._calls.remove(call)
            self._changed.notify_all()
        call.future.cancel()

    def _work(self, wait: float) -> None:
        """Work off batches until nothing has come for a while; whatever goes wrong is told to all who wait."""
        try:
            self._work_off(wait)
        except BaseException as error:
            with self._changed:
                self._thread, calls, self._calls = None, self._calls, []
            for call in calls:
                call.fail(error)

    def _work_off(self, wait: float) -> None:
        busy = False
        while True:
            with self._changed:
                if not self._calls and not self._changed.wait_for(lambda: bool(self._calls), _IDLE_SECONDS):
                    self._thread = None
                    return
                if not busy:
                    self._await_company(wait)
                batch = self._take()
            if batch:
                _run(batch)
            del batch  # or the engines' weights would be held while nothing is to be done
            busy = bool(self._calls)

    def _await_company(self, wait: float) -> None:
        """Wait until nothing more arrives (the lock is held, and let go of while waiting)."""
        latest = time.monotonic() + _WAITS * wait
        while self._calls and (left := min(self._last + wait, latest) - time.monotonic()) > 0:
            if sum(len(call.waiting) for call in self._calls) >= self._calls[0].engine.batch_rows:
                return
            self._changed.wait(left)

    def _take(self) -> list[tuple[_Call, int]]:
        """Take the next batch: rows of the calls that decode as the oldest does, one of each in turn."""
        if not self._calls:
            return []
        first = self._calls[0]
        if first.alone:
            taken = [(first, row) for row in range(len(first.requests))]
            first.waiting.clear()
        else:
            taken = _in_turn([call for call in self._calls if call.decoding == first.decoding and not call.alone])
        for call, _ in taken:
            call.running += 1
        # Who was served goes to the end, or a long list would hold up calls that decode in another way.
        served = {id(call) for call, _ in taken}
        self._calls = sorted((call for call in self._calls if call.waiting), key=lambda call: id(call) in served)
        return taken


def _in_turn(calls: Sequence[_Call]) -> list[tuple[_Call, int]]:
    """Take rows from the calls in turn, until the engine's batch is full in rows or in tokens."""
    taken: list[tuple[_Call, int]] = []
    room = calls[0].engine.batch_rows
    longest = 0
    going = list(calls)
    while going and len(taken) < room:
        for call in list(going):
            row = call.waiting[0] if call.waiting else None
            longer = longest if row is None else max(longest, _cost(call.requests[row]))
            if row is None or len(taken) == room or (taken and longer * (len(taken) + 1) > BATCH_TOKENS):
                going.remove(call)
                continue
            taken.append((call, call.waiting.popleft()))
            longest = longer
    return taken


def _run(batch: Sequence[tuple[_Call, int]]) -> None:
    """Run a batch and hand out its rows. Where it fails, each call is tried by itself, so that one fails alone."""
    calls = list(dict.fromkeys(call for call, _ in batch))
    first = calls[0]
    try:
        found = first.engine.generate_rows(
            [call.requests[row] for call, row in batch], first.decoding, lambda index: batch[index][0].cancelled
        )
        if len(found) != len(batch):
            msg = f"The engine returned {len(found)} results for {len(batch)} prompts."
            raise EngineError(msg, hint="The engine is at fault.")
    except BaseException as error:
        if len(calls) == 1:
            first.running = 0
            first.fail(error)
            return
        for call in calls:
            own = [pair for pair in batch if pair[0] is call]
            if call.cancelled:
                call.running -= len(own)
            else:
                _run(own)
        return
    for (call, row), candidates in zip(batch, found, strict=True):
        call.rows[row] = candidates
        call.running -= 1
    for call in calls:
        if not call.cancelled:
            call.finish()


_queues: WeakValueDictionary[tuple[type, str], _Queue] = WeakValueDictionary()
_lock = threading.Lock()


def _after_fork() -> None:
    """A child has none of the parent's threads, and perhaps a lock that one of them held."""
    global _queues, _lock
    _queues, _lock = WeakValueDictionary(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Batcher:
    """An engine around an engine, which merges the calls of all that use the same weights.

    Args:
        engine: The engine, with `traits.coalesce`.
        queue_rows: Rows that may wait before a further call is refused; one call alone may have any number.
        wait: Seconds that an idle engine waits for company.

    Example:
        >>> Batcher(engine).generate(requests, Decoding())  # doctest: +SKIP
        [[Candidate(text='Cover ...', ...)], ...]
    """

    def __init__(self, engine: RowEngine, *, queue_rows: int = QUEUE_ROWS, wait: float = WAIT_SECONDS) -> None:
        self.engine = engine
        self._queue_rows = queue_rows
        self._wait = wait
        self._queue: _Queue | None = None
        self._pid = 0

    @property
    def traits(self) -> Traits:
        """The engine's."""
        return self.engine.traits

    @property
    def id(self) -> str:
        """The engine's."""
        return self.engine.id

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As the engine does."""
        return self.engine.count_tokens(texts)

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As the engine does.

        Raises:
            EngineBusyError: Too many rows wait already.
            EngineError: As the engine does.
        """
        if not requests:
            return []
        queue, call = self._put(requests, decoding)
        try:
            return call.future.result()
        except BaseException:
            queue.cancel(call)  # Ctrl-C: nobody waits any more; harmless after a failure
            raise

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As `generate`, without blocking the event loop; when the task is cancelled, its rows end at the next step."""
        if not requests:
            return []
        queue, call = self._put(requests, decoding)
        try:
            return await asyncio.wrap_future(call.future)
        except BaseException:
            queue.cancel(call)
            raise

    def close(self) -> None:
        """Close the engine; calls on other engines of the same weights go on."""
        self.engine.close()

    def _put(self, requests: Sequence[Request], decoding: Decoding) -> tuple[_Queue, _Call]:
        call = _Call(self.engine, requests, decoding)
        if self._queue is None or self._pid != os.getpid():
            with _lock:
                key = (type(self.engine), self.engine.id)
                self._queue = _queues.setdefault(key, _Queue())
                self._pid = os.getpid()
        self._queue.put(call, limit=self._queue_rows, wait=self._wait)
        return self._queue, call


def coalesced(engine: Engine) -> Engine:
    """Return the engine, behind a `Batcher` where its calls should be merged."""
    if isinstance(engine, Batcher) or not engine.traits.coalesce:
        return engine
    assert isinstance(engine, RowEngine)
    return Batcher(engine)
