"""A thread with an event loop of its own, on which an asynchronous client lives, whoever calls.

An HTTP connection belongs to the loop that opened it. With one loop for all, threads and any number of event loops
share the connections and the bound on them, and cancelling a call reaches the connection from anywhere.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines on its own event loop until it is stopped. In a forked child it is dead, and harmless.

    Args:
        name: The thread's name.
        end: Awaited on the loop at the very end, to close what lives there.

    Example:
        >>> async def close() -> None: ...
        >>> line = LoopThread("example", close)
        >>> line.submit(asyncio.sleep(0, "done")).result()
        'done'
        >>> line.stop()
    """

    def __init__(self, name: str, end: Callable[[], Awaitable[None]]) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._stopped = False
        # The thread must not hold this object, or it would never be collected.
        threading.Thread(target=_run, args=(self._loop, end), name=name, daemon=True).start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Cancel what is under way, await `end` and let the thread go; does not wait for it. Twice is harmless."""
        if self._pid != os.getpid():
            return  # the parent's thread does not live here
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)


def _run(loop: asyncio.AbstractEventLoop, end: Callable[[], Awaitable[None]]) -> None:
    async def finish() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await end()

    try:
        loop.run_forever()
        loop.run_until_complete(finish())
    finally:
        loop.close()
