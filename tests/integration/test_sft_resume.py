"""A run that is killed, wherever, goes on with the losses that it would have had."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
from toy_llama import sft_options, write_rows, write_toy

# One process imports torch and forks a child for each run, before it has computed anything: an import takes longer than
# a run. A child is killed by SIGKILL, after the backward pass of a step or while it writes a checkpoint's state.
RUNNER = """
import json, os, signal, sys
import trl, transformers, peft
from transformers.trainer_callback import TrainerState
from bpo_train.training import loss, options, rows, watch
from bpo_train.training.sft import main

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_at(step, where):
    if where == "step":
        real = loss.CompletionLossTrainer.training_step
        def training_step(self, *args, **kwargs):
            found = real(self, *args, **kwargs)
            if self.state.global_step + 1 == step:
                die()
            return found
        loss.CompletionLossTrainer.training_step = training_step
    if where == "save":
        real_save = TrainerState.save_to_json
        def save_to_json(self, path):
            real_save(self, path)
            if self.global_step == step:
                text = open(path).read()
                open(path, "w").write(text[: len(text) // 2])
                die()
        TrainerState.save_to_json = save_to_json

ends = []
for job in json.loads(sys.argv[1]):
    pid = os.fork()
    if pid == 0:
        kill_at(job["step"], job["where"])
        main(job["options"])
        sys.stdout.flush()
        os._exit(0)
    ends.append(os.waitpid(pid, 0)[1])
print(json.dumps(ends))
"""


def losses(folder: Path) -> dict[int, float]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


def test_killed_in_a_step_or_while_it_saves_it_has_the_losses_of_the_undisturbed_run(tmp_path: Path) -> None:
    toy, data = write_toy(tmp_path / "toy"), write_rows(tmp_path)
    # Two epochs of 14 steps; dropout draws random numbers at each.
    more = ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2", "--lora_dropout", "0.3")
    more += ("--save_steps", "3", "--eval_steps", "5", "--eval_generations", "1", "--allow_dropping", "false")

    def job(folder: str, step: int = 0, where: str = "") -> dict[str, Any]:
        return {"options": sft_options(toy, data, tmp_path / folder, *more), "step": step, "where": where}

    # In the first epoch before any checkpoint, after one, while one is written, in the second epoch; then to the end.
    kills = [(2, "step"), (5, "step"), (12, "save"), (17, "step"), (28, "step")]
    jobs = [job("whole"), *(job("killed", step, where) for step, where in kills), job("killed")]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(jobs)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends == [0, *[signal.SIGKILL] * len(kills), 0], done.stderr[-3000:]
    whole, killed = (losses(tmp_path / folder / "checkpoint-28") for folder in ("whole", "killed"))
    assert list(whole) == list(range(1, 29))
    assert killed == whole
    assert len(set(whole.values())) > 20
