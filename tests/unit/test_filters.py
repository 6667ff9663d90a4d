"""Filters drop what they say, in the stated order, and the same rows whatever way they are read."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_integrations.errors import ConfigurationError
from bpo_train.data.filters import REASONS, Filters
from bpo_train.data.novelty import RESERVOIR, NearDuplicates, SelfBleu, TestSets
from bpo_train.data.preference import Preference
from bpo_train.data.sample import shares
from bpo_train.data.sources import load

OFF: dict[str, Any] = {"min_words": 0, "near_duplicates": None, "self_bleu": None}
WORDS = "river stone glass paper winter engine market garden signal copper thread harbour lantern meadow".split()


def row(text: str, id: str = "", **fields: Any) -> Preference:
    return Preference(id or text, text, "A good answer.", "A bad one.", **fields)


def reasons(filters: Filters, *rows: Preference) -> list[str | None]:
    return [reason for _, reason in filters.apply(rows)]


def varied(count: int, seed: int = 0) -> list[Preference]:
    """Rows of random words, so that no two resemble each other; two sources of two categories."""
    dice = random.Random(seed)
    return [
        row(
            " ".join(dice.choices(WORDS, k=dice.randint(1, 20))),
            str(number),
            source="ab"[number % 3 == 0],
            category="xy"[number % 2],
        )
        for number in range(count)
    ]


def test_every_row_comes_out_once_and_in_order() -> None:
    rows = varied(120)
    for filters in (Filters(), Filters(sample=40)):
        assert [kept for kept, _ in filters.apply(rows)] == rows


def test_with_everything_off_everything_is_kept() -> None:
    rows = [row("Hm", str(number)) for number in range(3)]
    assert reasons(Filters(**OFF), *rows) == [None] * 3


def test_short_prompts_are_dropped_by_words_and_a_context_counts() -> None:
    assert reasons(Filters(), row("Hey you!"), row("Translate:", context="guten Morgen"), row("東京とは何")) == [
        "too_short",
        None,
        None,
    ]


def test_only_allowed_licences_pass() -> None:
    rows = [row("a b c", licence=licence) for licence in ("MIT", "mit", "CC-BY-NC-4.0", "")]
    assert reasons(Filters(**OFF, licences=("MIT",)), *rows) == [None, None, "licence", "licence"]


def test_only_allowed_languages_pass_and_code_is_no_language() -> None:
    english = row("Tell me about the history of tea in England")
    german = row("Erzähl mir etwas über die Geschichte des Tees in England")
    chinese = row("请告诉我茶的历史，还有它是怎么传到英国的")
    code = row("x = [i ** 2 for i in range(10)]")
    assert reasons(Filters(**OFF, languages=("en",)), english, german, chinese, code) == [
        None,
        "language",
        "language",
        None,
    ]
    assert reasons(Filters(**OFF, languages=("de", "zh")), english, german, chinese) == ["language", None, None]


def test_near_duplicates_of_an_earlier_prompt_are_dropped() -> None:
    text = "Write a short story about a keeper of a lighthouse who finds a letter in a bottle on a stormy night in May"
    filters = Filters(**OFF | {"near_duplicates": 0.8})
    others = row(text.upper() + "!"), row(text + " please"), row(text.replace("letter", "ring")), row(text[:40])
    assert reasons(filters, row(text), *others) == [None, "near_duplicate", "near_duplicate", None, None]


def test_one_instruction_with_two_contexts_is_no_duplicate() -> None:
    filters = Filters(**OFF | {"near_duplicates": 0.8})
    first = row("Sum up this text", "1", context="The meeting moved from Friday to Monday at ten.")
    second = row("Sum up this text", "2", context="Basil needs six hours of sun and little water.")
    assert reasons(filters, first, second) == [None, None]


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_duplicate_of_itself(text: str) -> None:
    seen = NearDuplicates(0.8)
    assert [seen.check(text), seen.check(text)] == [False, True]


def test_self_bleu_drops_what_other_prompts_say_already() -> None:
    filters = Filters(**OFF | {"self_bleu": 0.6})
    template = "I like to host guests and gather recipes of different dishes. Give me a recipe for {}."
    rows = [row(template.format(dish)) for dish in ("Chalupa", "Kinpira", "Tinga")]
    assert reasons(filters, *rows, row("Why is the sky blue?")) == [None, "self_bleu", "self_bleu", None]


def test_self_bleu_is_that_of_sacrebleu_against_the_kept_prompts() -> None:
    from sacrebleu.metrics.bleu import BLEU

    kept = ["Tell me about the history of tea.", "What is the capital of France?"]
    check = SelfBleu(1.0)
    for text in kept:
        check.check(text)
    text = "Tell me about the capital of France."
    expected = BLEU(effective_order=True).sentence_score(text.lower(), [entry.lower() for entry in kept]).score
    assert check.score(text) * 100 == pytest.approx(expected)
    assert 0.2 < check.score(text) < 0.8


def test_self_bleu_looks_at_a_fixed_number_of_prompts() -> None:
    check = SelfBleu(1.0)
    for entry in varied(3 * RESERVOIR):
        check.check(entry.instruction)
    assert len(check._sample) == RESERVOIR
    assert set(check._sample) != {entry.instruction for entry in varied(RESERVOIR)}, "the sample moves on"


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    folder = tmp_path / "testsets"
    folder.mkdir()
    long = "Describe in your own words how the tides follow from the pull of the moon and the sun"
    (folder / "a.json").write_text(
        json.dumps([{"prompt": long, "good_res": "The moon pulls at the sea all day long."}])
    )
    (folder / "b.jsonl").write_text(
        '{"text": "How do I improve my handwriting?"}\n{"turns": ["What is love?", "Explain it to a child of six."]}\n'
    )
    return folder


def test_prompts_that_overlap_with_a_test_set_are_dropped(tests: Path) -> None:
    filters = Filters(**OFF, decontaminate=(tests,))
    dropped = [
        "I'd like you to describe, in your own words, how the tides follow from the pull of gravity",  # 13 words
        "Please tell me: how do I improve my handwriting? I am left-handed.",  # a shorter one whole
        "what is LOVE",  # a very short one, as it stands
        "explain it to a child of six",
    ]
    kept = [
        "Describe in your own words how the tides follow from the wind and the rain",  # ten words in common
        "What is love in the novels of Jane Austen?",
        "How do I improve my piano playing?",
        "The moon pulls at the sea all day long.",  # from a response
    ]
    found = reasons(filters, *map(row, dropped + kept))
    assert found == ["test_set"] * len(dropped) + [None] * len(kept)


def test_a_test_set_that_could_not_be_looked_for_is_an_error(tests: Path, tmp_path: Path) -> None:
    (tests / "c.jsonl").write_text('{"frage": "Was ist Liebe?"}\n')
    with pytest.raises(ConfigurationError, match=r"c\.jsonl holds no prompts"):
        TestSets([tests])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no test sets"):
        Filters(decontaminate=(tmp_path / "empty",)).apply([])


@pytest.mark.data
def test_a_test_set_is_found_in_itself(data_dir: Path) -> None:
    folder = data_dir / "testsets"
    prompts = [row(json.loads(line)["text"]) for line in (folder / "vicuna_eval.jsonl").read_text("utf-8").splitlines()]
    assert Counter(reasons(Filters(**OFF, decontaminate=(folder,)), *prompts)) == {"test_set": 80}


@pytest.mark.data
def test_the_defaults_leave_most_of_the_shared_preferences(data_dir: Path) -> None:
    found = Counter(reason for _, reason in Filters().apply(load(data_dir / "preferences.jsonl")))
    assert found == {None: 1163, "self_bleu": 12, "too_short": 2, "near_duplicate": 1}


def test_a_row_has_the_first_reason_in_the_stated_order(tests: Path) -> None:
    filters = Filters(licences=("MIT",), languages=("en",), decontaminate=(tests,), sample=1)
    long = "Name seven rivers of Europe and the seas that they flow into"
    rows = [
        row("Hm", licence="?"),
        row("Hm", licence="MIT"),
        row("Erzähl mir etwas über die Geschichte des Tees", licence="MIT"),
        row("What is love?", licence="MIT"),
        row(long, "1", licence="MIT"),
        row(long, "2", licence="MIT"),
        row(long.replace("rivers", "lakes"), "3", licence="MIT"),
        row("Why is the sky blue at noon?", licence="MIT"),
    ]
    found = reasons(filters, *rows)
    assert [reason for reason in REASONS if reason in found] == list(REASONS)
    assert found[:4] == ["licence", "too_short", "language", "test_set"]
    assert found[5:7] == ["near_duplicate", "self_bleu"]


def test_verdicts_do_not_depend_on_how_rows_are_chunked() -> None:
    rows = varied(100) + varied(30)

    def trickle() -> Iterator[Preference]:
        for start in range(0, len(rows), 7):
            yield from itertools.islice(rows, start, start + 7)

    assert list(Filters(seed=3).apply(trickle())) == list(Filters(seed=3).apply(rows))


@pytest.mark.parametrize("size", [1, 7, 50, 199])
def test_a_sample_has_the_size_and_the_shares_asked_for(size: int) -> None:
    rows = varied(200)
    kept = [entry for entry, reason in Filters(**OFF, sample=size).apply(rows) if reason is None]
    assert len(kept) == size
    all_of = Counter((entry.source, entry.category) for entry in rows)
    drawn = Counter((entry.source, entry.category) for entry in kept)
    assert all(abs(drawn[stratum] - size * count / 200) < 1 for stratum, count in all_of.items())


def test_a_sample_is_of_what_the_other_filters_leave() -> None:
    rows = [row("Hm", str(number)) for number in range(20)] + varied(20, seed=5)
    found = Counter(reasons(Filters(**OFF | {"min_words": 2}, sample=5), *rows))
    assert found[None] == 5
    assert found["too_short"] >= 20


def test_who_is_drawn_depends_on_ids_and_seed_not_on_order() -> None:
    rows = varied(200)

    def drawn(rows: list[Preference], seed: int) -> set[str]:
        return {entry.id for entry, reason in Filters(**OFF, sample=30, seed=seed).apply(rows) if reason is None}

    assert drawn(rows, 0) == drawn(rows[::-1], 0)
    assert drawn(rows, 0) != drawn(rows, 1)


def test_a_sample_larger_than_the_rows_is_all_of_them() -> None:
    assert reasons(Filters(**OFF, sample=9), *varied(3)) == [None] * 3


def test_a_sample_of_rows_that_can_be_read_only_once_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="only once"):
        Filters(sample=1).apply(iter(varied(3)))


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 500), min_size=1), st.integers(1, 600))
def test_shares_add_up_and_are_fair_to_the_row(counts: dict[str, int], size: int) -> None:
    due = shares(counts, size)
    total = sum(counts.values())
    assert sum(due.values()) == min(size, total)
    for stratum, count in counts.items():
        assert 0 <= due[stratum] <= count
        assert abs(due[stratum] - count * min(1, size / total)) < 1


@pytest.mark.parametrize(
    "options", [{"near_duplicates": 0}, {"self_bleu": 1.5}, {"min_words": -1}, {"sample": 0}, {"near_duplicates": 80}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="out of range"):
        Filters(**options)


def test_memory_holds_no_texts() -> None:
    dice = random.Random(0)

    def rows(count: int) -> Iterator[Preference]:
        for number in range(count):
            text = " ".join(dice.choices(WORDS, k=40))
            yield Preference(str(number), text, "y" * 100_000 + str(number), "z" * 100_000 + str(number))

    filters = Filters(self_bleu=None)
    list(filters.apply(rows(1)))  # libraries load
    tracemalloc.start()
    kept = sum(reason is None for _, reason in filters.apply(rows(300)))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept == 300
    assert most < 10_000_000  # the rows are 60 MB
