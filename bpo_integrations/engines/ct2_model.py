"""A CTranslate2 model in memory, and one decoding call on it. For `ctranslate2.py`, which is the engine.

Holds what is peculiar to the runtime: its seed, which counts once a worker; its kept prompts, which are never freed;
its callbacks, which must not outlive the interpreter.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.chatml import ChatML, Prompt
from bpo_integrations.engines.generation import SharedModels, banned_variants
from bpo_integrations.errors import EngineClosedError, EngineError, ModelFormatError

if TYPE_CHECKING:
    import ctranslate2

_STATIC_PROMPTS = 8
"""System turns whose keys and values are kept. CTranslate2 never frees them, so their number is bounded."""

_DEFAULT_CONTEXT = 2048
"""Context assumed where the folder's config.json has no `max_position_embeddings`."""

_POLL_SECONDS = 0.002
_LONGEST_STOP = 5.0
"""Seconds for which the end of the program waits for threads that hold the generator."""

_UNSEEDED = 2**32 - 1
"""The value of CTranslate2's seed that means: take one from the system."""

_seed_lock = threading.Lock()


@dataclass(slots=True)
class Job:
    """One request on its way: where it belongs, what is said to the model, its bounds, and P(nothing)."""

    index: int
    prompt: Prompt
    longest: int
    shortest: int
    p_empty: float | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """What ends or is kept out of a text, as strings and as tokens."""

    cut: tuple[str, ...]
    end_ids: tuple[int, ...]
    suppressed: list[list[str]] = field(default_factory=list)


