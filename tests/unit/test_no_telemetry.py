"""Nothing that trains here tells anybody about it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")


@pytest.mark.parametrize("module", ["bpo_train.training.sft", "bpo_train.training.dpo", "bpo_train.baselines.reward"])
def test_trls_reports_are_off_wherever_training_begins(module: str) -> None:
    code = (
        f"import {module}, trl, huggingface_hub.utils._telemetry as telemetry\n"
        "telemetry.send_telemetry('trl/x')\n"
        "assert telemetry._TELEMETRY_THREAD is None, 'a report was queued'\n"
        "print('silent')"
    )
    silencing = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI")
    env = {name: value for name, value in os.environ.items() if name not in silencing}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, env=env
    )
    assert done.stdout.strip() == "silent", done.stderr[-1500:]


def test_the_rewriters_trainers_have_no_report_of_their_own_whatever_was_imported_before() -> None:
    from bpo_train.training.loss import CompletionLossTrainer
    from bpo_train.training.pair_trainer import PairTrainer
    from bpo_train.training.reward_trainer import RewardTrainer

    for trainer in (CompletionLossTrainer, PairTrainer, RewardTrainer):
        assert trainer._send_telemetry.__module__.startswith("bpo_train"), trainer
