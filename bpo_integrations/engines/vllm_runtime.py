"""Runs vLLM for many callers: requests as token ids go in from any thread or event loop, futures come out.

vLLM's `LLM` may be called by one thread at a time, and `generate` returns when the last of its prompts is done. So one
thread owns the engine and steps it: what arrives joins the running batch at the next step, each caller waits for its
own futures, and a cancelled future frees its slot within a step. An `AsyncLLM` has such a loop of its own, and is only
routed to.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from bpo_integrations.errors import EngineClosedError, EngineError

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

_numbers = itertools.count()
_prefix = f"bpo-{secrets.token_hex(4)}"


def _request_id() -> str:
    """Return an id that no other request of the engine has, the user's own included."""
    return f"{_prefix}-{next(_numbers)}"


@dataclass(eq=False, slots=True)
class Job:
    """One sequence to generate.

    Args:
        ids: The prompt's token ids.
        params: How to sample; `n` is 1.
        lora: The adapter to put on, or None.
    """

    ids: list[int]
    params: SamplingParams
    lora: LoRARequest | None = None
    id: str = field(default_factory=_request_id)
    future: Future[RequestOutput] = field(default_factory=Future)


class Runtime(Protocol):
    """A vLLM engine that takes jobs from anywhere."""

    @property
    def config(self) -> Any:
        """The `VllmConfig` of the engine."""

    def submit(self, job: Job) -> Future[RequestOutput]:
        """Start a job. Cancelling the future aborts it."""

    def check_caller(self) -> None:
        """Make sure that this thread may wait for a future.

        Raises:
            EngineError: It is the thread that would have to complete the future.
        """


_END_SECONDS = 30.0
"""How long the end of the process waits for an engine to shut down."""


class EngineThread:
    """One `LLMEngine`, and the thread that builds it, steps it, and shuts it down.

    It is built in the thread that uses it because a device and a pool of CPU threads belong to a thread.

    Args:
        build: Returns the engine.
        owned: Whether to shut the engine down when nobody holds this object any more.

    Raises:
        Exception: Whatever `build` raises.
    """

    def __init__(self, build: Callable[[], Any], *, owned: bool) -> None:
        wait_for_those_that_end()  # vLLM keeps state of the whole process, which a shutdown takes down
        self._inbox: SimpleQueue[Job | str | None] = SimpleQueue()
        ready: Future[Any] = Future()
        # The thread must not hold this object: when the last user lets go of it, the thread ends.
        thread = threading.Thread(target=_serve, args=(build, owned, self._inbox, ready), name="bpo-vllm", daemon=True)
        thread.start()
        _threads.add(thread)
        self.engine = ready.result()
        weakref.finalize(self, _stop, self._inbox, thread, os.getpid())

    @property
    def config(self) -> Any:
        """The `VllmConfig` of the engine."""
        return self.engine.vllm_config

    def submit(self, job: Job) -> Future[RequestOutput]:
        """Put a job into the batch at the next step; cancelling the future takes it out again."""
        inbox, number = self._inbox, job.id
        job.future.add_done_callback(lambda future: inbox.put(number) if future.cancelled() else None)
        inbox.put(job)
        return job.future

    def check_caller(self) -> None:
        """Every thread but the engine's own, which runs no user's code, may wait."""


_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_ending: deque[threading.Thread] = deque()
"""Threads that were told to end, and that nobody has waited for yet."""


def _stop(inbox: SimpleQueue[Job | str | None], thread: threading.Thread, pid: int) -> None:
    """Tell the thread to end, without waiting: the garbage collector calls this, whatever locks are held."""
    if pid == os.getpid():  # the thread does not exist in a forked child
        _ending.append(thread)
        inbox.put(None)


def wait_for_those_that_end() -> None:
    """Wait until engines that nobody holds any more have shut down."""
    while _ending:
        thread = _ending.popleft()
        if thread is not threading.current_thread():
            thread.join()


@atexit.register
def _wait_for_the_end() -> None:
    """Let the engines shut down before the process ends; runs after the finalizers, which were registered later."""
    for thread in list(_threads):
        thread.join(_END_SECONDS)


