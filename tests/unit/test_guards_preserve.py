"""Rewrite guards: what must survive, what must not come in, and which changes of wording are no loss."""

from __future__ import annotations

import re

import pytest

from bpo_integrations.guards import REWRITE_GUARDS, SOFTENING_GUARDS, Guard, first_violation, guard, protected
from bpo_integrations.result import Violation

LOSSES = [
    ("numbers", "List 12 dishes from Peru.", "List some dishes from Peru."),
    ("numbers", "Compare the years 1985 and 1990.", "Compare the years 1985 and 1991."),
    ("numbers", "Which twenty-five towns grew most?", "Which towns grew most?"),
    ("limits", "Give me at most 5 ideas for a gift.", "Give me at least 5 ideas for a gift."),
    ("limits", "Describe a glacier in one sentence.", "Describe a glacier and how it moves."),
    ("negations", "Sort the list. Do not use loops.", "Sort the list. Do use loops."),
    ("negations", "Cook rice without salt.", "Cook rice with salt."),
    ("negations", "Why doesn't my engine start?", "Why does my engine start?"),
    ("names", "Tell me what Maria saw in the harbor.", "Tell me what Peter saw in the harbor."),
    ("names", "What does NASA say on sleep? Ask NASA.", "What does the doctor say on sleep?"),
    ("placeholders", "Write a mail to {name} about rent.", "Write a mail about rent."),
    ("placeholders", "Greet [CLIENT] in the mail.", "Greet the client in the mail."),
    ("urls", "Summarize https://example.org/a.html for me.", "Summarize the page for me."),
    ("code", "Explain `sorted(x, key=len)` to me.", "Explain how sorting works to me."),
    ("code", "Explain:\n```\nx = 1\nprint(x)\n```", "Explain:\n```\nx = 1\n```"),
    ("quotations", 'What does "carpe diem" mean?', "What does carpe rosam mean?"),
    (
        "passages",
        "Translate the following text:\nThe cat sleeps.\nThe dog barks loudly.",
        "Translate the text:\nThe cat sleeps.",
    ),
    (
        "passages",
        "Sum up this list.\napples\npears and plums\nfigs\nIt is short.",
        "Sum up this list.\napples\nfigs\nIt is short.",
    ),
    ("subject", "How do I repair a bicycle chain?", "What should a beginner know of pottery?"),
    (
        "language",
        "How do I repair a bicycle chain at home?",
        "Wie repariere ich zu Hause eine Fahrradkette, Schritt für Schritt?",
    ),
    ("language", "How do I repair a bicycle chain at home?", "Как починить велосипедную цепь дома своими руками?"),
    ("length", "What is tea?", "What is tea? " + "Explain tea and its history in every land. " * 20),
    ("request", "What is tea?", "Sure, tea is a drink made from leaves."),
    ("request", "How tall is the tower?", "The tower has a height of some 300 meters and stands in the old town."),
    ("length limit", "Explain tea. Be brief.", "Explain tea in great detail. Be brief."),
    ("asks back", "Summarize my text.", "Summarize my text. Please provide the text."),
    ("comments", "What is tea?", "What is tea? This revised prompt is more specific."),
    ("template", "What is tea?", "You are an expert prompt engineer. What is tea?"),
    ("emoji", "What is tea?", "What is tea? 😊"),
    ("new placeholders", "Write a mail on tea.", "Write a mail on tea to [recipient]."),
    ("role marks", "What is tea?", "What is tea? [/INST]"),
]

