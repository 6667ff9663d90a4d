"""A chat that keeps its history: follow-ups go to the LLM as they are, new requests are improved on their way.

    python docs/examples/chat_with_history.py

Runs offline: BPO's embedded model improves the turns, and the same small base answers them (`ChatEmbedded`); put your
own chat model in its place. The history keeps the user's own words.
"""

from __future__ import annotations

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from bpo_integrations import BPORunnable
from bpo_integrations.langchain import ChatEmbedded

TURNS = [
    "Tell me about the history of the telescope",
    "Who made it better after that?",  # leans on the conversation
    "Plan a week of vegetarian dinners for a family with two small children",  # begins anew
]


class Chat:
    """Answers turns, and remembers them as they were said.

    Args:
        llm: The model that answers.
        bpo: Improves each turn; it sees the turns before it.
    """

    def __init__(self, llm: BaseChatModel, bpo: BPORunnable) -> None:
        self.messages: list[BaseMessage] = [SystemMessage("You are a friendly assistant. Be brief.")]
        self._llm = llm
        self._bpo = bpo

    def say(self, text: str) -> tuple[AIMessage, BaseMessage]:
        """Answer a turn; return the answer, and the turn as the LLM saw it."""
        turn = HumanMessage(text)
        seen = self._bpo.invoke([*self.messages, turn])
        answer = self._llm.invoke(seen)
        self.messages += [turn, answer]
        return answer, seen[-1]


def main() -> None:
    """Hold a conversation of three turns, and show what the LLM saw of each."""
    chat = Chat(ChatEmbedded(max_tokens=40), BPORunnable())
    for text in TURNS:
        answer, seen = chat.say(text)
        print(f"user    {text}")
        print(f"LLM saw {seen.text}  ({seen.additional_kwargs['bpo']['reason']})")
        print(f"answer  {answer.text}\n")
    assert [message.text for message in chat.messages if isinstance(message, HumanMessage)] == TURNS


if __name__ == "__main__":
    main()
