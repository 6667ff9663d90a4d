"""Where the user's turn stands among LlamaIndex's messages, for any text."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("llama_index.core", reason="the llama-index extra is not installed")

from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from bpo_integrations.llama_index.turns import OBSERVATION, last_turn, own_turn, texts

WORDS = st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip()) and not text.startswith(OBSERVATION))
BLOCKS = st.lists(st.builds(TextBlock, text=st.text(max_size=10)), max_size=2)
MESSAGES = st.lists(
    st.builds(
        ChatMessage,
        role=st.sampled_from([MessageRole.SYSTEM, MessageRole.ASSISTANT, MessageRole.TOOL, MessageRole.USER]),
        blocks=BLOCKS,
    ),
    max_size=4,
)
LATER = st.lists(st.builds(ChatMessage, role=st.sampled_from([MessageRole.ASSISTANT, MessageRole.TOOL]), blocks=BLOCKS))


@given(MESSAGES, BLOCKS, WORDS, LATER, WORDS)
def test_only_the_last_text_of_the_users_last_message_is_exchanged(
    before: list[ChatMessage], blocks: list[TextBlock], words: str, after: list[ChatMessage], better: str
) -> None:
    message = ChatMessage(role="user", blocks=[*blocks, TextBlock(text=words)], additional_kwargs={"name": "Ann"})
    messages = [*before, message, *after]
    untouched = copy.deepcopy(messages)
    turn = last_turn(messages)
    assert turn is not None
    assert (turn.text, turn.history) == (words, texts(before))
    found = turn.put(messages, better)
    assert messages == untouched
    assert found[: len(before)] == before
    assert found[len(before) + 1 :] == after
    assert found[len(before)].blocks == [*blocks, TextBlock(text=better)]
    assert found[len(before)].additional_kwargs == {"name": "Ann"}


@given(MESSAGES, st.text(max_size=10), WORDS, WORDS)
def test_what_stands_around_the_users_words_stays(
    before: list[ChatMessage], around: str, words: str, better: str
) -> None:
    messages = [*before, ChatMessage(role="user", content=f"{around}{words}(the end)")]
    turn = own_turn(messages, words)
    assert turn is not None
    assert turn.put(messages, words) == messages
    assert turn.put(messages, better)[-1].content == f"{turn.before}{better}{turn.after}"
    assert f"{turn.before}{words}{turn.after}" == messages[-1].content


@given(MESSAGES)
def test_words_that_nobody_said_are_nowhere(messages: list[ChatMessage]) -> None:
    assert own_turn(messages, "a sentence that no message here holds") is None


def test_of_the_same_words_said_twice_the_later_turn_counts() -> None:
    messages = [ChatMessage(role="user", content="Why?"), ChatMessage(content="Because."), ChatMessage(content="Why?")]
    turn = own_turn(messages, "Why?")
    assert turn is not None
    assert turn.message == 2


def test_several_texts_that_were_joined_are_found_by_their_end() -> None:
    message = ChatMessage(role="user", blocks=[TextBlock(text="A page."), TextBlock(text="What is it about?")])
    turn = own_turn([message], "A page.\nWhat is it about?")
    assert turn is not None
    assert turn.text == "What is it about?"
