"""The figures of a data set are right, whatever its size, and its card says them in the hub's form."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_train.data import card, plots
from bpo_train.data.statistics import Distinct, Spread, summarize

PAIRS = [
    {
        "id": "1",
        "prompt": "Tell me about tea",
        "optimized_prompt": "Tell me about tea and how it is made",
        "source": "oasst",
        "licence": "Apache-2.0",
    },
    {
        "id": "2",
        "prompt": "Tell me about tea in Japan",
        "optimized_prompt": "Tell me about tea in Japan",
        "source": "oasst",
        "licence": "Apache-2.0",
    },
    {
        "id": "3",
        "prompt": "Please, please write me a poem about my cat",
        "optimized_prompt": "Write a poem about my cat",
        "source": "arena",
        "licence": "CC-BY-NC-4.0",
    },
]
SUMMARY = {
    "total": 9,
    "kept": 3,
    "dropped": 5,
    "failed": 1,
    "reasons": {"too_short": 3, "guard names": 2, "timeout": 1},
    "requests": 7,
    "tokens": 12_345,
    "seconds": 6.5,
}
GRAMS = st.lists(st.lists(st.sampled_from("abcd"), max_size=12), max_size=30)


def test_the_figures_are_those_counted_by_hand() -> None:
    found = summarize(PAIRS)
    assert found["rows"] == 3
    # before: 1 + 3 + 6 runs of four, one of them twice; after: 6 + 3 + 3, one twice
    assert found["distinct_4"] == {
        "prompt": round(9 / 10, 4),
        "optimized_prompt": round(11 / 12, 4),
        "exact": True,
    }
    assert found["words"]["prompt"] == {"mean": 6.333, "p10": 4, "median": 6, "p90": 9}
    assert found["length_ratio"] == {"mean": 1.307, "p10": 0.67, "median": 1.0, "p90": 2.25}
    assert (found["unchanged"], found["shorter"]) == (0.3333, 0.3333)
    assert found["licences"] == {"Apache-2.0": 2, "CC-BY-NC-4.0": 1}
    assert {name: part["rows"] for name, part in found["sources"].items()} == {"arena": 1, "oasst": 2}
    assert found["histograms"]["words"]["prompt"] == [(4, 1), (6, 1), (9, 1)]


def test_an_addition_counts_as_the_prompt_with_it_behind() -> None:
    found = summarize([{"prompt": "Tell me about tea.", "addition": "Be brief."}, {"prompt": "Why?", "addition": ""}])
    assert found["length_ratio"]["p90"] == 1.5
    assert found["unchanged"] == 0.5
    assert found["additions"] == {"rows": 2, "empty": 0.5, "words": {"mean": 2.0, "p10": 2, "median": 2, "p90": 2}}


def test_no_rows_give_figures_that_can_be_printed() -> None:
    assert summarize([])["rows"] == 0


@pytest.mark.data
def test_the_figures_of_the_shared_pairs_are_those_of_their_data_card(data_dir: Path) -> None:
    with (data_dir / "pairs.jsonl").open(encoding="utf-8") as lines:
        found = summarize(map(json.loads, lines))
    assert found["rows"] == 1837
    assert found["unchanged"] == round(59 / 1837, 4)
    assert found["length_ratio"]["median"] == 2.0
    assert found["licences"]["CC-BY-NC-4.0"] == 154


@given(GRAMS)
def test_distinct_is_the_share_of_unique_runs(texts: list[list[str]]) -> None:
    found = Distinct()
    for tokens in texts:
        found.add(tokens)
    runs = [tuple(tokens[start : start + 4]) for tokens in texts for start in range(len(tokens) - 3)]
    assert found.share == (len(set(runs)) / len(runs) if runs else 1.0)
    assert found.is_exact


def test_distinct_beyond_its_limit_is_close_and_says_that_it_is_estimated() -> None:
    dice = random.Random(0)
    bounded, exact = Distinct(limit=1024), Distinct()
    for _ in range(3000):
        tokens = dice.choices("abcdefghijklmno", k=12)
        bounded.add(tokens)
        exact.add(tokens)
    assert not bounded.is_exact
    assert len(bounded._seen) <= 1024
    assert bounded.share == pytest.approx(exact.share, rel=4 / 512**0.5)


@given(st.lists(st.integers(0, 300), min_size=1), st.floats(0.01, 1))
def test_quantiles_are_those_of_the_sorted_values(values: list[int], share: float) -> None:
    spread = Spread()
    for value in values:
        spread.add(value)
    found = spread.quantile(share)
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    (tmp_path / "rewrite").mkdir()
    (tmp_path / "rewrite" / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "rewrite" / "test.jsonl").write_text("")
    return tmp_path


def head_and_body(path: Path) -> tuple[dict[str, Any], str]:
    from huggingface_hub import DatasetCard

    loaded = DatasetCard.load(path)
    return loaded.data.to_dict(), loaded.text


def test_the_head_is_read_by_the_hub(folder: Path) -> None:
    head, _ = head_and_body(card.write(folder, SUMMARY, languages=("en",)))
    assert head["license"] == "other"
    assert head["size_categories"] == ["n<1K"]
    assert head["language"] == ["en"]
    assert head["configs"] == [
        {"config_name": "rewrite", "data_files": [{"split": "train", "path": "rewrite/train.jsonl"}]},
        {"config_name": "pairs", "data_files": "pairs.jsonl"},
    ], "an empty split cannot be loaded"


def test_the_head_makes_the_folder_a_data_set_that_loads(folder: Path) -> None:
    from datasets import load_dataset

    (folder / "journal.jsonl").write_text('{"something": "else"}\n')
    card.write(folder, SUMMARY)
    assert load_dataset(str(folder), "rewrite")["train"][0] == {"prompt": "a", "completion": "b"}
    assert load_dataset(str(folder), "pairs")["train"].num_rows == 3


def test_one_known_licence_is_named_in_the_head(folder: Path) -> None:
    found = summarize(PAIRS[:2])
    head, body = head_and_body(card.write(folder, SUMMARY, found))
    assert head["license"] == "apache-2.0"
    assert "Not for commercial use" not in body


def test_the_body_has_the_figures_and_warns_of_the_part_that_is_not_commercial(folder: Path) -> None:
    _, body = head_and_body(card.write(folder, SUMMARY, name="my-feedback"))
    assert "# my-feedback" in body
    assert "**Not for commercial use:** 1 of 3 rows" in body
    assert "| distinct-4 | 0.900 | 0.917 |" in body
    assert "| too_short | 3 |" in body
    assert "7 requests, 12,345 tokens, 6.5 seconds" in body
    assert "| oasst | 2 |" in body
    assert body.index("Not for commercial") < body.index("## Before and after")


def test_an_unknown_licence_is_warned_of(folder: Path) -> None:
    found = summarize([{"prompt": "a", "optimized_prompt": "b"}])
    assert "**Licence unknown:** 1 of 1 rows" in card.write(folder, SUMMARY, found).read_text()


@pytest.mark.parametrize(
    ("licence", "barred"),
    [("CC-BY-NC-4.0", True), ("cc-by-nc-sa-3.0", True), ("Non-commercial", True), ("MIT", False), ("NCSA", False)],
)
def test_licences_that_bar_commerce_are_known_by_name(licence: str, barred: bool) -> None:
    assert card.is_non_commercial(licence) == barred


def test_a_table_stands_whatever_its_cells_hold() -> None:
    assert card.table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


def test_the_plots_are_pictures_and_the_card_shows_each(folder: Path) -> None:
    body = card.write(folder, SUMMARY).read_text()
    shown = re.findall(r"!\[[^]]+\]\((.+?)\)", body)
    assert shown == ["length_ratio.png", "words.png", "outcomes.png"]
    for name in shown:
        assert (folder / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_same_figures_give_the_same_files(folder: Path) -> None:
    def files() -> dict[str, bytes]:
        card.write(folder, SUMMARY)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    assert files() == files()


def test_a_run_that_kept_nothing_still_has_a_card(folder: Path) -> None:
    body = card.write(
        folder, {"total": 1, "kept": 0, "dropped": 1, "reasons": {"licence": 1}}, summarize([])
    ).read_text()
    assert "| kept | 0 |" in body
    assert "words.png" not in body


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 9))))
def test_every_value_falls_into_one_bar(histogram: list[tuple[float, int]]) -> None:
    for bounds in (plots.RATIO_BINS, plots.WORD_BINS):
        assert sum(plots.binned(histogram, bounds)) == sum(count for _, count in histogram)
