"""Parquet through `bpo optimize --file`: columns keep their types, other formats find theirs before any model runs."""

from __future__ import annotations

import datetime as dt
import json
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from file_jobs import better, jsonl, leftovers, prompt, refused, run, write

from bpo_integrations.cli.jobs import BLOCK

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

ROWS = 2 * BLOCK + 5


def never(text: str) -> str:
    raise AssertionError(text)


def parquet(path: Path, rows: int = ROWS, **columns: object) -> Path:
    table = pa.table({"id": range(rows), "prompt": [prompt(i) for i in range(rows)], **columns})
    pq.write_table(table, path, row_group_size=20)
    return path


def test_parquet_columns_keep_their_values_types_and_order(tmp_path: Path) -> None:
    columns = {
        "when": pa.array([dt.datetime(2024, 1, 1, tzinfo=dt.UTC)] * ROWS, pa.timestamp("us", "UTC")),
        "price": pa.array([Decimal("1.10"), None] * (ROWS // 2) + [None], pa.decimal128(9, 2)),
        "raw": pa.array([b"\xff"] * ROWS),
        "deep": pa.array([{"a": [i, None]} for i in range(ROWS)]),
        "kind": pa.array(["x", "y", None] * (ROWS // 3)).dictionary_encode(),
    }
    source = parquet(tmp_path / "in.parquet", **columns)
    assert run(source, tmp_path / "out.parquet").exit_code == 0
    before, after = pq.read_table(source), pq.read_table(tmp_path / "out.parquet")
    assert after.select(before.column_names).equals(before)
    assert after.column_names[len(before.column_names) :] == ["optimized_prompt", "bpo_kind", "bpo_reason"]
    assert after["optimized_prompt"].to_pylist() == [better(i) for i in range(ROWS)]
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_prompt_may_be_any_kind_of_string_column(kind: object, tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": pa.array([prompt(1)]).cast(kind)}), tmp_path / "in.parquet")
    assert run(tmp_path / "in.parquet", tmp_path / "out.parquet", "--field", "q").exit_code == 0
    assert pq.read_table(tmp_path / "out.parquet")["optimized_prompt"].to_pylist() == [better(1)]


def test_parquet_becomes_jsonl_and_back(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in.parquet", deep=pa.array([{"a": [1.5, None]}] * ROWS))
    assert run(source, tmp_path / "out.jsonl").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["deep"], row["optimized_prompt"]) for row in rows] == [
        (i, {"a": [1.5, None]}, better(i)) for i in range(ROWS)
    ]
    plain = write(tmp_path / "again.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    done = run(plain, tmp_path / "again.parquet", "--output-field", "second")
    assert "'bpo_kind' already" in refused(done)


def test_a_number_that_json_does_not_have_becomes_null(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in.parquet", x=pa.array([float("nan"), float("inf"), 1.5] * (ROWS // 3)))
    assert run(source, tmp_path / "out.jsonl").exit_code == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert "NaN" not in lines[0]
    assert [json.loads(line)["x"] for line in lines[:3]] == [None, None, 1.5]


def test_jsonl_fields_get_the_one_type_that_holds_all_their_values(tmp_path: Path) -> None:
    late = BLOCK * 40  # in another of the blocks that are looked at together
    rows = [
        {"prompt": prompt(i), "n": 1, "x": i if i < late else i + 0.5, "only": None, "deep": {"a": i}}
        for i in range(late)
    ]
    rows += [{"prompt": prompt(late), "x": late + 0.5, "new": "late", "deep": {"b": ["é"]}}]
    source = write(tmp_path / "in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert run(source, tmp_path / "out.parquet").exit_code == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("n").type == pa.int64()
    assert table.schema.field("x").type == pa.float64()
    assert table["x"].to_pylist() == [*map(float, range(late)), late + 0.5]
    assert table["new"].to_pylist() == [None] * late + ["late"]
    assert table["deep"].to_pylist()[0] == {"a": 0, "b": None}
    assert table["deep"].to_pylist()[-1] == {"a": None, "b": ["é"]}
    assert table["optimized_prompt"].to_pylist() == [better(i) for i in range(late + 1)]


@pytest.mark.parametrize(
    "values",
    [[1, "one"], [*[1] * 1100, "one"], [{}], [2**80], [{"a": 1}, [1]], ["\ud800"], [2**62 + 1, 0.5]],
    ids=["in a block", "in another block", "no fields", "too large", "object and list", "no Unicode", "no float"],
)
def test_values_that_no_column_can_hold_are_refused_before_the_model_starts(
    values: list[object], tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", "".join(json.dumps({"prompt": prompt(1), "v": v}) + "\n" for v in values))
    said = refused(run(source, tmp_path / "out.parquet", answer=never))
    assert ".jsonl" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_csv_and_txt_become_columns_of_strings_and_json(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", f'id,prompt\r\n007,"{prompt(1)}"\r\n')
    assert run(source, tmp_path / "out.parquet").exit_code == 0
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["id"], row["optimized_prompt"]) == ("007", better(1))
    assert run(source, tmp_path / "out.jsonl").exit_code == 0
    assert json.loads((tmp_path / "out.jsonl").read_text()) == row
    assert run(write(tmp_path / "in.txt", prompt(1)), tmp_path / "txt.parquet").exit_code == 0
    assert pq.read_table(tmp_path / "txt.parquet")["optimized_prompt"].to_pylist() == [better(1)]
    twins = write(tmp_path / "twins.csv", "a,a,prompt\n1,2,x\n")
    assert "more than once" in refused(run(twins, tmp_path / "twins.parquet", answer=never))


def test_an_empty_input_gives_an_empty_table(tmp_path: Path) -> None:
    assert run(write(tmp_path / "in.jsonl", ""), tmp_path / "out.parquet").exit_code == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert run(parquet(tmp_path / "in.parquet", 0), tmp_path / "none.parquet").exit_code == 0
    assert pq.read_table(tmp_path / "none.parquet").column_names[:2] == ["id", "prompt"]


def test_bad_parquet_is_named_before_the_model_starts(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    source = parquet(tmp_path / "in.parquet")
    cut = write(tmp_path / "cut.parquet", source.read_bytes()[:-50])
    assert "Was it cut off?" in refused(run(cut, out, answer=never))
    assert "Was it cut off?" in refused(run(write(tmp_path / "text.parquet", "prompt\nx\n"), out, answer=never))
    assert "has no field 'q'; its fields: 'id', 'prompt'" in refused(run(source, out, "--field", "q", answer=never))
    assert "row 1: the field 'id' is 0, not a string" in refused(run(source, out, "--field", "id", answer=never))
    pq.write_table(pa.table({"prompt": ["x", None]}), tmp_path / "null.parquet")
    assert "row 2: the field 'prompt' is null" in refused(run(tmp_path / "null.parquet", out, answer=never))
    times = parquet(tmp_path / "times.parquet", 1, when=pa.array([0], pa.timestamp("s")))
    assert "'when' is of type timestamp[ms]" in refused(run(times, tmp_path / "out.jsonl", answer=never))
    assert "cannot be written as .csv" in refused(run(source, tmp_path / "out.csv", answer=never))
    twice = parquet(tmp_path / "twice.parquet", 2, key=pa.array(["a", "a"]))
    assert 'row 1 and row 2 have the same id "a"' in refused(run(twice, out, "--id-field", "key", answer=never))
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_a_flipped_byte_in_a_page_is_an_error_in_one_line(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in.parquet")
    data = bytearray(source.read_bytes())
    data[200:260] = bytes(60)
    said = refused(run(write(source, bytes(data)), tmp_path / "out.parquet", answer=never))
    assert "in.parquet" in said


def test_without_pyarrow_the_install_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "bpo_integrations.cli.tables", raising=False)
    said = refused(run(jsonl(tmp_path / "in.jsonl", 1), tmp_path / "out.parquet"), 3)
    assert 'pip install "bpo-integrations[parquet]"' in said
