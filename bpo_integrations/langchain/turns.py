"""Takes the user's turn out of whatever LangChain passes along, and puts the optimized turn back in the same shape.

Pure functions. Only the text of the last human turn is ever replaced; everything else is handed on untouched, and the
original stays with the result: in `additional_kwargs["bpo"]` of a message, in `.bpo` of a str.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue

from bpo_integrations.errors import InputError
from bpo_integrations.result import OptimizedPrompt

PromptLike = LanguageModelInput | BaseMessage | dict[str, Any]
"""What goes in and comes out: a str, a prompt value, messages, one message, or a dict that holds one of these."""

MARK: Final = "bpo"
"""The key of `additional_kwargs` under which a message carries where its text comes from."""

STATE_KEY: Final = "messages"
"""Where the state of a LangGraph graph or of an agent holds the conversation."""

_HINT = "Pass a str, a prompt value, a list of messages, or a dict with input_key=."


class OptimizedText(str):
    """A str that went through the optimizer and says so, so that what was optimized is not optimized a second time.

    Args:
        text: The text.
        bpo: `original`, `kind` and `reason`.

    Example:
        >>> OptimizedText("Hi. Be brief.", {"original": "Hi.", "kind": "augmented", "reason": ""}).bpo["original"]
        'Hi.'
    """

    bpo: dict[str, str]

    def __new__(cls, text: str, bpo: Mapping[str, str] | None = None) -> OptimizedText:
        """Create the str and attach the mark (pickle calls this without one, and attaches it afterwards)."""
        self = super().__new__(cls, text)
        self.bpo = dict(bpo or {})
        return self


@dataclass(frozen=True, slots=True)
class Turn:
    """The user's turn, taken out of an input.

    Args:
        text: The text to optimize, or None where there is nothing to optimize.
        unchanged: What goes on in that case.
        put: Returns the input with the optimized text in its place.
        history: The texts of earlier human and AI turns, oldest first.
    """

    text: str | None
    unchanged: Any
    put: Callable[[OptimizedPrompt], Any]
    history: tuple[str, ...] = ()

    def close(self, result: OptimizedPrompt | None) -> Any:
        """Return what goes on: the input with `result` put in, or the input as it was where there is no result."""
        return self.unchanged if result is None else self.put(result)


def mark(result: OptimizedPrompt) -> dict[str, str]:
    """Return what a message says about where its text comes from; `proposal` is there in shadow mode only."""
    found = {"original": result.original, "kind": str(result.kind), "reason": result.reason}
    if result.proposal is not None:
        found["proposal"] = result.proposal
    return found


def take(value: Any, input_key: str | None = None) -> Turn:
    """Take the user's turn out of `value`.

    Args:
        value: A str, a prompt value, a sequence of messages (or of what LangChain converts to messages), a message, a
            dict that holds one of these under `input_key`, or the state of a graph, which holds `messages`.
        input_key: The key of a dict input under which the user's turn lies. With it all of the dict comes back, without
            it only `{"messages": [...]}`: a graph's node returns what it updates, and a reducer would apply the other
            keys a second time.

    Raises:
        InputError: `value` is none of these, is an empty list, or a dict without the key.

    Example:
        >>> take([("system", "Be kind."), ("human", "Hi")]).text
        'Hi'
    """
    if isinstance(value, Mapping):
        if input_key is None and STATE_KEY in value:
            return _take_state(value[STATE_KEY])
        return _take_key(value, input_key)
    if isinstance(value, str):
        return _take_str(value)
    if isinstance(value, StringPromptValue):
        inner = _take_str(value.text)
        return _wrap(inner, value, lambda text: value.model_copy(update={"text": text}))
    if isinstance(value, ChatPromptValue):
        inner = _take_messages(list(value.messages))
        return _wrap(inner, value, lambda messages: value.model_copy(update={"messages": messages}))
    if isinstance(value, PromptValue):
        return _wrap(_take_messages(value.to_messages()), value, lambda found: ChatPromptValue(messages=found))
    if isinstance(value, BaseMessage):
        return _wrap(_take_messages([value]), value, lambda messages: messages[0])
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return _take_messages(_messages(value))
    if input_key is None and hasattr(value, STATE_KEY):  # a graph's state may be a dataclass or a pydantic model
        return _take_state(getattr(value, STATE_KEY))
    msg = f"There is no prompt in an input of type {type(value).__name__}."
    raise InputError(msg, hint=_HINT)


def _wrap(inner: Turn, unchanged: Any, rebuild: Callable[[Any], Any]) -> Turn:
    """Return the turn of a container whose content is `inner`."""
    return Turn(inner.text, unchanged, lambda result: rebuild(inner.put(result)), inner.history)


def _take_state(messages: Any) -> Turn:
    """Take the turn out of a graph's messages; one message alone counts as a conversation."""
    inner = take(messages if isinstance(messages, (list, tuple)) else [messages])
    return _wrap(inner, {STATE_KEY: inner.unchanged}, lambda found: {STATE_KEY: found})


