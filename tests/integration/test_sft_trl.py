"""TRL's own command takes our recipe and our rows, and trains the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
from toy_llama import ROWS, sft_options, write_rows, write_toy

from bpo_train.training.options import RECIPES
from bpo_train.training.rows import encode, split_examples
from bpo_train.training.sft import main

RECIPE = RECIPES / "qwen3-0.6b" / "trl.yaml"


def trl_options(toy: Path, rows: Path, output: Path) -> list[str]:
    return [
        *("--config", str(RECIPE), "--model_name_or_path", str(toy), "--dataset_name", str(rows)),
        *("--output_dir", str(output), "--dtype", "float32", "--bf16", "false", "--max_steps", "2"),
        *("--logging_steps", "1", "--eval_steps", "2", "--report_to", "none"),
    ]


def test_trl_sft_runs_our_recipe_on_the_rows_that_construct_writes(tmp_path: Path) -> None:
    toy, rows = write_toy(tmp_path / "toy"), tmp_path / "augment"
    rows.mkdir()
    for name in ("train", "validation", "test"):
        lines = [json.dumps({**row, "completion": row["addition"]}) for row in ROWS]
        (rows / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "trl.cli.main", "sft", *trl_options(toy, rows, tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2]
    assert any("eval_loss" in entry for entry in state["log_history"])


def test_trl_trains_the_same_tokens_on_the_rows_that_we_write_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer
    from trl import SFTTrainer
    from trl.scripts import sft

    toy, data = write_toy(tmp_path / "toy"), write_rows(tmp_path)
    main(sft_options(toy, data, tmp_path / "unused", "--write_rows", str(tmp_path / "chats")))
    found: list[Any] = []

    def stop(self: Any, **kwargs: Any) -> None:
        found.extend(self.train_dataset)
        raise InterruptedError

    monkeypatch.setattr(SFTTrainer, "train", stop)
    parser = sft.make_parser()
    options = trl_options(toy, tmp_path / "chats", tmp_path / "run")
    with pytest.raises(InterruptedError):
        sft.main(*parser.parse_args_and_config(options))
    examples, _ = split_examples(ROWS, mode="augment", held_out=["1", "2", "3"], licences=["Apache-2.0", "MIT"])
    ours = encode(examples, "augment", AutoTokenizer.from_pretrained(toy))
    newline = AutoTokenizer.from_pretrained(toy).encode("\n", add_special_tokens=False)
    expected = {((*row.prompt, *row.completion, *newline), len(row.prompt)) for row in ours}
    trained = {(tuple(row["input_ids"]), sum(label == -100 for label in row["labels"])) for row in found}
    # A template ends a turn with a newline, which TRL trains too; ours end where an engine stops.
    assert trained == expected
