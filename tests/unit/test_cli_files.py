"""Files through `bpo optimize --file`: what stood in a row stays, and errors name the place."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import FakeEngine, fake_rewriter
from file_jobs import answer, better, jsonl, leftovers, prompt, refused, run, write
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_integrations.cli import Parts, main
from bpo_integrations.cli.bar import details
from bpo_integrations.cli.formats import CsvRows, JsonRows, TextRows
from bpo_integrations.cli.jobs import BLOCK, Tally
from bpo_integrations.cli.rows import Fields, Outcome
from bpo_integrations.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]

# -- formats ----------------------------------------------------------------------------------------------------------


def test_jsonl_rows_keep_what_stood_in_them_character_by_character(tmp_path: Path) -> None:
    lines = [
        '{"price": 1.10, "prompt": "How does machine number 1 work inside a large factory?", "e": "\\u00e9"}',
        "",
        '  {"prompt":"How does machine number 3 work inside a large factory?","deep":{"a":[1e400]} }  ',
    ]
    source = write(tmp_path / "in.jsonl", "\ufeff" + "\r\n".join(lines))
    result = run(source, tmp_path / "out.jsonl")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "2 rows: 1 augmented, 1 kept" in result.stderr
    first, second = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert first.startswith(lines[0][:-1] + ', "optimized_prompt": ')
    assert second.startswith(
        '{"prompt":"How does machine number 3 work inside a large factory?","deep":{"a":[1e400]}, '
    )
    data = json.loads(first)
    assert (data["optimized_prompt"], data["bpo_kind"]) == (better(1), "augmented")
    assert json.loads(second)["bpo_reason"] == "model: nothing to add"
    assert leftovers(tmp_path) == []


def test_csv_keeps_quoted_line_breaks_its_line_ending_and_its_byte_order_mark(tmp_path: Path) -> None:
    text = f'\ufeffid,question,note\r\n1,"{prompt(1)}","two\r\nlines, ""quoted"""\r\n\r\n3,{prompt(3)},\r\n'
    source = write(tmp_path / "in.csv", text)
    assert run(source, tmp_path / "out.csv", "--field", "question").exit_code == 0
    data = (tmp_path / "out.csv").read_bytes().decode("utf-8")
    assert data.startswith("\ufeffid,question,note,optimized_prompt,bpo_kind,bpo_reason\r\n")
    rows = list(csv.DictReader(io.StringIO(data.removeprefix("\ufeff"), newline="")))
    assert [row["note"] for row in rows] == ['two\r\nlines, "quoted"', ""]
    assert [row["optimized_prompt"] for row in rows] == [better(1), prompt(3)]
    assert data.replace("two\r\nlines", "").count("\r\n") == data.replace("two\r\nlines", "").count("\n") == 3


