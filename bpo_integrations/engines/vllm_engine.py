"""Runs a model in vLLM, in this process: continuous batching, prefix caching, LoRA adapters, many GPUs.

Promises: any number of threads and event loops may call at once, and join one running batch; a cancelled call frees its
slots within a decoding step; special tokens inside a message stay text; a candidate does not depend on what else is in
the call (but for rounding: a near tie may flip between batches). A control token ends a candidate. After a fork the
child is refused, because neither a GPU nor the engine's thread survives it.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.engines.causal_lm import ChatTokenizer
from bpo_integrations.engines.generation import SharedModels, check_packages
from bpo_integrations.engines.vllm_requests import Plan
from bpo_integrations.engines.vllm_runtime import (
    EngineThread,
    LoopRoute,
    Runtime,
    aresults,
    results,
    wait_for_those_that_end,
)
from bpo_integrations.errors import (
    BPOError,
    ConfigurationError,
    EngineClosedError,
    EngineError,
    PromptTooLongError,
    in_a_line,
)
from bpo_integrations.result import Candidate

PENALTY = "bpo_integrations.engines.vllm_penalty:CandidatePenalty"
"""The logits processor that a `repetition_penalty` above 1 needs, as vLLM's `logits_processors` names it."""

_RUNTIMES: SharedModels[Any] = SharedModels()


class VLLMEngine:
    """An engine for a model in vLLM.

    Args:
        model: A folder, loaded at first use, once a process for all engines of the same arguments; or an engine that is
            built already: a `vllm.LLM`, or an `AsyncLLM`, which is called in its own event loop. That one is not closed
            here, and an `LLM` must not be called by others while a prompt is optimized.
        adapter: A folder with a LoRA adapter to put on each request.
        engine_args: What `vllm.LLM` is made with, for a model that is not built already.
        card: As for `ChatTokenizer`.
        name: Names the weights in `id`; None takes the adapter's path, or the model's.
        prepare: Returns the folder of `model`, which then is a mere name; called at first use.

    Raises:
        MissingExtraError: vllm is not installed.
        ConfigurationError: The engine that is built already cannot generate, or takes no adapters.

    Example:
        >>> engine = VLLMEngine("exported", engine_args={"dtype": "bfloat16"})  # doctest: +SKIP
        >>> engine.generate([Request(({"role": "user", "content": "Hi"},))], Decoding())  # doctest: +SKIP
        [[Candidate(text='Hello!', ...)]]
    """

    def __init__(
        self,
        model: str | object,
        *,
        adapter: Path | None = None,
        engine_args: Mapping[str, Any] | None = None,
        card: bool = False,
        name: str | None = None,
        prepare: Callable[[], str] | None = None,
    ) -> None:
        check_packages(["vllm"], extra="vllm")
        self._args = dict(engine_args or {})
        self._adapter = adapter
        self._card = card
        self._lock = threading.Lock()
        self._chat: ChatTokenizer | None = None
        self._runtime: Runtime | None = None
        self._pid = os.getpid()  # where the runtime is
        self._closed = False
        if isinstance(model, str):
            self.weights = tokens = model
            speculates = bool(self._args.get("speculative_config"))
            raw = self._args.get("logprobs_mode", "raw_logprobs") == "raw_logprobs"
            processors = self._args.get("logits_processors", ())
            runs = json.dumps(self._args, sort_keys=True, default=repr)
        else:
            self._runtime = _runtime_of(model)
            config = self._runtime.config
            self.weights, tokens = config.model_config.model, config.model_config.tokenizer
            speculates = config.speculative_config is not None
            raw = config.model_config.logprobs_mode == "raw_logprobs"
            processors = config.model_config.logits_processors or ()
            if adapter is not None and config.lora_config is None:
                msg = "This vLLM engine takes no adapters."
                raise ConfigurationError(msg, hint="Make it with enable_lora=True and a max_lora_rank that fits.")
            runs = f"{config.model_config.dtype} {config.model_config.quantization} {config.speculative_config}"
        self._folder = prepare or (lambda: tokens)
        self._speculates = speculates
        self._key = (self.weights, runs)
        self.id = f"vllm:{name or adapter or self.weights}:{zlib.crc32(repr((self._key, adapter)).encode()):08x}"
        self.traits = Traits(
            literal=True, repeats=True, gate=raw and not speculates, stops=True, forks="refused", coalesce=False
        )
        self.penalizes = PENALTY in processors and not speculates
        """Whether it can penalize repetition as `Decoding` has it."""

    def _loaded(self) -> Runtime:
        """Return the running engine, starting it at first use."""
        if self._closed:
            msg = f"The engine {self.id} is closed."
            raise EngineClosedError(msg, hint="Make a new one.")
        runtime = self._runtime
        if _RUNTIMES.forked or (runtime is not None and self._pid != os.getpid()):
            msg = "vLLM was loaded before this process was forked, and does not survive that."
            raise EngineClosedError(msg, hint="Load it after the fork, or start the process with `spawn`.")
        if runtime is None:
            try:
                runtime = _RUNTIMES.get(
                    self._key, lambda: EngineThread(partial(_build, self._folder, self._args), owned=True)
                )
            except BPOError:
                raise
            except Exception as error:  # vLLM and torch raise whatever they like while they load
                msg = f"vLLM cannot load {self.weights}: {in_a_line(error)}"
                failure = EngineError(msg, hint="Check the options; vLLM's own log, further up, tells more.")
                failure.retryable = False
                raise failure from error
            self._runtime, self._pid = runtime, os.getpid()
        return runtime

    def _tokenizer(self) -> ChatTokenizer:
        """Return the tokenizer, which is needed without the weights, too; call it with the lock held."""
        if self._chat is None:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self._folder(), local_files_only=True)
            self._chat = ChatTokenizer(tokenizer, card=self._card)
        return self._chat

    def close(self) -> None:
        """Let go of the weights; vLLM is shut down when no engine and no running call holds it."""
        self._closed = True
        self._runtime = None
        wait_for_those_that_end()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without any template."""
        with self._lock:  # what a tokenizer takes for special is state of its own, not an argument
            chat = self._tokenizer()
            return [len(chat.encode(text)) for text in texts]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """Return `decoding.n` candidates for each request, in order; with the gate of the `Engine` protocol.

        Candidate `k` of a seeded call is drawn with the seed plus `k`; `logprob` is told where `n` is more than 1.

        Raises:
            PromptTooLongError: A request does not fit into the model's context.
            ConfigurationError: `repetition_penalty` was asked of an engine that has no means for it.
            EngineClosedError: The engine was closed.
            EngineError: Generation failed.
        """
        if not requests:
            return []
        runtime = self._loaded()
        runtime.check_caller()
        plan = self._plan(runtime, requests, decoding)
        with _blamed():
            gate = plan.gate(results(map(runtime.submit, plan.probes())))
            return plan.candidates(gate, results(map(runtime.submit, plan.jobs(gate))))

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As `generate`, without blocking the event loop. A cancelled call leaves the batch at the next step."""
        if not requests:
            return []
        runtime = await asyncio.to_thread(self._loaded)
        plan = await asyncio.to_thread(self._plan, runtime, requests, decoding)
        with _blamed():
            gate = plan.gate(await aresults(map(runtime.submit, plan.probes())))
            return plan.candidates(gate, await aresults(map(runtime.submit, plan.jobs(gate))))

    def _plan(self, runtime: Runtime, requests: Sequence[Request], decoding: Decoding) -> Plan:
        """Render the requests and settle what is asked of vLLM."""
        if self._speculates and not decoding.greedy and runtime.config.device_config.device_type == "cpu":
            # `expand_batch_to_tokens` of 0.32 turns temperature and top_p into integers there.
            msg = "vLLM draws from a wrong distribution when it speculates on the CPU."
            raise ConfigurationError(msg, hint="Load it with speculation=None, or decode greedily.")
        penalty = decoding.repetition_penalty or 1.0
        if penalty > 1 and not self.penalizes:
            msg = f"This vLLM engine cannot apply a repetition_penalty of {penalty}."
            raise ConfigurationError(msg, hint=f"Load it with logits_processors=[{PENALTY!r}] and speculation=None.")
        with self._lock:
            chat = self._tokenizer()
            prompts = [chat.render(request.messages) for request in requests]
        context: int = runtime.config.model_config.max_model_len
        longest = max(map(len, prompts))
        if longest >= context:
            msg = f"The messages are {longest} tokens long; the model's context is {context}."
            raise PromptTooLongError(msg, hint="Shorten them.")
        return Plan(
            requests,
            prompts,
            decoding,
            context=context,
            end=int(chat.tokenizer.eos_token_id),
            control=sorted(chat.control),
            lora=None if self._adapter is None else _lora_request(self._adapter),
            gated=decoding.empty_threshold is not None and self.traits.gate,
        )


