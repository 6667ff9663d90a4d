"""The one pipeline: policy -> rewriter -> guards -> selection, in sync, async and batch.

Promises: the result's text is always usable; the original goes on wherever policy, model, guards or a failure say so,
with the reason; with `on_error="passthrough"` no failure of the model gets out. What it does not do: know messages,
chains or files (the adapters do), or decide about quality beyond its guards.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
import threading
import time
from collections.abc import Generator, Hashable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bpo_integrations.cache import CandidateCache, Candidates
from bpo_integrations.decoding import GREEDY, STABLE, Decoding, named_decoding
from bpo_integrations.errors import (
    BPOError,
    ConfigurationError,
    EngineError,
    EngineTimeoutError,
    InputError,
    OptimizationError,
)
from bpo_integrations.guards import (
    ADDITION_GUARDS,
    REWRITE_GUARDS,
    SOFTENING_GUARDS,
    Guard,
    first_violation,
    protected,
)
from bpo_integrations.joint import already_said, join
from bpo_integrations.policy import Policy, PolicyContext, default_policy
from bpo_integrations.result import Candidate, Kind, Mode, OptimizedPrompt, Violation
from bpo_integrations.rewriter import Rewriter, load_rewriter
from bpo_integrations.safety import is_unsafe
from bpo_integrations.selection import Selector, most_likely

logger = logging.getLogger(__name__)

MAX_PASSES = 5
"""The paper's iterations: four help, the fifth drops a little (section 5.3)."""

BATCH_SHARE = 8
"""So many prompts of a batch get `timeout` seconds together."""

_running: set[asyncio.Task[None]] = set()
"""Generations under way on event loops; asyncio itself keeps only weak references."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """One thing to generate: a prompt for a rewriter."""

    rewriter: Rewriter
    prompt: str


_Outcome = Candidates | Exception


@dataclass(slots=True)
class _Work:
    """A prompt on its way through the pipeline."""

    original: str
    text: str
    rewriter: Rewriter
    softens: bool = False
    kind: Kind = "kept"
    reason: str = ""
    candidates: tuple[Candidate, ...] = field(default=())
    error: Exception | None = None
    open: bool = True

    def fail(self, error: Exception) -> None:
        """Note a failure; a later pass that fails leaves the earlier one's result."""
        self.open = False
        if self.kind == "kept":
            self.error, self.reason = error, f"failed: {_in_a_line(error)}"


