"""How an addition is put behind a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_integrations.joint import already_said, join, joint_after

ADDITION = "Cover the main points, with one example each."

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@pytest.mark.parametrize(
    ("prompt", "joint"),
    [
        ("Tell me about Harry Potter", ". "),
        ("Tell me about Harry Potter.", " "),
        ("Who is Harry Potter?", " "),
        ("Tell me about Harry Potter!", " "),
        ("Tell me more…", " "),
        ("What is meant by 'why not?'", " "),
        ('Write a class "Circle" that inherits from "Shape"', ". "),
        ("Give the citations in order (name and year)", ". "),
        ("Write a poem about roses 🌹", " "),
        ("写一首关于春天的诗", "。"),
        ("日本の首都はどこですか？", ""),
    ],
)
def test_prose_is_followed_by_one_space_and_has_its_final_mark(prompt: str, joint: str) -> None:
    assert join(prompt, ADDITION) == prompt + joint + ADDITION


@pytest.mark.parametrize(
    ("prompt", "joint"),
    [
        ("Who is Harry Potter? ", ""),
        ("Who is Harry Potter?\n", ""),
        ("Who is Harry Potter\n", ""),
        ("Who is Harry Potter ", "\n"),
        ("Why does this fail?\n```py\n1/0\n```\n", "\n"),
        ("Why does this fail?\n```py\n1/0\n```\n\n", ""),
    ],
)
def test_trailing_white_space_is_kept_and_not_doubled(prompt: str, joint: str) -> None:
    assert join(prompt, ADDITION) == prompt + joint + ADDITION


@pytest.mark.parametrize(
    "prompt",
    [
        "Why does this fail?\n```py\n1/0\n```",
        "Sort these:\n- pears\n- apples",
        "Sort these:\n1. pears\n2. apples",
        "Which one is cheapest?\n| name | price |\n| a | 3 |",
        "Comment on this.\n> To be, or not to be, that is the question.",
        "Explain the ending of the given movie.\nShutter Island",
        "Explain this code: int main() { return 0; }",
        "What does this page say? https://example.org/a",
        'Explain what the author means: "We hold these truths to be self-evident, that all men are created equal"',
        "Summarize: the quick brown fox jumps over the lazy dog and then it goes home to sleep for a while",
        "Write an essay on Romeo and Juliet,",
    ],
)
def test_after_material_comes_a_blank_line(prompt: str) -> None:
    assert join(prompt, ADDITION) == prompt + "\n\n" + ADDITION


def test_a_question_behind_pasted_lines_is_prose() -> None:
    prompt = "let x = { one: 1 }\nTypeError: not a function\n\nHow do I fix this error?"
    assert joint_after(prompt) == " "


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " \n ",
        "Rewrite the following text:",
        "Rewrite the following text: \n",
        "Q: Who won in 1966?\nA:",
        "Sort these.\nOutput: ",
        "Input: 3, 4\nAnswer",
        "2 + 2 =",
        "cat => gato, dog =>",
        "The capital of France is ___",
        "List three fruits.\n1.",
        "Fix this code:\n```py\nprint(1",
    ],
)
def test_nothing_is_put_behind_what_the_answer_is_to_continue(prompt: str) -> None:
    assert join(prompt, ADDITION) == prompt


@pytest.mark.parametrize("addition", ["", " ", "\n\t"])
def test_an_empty_addition_leaves_the_prompt_as_it_is(addition: str) -> None:
    assert join("Tell me about Harry Potter", addition) == "Tell me about Harry Potter"


@given(any_text, any_text)
def test_the_result_starts_with_the_original_and_ends_with_the_addition(original: str, addition: str) -> None:
    text = join(original, addition)
    assert text.startswith(original)
    assert text == original or text.endswith(addition.strip())
    assert not text[len(original) :].startswith("\n\n\n")


@given(st.text("ab.?!:;`\n >-|\"'()[]=_,A1 \t", max_size=60))
def test_what_stands_between_is_a_mark_and_white_space_only(original: str) -> None:
    assert joint_after(original) in (None, "", " ", ". ", "\n", "\n\n")


@pytest.mark.parametrize(
    ("prompt", "addition"),
    [
        ("List the causes and effects of inflation.", "Cover both the causes and the effects of inflation."),
        (
            "Explain photosynthesis with light reactions, the Calvin cycle and an everyday analogy",
            "Explain the light reactions and the Calvin cycle, with an everyday analogy.",
        ),
        ("Compare the tempratures of Rome and Oslo by month", "Compare temperatures by month for Rome and Oslo."),
    ],
)
def test_what_the_prompt_says_is_said_already(prompt: str, addition: str) -> None:
    assert already_said(prompt, addition)


@pytest.mark.parametrize(
    ("prompt", "addition"),
    [
        ("Tell me about Harry Potter", "Cover the main characters, the seven books and the themes of friendship."),
        ("List the causes of inflation.", "Give a historical case for each and how central banks reacted."),
        ("Explain it step by step", "Explain it."),
        ("", "Cover the main points."),
        ("Tell me about Harry Potter", ""),
    ],
)
def test_what_the_prompt_does_not_say_is_not_said_already(prompt: str, addition: str) -> None:
    assert not already_said(prompt, addition)


@given(any_text, any_text)
def test_any_text_can_be_compared(original: str, addition: str) -> None:
    assert already_said(original, addition) in (True, False)
