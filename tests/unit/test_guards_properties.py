"""Guards on any text: no exception, the same answer each time, identity and the empty addition never a violation."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpo_integrations.guards import ADDITION_GUARDS, REWRITE_GUARDS, SOFTENING_GUARDS, Guard, protected

ANY_TEXT = st.text(alphabet=st.characters(codec=None), max_size=300)  # lone surrogates, controls, every script
PIECES = st.sampled_from(
    (
        """not|don't|without|12|1,000.50|two hundred|"quoted"|“curly”|'it'|`code`|```|{slot}|{{slot}}|<name>|"""
        "[NAME]|%s|https://a.b/c?d=e|a@b.cd|[INST]|<bos>|User:|Maria|NASA|the following text:|at most 5 words|"
        "in one sentence|be brief|Please provide the text.|Explain it.|,|.|?|:|(|billion|漢字|привет|😀"
    ).split("|")
)
PROMPT_LIKE = st.lists(st.one_of(PIECES, st.text(max_size=12), st.just("\n")), max_size=40).map(" ".join)
TEXT = st.one_of(ANY_TEXT, PROMPT_LIKE)
ALL: tuple[Guard, ...] = tuple(dict.fromkeys((*REWRITE_GUARDS, *ADDITION_GUARDS, *SOFTENING_GUARDS)))
RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

HUGE = [
    "a" * 20_000,
    " " * 20_000,
    "word " * 4_000,
    "Name " * 4_000,
    "not " * 5_000,
    "billion " * 2_500,
    '"' * 20_000,
    "'a " * 6_000,
    "{" * 20_000,
    "[a" * 10_000,
    "<a" * 10_000,
    "`a" * 10_000,
    "```" * 6_666,
    "9" * 20_000,
    "1," * 10_000,
    "/a" * 10_000,
    "a@" * 10_000,
    "a.b" * 6_600,
    "no more than " * 1_500,
    "please provide the " * 1_000,
    "following " * 2_000,
    "to a, " * 3_000,
    "line of some text\n" * 1_100,
    "漢字" * 10_000,
    "😀" * 10_000,
    "\ud800" * 20_000,
    "\x00\u202e\u200b" * 6_000,
    "-" * 20_000,
    "A.B.C. " * 2_800,
]


@RELAXED
@given(TEXT, TEXT)
def test_no_guard_raises_and_each_answers_the_same_twice(original: str, candidate: str) -> None:
    for check in ALL:
        first = check(original, candidate)
        assert first == check(original, candidate)
        assert first is None or (first.guard and len(first.detail) <= 80)


@RELAXED
@given(TEXT)
def test_an_unchanged_prompt_is_never_a_violation(prompt: str) -> None:
    assert [check(prompt, prompt) for check in REWRITE_GUARDS] == [None] * len(REWRITE_GUARDS)


@RELAXED
@given(TEXT)
def test_an_empty_addition_is_never_a_violation(prompt: str) -> None:
    assert [check(prompt, "") for check in ADDITION_GUARDS] == [None] * len(ADDITION_GUARDS)


@RELAXED
@given(TEXT, st.lists(st.text(max_size=5), max_size=3))
def test_protection_never_raises_and_passes_what_is_kept(prompt: str, literals: list[str]) -> None:
    assert protected(literals)(prompt, f"{prompt} And more.") is None


@pytest.mark.parametrize("text", HUGE, ids=range(len(HUGE)))
def test_twenty_thousand_characters_of_one_kind_are_judged(text: str) -> None:
    for check in ALL:
        for original, candidate in (
            (text, "Explain it."),
            ("Explain it.", text),
            (text, text[:-1]),
            (text[:-1] + "x", text),
        ):
            found = check(original, candidate)
            assert found is None or found.guard
