"""`BPORunnable() | llm`: the optimizer as a step of a LangChain chain.

Takes the user's turn out of the input, optimizes it, and puts it back in the same shape. It holds no logic of its own
and no weights: those are shared in the process, so that copies, configured variants and unpickled ones cost nothing.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import set_config_context
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from bpo_integrations.decoding import Decoding
from bpo_integrations.errors import ConfigurationError, InputError
from bpo_integrations.langchain.tracing import ChainRun, note
from bpo_integrations.langchain.turns import PromptLike, Turn, take
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Mode, OptimizedPrompt

_OPTIONS = (
    "model",
    "mode",
    "decoding",
    "unsafe",
    "protect",
    "policy",
    "profile",
    "n",
    "passes",
    "cache",
    "timeout",
    "on_error",
    "shadow",
    "engine_options",
)
"""The fields that configure the optimizer; the others are the runnable's own."""


class _Memo:
    """The optimizer of a runnable's fields as they were; never copied or pickled, for it can be found again."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found: tuple[int, dict[str, Any], PromptOptimizer] | None = None

    def __reduce__(self) -> tuple[type[_Memo], tuple[()]]:
        return _Memo, ()

    def __eq__(self, other: object) -> bool:  # pydantic compares private attributes too
        return isinstance(other, _Memo)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """Makes an object a key by its identity: chat models have no hash."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


