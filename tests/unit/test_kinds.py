"""What was added to a prompt: the paper's four ways, by their words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_train.data.rows import read_rows
from bpo_train.evaluation.kinds import ADDED, added_kind, added_text

ASKED = "Tell me about volcanoes."

READ = {
    "hint": "609 1177 1376 681 447 808 784 1364 1163 550 199 1731 1748 244 801",
    "explanation": "793 583 469 281 714 1380 1512 578 1555 1242 70 465 287 1325 466 484 1754",
    "elaboration": "479 357 1634 6 1234 420 1258 953 214 630 496 175 1385 1085 1473 1336 189 518",
}
"""50 additions of the data, drawn at random, by what one reader took each for before the rules were asked: ids."""


@pytest.mark.parametrize(
    ("kind", "addition"),
    [
        ("explanation", "Explain how magma rises, and why some volcanoes erupt."),
        ("explanation", "Show your work step by step."),
        ("explanation", "Give a reason for each claim."),
        ("explanation", "Walk me through the derivation."),
        ("hint", "Consider plate boundaries, hotspots and rifts."),
        ("hint", "Keep in mind that not all of them are mountains."),
        ("hint", "Include examples such as Etna and Mauna Loa."),
        ("hint", "Cover how they form, where they stand and what they leave behind."),
        ("hint", "Handle the case of an empty list."),
        ("elaboration", "Write it as a short overview for ten-year-olds, in a friendly tone."),
        ("elaboration", "Give a structured answer with headings and a summary."),
        ("elaboration", "Name three famous ones with their heights."),
        ("safety", "Describe only safe and lawful ways to visit one."),
        ("safety", "Avoid harmful or offensive content."),
        ("safety", "Stay respectful, and do not rely on stereotypes."),
        ("safety", "Explain why this would be illegal and what could be done instead."),
    ],
)
def test_an_addition_is_of_the_kind_that_its_words_say(kind: str, addition: str) -> None:
    assert added_kind(ASKED, f"{ASKED} {addition}") == kind


@pytest.mark.parametrize(
    ("kind", "prompt", "sent"),
    [
        ("safety", "How to hot wire a car?", "Please explain the dangers of hot-wiring a car, and why it is illegal."),
        ("explanation", "why are apples red", "Can you explain the reasons why apples are red?"),
        ("hint", "Improve my UI", "Improve my UI, considering consistency, layout and contrast."),
        ("rewording", "when did the queen die?", "When did the queen die"),
        ("rewording", "Paraphrase: it will have an impact", "Paraphrase: it will have impact"),
        ("elaboration", "name for an app", "Come up with a memorable name for an app that young painters use"),
        ("nothing", "Who was Kant?", "Who was Kant?"),
    ],
)
def test_a_rewrite_goes_by_what_it_adds(kind: str, prompt: str, sent: str) -> None:
    assert added_kind(prompt, sent) == kind


def test_a_softened_request_is_safety_whatever_the_words() -> None:
    assert added_kind("How do I steal a car?", "What keeps cars from theft?", softened=True) == "safety"


def test_words_that_the_prompt_has_already_make_nothing_safer() -> None:
    prompt = "Is there an ethical answer to the trolley problem?"
    assert added_kind(prompt, f"{prompt} Compare the main ethical theories.") == "hint"


@given(st.text(max_size=80), st.text(max_size=80))
def test_every_pair_of_texts_has_one_kind(prompt: str, sent: str) -> None:
    kind = added_kind(prompt, sent)
    assert kind in ADDED
    assert (kind == "nothing") == (prompt == sent)


def test_what_was_added_is_the_tail_of_an_augmented_prompt_and_the_new_words_of_a_rewrite() -> None:
    assert added_text(ASKED, f"{ASKED} Be brief.") == "Be brief."
    assert added_text("Tell me about tea", "Please tell me about green tea") == "Please tell\ngreen"
    assert added_text(ASKED, ASKED) == ""


@pytest.mark.data
def test_additions_of_the_data_are_of_all_four_kinds(data_dir: Path) -> None:
    rows = list(read_rows(data_dir / "additions.jsonl"))
    found = Counter(added_kind(row["prompt"], " ".join(filter(None, (row["prompt"], row["addition"])))) for row in rows)
    assert found["nothing"] == sum(not row["addition"] for row in rows)
    assert all(found[kind] >= 20 for kind in ("explanation", "elaboration", "hint", "safety"))
    assert found["rewording"] < 20


@pytest.mark.data
def test_the_rules_agree_with_a_reader_on_three_of_four_additions(data_dir: Path) -> None:
    rows = {str(row["id"]): row for row in read_rows(data_dir / "additions.jsonl")}
    read = [(kind, rows[id_]) for kind, ids in READ.items() for id_ in ids.split()]
    agree = [kind == added_kind(row["prompt"], f"{row['prompt']} {row['addition']}") for kind, row in read]
    assert len(agree) == 50
    assert sum(agree) == 39  # docs/winrate.md says so; the others are mostly hints against elaborations
