"""Finds the user's turn among LlamaIndex's chat messages, and puts the optimized turn in its place.

Pure functions. Messages are copied, never changed: LlamaIndex hands out the very objects that lie in the memory. No
mark goes into `additional_kwargs`, which integrations send on to the provider, and that refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

OBSERVATION = "Observation: "
"""So begins what a ReAct agent tells its LLM of a tool's output, by default in the user's role."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The user's turn among messages.

    Args:
        message: The place of its message.
        block: The place of the text block in that message.
        before: What stands in the block before the user's words.
        text: The user's words.
        after: What stands in the block behind them.
        history: Earlier turns and answers, oldest first.
    """

    message: int
    block: int
    before: str
    text: str
    after: str
    history: tuple[str, ...]

    def put(self, messages: Sequence[ChatMessage], text: str) -> list[ChatMessage]:
        """Return the messages with `text` in place of the user's words."""
        found = list(messages)
        old = found[self.message]
        blocks = list(old.blocks)
        blocks[self.block] = blocks[self.block].model_copy(update={"text": f"{self.before}{text}{self.after}"})
        found[self.message] = old.model_copy(update={"blocks": blocks})
        return found


def last_turn(messages: Sequence[ChatMessage]) -> Turn | None:
    """Return the last turn of the user, or None where there is none with text.

    It may be followed by tool calls and their results: an LLM that works on it is asked again with the same turn. Of
    several text blocks the last one counts: what comes before is, as a rule, material.

    Example:
        >>> last_turn([ChatMessage(role="system", content="Be kind."), ChatMessage(role="user", content="Hi")]).text
        'Hi'
    """
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].role != MessageRole.USER:
            continue
        for block, text in _texts(messages[place]):
            if not text.startswith(OBSERVATION):
                return Turn(place, block, "", text, "", texts(messages[:place]))
        if not (messages[place].content or "").startswith(OBSERVATION):
            return None  # an image without words, say
    return None


def own_turn(messages: Sequence[ChatMessage], words: str) -> Turn | None:
    """Return the user's turn that holds `words`, or None.

    An agent may have put its state around the user's words, or messages of its own behind them.

    Args:
        messages: What the LLM is to be asked.
        words: What the user said in this run; of several text blocks LlamaIndex joins the lines.
    """
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].role != MessageRole.USER:
            continue
        for block, text in _texts(messages[place]):
            if words in text:
                before, _, after = text.rpartition(words)
                return Turn(place, block, before, words, after, texts(messages[:place]))
            if words.endswith(f"\n{text}"):
                return Turn(place, block, "", text, "", texts(messages[:place]))
    return None


def texts(messages: Iterable[ChatMessage]) -> tuple[str, ...]:
    """Return what the user and the assistant said."""
    spoken = (message for message in messages if message.role in (MessageRole.USER, MessageRole.ASSISTANT))
    return tuple(text for message in spoken if (text := message.content))


def _texts(message: ChatMessage) -> list[tuple[int, str]]:
    """Return the text blocks that are not blank, with their places, the last one first."""
    blocks = enumerate(message.blocks)
    return [(place, block.text) for place, block in blocks if isinstance(block, TextBlock) and block.text.strip()][::-1]
