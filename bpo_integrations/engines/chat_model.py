"""Asks a general LLM, which the user has anyway, to improve prompts: a LangChain chat model or a LlamaIndex LLM.

Promises: each candidate is one call of the LLM, at most `concurrency` at once over all callers; an async call stays on
the caller's event loop and is cancelled with it. The LLM runs as its owner set it up, but that tokens are bounded where
nothing bounds them yet, and that a decoding with a temperature sets it. Whether anything repeats is up to the LLM.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.engines.generation import check_packages, cut_at
from bpo_integrations.engines.llm_calls import Calls, LangChainCalls, LlamaIndexCalls, Reply, Settings, explained
from bpo_integrations.engines.remote import Slots, estimate_tokens, settle_rows
from bpo_integrations.errors import ConfigurationError, EngineClosedError
from bpo_integrations.metaprompt import PARSERS, drop_thoughts, meta_record
from bpo_integrations.result import Candidate, Mode
from bpo_integrations.rewriter import Rewriter

_numbers = itertools.count(1)


class ChatModelEngine:
    """An engine around a general LLM. The LLM stays its owner's: closing the engine does not close it.

    Args:
        llm: A LangChain chat model, also inside `bind`, `with_config`, `with_retry` or `with_fallbacks`; or an LLM of
            LlamaIndex.
        name: Names the LLM in `id`; None takes its class and model, and a number, since two may be set up differently.
        concurrency: Most calls under way at once, over all threads and event loops.

    Raises:
        ConfigurationError: `llm` is neither, or `concurrency` is less than 1.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> engine = ChatModelEngine(FakeListChatModel(responses=["Give an example."]))
        >>> engine.generate([Request(({"role": "user", "content": "Hi"},))], Decoding())[0][0].text
        'Give an example.'
    """

    traits = Traits(literal=False, repeats=False, gate=False, stops=False, forks="works", coalesce=False)

    def __init__(self, llm: object, *, name: str | None = None, concurrency: int = 8) -> None:
        if concurrency < 1:
            msg = f"concurrency is {concurrency}; it must be 1 or more."
            raise ConfigurationError(msg, hint="Leave it out to have 8.")
        self._calls = _calls(llm)
        self.name = name or f"{self._calls.label}#{next(_numbers)}"
        self._concurrency = concurrency
        self._slots: dict[int, Slots] = {}  # by process: a forked child does not wait for its parent's calls
        self._closed = False

    @property
    def id(self) -> str:
        """Names the LLM."""
        return f"llm:{self.name}"

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return estimates, of a token for every four bytes: what counts exactly may be slow, or a call."""
        return [estimate_tokens(text) for text in texts]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """Return candidates for each request, in order: a call of the LLM for each, many at the same time.

        Of a request, the calls that fail are left out; one that has none left gets no candidate, as long as another
        request of the batch has some.

        Raises:
            EngineTimeoutError: The LLM did not answer in time.
            EngineClosedError: The engine was closed.
            EngineError: The LLM failed for every request.
        """
        slots, jobs = self._open(requests, decoding)
        if len(jobs) < 2:
            return self._settle([self._try(slots, *job) for job in jobs], requests, decoding)
        with ThreadPoolExecutor(min(len(jobs), self._concurrency), thread_name_prefix="bpo-llm") as pool:
            # Each call in a copy of the caller's context, by which LangChain nests its run.
            runs = [partial(contextvars.copy_context().run, self._try, slots, *job) for job in jobs]
            futures = [pool.submit(run) for run in runs]
            return self._settle([future.result() for future in futures], requests, decoding)

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As `generate`, without blocking the event loop. When the task is cancelled, so are the calls."""
        slots, jobs = self._open(requests, decoding)
        replies = await asyncio.gather(*(self._atry(slots, *job) for job in jobs))
        return self._settle(replies, requests, decoding)

    def close(self) -> None:
        """Let no call begin any more."""
        self._closed = True

    def _open(self, requests: Sequence[Request], decoding: Decoding) -> tuple[Slots, list[tuple[Request, Settings]]]:
        """Return the bound on calls, and the calls: `decoding.n` for each request."""
        if self._closed:
            msg = f"The engine {self.id} is closed."
            raise EngineClosedError(msg, hint="Make a new one.")
        slots = self._slots.setdefault(os.getpid(), Slots(self._concurrency))
        return slots, [
            (request, _settings(request, decoding, drawn)) for request in requests for drawn in range(decoding.n)
        ]

    def _try(self, slots: Slots, request: Request, settings: Settings) -> Reply | Exception:
        try:
            with slots.held():
                return self._calls.call(request.messages, settings)
        except Exception as error:
            return _chained(error, self.name)

    async def _atry(self, slots: Slots, request: Request, settings: Settings) -> Reply | Exception:
        try:
            async with slots.aheld():
                return await self._calls.acall(request.messages, settings)
        except Exception as error:
            return _chained(error, self.name)

    def _settle(
        self, replies: Sequence[Reply | Exception], requests: Sequence[Request], decoding: Decoding
    ) -> list[list[Candidate]]:
        """Turn the calls' replies into the requests' candidates."""
        rows: list[list[Candidate] | BaseException] = []
        for start in range(0, len(requests) * decoding.n, decoding.n):
            row = replies[start : start + decoding.n]
            found = [_candidate(reply, decoding) for reply in row if isinstance(reply, Reply)]
            rows.append(found or next(reply for reply in row if isinstance(reply, Exception)))
        return settle_rows(rows)


def _calls(llm: object) -> Calls:
    if LangChainCalls.model_inside(llm) is not None:
        return LangChainCalls(llm)
    if LlamaIndexCalls.knows(llm):
        return LlamaIndexCalls(llm)
    msg = f"A {type(llm).__name__} cannot improve prompts."
    hint = "Give a spec, a LangChain chat model (not a chain), a LlamaIndex LLM, or a Rewriter."
    raise ConfigurationError(msg, hint=hint)


def _settings(request: Request, decoding: Decoding, drawn: int) -> Settings:
    """Return what the call for a request's candidate number `drawn` asks for.

    Greedy asks for nothing: many reasoning models refuse any temperature, and 0 most of all. `top_p` is never asked
    for: some refuse it beside a temperature.
    """
    if decoding.greedy:
        return Settings(request.max_new_tokens)
    seed = None if decoding.seed is None else decoding.seed + drawn
    return Settings(request.max_new_tokens, decoding.temperature, seed)


def _candidate(reply: Reply, decoding: Decoding) -> Candidate:
    # Stop strings are cut off here: providers differ in which they take, and thoughts would end at them.
    text, cut = cut_at(drop_thoughts(reply.text), decoding.stop)
    finished = cut or reply.finished
    return Candidate(text, reply.tokens or estimate_tokens(reply.text), finish_reason="stop" if finished else "length")


def _chained(error: Exception, name: str) -> Exception:
    found = explained(error, name)
    if found is not error:
        found.__cause__ = error
    return found


def load_chat_model(
    spec: object,
    *,
    mode: Mode | None = None,
    concurrency: int = 8,
    name: str | None = None,
    **init_options: Any,
) -> Rewriter:
    """Return a rewriter that asks a general LLM by meta-prompt (`metaprompt.py`).

    Args:
        spec: What LangChain's `init_chat_model` knows, such as `openai:gpt-4o-mini`; a LangChain chat model; or a
            LlamaIndex LLM.
        mode: `augment` or `rewrite`; None augments.
        concurrency: Most calls under way at once.
        name: Names the LLM in ids and results; None takes the spec, or the object's class and model.
        init_options: Passed to `init_chat_model`, such as `temperature=0`, `max_tokens=` or `base_url=`.

    Raises:
        MissingExtraError: The extra `agents`, which a spec needs, is not installed.
        ConfigurationError: No provider is known by the spec or its package is not installed, the LLM cannot be built,
            or the object is no LLM.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> load_chat_model(FakeListChatModel(responses=["NOTHING"])).candidates(["Tell me about tides"])[0][0].text
        ''
    """
    mode = mode or "augment"
    if mode not in PARSERS:
        msg = f"Unknown mode {mode!r}."
        raise ConfigurationError(msg, hint="Use 'augment' or 'rewrite'.")
    if isinstance(spec, str):
        engine = ChatModelEngine(
            _built(spec, init_options), name=name or _named(spec, init_options), concurrency=concurrency
        )
    elif init_options:
        msg = f"An LLM that is built already takes no {', '.join(init_options)}."
        raise ConfigurationError(msg, hint="Set it where the LLM is built.")
    else:
        engine = ChatModelEngine(spec, name=name, concurrency=concurrency)
    return Rewriter(engine, meta_record(engine.name, mode), PARSERS[mode])


def _named(spec: str, options: dict[str, Any]) -> str:
    """Name an LLM by all that it is built from, the same in every process; of a secret nothing can be read back."""
    if not options:
        return spec
    return f"{spec}+{hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:8]}"


def _built(spec: str, options: dict[str, Any]) -> Any:
    """Build the chat model of a spec; asks nobody."""
    check_packages(("langchain",), extra="agents")
    from langchain.chat_models import init_chat_model
    from pydantic import ValidationError

    msg = f"The LLM {spec!r} cannot be used."
    try:
        return init_chat_model(spec, **options)
    except ImportError as error:  # it holds the line that installs the provider's package
        raise ConfigurationError(msg, hint=" ".join(str(error).split())) from error
    except ValidationError as error:  # its text repeats the options, and so perhaps a key
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigurationError(msg, hint=f"Its class says: {faults}.") from None
    except Exception as error:  # whatever a provider's class raises: no key, an unknown provider
        hint = f"{' '.join(str(error).split())[:300]} A spec reads PROVIDER:MODEL, as in 'openai:gpt-4o-mini'."
        raise ConfigurationError(msg, hint=hint) from error