def test_txt_keeps_its_lines_even_where_a_result_has_several(tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", f"{prompt(1)}\r\n\r\n{prompt(2)}\n{prompt(3)}")
    assert run(source, tmp_path / "out.txt").exit_code == 0
    assert (tmp_path / "out.txt").read_bytes() == f"{better(1)}\r\n\r\n{better(2)}\n{prompt(3)}".encode()
    row = next(iter(TextRows(source, Fields())))
    broken = Outcome(f"{prompt(1)}\n\nMore.", "augmented", "")
    assert TextRows(source, Fields()).render(row, broken) == f"{prompt(1)} More.\r\n"


def test_txt_as_jsonl_keeps_kind_and_reason(tmp_path: Path) -> None:
    source = write(tmp_path / "in.txt", prompt(1) + "\n")
    assert run(source, tmp_path / "out.jsonl").exit_code == 0
    data = json.loads((tmp_path / "out.jsonl").read_text())
    assert data["prompt"] == prompt(1)
    assert (data["optimized_prompt"], data["bpo_kind"], data["bpo_reason"]) == (
        better(1),
        "augmented",
        "added by the model",
    )


cells = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20), min_size=2, max_size=2)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(cells, max_size=5), new=st.text(st.characters(codec="utf-8"), max_size=20))
def test_csv_cells_come_back_as_they_were(
    rows: list[list[str]], new: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt", "other"], *rows])
    form = CsvRows(path, Fields())
    out = form.head() + "".join(form.render(row, Outcome(new, "rewritten", "why")) for row in form)
    read = list(csv.reader(io.StringIO(out, newline=""), strict=True))
    assert read[1:] == [[*row, new, "rewritten", "why"] for row in rows]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False) | st.text(max_size=9)), max_size=4),
    text=st.text(max_size=20),
)
def test_json_fields_come_back_as_they_were(
    rows: list[dict[str, object]], text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("json") / "x.jsonl"
    rows = [{**row, "prompt": text} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    form = JsonRows(path, Fields())
    out = "".join(form.render(row, Outcome(text + "!", "rewritten", "why")) for row in form)
    added = {"optimized_prompt": text + "!", "bpo_kind": "rewritten", "bpo_reason": "why"}
    out.encode("utf-8")
    assert [json.loads(line) for line in out.split("\n") if line] == [{**row, **added} for row in rows]


def test_a_file_is_read_block_by_block(tmp_path: Path) -> None:
    rewriter = fake_rewriter(answer)
    args = [
        "optimize",
        "--file",
        str(jsonl(tmp_path / "in.jsonl", 2 * BLOCK + 5)),
        "--output",
        str(tmp_path / "o.jsonl"),
    ]
    assert CliRunner().invoke(main, args, obj=Parts(rewriter=rewriter)).exit_code == 0
    engine = rewriter.engine
    assert isinstance(engine, FakeEngine)
    assert [len(call) for call in engine.calls] == [BLOCK, BLOCK, 5]


@pytest.mark.parametrize(("name", "out"), [("in.jsonl", b""), ("in.txt", b"")])
def test_an_empty_file_gives_an_empty_file(name: str, out: bytes, tmp_path: Path) -> None:
    target = tmp_path / f"out{Path(name).suffix}"
    assert run(write(tmp_path / name, ""), target).exit_code == 0
    assert target.read_bytes() == out


def test_a_csv_with_a_header_only_gives_the_header(tmp_path: Path) -> None:
    assert run(write(tmp_path / "in.csv", "prompt,a\n"), tmp_path / "out.csv").exit_code == 0
    assert (tmp_path / "out.csv").read_text() == "prompt,a,optimized_prompt,bpo_kind,bpo_reason\n"


# -- what is refused --------------------------------------------------------------------------------------------------

GOOD = json.dumps({"prompt": prompt(1)}) + "\n"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("in.jsonl", GOOD + '{"text": "x"}\n', "row 2 (line 2) has no field 'prompt'; its fields: 'text'"),
        ("in.jsonl", GOOD + "\n{oops\n", "row 2 (line 3) is not JSON"),
        ("in.jsonl", GOOD + "[1]\n", "row 2 (line 2) is no JSON object"),
        ("in.jsonl", '{"prompt": null}\n', "row 1 (line 1): the field 'prompt' is null, not a string"),
        ("in.jsonl", "[" * 100_000, "row 1 (line 1) is not JSON"),
        ("in.jsonl", '{"prompt": "x", "optimized_prompt": "y"}\n', "--output-field"),
        ("in.jsonl", GOOD.encode() + b'{"prompt": "caf\xe9"}\n', f"byte 0xE9 at offset {len(GOOD) + 15} (line 2)"),
        ("in.csv", "id,text\n1,x\n", "the header has no field 'prompt'; its fields: 'id', 'text'"),
        ("in.csv", 'id,prompt\n1,"a\nb"\n2\n', "row 2 (line 4) has 1 cells; the header has 2"),
        ("in.csv", 'id,prompt\n1,a\n2,"never closed\n', "the record that begins on line 3 is not CSV"),
        ("in.csv", "prompt,prompt\nx,y\n", "more than once"),
        ("in.csv", "", "is empty"),
        ("in.txt", b"abc\ndef\xff\n", "byte 0xFF at offset 7 (line 2)"),
    ],
)
def test_a_bad_row_is_named_before_the_model_starts(name: str, data: str | bytes, says: str, tmp_path: Path) -> None:
    def never(text: str) -> str:
        raise AssertionError(text)

    result = run(write(tmp_path / name, data), tmp_path / f"out{Path(name).suffix}", answer=never)
    assert says in refused(result)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_another_field_for_the_result(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", json.dumps({"prompt": prompt(1), "optimized_prompt": "gold"}) + "\n")
    assert run(source, tmp_path / "out.jsonl", "--output-field", "mine").exit_code == 0
    data = json.loads((tmp_path / "out.jsonl").read_text())
    assert (data["optimized_prompt"], data["mine"]) == ("gold", better(1))


def test_paths_that_cannot_work_are_refused_in_one_line(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", 3)
    out = tmp_path / "out.jsonl"
    assert "There is no file" in refused(run(tmp_path / "no.jsonl", out))
    assert "no regular file" in refused(run(tmp_path, out))
    assert "is the input itself" in refused(run(source, source, "--overwrite"))
    link = tmp_path / "link.jsonl"
    link.symlink_to(source)
    assert "is the input itself" in refused(run(source, link, "--overwrite"))
    assert "unknown extension '.xlsx'" in refused(run(source, tmp_path / "out.xlsx"))
    assert "cannot be written as .csv" in refused(run(source, tmp_path / "out.csv"))
    assert "does not exist" in refused(run(source, tmp_path / "nowhere" / "out.jsonl"))
    write(out, "precious")
    assert "--overwrite" in refused(run(source, out))
    assert out.read_text() == "precious"
    assert run(source, out, "--overwrite").exit_code == 0
    assert len(out.read_text().splitlines()) == 3


def test_a_failed_row_is_kept_counted_and_explained(tmp_path: Path) -> None:
    def failing(text: str) -> str:
        raise EngineError("The model is on fire.")

    result = run(jsonl(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl", answer=failing)
    assert result.exit_code == 0
    assert "2 rows: 2 failed" in result.stderr
    assert "on fire" in result.stderr
    data = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (data["optimized_prompt"], data["bpo_kind"]) == (prompt(0), "kept")
    strict = run(tmp_path / "in.jsonl", tmp_path / "strict.jsonl", "--strict", answer=failing)
    assert "Row 1 (line 1)" in refused(strict, 1)
    assert not (tmp_path / "strict.jsonl").exists()


def test_blocks_have_the_size_that_is_asked_for(tmp_path: Path) -> None:
    rewriter = fake_rewriter(answer)
    args = ["optimize", "--file", str(jsonl(tmp_path / "in.jsonl", 12)), "--output", str(tmp_path / "out.jsonl")]
    assert CliRunner().invoke(main, [*args, "--block", "5"], obj=Parts(rewriter=rewriter)).exit_code == 0
    engine = rewriter.engine
    assert isinstance(engine, FakeEngine)
    assert [len(call) for call in engine.calls] == [5, 5, 2]


def test_the_bar_counts_only_the_rows_of_this_run_for_its_rate() -> None:
    tally = Tally(total=100)
    tally.add([Outcome("x", "kept", "")] * 20, resumed=True)
    assert details(tally, 10.0) == "0.0 rows/s; 20 kept"
    tally.add([Outcome("x", "augmented", "")] * 39)
    tally.add([Outcome("x", "kept", "failed: EngineError: no")])
    assert details(tally, 20.0) == "2.0 rows/s, 0:00:20 left; 39 augmented, 20 kept, 1 failed"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no terminals here")
def test_a_terminal_sees_a_bar_and_the_output_holds_none_of_it(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = [{!r}, {!r}]\n"
        "from pathlib import Path\nfrom bpo_integrations.cli import main\nfrom file_jobs import parts\n"
        "main(sys.argv[1:], obj=parts())"
    ).format(str(ROOT), str(ROOT / "tests"))
    source, target = jsonl(tmp_path / "in.jsonl", 2 * BLOCK), tmp_path / "out.jsonl"
    args = ["optimize", "--file", str(source), "--output", str(target)]
    read, terminal = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-c", script, *args], stdout=subprocess.PIPE, stderr=terminal, env=environment, check=False
    )
    os.close(terminal)
    shown = os.read(read, 1 << 20).decode()
    os.close(read)
    assert (done.returncode, done.stdout) == (0, b"")
    assert f"{2 * BLOCK}/{2 * BLOCK}" in shown
    assert "rows/s" in shown
    assert len(target.read_text().splitlines()) == 2 * BLOCK