def _take_key(value: Mapping[str, Any], key: str | None) -> Turn:
    if key is None:
        msg = "The input is a dict, and nothing says which of its values is the prompt."
        raise InputError(msg, hint=f"Give BPORunnable(input_key=...), one of: {', '.join(map(str, value))}.")
    if key not in value:
        msg = f"The input has no key {key!r}."
        raise InputError(msg, hint=f"Give BPORunnable(input_key=...), one of: {', '.join(map(str, value))}.")
    content = value[key]
    if isinstance(content, Mapping):
        msg = f"The value of {key!r} is a dict, not a prompt."
        raise InputError(msg, hint="Take the inner value out first, for example with itemgetter.")
    inner = take(content)
    return _wrap(inner, value, lambda found: {**value, key: found})


def _take_str(value: str) -> Turn:
    text = None if isinstance(value, OptimizedText) and _is_settled(value) else value
    return Turn(text, value, lambda result: OptimizedText(result.text, mark(result)))


def _is_settled(value: OptimizedText) -> bool:
    """Whether the str was changed, or would have been (shadow mode); one that was kept may be asked about again."""
    return value != value.bpo.get("original") or "proposal" in value.bpo


def _messages(value: Sequence[Any]) -> list[BaseMessage]:
    if not value:
        msg = "The list of messages is empty."
        raise InputError(msg, hint="Pass at least the user's message.")
    try:
        return convert_to_messages(value)
    except (NotImplementedError, ValueError, TypeError) as error:
        kinds = ", ".join(sorted({type(item).__name__ for item in value}))
        msg = f"A list of {kinds} cannot be read as messages."
        raise InputError(msg, hint=_HINT) from error


def _take_messages(messages: list[BaseMessage]) -> Turn:
    """Take the turn out of messages."""
    last = users_turn(messages)
    found = None if last is None else user_text(messages[last])
    if last is None or found is None or _is_marked(messages[last], found[1]):
        return Turn(None, messages, lambda _: messages)
    message, (part, text) = messages[last], found

    def put(result: OptimizedPrompt) -> list[BaseMessage]:
        return [*messages[:last], _with_text(message, part, result), *messages[last + 1 :]]

    return Turn(text, messages, put, _history(messages[:last]))


def users_turn(messages: Sequence[BaseMessage]) -> int | None:
    """Return the place of the user's turn; None where the conversation does not end with one.

    System messages behind it do not count; anything else ends the user's turn.

    Example:
        >>> users_turn([HumanMessage("Hi"), SystemMessage("Be kind.")])
        0
    """
    last = len(messages) - 1
    while last >= 0 and isinstance(messages[last], SystemMessage):
        last -= 1
    return last if last >= 0 and _is_human(messages[last]) else None


def tools_at_work(messages: Sequence[BaseMessage]) -> int:
    """Return where the tool calls and results behind the user's turn begin; `len(messages)` where there are none.

    System messages behind or among them do not count.

    Example:
        >>> tools_at_work([HumanMessage("Hi")])
        1
    """
    begin = len(messages)
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if isinstance(message, ToolMessage) or (isinstance(message, AIMessage) and message.tool_calls):
            begin = index
        elif not isinstance(message, SystemMessage):
            break
    return begin or len(messages)


def _is_human(message: BaseMessage) -> bool:
    if isinstance(message, ChatMessage):
        return message.role in ("user", "human")
    return isinstance(message, HumanMessage)


def _is_ai(message: BaseMessage) -> bool:
    if isinstance(message, ChatMessage):
        return message.role in ("assistant", "ai")
    return isinstance(message, AIMessage)


def _history(messages: Sequence[BaseMessage]) -> tuple[str, ...]:
    turns = (message for message in messages if _is_ai(message) or _is_human(message))
    return tuple(text for turn in turns if (text := str(turn.text)))


def user_text(message: BaseMessage) -> tuple[int | None, str] | None:
    """Return the user's text and the content part that holds it (None: the whole content), or None without any text.

    Of several text parts the last one counts: what comes before is, as a rule, material, and the request follows.
    """
    if isinstance(message.content, str):
        return None, message.content
    for index in range(len(message.content) - 1, -1, -1):
        if text := _part_text(message.content[index]):
            return index, text
    return None


def _part_text(part: str | dict[Any, Any]) -> str | None:
    if isinstance(part, str):
        return part
    text = part.get("text") if part.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _with_text(message: BaseMessage, part: int | None, result: OptimizedPrompt) -> BaseMessage:
    """Return a copy of the message with the new text and the mark; id, name and metadata stay."""
    content: Any = result.text
    if part is not None:
        content = list(message.content)
        old = content[part]
        content[part] = result.text if isinstance(old, str) else {**old, "text": result.text}
    kwargs = {**message.additional_kwargs, MARK: mark(result)}
    return message.model_copy(update={"content": content, "additional_kwargs": kwargs})


def _is_marked(message: BaseMessage, text: str) -> bool:
    """Whether the message was optimized before.

    A mark that does not fit the text, which was edited since, does not count. Of a rewrite only the return to the
    original can be noticed. Nor does the mark of a turn that was kept: another optimizer may be able to improve it, for
    example one that reads the history. In shadow mode the proposal counts as made.
    """
    found = message.additional_kwargs.get(MARK)
    if not isinstance(found, Mapping) or not isinstance(original := found.get("original"), str):
        return False
    kind = found.get("kind")
    if kind == "kept":
        return "proposal" in found and text == original
    return text != original and (kind != "augmented" or text.startswith(original))
