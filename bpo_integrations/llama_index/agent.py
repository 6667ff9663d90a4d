"""Agents whose LLM sees the improved turn, while their memory keeps the user's own words.

LlamaIndex has no middleware for agents; the public seam is `take_step`, which is handed what the LLM shall see. It is
called once a step of the loop, so the result is kept in the run's context, which agents that hand off to each other
share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.agent.workflow.base_agent import BaseWorkflowAgent
from llama_index.core.agent.workflow.workflow_events import AgentOutput
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import BaseMemory
from llama_index.core.tools import AsyncBaseTool
from pydantic import Field, PrivateAttr

from bpo_integrations.commands import agent_policy
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.llama_index.traced import TracedOptimizer, traced
from bpo_integrations.llama_index.turns import Turn, last_turn, own_turn
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.result import Mode

if TYPE_CHECKING:
    from llama_index.core.agent.workflow.agent_context import AgentContext  # older releases have none

STORE_KEY = "bpo_turn"
"""Where a run's context keeps the optimized turn."""


class BPOAgentMixin(BaseWorkflowAgent):
    """Makes any workflow agent optimize the user's turn, once a run.

    Put it before the agent's class: `class MyAgent(BPOAgentMixin, CodeActAgent)`. The memory keeps the user's own
    words, and from these come later runs and a structured output at the end. Commands to tools ("delete the file foo")
    are left alone, see `agent_policy`. Where the model fails, the turn goes on as it was.

    Args:
        model: The rewriter: a spec, a `Rewriter`, or an LLM.
        mode: `augment` only adds behind the user's words. `rewrite` must be asked for, here even where the optimizer is
            ready: an agent acts on what it is told.
        profile: `small`, `strong`, or a policy file's path, asked behind `agent_policy` (docs/gate.md).
        optimizer: A ready `PromptOptimizer`, instead of `model` and `profile`. Its own policy counts: give it
            `policy=agent_policy`, or orders to tools are optimized too.

    Raises:
        ConfigurationError: The rewriter does not have the mode, a model is missing, or an extra is not installed.
    """

    model: Any = Field(default="embedded", exclude=True, description="The rewriter.")
    mode: Mode = Field(default="augment", description="What the rewriter does to the user's turn.")
    profile: str | Path | None = Field(default=None, description="Which turns are worth it.")
    optimizer: PromptOptimizer | None = Field(default=None, exclude=True, description="A ready optimizer.")

    _traced: TracedOptimizer = PrivateAttr()

    def __init__(
        self,
        *args: Any,
        model: Any = "embedded",
        mode: Mode = "augment",
        profile: str | Path | None = None,
        optimizer: PromptOptimizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)  # not with these four: some agents take only what they know
        self.model, self.mode, self.profile, self.optimizer = model, mode, profile, optimizer
        options: dict[str, Any] = {} if profile is None else {"profile": profile}
        if optimizer is None:
            options |= {"mode": mode, "policy": agent_policy}
        self._traced = traced(model, optimizer, options)
        if self._traced.optimizer.mode != mode:
            msg = f"The optimizer has the mode {self._traced.optimizer.mode!r}, not {mode!r}."
            raise ConfigurationError(msg, hint=f"Give mode={self._traced.optimizer.mode!r} if that is meant.")

    async def take_step(
        self,
        ctx: AgentContext,
        llm_input: list[ChatMessage],
        tools: Sequence[AsyncBaseTool],
        memory: BaseMemory,
    ) -> AgentOutput:
        """Take a step of the agent with the optimized turn."""
        words = await ctx.store.get("user_msg_str", default=None)
        turn = own_turn(llm_input, words) if words else last_turn(llm_input)
        if turn is not None:
            llm_input = turn.put(llm_input, await self._optimized(ctx, turn))
        return await super().take_step(ctx, llm_input, tools, memory)  # type: ignore[safe-super]

    async def _optimized(self, ctx: AgentContext, turn: Turn) -> str:
        """Return the text of the run's turn; the first step asks the optimizer."""
        known = await ctx.store.get(STORE_KEY, default=None)
        first = not await ctx.store.get("num_iterations", default=0)  # LlamaIndex resets it for each run
        if known is not None and not first and known["original"] == turn.text:
            return str(known["text"])
        result = await self._traced.aoptimize(turn.text, turn.history)
        await ctx.store.set(STORE_KEY, {"original": turn.text, "text": result.text})
        return result.text


class BPOFunctionAgent(BPOAgentMixin, FunctionAgent):
    """`FunctionAgent` with `BPOAgentMixin`.

    Example:
        >>> from llama_index.core.llms import MockLLM
        >>> agent = BPOFunctionAgent(tools=[...], llm=MockLLM())  # doctest: +SKIP
        >>> response = await agent.run("Plan a day in Rome")  # doctest: +SKIP
    """


class BPOReActAgent(BPOAgentMixin, ReActAgent):
    """`ReActAgent` with `BPOAgentMixin`, for LLMs that cannot call functions."""
