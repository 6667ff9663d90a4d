"""Files through `bpo optimize --file`: nothing lost, nothing twice, whatever interrupts; errors name the place."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fakes import FakeEngine, fake_rewriter
from hypothesis import given, settings
from hypothesis import strategies as st

from bpo_integrations.cli import Parts, main
from bpo_integrations.cli.jobs import BLOCK
from bpo_integrations.cli.journal import Journal
from bpo_integrations.cli.rows import CsvRows, Fields, JsonRows, TextRows
from bpo_integrations.errors import EngineError
from bpo_integrations.result import OptimizedPrompt

ROOT = Path(__file__).resolve().parents[2]
ADDITION = "Explain the main steps in order, with one example."


def prompt(number: int) -> str:
    return f"How does machine number {number} work inside a large factory?"


def answer(text: str) -> str:
    """Leave every third machine alone."""
    number = int(text.split()[4])
    return "" if number % 3 == 0 else ADDITION


def better(number: int) -> str:
    return prompt(number) if number % 3 == 0 else f"{prompt(number)} {ADDITION}"


def run(source: Path, target: Path, *options: str, answer: Callable[[str], str] = answer) -> Result:
    rewriter = fake_rewriter(answer)
    rewriter.engine._id = "fake-0"  # the same model every time, so that a job can go on
    return CliRunner().invoke(
        main, ["optimize", "--file", str(source), "--output", str(target), *options], obj=Parts(rewriter=rewriter)
    )


def refused(result: Result, code: int = 4) -> str:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("bpo: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def jsonl(path: Path, rows: int) -> Path:
    return write(path, "".join(json.dumps({"id": i, "prompt": prompt(i)}) + "\n" for i in range(rows)))


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name)


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
    broken = OptimizedPrompt(prompt(1), f"{prompt(1)}\n\nMore.", "augmented", "")
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
    out = form.head() + "".join(form.render(row, OptimizedPrompt(row.prompt, new, "rewritten", "why")) for row in form)
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
    out = "".join(form.render(row, OptimizedPrompt(row.prompt, text + "!", "rewritten", "why")) for row in form)
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
    assert "unknown extension '.parquet'" in refused(run(source, tmp_path / "out.parquet"))
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


# -- interruptions ----------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from bpo_integrations.cli import Parts, main
from fakes import fake_rewriter

point, at = {point!r}, {at!r}
calls = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def counted():
    global calls
    calls += 1
    return calls == at

def answer(text):
    number = int(text.split()[4])
    if point == "model" and counted():
        die()
    return "" if number % 3 == 0 else {addition!r}

real = {{"fsync": os.fsync, "replace": os.replace, "write": os.write}}

def fsync(fd):
    if point in ("before fsync", "torn") and counted():
        if point == "torn":
            os.ftruncate(fd, os.fstat(fd).st_size - 7)
        die()
    real["fsync"](fd)
    if point == "after fsync" and counted():
        die()

def replace(a, b):
    if point == "before replace" and counted():
        die()
    real["replace"](a, b)
    if point == "after replace" and counted():
        die()

os.fsync, os.replace = fsync, replace
main(["optimize", "--file", {source!r}, "--output", {target!r}], obj=Parts(rewriter=fake_rewriter(answer)))
"""


def killed(point: str, at: int, source: Path, target: Path) -> str:
    return KILLED.format(
        root=str(ROOT),
        tests=str(ROOT / "tests"),
        point=point,
        at=at,
        addition=ADDITION,
        source=str(source),
        target=str(target),
    )


