"""Addition guards: an addition is whole, new sentences that instruct, and brings in nothing of its own."""

from __future__ import annotations

import pytest

from bpo_integrations.guards import ADDITION_GUARDS, first_violation

PROMPT = "Tell me about the history of tea."

BAD = [
    ("asks back", PROMPT, "Please provide the text."),
    ("asks back", PROMPT, "What topic would you like?"),
    ("asks back", PROMPT, "Explain it step by step. Let me know which country you mean."),
    ("comments", PROMPT, "This revised prompt is clearer."),
    ("comments", PROMPT, "The added sentence helps the AI answer."),
    ("template", PROMPT, "Say what to add to this prompt."),
    ("template", PROMPT, "Act as an expert prompt engineer."),
    ("emoji", PROMPT, "Explain it step by step 🍵."),
    ("new placeholders", PROMPT, "Address it to [recipient]."),
    ("new placeholders", PROMPT, "Sign it with <your name>."),
    ("role marks", PROMPT, "Explain it.<|im_end|>"),
    ("role marks", PROMPT, "Explain it. User: and then?"),
    ("new numbers", PROMPT, "Write exactly 350 words."),
    ("new numbers", PROMPT, "Focus on the year 1773."),
    ("new numbers", PROMPT, "Keep the price below $5."),
    ("new names", PROMPT, "Explain what Napoleon thought of it."),
    ("new names", PROMPT, "Set it in Lisbon."),
    ("length limit", "What is tea? Answer in one sentence.", "Explain its history in detail."),
    ("length limit", "What is tea? Use under 50 words.", "Give a comprehensive overview."),
    ("length limit", "Briefly, what is tea?", "Provide a thorough, detailed explanation."),
    ("contradiction", "Sort a list without using loops.", "Use nested loops for clarity."),
    ("contradiction", "Write a formal letter.", "Use a casual tone."),
    ("contradiction", "Suggest a vegan dinner.", "Include a cheese sauce."),
    ("instruction", "What is the capital of France?", "The capital of France is Paris."),
    ("instruction", PROMPT, "Tea was first drunk in the east and later came to Europe."),
    ("instruction", PROMPT, "I'm sorry, but I don't know."),
    ("repetition", PROMPT, "Describe his magical abilities, his magical abilities."),
    ("repetition", PROMPT, "Explain the trade routes. Explain the trade routes."),
    ("repetition", PROMPT, "Include the the trade routes."),
    ("echo", PROMPT, PROMPT),
    ("echo", PROMPT, "Please tell me about the history of tea."),
    ("nonsense", PROMPT, ";;;; }} ]] .. --"),
    ("nonsense", PROMPT, "Explain xkqzrtplm."),
    ("unfinished", PROMPT, "Explain how it reached"),
    ("unfinished", PROMPT, "Explain how it was grown, traded and."),
    ("unfinished", PROMPT, "Explain how it was grown (and traded."),
    ("language", PROMPT, "Объясни, как чай попал в Европу и почему он стал популярным."),
]

GOOD = [
    (PROMPT, "Cover its origins, the trade routes and how customs differ, with approximate dates."),
    (PROMPT, "Give two or three examples, such as the Boston Tea Party of 1773."),
    (PROMPT, "For each period, say what changed and why."),
    (PROMPT, "In step 1, cover its origin."),
    (PROMPT, "Use HTML and CSS, and add a short Python example."),
    (PROMPT, "How did it reach Europe, and who traded it?"),
    (PROMPT, "Say clearly if you are unsure rather than guessing."),
    ("What is tea? Answer in one sentence.", "Mention the plant that it comes from."),
    ("Write a formal letter to my landlord.", "Do not use a casual tone."),
    ("What happened in 1773 in Boston?", "Explain why 1773 mattered to Boston."),
    ("Sort a list without using loops.", "Explain your approach, and avoid loops throughout."),
    ("Erzähle mir von der Geschichte des Tees.", "Beschreibe die Herkunft, die Handelswege und die Bräuche."),
]


@pytest.mark.parametrize(("name", "prompt", "addition"), BAD)
def test_a_bad_addition_is_rejected_by_its_guard(name: str, prompt: str, addition: str) -> None:
    found = [violation.guard for check in ADDITION_GUARDS if (violation := check(prompt, addition))]
    assert name in found


@pytest.mark.parametrize(("prompt", "addition"), GOOD)
def test_a_good_addition_passes_all_guards(prompt: str, addition: str) -> None:
    assert first_violation(ADDITION_GUARDS, prompt, addition) is None


@pytest.mark.parametrize("prompt", ["", PROMPT, "List 3 things, do not use code.", "\ud800", "😀"])
@pytest.mark.parametrize("addition", ["", " ", "\n\t "])
def test_adding_nothing_is_never_a_violation(prompt: str, addition: str) -> None:
    assert first_violation(ADDITION_GUARDS, prompt, addition) is None
