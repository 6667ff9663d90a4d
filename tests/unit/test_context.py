"""The context goes back by the paper's rules: the same form on both sides, chosen by the row's id alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bpo_train.data.context import Form, choose, put_back

TEXT = st.text(min_size=1, max_size=40).filter(lambda text: text.strip())
SHARES = {
    "instr\nctx": 0.25,
    "ctx\ninstr": 0.25,
    "instr ctx": 0.0625,
    "ctx instr": 0.0625,
    'instr "ctx"': 0.1875,
    '"ctx" instr': 0.1875,
}


def test_the_forms_are_dealt_by_the_shares_of_the_paper() -> None:
    rows = 20_000
    dealt = Counter(put_back("instr", "better", "ctx", id=str(number))[0] for number in range(rows))
    assert set(dealt) == set(SHARES)
    for form, share in SHARES.items():
        four_errors = 4 * (share * (1 - share) / rows) ** 0.5
        assert dealt[form] / rows == pytest.approx(share, abs=four_errors), form


@given(TEXT, TEXT, TEXT, st.text(), st.integers())
def test_both_sides_have_the_same_form(instruction: str, optimized: str, context: str, id: str, seed: int) -> None:
    assume(context.lower() not in optimized.lower())
    prompt, better = put_back(instruction, optimized, context, id=id, seed=seed)
    forms = [form for form in Form if form.write(instruction, context) == prompt]
    assert better in {form.write(optimized, context) for form in forms}


@given(TEXT, TEXT, TEXT, st.text())
def test_nothing_is_lost_but_space_at_the_ends(instruction: str, optimized: str, context: str, id: str) -> None:
    prompt, better = put_back(instruction, optimized, context, id=id)
    assert instruction.strip() in prompt
    assert context.strip() in prompt
    assert optimized.strip() in better
    assert context.lower().strip() in better.lower()


@given(TEXT, TEXT, TEXT, st.text(), st.integers())
def test_a_row_gets_the_same_form_whatever_came_before(a: str, b: str, context: str, id: str, seed: int) -> None:
    first = put_back(a, b, context, id=id, seed=seed)
    put_back("other", "other", "other", id="other", seed=seed)
    assert put_back(a, b, context, id=id, seed=seed) == first


def test_another_seed_deals_other_forms() -> None:
    forms = {seed: [choose("a", "b", id=str(number), seed=seed) for number in range(50)] for seed in (0, 1)}
    assert forms[0] != forms[1]


@pytest.mark.parametrize(
    ("instruction", "optimized"),
    [("Sum up the following", "Sum up"), ("Sum up", "Sum up what follows"), ("Sum up:", "Sum up in two sentences")],
)
def test_it_stands_below_where_the_wording_asks_for_it(instruction: str, optimized: str) -> None:
    for number in range(50):
        assert put_back(instruction, optimized, "tea", id=str(number)) == (
            f"{instruction}\ntea",
            f"{optimized}\ntea",
        )


def test_only_the_colon_of_the_original_counts() -> None:
    assert len({choose("Sum up", "Sum up:", id=str(number)) for number in range(200)}) == len(Form)


def test_an_improved_instruction_that_holds_the_context_stays_as_it_is() -> None:
    found = put_back("Is it a bird", "Is the PENGUIN a bird or a mammal?", "penguin", id="1")
    assert found == ("Is it a bird\npenguin", "Is the PENGUIN a bird or a mammal?")


@pytest.mark.parametrize("context", [None, "", " \n"])
def test_without_a_context_nothing_changes(context: str | None) -> None:
    assert put_back(" a ", "b\n", context, id="1") == (" a ", "b\n")


def test_braces_in_the_texts_stay_text() -> None:
    assert put_back("Fill {context}:", "Fill {instruction} {0}:", "{context}{}", id="1") == (
        "Fill {context}:\n{context}{}",
        "Fill {instruction} {0}:\n{context}{}",
    )
