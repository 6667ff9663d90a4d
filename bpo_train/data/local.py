"""Chat models in this process: the embedded base, and anything that transformers runs.

Promises: nothing is loaded before it is asked; what is asked at once goes to the engine as one list, which it divides
by what the device holds; where that fails, each is tried by itself, so that one that is too long fails alone. Texts of
a batch may differ from those of a prompt alone by rounding.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Engine, Request
from bpo_integrations.errors import BPOError
from bpo_integrations.models.adapter import ADAPTER_CONFIG
from bpo_integrations.models.base import download_allowed
from bpo_integrations.result import Candidate
from bpo_train.data.backends import EngineBackend

COMPANY = 0.005
"""Seconds that the first of a batch waits for others: tasks that start together arrive within a few milliseconds."""


def chat_engine(spec: str, *, base: str | None = None) -> Engine:
    """Return the engine of a chat model in this process.

    Args:
        spec: `embedded`, the rewriter's base on the CPU; `hf:embedded`, the same through transformers, on a GPU where
            there is one; `hf:ID` or `hf:DIR`, whole weights or a PEFT adapter.
        base: For an adapter, the base to put it on, instead of the one that its configuration names.

    Raises:
        MissingExtraError: A package that it needs is not installed.
        ModelNotFoundError: The weights are not on this machine.

    Example:
        >>> chat_engine("hf:runs/dpo").id  # doctest: +SKIP
        'hf:runs/dpo:auto:auto'
    """
    if spec == "embedded":
        from bpo_integrations.models.embedded import embedded_base_engine

        return embedded_base_engine()
    from bpo_integrations.engines.transformers import TransformersEngine, _base_of, _folder

    name, allowed = spec.removeprefix("hf:"), download_allowed()
    if name == "embedded":
        return TransformersEngine(name)
    folder = _folder(name, allow_download=allowed)
    if not (folder / ADAPTER_CONFIG).is_file():
        return TransformersEngine(str(folder), name=name)
    weights = base or _base_of(folder, allow_download=allowed)
    if Path(weights).is_dir():
        weights = str(Path(weights).resolve())
    return TransformersEngine(weights, adapter=folder, allow_download=allowed, name=name)


_Answer: TypeAlias = tuple[list[Candidate], float]
"""What the engine generated, and the seconds that count for it."""


class BatchBackend(EngineBackend):
    """An engine that is faster with many requests at once: those that wait while it works are its next batch.

    Args:
        engine: The engine.
        temperature: As in `open_backend`.
        max_tokens: As in `open_backend`.
    """

    def __init__(self, engine: Engine, temperature: float, max_tokens: int) -> None:
        super().__init__(engine, temperature, max_tokens)
        self._waiting: list[tuple[Request, Decoding, asyncio.Future[_Answer]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def candidates(self, request: Request, decoding: Decoding) -> _Answer:
        """Return what the engine generates, and of the seconds that its batch took the share of one."""
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, decoding, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        try:
            await asyncio.sleep(COMPANY)
            while self._waiting:
                decoding = self._waiting[0][1]
                batch = [(request, future) for request, asked, future in self._waiting if asked == decoding]
                self._waiting = [entry for entry in self._waiting if entry[1] != decoding]
                await self._run([entry for entry in batch if not entry[1].done()], decoding)
        finally:
            self._worker = None

    async def _run(self, batch: Sequence[tuple[Request, asyncio.Future[_Answer]]], decoding: Decoding) -> None:
        started = time.perf_counter()
        try:
            found = await self.engine.agenerate([request for request, _ in batch], decoding)
        except Exception as error:  # it is for those to handle who wait for an answer
            if len(batch) > 1 and isinstance(error, BPOError):
                for entry in batch:
                    await self._run([entry], decoding)
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        share = (time.perf_counter() - started) / max(1, len(batch))
        for (_, future), candidates in zip(batch, found, strict=True):
            if not future.done():
                future.set_result((candidates, share))
