"""The one pipeline: policy -> rewriter -> guards -> selection -> gate, in sync, async and batch.

Promises: the result's text is always usable; the original goes on wherever policy, model, guards or a failure say so,
with the reason; with `on_error="passthrough"` no failure of the model gets out. What it does not do: know messages,
chains or files (the adapters do), or decide about quality beyond its guards.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from bpo_integrations import language, made
from bpo_integrations.asking import Ask, Outcome, Terms, aask_all, ask_all
from bpo_integrations.cache import CandidateCache, Candidates
from bpo_integrations.decoding import GREEDY, STABLE, Decoding, named_decoding
from bpo_integrations.errors import (
    ConfigurationError,
    EngineError,
    InputError,
    OptimizationError,
    in_a_line,
)
from bpo_integrations.result import Candidate, Kind, Mode, OptimizedPrompt
from bpo_integrations.rewriter import Rewriter, load_rewriter
from bpo_integrations.selection import Selector, most_likely

if TYPE_CHECKING:
    from pathlib import Path

    from bpo_integrations.guards import Guard
    from bpo_integrations.policy import Policy, PolicyContext
    from bpo_integrations.profiles import Profile

logger = logging.getLogger(__name__)

MAX_PASSES = 5
"""The paper's iterations: four help, the fifth drops a little (section 5.3)."""

INLINE_CHARACTERS = 2000
"""Prompts that are together longer than this are judged in a worker thread when the caller is async: policy and guards
take some milliseconds a thousand words, and half a second until the language identifier is loaded, and an event loop
must not stand still for them."""

_Pipeline = Generator[list[Ask], list[Outcome], list[OptimizedPrompt | OptimizationError]]


@dataclass(slots=True)
class _Work:
    """A prompt on its way through the pipeline."""

    original: str
    text: str
    rewriter: Rewriter
    context: PolicyContext
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
            self.error, self.reason = error, f"failed: {in_a_line(error)}"