class LoadedModel:
    """A folder in memory: the generator, the tokenizer and what the folder says about the model."""

    def __init__(self, folder: Path, *, threads: int | None, compute_type: str) -> None:
        import ctranslate2  # noqa: F401  # not first in the other thread, where an import could wait for this one
        from tokenizers import Tokenizer

        self.folder = folder
        self.pid = os.getpid()
        self.stopping = threading.Event()
        # The runtime's OpenMP does not come through a fork: with more than one thread the child would hang.
        threads = 1 if MODELS.forked else threads or _default_threads()
        self.workers = default_workers(threads)
        self._settings = {"compute_type": compute_type, "intra_threads": threads}
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            # Weights and tokenizer come from the disk side by side; neither holds the interpreter's lock for long.
            with ThreadPoolExecutor(1) as pool:
                opening = pool.submit(self._open, self.workers)
                self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
                self.generator: ctranslate2.Generator | None = opening.result()
            template = folder / "chat_template.jinja"
            self.chat = ChatML(self.tokenizer, template.read_text(encoding="utf-8") if template.is_file() else None)
            self.end = self._id(config["eos_token"])
            self.context = int(config.get("max_position_embeddings", _DEFAULT_CONTEXT))
        except ModelFormatError:
            raise
        except MemoryError as error:
            msg = f"Not enough memory to load {folder}."
            raise EngineError(msg, hint="Free some memory; the embedded model needs about 300 MB.") from error
        # A missing key, a file that is cut off, a tokenizer of another version: tokenizers raises a bare Exception.
        except Exception as error:
            msg = f"The model in {folder} cannot be loaded: {error}"
            raise ModelFormatError(msg, hint="Convert or export the model again.") from error
        special = self.tokenizer.get_added_tokens_decoder()
        self.control = [[token.content] for number, token in special.items() if token.special and number != self.end]
        self._running = 0
        self._counting = threading.Lock()
        self._fixed: set[tuple[str, ...]] = set()
        self._drawn = False

    @property
    def rounds(self) -> bool:
        """Whether it computes in 8 bits, so that a batch does not give exactly what its prompts give alone."""
        return self.generator is not None and "int8" in self.generator.compute_type

    def _id(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        if number is None:
            msg = f"{self.folder}: the tokenizer has no token {token!r}."
            raise ModelFormatError(msg, hint="Convert or export the model again.")
        return int(number)

    def _open(self, workers: int) -> ctranslate2.Generator:
        import ctranslate2

        return ctranslate2.Generator(str(self.folder), device="cpu", inter_threads=workers, **self._settings)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a running job; refuse it when the program is ending."""
        with self._counting:
            if self.stopping.is_set():
                msg = "The program is ending."
                raise EngineClosedError(msg, hint="Generate before it ends.")
            self._running += 1
        try:
            yield
        finally:
            with self._counting:
                self._running -= 1

    def stop(self) -> None:
        """End running jobs at their next token, and then the worker threads, which call back into Python."""
        self.stopping.set()
        while self._running:
            time.sleep(_POLL_SECONDS)
        generator, self.generator = self.generator, None
        # Whoever lets go of the generator last waits for its threads. That must be this thread: the ones that generated
        # may be daemons, which Python stops in the middle of it.
        latest = time.monotonic() + _LONGEST_STOP
        while generator is not None and sys.getrefcount(generator) > 2 and time.monotonic() < latest:
            time.sleep(_POLL_SECONDS)

    def generator_for(self, decoding: Decoding) -> ctranslate2.Generator:
        """Return the shared generator, or, where a seed must count, a fresh one.

        CTranslate2 reads the seed once, when a worker draws for the first time, and has only one for the process. So
        that first draw is made here, under a lock, with the seed set for its duration.
        """
        if self.generator is None:
            msg = "The program is ending."
            raise EngineClosedError(msg, hint="Generate before it ends.")
        if decoding.greedy:
            return self.generator
        if decoding.seed is None and self._drawn:
            return self.generator
        import ctranslate2

        with _seed_lock:
            generator = self.generator if decoding.seed is None else self._open(1)
            ctranslate2.set_random_seed(_UNSEEDED if decoding.seed is None else decoding.seed % _UNSEEDED)
            try:
                generator.generate_batch(
                    [self.chat.encode("a")], max_length=1, sampling_topk=0, include_prompt_in_result=False
                )
            finally:
                ctranslate2.set_random_seed(_UNSEEDED)
            self._drawn = self._drawn or decoding.seed is None
        return generator

    def may_keep(self, fixed: tuple[str, ...]) -> bool:
        """Whether the keys and values of this beginning are, or may still be, kept."""
        if fixed and fixed not in self._fixed and len(self._fixed) < _STATIC_PROMPTS:
            self._fixed.add(fixed)
        return fixed in self._fixed

    @cached_property
    def texts(self) -> list[str]:
        """Each token's text, by id."""
        return [self.tokenizer.decode([number]) for number in range(self.tokenizer.get_vocab_size())]

    def marks(self, decoding: Decoding) -> Marks:
        """Turn stop and banned strings into tokens. What tokens cannot express is cut from the finished text."""
        suppressed = [*self.control, *map(self.chat.encode, banned_variants(decoding.banned))]
        ends = [self.end]
        if decoding.stop or decoding.banned:
            for number, text in enumerate(self.texts):
                if any(stop and stop in text for stop in decoding.stop):
                    ends.append(number)
                elif any(banned and banned in text for banned in decoding.banned):
                    suppressed.append([str(self.tokenizer.id_to_token(number))])
        return Marks((*decoding.stop, *decoding.banned), tuple(ends), suppressed)


MODELS: SharedModels[LoadedModel] = SharedModels()


@atexit.register
def _release() -> None:
    """Leave no worker thread behind that would call into a Python that has ended: that aborts the process."""
    for model in MODELS.all():
        model.stop()
    time.sleep(5 * _POLL_SECONDS)  # a worker lets go of its last callback just after its job is done


def _after_fork() -> None:
    global _seed_lock  # another thread of the parent may have held it
    _seed_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _usable() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(threads: int | None) -> int:
    """Return how many groups, each on so many threads, this process decodes side by side.

    The workers share the weights. On two cores, two workers of one thread each made 1.9 times the tokens of one worker,
    whether that had one thread or two.
    """
    return max(1, _usable() // (threads or _default_threads()))


def _default_threads() -> int:
    # The runtime's threads spin while they wait for each other: as soon as anything else needs a core, a second thread
    # makes every token slower. On two cores one thread was faster, alone and in batches.
    return max(1, min(4, _usable() // 2))


def run(
    model: LoadedModel,
    generator: ctranslate2.Generator,
    jobs: Sequence[Job],
    decoding: Decoding | None,
    marks: Marks,
    stopped: Callable[[int], bool],
    on_token: Callable[[int], None] | None = None,
) -> list[Any]:
    """Decode a group in one call of the runtime; without a decoding, probe the first step only.

    A job ends as soon as `stopped(job.index)`, and with it all that is asked of the runtime when this thread is
    interrupted.
    """
    interrupted = threading.Event()
    options: dict[str, Any] = {"max_length": 1, "return_logits_vocab": True}
    if decoding is not None:
        options = {
            "max_length": max(job.longest for job in jobs),
            "min_length": jobs[0].shortest,
            "suppress_sequences": marks.suppressed,
            "return_end_token": True,
            "return_scores": True,
            "repetition_penalty": decoding.repetition_penalty or 1.0,
        }
        if not decoding.greedy:
            options |= {
                "sampling_topk": 0,  # the whole vocabulary; the runtime's own default of 1 would be greedy
                "sampling_topp": decoding.top_p,
                "sampling_temperature": decoding.temperature,
                "num_hypotheses": decoding.n,
            }
    fixed = jobs[0].prompt.fixed
    if model.may_keep(fixed):
        options["static_prompt"] = list(fixed)
        prompts = [list(job.prompt.rest) for job in jobs]
    else:
        prompts = [[*job.prompt.fixed, *job.prompt.rest] for job in jobs]
    made: Counter[tuple[int, int]] = Counter()

    def step(result: Any) -> bool:
        """Called for each token; True ends the row."""
        row = result.batch_id, result.hypothesis_id
        made[row] += 1
        if on_token is not None and result.token_id != model.end:
            on_token(result.token_id)
        job = jobs[result.batch_id]
        return interrupted.is_set() or model.stopping.is_set() or made[row] >= job.longest or stopped(job.index)

    try:
        with model.working():
            pending = generator.generate_batch(
                prompts,
                asynchronous=True,
                callback=step,
                end_token=list(marks.end_ids),
                include_prompt_in_result=False,
                **options,
            )
            _wait(pending, interrupted)
            results = [each.result() for each in pending]
    except (RuntimeError, ValueError, MemoryError) as error:
        msg = f"CTranslate2 failed: {error}"
        raise EngineError(msg, hint="Try again with fewer or shorter prompts.") from error
    return results


def _wait(pending: Sequence[Any], interrupted: threading.Event) -> None:
    """Wait for a job in a way that Ctrl-C can end; never leave one running behind."""
    try:
        while not all(each.done() for each in pending):
            time.sleep(_POLL_SECONDS)
    except BaseException:
        interrupted.set()
        while not all(each.done() for each in pending):
            time.sleep(_POLL_SECONDS)
        raise