def _serve(build: Callable[[], Any], owned: bool, inbox: SimpleQueue[Job | str | None], ready: Future[Any]) -> None:
    """Build the engine, then step it as long as something is to be done."""
    try:
        engine = build()
    except BaseException as error:  # raised again in the thread that asked for the engine
        ready.set_exception(error)
        return
    ready.set_result(engine)
    running: dict[str, Job] = {}
    try:
        while _take_in(engine, inbox, running):
            if not running:
                continue
            try:
                outputs = engine.step()
            except Exception as error:
                _fail(engine, running, error)
                continue
            for output in outputs:
                if output.finished and (job := running.pop(output.request_id, None)):
                    _settle(job, output)
    finally:
        if owned:
            engine.engine_core.shutdown()


def _take_in(engine: Any, inbox: SimpleQueue[Job | str | None], running: dict[str, Job]) -> bool:
    """Hand new jobs and cancellations to the engine, waiting for one where nothing runs; False is the end."""
    block = not running
    while True:
        try:
            item = inbox.get(block=block)
        except Empty:
            return True
        block = False
        if item is None:
            return False
        if isinstance(item, str):
            if running.pop(item, None):
                _abort(engine, [item])
        elif not item.future.cancelled():
            try:
                engine.add_request(item.id, {"prompt_token_ids": item.ids}, item.params, lora_request=item.lora)
            except Exception as error:
                _settle(item, error)
            else:
                running[item.id] = item


def _fail(engine: Any, running: dict[str, Job], error: Exception) -> None:
    """A step failed, and with it everything in the batch; what is left of it must not run on."""
    for job in running.values():
        _settle(job, error)
    _abort(engine, list(running))
    running.clear()


def _abort(engine: Any, ids: list[str]) -> None:
    with suppress(Exception):  # the engine is dead: the next job will be told so
        engine.abort_request(ids)


def _settle(job: Job, outcome: Any) -> None:
    if job.future.set_running_or_notify_cancel():
        if isinstance(outcome, BaseException):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)


class LoopRoute:
    """A user's `AsyncLLM`, which lives in one event loop, for callers in any.

    Args:
        engine: The `AsyncLLM`.
        loop: Its loop; None takes the one in which it has started, else the one that runs now.

    Raises:
        EngineError: There is no such loop.
    """

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.engine = engine
        handler = engine.output_handler
        try:
            self._loop = loop or (handler.get_loop() if handler is not None else asyncio.get_running_loop())
        except RuntimeError as error:
            msg = "The AsyncLLM belongs to no event loop yet."
            raise EngineError(msg, hint="Make it, and the optimizer around it, inside of its event loop.") from error

    @property
    def config(self) -> Any:
        """The `VllmConfig` of the engine."""
        return self.engine.vllm_config

    def submit(self, job: Job) -> Future[RequestOutput]:
        """Start a job in the engine's loop; cancelling the future aborts it."""
        if self._loop.is_closed():
            msg = "The event loop of the AsyncLLM is closed."
            raise EngineClosedError(msg, hint="Make a new AsyncLLM, or give an LLM, which needs no loop.")
        return asyncio.run_coroutine_threadsafe(self._run(job), self._loop)

    async def _run(self, job: Job) -> RequestOutput:
        last: RequestOutput | None = None
        async for output in self.engine.generate(
            {"prompt_token_ids": job.ids}, job.params, job.id, lora_request=job.lora
        ):
            last = output
        if last is None:
            msg = "vLLM ended a request without an output."
            raise EngineError(msg, hint="Try again.")
        return last

    def check_caller(self) -> None:
        """Refuse to wait in the loop that would have to do the work."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return
        if here:
            msg = "A blocking call in the event loop of the AsyncLLM would wait for itself."
            error = EngineError(msg, hint="Await the asynchronous method instead, for example `ainvoke`.")
            error.retryable = False
            raise error


def results(started: Iterable[Future[RequestOutput]]) -> list[RequestOutput]:
    """Wait for all; where one fails or the wait is interrupted, the others are cancelled."""
    futures = list(started)
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


async def aresults(started: Iterable[Future[RequestOutput]]) -> list[RequestOutput]:
    """As `results`, without blocking the event loop; when the task is cancelled, so are the futures."""
    futures = list(started)
    try:
        return await asyncio.gather(*map(asyncio.wrap_future, futures))
    finally:
        for future in futures:
            future.cancel()
