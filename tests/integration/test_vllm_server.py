"""A rewriter behind vLLM's own OpenAI-compatible server, on loopback: the same candidates as in this process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_setup import OPTIONS, merged_rewriter

from bpo_integrations.decoding import Decoding
from bpo_integrations.rewriter import load_rewriter

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.data, pytest.mark.slow]

SECONDS = 600  # what a busy machine may take to start it; nothing is asserted of it
SHORT = Decoding(max_new_tokens=32)


@pytest.fixture(scope="module")
def folder() -> Path:
    return merged_rewriter()


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As a module: the `vllm` command looks for a distribution of that name, which other builds do not have.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "rewriter", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--dtype", str(OPTIONS["dtype"]), "--max-model-len", str(OPTIONS["max_model_len"])]
    command += ["--max-num-seqs", str(OPTIONS["max_num_seqs"])]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < end, log.read_text(errors="replace")[-4000:]
            time.sleep(0.5)
        else:
            return


def questions(data_dir: Path) -> list[str]:
    with (data_dir / "testsets" / "vicuna_eval.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines][:8]


def test_greedy_candidates_are_those_of_the_engine_in_this_process(folder: Path, server: str, data_dir: Path) -> None:
    prompts = questions(data_dir)
    remote = load_rewriter("server:rewriter", base_url=server, record=folder, vllm=True, timeout=SECONDS)
    there = [row[0] for row in remote.candidates(prompts, SHORT)]
    local = load_rewriter(f"vllm:{folder}", **OPTIONS)
    here = [row[0] for row in local.candidates(prompts, SHORT)]
    assert [candidate.text for candidate in there] == [candidate.text for candidate in here]
    assert [candidate.finish_reason for candidate in there] == [candidate.finish_reason for candidate in here]
    local.close()
    remote.close()


async def test_the_server_gives_n_candidates_to_async_callers(folder: Path, server: str, data_dir: Path) -> None:
    remote = load_rewriter("server:rewriter", base_url=server, record=folder, vllm=True, timeout=SECONDS)
    rows = await remote.acandidates(questions(data_dir)[:2], Decoding(temperature=1.0, n=3, max_new_tokens=16))
    assert [len(row) for row in rows] == [3, 3]
    assert all(candidate.text for row in rows for candidate in row)
    remote.close()