def in_a_process(source: Path, target: Path, point: str, at: int) -> subprocess.CompletedProcess[str]:
    code = killed(point, at, source, target)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def sources(folder: Path) -> Iterator[Path]:
    rows = 3 * BLOCK + 7
    yield jsonl(folder / "in.jsonl", rows)
    with (folder / "in.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["note", "prompt"], *([f'a\n"b",{i}', prompt(i)] for i in range(rows))])
    yield folder / "in.csv"
    yield write(folder / "in.txt", "".join(prompt(i) + "\n" for i in range(rows)))


@pytest.mark.parametrize(
    ("kind", "point", "at"),
    [
        (".jsonl", "model", 1),
        (".jsonl", "model", 2 * BLOCK + 3),
        (".jsonl", "before fsync", 2),
        (".jsonl", "before fsync", 7),
        (".jsonl", "torn", 5),
        (".jsonl", "after fsync", 3),
        (".jsonl", "before replace", 1),
        (".jsonl", "before replace", 4),
        (".jsonl", "after replace", 5),
        (".jsonl", "before replace", 7),
        (".jsonl", "after replace", 7),
        (".csv", "model", 1),
        (".csv", "torn", 4),
        (".csv", "torn", 6),
        (".txt", "torn", 6),
        (".txt", "after replace", 7),
    ],
)
def test_after_kill_9_each_row_is_there_once_as_in_an_unbroken_run(
    kind: str, point: str, at: int, tmp_path: Path
) -> None:
    source = next(path for path in sources(tmp_path) if path.suffix == kind)
    whole, target = tmp_path / f"whole{kind}", tmp_path / f"out{kind}"
    assert run(source, whole).exit_code == 0
    done = in_a_process(source, target, point, at)
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = run(source, target)
    assert finished.exit_code == 0, finished.stderr
    assert target.read_bytes() == whole.read_bytes()
    assert leftovers(tmp_path) == []
    assert f"{3 * BLOCK + 7} rows:" in finished.stderr


def test_killed_again_and_again_it_still_gets_there(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 4 * BLOCK), tmp_path / "out.jsonl"
    assert run(source, tmp_path / "whole.jsonl").exit_code == 0
    kills = 0
    while not target.exists():
        kills += in_a_process(source, target, "model", BLOCK + 1).returncode == -signal.SIGKILL
        assert kills < 10
    assert kills == 3
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def interrupted(source: Path, target: Path, after: int = BLOCK) -> Result:
    """Run until the model is asked for row `after`, and be interrupted by a strict failure."""

    def stops(text: str) -> str:
        if int(text.split()[4]) == after:
            raise EngineError("Enough.")
        return answer(text)

    return run(source, target, "--strict", answer=stops)


def test_a_partial_output_of_another_input_is_refused_until_overwrite(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2 * BLOCK), tmp_path / "out.jsonl"
    assert "Row 33 (line 33)" in refused(interrupted(source, target), 1)
    assert leftovers(tmp_path) == ["out.jsonl.partial", "out.jsonl.partial.json"]
    other = jsonl(tmp_path / "other.jsonl", 3)
    assert "another input" in refused(run(other, target))
    assert run(other, target, "--overwrite").exit_code == 0
    assert len(target.read_text().splitlines()) == 3
    assert leftovers(tmp_path) == []


def test_a_partial_output_made_with_other_options_is_refused(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2 * BLOCK), tmp_path / "out.jsonl"
    refused(interrupted(source, target), 1)
    assert "made with other options" in refused(run(source, target, "--decoding", "stable"))
    assert run(source, target, "--timeout", "99").exit_code == 0


def test_a_partial_output_without_its_record_is_refused(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    write(tmp_path / "out.jsonl.partial", "somebody's")
    assert "which says how far it got" in refused(run(source, target))
    assert (tmp_path / "out.jsonl.partial").read_text() == "somebody's"


def test_two_jobs_on_one_output_do_not_mix(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    with Journal(target, {"input": "x"}, 2):
        assert "Another process is writing" in refused(run(source, target, "--overwrite"))


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", 2)

    def meddling(text: str) -> str:
        jsonl(source, 3)
        return answer(text)

    assert "was changed while it was read" in refused(run(source, tmp_path / "out.jsonl", answer=meddling))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_disk_that_fills_up_is_one_line_and_the_job_goes_on_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2 * BLOCK), tmp_path / "out.jsonl"
    room = [9000]
    real = os.write

    def full(fd: int, data: bytes) -> int:
        taken = min(room[0], len(data))
        if not taken:
            raise OSError(28, os.strerror(28))
        room[0] -= taken
        return real(fd, data[:taken])

    monkeypatch.setattr("bpo_integrations.cli.journal.os.write", full)
    said = refused(run(source, target))
    assert "No space left on device" in said
    assert "32 rows are safe" in said
    monkeypatch.undo()
    assert run(source, target).exit_code == 0
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == list(range(2 * BLOCK))


def in_a_process_where(happens: str, source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Run with `happens` in place of the kill, when the first row of the second block reaches the model."""
    code = killed("model", BLOCK + 1, source, target).replace("os.kill(os.getpid(), signal.SIGKILL)", happens)
    # A shell's background job hands on an ignored SIGINT, and the tests may run in one.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_real_limit_on_file_sizes_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    source, target = jsonl(tmp_path / "in.jsonl", 4 * BLOCK), tmp_path / "out.jsonl"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))"
    done = in_a_process_where(limit, source, target)
    assert done.returncode == 4
    assert done.stderr.count("\n") == 1
    assert f"{BLOCK} rows are safe" in done.stderr
    assert run(source, target).exit_code == 0
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == list(range(4 * BLOCK))


def test_ctrl_c_says_how_to_go_on_and_ends_with_130(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2 * BLOCK), tmp_path / "out.jsonl"
    done = in_a_process_where("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", source, target)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert f"{BLOCK} rows are safe" in done.stderr
    assert run(source, target).exit_code == 0
    assert len(target.read_text().splitlines()) == 2 * BLOCK
