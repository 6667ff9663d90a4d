"""An agent with a tool: the user's turn is improved once a run, and the history keeps the user's own words.

    python docs/examples/agent_with_tools.py

Runs offline: the embedded model improves the turn, and a scripted chat model plays the agent's LLM, because a
model that calls tools well does not fit into an example. Put your own in its place:
`create_agent("openai:gpt-5", ...)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from langchain.agents import create_agent
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from pydantic import Field

from bpo_integrations.langchain import BPOMiddleware


@tool
def opening_hours(place: str) -> str:
    """Return when a place is open."""
    return f"{place} is open from 9 to 17 on weekdays."


class ScriptedModel(GenericFakeChatModel):
    """Says what the script says, and notes the user's turn as each call shows it."""

    seen: list[str] = Field(default_factory=list)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Take any tools; the script knows them."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.seen.append(next(message.text for message in reversed(messages) if isinstance(message, HumanMessage)))
        return super()._generate(messages, stop, run_manager, **kwargs)


def script() -> Iterator[AIMessage | str]:
    """Call the tool, then answer; then carry out an order."""
    call = {"name": "opening_hours", "args": {"place": "The city library"}, "id": "1", "type": "tool_call"}
    yield AIMessage("", tool_calls=[call])
    yield "It is open from 9 to 17 on weekdays. Go in the morning, when it is quiet."
    yield "Done."


def main() -> None:
    """Run a question through the agent, which needs two model calls, and then an order."""
    llm = ScriptedModel(messages=script())
    agent = create_agent(llm, [opening_hours], middleware=[BPOMiddleware()])
    question, order = "Plan a visit to the city library for my school class", "delete the file draft.md"

    state = agent.invoke({"messages": [("user", question)]})
    print(f"user     {question}\nLLM saw  {llm.seen[0]}\nanswer   {state['messages'][-1].text}\n")
    assert state["messages"][0].text == question
    assert llm.seen[0] == llm.seen[1]

    agent.invoke({"messages": [("user", order)]})
    print(f"user     {order}\nLLM saw  {llm.seen[2]}")
    assert llm.seen[2] == order


if __name__ == "__main__":
    main()