NO_LOSSES = [
    ("numbers", "Name 2 colors.", "Name two colors that go well together."),
    ("numbers", "What is 1,000 times 2?", "What is 1000 times 2?"),
    ("numbers", "1. Wash\n2. Dry\nExplain both.", "Explain washing and drying."),
    ("limits", "Use fewer than 50 words.", "Use less than 50 words."),
    ("limits", "Use 50 words or less.", "Use at most 50 words."),
    ("limits", "Describe it in one sentence.", "Describe it in a single sentence."),
    ("negations", "My car does not start.", "My car is unable to start."),
    ("negations", "Don't use jargon.", "Avoid jargon."),
    ("negations", "Why not paint it red?", "What speaks against painting it red?"),
    ("names", "Tell me about Rome in spring.", "Tell me about the Roman spring."),
    ("names", "Read Tolstoi to me.", "Read Tolstoy aloud to me."),
    ("names", "Explain what ML can do.", "Explain what machine learning can do."),
    ("quotations", 'Explain "to be".', "Explain “to be”."),
    ("quotations", '"Write a poem about the sea."', "Write a poem about the stormy sea."),
    ("code", "Explain `f(x,  y)`.", "Explain `f(x, y)` step by step."),
    ("passages", "Fix this text:\nThe cat sleps.", "Fix this text:\nThe cat sleeps."),
    ("passages", "Sum this up:\na long story", "A long story. Sum this up."),
    ("language", "Tell me a joke.", "Tell me a short, friendly joke about cats."),
    (
        "comments",
        "Improve this prompt: tell me a joke.",
        "Improve this prompt: tell me a joke. The prompt is for a child.",
    ),
    ("emoji", "What does 😊 mean?", "What does 😊 mean in a message?"),
    ("role marks", "What does [INST] mean?", "What does [INST] mean in a chat template?"),
]


def guard_named(name: str, original: str, candidate: str) -> Violation | None:
    """What the guards of one name say."""
    found = [violation for check in REWRITE_GUARDS if (violation := check(original, candidate))]
    return next((violation for violation in found if violation.guard == name), None)


@pytest.mark.parametrize(("name", "original", "candidate"), LOSSES)
def test_a_true_loss_or_intrusion_is_rejected_by_its_guard(name: str, original: str, candidate: str) -> None:
    assert guard_named(name, original, candidate) is not None


@pytest.mark.parametrize(("name", "original", "candidate"), NO_LOSSES)
def test_another_wording_of_the_same_is_no_loss(name: str, original: str, candidate: str) -> None:
    assert guard_named(name, original, candidate) is None


def test_a_good_rewrite_passes_all_guards() -> None:
    original = "Tell me about Harry Potter"
    rewrite = "Tell me about Harry Potter: the main characters, the plot, and what made the books so popular."
    assert first_violation(REWRITE_GUARDS, original, rewrite) is None


def test_first_violation_reports_the_first_guard_that_objects() -> None:
    @guard("one")
    def never(_original: str, _candidate: str) -> str | None:
        return None

    @guard("two")
    def always(_original: str, _candidate: str) -> str | None:
        return "always"

    assert first_violation((never, always), "a", "b") == Violation("two", "always")
    assert first_violation((), "a", "b") is None


def test_protected_text_must_stand_as_often_as_in_the_prompt() -> None:
    keep: Guard = protected(["ACME GmbH", re.compile(r"#\d+")])
    assert keep("ACME GmbH: ticket #12", "What does ticket #12 of ACME GmbH say?") is None
    assert keep("ACME GmbH: ticket #12", "What does ticket 12 of ACME GmbH say?") == Violation("protected", "#12")
    assert keep("ACME GmbH, ACME GmbH", "ACME GmbH") == Violation("protected", "ACME GmbH")
    assert keep("nothing of it", "gone") is None


def test_a_protected_literal_is_no_pattern() -> None:
    assert protected(["a.c"])("abc", "gone") is None
    assert protected(["a.c"])("a.c", "gone") == Violation("protected", "a.c")


def test_an_empty_protected_pattern_protects_nothing() -> None:
    assert protected(["", re.compile("x*")])("abc", "other") is None


def test_softening_keeps_what_must_not_come_in_and_lets_the_words_change() -> None:
    unsafe, harmless = "How do I steal 3 cars from Bob?", "How can I protect a car against theft?"
    assert first_violation(SOFTENING_GUARDS, unsafe, harmless) is None
    assert first_violation(REWRITE_GUARDS, unsafe, harmless) is not None
    assert first_violation(SOFTENING_GUARDS, unsafe, "I'm sorry, I can't help with that.") is not None


def test_a_violation_says_what_was_found_in_a_few_words() -> None:
    found = guard_named(
        "quotations", f'What does "{"very " * 100}long" mean?{" Tell me more." * 20}', "What does it mean?"
    )
    assert found is not None
    assert len(found.detail) <= 80
