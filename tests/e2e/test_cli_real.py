"""`bpo` as a user types it: the installed command, the embedded model, real files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from bpo_integrations import models

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Tell me about Harry Potter"

pytestmark = pytest.mark.model


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "from bpo_integrations.cli import run; run()", *args]


def bpo(*args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    source = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(command(*args), cwd=ROOT, capture_output=True, text=True, check=False, **source)


def test_the_embedded_model_adds_to_a_prompt_and_nothing_else_is_printed() -> None:
    done = bpo("optimize", PROMPT, "--threshold", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(PROMPT)
    assert len(done.stdout.split()) > len(PROMPT.split()) + 3
    assert bpo("optimize", "-", "--threshold", "2", stdin=PROMPT + "\n").stdout == done.stdout
    assert bpo("optimize", PROMPT, "--threshold", "0").stdout == PROMPT + "\n"


def test_explain_and_json_tell_the_probability_of_adding_nothing() -> None:
    data = json.loads(bpo("optimize", PROMPT, "--json").stdout)
    assert 0 <= data["candidates"][0]["p_empty"] <= 1
    assert data["original"] == PROMPT
    assert data["text"].startswith(PROMPT)
    shown = bpo("optimize", PROMPT, "--explain").stdout
    assert "p(empty)" in shown
    assert "nothing is added from" in shown


@pytest.mark.skipif(not (Path(models.__file__).parent / "rewrite").is_dir(), reason="no rewriting adapter is shipped")
def test_rewrite_mode_and_seeded_sampling_repeat() -> None:
    args = ("optimize", PROMPT, "--mode", "rewrite", "--n", "2", "--seed", "7", "--json")
    first, second = json.loads(bpo(*args).stdout), json.loads(bpo(*args).stdout)
    assert len(first["candidates"]) == 2
    assert first["text"] == second["text"]
    assert [each["text"] for each in first["candidates"]] == [each["text"] for each in second["candidates"]]


def safe_rows(target: Path, copy: Path) -> int:
    """Count the results in a copy of a running job's journal, which itself is locked."""
    try:
        for end in (".partial", ".partial-wal"):
            shutil.copy(f"{target}{end}", f"{copy}{end}")
        with closing(sqlite3.connect(f"{copy}.partial")) as db:
            return int(db.execute("SELECT count(*) FROM results").fetchone()[0])
    except (OSError, sqlite3.Error):  # not there yet, or copied in the middle of a change
        return 0


def test_a_job_killed_in_the_middle_equals_an_unbroken_one(tmp_path: Path) -> None:
    topics = ["volcanoes", "trade unions", "the violin", "glaciers", "coral reefs", "jazz", "bridges", "bees"]
    prompts = [
        f"Tell me about {topic} in {place}."
        for place in ("Italy", "Japan", "Peru", "Kenya", "Norway")
        for topic in topics
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    whole = bpo("optimize", "--file", str(source), "--output", str(tmp_path / "whole.jsonl"))
    assert whole.returncode == 0, whole.stderr
    target = tmp_path / "out.jsonl"
    args = ("optimize", "--file", str(source), "--output", str(target))
    process = subprocess.Popen(command(*args), cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not safe_rows(target, tmp_path / "copy"):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not target.exists()
    done = bpo(*args)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [json.loads(line)["prompt"] for line in target.read_text().splitlines()] == prompts


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc to see the model load in")
def test_ctrl_c_in_the_middle_of_generation_ends_with_130_and_one_line() -> None:
    args = command("optimize", PROMPT, "--threshold", "2", "--decoding", "aggressive", "--n", "50")
    # A shell's background job hands on an ignored SIGINT, and the tests may run in one.
    args[2] = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {args[2]}"
    process = subprocess.Popen(
        args, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "libctranslate2" not in maps.read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "bpo: Interrupted."


def test_compare_with_the_embedded_llm() -> None:
    pytest.importorskip("langchain_core")
    data = json.loads(bpo("compare", PROMPT, "--threshold", "2", "--json").stdout)
    assert data["original_answer"]["words"] > 5
    assert data["optimized_answer"]["prompt"] == data["prompt"]["text"]


def test_doctor_finds_the_embedded_model_healthy() -> None:
    done = bpo("doctor", "--json")
    assert done.returncode == 0, done.stdout
    data = json.loads(done.stdout)
    assert data["healthy"] is True
    places = {place["what"]: place for place in data["places"]}
    assert places["base weights"]["bytes"] > 50e6
    assert Path(places["base weights"]["path"]).is_file()
    assert bpo("doctor").stdout.rstrip().endswith("The embedded model can run.")
