"""Blocks of a file job over a Ray cluster: a pool of actors, each with an optimizer of its own.

Promises: no more blocks are under way than there are actors, so memory stays constant; a block whose actor dies is
given to another one, and after `TRIES` deaths its rows count as failed; answers come back to this process, which alone
writes the journal, so every row is there once. Plain actors and no `ray.data`, because a dataset is written by its
tasks: it has no journal to resume from, and starts anew when its driver is killed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from bpo_integrations.cli.jobs import Answer, Block, optimize_block
from bpo_integrations.cli.options import Settings
from bpo_integrations.cli.rows import Outcome
from bpo_integrations.errors import BPOError, ConfigurationError, EngineError, MissingExtraError, OptimizationError

TRIES = 3
"""Actors that a block may take down with it before its rows count as failed."""

KNOCK = 10.0
"""Seconds that a cluster may take to accept a connection."""

OBJECT_STORE = 100 * 2**20
"""Bytes that a Ray of our own sets aside for objects; blocks of prompts need little."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Works blocks off on Ray.

    Args:
        settings: What each actor builds its optimizer from.
        rewriter: The id of the rewriter that is expected there.
        address: Of a running cluster (`auto` finds one on this machine); `local` starts a Ray of our own on this one.
        workers: Actors; None takes as many as the cluster has room for.
        cpus: CPU cores that each of them takes.
        gpus: GPUs that each of them takes.

    Example:
        >>> workers = Cluster(Settings(), rewriter.id, workers=2)  # doctest: +SKIP
        >>> run_job(job, settings, optimizer, print, workers)  # doctest: +SKIP
    """

    settings: Settings
    rewriter: str
    address: str = "local"
    workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def map(self, work: Iterator[Block]) -> Generator[tuple[Block, Sequence[Answer]], None, None]:
        """Yield each block with the answers to its rows, in the order in which they are done.

        Ray is started when there is a block to work off, and stopped afterwards if it was not there before.

        Raises:
            ConfigurationError: The cluster cannot be reached or has no room, or its workers cannot load the model.
            EngineError: Workers die again and again before they have loaded the model.
            MissingExtraError: ray is not installed.
        """
        first = next(work, None)
        if first is None:
            return
        ray = import_ray()
        with self._connected(ray):
            pool = _Pool(ray, self)
            try:
                yield from pool.run(first, work)
            finally:
                pool.close()

    @contextlib.contextmanager
    def _connected(self, ray: ModuleType) -> Iterator[None]:
        if ray.is_initialized():  # by the program that embeds us
            yield
            return
        check_address(self.address)
        options: dict[str, Any] = {"address": self.address, "log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            cores = max(os.cpu_count() or 1, int(self.cpus * (self.workers or 1)))
            options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise _unreachable(self.address, error) from error
        try:
            yield
        finally:
            ray.shutdown()

    def room(self, ray: ModuleType) -> int:
        """Return how many actors to start.

        Raises:
            ConfigurationError: There is no room for them.
        """
        there = ray.cluster_resources()
        room = min(int(there.get(name, 0) / need) for name, need in (("CPU", self.cpus), ("GPU", self.gpus)) if need)
        wanted = self.workers or max(room, 1)
        if wanted <= room:
            return wanted
        msg = (
            f"{wanted} workers of {self.cpus:g} CPUs and {self.gpus:g} GPUs do not fit: Ray has "
            f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, room for {room}."
        )
        raise ConfigurationError(msg, hint="Lower --workers, --worker-cpus or --worker-gpus.")


class Worker:
    """The actor: an optimizer that is built once and then given block after block."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def start(self) -> tuple[str, str] | str:
        """Build the optimizer and return its rewriter's id; or message and hint of what stands against it."""
        try:
            self._optimizer = self._settings.build()
        except BPOError as error:  # as plain data: not every error survives the way
            return error.message, error.hint
        return self._optimizer.rewriter.id

    def optimize(self, prompts: Sequence[str]) -> list[Answer]:
        """Return what becomes of prompts."""
        return optimize_block(self._optimizer, prompts)


@dataclass(frozen=True, slots=True)
class _Task:
    """What an actor is doing: starting (no block), or a block that took `deaths` actors down before."""

    actor: Any
    block: Block | None = None
    deaths: int = 0


