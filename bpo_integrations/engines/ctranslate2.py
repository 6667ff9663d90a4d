"""Runs a converted model on the CPU with CTranslate2: no torch, some 60 tokens a second for a model of 135M weights.

Promises: weights load at first use, once a process, shared by all engines of the same folder and settings; any number
of threads may generate at once; after a fork the child loads its own, which then computes with one thread; a cancelled
or interrupted call stops at the next token. In int8, greedy text may differ between machines, and between a prompt
alone and in a batch (a rounding may flip a near tie); in float32 it does not. Lone surrogates count as `?`; some
control characters have no token and are not seen by the model.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.engines.ct2_model import MODELS, Job, LoadedModel, Marks, default_workers, run
from bpo_integrations.engines.generation import check_packages, chunks, cut_at, held_back
from bpo_integrations.errors import ConfigurationError, EngineClosedError, ModelNotFoundError, PromptTooLongError
from bpo_integrations.result import Candidate

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGES = ("ctranslate2", "numpy", "tokenizers", "yaml")
"""What this engine imports when it loads; `yaml` is what ctranslate2 imports."""

COMPUTE_TYPES = ("auto", "int8", "int8_float32", "float32")

_ROWS, _TOKENS, _SPREAD = 32, 8192, 16
"""Largest group that one worker decodes at once, in rows and tokens (400 MB of keys and values), and its spread of
lengths: CTranslate2 feeds what is longer than the shortest prompt token by token. 32 rows are the fastest of 8, 16, 32,
80."""


class CTranslate2Engine:
    """An engine for a CTranslate2 folder with `tokenizer.json` beside the model, and ChatML as its chat template.

    Args:
        folder: The folder, or a function that returns it (and may make it), called at first use.
        threads: CPU threads that work on one prompt or group of prompts; None takes half of those that this process may
            use, at most 4. As many groups are decoded side by side as there are threads for.
        compute_type: `auto` computes as the weights are stored; or `int8`, `int8_float32`, `float32`.
        name: Names the weights in `id`; engines of the same name share them. Needed where `folder` is a function.

    Raises:
        MissingExtraError: ctranslate2 or tokenizers is not installed.
        ModelNotFoundError: The folder holds no CTranslate2 model.
        ConfigurationError: An option is out of its range.

    Example:
        >>> engine = CTranslate2Engine(Path("exported"))  # doctest: +SKIP
        >>> engine.generate([Request(({"role": "user", "content": "Hi"},))], Decoding())  # doctest: +SKIP
        [[Candidate(text='Hello!', ...)]]
    """

    def __init__(
        self,
        folder: Path | Callable[[], Path],
        *,
        threads: int | None = None,
        compute_type: str = "auto",
        name: str | None = None,
    ) -> None:
        check_packages(PACKAGES, extra="local")
        if compute_type not in COMPUTE_TYPES:
            msg = f"Unknown compute_type {compute_type!r}."
            raise ConfigurationError(msg, hint=f"Use one of {', '.join(COMPUTE_TYPES)}.")
        if threads is not None and threads < 1:
            msg = f"threads is {threads}; it must be 1 or more."
            raise ConfigurationError(msg, hint="Leave it out to let the runtime choose.")
        if isinstance(folder, Path):
            folder = folder.expanduser().resolve()
            for file in ("model.bin", "config.json", "tokenizer.json"):
                if not (folder / file).is_file():
                    msg = f"{folder} holds no {file}."
                    raise ModelNotFoundError(msg, hint="Give a folder with a converted model and its tokenizer.json.")
        elif name is None:
            msg = "An engine whose folder is made later needs a name."
            raise ConfigurationError(msg, hint="Give name=, which must change with the weights.")
        self._folder = folder
        self._threads = threads
        self._compute_type = compute_type
        self._name = name if name is not None else str(folder)
        self._model: LoadedModel | None = None
        self._closed = False

    @property
    def traits(self) -> Traits:
        """What this engine guarantees."""
        return Traits(literal=True, repeats=True, gate=True, stops=True, forks="works", coalesce=True)

    @property
    def batch_rows(self) -> int:
        """Rows that it decodes at once with the best yield."""
        return _ROWS * default_workers(self._threads)

    @property
    def id(self) -> str:
        """Names the weights and the way they run."""
        return f"ct2:{self._name}:{self._compute_type}"

    def _load(self) -> LoadedModel:
        folder = self._folder if isinstance(self._folder, Path) else self._folder()
        runtime_type = "default" if self._compute_type == "auto" else self._compute_type
        return LoadedModel(folder, threads=self._threads, compute_type=runtime_type)

    def _loaded(self) -> LoadedModel:
        model = self._model
        if model is None or model.pid != os.getpid():
            if not self._closed:
                model = self._model = MODELS.get((self._name, self._threads, self._compute_type), self._load)
            if self._closed or model is None:  # perhaps by another thread, meanwhile
                self._model = None
                msg = f"The engine {self.id} is closed."
                raise EngineClosedError(msg, hint="Make a new one.")
        return model

    def close(self) -> None:
        """Let go of the weights; they are freed when no engine and no running call holds them."""
        self._closed = True
        self._model = None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without any template."""
        chat = self._loaded().chat
        return [len(chat.encode(text)) for text in texts]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """Return `decoding.n` candidates for each request, in order; with the gate of the `Engine` protocol.

        P(nothing) is the softmax, in float32, of the end token's logit at the first step, over the whole vocabulary.

        Raises:
            PromptTooLongError: A request does not fit into the model's context.
            EngineClosedError: The engine was closed.
            EngineError: Generation failed.
        """
        return self.generate_rows(requests, decoding, lambda _: False)

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As `generate`, in a worker thread. When the task is cancelled, the work stops at the next token."""
        cancelled = threading.Event()
        try:
            return await asyncio.to_thread(self.generate_rows, requests, decoding, lambda _: cancelled.is_set())
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def stream(self, request: Request, decoding: Decoding) -> Iterator[str]:
        """Yield one candidate's text piece by piece; closing the iterator stops the work at the next token.

        The pieces joined are the text. `decoding.n` and `decoding.empty_threshold` do not count here.

        Raises:
            EngineError: As `generate`.
        """
        from tokenizers.decoders import DecodeStream

        model = self._loaded()
        job = _prepare(model, [request])[0]
        marks = model.marks(decoding)
        generator = model.generator_for(decoding)
        arrived: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        cancelled = threading.Event()
        one = replace(decoding, n=1) if decoding.n > 1 else decoding

        def work() -> None:
            try:
                run(model, generator, [job], one, marks, lambda _: cancelled.is_set(), arrived.put)
                arrived.put(None)
            except BaseException as error:  # raised again in the thread that reads
                arrived.put(error)

        worker = threading.Thread(target=work, name="bpo-stream", daemon=True)
        worker.start()
        pieces, text = DecodeStream(skip_special_tokens=True), ""
        try:
            while (token := arrived.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                # A token may end inside a character: the piece comes with the token that completes it.
                text += pieces.step(model.tokenizer, token) or ""
                text, ended = cut_at(text, marks.cut)
                ready = len(text) if ended else len(text) - held_back(text, marks.cut)
                if ready:
                    yield text[:ready]
                    text = text[ready:]
                if ended:
                    return
            if text:
                yield text
        finally:
            cancelled.set()
            worker.join()

    def score(self, pairs: Sequence[tuple[Request, str]]) -> list[float]:
        """Return the log-probability (nats, summed over its tokens) of each text as the whole answer to its request.

        Raises:
            EngineError: As `generate`.
        """
        if not pairs:
            return []
        model = self._loaded()
        rows, lengths = [], []
        for job, (_, text) in zip(_prepare(model, [request for request, _ in pairs]), pairs, strict=True):
            tail = [*model.chat.encode(text), str(model.tokenizer.id_to_token(model.end))]
            rows.append([*job.prompt.fixed, *job.prompt.rest, *tail])
            lengths.append(len(tail))
        with model.working():
            results = model.generator_for(Decoding()).score_batch(
                rows, max_batch_size=_TOKENS // 4, batch_type="tokens", max_input_length=0
            )
        return [float(sum(result.log_probs[-n:])) for result, n in zip(results, lengths, strict=True)]

    def generate_rows(
        self, requests: Sequence[Request], decoding: Decoding, stopped: Callable[[int], bool]
    ) -> list[list[Candidate]]:
        """As `generate`; row `i` ends at the next token once `stopped(i)`.

        Raises:
            EngineError: As `generate`.
        """
        if not requests:
            return []
        model = self._loaded()
        jobs = _prepare(model, requests)
        found: list[list[Candidate]] = [[] for _ in requests]
        threshold = decoding.empty_threshold
        if threshold is not None:
            probe = Marks((), (model.end,))
            generator = model.generator_for(Decoding())

            def look(group: list[Job], stopped: Callable[[int], bool]) -> None:
                for job, result in zip(group, run(model, generator, group, None, probe, stopped), strict=True):
                    # A longer prompt than the group's shortest has entries for its own last tokens, too.
                    job.p_empty = _first_probability(result.logits[0][-1], model.end)
                    job.shortest = max(job.shortest, 1)

            _side_by_side(_groups(jobs, model.workers, spread=_SPREAD), look, stopped, model.workers)
            for job in jobs:
                if job.p_empty is not None and job.p_empty >= threshold:
                    found[job.index] = [Candidate("", p_empty=job.p_empty)]
            jobs = [job for job in jobs if not found[job.index]]
        marks = model.marks(decoding)
        generator = model.generator_for(decoding)

        def decode(group: list[Job], stopped: Callable[[int], bool]) -> None:
            group = [job for job in group if not stopped(job.index)]
            results = run(model, generator, group, decoding, marks, stopped) if group else []
            for job, result in zip(group, results, strict=True):
                found[job.index] = [
                    _candidate(model, job, ids, score, marks)
                    for ids, score in zip(result.sequences_ids, result.scores, strict=True)
                ]

        # What a seed draws depends on the order of the draws, so one after the other.
        workers = model.workers if decoding.seed is None else 1
        groups = _groups(jobs, workers, spread=_spread(model, decoding), hypotheses=decoding.n)
        _side_by_side(groups, decode, stopped, workers)
        return found


def _prepare(model: LoadedModel, requests: Sequence[Request]) -> list[Job]:
    """Render the requests and settle their bounds within the model's context."""
    jobs = []
    for index, request in enumerate(requests):
        prompt = model.chat.render(request.messages)
        room = model.context - len(prompt)
        if room < 1:
            msg = f"The messages are {len(prompt)} tokens long; the model's context is {model.context}."
            raise PromptTooLongError(msg, hint="Shorten them.")
        longest = min(request.max_new_tokens, room)
        jobs.append(Job(index, prompt, longest, min(request.min_new_tokens, longest)))
    return jobs