class BPORunnable(RunnableSerializable[PromptLike, Any]):
    """Optimizes the user's turn on its way to the LLM.

    What comes out has the shape of what went in: a str gives a str, a prompt value a prompt value, messages give
    messages in which only the last human turn differs, a dict (with `input_key=`) a dict in which only that value
    differs. The state of a graph, which holds `messages`, gives the update that a LangGraph node returns. The original
    is in `additional_kwargs["bpo"]` of the message, or in `.bpo` of the str. A turn that was optimized already is left
    alone, and so is an input that does not end with the user's turn.

    Where the model fails, the original goes on (`on_error="passthrough"`). `batch` and `abatch` hand all prompts to the
    model in one call; `stream` yields the whole prompt at once, and the LLM behind it still streams its tokens.

    Args:
        optimizer: A ready `PromptOptimizer`, instead of the options below. It makes the runnable neither picklable nor
            serializable.
        input_key: The key of a dict input under which the user's turn lies. None: a dict must hold `messages`, is taken
            for the state of a graph, and what comes out is `{"messages": [...]}` alone.
        model: The rewriter: a spec (`embedded`, `hf:THUDM/BPO`), a `Rewriter`, or an LLM's object, which is asked to
            optimize by meta-prompt. An object makes the runnable not serializable.
        mode: `augment` (adds behind the user's words) or `rewrite`; None takes the rewriter's own.
        decoding: `greedy`, `stable`, `aggressive`, or a `Decoding`; None is greedy, or `stable` when `n` > 1.
        unsafe: `keep` leaves plainly unsafe prompts to the LLM's own policy; `soften` asks for a harmless request.
        protect: Literals or compiled patterns that must survive a rewrite.
        policy: A function in the place of the default rules, or a policy file's path. A function makes the runnable not
            serializable.
        profile: `small`, `strong`, or a policy file's path: which prompts are worth it for the LLM (docs/gate.md).
        n: Candidates a prompt.
        passes: Rewrite mode: optimize the result again, up to 5 times in all.
        cache: Entries of the candidate cache.
        timeout: Seconds that a prompt may wait for the model; None waits forever.
        on_error: `passthrough` lets the original go on where the model fails; `raise` raises an `OptimizationError`.
        shadow: Run everything, but let the original go on; the proposal is in the mark.
        engine_options: Passed to the engine, for example `{"threads": 2}`; the values must be hashable.

    Raises:
        ConfigurationError: Something is configured wrongly, a model is missing, or an extra is not installed.

    Example:
        >>> from langchain_core.language_models import FakeListChatModel
        >>> chain = BPORunnable() | FakeListChatModel(responses=["Harry Potter is ..."])  # doctest: +SKIP
        >>> chain.invoke("Tell me about Harry Potter").content  # doctest: +SKIP
        'Harry Potter is ...'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    optimizer: PromptOptimizer | None = Field(default=None, exclude=True, repr=False)
    input_key: str | None = None
    model: Any = "embedded"
    mode: Mode | None = None
    decoding: Decoding | str | None = None
    unsafe: Literal["keep", "soften"] = "keep"
    protect: tuple[str | re.Pattern[str], ...] = ()
    policy: Any = None
    profile: str | Path | None = None
    n: int | None = None
    passes: int = 1
    cache: int = 1024
    timeout: float | None = 60.0
    on_error: Literal["passthrough", "raise"] = "passthrough"
    shadow: bool = False
    engine_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    _memo: _Memo = PrivateAttr(default_factory=_Memo)

    if not TYPE_CHECKING:  # type checkers derive the signature from the fields

        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise wrong_options("BPORunnable", error) from error
            self._ready()  # not in a pydantic validator, which would hide the error's type

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True: `dumpd` and `load` keep the plain options."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Return the options for `dumpd`; a runnable with objects, patterns or secrets among them has no such form."""
        given = (self.policy, self.profile, *self.engine_options.values())
        objects = (self.model, *self.protect, *(value for value in given if value is not None))
        if self.optimizer is not None or not all(isinstance(value, (str, int, float, Path)) for value in objects):
            return self.to_json_not_implemented()
        form = super().to_json()
        if form["type"] == "constructor":
            plain = self.model_dump(mode="json")
            form["kwargs"] = {key: plain.get(key, value) for key, value in form["kwargs"].items()}
        return form

    def invoke(self, input: PromptLike, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Optimize the user's turn in `input`.

        Raises:
            InputError: There is no prompt in `input`; it is a ValueError.
            OptimizationError: The model failed and `on_error="raise"`.
        """
        _refuse(kwargs)
        return self._call_with_config(self._one, input, config)

    async def ainvoke(self, input: PromptLike, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As `invoke`, without blocking the event loop."""
        _refuse(kwargs)
        return await self._acall_with_config(self._aone, input, config)

    def batch(
        self,
        inputs: list[PromptLike],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Optimize many inputs with one call of the model (`max_concurrency` therefore does not matter)."""
        _refuse(kwargs)
        return self._batch_with_config(self._many, inputs, config, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[PromptLike],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """As `batch`, without blocking the event loop."""
        _refuse(kwargs)
        return await self._abatch_with_config(self._amany, inputs, config, return_exceptions=return_exceptions)

    # -- behind the entry points: take the turn out, ask the optimizer, put it back ------------------------------------

    def _ready(self) -> PromptOptimizer:
        """Return the optimizer; one for all runnables of the same options, so that they share cache and weights."""
        found, process = self._memo.found, os.getpid()
        if found is None or found[0] != process or found[1] != self.__dict__:
            fields = {**self.__dict__, "engine_options": dict(self.engine_options)}
            self._memo.found = found = (process, fields, self._settle(process))
        return found[2]

    def _settle(self, process: int) -> PromptOptimizer:
        """Return the optimizer that the fields ask for."""
        options = {name: getattr(self, name) for name in _OPTIONS}
        if self.optimizer is not None:
            fields = type(self).model_fields
            defaults = {name: fields[name].get_default(call_default_factory=True) for name in _OPTIONS}
            given = [name for name, value in options.items() if value != defaults[name]]
            if given:
                msg = f"BPORunnable got optimizer= and also {', '.join(given)}."
                raise ConfigurationError(msg, hint="Give these options to the PromptOptimizer itself.")
            return self.optimizer
        options["engine_options"] = tuple(sorted(self.engine_options.items()))
        if not isinstance(self.model, str):
            options["model"] = _Same(self.model)
        for name in ("policy", "profile"):
            if options[name] is not None:
                options[name] = _chosen(options[name])
        try:
            hash(options["engine_options"])
        except TypeError as error:
            msg = "A value in engine_options cannot be hashed."
            raise ConfigurationError(msg, hint="Pass BPORunnable(optimizer=PromptOptimizer(...)) instead.") from error
        return _shared_optimizer(process=process, **options)

    def _one(self, value: PromptLike, run_manager: CallbackManagerForChainRun) -> Any:
        turn = take(value, self.input_key)
        result = None if turn.text is None else self._ready().optimize(turn.text, turn.history)
        return _closed(turn, result, run_manager)

    async def _aone(self, value: PromptLike, run_manager: AsyncCallbackManagerForChainRun) -> Any:
        turn = take(value, self.input_key)
        result = None if turn.text is None else await self._ready().aoptimize(turn.text, turn.history)
        return _closed(turn, result, run_manager)

    def _many(
        self, values: list[PromptLike], run_manager: list[CallbackManagerForChainRun], config: list[RunnableConfig]
    ) -> list[Any]:
        turns = [_try_take(value, self.input_key) for value in values]
        prompts, histories = _open(turns)
        # What the one call of the model runs inside, such as an LLM's run, can have one parent only: the first run.
        with set_config_context(config[0]) as context:
            results = context.run(self._ready().try_batch, prompts, histories)
        return _all_closed(turns, results, run_manager)

    async def _amany(
        self,
        values: list[PromptLike],
        run_manager: list[AsyncCallbackManagerForChainRun],
        config: list[RunnableConfig],
    ) -> list[Any]:
        turns = [_try_take(value, self.input_key) for value in values]
        prompts, histories = _open(turns)
        with set_config_context(config[0]) as context:
            results = await asyncio.create_task(self._ready().atry_batch(prompts, histories), context=context)
        return _all_closed(turns, results, run_manager)


def _chosen(policy: Any) -> Any:
    """Return a policy or profile as a key; a file is read now, for it may be another one later."""
    from bpo_integrations.profiles import load_profile  # loads all rules, which takes a while

    return _Same(policy) if callable(policy) else load_profile(policy)


@lru_cache(maxsize=16)
def _shared_optimizer(
    *, process: int, model: str | _Same, policy: Any, engine_options: tuple[tuple[str, Any], ...], **options: Any
) -> PromptOptimizer:
    """Return the optimizer of these options; a forked child, which cannot use its parent's engines, gets its own."""
    spec = model.value if isinstance(model, _Same) else model
    asked = policy.value if isinstance(policy, _Same) else policy
    return PromptOptimizer(spec, policy=asked, **options, engine_options=dict(engine_options))


def wrong_options(name: str, error: ValidationError) -> ConfigurationError:
    """Return what pydantic found wrong with a class's options as an error of ours."""
    faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    msg = f"{name} cannot be built: {faults}."
    return ConfigurationError(msg, hint=f"See the options in {name}'s docstring.")


def _refuse(kwargs: dict[str, Any]) -> None:
    """Refuse options meant for the LLM: a chain gives them to its first step, where they would get lost unnoticed."""
    if kwargs:
        msg = f"BPORunnable takes no call options, but got {', '.join(kwargs)}."
        raise InputError(msg, hint="Bind them to the LLM: BPORunnable() | llm.bind(...).")


def _try_take(value: PromptLike, input_key: str | None) -> Turn | InputError:
    try:
        return take(value, input_key)
    except InputError as error:
        return error


def _open(turns: Sequence[Turn | InputError]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the prompts to optimize, and their histories."""
    going = [(turn.text, turn.history) for turn in turns if isinstance(turn, Turn) and turn.text is not None]
    return [text for text, _ in going], [history for _, history in going]


def _all_closed(
    turns: Sequence[Turn | InputError],
    results: Sequence[OptimizedPrompt | Exception],
    runs: Sequence[ChainRun],
) -> list[Any]:
    """Put the results back where their prompts came from."""
    waiting = iter(results)
    outputs: list[Any] = []
    for turn, run in zip(turns, runs, strict=True):
        if isinstance(turn, InputError):
            outputs.append(turn)
            continue
        result = None if turn.text is None else next(waiting)
        outputs.append(result if isinstance(result, Exception) else _closed(turn, result, run))
    return outputs


def _closed(turn: Turn, result: OptimizedPrompt | None, run: ChainRun) -> Any:
    """Return the output, and note in the trace how it came about."""
    if result is not None:
        note(result, run)
    return turn.close(result)
