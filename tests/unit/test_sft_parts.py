"""The parts of `bpo-train sft` that need no model: rows, refusals, launching, checkpoints, curves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.templates import PAPER_FORMAT
from bpo_train.training.arguments import SFTArguments
from bpo_train.training.checkpoints import keep_to_options, last_checkpoint
from bpo_train.training.launch import launch_command, wants_launch
from bpo_train.training.rows import Encoded, Example, fitting, load_data, split_examples, write_chat_rows
from bpo_train.training.run import _size, describe_data, read_run, write_run
from bpo_train.training.setup import Machine, accumulation, check_setup

OPTIONS = ["--config", "r.yaml", "--output_dir", "run"]
ONE_GPU = Machine(gpus=1, bf16=True)


def test_the_paper_format_is_a_choice_of_the_recipe() -> None:
    assert SFTArguments(data="x", mode="rewrite", prompt_format="paper").format == PAPER_FORMAT
    assert SFTArguments(data="x", mode="rewrite").format_name == "rewrite"
    with pytest.raises(ConfigurationError, match="augment, rewrite, paper"):
        SFTArguments(data="x", prompt_format="haiku")


def test_rows_of_construct_are_read_by_their_completion() -> None:
    row = {"id": "a", "source": "s", "licence": "MIT", "prompt": "Why?", "completion": "Be brief."}
    for mode in ("augment", "rewrite"):
        ((example,), _) = split_examples([row], mode=mode)
        assert example == Example("a", "Why?", "Be brief.", "MIT", "s")


def test_a_rewrite_is_never_taken_for_an_addition() -> None:
    row = {"id": "a", "prompt": "Why?", "completion": "Why is that so?", "optimized_prompt": "Why is that so?"}
    with pytest.raises(ConfigurationError, match="lacks the field 'addition'"):
        split_examples([row], mode="augment")


def test_chats_are_not_taken_for_texts() -> None:
    row = {"id": "a", "prompt": [{"role": "user", "content": "Why?"}], "completion": "Be brief."}
    with pytest.raises(ConfigurationError, match="must be texts"):
        split_examples([row], mode="augment")


def test_a_folder_of_construct_brings_its_validation_rows(tmp_path: Path) -> None:
    for name, prompts in (("train", ["One?", "Two?"]), ("validation", ["Three?"])):
        rows = [{"id": prompt, "prompt": prompt, "completion": "", "addition": ""} for prompt in prompts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = load_data(SFTArguments(data=str(tmp_path)))
    assert [example.prompt for example in data.train] == ["One?", "Two?"]
    assert [example.prompt for example in data.held_out] == ["Three?"]
    assert (data.file, data.eval_file) == (str(tmp_path / "train.jsonl"), str(tmp_path / "validation.jsonl"))


def test_long_rows_are_counted_and_refused_unless_they_may_be_left_out() -> None:
    rows = [Encoded(Example("a", "", ""), (1,) * size, (2,)) for size in (5, 9, 20)]
    with pytest.raises(ConfigurationError, match=r"2 of 3 .* max_length=8 .*--max_length 21.*--allow_dropping true"):
        fitting(rows, 8)
    assert [len(row) for row in fitting(rows, 8, allow_dropping=True)] == [6]
    assert fitting(rows, None) == rows
    with pytest.raises(ConfigurationError, match="All training rows"):
        fitting(rows, 3, allow_dropping=True)


@pytest.mark.parametrize(
    ("values", "machine", "says"),
    [
        (
            {},
            Machine(gpus=4, bf16=True),
            "--accelerate_config ddp --num_processes 4 .*CUDA_VISIBLE_DEVICES=0 bpo-train",
        ),
        ({"bf16": True}, Machine(), "bf16 needs a GPU.*bpo-train sft --config r.yaml --output_dir run --bf16 false"),
        ({"bf16": True}, Machine(gpus=1), "--bf16 false --fp16 true"),
        ({"load_in_4bit": True, "use_peft": True}, Machine(), "needs a CUDA device.*--load_in_4bit false"),
        ({"load_in_4bit": True}, ONE_GPU, "--use_peft true"),
        ({"padding_free": True}, Machine(), "--padding_free false --train_sampling_strategy group_by_length"),
        ({"packing": True}, ONE_GPU, "--packing false"),
        ({"trust_remote_code": True}, ONE_GPU, "never run"),
        ({"model_revision": "v2"}, ONE_GPU, "hf download"),
        ({"report_to": ["tensorboard", "no_such"]}, ONE_GPU, "pip install no_such"),
    ],
)
def test_a_setup_that_cannot_work_is_refused_with_the_command_that_does(
    values: dict[str, object], machine: Machine, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        check_setup(Namespace(**values), machine, OPTIONS)


@pytest.mark.parametrize(
    "machine", [ONE_GPU, Machine(), Machine(gpus=8, bf16=True, launched=True, processes=8)], ids=["gpu", "cpu", "ranks"]
)
def test_a_setup_that_works_is_not_refused(machine: Machine) -> None:
    values = {"bf16": machine.bf16 or None, "load_in_4bit": machine.gpus > 0, "use_peft": True, "report_to": "none"}
    check_setup(Namespace(**values), machine, OPTIONS)


def test_the_rows_of_a_step_are_the_recipes_on_any_number_of_processes() -> None:
    assert [accumulation(32, 4, processes, 1) for processes in (1, 2, 8)] == [8, 4, 1]
    assert accumulation(None, 4, 8, 3) == 3
    with pytest.raises(ConfigurationError, match="cannot be shared"):
        accumulation(32, 4, 3, 1)


def test_launching_passes_each_option_to_whom_it_is_for() -> None:
    options = ["--config", "r.yaml", "--accelerate_config", "zero2", "--seed", "8", "--num_processes", "8"]
    unknown = ["--accelerate_config", "zero2", "--num_processes", "8"]
    assert wants_launch(unknown)
    command = launch_command("bpo_train.training.sft", options, unknown)
    assert command[2:4] == ["accelerate.commands.launch", "--config_file"]
    assert Path(command[4]).name == "zero2.yaml"
    assert command[5:7] == ["--num_processes", "8"]
    assert command[7:] == ["-m", "bpo_train.training.sft", "--config", "r.yaml", "--seed", "8"]


def test_a_mere_number_of_processes_means_ddp_on_gpus() -> None:
    command = launch_command("m", ["--num_processes", "2"], ["--num_processes", "2"])
    assert Path(command[4]).name == "ddp.yaml"


def test_a_configuration_takes_all_gpus_of_the_machine_unless_a_number_is_given(tmp_path: Path) -> None:
    named = ["--accelerate_config", "zero2"]
    assert launch_command("m", named, named, gpus=4)[5:7] == ["--num_processes", "4"]
    for launcher in (["--accelerate_config", "single"], [*named, "--num_processes", "2"]):
        assert "4" not in launch_command("m", launcher, launcher, gpus=4)
    own = tmp_path / "own.yaml"
    own.touch()
    assert "4" not in launch_command("m", options := ["--accelerate_config", str(own)], options, gpus=4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whatever_ends_the_command_gives_the_launcher_time_to_stop_its_processes(
    tmp_path: Path, number: signal.Signals
) -> None:
    launcher = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    time.sleep(1); pathlib.Path('stopped').touch(); sys.exit(7)\n"
        "signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('begun').touch(); time.sleep(60)"
    )
    call = f"launch([sys.executable, '-c', {launcher!r}])"
    code = f"import sys; from bpo_train.training.launch import launch; sys.exit({call})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, start_new_session=True) as command:
        while not (tmp_path / "begun").exists():
            assert command.poll() is None
            time.sleep(0.02)
        if number == signal.SIGINT:
            os.killpg(command.pid, number)  # as a terminal does
        else:
            command.send_signal(number)  # as a scheduler does
        command.wait(timeout=60)
    assert (tmp_path / "stopped").exists()


def test_an_unknown_accelerate_configuration_names_the_known_ones() -> None:
    unknown = ["--accelerate_config", "zero9"]
    with pytest.raises(ConfigurationError, match="ddp, fsdp2, single, zero2, zero3"):
        launch_command("m", unknown, unknown)


def _checkpoint(folder: Path, step: int, state: str = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(state, encoding="utf-8")
    return path


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None
    complete = _checkpoint(tmp_path, 8)
    _checkpoint(tmp_path, 10, '{"global_step": 1')
    (tmp_path / "checkpoint-12").mkdir()
    assert last_checkpoint(tmp_path) == complete


def test_a_folder_with_a_run_of_other_options_is_refused(tmp_path: Path) -> None:
    keep_to_options(tmp_path, {"learning_rate": 1e-3, "seed": 7}, started=False)
    keep_to_options(tmp_path, {"learning_rate": 1e-3, "seed": 8}, started=False)  # nothing was saved yet
    keep_to_options(tmp_path, {"learning_rate": 1e-3, "seed": 8}, started=True)
    with pytest.raises(ConfigurationError, match=r"learning_rate was 0.001, is 0.002\. Give another --output_dir"):
        keep_to_options(tmp_path, {"learning_rate": 2e-3, "seed": 8}, started=True)
    write_run(tmp_path, {"stage": "sft"})
    with pytest.raises(ConfigurationError, match="seed was 8, is 9"):
        keep_to_options(tmp_path, {"learning_rate": 1e-3, "seed": 9}, started=False)


def test_run_json_is_read_back_and_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no run\.json"):
        read_run(tmp_path)
    write_run(tmp_path, {"stage": "sft", "mode": "augment"})
    assert read_run(tmp_path) == {"schema": 1, "stage": "sft", "mode": "augment"}
    (tmp_path / "run.json").write_text('{"schema": 2}', encoding="utf-8")
    with pytest.raises(ConfigurationError, match="not of schema 1"):
        read_run(tmp_path)


def test_run_json_counts_weights_that_lie_in_parts_or_two_in_a_byte() -> None:
    def weight(kind: str, size: int, **more: int) -> object:
        return type(kind, (), {"numel": lambda self: size, "element_size": lambda self: 1, **more})()

    found = [_size(each) for each in (weight("P", 6), weight("P", 0, ds_numel=6), weight("Params4bit", 3))]
    assert found == [6, 6, 6]


def test_run_json_counts_rows_by_licence_and_source(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n", encoding="utf-8")
    rows = [Encoded(Example(str(n % 2), "", "", "MIT", "ab"[n % 2]), (1, 2), (3,)) for n in range(3)]
    found = describe_data(
        str(file), rows, {"licence": 0, "too long": 4}, SFTArguments(data=str(file), licences=["MIT"])
    )
    assert found["sha256"] == "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    assert (found["rows"], found["distinct"], found["tokens"], found["completion_tokens"]) == (3, 2, 9, 3)
    assert (found["licences"], found["sources"]) == ({"MIT": 3}, {"a": 2, "b": 1})
    assert (found["dropped"], found["licences_asked"]) == ({"too long": 4}, ["MIT"])


def test_rows_for_trl_hold_the_instruction_and_the_answer_as_a_chat(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "prompt": "Why?", "addition": "Be brief."}', encoding="utf-8")
    arguments = SFTArguments(data=str(tmp_path / "rows.jsonl"))
    write_chat_rows(tmp_path / "chat", load_data(arguments), arguments.format)
    row = json.loads((tmp_path / "chat" / "train.jsonl").read_text(encoding="utf-8"))
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["prompt"][1]["content"] == "Why?"
    assert row["completion"] == [{"role": "assistant", "content": "Be brief."}]


def test_the_curves_are_a_png_and_a_run_without_a_log_has_none(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'train'")
    from bpo_train.training.curves import draw_curves

    assert draw_curves(tmp_path, [{"step": 1, "train_runtime": 3.0}]) == []
    history = [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 2.1}, {"step": 1, "eval_unchanged": 0.5}]
    for log in (history[:2], history):
        (name,) = draw_curves(tmp_path, log)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