class PromptOptimizer:
    """Improves prompts.

    Args:
        model: The rewriter: a spec (`embedded`, `ct2:DIR`, `hf:ID`) or a `Rewriter`.
        mode: `augment` (only adds behind the user's words) or `rewrite`; None takes the rewriter's own.
        decoding: `greedy`, `stable`, `aggressive` or a `Decoding`; None is greedy, or `stable` when `n` > 1.
        unsafe: What becomes of plainly unsafe prompts: `keep` leaves them to the LLM's own policy, `soften` asks for a
            harmless request on the same topic (the paper's safety enhancement).
        protect: Literals or compiled patterns that must survive in a rewrite.
        policy: Decides what is left alone before any model runs.
        guards: Replace the mode's guards.
        selector: Chooses among the clean candidates; default: the most likely.
        n: Candidates a prompt.
        passes: Rewrite mode: optimize the result again, up to 5 times in all (paper, section 5.3).
        cache: Entries of the candidate cache, or a `CandidateCache` to share. Unseeded samples are never cached.
        timeout: Seconds that a prompt may wait for the model (the first one loads it); a batch gets as much for every 8
            prompts. None waits forever.
        on_error: What a failing model leads to: the original (`passthrough`) or an `OptimizationError` (`raise`).
        shadow: Run everything, but return the original; what would have been used is in `proposal`.
        options: Passed to `load_rewriter`.

    Raises:
        ConfigurationError: Something is configured wrongly, a model is missing, or an extra is not installed.

    Example:
        >>> PromptOptimizer().optimize("Tell me about Harry Potter").text  # doctest: +SKIP
        'Tell me about Harry Potter. Cover the main characters, ...'
    """

    def __init__(
        self,
        model: str | Rewriter = "embedded",
        *,
        mode: Mode | None = None,
        decoding: Decoding | str | None = None,
        unsafe: Literal["keep", "soften"] = "keep",
        protect: Sequence[str | re.Pattern[str]] = (),
        policy: Policy | None = None,
        guards: Sequence[Guard] | None = None,
        selector: Selector | None = None,
        n: int | None = None,
        passes: int = 1,
        cache: CandidateCache | int = 1024,
        timeout: float | None = 60.0,
        on_error: Literal["passthrough", "raise"] = "passthrough",
        shadow: bool = False,
        **options: Any,
    ) -> None:
        self.rewriter = load_rewriter(model, mode=mode, **options)
        self.mode: Mode = self.rewriter.mode
        self.decoding = _settle_decoding(decoding, n)
        self.unsafe = _one_of("unsafe", unsafe, ("keep", "soften"))
        self.on_error = _one_of("on_error", on_error, ("passthrough", "raise"))
        if timeout is not None and timeout <= 0:
            msg = f"timeout is {timeout}; it must be more than 0 seconds."
            raise ConfigurationError(msg, hint="Give a positive number, or None to wait forever.")
        if not 1 <= passes <= MAX_PASSES:
            msg = f"passes is {passes}; it must lie between 1 and {MAX_PASSES}."
            raise ConfigurationError(msg, hint="More passes than five were never measured.")
        if passes > 1 and self.mode != "rewrite":
            msg = "passes= is for rewrite mode; an addition is not added to again."
            raise ConfigurationError(msg, hint="Leave out passes=, or use mode='rewrite'.")
        self.passes = passes
        self.policy = policy or default_policy
        standard = ADDITION_GUARDS if self.mode == "augment" else REWRITE_GUARDS
        self.guards: tuple[Guard, ...] = tuple(standard if guards is None else guards)
        self._protect: tuple[Guard, ...] = (protected(protect),) if protect else ()
        self.selector = selector or most_likely
        self.cache = cache if isinstance(cache, CandidateCache) else CandidateCache(cache)
        self.timeout = timeout
        self.shadow = shadow
        self._softener = self._load_softener(model, options) if self.unsafe == "soften" else None

    def _load_softener(self, model: str | Rewriter, options: dict[str, Any]) -> Rewriter:
        """Return the rewriter that softens: this one in rewrite mode, else the embedded model's rewriting half."""
        if self.mode == "rewrite":
            return self.rewriter
        if model == "embedded":
            return load_rewriter("embedded", mode="rewrite", **options)
        msg = f"unsafe='soften' needs a rewriter with the mode 'rewrite'; {self.rewriter.record.name} only augments."
        raise ConfigurationError(msg, hint="Use unsafe='keep', or a rewriting model.")

    def optimize(self, prompt: str, history: Sequence[str] = ()) -> OptimizedPrompt:
        """Optimize one prompt.

        Args:
            prompt: The user's turn.
            history: Earlier turns and answers, oldest first; seen by the policy.

        Raises:
            InputError: `prompt` is not a str.
            OptimizationError: The model failed and `on_error="raise"`.
        """
        return self.optimize_batch([prompt], [history])[0]

    async def aoptimize(self, prompt: str, history: Sequence[str] = ()) -> OptimizedPrompt:
        """As `optimize`, without blocking the event loop."""
        return (await self.aoptimize_batch([prompt], [history]))[0]

    def optimize_batch(
        self, prompts: Sequence[str], histories: Sequence[Sequence[str]] | None = None
    ) -> list[OptimizedPrompt]:
        """Optimize prompts, which go to the model in one call; the results keep their order.

        Raises:
            InputError: A prompt is not a str, or there are not as many histories as prompts.
            OptimizationError: The model failed and `on_error="raise"`.
        """
        return _unwrap(self.try_batch(prompts, histories))

    async def aoptimize_batch(
        self, prompts: Sequence[str], histories: Sequence[Sequence[str]] | None = None
    ) -> list[OptimizedPrompt]:
        """As `optimize_batch`, without blocking the event loop."""
        return _unwrap(await self.atry_batch(prompts, histories))

    def try_batch(
        self, prompts: Sequence[str], histories: Sequence[Sequence[str]] | None = None
    ) -> list[OptimizedPrompt | OptimizationError]:
        """As `optimize_batch`, with the error in place of the result of each prompt that failed."""
        run = self._run(prompts, histories)
        try:
            asks = next(run)
            while True:
                asks = run.send(self._generate(asks))
        except StopIteration as stop:
            results: list[OptimizedPrompt | OptimizationError] = stop.value
            return results

    async def atry_batch(
        self, prompts: Sequence[str], histories: Sequence[Sequence[str]] | None = None
    ) -> list[OptimizedPrompt | OptimizationError]:
        """As `try_batch`, without blocking the event loop."""
        run = self._run(prompts, histories)
        try:
            asks = next(run)
            while True:
                asks = run.send(await self._agenerate(asks))
        except StopIteration as stop:
            results: list[OptimizedPrompt | OptimizationError] = stop.value
            return results

    def close(self) -> None:
        """Release the model's weights."""
        self.rewriter.close()
        if self._softener is not None:
            self._softener.close()

    # -- the pipeline: what is asked of the model is yielded, so that sync and async callers share every step ---------

    def _run(
        self, prompts: Sequence[str], histories: Sequence[Sequence[str]] | None
    ) -> Generator[list[_Ask], list[_Outcome], list[OptimizedPrompt | OptimizationError]]:
        started = time.perf_counter()
        works = [self._plan(prompt, history) for prompt, history in _pairs(prompts, histories)]
        for _ in range(self.passes):
            going = [work for work in works if work.open]
            if not going:
                break
            outcomes = yield [_Ask(work.rewriter, work.text) for work in going]
            for work, outcome in zip(going, outcomes, strict=True):
                self._take(work, outcome)
        seconds = (time.perf_counter() - started) / max(1, len(works))
        return [self._finish(work, seconds) for work in works]

    def _plan(self, prompt: str, history: Sequence[str]) -> _Work:
        """Decide what becomes of a prompt before the model sees it."""
        context = PolicyContext(
            mode=self.mode, languages=self.rewriter.record.languages, unsafe=self.unsafe, history=tuple(history)
        )
        work = _Work(prompt, prompt, self.rewriter)
        try:
            reason = self.policy(prompt, context)
            work.softens = reason is None and self._softener is not None and is_unsafe(prompt)
        except Exception as error:  # a policy of the user's own, or a library below ours
            work.fail(error)
            return work
        if reason is not None:
            work.reason, work.open = f"policy: {reason}", False
        elif work.softens and self._softener is not None:
            work.rewriter = self._softener
        return work

    def _take(self, work: _Work, outcome: _Outcome) -> None:
        """Take what the model answered; whatever goes wrong is the work's failure, not the caller's."""
        work.open = False
        if isinstance(outcome, Exception):
            work.fail(outcome)
        elif not outcome:
            work.fail(EngineError("The engine returned no candidate.", hint="Check the engine."))
        else:
            try:
                self._judge(work, outcome)
            except Exception as error:  # a guard or a selector of the user's own
                work.fail(error)

    def _judge(self, work: _Work, outcome: Candidates) -> None:
        """Put the model's candidates through the guards and select one."""
        judged = tuple(replace(candidate, violation=self._violation(work, candidate)) for candidate in outcome)
        work.candidates += judged
        clean = [candidate for candidate in judged if candidate.violation is None]
        if not clean:
            if work.kind == "kept":
                work.reason = f"guard {judged[0].violation}"
            return
        chosen = self.selector(work.original, clean)
        adds = work.rewriter.mode == "augment"
        text = join(work.original, chosen.text) if adds else chosen.text
        if text == work.text:
            if work.kind == "kept":
                work.reason = "model: nothing to add" if not chosen.text else "model: good as it is"
                if adds and chosen.text:
                    work.reason = "joint: nothing can follow this prompt"
            return
        work.text = text
        work.kind = "softened" if work.softens else "augmented" if adds else "rewritten"
        work.reason = {
            "softened": "made harmless",
            "augmented": "added by the model",
            "rewritten": "rewritten by the model",
        }[work.kind]
        work.open = not adds and not work.softens

    def _violation(self, work: _Work, candidate: Candidate) -> Violation | None:
        """Return why a candidate cannot be used, or None."""
        if candidate.violation is not None:
            return candidate.violation
        adds = work.rewriter.mode == "augment"
        if not candidate.text.strip():
            return None if adds else Violation("empty", "the model returned nothing")
        if candidate.finish_reason == "length":
            return Violation("unfinished", f"cut off after {candidate.tokens} tokens")
        if adds:
            if already_said(work.original, candidate.text):
                return Violation("said already", "the prompt says it")
            return first_violation(self.guards, work.original, candidate.text)
        guards = SOFTENING_GUARDS if work.softens else self.guards
        return first_violation((*self._protect, *guards), work.original, candidate.text)

    def _finish(self, work: _Work, seconds: float) -> OptimizedPrompt | OptimizationError:
        if work.error is not None:
            logger.warning("A prompt was not optimized: %s", _in_a_line(work.error))
            if self.on_error == "raise":
                failure = OptimizationError(
                    f"The prompt could not be optimized: {_in_a_line(work.error)}",
                    hint="With on_error='passthrough' the original goes on.",
                )
                failure.__cause__ = work.error
                return failure
        result = OptimizedPrompt(
            original=work.original,
            text=work.text,
            kind=work.kind,
            reason=work.reason,
            candidates=work.candidates,
            seconds=seconds,
            tokens=sum(candidate.tokens for candidate in work.candidates),
            rewriter=work.rewriter.id,
        )
        if self.shadow:
            return replace(
                result, text=work.original, kind="kept", reason=f"shadow: {work.reason}", proposal=result.text
            )
        return result

    # -- asking the model: the generation settles the cache by itself, and every caller merely waits ------------------

    def _key(self, ask: _Ask, index: int) -> Hashable:
        key = (ask.prompt, ask.rewriter.id, self.decoding)
        if self.decoding.greedy or self.decoding.seed is not None:
            return key
        return (*key, object(), index)  # an unseeded sample is nobody else's

    def _claim(
        self, asks: Sequence[_Ask]
    ) -> tuple[list[Future[Candidates]], dict[Rewriter, list[tuple[Hashable, str]]]]:
        keys = [self._key(ask, index) for index, ask in enumerate(asks)]
        futures, mine = self.cache.claim(keys)
        open_keys, jobs = set(mine), dict[Rewriter, list[tuple[Hashable, str]]]()
        for key, ask in zip(keys, asks, strict=True):
            if key in open_keys:
                open_keys.discard(key)
                jobs.setdefault(ask.rewriter, []).append((key, ask.prompt))
        return futures, jobs

    def _generate(self, asks: Sequence[_Ask]) -> list[_Outcome]:
        futures, jobs = self._claim(asks)
        for rewriter, job in jobs.items():
            run = contextvars.copy_context().run
            threading.Thread(target=run, args=(self._work_off, rewriter, job), name="bpo-generate", daemon=True).start()
        deadline = self._deadline(len(asks))
        outcomes: list[_Outcome] = []
        for future in futures:
            try:
                outcomes.append(future.result(_left(deadline)))
            except FutureTimeoutError as error:
                outcomes.append(error if future.done() else self._late())
            except Exception as error:
                outcomes.append(error)
        return outcomes

    async def _agenerate(self, asks: Sequence[_Ask]) -> list[_Outcome]:
        futures, jobs = self._claim(asks)
        for rewriter, job in jobs.items():
            task = asyncio.create_task(self._awork_off(rewriter, job))
            _running.add(task)
            task.add_done_callback(_running.discard)
        deadline = self._deadline(len(asks))
        outcomes: list[_Outcome] = []
        for future in futures:
            waiting: asyncio.Future[Candidates] = asyncio.wrap_future(future)
            try:
                outcomes.append(await asyncio.wait_for(asyncio.shield(waiting), _left(deadline)))
            except TimeoutError as error:
                outcomes.append(error if future.done() else self._late())
            except Exception as error:
                outcomes.append(error)
        return outcomes

    def _work_off(self, rewriter: Rewriter, job: Sequence[tuple[Hashable, str]]) -> None:
        try:
            found = rewriter.candidates([prompt for _, prompt in job], self.decoding)
        except BaseException as error:
            self._fail(job, error)
        else:
            self._settle(job, found)

    async def _awork_off(self, rewriter: Rewriter, job: Sequence[tuple[Hashable, str]]) -> None:
        try:
            found = await rewriter.acandidates([prompt for _, prompt in job], self.decoding)
        except BaseException as error:
            self._fail(job, error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._settle(job, found)

    def _settle(self, job: Sequence[tuple[Hashable, str]], found: Sequence[Sequence[Candidate]]) -> None:
        for (key, _), candidates in zip(job, found, strict=True):
            self.cache.settle(key, candidates)

    def _fail(self, job: Sequence[tuple[Hashable, str]], error: BaseException) -> None:
        for key, _ in job:
            self.cache.fail(key, error)

    def _deadline(self, prompts: int) -> float | None:
        if self.timeout is None:
            return None
        return time.monotonic() + self.timeout * -(-prompts // BATCH_SHARE)

    def _late(self) -> EngineTimeoutError:
        return EngineTimeoutError(
            f"The model did not answer within {self.timeout} seconds.", hint="Give a larger timeout=."
        )


def _left(deadline: float | None) -> float | None:
    """Return the seconds until a deadline of the monotonic clock; None is no deadline."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _pairs(prompts: Sequence[str], histories: Sequence[Sequence[str]] | None) -> list[tuple[str, Sequence[str]]]:
    if isinstance(prompts, str):
        msg = "A batch must be a list of prompts, not one str."
        raise InputError(msg, hint="Call optimize() for one prompt.")
    found = list(prompts)
    for prompt in found:
        if not isinstance(prompt, str):
            msg = f"A prompt must be a str, not {type(prompt).__name__}."
            raise InputError(msg, hint="Pass the text of the user's turn.")
    earlier: list[Sequence[str]] = [()] * len(found) if histories is None else list(histories)
    if len(earlier) != len(found):
        msg = f"There are {len(earlier)} histories for {len(found)} prompts."
        raise InputError(msg, hint="Give one history a prompt, or none at all.")
    return list(zip(found, earlier, strict=True))


def _settle_decoding(decoding: Decoding | str | None, n: int | None) -> Decoding:
    if decoding is None:
        decoding = GREEDY if n is None or n == 1 else STABLE
    settled = named_decoding(decoding)
    return settled if n is None else replace(settled, n=n)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        msg = f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}."
        raise ConfigurationError(msg, hint=f"Correct {name}=.")
    return value


def _in_a_line(error: Exception) -> str:
    text = error.message if isinstance(error, BPOError) else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())


def _unwrap(results: Sequence[OptimizedPrompt | OptimizationError]) -> list[OptimizedPrompt]:
    good: list[OptimizedPrompt] = []
    for result in results:
        if isinstance(result, OptimizationError):
            raise result
        good.append(result)
    return good