class PromptOptimizer:
    """Improves prompts.

    Args:
        model: The rewriter: a spec (`embedded`, `hf:ID`, `vllm:ID`, `server:MODEL`, `openai:gpt-4o-mini`, see
            `load_rewriter`), a LangChain or LlamaIndex model object, or a `Rewriter`.
        mode: `augment` (only adds behind the user's words) or `rewrite`; None takes the rewriter's own.
        decoding: `greedy`, `stable`, `aggressive` or a `Decoding`; None is greedy, or `stable` when `n` > 1.
        unsafe: What becomes of plainly unsafe prompts: `keep` leaves them to the LLM's own policy, `soften` asks for a
            harmless request on the same topic (the paper's safety enhancement).
        protect: Literals or compiled patterns that must survive in a rewrite.
        policy: Decides what is left alone: a function in the place of the default rules, or the path of a policy file
            that `bpo-train calibrate` wrote, which is asked behind the rules (docs/gate.md).
        profile: `small` acts on all that the rules let through, as None does; `strong` only where it pays on strong
            LLMs, as far as is known; or the path of a policy file. Goes together with a function as `policy`.
        guards: Replace the mode's guards.
        selector: Chooses among the clean candidates; default: the most likely.
        n: Candidates a prompt.
        passes: Rewrite mode: optimize the result again, up to 5 times in all (paper, section 5.3).
        cache: Entries of the candidate cache, or a `CandidateCache` to share. Unseeded samples are never cached.
        timeout: Seconds that a prompt may wait for the model (the first one loads it); a batch gets as much for every 8
            prompts. None waits forever.
        on_error: What a failing model leads to: the original (`passthrough`) or an `OptimizationError` (`raise`).
        shadow: Run everything, but return the original; what would have been used is in `proposal`.
        preload: Load the weights in the background from now on, instead of at first use: for servers, and for programs
            that will certainly need them.
        engine_options: Options of the engine, passed to `load_rewriter`. Those that no option here has the name of can
            stand beside the others: `PromptOptimizer(threads=2)`.
        options: As `engine_options`.

    Raises:
        ConfigurationError: Something is configured wrongly, a model is missing, or an extra is not installed.

    Example:
        >>> PromptOptimizer().optimize("Tell me about Harry Potter").text  # doctest: +SKIP
        'Tell me about Harry Potter. Cover the main characters, ...'
    """

    def __init__(
        self,
        model: str | Rewriter | object = "embedded",
        *,
        mode: Mode | None = None,
        decoding: Decoding | str | None = None,
        unsafe: Literal["keep", "soften"] = "keep",
        protect: Sequence[str | re.Pattern[str]] = (),
        policy: Policy | str | Path | None = None,
        profile: Profile | None = None,
        guards: Sequence[Guard] | None = None,
        selector: Selector | None = None,
        n: int | None = None,
        passes: int = 1,
        cache: CandidateCache | int = 1024,
        timeout: float | None = 60.0,
        on_error: Literal["passthrough", "raise"] = "passthrough",
        shadow: bool = False,
        preload: bool = False,
        engine_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        options = {**options, **(engine_options or {})}
        self.rewriter = load_rewriter(model, mode=mode, **options)
        if preload:
            self.rewriter.preload()
        from bpo_integrations.judging import Judge  # takes a while, in which weights that are preloaded come in
        from bpo_integrations.profiles import gate_of, settled

        self.mode: Mode = self.rewriter.mode
        chosen = settled(policy, profile, mode=self.mode)
        self.gate = gate_of(chosen)
        self._judge = Judge(self.mode, chosen, guards, protect)
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
        self.selector = selector or most_likely
        self.cache = cache if isinstance(cache, CandidateCache) else CandidateCache(cache)
        self.timeout = timeout
        self.shadow = shadow
        self._softener = self._load_softener(model, options) if self.unsafe == "soften" else None

    def _load_softener(self, model: object, options: dict[str, Any]) -> Rewriter:
        """Return the rewriter that softens: this one in rewrite mode, else the embedded model's rewriting half."""
        if self.rewriter.parse is not None:
            msg = "unsafe='soften' needs a rewriter that was trained to make requests harmless; a general LLM was not."
            raise ConfigurationError(msg, hint="Use unsafe='keep', or model='embedded'.")
        if self.mode == "rewrite":
            return self.rewriter
        if isinstance(model, str) and model == "embedded":
            return load_rewriter("embedded", mode="rewrite", **options)
        msg = f"unsafe='soften' needs a rewriter with the mode 'rewrite'; {self.rewriter.record.name} only augments."
        raise ConfigurationError(msg, hint="Use unsafe='keep', or a rewriting model.")

    def optimize(self, prompt: str, history: Sequence[str] = ()) -> OptimizedPrompt:
        """Optimize one prompt.

        Args:
            prompt: The user's turn.
            history: Earlier turns and answers, oldest first. A prompt that leans on them ("make it shorter") is left
                alone, unless the rewriter is one that can be shown them.

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
        step = _advance(run, None)
        while isinstance(step, _Asking):
            step = _advance(run, ask_all(step.asks, self._terms()))
        return step

    async def atry_batch(
        self, prompts: Sequence[str], histories: Sequence[Sequence[str]] | None = None
    ) -> list[OptimizedPrompt | OptimizationError]:
        """As `try_batch`, without blocking the event loop."""
        if not isinstance(prompts, str):
            prompts = list(prompts)  # they are looked at twice
        run = self._run(prompts, histories)
        in_thread = not language.is_loaded() or sum(len(str(prompt)) for prompt in prompts) > INLINE_CHARACTERS
        step = await asyncio.to_thread(_advance, run, None) if in_thread else _advance(run, None)
        while isinstance(step, _Asking):
            outcomes = await aask_all(step.asks, self._terms())
            step = await asyncio.to_thread(_advance, run, outcomes) if in_thread else _advance(run, outcomes)
        return step

    def close(self) -> None:
        """Release the model's weights."""
        self.rewriter.close()
        if self._softener is not None:
            self._softener.close()

    # -- the pipeline: what is asked of the model is yielded, so that sync and async callers share every step ---------

    def _run(self, prompts: Sequence[str], histories: Sequence[Sequence[str]] | None) -> _Pipeline:
        started = time.perf_counter()
        works = [self._plan(prompt, history) for prompt, history in _pairs(prompts, histories)]
        for _ in range(self.passes):
            going = [work for work in works if work.open]
            if not going:
                break
            outcomes = yield [
                Ask(work.rewriter, work.text, work.context.history if work.rewriter.uses_history else ())
                for work in going
            ]
            for work, outcome in zip(going, outcomes, strict=True):
                self._take(work, outcome)
        seconds = (time.perf_counter() - started) / max(1, len(works))
        return [self._finish(work, seconds) for work in works]

    def _plan(self, prompt: str, history: Sequence[str]) -> _Work:
        """Decide what becomes of a prompt before the model sees it."""
        from bpo_integrations.judging import is_unsafe
        from bpo_integrations.policy import PolicyContext

        context = PolicyContext(
            mode=self.mode,
            languages=self.rewriter.record.languages,
            unsafe=self.unsafe,
            history=tuple(history),
            uses_history=self.rewriter.uses_history,
        )
        work = _Work(prompt, prompt, self.rewriter, context)
        if made.holds(prompt):
            work.reason, work.open = "optimized before", False
            return work
        try:
            reason = self._judge.reason_to_keep(prompt, context)
            work.softens = reason is None and self._softener is not None and is_unsafe(prompt)
        except Exception as error:  # a policy of the user's own, or a library below ours
            work.fail(error)
            return work
        if reason is not None:
            work.reason, work.open = f"policy: {reason}", False
        elif work.softens and self._softener is not None:
            work.rewriter = self._softener
        return work

    def _take(self, work: _Work, outcome: Outcome) -> None:
        """Take what the model answered; whatever goes wrong is the work's failure, not the caller's."""
        work.open = False
        if isinstance(outcome, Exception):
            work.fail(outcome)
        elif not outcome:
            work.fail(EngineError("The engine returned no candidate.", hint="Check the engine."))
        else:
            try:
                self._select(work, outcome)
            except Exception as error:  # a guard or a selector of the user's own
                work.fail(error)

    def _select(self, work: _Work, outcome: Candidates) -> None:
        """Put the model's candidates through the guards and select one."""
        from bpo_integrations.judging import join

        mode = work.rewriter.mode
        judged = tuple(
            replace(candidate, violation=self._judge.violation(work.original, candidate, mode, softens=work.softens))
            for candidate in outcome
        )
        work.candidates += judged
        clean = [candidate for candidate in judged if candidate.violation is None]
        if not clean:
            if work.kind == "kept":
                work.reason = f"guard {judged[0].violation}"
            return
        chosen = self.selector(work.original, clean)
        adds = mode == "augment"
        text = join(work.original, chosen.text) if adds else chosen.text
        if text == work.text:
            if work.kind == "kept":
                work.reason = "model: nothing to add" if not chosen.text else "model: good as it is"
                if adds and chosen.text:
                    work.reason = "joint: nothing can follow this prompt"
            return
        if not work.softens and (doubt := self._judge.reason_to_revert(work.original, chosen, work.context)):
            if work.kind == "kept":
                work.reason = f"policy: {doubt}"
            return
        work.text = text
        work.kind = "softened" if work.softens else "augmented" if adds else "rewritten"
        work.reason = {
            "softened": "made harmless",
            "augmented": "added by the model",
            "rewritten": "rewritten by the model",
        }[work.kind]
        work.open = not adds and not work.softens

    def _finish(self, work: _Work, seconds: float) -> OptimizedPrompt | OptimizationError:
        if work.error is not None:
            logger.warning("A prompt was not optimized: %s", in_a_line(work.error))
            if self.on_error == "raise":
                failure = OptimizationError(
                    f"The prompt could not be optimized: {in_a_line(work.error)}",
                    hint="With on_error='passthrough' the original goes on.",
                )
                failure.__cause__ = work.error
                failure.retryable = getattr(work.error, "retryable", False)
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
        if result.changed and not self.shadow:
            made.note(result.text)
        if self.shadow:
            return replace(
                result, text=work.original, kind="kept", reason=f"shadow: {work.reason}", proposal=result.text
            )
        return result

    def _terms(self) -> Terms:
        return Terms(self.cache, self.decoding, self.timeout)


@dataclass(frozen=True, slots=True)
class _Asking:
    """What the pipeline wants to know before it goes on."""

    asks: list[Ask]


def _advance(run: _Pipeline, outcomes: list[Outcome] | None) -> _Asking | list[OptimizedPrompt | OptimizationError]:
    """Let the pipeline go on until it asks again or is done; a StopIteration could not leave a worker thread."""
    try:
        return _Asking(next(run) if outcomes is None else run.send(outcomes))
    except StopIteration as stop:
        results: list[OptimizedPrompt | OptimizationError] = stop.value
        return results


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


def _unwrap(results: Sequence[OptimizedPrompt | OptimizationError]) -> list[OptimizedPrompt]:
    good: list[OptimizedPrompt] = []
    for result in results:
        if isinstance(result, OptimizationError):
            raise result
        good.append(result)
    return good
