"""Two processes that share a step have the losses of one that does it alone; started by one command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
from safetensors.torch import load_file
from toy_llama import sft_options, write_rows, write_toy

from bpo_train.training.run import read_run
from bpo_train.training.sft import main


def history(folder: Path, name: str) -> dict[int, float]:
    state = json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text(encoding="utf-8"))
    return {entry["step"]: entry[name] for entry in state["log_history"] if name in entry}


def test_two_processes_have_the_losses_of_one_with_twice_the_accumulation(tmp_path: Path) -> None:
    toy, data = write_toy(tmp_path / "toy"), write_rows(tmp_path)
    more = ("--per_device_train_batch_size", "2", "--total_batch_size", "8", "--max_steps", "6", "--eval_steps", "3")
    # Two epochs of three whole steps: where rows are left over, several processes fill up the last one. The rows of a
    # step differ in length, so the two processes have different numbers of tokens to learn.
    more += ("--eval_generations", "3", "--limit", "24")

    options = sft_options(toy, data, tmp_path / "two", *more, "--num_processes", "2")
    command = [sys.executable, "-m", "bpo_train.cli", "sft", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    main(sft_options(toy, data, tmp_path / "one", *more))

    one, two = read_run(tmp_path / "one"), read_run(tmp_path / "two")
    assert (one["training"]["processes"], two["training"]["processes"]) == (1, 2)
    assert one["training"]["rows_a_step"] == two["training"]["rows_a_step"] == 8
    for name in ("loss", "grad_norm", "num_tokens", "eval_violations", "eval_unchanged"):
        ours, theirs = (history(tmp_path / folder, name) for folder in ("one", "two"))
        assert list(ours) == list(theirs) != []
        assert list(theirs.values()) == pytest.approx(list(ours.values()), rel=2e-4), name
    weights = [load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("one", "two")]
    assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-4 for name in weights[0])
