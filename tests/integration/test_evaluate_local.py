"""`bpo-train evaluate` without any server: toy models of transformers answer, a toy reward model judges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from toy_llama import write_toy

from bpo_integrations.errors import ModelNotFoundError
from bpo_train.cli_evaluation import evaluate
from bpo_train.data.local import chat_engine
from bpo_train.evaluation.records import Answer, Verdict, read_records
from bpo_train.evaluation.steps import weights

for package in ("torch", "transformers", "peft", "filelock", "jinja2", "scipy"):
    pytest.importorskip(package, reason="needs the extra 'train'")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `whole`, a chat model; `adapter`, a LoRA on it; and `reward`, a reward model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("toy")
    whole = write_toy(folder / "whole")
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(whole), lora).save_pretrained(folder / "adapter")
    LlamaForSequenceClassification.from_pretrained(whole, num_labels=1).save_pretrained(folder / "reward")
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder / "reward")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mills.jsonl"
    rows = [{"prompt": f"Explain how a mill of kind {place} works"} for place in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(toy: Path, source: Path, output: Path, *options: str) -> Result:
    given = ("--llm", f"hf:{toy / 'whole'}", "--judge", f"reward:{toy / 'reward'}", "--set", str(source))
    done = CliRunner().invoke(evaluate, [*given, "--output", str(output), "--max-tokens", "12", *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.stderr
    return done


def test_models_in_this_process_answer_and_judge_and_the_next_run_loads_nothing(
    toy: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    done = run(toy, source, output, "--arm", "placebo")
    assert "placebo against original" in done.stdout
    assert "first in" not in done.stderr  # a reward model knows no position
    answers = read_records(output / "answers.jsonl", Answer)
    assert len(answers) == 40
    assert all(0 < answer.completion_tokens <= 12 and answer.prompt_tokens > 0 for answer in answers)
    verdicts = read_records(output / "verdicts.jsonl", Verdict)
    for ab, ba in zip(verdicts[::2], verdicts[1::2], strict=True):
        assert (ab.order, ba.order) == ("AB", "BA")
        assert ab.margin == ba.margin  # the arm's less the baseline's, in whichever order
        margin = ab.margin or 0.0  # equal answers have none
        wins = "AB" if margin > 0 else "BA" if margin < 0 else "CC"
        assert f"{ab.verdict}{ba.verdict}" == wins
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file() and path.suffix != ".json"}
    monkeypatch.setattr("bpo_integrations.engines.causal_lm.load_causal_lm", None)
    monkeypatch.setattr("bpo_train.reward_model.RewardModel", None)
    assert run(toy, source, output, "--arm", "placebo").stdout.splitlines()[:-1] == done.stdout.splitlines()[:-1]
    assert {name: (output / name).read_bytes() for name in before} == before


def test_an_adapter_answers_on_the_base_that_it_names_or_that_is_given(toy: Path, source: Path, tmp_path: Path) -> None:
    outputs = {}
    for name, options in {
        "whole": (),
        "adapter": ("--llm", f"hf:{toy / 'adapter'}"),
        "given": ("--llm", f"hf:{toy / 'adapter'}", "--llm-base", str(toy / "whole")),
    }.items():
        run(toy, source, tmp_path / name, "--arm", "placebo", "--limit", "3", *options)
        outputs[name] = [row.answer for row in read_records(tmp_path / name / "answers.jsonl", Answer)]
    assert outputs["adapter"] == outputs["given"] != outputs["whole"]
    other = ("--arm", "placebo", "--limit", "3", "--llm", f"hf:{toy / 'adapter'}", "--llm-base", str(toy / "reward"))
    with pytest.raises(AssertionError, match="llm_base"):
        run(toy, source, tmp_path / "given", *other)


def test_weights_that_changed_in_their_folder_are_another_model(toy: Path, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(toy / "whole", copy)
    same, output = weights(f"hf:{copy}"), tmp_path / "out"
    assert same == weights(f"hf:{toy / 'whole'}") != weights(f"hf:{toy / 'adapter'}")
    options = ("--arm", "placebo", "--limit", "2", "--llm", f"hf:{copy}")
    run(toy, source, output, *options)
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"another!")
    assert weights(f"hf:{copy}") != same
    with pytest.raises(AssertionError, match="other options: weights"):
        run(toy, source, output, *options)


def test_a_model_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="neither a folder nor in the hub's cache"):
        chat_engine(f"hf:{tmp_path / 'none'}")


@pytest.mark.model
def test_the_embedded_rewriter_augments_what_a_local_model_answers(toy: Path, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run(toy, source, output, "--arm", "augment", "--limit", "4")
    assert "augment against original" in done.stdout
    rows = [row for row in read_records(output / "answers.jsonl", Answer) if row.arm == "augment"]
    changed = [row for row in rows if row.kind == "augmented"]
    assert len(rows) == 4
    assert changed
    for row in changed:
        assert row.sent.endswith(row.addition)
        assert row.p_empty is not None
        assert row.optimizer_seconds > 0
