"""Takes the user's turn, and what was said before it, out of the inputs that chains with a history have.

Pure functions for steps that need both, such as a retriever; `turns.py` is for steps that put the turn back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, MessageLikeRepresentation, convert_to_messages
from langchain_core.prompt_values import PromptValue

from bpo_integrations.errors import InputError
from bpo_integrations.langchain.turns import MARK, STATE_KEY, OptimizedText, take, user_text, users_turn


def split(
    value: Any, input_key: str = "input", history_key: str = "chat_history"
) -> tuple[str, Sequence[MessageLikeRepresentation]]:
    """Split a conversation into the user's turn and the messages before it.

    Args:
        value: A dict that holds the two under `input_key` and `history_key`, the state of a graph (`messages`), a
            prompt value, messages, a message, or a str, which is a turn without a history.
        input_key: The key of the user's turn.
        history_key: The key of the history, which may be missing.

    Returns:
        The text of the turn, an `OptimizedText` where it was optimized before, and the history.

    Raises:
        InputError: `value` is none of these, or does not end with a turn of the user's that has a text.

    Example:
        >>> split({"input": "And then?", "chat_history": ["Tell me a story."]})
        ('And then?', ['Tell me a story.'])
    """
    if isinstance(value, Mapping) and input_key in value:
        earlier, value = value.get(history_key) or (), value[input_key]
        if isinstance(value, str):
            return value, earlier
        value = [*earlier, *_messages(value)]
    if isinstance(value, str):
        return value, ()
    messages = convert_to_messages(_messages(value))
    place = users_turn(messages)
    found = None if place is None else user_text(messages[place])
    if place is None or found is None:
        msg = "The conversation does not end with a question of the user's."
        raise InputError(msg, hint=f"Pass a dict with the keys {input_key!r} and {history_key!r}, or messages.")
    marked = take(messages).text is None
    text = OptimizedText(found[1], messages[place].additional_kwargs[MARK]) if marked else found[1]
    return text, messages[:place]


def _messages(value: Any) -> Sequence[MessageLikeRepresentation]:
    """Return the messages of a prompt value, a graph's state, a message or messages."""
    if isinstance(value, PromptValue):
        return value.to_messages()
    if isinstance(value, BaseMessage):
        return [value]
    held = value.get(STATE_KEY) if isinstance(value, Mapping) else getattr(value, STATE_KEY, value)
    if isinstance(held, Sequence) and not isinstance(held, (str, bytes)):
        return held
    msg = f"There is no conversation in an input of type {type(value).__name__}."
    raise InputError(msg, hint="Pass messages, a graph's state, or a dict with the user's turn and the history.")