class _Pool:
    """The actors of one job; each has one thing to do at a time."""

    def __init__(self, ray: ModuleType, cluster: Cluster) -> None:
        self._ray = ray
        self._cluster = cluster
        self._size = cluster.room(ray)
        self._actor = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=0)(Worker)
        self._busy: dict[Any, _Task] = {}
        self._again: deque[_Task] = deque()
        self._lost_at_start = 0

    def run(self, first: Block, work: Iterator[Block]) -> Generator[tuple[Block, Sequence[Answer]], None, None]:
        """Yield blocks with their answers."""
        self._again.append(_Task(None, first))
        for _ in range(self._size):
            self._start()
        while self._busy:
            done, _ = self._ray.wait(list(self._busy), num_returns=1)
            task = self._busy.pop(done[0])
            try:
                answer = self._ray.get(done[0])
            except self._ray.exceptions.RayActorError as error:
                if task.block is not None and task.deaths + 1 >= TRIES:
                    yield task.block, self._given_up(task.block, error)
                    task = _Task(task.actor)
                self._replace(task, error)
                continue
            except self._ray.exceptions.RayTaskError as error:
                msg = f"A worker failed: {_line(error)}"
                raise EngineError(msg, hint="This is a bug of bpo or of a package that it uses.") from error
            if task.block is None:
                self._check(answer)
            else:
                yield task.block, answer
            self._hand_out(task.actor, work)

    def _start(self) -> None:
        actor = self._actor.remote(self._cluster.settings)
        self._busy[actor.start.remote()] = _Task(actor)

    def _hand_out(self, actor: Any, work: Iterator[Block]) -> None:
        """Give an idle actor what is next; where nothing is left, it goes."""
        if self._again:
            task = self._again.popleft()
            block, deaths = task.block, task.deaths
        else:
            block, deaths = next(work, None), 0
        if block is None:
            self._ray.kill(actor)
            return
        self._busy[actor.optimize.remote([row.prompt for row in block])] = _Task(actor, block, deaths)

    def _replace(self, task: _Task, error: Exception) -> None:
        """Put a dead actor's block back and start another actor."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(task.actor)  # it may only have been out of reach; its answer is no longer wanted
        if task.block is not None:
            self._again.append(_Task(None, task.block, task.deaths + 1))
        else:
            self._lost_at_start += 1
            if self._lost_at_start > TRIES + self._size:
                msg = f"Workers die before they have loaded the model: {_line(error)}"
                raise EngineError(msg, hint="Look into Ray's logs; is there too little memory?") from error
        self._start()

    def _check(self, answer: tuple[str, str] | str) -> None:
        """Refuse a worker that cannot do what this process could."""
        self._lost_at_start = 0
        if not isinstance(answer, str):
            message, hint = answer
            msg = f"On a worker: {message}"
            raise ConfigurationError(msg, hint=hint)
        if answer != self._cluster.rewriter:
            msg = f"A worker has the rewriter {answer!r}, and this process {self._cluster.rewriter!r}."
            raise ConfigurationError(msg, hint="Install the same versions and models on all machines.")

    def _given_up(self, block: Block, error: Exception) -> list[Answer]:
        """Return the answers to a block that takes every actor down: failures, as the failure rule says."""
        why = f"EngineError: {TRIES} workers died over this block: {_line(error)}"
        if self._cluster.settings.strict:
            failure = OptimizationError(f"The optimization failed: {why}", hint="Without --strict the prompt is kept.")
            return [failure] * len(block)
        return [Outcome(row.prompt, "kept", f"failed: {why}") for row in block]

    def close(self) -> None:
        """End the actors that are still there."""
        for task in self._busy.values():
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(task.actor)


def check_address(address: str) -> None:
    """Knock at `host:port` or `ray://host:port`, for Ray itself tries for minutes.

    Raises:
        ConfigurationError: Nobody answers.
    """
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if place.port is not None:
            socket.create_connection((place.hostname or "", place.port), timeout=KNOCK).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> ConfigurationError:
    msg = f"Ray cannot be reached at {address!r}: {_line(error)}"
    return ConfigurationError(msg, hint="Check the address after --ray; without one, a Ray is started on this machine.")


def import_ray() -> ModuleType:
    """Return ray, with its reporting of usage switched off.

    Raises:
        MissingExtraError: It is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else each worker warns of a change to come
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", extra="ray") from error
    return sys.modules[ray.__name__]


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."
