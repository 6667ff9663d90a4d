"""Halves that share no prompt, whatever the pairs; lengths that are balanced; files that come back as they were."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_integrations.errors import ConfigurationError
from bpo_train.baselines.split import Pair, divide, length_balanced, read_pairs, write_pairs
from bpo_train.data.words import words
from bpo_train.evaluation.testsets import load_testsets

TESTSETS = {"vicuna_eval": ".jsonl", "self_instruct_eval": ".json", "dolly_eval": ".json", "bpo_test": ".json"}

PAIRS = st.lists(
    st.builds(
        Pair,
        id=st.uuids().map(str),
        prompt=st.sampled_from(["Why?", "why", "WHY ?", "How so?", "How, so", "??", "!!", "When", "Where"]),
        chosen=st.text(alphabet="ab ", max_size=9),
        rejected=st.text(alphabet="ab ", max_size=9),
        source=st.sampled_from(["a", "b", "c"]),
    ),
    max_size=40,
)


@given(PAIRS, st.floats(0, 1), st.integers(0, 3))
def test_no_prompt_is_on_two_sides_and_no_pair_is_lost(pairs: list[Pair], share: float, seed: int) -> None:
    first, second = divide(pairs, share, seed=seed)
    assert not {pair.key for pair in first} & {pair.key for pair in second}
    assert sorted(first + second, key=id) == sorted(pairs, key=id)
    assert (first, second) == divide(pairs, share, seed=seed)


def test_every_source_is_divided_by_the_same_share() -> None:
    pairs = [Pair(str(number), f"What is {number}?", "a", "b", source="abc"[number % 3]) for number in range(300)]
    first, _ = divide(pairs, 0.5)
    assert Counter(pair.source for pair in first) == {"a": 50, "b": 50, "c": 50}
    assert first != divide(pairs, 0.5, seed=1)[0]


@given(PAIRS)
def test_balanced_pairs_prefer_the_longer_as_often_as_the_shorter(pairs: list[Pair]) -> None:
    found = length_balanced(pairs)
    assert set(found) == set(pairs)
    counts = Counter(pair.chosen_is_longer for pair in found)
    if len({pair.chosen_is_longer for pair in pairs}) == 2:
        assert counts[True] == counts[False]


@pytest.mark.data
def test_the_preferences_divide_into_halves_that_are_even_by_source(data_dir: Path) -> None:
    pairs = read_pairs(data_dir / "preferences.jsonl")
    first, second = divide(pairs, 0.5)
    assert len(pairs) == 1178
    assert not {pair.key for pair in first} & {pair.key for pair in second}
    counts, others = (Counter(pair.source for pair in half) for half in (first, second))
    assert all(abs(counts[source] - others[source]) <= 3 for source in counts | others)


@pytest.mark.data
def test_no_prompt_of_the_four_test_sets_is_among_the_preferences(data_dir: Path) -> None:
    known = {pair.key for pair in read_pairs(data_dir / "preferences.jsonl")}
    prompts = load_testsets([str(data_dir / "testsets" / f"{name}{end}") for name, end in TESTSETS.items()])
    assert len(prompts) == 732
    assert not {" ".join(words(text)) for one in prompts for text in (one.prompt, one.instruction)} & known


def test_pairs_come_back_as_they_were_written_and_other_names_are_understood(tmp_path: Path) -> None:
    pairs = [Pair("1", "Why?", "Because.", "No.\n", "mine"), Pair("2", "How?", "So.", "", "")]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs
    for better, worse in (("chosen", "rejected"), ("good_res", "bad_res")):
        (tmp_path / "other.jsonl").write_text(json.dumps({"prompt": "Why?", better: "a", worse: "b"}))
        assert read_pairs(tmp_path / "other.jsonl") == [Pair("1", "Why?", "a", "b")]


@pytest.mark.parametrize("row", [{"instruction": "Why?"}, {"instruction": "", "good_res": "a", "bad_res": "b"}])
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, row: dict[str, str]) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigurationError, match=r"pairs\.jsonl, row 1: no preference pair"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_a_file_without_a_pair_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(ConfigurationError, match="holds no preference pair"):
        read_pairs(tmp_path / "pairs.jsonl")
