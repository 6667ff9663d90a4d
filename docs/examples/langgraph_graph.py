"""A LangGraph graph with BPO as a node: it writes the improved turn beside the conversation, not into it.

    python docs/examples/langgraph_graph.py

Runs offline, with the embedded model and a small local LLM. A checkpointer keeps the conversation between the calls, so
that the second turn, which leans on the first, is left alone.
"""

from __future__ import annotations

from langchain_core.messages import AnyMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from bpo_integrations import BPORunnable
from bpo_integrations.langchain import ChatEmbedded

bpo = BPORunnable()
llm = ChatEmbedded(max_tokens=40)


class State(MessagesState):
    """The conversation in the user's own words, and the same with its last turn improved."""

    improved: list[AnyMessage]


def improve(state: State) -> dict[str, list[AnyMessage]]:
    """Improve the last turn in sight of the ones before it."""
    return {"improved": bpo.invoke(state["messages"])}


def answer(state: State) -> dict[str, list[AnyMessage]]:
    """Answer the improved turn; `messages` grows by the answer alone."""
    return {"messages": [llm.invoke(state["improved"])]}


def main() -> None:
    """Run two turns of one thread through the graph."""
    builder = StateGraph(State)
    builder.add_node("improve", improve)
    builder.add_node("answer", answer)
    builder.add_edge(START, "improve")
    builder.add_edge("improve", "answer")
    builder.add_edge("answer", END)
    graph = builder.compile(checkpointer=InMemorySaver())

    turns = ["How do vaccines work?", "And why do they need to be repeated?"]
    for text in turns:
        state = graph.invoke({"messages": [("user", text)]}, {"configurable": {"thread_id": "1"}})
        seen = state["improved"][-1]
        print(f"user    {text}")
        print(f"LLM saw {seen.text}  ({seen.additional_kwargs['bpo']['reason']})")
        print(f"answer  {state['messages'][-1].text}\n")
    assert [message.text for message in state["messages"][::2]] == turns


if __name__ == "__main__":
    main()
