"""File jobs that are interrupted: nothing lost, nothing twice, whatever happens."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from file_jobs import answer, better, jsonl, leftovers, prompt, refused, run, write

from bpo_integrations.cli.jobs import BLOCK
from bpo_integrations.cli.journal import Journal
from bpo_integrations.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]

# -- interruptions ----------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from bpo_integrations.cli import main
from bpo_integrations.cli.journal import Journal
from file_jobs import answer, parts

point, at = {point!r}, {at!r}
target = Path({target!r})
calls = 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dies_at(name):
    global calls
    calls += point == name
    if point == name and calls == at:
        die()

def model(text):
    dies_at("model")
    return answer(text)

def around(owner, name):
    real = getattr(owner, name)
    def call(*args, **kwargs):
        dies_at("before " + name)
        result = real(*args, **kwargs)
        if name == "add" and point == "torn" and calls + 1 == at:
            wal = Path(str(target) + ".partial-wal")
            os.truncate(wal, wal.stat().st_size - 7)
            die()
        if name == "add" and point == "torn":
            globals()["calls"] += 1
        dies_at("after " + name)
        return result
    setattr(owner, name, call)

around(Journal, "add")
for name in ("fsync", "replace", "unlink"):
    around(os, name)
main(["optimize", "--file", {source!r}, "--output", str(target), *{options!r}], obj=parts(model))
"""


def killed(point: str, at: int, source: Path, target: Path, *options: str) -> str:
    return KILLED.format(
        root=str(ROOT),
        tests=str(ROOT / "tests"),
        point=point,
        at=at,
        source=str(source),
        target=str(target),
        options=list(options),
    )


def in_a_process(source: Path, target: Path, point: str, at: int) -> subprocess.CompletedProcess[str]:
    code = killed(point, at, source, target)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def source_of(kind: str, folder: Path) -> Path:
    rows, path = 3 * BLOCK + 7, folder / f"in{kind}"
    if kind == ".jsonl":
        return jsonl(path, rows)
    if kind == ".txt":
        return write(path, "".join(prompt(i) + "\n" for i in range(rows)))
    if kind == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["note", "prompt"], *([f'a\n"b",{i}', prompt(i)] for i in range(rows))])
        return path
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    table = pytest.importorskip("pyarrow").table({"id": range(rows), "prompt": [prompt(i) for i in range(rows)]})
    pq.write_table(table, path, row_group_size=40)
    return path


@pytest.mark.parametrize(
    ("kind", "point", "at"),
    [
        (".jsonl", "model", 1),
        (".jsonl", "model", 2 * BLOCK + 3),
        (".jsonl", "before add", 1),
        (".jsonl", "before add", 3),
        (".jsonl", "after add", 1),
        (".jsonl", "after add", 4),
        (".jsonl", "torn", 1),
        (".jsonl", "torn", 4),
        (".jsonl", "before fsync", 1),
        (".jsonl", "after fsync", 1),
        (".jsonl", "before replace", 1),
        (".jsonl", "after replace", 1),
        (".jsonl", "before unlink", 1),
        (".csv", "torn", 2),
        (".csv", "before replace", 1),
        (".txt", "after replace", 1),
        (".parquet", "after add", 2),
        (".parquet", "before replace", 1),
        (".parquet", "after replace", 1),
    ],
)
def test_after_kill_9_each_row_is_there_once_as_in_an_unbroken_run(
    kind: str, point: str, at: int, tmp_path: Path
) -> None:
    source = source_of(kind, tmp_path)
    whole, target = tmp_path / f"whole{kind}", tmp_path / f"out{kind}"
    assert run(source, whole).exit_code == 0
    done = in_a_process(source, target, point, at)
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = run(source, target)
    assert finished.exit_code == 0, finished.stderr
    assert target.read_bytes() == whole.read_bytes()
    assert leftovers(tmp_path) == []
    assert f"{3 * BLOCK + 7} rows:" in finished.stderr


