"""A turn that leans on the conversation is told from one that stands by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_integrations.dialogue import WEIGHTS, features, leans_on_history
from bpo_integrations.policy import PolicyContext, default_policy
from bpo_integrations.policy import leans_on_history as exported

HISTORY = ("How high is the VAT in France?", "The standard rate of VAT in France is 20%.")

LEANING = [
    "and in Germany?",
    "Why?",
    "make it shorter",
    "tell me more",
    "What about books?",
    "Now translate it into French",
    "Which one is cheaper?",
    "Explain the second point in more detail",
    "Can you give an example?",
    "How could Monaco abolish it?",
    "What are the exceptions?",
    "Wow. That's a lot. When did they introduce it?",
    "no, I meant the reduced rate",
]
STANDING = [
    "How do I sort a list of dictionaries by a key in Python?",
    "Write a short story about a lighthouse keeper who befriends a storm petrel.",
    "That's great. Which vegetables grow well on a shady balcony in northern Europe?",
    "Explain photosynthesis to a child, and say why leaves turn brown in autumn.",
    "What causes the northern lights to appear green over Norway and Finland?",
    "Summarize this text: Rivers carry sediment from mountains to the sea and build deltas.",
    "thanks a lot!",
]


@pytest.mark.parametrize("turn", LEANING)
def test_a_turn_that_points_back_or_leaves_its_subject_out_leans(turn: str) -> None:
    assert leans_on_history(turn, HISTORY)


@pytest.mark.parametrize("turn", STANDING)
def test_a_turn_that_names_its_subject_stands_by_itself(turn: str) -> None:
    assert not leans_on_history(turn, HISTORY)


@given(st.text())
def test_nothing_leans_on_an_empty_history(turn: str) -> None:
    assert not leans_on_history(turn, ())


@given(st.text(), st.lists(st.text(), max_size=4))
def test_every_text_has_a_verdict(turn: str, history: list[str]) -> None:
    assert leans_on_history(turn, history) in (True, False)
    assert features(turn, history).keys() == WEIGHTS.keys()


@given(st.lists(st.sampled_from(["it ", "the ", "there. ", "that's ", "Paris ", "x", "\n", ": ", "\ud800", "’"])))
def test_odd_sequences_of_words_that_point_have_a_verdict(parts: list[str]) -> None:
    assert leans_on_history("".join(parts), HISTORY) in (True, False)


def test_what_stands_behind_the_part_that_is_read_does_not_count() -> None:
    turn = "Compare the climate of Norway, Finland, Iceland and Scotland. " * 40
    assert features(turn) == features(turn + " it " * 100_000)


@pytest.mark.parametrize(
    ("turn", "feature", "value"),
    [
        ("How much does it cost?", "pronoun", 1.0),
        ("How much does it cost to insure a sailing boat?", "pronoun", 0.0),
        ("Did the Romans or the Greeks invent it?", "pronoun", 1.0),
        ("Do whales and dolphins love their calves?", "late pronoun", 1.0),
        ("I bought a sailing boat. How should I paint it?", "pronoun", 0.0),
        ("Is there a bridge?", "there", 0.0),
        ("What can I see there?", "there", 1.0),
        ("What are the side effects?", "definite", 1.0),
        ("What are the side effects of aspirin?", "definite", 0.0),
        ("Translate this sentence: Rivers carry sediment.", "pointer", 0.0),
        ("Translate this sentence", "pointer", 1.0),
        ("What is the population of Paris?", "names", 1.0),
        ("What about Paris?", "opener", 1.0),
    ],
)
def test_each_sign_is_seen_where_it_is_one(turn: str, feature: str, value: float) -> None:
    assert features(turn)[feature] == value


def test_a_turn_that_repeats_what_the_user_said_before_leans_less() -> None:
    turn = "How are hybrid engines repaired?"
    assert leans_on_history(turn, ("Tell me about garages", "Gladly."))
    assert not leans_on_history(turn, ("Which hybrid engines break down most often?", "Some do."))


def test_words_of_long_answers_are_not_taken_for_the_users() -> None:
    answer = "Hybrid engines are engines. " * 20
    assert features("How are hybrid engines repaired?", (answer,))["known words"] == 0


@pytest.mark.parametrize("turn", ["Und in Deutschland?", "¿Y en España?", "А в Германии?", "那德国呢？"])
def test_a_short_turn_in_another_language_counts_as_leaning(turn: str) -> None:
    assert leans_on_history(turn, HISTORY)
    assert not leans_on_history(turn, ())


def test_a_long_turn_in_another_language_counts_as_standing_by_itself() -> None:
    turn = "Wie hoch ist die Mehrwertsteuer auf Bücher und Zeitschriften in Deutschland und in Österreich?"
    assert not leans_on_history(turn, HISTORY)


def test_the_policy_leaves_a_leaning_turn_to_the_llm_that_sees_the_history() -> None:
    assert exported is leans_on_history
    turn = "What are the exceptions?"
    assert default_policy(turn, PolicyContext(mode="rewrite", history=HISTORY)) == "needs the conversation"
    assert default_policy(turn, PolicyContext(mode="rewrite")) is None


@pytest.mark.parametrize("turn", ["What are the exceptions?", "why?", "make it shorter"])
def test_a_leaning_turn_goes_to_a_rewriter_that_uses_its_history(turn: str) -> None:
    context = PolicyContext(mode="rewrite", history=HISTORY, uses_history=True)
    assert default_policy(turn, context) is None


def test_a_bare_turn_without_a_history_is_left_alone_whatever_the_rewriter() -> None:
    assert default_policy("why?", PolicyContext(mode="rewrite", uses_history=True)) == "needs the conversation"


def test_a_request_after_greetings_has_nothing_to_lean_on() -> None:
    assert not leans_on_history("Tell me about Harry Potter", ["Hi", "Hello!"])
    assert leans_on_history("Tell me more about it", ["Hi", "Hello!", "Who wrote Harry Potter?", "J. K. Rowling."])
