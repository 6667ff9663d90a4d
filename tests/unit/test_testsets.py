"""Test sets of every kind become prompts; whatever is wrong with one is said with its row."""

from __future__ import annotations

import csv
import json
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_integrations.errors import ConfigurationError
from bpo_train.evaluation.records import PROMPTS, TestPrompt, read_records, write_records
from bpo_train.evaluation.testsets import PAPER_SETS, load_testset, load_testsets, sampled


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "prompts", "contexts", "gold"),
    [
        ("vicuna_eval", 80, 0, 0),
        ("self_instruct_eval", 252, 208, 0),
        ("dolly_eval", 200, 63, 0),
        ("bpo_test", 200, 0, 200),
    ],
)
def test_the_papers_sets_are_whole(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, prompts: int, contexts: int, gold: int
) -> None:
    monkeypatch.setenv("BPO_DATA_DIR", str(data_dir))
    found = load_testset(name)
    assert len(found) == prompts
    assert sum(prompt.context is not None for prompt in found) == contexts
    assert sum(prompt.gold is not None for prompt in found) == gold
    assert all(prompt.id.startswith(f"{name}:") and prompt.set == name for prompt in found)
    for prompt in found:
        if prompt.context is not None and prompt.context.lower() not in prompt.instruction.lower():
            assert prompt.prompt == f"{prompt.instruction}\n{prompt.context}".strip()


@pytest.mark.data
def test_all_four_sets_have_ids_of_their_own_and_are_written_and_read_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BPO_DATA_DIR", str(data_dir))
    found = load_testsets(PAPER_SETS)
    assert len({prompt.id for prompt in found}) == len(found) == 732
    write_records(tmp_path / PROMPTS, found)
    assert read_records(tmp_path / PROMPTS, TestPrompt) == found


def test_a_set_of_the_paper_that_is_not_there_says_where_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BPO_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigurationError, match="BPO_DATA_DIR"):
        load_testset("vicuna_eval")


def test_mt_bench_gives_the_first_turn(tmp_path: Path) -> None:
    rows = [{"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Shorten it."], "reference": ["..."]}]
    (found,) = load_testset(write(tmp_path / "question.jsonl", rows), name="mt_bench")
    assert (found.id, found.category, found.prompt) == ("mt_bench:81", "writing", "Write a poem.")