def _spread(model: LoadedModel, decoding: Decoding) -> int:
    """Return by how many tokens the prompts of a group may differ in length.

    What is fed token by token counts as made by the candidate when repetition is penalized, and the user's words must
    not. So then only the end of the template may be fed so, which is harmless, or, where results are exact, nothing.
    """
    if (decoding.repetition_penalty or 1.0) == 1.0:
        return _SPREAD
    return model.chat.harmless_tail if model.rounds else 0


def _side_by_side(
    groups: Sequence[list[Job]],
    work: Callable[[list[Job], Callable[[int], bool]], None],
    stopped: Callable[[int], bool],
    workers: int,
) -> None:
    """Work off groups, as many at once as the runtime has workers; an error or an interruption ends them all."""
    if workers == 1 or len(groups) <= 1:
        for group in groups:
            work(group, stopped)
        return
    ended = threading.Event()
    with ThreadPoolExecutor(workers, thread_name_prefix="bpo-group") as pool:
        futures = [pool.submit(work, group, lambda row: ended.is_set() or stopped(row)) for group in groups]
        try:
            for future in futures:
                future.result()
        except BaseException:
            ended.set()
            raise


def _groups(jobs: Sequence[Job], workers: int, *, spread: int, hypotheses: int = 1) -> list[list[Job]]:
    """Group what one call can decode: the same beginning and lower bound, similar lengths; work for every worker."""
    most = max(1, _ROWS // hypotheses)
    rounds = -(-len(jobs) // (most * workers))
    rows = -(-len(jobs) // max(1, rounds * workers))
    alike: dict[tuple[tuple[str, ...], int], list[Job]] = {}
    for job in jobs:
        alike.setdefault((job.prompt.fixed, job.shortest), []).append(job)
    return [
        group
        for part in alike.values()
        for group in chunks(
            part,
            lambda job: len(job.prompt),
            rows=max(1, rows),
            tokens=_TOKENS // hypotheses,
            spread=spread,
            cost=lambda job: len(job.prompt) + job.longest,
        )
    ]


def _first_probability(logits: Any, token: int) -> float:
    """Return a token's softmax probability, from the runtime's logits (float32) over the vocabulary."""
    if "numpy" not in sys.modules:  # importing it takes as long as the whole probe, a row without it 5 ms
        view = logits.__array_interface__
        size = math.prod(view["shape"])
        values = (ctypes.c_float * size).from_address(view["data"][0])
        highest = max(values)
        return math.exp(values[token] - highest) / math.fsum(math.exp(value - highest) for value in values)
    import numpy as np

    array: NDArray[np.float32] = np.asarray(logits, dtype=np.float32).ravel()
    exponents = np.exp(array - array.max())
    return float(exponents[token] / exponents.sum())


def _candidate(model: LoadedModel, job: Job, ids: list[int], score: float, marks: Marks) -> Candidate:
    """Turn one row of the runtime's result into a candidate."""
    ended = bool(ids) and ids[-1] in marks.end_ids
    if ended and ids[-1] == model.end:
        ids = ids[:-1]
    text, cut = cut_at(model.tokenizer.decode(ids, skip_special_tokens=True), marks.cut)
    return Candidate(
        text=text,
        tokens=len(ids),
        logprob=score,
        finish_reason="stop" if ended or cut else "length",
        p_empty=job.p_empty,
    )
