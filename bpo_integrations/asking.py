"""Asks rewriters for candidates on behalf of many callers: through the cache, within a deadline, sync and async.

Promises: every ask has an outcome, in order; nobody waits longer than the deadline; a generation goes on when a caller
runs out of time, because the next one may profit from it, and is given up when the last caller was cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace

from bpo_integrations.cache import CandidateCache, Candidates, Flight
from bpo_integrations.decoding import Decoding
from bpo_integrations.errors import EngineTimeoutError
from bpo_integrations.result import Candidate
from bpo_integrations.rewriter import Rewriter

BATCH_SHARE = 8
"""So many prompts of a batch get the timeout's seconds together."""

_running: set[asyncio.Task[None]] = set()
"""Generations under way on event loops; asyncio itself keeps only weak references."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing to generate: a prompt for a rewriter, with the turns before it where the rewriter uses them."""

    rewriter: Rewriter
    prompt: str
    history: tuple[str, ...] = ()


Outcome = Candidates | Exception


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all asks of a call.

    Args:
        cache: Where candidates are looked for, and kept.
        decoding: How they are drawn.
        timeout: Seconds that a prompt may wait for the model; a batch gets as much for every `BATCH_SHARE` prompts.
    """

    cache: CandidateCache
    decoding: Decoding
    timeout: float | None

    @property
    def repeatable(self) -> bool:
        """Whether what is drawn once may serve again; an unseeded sample is nobody else's."""
        return self.decoding.greedy or self.decoding.seed is not None

    def late(self) -> EngineTimeoutError:
        """Return the error of who waited in vain."""
        msg = f"The model did not answer within {self.timeout} seconds."
        return EngineTimeoutError(msg, hint="Give a larger timeout=.")

    def deadline(self, prompts: int) -> float | None:
        """Return the moment, on the monotonic clock, until which a batch waits."""
        if self.timeout is None:
            return None
        return time.monotonic() + self.timeout * -(-prompts // BATCH_SHARE)


@dataclass(frozen=True, slots=True)
class _Job:
    """What one rewriter is asked for in one call, and how its outcome reaches those who wait."""

    terms: Terms
    rewriter: Rewriter
    pairs: list[tuple[Flight, Ask]]

    def _input(self) -> tuple[list[str], Decoding, list[tuple[str, ...]]]:
        asks = [ask for _, ask in self.pairs]
        return [ask.prompt for ask in asks], self.terms.decoding, [ask.history for ask in asks]

    def start(self) -> None:
        """Generate in a thread of its own, so that whoever waits can stop waiting."""
        run = contextvars.copy_context().run
        try:
            threading.Thread(target=run, args=(self.run,), name="bpo-generate", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left, or the program is ending
            self._fail(error)

    def run(self) -> None:
        try:
            self._settle(self.rewriter.candidates(*self._input()))
        except BaseException as error:
            self._fail(error)

    async def arun(self) -> None:
        try:
            self._settle(await self.rewriter.acandidates(*self._input()))
        except asyncio.CancelledError as error:
            # The loop ends, or all who asked here are gone. Others, in other threads, may wait for the same.
            wanted = [pair for pair in self.pairs if self.terms.cache.is_wanted(pair[0])]
            replace(self, pairs=[pair for pair in self.pairs if pair not in wanted])._fail(error)
            for flight, _ in wanted:
                flight.loop = flight.give_up = None
            if wanted:
                replace(self, pairs=wanted).start()
            raise
        except BaseException as error:
            self._fail(error)

    def live_on(self, loop: asyncio.AbstractEventLoop, cancel: Callable[[], object]) -> None:
        """Say that the flights live on a loop, and have `cancel` called when nobody waits for any of them."""
        left = len(self.pairs)
        lock = threading.Lock()

        def gone() -> None:
            nonlocal left
            with lock:
                left -= 1
            if not left:
                cancel()

        for flight, _ in self.pairs:
            flight.give_up, flight.loop = gone, loop

    def _settle(self, found: Sequence[Sequence[Candidate]]) -> None:
        for (flight, _), candidates in zip(self.pairs, found, strict=True):
            self.terms.cache.settle(flight, candidates, keep=self.terms.repeatable)

    def _fail(self, error: BaseException) -> None:
        for flight, _ in self.pairs:
            self.terms.cache.fail(flight, error)


def _claim(asks: Sequence[Ask], terms: Terms, *, blocks: bool) -> tuple[list[Flight], list[_Job]]:
    """Look up what is there or on its way; the rest is a job for each rewriter."""
    keys: list[Hashable] = [
        (ask.prompt, ask.history, ask.rewriter.id, terms.decoding, None if terms.repeatable else object())
        for ask in asks
    ]
    flights, mine = terms.cache.claim(keys, blocks=blocks)
    if not mine:
        return flights, []
    asked = dict(zip(keys, asks, strict=True))
    jobs: dict[Rewriter, _Job] = {}
    for flight in mine:
        ask = asked[flight.key]
        jobs.setdefault(ask.rewriter, _Job(terms, ask.rewriter, [])).pairs.append((flight, ask))
    return flights, list(jobs.values())


def ask_all(asks: Sequence[Ask], terms: Terms) -> list[Outcome]:
    """Return the candidates of each ask, or why there are none."""
    flights, jobs = _claim(asks, terms, blocks=True)
    for job in jobs:
        job.start()
    deadline = terms.deadline(len(asks))
    outcomes: list[Outcome] = []
    for flight in flights:
        try:
            outcomes.append(flight.future.result(_left(deadline)))
        except FutureTimeoutError:
            outcomes.append(_now(flight) or _too_late(flight, terms))
        except Exception as error:
            outcomes.append(error)
    return outcomes


async def aask_all(asks: Sequence[Ask], terms: Terms) -> list[Outcome]:
    """As `ask_all`, without blocking the event loop; a cancelled caller lets go of what nobody else waits for."""
    flights, jobs = _claim(asks, terms, blocks=False)
    loop = asyncio.get_running_loop()
    for job in jobs:
        task = asyncio.create_task(job.arun())
        _running.add(task)
        task.add_done_callback(_running.discard)
        job.live_on(loop, _canceller(loop, task))
    deadline = terms.deadline(len(asks))
    outcomes: list[Outcome] = []
    try:
        for flight in flights:
            if found := _now(flight):  # no need to go through the loop
                outcomes.append(found)
                continue
            waiting: asyncio.Future[Candidates] = asyncio.wrap_future(flight.future)
            try:
                outcomes.append(await asyncio.wait_for(asyncio.shield(waiting), _left(deadline)))
            except TimeoutError:
                outcomes.append(_now(flight) or _too_late(flight, terms))
            except Exception as error:
                outcomes.append(error)
    except BaseException:
        terms.cache.leave(flights)
        raise
    return outcomes


def _now(flight: Flight) -> Outcome | None:
    """Return what has arrived by now, if it has."""
    if not flight.future.done():
        return None
    error = flight.future.exception()
    if isinstance(error, Exception):
        return error
    return flight.future.result()


def _too_late(flight: Flight, terms: Terms) -> EngineTimeoutError:
    terms.cache.wait_no_more(flight)
    return terms.late()


def _canceller(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> Callable[[], object]:
    def cancel() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)

    return cancel


def _left(deadline: float | None) -> float | None:
    """Return the seconds until a deadline of the monotonic clock; None is no deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())
