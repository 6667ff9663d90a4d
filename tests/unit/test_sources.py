"""Each source in its true layout becomes preferences; what cannot be used is counted; files are read as they are."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_integrations.errors import ConfigurationError
from bpo_train.data.checked import SKIPS
from bpo_train.data.layouts import LAYOUTS, recognise
from bpo_train.data.preference import Preference
from bpo_train.data.rows import read_rows
from bpo_train.data.sources import load

FILES = Path(__file__).parents[1] / "data" / "sources"


def read(path: str | Path, **options: Any) -> tuple[list[Preference], Counter[str]]:
    source = load(FILES / path, **options)
    return list(source), source.skips


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["oasst1_messages.jsonl", "oasst1_trees.jsonl"])
def test_oasst_pairs_the_best_ranked_reply_to_the_first_turn_with_the_worst(name: str) -> None:
    rows, skips = read(name)
    assert [row.id for row in rows] == ["oasst:t1", "oasst:t2"]
    assert rows[0].instruction == "How do I keep basil alive in a pot?"
    assert rows[0].good_res.endswith("so that it branches.")
    assert rows[0].bad_res == "Just water it lol", "a deleted reply is no candidate, though it is ranked lower"
    assert (rows[1].category, rows[1].licence) == ("de", "Apache-2.0")
    assert skips == {"unranked": 1, "withdrawn": 1}


def test_a_message_apart_from_its_tree_is_counted_rather_than_lost(tmp_path: Path) -> None:
    messages = [json.loads(line) for line in (FILES / "oasst1_messages.jsonl").read_text("utf-8").splitlines()]
    source = load(write_lines(tmp_path / "torn.jsonl", [*messages, messages[1]]))
    assert len(list(source)) == 2
    assert source.skips["scattered"] == 1


def test_hh_rlhf_takes_single_turns_and_counts_the_rest() -> None:
    (row,), skips = read("hh_rlhf.jsonl")
    assert row.instruction == "How can I get a stain of ink out of a shirt?"
    assert (row.good_res[:3], row.bad_res, row.licence) == ("Dab", "You can’t.", "MIT")
    assert skips == {"multi_turn": 1, "empty": 1, "same": 1}


def test_arena_gives_the_winner_as_the_preferred_response_and_drops_ties() -> None:
    rows, skips = read("arena.jsonl")
    assert [(row.id, row.good_res[:7], row.bad_res[:7]) for row in rows] == [
        ("arena:58210e39", "Weather", "They ar"),
        ("arena:2cb1c7d0", "Un poem", "Un tipo"),
    ]
    assert {row.licence for row in rows} == {"CC-BY-NC-4.0"}
    assert skips == {"tie": 2, "multi_turn": 1}


def test_alpaca_gpt4_takes_only_rows_where_gpt4_beats_davinci_and_keeps_the_input_apart() -> None:
    rows, skips = read("comparison_data_v2.json")
    assert [(row.instruction, row.context) for row in rows] == [
        ("Give three tips for a good night's sleep.", None),
        ("Classify the animal as a mammal or a bird.", "Penguin"),
    ]
    assert (rows[1].good_res, rows[1].bad_res) == ("A penguin is a bird.", "Mammal.")
    assert skips == {"other_model": 2, "tie": 1}


def test_alpaca_comparisons_of_two_outputs_are_read_better_one_first(tmp_path: Path) -> None:
    rows = [{"instruction": "Add", "input": "1 and 2", "output": ["3", "12"]}]
    (row,) = load(write_lines(tmp_path / "pairs.jsonl", rows))
    assert (row.instruction, row.context, row.good_res, row.bad_res) == ("Add", "1 and 2", "3", "12")


def test_ultrafeedback_goes_by_the_mean_of_its_aspects_not_by_the_overall_score() -> None:
    (row,), skips = read("ultrafeedback.jsonl")
    assert row.good_res.startswith("The rider steers")
    assert row.bad_res == "It has wheels.", "its overall score is the highest: one of the wrong ones"
    assert row.category == "evol_instruct"
    assert skips == {"tie": 1, "unranked": 1}


def test_binarized_ultrafeedback_is_a_preference_data_set_with_scores() -> None:
    (row,), skips = read("ultrafeedback_binarized.jsonl")
    assert (row.instruction, row.good_res, row.bad_res) == (
        "Suggest a title for a story about a lighthouse.",
        "The Last Lamp",
        "Story",
    )
    assert skips == {"tie": 1}


@pytest.mark.parametrize(
    ("name", "skips"),
    [("trl_explicit.jsonl", {"same": 1}), ("trl_chat.jsonl", {"multi_turn": 1}), ("trl_implicit.jsonl", {})],
)
def test_trl_preferences_are_read_as_text_as_chat_and_with_the_prompt_left_out(
    name: str, skips: dict[str, int]
) -> None:
    (row,), skipped = read(name)
    assert (row.instruction, row.good_res, row.bad_res) == ("What colour is the sky?", "Blue by day.", "Green.")
    assert skipped == skips


def test_an_implicit_text_prompt_cannot_be_told_from_the_answers_and_is_counted(tmp_path: Path) -> None:
    source = load(write_lines(tmp_path / "a.jsonl", [{"chosen": "The sky is blue.", "rejected": "The sky is green."}]))
    assert list(source) == []
    assert source.skips == {"no_prompt": 1}


def test_a_transcript_as_prompt_gives_its_one_question(tmp_path: Path) -> None:
    row = {"prompt": "\n\nHuman: Is tea healthy?\n\nAssistant:", "chosen": " Yes, in moderation.", "rejected": " No."}
    (found,) = load(write_lines(tmp_path / "a.jsonl", [row]))
    assert found.instruction == "Is tea healthy?"


def test_our_own_schema_comes_back_as_it_was() -> None:
    rows, _ = read("own.jsonl")
    assert rows[1] == Preference(
        id="8",
        instruction="Summarise:",
        good_res="Meeting on Monday.",
        bad_res="A meeting.",
        context="The meeting moved to Monday.",
        source="support",
        licence="MIT",
        category="summary",
    )


@pytest.mark.data
def test_the_shared_preferences_are_read_whole(data_dir: Path) -> None:
    source = load(data_dir / "preferences.jsonl")
    rows = list(source)
    assert len(rows) == 1178
    assert len({row.id for row in rows}) == 1178
    assert not source.skips


def test_every_way_to_store_the_rows_gives_the_same_preferences(tmp_path: Path) -> None:
    expected, _ = read("own.jsonl")
    raw = list(read_rows(FILES / "own.jsonl"))
    text = (FILES / "own.jsonl").read_bytes()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    (tmp_path / "array.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    (tmp_path / "lines.json").write_bytes(text)
    with gzip.open(tmp_path / "array.json.gz", "wt", encoding="utf-8") as file:
        json.dump(raw, file)
    fields = list(dict.fromkeys(field for row in raw for field in row))
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, fields)
        writer.writeheader()
        writer.writerows(raw)
    import pyarrow as pa
    from pyarrow import parquet

    columns = pa.table({field: [row.get(field) for row in raw] for field in fields})
    parquet.write_table(columns, tmp_path / "rows.parquet", row_group_size=1)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for file in files:
        assert list(load(file)) == expected, file.name


@pytest.mark.parametrize("name", ["arena.jsonl", "ultrafeedback.jsonl", "oasst1_messages.jsonl"])
def test_nested_rows_survive_parquet_and_a_folder_read_by_datasets(name: str, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    expected, skips = read(name)
    folder = tmp_path / "dataset" / "data"
    folder.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(list(read_rows(FILES / name))), folder / "train-00000-of-00001.parquet")
    for spec in (folder / "train-00000-of-00001.parquet", tmp_path / "dataset"):
        source = load(spec)
        assert list(source) == expected
        assert source.skips == skips


def test_a_folder_with_other_splits_names_them(tmp_path: Path) -> None:
    for split in ("validation", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes((FILES / "own.jsonl").read_bytes())
    with pytest.raises(ConfigurationError, match=r"several splits.*test"):
        list(load(tmp_path))
    assert len(list(load(tmp_path, split="test"))) == 2
    with pytest.raises(ConfigurationError, match="no split 'train'"):
        list(load(tmp_path, split="train"))


def test_the_same_row_twice_is_counted_and_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    source = load(FILES / "own.jsonl", FILES / "own.jsonl")
    assert [row.id for row in source] == ["7", "8"]
    assert source.skips == {"repeated": 2}
    raw = list(read_rows(FILES / "own.jsonl"))
    raw[1]["id"] = raw[0]["id"]
    with pytest.raises(ConfigurationError, match="two different rows have the id 7"):
        list(load(write_lines(tmp_path / "twice.jsonl", raw)))


def test_ids_made_of_the_content_do_not_depend_on_order(tmp_path: Path) -> None:
    raw = list(read_rows(FILES / "arena.jsonl"))
    for row in raw:
        del row["question_id"]
    forth = {row.id: row for row in load(write_lines(tmp_path / "a.jsonl", raw))}
    back = {row.id: row for row in load(write_lines(tmp_path / "b.jsonl", raw[::-1]))}
    assert forth == back
    assert len(forth) == 2


def test_a_source_can_be_read_again_and_counts_anew() -> None:
    source = load(FILES / "arena.jsonl")
    assert list(source) == list(source)
    assert source.skips == {"tie": 2, "multi_turn": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.jsonl", '{"id": 1, "good_res"', "line 1: not JSON"),
        ("cut.json", '[{"good_res": "a", "bad_res": "b"}, {"good', "not JSON after row 1"),
        ("list.jsonl", "[1]\n[2]", "not a JSON object"),
        ("numbers.json", "[1, 2]", "row 1: not a JSON object"),
        ("short.csv", "instruction,good_res,bad_res\na,b\n", "more or fewer cells"),
        ("open.csv", 'instruction,good_res,bad_res\n"a,b,c\n', "quotation mark"),
        ("bytes.jsonl", b'{"a": "\xff"}', "UTF-8"),
        ("cut.jsonl.gz", gzip.compress(b'{"good_res": 1, "bad_res": 2}\n', mtime=0)[:-9], "complete"),
        ("no.parquet", b"PAR1", "no Parquet file"),
        ("what.txt", "hello", "no known format"),
        ("other.jsonl", '{"a": 1, "b": 2}', "with the fields a, b"),
        ("one.jsonl", '{"instruction": "a", "input": "", "output": "b"}', "Two responses a row are needed"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.count(".") == 1 and " " not in value else "",
)
def test_a_file_that_cannot_be_used_is_an_error_that_says_where(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigurationError, match=message):
        list(load(path))


@pytest.mark.parametrize("spec", ["nowhere.jsonl", "no/such/folder", "./here"])
def test_what_is_not_there_is_an_error_rather_than_a_download(spec: str) -> None:
    with pytest.raises(ConfigurationError, match="no file or folder"):
        list(load(spec))


def test_a_hub_id_goes_to_datasets_and_its_failure_is_ours() -> None:
    with pytest.raises(ConfigurationError, match="OpenAssistant/no-such-set cannot be opened"):
        list(load("OpenAssistant/no-such-set"))  # the suite is offline


def test_an_unknown_kind_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigurationError, match="own, oasst"):
        load("nowhere.jsonl", kind="hh")


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    def peak(count: int, name: str) -> int:
        with (tmp_path / name).open("w") as file:
            file.write("[" * name.endswith("json"))
            for number in range(count):
                row = {"id": number, "instruction": "x" * 10_000, "good_res": "y" * 10_000, "bad_res": "z" * 10_000}
                file.write("," * (number > 0 and name.endswith("json")) + json.dumps(row) + "\n")
            file.write("]" * name.endswith("json"))
        tracemalloc.start()
        read = sum(1 for _ in load(tmp_path / name))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert read == count
        return most

    for name in ("a.jsonl", "b.json"):
        assert peak(400, name) - peak(20, name) < 1_000_000  # 400 rows are 12 MB


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["user", "tie"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "rank", "replies", "source", "score"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("name", sorted(file.name for file in FILES.iterdir()))
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_no_row_breaks_a_layout_whatever_its_fields_hold(name: str, data: st.DataObject) -> None:
    rows = list(read_rows(FILES / name))
    kind = recognise(rows[0])
    assert kind is not None
    row = dict(data.draw(st.sampled_from(rows)))
    for field in data.draw(st.sets(st.sampled_from(sorted(row)), min_size=1)):
        row[field] = data.draw(JSON)
    for found in LAYOUTS[kind]([row]):
        assert isinstance(found, Preference) or found.reason in SKIPS


def test_texts_that_cannot_be_written_are_counted(tmp_path: Path) -> None:
    source = load(write_lines(tmp_path / "a.jsonl", [{"prompt": "a \ud83d", "chosen": "b", "rejected": "c"}]))
    assert list(source) == []
    assert source.skips == {"broken": 1}


def test_every_skip_is_explained() -> None:
    def reasons() -> Iterator[str]:
        for file in FILES.iterdir():
            yield from read(file.name)[1]

    assert set(reasons()) <= set(SKIPS)