def test_killed_after_its_journal_has_gone_the_job_was_done(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", BLOCK), tmp_path / "out.jsonl"
    assert in_a_process(source, target, "after unlink", 1).returncode == -signal.SIGKILL
    assert len(target.read_text().splitlines()) == BLOCK
    assert "exists already" in refused(run(source, target))
    assert leftovers(tmp_path) == []


def test_a_log_without_its_database_does_no_harm(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2 * BLOCK), tmp_path / "out.jsonl"
    assert in_a_process(source, target, "model", BLOCK + 1).returncode == -signal.SIGKILL
    (tmp_path / "out.jsonl.partial").unlink()
    assert leftovers(tmp_path) == ["out.jsonl.partial-wal"]
    assert run(source, target).exit_code == 0
    assert len(target.read_text().splitlines()) == 2 * BLOCK
    assert leftovers(tmp_path) == []


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
    assert leftovers(tmp_path) == ["out.jsonl.partial"]
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


@pytest.mark.parametrize("data", [b"somebody's", b"SQLite format 3\x00" + bytes(200)])
def test_a_file_that_is_no_journal_is_left_alone_until_overwrite(data: bytes, tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    partial = write(tmp_path / "out.jsonl.partial", data)
    assert "--overwrite" in refused(run(source, target))
    assert partial.read_bytes() == data
    assert run(source, target, "--overwrite").exit_code == 0
    assert leftovers(tmp_path) == []


def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    with closing(sqlite3.connect(f"{target}.partial")) as db:
        db.execute("CREATE TABLE theirs (a)")
    assert "is no journal of this version" in refused(run(source, target))
    with closing(sqlite3.connect(f"{target}.partial")) as db:
        assert db.execute("SELECT count(*) FROM theirs").fetchone() == (0,)


def test_two_jobs_on_one_output_do_not_mix(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    with Journal(target, {}, "x"):
        assert "Another process is writing" in refused(run(source, target, "--overwrite"))


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", 2)

    def meddling(text: str) -> str:
        jsonl(source, 3)
        return answer(text)

    assert "was changed while it was read" in refused(run(source, tmp_path / "out.jsonl", answer=meddling))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("where", ["journal", "output"])
def test_a_disk_that_fills_up_is_one_line_and_the_job_goes_on_afterwards(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 4 * BLOCK), tmp_path / "out.jsonl"
    if where == "journal":  # SQLite itself finds the disk full
        real = Journal._open

        def small(self: Journal, overwrite: bool) -> sqlite3.Connection:
            db = real(self, overwrite)
            db.execute("PRAGMA max_page_count = 7")
            return db

        monkeypatch.setattr(Journal, "_open", small)
    else:

        def full(fd: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("bpo_integrations.cli.journal.os.fsync", full)
    said = refused(run(source, target))
    assert "No space left on device. Free some space." in said
    assert re.search(r"[1-9]\d* rows are safe", said)
    assert leftovers(tmp_path) == ["out.jsonl.partial"]
    monkeypatch.undo()

    def only_new(text: str) -> str:
        assert int(text.split()[4]) >= BLOCK
        return answer(text)

    assert run(source, target, answer=only_new).exit_code == 0
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == list(range(4 * BLOCK))


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
    assert "rows are safe" in done.stderr
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


# -- rows by their ids ------------------------------------------------------------------------------------------------


def test_with_ids_an_input_that_grew_and_was_sorted_anew_goes_on(tmp_path: Path) -> None:
    source, target = jsonl(tmp_path / "in.jsonl", 2 * BLOCK), tmp_path / "out.jsonl"

    def stops(text: str) -> str:
        if int(text.split()[4]) == BLOCK:
            raise EngineError("Enough.")
        return answer(text)

    refused(run(source, target, "--id-field", "id", "--strict", answer=stops), 1)
    rows = [{"id": i, "prompt": prompt(i)} for i in reversed(range(3 * BLOCK))]
    rows[-1]["prompt"] = prompt(1000)  # row 0 asks something else now
    write(source, "".join(json.dumps(row) + "\n" for row in rows))
    asked: list[int] = []

    def counted(text: str) -> str:
        asked.append(int(text.split()[4]))
        return answer(text)

    assert run(source, target, "--id-field", "id", answer=counted).exit_code == 0
    assert sorted(asked) == [*range(BLOCK, 3 * BLOCK), 1000]
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["id"] for row in found] == list(reversed(range(3 * BLOCK)))
    assert [row["optimized_prompt"] for row in found[:-1]] == [better(i) for i in reversed(range(1, 3 * BLOCK))]
    assert found[-1]["optimized_prompt"] == better(1000)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": "a"}, {"id": "b"}, {"id": "a"}], 'row 1 (line 1) and row 3 (line 3) have the same id "a"'),
        ([{"id": 1}, {"id": "1"}, {"id": 1}], "row 1 (line 1) and row 3 (line 3) have the same id 1"),
        ([{"id": None}], "the id field 'id' is null, neither a string nor a whole number"),
        ([{"id": True}], "is true"),
        ([{"id": 1.5}], "is 1.5"),
        ([{"id": 1}, {}], "row 2 (line 2) has no field 'id'"),
    ],
)
def test_ids_that_tell_no_rows_apart_are_named_before_the_model_starts(
    rows: list[dict[str, object]], says: str, tmp_path: Path
) -> None:
    def never(text: str) -> str:
        raise AssertionError(text)

    source = write(tmp_path / "in.jsonl", "".join(json.dumps({**row, "prompt": "x"}) + "\n" for row in rows))
    assert says in refused(run(source, tmp_path / "out.jsonl", "--id-field", "id", answer=never))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_ids_of_any_kind_come_through(tmp_path: Path) -> None:
    ids = [2**80, "\ud800", "", "1", 1, -5, "a\x00b"]
    source = write(tmp_path / "in.jsonl", "".join(json.dumps({"id": i, "prompt": prompt(1)}) + "\n" for i in ids))
    assert run(source, tmp_path / "out.jsonl", "--id-field", "id").exit_code == 0
    assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == ids


def test_ids_of_a_file_without_fields_are_refused(tmp_path: Path) -> None:
    assert "Leave out --id-field" in refused(
        run(write(tmp_path / "a.txt", "x"), tmp_path / "b.txt", "--id-field", "id")
    )
