"""The model card: what the run says is in it, what it does not say is named, and nothing else is claimed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("huggingface_hub")
from huggingface_hub import ModelCard

from bpo_integrations.rewriter import Record
from bpo_integrations.templates import AUGMENT_FORMAT, PAPER_FORMAT
from bpo_train.model_card import FORMS, Card, render

RECORD = Record(
    name="mine", mode="augment", format=AUGMENT_FORMAT, base="some/base", languages=("en", "de"), empty_threshold=0.6
)
RUN: dict[str, Any] = {
    "stage": "sft",
    "mode": "augment",
    "method": "lora",
    "base": "some/base",
    "data": {
        "file": "rows.jsonl",
        "sha256": "ab12",
        "rows": 1519,
        "distinct": 1500,
        "licences": {"MIT": 1400, "CC-BY-NC-4.0": 100, "": 19},
        "sources": {"arena|hard": 1000, "mine": 519},
        "tokens": 90000,
        "completion_tokens": 40123,
        "dropped": {"too long": 7},
        "weights": ["mine=2", "elsewhere=3"],
    },
    "eval_data": {"rows": 100},
    "hyperparameters": {
        "learning_rate": 8e-4,
        "lora_target_modules": ["q_proj", "v_proj"],
        "lora_r": 16,
        "model_name_or_path": "/home/me/base",
    },
    "training": {"steps": 380, "epochs": 2.0, "rows_a_step": 8, "parameters": 1000, "trainable_parameters": 50},
    "metrics": {"eval_loss": 3.0891, "train_loss": 2.75, "eval_runtime": 12.0},
    "device": {"kind": "cpu", "name": "a CPU", "dtype": "float32"},
    "versions": {"trl": "1.16.0", "torch": "2.13.0"},
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("run", [RUN, None], ids=["run.json", "none"])
def test_the_head_is_metadata_that_the_hub_reads(form: str, run: Any) -> None:
    card = ModelCard(render(Card(RECORD, form, "int8", [run], "apache-2.0")), ignore_metadata_errors=False)
    assert card.data.base_model == "some/base"
    assert card.data.license == "apache-2.0"
    assert card.data.language == ["en", "de"]
    assert card.data.library_name == FORMS[form][0]
    assert ("lora" in card.data.tags) == (form == "adapter")
    assert f'model="{FORMS[form][1]}:DIR"' in card.content


def test_what_the_run_says_is_in_the_card() -> None:
    text = render(Card(RECORD, "adapter", "bfloat16", [RUN]))
    for part in (
        "1,519 rows (1,500 different ones), 40,123 tokens of completions",
        "100 rows were held out",
        "too long 7",
        "Sources weighted: mine=2",
        "`ab12`",
        "| arena\\|hard | 1,000 |",
        "| CC-BY-NC-4.0 | 100 |",
        "| `learning_rate` | 0.0008 |",
        "| `model_name_or_path` | base |",
        "| `lora_target_modules` | q_proj, v_proj |",
        "`bpo-train sft`, lora: 380 steps, 8 rows a step, 2 epoch(s), 50 trainable parameters (5.0%)",
        "| loss on the held-out rows, nats a token | 3.089 |",
        "trl 1.16.0, torch 2.13.0",
        "**100 of the rows come from sources that forbid commercial use.**",
        "**Of 19 of the rows the licence is unknown.**",
    ):
        assert part in text
    assert "eval_runtime" not in text
    assert "elsewhere" not in text
    assert "nknown: the run" not in text


def test_what_nobody_knows_is_named_and_no_figure_is_made_up() -> None:
    text = render(Card(RECORD, "ct2", "int8"))
    assert text.count("Unknown: ") == 4
    assert "license" not in text.split("---")[1]
    assert "not stated by who exported it" in text
    assert "Not claimed" in text


def test_the_figures_of_preference_training_have_its_own_names() -> None:
    run = {**RUN, "stage": "dpo", "start": "/home/me/runs/first", "metrics": {"eval_rewards/margins": 0.25}}
    text = render(Card(RECORD, "adapter", "bfloat16", [run]))
    assert "| `eval_rewards/margins` | 0.25 |" in text
    assert "`bpo-train dpo`, lora, from the adapter first: 380 steps" in text
    assert "/home/me" not in text


def test_a_base_that_is_no_hub_id_is_not_in_the_metadata() -> None:
    card = ModelCard(render(Card(Record("mine", "rewrite", PAPER_FORMAT, base="base.gguf"), "merged", "float32")))
    assert card.data.base_model is None
    assert "trained from base.gguf" in card.content
    assert "better prompt" in card.content


def test_averaged_runs_are_told_once_each() -> None:
    other = {**RUN, "data": {**RUN["data"], "rows": 77}}
    text = render(Card(RECORD, "adapter", "bfloat16", [RUN, RUN, other]))
    assert "the mean of 3 trained adapters" in text
    assert text.count("## Data of run") == 2
    assert "77 rows" in text
    assert "**200 of the rows" in text
