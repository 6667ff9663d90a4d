"""`bpo-train construct` and `reproduce` against an annotator on loopback: faults, kills, budgets, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from annotator_server import FAULTS, AnnotatorServer, annotator_server
from click.testing import CliRunner

from bpo_train.cli_data import construct

for package in ("aiohttp", "datasets", "matplotlib", "datasketch", "filelock"):
    pytest.importorskip(package, reason="needs the extra 'train'")

COMMAND = "from bpo_train.cli_data import {0}; {0}()"
PLAIN = ("--near-duplicates", "0", "--self-bleu", "0")


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def some(number: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"row-{place}",
            "instruction": f"How does machine number {place} work?",
            "good_res": "It turns a wheel, which moves a belt.",
            "bad_res": "No idea.",
            "source": "factory",
            "licence": "MIT",
        }
        for place in range(number)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "preferences.jsonl", some(40))


def command(server: AnnotatorServer, source: Path, output: Path, *options: str, name: str = "construct") -> list[str]:
    return [
        *(sys.executable, "-c", COMMAND.format(name), "--input", str(source), "--output", str(output)),
        *("--annotator", "annotator", "--base-url", server.base_url, "--timeout", "2", "--concurrency", "16"),
        *(PLAIN if name == "construct" else ()),
        *options,
    ]


def run(server: AnnotatorServer, source: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves the imports."""
    arguments = command(server, source, output, *options)[3:]
    done = CliRunner().invoke(construct, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def summary_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return found


def result(output: Path) -> dict[str, bytes | dict[str, Any]]:
    """Return what a run made, but for what differs between runs."""
    files: dict[str, Any] = {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and not path.name.startswith(("journal", "summary"))
    }
    summary = summary_of(output)
    for name in ("seconds", "requests", "tokens", "prompt_tokens", "completion_tokens"):
        del summary[name]
    return {**files, "summary": summary}


# -- the proof ---------------------------------------------------------------------------------------------------------


def killed_five_times(data_dir: Path, rows: list[dict[str, Any]], folder: Path, mode: str) -> None:
    """Run once undisturbed, and once killed five times; compare."""
    source = write(folder / "preferences.jsonl", rows)
    options = ("--mode", mode, "--concurrency", "64")
    with annotator_server(data_dir, faults=True, latency=0.01) as server:
        done = run(server, source, folder / "whole" / "out", *options)
        assert done.returncode == 0, done.stderr
        assert set(server.met) == set(FAULTS)
    whole = folder / "whole" / "out"
    found = summary_of(whole)
    assert found["total"] == len(rows) == found["kept"] + found["dropped"]
    assert found["failed"] == found["left"] == 0

    output = folder / "killed" / "out"
    journal = output / "journal.jsonl"
    finished: dict[str, int] = {}
    with annotator_server(data_dir, faults=True, latency=0.01) as server:
        for kill in range(1, 6):
            process = subprocess.Popen(command(server, source, output, *options), stderr=subprocess.PIPE)
            try:
                while lines(journal) < kill * len(rows) // 7:
                    assert process.poll() is None, process.stderr.read() if process.stderr else ""
                    time.sleep(0.005)
            finally:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
            names = {str(row["id"]): row["instruction"] for row in rows}
            ended = [names[row["id"]] for row in map(json.loads, whole_lines(journal)) if "row" in row]
            assert len(ended) == len(set(ended)) > len(finished)
            assert len(ended) < len(rows)
            finished = {instruction: finished.get(instruction, server.asked[instruction]) for instruction in ended}
        done = run(server, source, output, *options)
        assert done.returncode == 0, done.stderr
        asked = Counter(server.asked)
    assert {name: asked[name] for name in finished} == finished
    assert result(output) == result(whole)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n")[:-1] if line]


@pytest.mark.data
@pytest.mark.parametrize(
    "mode", ["rewrite", pytest.param("augment", marks=pytest.mark.slow), pytest.param("both", marks=pytest.mark.slow)]
)
def test_all_rows_killed_five_times_end_like_those_of_one_run_and_no_finished_row_is_asked_twice(
    data_dir: Path, tmp_path: Path, mode: str
) -> None:
    killed_five_times(data_dir, rows_of(data_dir / "preferences.jsonl"), tmp_path, mode)


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_what_is_written_trains_both_modes(data_dir: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    from bpo_train.training.sft import read_rows, split_examples

    source = write(tmp_path / "preferences.jsonl", rows_of(data_dir / "preferences.jsonl")[:150])
    output = tmp_path / "out"
    with annotator_server(data_dir) as server:
        done = run(server, source, output, "--mode", "both")
    assert done.returncode == 0, done.stderr
    pairs = rows_of(output / "pairs.jsonl")
    order = [row["id"] for row in rows_of(source)]
    assert [row["id"] for row in pairs] == [name for name in map(str, order) if name in {row["id"] for row in pairs}]
    for mode, field in (("augment", "addition"), ("rewrite", "optimized_prompt")):
        parts = {name: rows_of(output / mode / f"{name}.jsonl") for name in ("train", "validation", "test")}
        written = {row["id"]: row["completion"] for part in parts.values() for row in part}
        assert written == {row["id"]: row[field] for row in pairs if field in row}
        assert sum(map(len, parts.values())) == len(written) > 100  # no row in two of them
        train, held_out = split_examples(read_rows(output / mode / "train.jsonl"), mode=mode)
        assert [example.completion for example in train] == [row["completion"] for row in parts["train"]]
        assert not held_out
        cache = str(tmp_path / "cache")
        loaded = load_dataset("json", data_files=str(output / mode / "train.jsonl"), split="train", cache_dir=cache)
        assert {"prompt", "completion"} <= set(loaded.column_names)
    assert (output / "README.md").read_text(encoding="utf-8").startswith("---\n")
    assert list(output.glob("*.png"))


def test_contexts_are_put_back_and_responses_are_hidden_in_the_ablation(tmp_path: Path) -> None:
    rows = [{**row, "context": f"Manual of machine {place}."} for place, row in enumerate(some(12))]
    source = write(tmp_path / "in.jsonl", rows)
    seen = []
    with annotator_server() as server:
        server.heard = lambda body: seen.append(str(body))
        done = run(server, source, tmp_path / "out", "--mode", "rewrite", "--no-feedback", "--no-guards")
    assert done.returncode == 0, done.stderr
    pairs = rows_of(tmp_path / "out" / "pairs.jsonl")
    assert len(pairs) == 12
    for place, pair in enumerate(pairs):
        assert f"Manual of machine {place}." in pair["prompt"]
        assert f"Manual of machine {place}." in pair["optimized_prompt"]
    assert not any("turns a wheel" in body or "No idea" in body for body in seen)


def test_rows_that_are_filtered_out_are_never_asked_about(tmp_path: Path) -> None:
    rows = [*some(5), {**some(1)[0], "id": "short", "instruction": "Hm?"}]
    with annotator_server() as server:
        done = run(server, write(tmp_path / "in.jsonl", rows), tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert "Hm?" not in server.asked
        assert len(server.asked) == 5
    assert summary_of(tmp_path / "out")["reasons"] == {"too_short": 1}


def test_a_dry_run_asks_nobody_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    with annotator_server() as server:
        done = run(server, source, tmp_path / "out", "--dry-run", "--price-in", "1", "--price-out", "2")
        assert not server.asked
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("40 of 40 rows; about ")
    assert "cost about 0.0" in done.stdout
    assert not (tmp_path / "out").exists()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "says"), [(401, "key is wrong"), (404, "The server has: annotator")])
def test_a_refusal_that_concerns_all_rows_stops_at_once_and_loses_nothing(
    source: Path, tmp_path: Path, status: int, says: str
) -> None:
    output = tmp_path / "out"
    with annotator_server(latency=0.1) as server:
        server.refuses_after = (10, status)
        done = run(server, source, output, "--concurrency", "4")
        assert done.returncode == 3
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
        assert server.asked.total() <= 10 + 2 * 4
        answered = list(server.answered)
        assert lines(output / "journal.jsonl") == 2 + len(answered) == 12
        server.refuses_after = None
        assert run(server, source, output).returncode == 0
        assert {server.asked[name] for name in answered} == {1}
    assert summary_of(output)["kept"] == 40


def test_a_model_that_fails_row_after_row_stops_the_run_and_failed_rows_can_be_asked_again(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with annotator_server(status=500) as server:
        done = run(server, source, output, "--retries", "0")
        assert done.returncode == 1
        assert "20 rows failed one after the other, the last with: HTTP status 500" in done.stderr
        server.status = 200
        done = run(server, source, output)
        assert done.returncode == 0, done.stderr
        assert summary_of(output)["failed"] >= 20
        assert "--retry-failed" in done.stderr
        done = run(server, source, output, "--retry-failed")
        assert done.returncode == 0, done.stderr
    assert summary_of(output)["kept"] == 40
    assert summary_of(output)["failed"] == 0


def test_a_budget_stops_it_and_a_larger_one_goes_on(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "small" / "out"
    with annotator_server(tokens=1_000) as server:
        done = run(server, source, output, "--budget-tokens", "20000", "--concurrency", "2")
        assert done.returncode == 5
        assert "larger --budget-tokens" in done.stderr
        first = summary_of(output)
        assert first["stopped"] == "budget"
        assert 10_000 < first["tokens"] <= 22_000
        assert first["kept"] + first["left"] == 40
        assert len(rows_of(output / "pairs.jsonl")) == first["kept"]
        asked = Counter(server.asked)
        done = run(server, source, output, "--budget-tokens", "1000000")
        assert done.returncode == 0, done.stderr
        assert set(server.asked.values()) == {1}
        assert asked.total() == first["kept"]
        whole = tmp_path / "whole" / "out"
        assert run(server, source, whole).returncode == 0
    assert result(output) == result(whole)
    assert summary_of(output)["tokens"] == 40_000


def test_other_options_and_another_input_do_not_mix(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with annotator_server() as server:
        assert run(server, source, output).returncode == 0
        done = run(server, source, output, "--candidates", "2")
        assert done.returncode == 3
        assert "other options: candidates" in done.stderr
        write(source, some(40)[::-1])
        done = run(server, source, output)
        assert done.returncode == 3
        assert "not the one that this output was begun with" in done.stderr
        assert set(server.asked.values()) == {1}


def test_a_torn_last_line_is_cut_off_and_its_row_asked_again(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with annotator_server() as server:
        assert run(server, source, output).returncode == 0
        before = result(output)
        journal = output / "journal.jsonl"
        journal.write_bytes(journal.read_bytes()[:-9])
        assert run(server, source, output).returncode == 0
        assert sorted(server.asked.values()) == [1] * 39 + [2]
        assert result(output) == before
        damaged = journal.read_bytes().split(b"\n")
        journal.write_bytes(b"\n".join([*damaged[:5], damaged[5][:20], *damaged[6:]]))
        done = run(server, source, output)
    assert done.returncode == 3
    assert "line 6, is damaged" in done.stderr


def test_two_processes_do_not_write_one_journal(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with annotator_server(latency=1.0) as server:
        first = subprocess.Popen(command(server, source, output), stdout=subprocess.PIPE)
        try:
            while not server.asked:
                time.sleep(0.01)
            done = run(server, source, output)
        finally:
            first.kill()
            first.communicate()
    assert done.returncode == 4
    assert "Another process" in done.stderr


def test_an_interrupt_keeps_what_is_finished(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with annotator_server(latency=0.3) as server:
        process = subprocess.Popen(
            command(server, source, output, "--concurrency", "2"),
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while lines(output / "journal.jsonl") < 6:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "goes on from here" in said
    assert "Traceback" not in said


# -- reproduce ---------------------------------------------------------------------------------------------------------


async def test_reproduce_answers_optimized_prompts_and_resumes(tmp_path: Path) -> None:
    from fakes import fake_rewriter

    from bpo_integrations.optimizer import PromptOptimizer
    from bpo_train.data.backends import open_backend
    from bpo_train.data.reproduce import Reproduction

    rows = [
        {"instruction": f"Explain how a pump of size {place} works.", "input": "", "output": "Old."}
        for place in range(9)
    ]
    rows.append({"instruction": "Sum up the text.", "input": "Pumps move water.", "output": "Old."})
    (tmp_path / "alpaca.json").write_text(json.dumps(rows), encoding="utf-8")
    addition = "Name the main parts in order."
    with annotator_server() as server:
        reproduction = Reproduction(
            str(tmp_path / "alpaca.json"), "annotator", tmp_path / "out", budget_tokens=1_500, prices=(1.0, 1.0)
        )
        optimizer = PromptOptimizer(fake_rewriter(lambda prompt: addition))
        backend = open_backend("annotator", base_url=server.base_url)
        found = await reproduction.run(backend, optimizer=optimizer)
        assert found["stopped"] == "budget"
        assert 0 < found["kept"] < 10
        reproduction = Reproduction(str(tmp_path / "alpaca.json"), "annotator", tmp_path / "out")
        backend = open_backend("annotator", base_url=server.base_url)
        found = await reproduction.run(backend, optimizer=optimizer)
        assert found["kept"] == 10
        assert set(server.asked.values()) == {1}
    made = rows_of(tmp_path / "out" / "reproduced.jsonl")
    assert [{name: row[name] for name in ("instruction", "input", "output")} for row in made] == rows
    assert list(made[0]) == ["instruction", "input", "output", "optimized_prompt", "res"]
    assert made[0]["optimized_prompt"] == f"{rows[0]['instruction']} {addition}"
    assert made[-1]["optimized_prompt"].startswith("Sum up the text.\nPumps move water.")
    assert all(row["res"] == f"An answer to: {row['optimized_prompt']}" for row in made)