def _build(folder: Callable[[], str], args: Mapping[str, Any]) -> Any:
    from vllm import LLM

    return LLM(model=folder(), **args).llm_engine


def _runtime_of(built: Any) -> Runtime:
    """Return the one runtime of an engine that a user has built; whoever names the same engine shares it."""
    from vllm.v1.engine.async_llm import AsyncLLM

    if isinstance(built, AsyncLLM):
        return LoopRoute(built)
    engine = getattr(built, "llm_engine", built)
    if not hasattr(engine, "step"):
        msg = f"{type(built).__name__} is no engine of vLLM that generates."
        raise ConfigurationError(msg, hint="Give a vllm.LLM or an AsyncLLM.")
    runtime: Runtime = _RUNTIMES.get(id(engine), lambda: EngineThread(lambda: engine, owned=False))
    return runtime


def _lora_request(adapter: Path) -> Any:
    from vllm.lora.request import LoRARequest

    # The number is what vLLM knows an adapter by: the same for the same folder, unlike those that users count up.
    return LoRARequest(f"bpo-{adapter.name}", 1 + zlib.crc32(str(adapter).encode()) % (2**31 - 1), str(adapter))


@contextmanager
def _blamed() -> Iterator[None]:
    """Turn what vLLM raises into an EngineError."""
    try:
        yield
    except BPOError:
        raise
    except Exception as error:
        msg = f"vLLM failed: {in_a_line(error)}"
        failure = EngineError(msg, hint="Try again; where it fails again, vLLM's own log tells more.")
        failure.retryable = not isinstance(error, ValueError)  # vLLM's word for a request that it does not take
        raise failure from error
