"""The recipes of the baselines: each is read whole by the training that it is for, and the sizes name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
import torch

from bpo_train.baselines import models
from bpo_train.baselines.common import parse
from bpo_train.baselines.dpo import DPOArguments
from bpo_train.baselines.ppo import PPOArguments, PPOConfig
from bpo_train.baselines.reward import RewardArguments
from bpo_train.baselines.rloo import RLOOArguments
from bpo_train.baselines.stages import RECIPES, SIZES

KINDS: dict[str, tuple[type, Any]] = {
    "reward": (RewardArguments, "RewardConfig"),
    "dpo": (DPOArguments, "DPOConfig"),
    "ppo": (PPOArguments, PPOConfig),
    "rloo": (RLOOArguments, "RLOOConfig"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_a_recipe_for_every_training_and_all_of_it_is_understood(
    size: str, kind: str, tmp_path: Path
) -> None:
    given = [
        "--config",
        str(RECIPES / SIZES[size].recipes / f"{kind}.yaml"),
        "--data",
        "x",
        "--output_dir",
        str(tmp_path),
    ]
    given += ["--reward_model", "y"] if kind in ("ppo", "rloo") else []
    given += ["--bf16", "false"] if size == "full" else []  # as the table does without a GPU
    arguments, config, model = parse(*KINDS[kind], given)
    assert arguments.data == "x"
    assert model.model_name_or_path == "embedded"
    assert model.dtype == "float32"
    assert config.output_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("known", "dtype"),
    [
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"avx2": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    known: dict[str, bool], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bpo_integrations.engines.transformers.best_device", lambda: "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert models.compute_dtype() == dtype


def test_an_older_torch_that_cannot_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpo_integrations.engines.transformers.best_device", lambda: "cpu")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert models.compute_dtype() == "float32"
