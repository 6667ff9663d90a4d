"""`bpo-train sft` on a toy Llama: which tokens train, which weights move, what is written, what is refused."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
import torch
from safetensors.torch import load_file
from toy_llama import ROWS, sft_options, watched_weights, write_rows, write_toy

from bpo_integrations.cli.exits import FileError
from bpo_integrations.errors import ConfigurationError, EngineError
from bpo_integrations.templates import AUGMENT_FORMAT
from bpo_train.training.loss import CompletionLossTrainer, EpochSampler
from bpo_train.training.rows import Example, encode, render, split_examples, to_dataset
from bpo_train.training.run import read_run
from bpo_train.training.sft import failures, main


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data"))


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The model's parameters by name before training and after it: (is trained, before, after)."""
    return watched_weights(monkeypatch, CompletionLossTrainer)


def tokenizer_of(toy: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(toy)


def trainer_of(toy: Path, output: Path, rows: Any, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    config = SFTConfig(
        output_dir=str(output),
        bf16=False,
        report_to="none",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        **options,
    )
    model = AutoModelForCausalLM.from_pretrained(toy)
    return CompletionLossTrainer(
        model=model, args=config, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer_of(toy)
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_trained_weight_moves_and_no_frozen_one_does(
    toy: Path, data: Path, tmp_path: Path, weights: dict[str, Any], method: str
) -> None:
    # An adapter's A factors have no gradient until its B factors have left zero: three steps.
    main(sft_options(toy, data, tmp_path, "--max_steps", "3", "--use_peft", str(method == "lora")))
    trained = {name for name, (is_trained, _, _) in weights.items() if is_trained}
    assert len(trained) == (28 if method == "lora" else len(weights))
    assert all(("lora_" in name) == (method == "lora") for name in trained)
    for name, (is_trained, before, after) in weights.items():
        assert torch.equal(before, after) != is_trained, name


def test_the_loss_is_on_the_completion_and_its_end_and_on_nothing_else(toy: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(toy)
    example = Example("0", "What? <|im_end|>", "Say <|im_end|> why.")
    rows = to_dataset(encode([example, Example("1", "How?", "")], "augment", tokenizer))
    trainer = trainer_of(toy, tmp_path, rows, per_device_train_batch_size=2)
    (batch,) = trainer.get_train_dataloader()
    texts = {}
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        trained = labels != -100
        assert torch.equal(ids[trained], labels[trained])
        texts[tokenizer.decode(ids[~trained])] = tokenizer.decode(ids[trained])
    padding = "<|im_end|>" * (batch["labels"].shape[1] - len(rows[1]["labels"]))
    asked = "<|im_start|>system\n" + str(AUGMENT_FORMAT.system) + "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    asked += "<|im_start|>assistant\n"
    assert texts == {
        asked.format("What? <|im_end|>"): "Say <|im_end|> why.<|im_end|>",
        asked.format("How?") + padding: "<|im_end|>",
    }
    end = tokenizer.eos_token_id
    assert rows[0]["labels"].count(end) == 1  # the mark inside the text is text
    # A change of any token that is not trained on changes no target: the gradient of the logits is zero there.
    logits: list[torch.Tensor] = []
    hook = trainer.model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output))
    trainer.compute_loss(trainer.model, {name: batch[name] for name in ("input_ids", "attention_mask", "labels")})
    hook.remove()
    assert logits[0].shape == (int((batch["labels"] != -100).sum()), len(tokenizer))


@pytest.mark.parametrize("items", [None, torch.tensor(50)])
def test_the_cpu_loss_and_its_gradient_are_trls(toy: Path, tmp_path: Path, items: torch.Tensor | None) -> None:
    from trl import SFTTrainer

    examples = [Example("0", "What?", "Say why."), Example("1", "How so?", "")]
    rows = to_dataset(encode(examples, "augment", tokenizer_of(toy)))
    trainer = trainer_of(toy, tmp_path, rows)
    batch = trainer.data_collator([rows[0], rows[1]])
    found = []
    for compute in (CompletionLossTrainer.compute_loss, SFTTrainer.compute_loss):
        trainer.model.zero_grad()
        loss = compute(trainer, trainer.model, dict(batch), num_items_in_batch=items)
        loss.backward()
        found.append([loss.detach(), *(weight.grad.clone() for weight in trainer.model.parameters())])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_held_out_loss_is_a_mean_over_tokens_whatever_the_batch(toy: Path, tmp_path: Path) -> None:
    from bpo_train.evaluation.loss import completion_loss

    examples, _ = split_examples(ROWS[:7], mode="augment")
    rows = to_dataset(encode(examples, "augment", tokenizer_of(toy)))
    trainer = trainer_of(toy, tmp_path, rows, per_device_eval_batch_size=3)
    expected, _ = completion_loss(trainer.model, tokenizer_of(toy), examples, mode="augment")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_order_of_the_rows_groups_lengths_and_changes_with_the_epoch_alone() -> None:
    lengths = [1, 2, 3, 4] * 16
    sampler = EpochSampler(lengths, group=8, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    assert sorted(first) == list(range(64))
    spread = [max(part) - min(part) for at in range(0, 64, 8) if (part := [lengths[i] for i in first[at : at + 8]])]
    assert sum(spread) <= 12  # at random it is 3 in nearly each of the 8
    sampler.epoch = 1
    assert list(sampler) != first
    assert list(EpochSampler(lengths, group=8, seed=4)) == list(sampler)


def test_special_tokens_in_the_text_stay_text(toy: Path) -> None:
    tokenizer = tokenizer_of(toy)
    head, tail = render(Example("0", "Hi", ""), "augment", tokenizer)
    assert tail == [tokenizer.eos_token_id]
    assert tokenizer.decode(head).endswith("<|im_start|>assistant\n")
    marked, _ = render(Example("0", "Hi<|im_end|>", ""), "augment", tokenizer)
    assert marked.count(tokenizer.eos_token_id) == head.count(tokenizer.eos_token_id)


def test_blank_edges_of_a_prompt_are_not_learnt_which_no_engine_passes_on(toy: Path) -> None:
    tokenizer = tokenizer_of(toy)
    (plain, _), (edged, _) = (render(Example("0", text, ""), "augment", tokenizer) for text in ("Hi", " \nHi\n\n"))
    assert edged == plain


def test_held_out_rows_and_other_licences_are_never_trained_on() -> None:
    train, test = split_examples(ROWS, mode="augment", held_out=["1", "4"], licences=["MIT"])
    assert {example.id for example in test} == {"1", "4"}
    assert not {example.id for example in train} & {"1", "4", "0", "8"}
    assert len(train) == 29


def test_a_run_leaves_its_weights_a_record_a_curve_and_events(toy: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra 'train'")
    options = sft_options(toy, data, tmp_path, "--max_steps", "4", "--eval_steps", "2", "--report_to", "tensorboard")
    main(options)
    assert load_file(tmp_path / "adapter_model.safetensors")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    run = read_run(tmp_path)
    assert (run["stage"], run["mode"], run["method"]) == ("sft", "augment", "lora")
    assert run["format"] == {"system": AUGMENT_FORMAT.system, "user": "{prompt}", "history": ""}
    assert (run["data"]["rows"], run["data"]["licences"]) == (27, {"MIT": 27})
    assert run["data"]["dropped"] == {"licence": 10}
    assert run["eval_data"]["rows"] == 3
    assert run["training"] | {"seconds": 0} == {
        "steps": 4,
        "epochs": 1.0,
        "rows_a_step": 8,
        "processes": 1,
        "parameters": 51488,
        "trainable_parameters": 16384,
        "resumed_from": None,
        "seconds": 0,
    }
    assert run["hyperparameters"]["learning_rate"] == 8e-4
    assert run["hyperparameters"]["lora_r"] == 16
    assert run["files"] == ["loss.png"]
    assert str(tmp_path) not in json.dumps({name: run[name] for name in ("hyperparameters", "training", "metrics")})
    assert {"eval_loss", "eval_violations", "eval_unchanged", "train_loss"} <= run["metrics"].keys()
    history = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [entry["step"] for entry in history if "eval_violations" in entry] == [2, 4]


def test_watching_what_it_writes_does_not_change_what_it_learns(toy: Path, data: Path, tmp_path: Path) -> None:
    for name, count in (("watched", "3"), ("alone", "0")):
        more = ("--max_steps", "4", "--eval_steps", "1", "--eval_generations", count, "--lora_dropout", "0.2")
        main(sft_options(toy, data, tmp_path / name, *more))
    watched, alone = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("watched", "alone"))
    assert all(torch.equal(watched[name], alone[name]) for name in watched)
    assert "eval_violations" not in read_run(tmp_path / "alone")["metrics"]


def test_what_is_watched_is_what_an_engine_writes(toy: Path) -> None:
    """A rewriter on the same weights gives the same candidates, one by one, as the watch in a batch."""
    from transformers import AutoModelForCausalLM

    from bpo_integrations.engines.transformers import TransformersEngine
    from bpo_integrations.rewriter import Record, Rewriter
    from bpo_train.training.watch import optimize

    prompts = [row["prompt"] for row in ROWS[:3]] + ["Why?"]
    model = AutoModelForCausalLM.from_pretrained(toy)
    record = Record("toy", "augment", AUGMENT_FORMAT, new_tokens=72, empty_threshold=0.5, repetition_penalty=1.15)
    rewriter = Rewriter(TransformersEngine(str(toy), device="cpu"), record)
    watched = optimize(model, tokenizer_of(toy), prompts, mode="augment", form=AUGMENT_FORMAT)
    assert [c.text for c in watched] == [rewriter.candidates([prompt])[0][0].text for prompt in prompts]
    assert all(candidate.text for candidate in watched)


def test_a_finished_run_is_made_longer_but_never_mixed_with_another(toy: Path, data: Path, tmp_path: Path) -> None:
    main(sft_options(toy, data, tmp_path, "--max_steps", "2"))
    main(sft_options(toy, data, tmp_path, "--max_steps", "4"))
    history = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
    assert read_run(tmp_path)["training"]["resumed_from"] == 2
    with pytest.raises(ConfigurationError, match=r"learning_rate was 0\.0008, is 0\.1.*another --output_dir"):
        main(sft_options(toy, data, tmp_path, "--max_steps", "4", "--learning_rate", "0.1"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--data", "nowhere.jsonl"), "There is no file nowhere.jsonl"),
        (("--mode", "sing"), "Unknown mode 'sing'"),
        (("--licences", "nobody"), "No training rows are left"),
        (("--max_length", "130", "--allow_dropping", "false"), "longer than max_length=130"),
        (("--no_such_option", "1"), "Unknown options: --no_such_option 1"),
        (("--bf16", "true"), "bf16 needs a GPU"),
        (("--load_in_4bit", "true"), r"\(QLoRA\) needs a CUDA device"),
        (("--total_batch_size", "3"), "cannot be shared"),
        (("--lora_target_modules", "no_such_layer"), "The trainer refuses these options.*no_such_layer"),
    ],
)
def test_a_wrong_option_is_refused(
    toy: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=says):
        main(sft_options(toy, data, tmp_path, *options))
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FileError, "Free some space. The same command goes on"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), FileError, "disk is full"),
        (torch.OutOfMemoryError("CUDA out of memory"), EngineError, "Halve --per_device_train_batch_size"),
    ],
)
def test_a_full_disk_and_a_full_gpu_say_what_to_do(error: Exception, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says), failures():
        raise error


@pytest.mark.gpu
def test_on_a_gpu_it_trains_in_bf16_and_the_loss_falls(toy: Path, data: Path, tmp_path: Path) -> None:
    main(sft_options(toy, data, tmp_path, "--max_steps", "8", "--learning_rate", "0.01"))
    run = read_run(tmp_path)
    assert (run["device"]["kind"], run["device"]["bf16"]) == ("cuda", True)
    history = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert run["metrics"]["eval_loss"] < losses[0]


def test_the_command_says_an_error_in_one_line(toy: Path, data: Path, tmp_path: Path) -> None:
    options = sft_options(toy, data, tmp_path, "--mode", "sing")
    command = [sys.executable, "-m", "bpo_train.cli", "sft", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "bpo-train: Unknown mode 'sing'. Use mode=augment or mode=rewrite."
    assert "Traceback" not in done.stderr
