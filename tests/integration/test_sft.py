"""`bpo-train sft` for real, on a toy Llama: it trains, resumes, exports, and what it exports can be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
import torch
from safetensors.torch import load_file

from bpo_integrations.rewriter import Record
from bpo_train.training.rows import Example, encode, render, split_examples, to_dataset

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROWS = [
    {
        "id": number,
        "licence": "MIT" if number % 4 else "CC-BY-NC-4.0",
        "prompt": f"What is the meaning of number {number}?",
        "addition": "" if number % 5 == 0 else f"Explain number {number} with an example.",
    }
    for number in range(40)
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with a byte-level tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("toy")
    letters = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(sorted(letters))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    (folder / "held.txt").write_text("1\n2\n3\n", encoding="utf-8")
    return folder


def run_sft(toy: Path, data: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    recipe = Path(__file__).parents[2] / "bpo_train" / "recipes" / "smollm2-135m" / "augment.yaml"
    command = [
        *(sys.executable, "-m", "bpo_train.cli", "sft", "--config", str(recipe), "--model_name_or_path", str(toy)),
        *("--data", str(data / "rows.jsonl"), "--held_out", str(data / "held.txt"), "--output_dir", str(output)),
        *("--max_length", "400", "--logging_steps", "1", "--save_steps", "2", "--disable_tqdm", "true", *options),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_sft_moves_every_adapter_weight_resumes_and_exports(toy: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = run_sft(toy, data, output, "--max_steps", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "eval_loss" in done.stdout
    first = load_file(output / "adapter_model.safetensors")
    moved = [name for name, weight in first.items() if "lora_B" in name and bool(weight.abs().sum() > 0)]
    assert len(moved) == sum("lora_B" in name for name in first) == 14

    done = run_sft(toy, data, output, "--max_steps", "4")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
    history = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    steps = [entry["step"] for entry in history]
    assert steps.count(1) == 1  # went on from step 2, did not begin again

    exported = tmp_path / "exported"
    command = [*(sys.executable, "-m", "bpo_train.cli", "export", "--run", str(output), "--output", str(exported))]
    command += ["--mode", "augment", "--base", str(toy), "--threshold", "0.7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert Record.read(exported).empty_threshold == 0.7
    assert {weight.dtype for weight in load_file(exported / "adapter_model.safetensors").values()} == {torch.bfloat16}

    from bpo_integrations import load_rewriter

    rewriter = load_rewriter(f"hf:{exported}")
    (candidates,) = rewriter.candidates(["What is the meaning of number 7?"])
    assert len(candidates) == 1


def test_the_cpu_loss_equals_trls(toy: Path, tmp_path: Path) -> None:
    """Scoring the completion's positions only gives the value and the gradient of the full computation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bpo_train.training.loss import CompletionLossTrainer

    tokenizer = AutoTokenizer.from_pretrained(toy)
    model = AutoModelForCausalLM.from_pretrained(toy)
    rows = to_dataset(encode([Example("0", "What?", "Say why."), Example("1", "How so?", "")], "augment", tokenizer))
    from trl import SFTConfig

    config = SFTConfig(
        output_dir=str(tmp_path),
        bf16=False,
        report_to="none",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    trainer = CompletionLossTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator([rows[0], rows[1]])
    batch = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask", "labels")}
    mine = trainer.compute_loss(trainer.model, dict(batch))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    full = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(mine, full)


def test_the_completion_ends_with_the_turn_and_special_tokens_in_the_text_stay_text(toy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy)
    head, tail = render(Example("0", "Hi", ""), "augment", tokenizer)
    assert tail == [tokenizer.eos_token_id]
    assert tokenizer.decode(head).endswith("<|im_start|>assistant\n")
    _, tail = render(Example("0", "Hi", "Write <|im_end|> twice."), "augment", tokenizer)
    assert tail.count(tokenizer.eos_token_id) == 1


def test_held_out_rows_and_other_licences_are_never_trained_on() -> None:
    train, test = split_examples(ROWS, mode="augment", held_out=["1", "4"], licences=["MIT"])
    assert {example.id for example in test} == {"1", "4"}
    assert not {example.id for example in train} & {"1", "4", "0", "8"}
    assert len(train) == 29


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--data", "nowhere.jsonl"), "There is no file nowhere.jsonl"),
        (("--mode", "sing"), "Unknown mode 'sing'"),
        (("--licences", "nobody"), "No training rows are left"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    toy: Path, data: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    done = run_sft(toy, data, tmp_path / "run", *options)
    assert done.returncode == 3
    assert says in done.stderr
    assert "Traceback" not in done.stderr
