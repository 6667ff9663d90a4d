"""`create_agent(llm, tools, middleware=[BPOMiddleware()])`: the LLM sees the improved turn, the state keeps the user's.

Each user turn is optimized once, when the run that it starts begins, whatever number of model calls follow. State,
history and checkpoints hold the user's own words; the improved text lies in a private part of the state and takes
their place in each model call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, NotRequired, TypedDict

from langchain_core.messages import AnyMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from bpo_integrations.commands import agent_policy
from bpo_integrations.errors import ConfigurationError, MissingExtraError
from bpo_integrations.langchain.runnable import BPORunnable
from bpo_integrations.langchain.tracing import NO_STREAM
from bpo_integrations.langchain.turns import MARK, take, user_text, users_turn
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.profiles import settled
from bpo_integrations.result import Kind, Mode, OptimizedPrompt

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
    from langchain.agents.middleware.types import PrivateStateAttr
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("langchain", "langgraph"):
        raise
    raise MissingExtraError("langchain>=1.4", extra="agents") from error

_UNSEEN = RunnableConfig(tags=[NO_STREAM])
"""Keeps what an LLM writes as optimizer out of the agent's streams of messages, whatever engine asks it."""


class OptimizedTurn(TypedDict):
    """What became of one user turn: plain data, so that every checkpointer can keep it.

    Args:
        original: The user's own words.
        text: What the LLM sees.
        kind: `kept`, `augmented`, `rewritten` or `softened`.
        reason: Why.
        proposal: In shadow mode, what the LLM would have seen.
    """

    original: str
    text: str
    kind: Kind
    reason: str
    proposal: NotRequired[str]


class BPOState(AgentState[Any]):
    """The agent's state with the optimized turns, by message id; not part of its input and output.

    Earlier turns stay in it, so that the LLM goes on seeing each turn as it answered it.
    """

    bpo_turns: NotRequired[Annotated[dict[str, OptimizedTurn], PrivateStateAttr]]


class BPOMiddleware(AgentMiddleware[BPOState, Any, Any]):
    """Improves the user's turns on their way to an agent's LLM.

    The turn is optimized once a run, before the first model call, and the model sees it in every call; such a message
    carries `additional_kwargs["bpo"]`. State, history and checkpoints keep the user's own words. Orders to the agent's
    tools ("delete the file foo") are left alone, see `agent_policy`. A turn that somebody changes after it was
    optimized, for example by redacting it, reaches the model as it was changed.

    Where the optimizer fails, the original goes on, unless `on_error="raise"`. An LLM that is used as optimizer is kept
    out of the agent's token stream.

    Args:
        model: The rewriter: a spec (`embedded`), a `Rewriter`, or an LLM's object, asked to optimize by meta-prompt.
        optimizer: A ready `PromptOptimizer` instead of `model` and all other options but `mode`. Its policy counts:
            give it `policy=agent_policy`.
        mode: `augment` only adds behind the user's words. `rewrite` must be asked for, here even where the optimizer is
            ready.
        shadow: Run everything, but let the original go on; the proposal is in the state and in the trace.
        options: Further options of `PromptOptimizer`. A `profile` or a policy file is asked behind `agent_policy`; a
            function as `policy` takes its place.

    Raises:
        ConfigurationError: Something is configured wrongly, a model is missing, or an extra is not installed.

    Example:
        >>> from langchain.agents import create_agent
        >>> agent = create_agent("openai:gpt-5", middleware=[BPOMiddleware()])  # doctest: +SKIP
        >>> agent.invoke({"messages": "Tell me about Harry Potter"})["messages"][0].content  # doctest: +SKIP
        'Tell me about Harry Potter'
    """

    state_schema = BPOState

    def __init__(
        self,
        model: Any = "embedded",
        *,
        optimizer: PromptOptimizer | None = None,
        mode: Mode = "augment",
        shadow: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if optimizer is None:
            policy = settled(options.pop("policy", None), options.pop("profile", None), rules=agent_policy, mode=mode)
            optimizer = PromptOptimizer(model, mode=mode, shadow=shadow, policy=policy, **options)
        else:
            _refuse_options(model, shadow, options)
            if optimizer.mode != mode:
                msg = f"The optimizer has the mode {optimizer.mode!r}, not {mode!r}."
                raise ConfigurationError(msg, hint=f"Say BPOMiddleware(mode={optimizer.mode!r}) if that is meant.")
        self.runnable = BPORunnable(optimizer=optimizer)

    def before_agent(self, state: BPOState, runtime: Any) -> dict[str, Any] | None:
        """Optimize the turn that starts this run."""
        opening = _opening(state)
        return None if opening is None else _update(state, self.runnable.invoke(opening, _UNSEEN))

    async def abefore_agent(self, state: BPOState, runtime: Any) -> dict[str, Any] | None:
        """As `before_agent`, without blocking the event loop."""
        opening = _opening(state)
        return None if opening is None else _update(state, await self.runnable.ainvoke(opening, _UNSEEN))

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Show the model the optimized turns."""
        return handler(_improved(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`."""
        return await handler(_improved(request))


def _refuse_options(model: Any, shadow: bool, options: dict[str, Any]) -> None:
    given = [*options, *(["model"] if model != "embedded" else []), *(["shadow"] if shadow else [])]
    if given:
        msg = f"BPOMiddleware got optimizer= and also {', '.join(given)}."
        raise ConfigurationError(msg, hint="Give these options to the PromptOptimizer itself.")


def _opening(state: BPOState) -> list[AnyMessage] | None:
    """Return the conversation where it ends with a turn of the user's that was not optimized yet."""
    messages = state["messages"]
    index = users_turn(messages)
    if index is None or (key := messages[index].id) is None or take(messages).text is None:
        return None
    known = _known(state).get(key)
    return None if known and known["original"] == _text(messages[index]) else messages


def _update(state: BPOState, optimized: Sequence[BaseMessage]) -> dict[str, Any]:
    """Return the state's optimized turns with the latest; those whose messages are gone are forgotten."""
    index = users_turn(optimized)
    assert index is not None  # `_opening` found it
    message = optimized[index]
    turn = {**message.additional_kwargs[MARK], "text": _text(message)}
    known = _known(state)
    kept = {message.id: known[message.id] for message in optimized if message.id in known}
    return {"bpo_turns": {**kept, message.id: turn}}


def _improved(request: ModelRequest[Any]) -> ModelRequest[Any]:
    """Return the request with each turn as it was optimized; the state stays as it is."""
    known = _known(request.state)
    if not any(message.id in known for message in request.messages):
        return request
    return request.override(messages=[_put(message, known.get(message.id or "")) for message in request.messages])


def _put(message: AnyMessage, known: OptimizedTurn | None) -> AnyMessage:
    taken = None if known is None else take(message)
    if known is None or taken is None or taken.text != known["original"]:  # somebody changed it since: theirs counts
        return message
    found: AnyMessage = taken.put(OptimizedPrompt(**known))
    return found


def _known(state: Any) -> dict[str, OptimizedTurn]:
    return state.get("bpo_turns") or {}


def _text(message: BaseMessage) -> str:
    found = user_text(message)
    return "" if found is None else found[1]