def test_both_arena_hard_formats_are_read(tmp_path: Path) -> None:
    old = {"question_id": "328c", "category": "arena-hard-v0.1", "cluster": "ABC", "turns": [{"content": "Use ABC."}]}
    new = {"uid": "2edb", "category": "hard_prompt", "subcategory": "coding", "prompt": "Write a parser."}
    found = load_testset(write(tmp_path / "arena.jsonl", [old, new]))
    assert [(prompt.id, prompt.prompt) for prompt in found] == [
        ("arena:328c", "Use ABC."),
        ("arena:2edb", "Write a parser."),
    ]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Why?"}, "Why?"),
        ({"text": "Why?"}, "Why?"),
        ({"question": "Why?"}, "Why?"),
        ({"instruction": "Sum up:", "input": "Pumps move water."}, "Sum up:\nPumps move water."),
        ({"instruction": "Sum up:", "context": "Braces {x} stay."}, "Sum up:\nBraces {x} stay."),
        ({"instruction": "Sum up: Pumps move water.", "context": "pumps move water."}, "Sum up: Pumps move water."),
        ({"instruction": "Translate into German:", "context": "man"}, "Translate into German:\nman"),
        ({"instruction": "Sum up.", "context": " "}, "Sum up."),
        ({"instruction": "Sum up.", "context": None}, "Sum up."),
        ({"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]}, "Why?"),
    ],
)
def test_own_prompts_are_found_in_the_usual_fields(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    (found,) = load_testset(write(tmp_path / "mine.jsonl", [row]))
    assert (found.id, found.prompt) == ("mine:1", prompt)


def test_csv_and_parquet_are_read_like_jsonl(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"id": "a", "prompt": "Why, and how?", "category": "x"},
        {"id": "b", "prompt": "Two\nlines", "category": ""},
    ]
    with (tmp_path / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    found = load_testset(write(tmp_path / "mine.jsonl", rows))
    assert load_testset(tmp_path / "mine.csv") == found == load_testset(tmp_path / "mine.parquet")


def test_a_folder_holds_a_set_in_each_file(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", [{"prompt": "One?"}])
    write(tmp_path / "two.jsonl", [{"prompt": "Two?"}])
    (tmp_path / "notes.txt").write_text("no set")
    assert [prompt.id for prompt in load_testset(tmp_path)] == ["one:1", "two:1"]
    assert [prompt.id for prompt in load_testset(tmp_path, name="all")] == ["all/one:1", "all/two:1"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "is empty"),
        (
            [{"id": 7, "prompt": "A?"}, {"prompt": "B?"}, {"id": "7", "prompt": "C?"}],
            "row 3: the same id as in row 1, 7",
        ),
        ([{"prompt": "A?"}, {"prompt": "  "}], "row 2: no prompt"),
        ([{"prompt": "A?"}, {"answer": "B"}], "row 2: no prompt, in a row with the fields answer"),
        ([{"prompt": 7}], "row 1: no prompt"),
        ([{"turns": []}], "row 1: no prompt"),
        ([{"instruction": "A?", "context": ["b"]}], "row 1: the context is no text"),
        ([["A?"]], "line 1: not a JSON object"),
    ],
)
def test_what_is_wrong_is_said_with_its_row(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load_testset(write(tmp_path / "mine.jsonl", rows))


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no file or folder"):
        load_testset(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match=r"no test set vicuna\. Name one of vicuna_eval"):
        load_testset("vicuna")
    with pytest.raises(ConfigurationError, match="no test set in the folder"):
        load_testset(tmp_path)
    with pytest.raises(ConfigurationError, match="There is no test set"):
        load_testsets([])


def test_two_sets_of_one_name_need_names(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "mine.jsonl", [{"prompt": "Why?"}])
    paths = [tmp_path / folder / "mine.jsonl" for folder in ("a", "b")]
    with pytest.raises(ConfigurationError, match="id mine:1"):
        load_testsets(paths)
    found = load_testsets([paths[0], f"other={paths[1]}"])
    assert [prompt.id for prompt in found] == ["mine:1", "other:1"]


# -- a set from an address ---------------------------------------------------------------------------------------------


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A folder on loopback; what is named cut.jsonl breaks off."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            if not self.path.startswith("/cut"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"prompt": "One?"}\n')
            return None

    with HTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_set_is_fetched_from_an_address(tmp_path: Path, address: str) -> None:
    write(tmp_path / "mine.jsonl", [{"prompt": "Why?"}])
    (found,) = load_testset(f"{address}/mine.jsonl")
    assert (found.id, found.prompt) == ("mine:1", "Why?")
    (named,) = load_testsets([f"theirs={address}/mine.jsonl?version=2"])
    assert named.id == "theirs:1"


def test_an_address_that_fails_or_breaks_off_is_an_error(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be fetched: .*404"):
        load_testset(f"{address}/none.jsonl")
    with pytest.raises(ConfigurationError, match="cannot be fetched"):
        load_testset(f"{address}/cut.jsonl")


# -- a sample ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=40), st.integers(1, 50), st.integers(0, 3))
def test_a_sample_keeps_order_and_shares(categories: list[str], limit: int, seed: int) -> None:
    prompts = [TestPrompt(str(place), "Why?", category=name) for place, name in enumerate(categories)]
    drawn = sampled(prompts, limit, seed=seed)
    assert drawn == sorted(drawn, key=lambda prompt: int(prompt.id))
    assert len(drawn) == min(limit, len(prompts))
    for name, count in Counter(categories).items():
        share = count * min(1, limit / len(prompts))
        assert abs(sum(prompt.category == name for prompt in drawn) - share) < 1


def test_a_larger_sample_holds_the_smaller_one() -> None:
    prompts = [TestPrompt(str(place), "Why?") for place in range(100)]
    small, large = ({prompt.id for prompt in sampled(prompts, limit)} for limit in (20, 60))
    assert small < large
