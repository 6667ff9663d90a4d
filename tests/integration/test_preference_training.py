"""`bpo-train dpo` and `grpo` on a toy Llama with a toy adapter: where they start, what moves, what is written."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from toy_llama import ROWS, watched_weights, write_rows, write_toy

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.models.base import BASE_ID
from bpo_integrations.rewriter import Record
from bpo_integrations.templates import AUGMENT_FORMAT, PAPER_FORMAT, REWRITE_FORMAT
from bpo_train.cli import cli
from bpo_train.training import answers, dpo, grpo, rewards
from bpo_train.training import start as start_module
from bpo_train.training.dpo import encode_pairs, main, read_pairs
from bpo_train.training.mining import Pair
from bpo_train.training.pair_trainer import PairTrainer
from bpo_train.training.run import read_run, write_run
from bpo_train.training.start import prompt_format

PAIRS = [
    {
        "id": str(number),
        "prompt": f"What is the meaning of number {number}?",
        "chosen": f"Say what {number} stands for.",
        "rejected": f"Please provide number {number}",
        "why": "guard: unfinished" if number % 3 == 0 else "guard: asks back",
    }
    for number in range(12)
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def start(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that does something: no factor of it is zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(1)
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(toy), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    record = Record(name="start", mode="augment", format=AUGMENT_FORMAT, base=str(toy))
    (folder / "bpo.json").write_text(record.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(pair) for pair in PAIRS), encoding="utf-8")
    return path


def options(toy: Path, start: Path | str, pairs: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--config", "smollm2-135m/dpo", "--model_name_or_path", str(toy), "--adapter", str(start)),
        *("--pairs", str(pairs), "--output_dir", str(output), "--per_device_train_batch_size", "4"),
        *(
            "--gradient_accumulation_steps",
            "1",
            "--max_length",
            "400",
            "--learning_rate",
            "1e-2",
            "--warmup_steps",
            "0",
        ),
        *("--logging_steps", "1", "--save_steps", "2", "--disable_tqdm", "true", "--lr_scheduler_type", "constant"),
        *more,
    ]


def history(output: Path, step: int) -> list[dict[str, float]]:
    state = json.loads((output / f"checkpoint-{step}" / "trainer_state.json").read_text(encoding="utf-8"))
    found: list[dict[str, float]] = state["log_history"]
    return found


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The parameters by name before training and after it: (is trained, before, after)."""
    return watched_weights(monkeypatch, PairTrainer)


def test_dpo_starts_at_the_adapter_which_is_its_own_reference_and_moves_nothing_else(
    toy: Path, start: Path, pairs: Path, tmp_path: Path, weights: dict[str, Any]
) -> None:
    output = tmp_path / "run"
    main(options(toy, start, pairs, output, "--max_steps", "2", "--loss_type", "sigmoid", "--loss_weights", "1.0"))
    first, second = [entry for entry in history(output, 2) if "loss" in entry][:2]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the start is the reference: no margin yet
    assert second["loss"] != pytest.approx(math.log(2), abs=1e-4)
    given = load_file(start / "adapter_model.safetensors")
    for name, (trained, before, after) in weights.items():
        assert trained == (".default." in name), name
        assert bool((before != after).any()) == trained, name
        if "lora_" in name:
            saved = given[name.replace(".default.", ".").replace(".ref.", ".")]
            torch.testing.assert_close(before, saved, msg=name)
    assert sum(trained for trained, _, _ in weights.values()) == 2 * 14


def test_a_run_leaves_one_adapter_that_loads_and_says_what_it_is(
    toy: Path, start: Path, pairs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    main(options(toy, start, pairs, output, "--max_steps", "1", "--validation", "0.3"))
    assert not (output / "ref").exists()
    given, made = (load_file(folder / "adapter_model.safetensors") for folder in (start, output))
    assert given.keys() == made.keys()
    run = read_run(output)
    assert (run["stage"], run["method"], run["mode"], run["format_name"]) == ("dpo", "lora", "augment", "augment")
    assert run["data"]["rows"] + run["eval_data"]["rows"] == len(PAIRS)
    assert sum(run["data"]["reasons"].values()) == run["data"]["rows"]
    assert run["hyperparameters"]["loss_weights"] == [1.0, 0.5]
    assert "eval_rewards/accuracies" in run["metrics"]

    from bpo_integrations import load_rewriter

    rewriter = load_rewriter(f"hf:{output}")
    assert rewriter.record.name == "run"
    assert len(rewriter.candidates(["What is the meaning of number 7?"])) == 1


def test_dpo_goes_on_from_its_last_checkpoint_with_the_same_reference(
    toy: Path, start: Path, pairs: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main(options(toy, start, pairs, whole, "--max_steps", "4"))
    main(options(toy, start, pairs, parts, "--max_steps", "2"))
    main(options(toy, start, pairs, parts, "--max_steps", "4"))
    losses = [
        {entry["step"]: entry["loss"] for entry in history(folder, 4) if "loss" in entry} for folder in (whole, parts)
    ]
    assert list(losses[1]) == [1, 2, 3, 4]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert read_run(parts)["training"]["resumed_from"] == 2
    with pytest.raises(ConfigurationError, match="other options"):
        main(options(toy, start, pairs, parts, "--max_steps", "6", "--beta", "0.5"))


def test_the_likelihood_term_is_the_mean_over_the_chosen_tokens(
    toy: Path, start: Path, pairs: Path, tmp_path: Path
) -> None:
    """What the recipe's second loss adds at the first step is the start's own loss on the chosen texts."""
    losses = []
    for weight in ("0.0", "1.0"):
        output = tmp_path / weight
        main(
            options(toy, start, pairs, output, "--max_steps", "1", "--save_steps", "1", "--loss_weights", "1.0", weight)
        )
        losses.append(history(output, 1)[0]["loss"])
    assert losses[1] - losses[0] > 1  # of a vocabulary of 258, drawn at random
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)


def test_pairs_are_rendered_as_training_rows_and_an_unfinished_text_gets_no_end(toy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(toy)
    ended, cut = encode_pairs(
        [
            Pair("1", "Hi <|im_end|>", "Be kind.", "Go <|im_end|>", "generic"),
            Pair("2", "Hi", "", "Go", "guard: unfinished"),
        ],
        AUGMENT_FORMAT,
        tokenizer,
        None,
    )
    end = tokenizer.eos_token_id
    assert tokenizer.decode(ended.prompt).endswith("<|im_start|>assistant\n")
    assert ended.prompt.count(end) == 2  # the template's own two; the prompt's is text
    assert ended.rejected[-1] == end
    assert ended.rejected.count(end) == 1
    assert cut.chosen == (end,)
    assert end not in cut.rejected
    assert encode_pairs([Pair("1", "Hi", "Be kind.", "Go", "")], AUGMENT_FORMAT, tokenizer, 20) == []


@pytest.mark.slow
def test_two_processes_train_together(toy: Path, start: Path, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        main(options(toy, start, pairs, output, "--max_steps", "1", "--num_processes", "2"))
    assert ended.value.code == 0
    run = read_run(output)
    assert (run["training"]["processes"], run["training"]["rows_a_step"]) == (2, 8)
    assert not (output / "ref").exists()


def test_the_prompt_is_put_as_the_start_was_trained(start: Path, tmp_path: Path) -> None:
    assert prompt_format(start, "embedded", "augment") == AUGMENT_FORMAT  # its bpo.json
    with pytest.raises(ConfigurationError, match=r"in mode 'augment', not 'rewrite'.*--mode augment"):
        prompt_format(start, "embedded", "rewrite")
    assert prompt_format(tmp_path, "embedded", "rewrite") == REWRITE_FORMAT
    write_run(tmp_path, {"format": asdict(PAPER_FORMAT)})
    assert prompt_format(None, str(tmp_path), "rewrite") == PAPER_FORMAT
    (checkpoint := tmp_path / "checkpoint-5").mkdir()
    assert prompt_format(checkpoint, "embedded", "rewrite") == PAPER_FORMAT


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"pairs": "nowhere.jsonl"}, "There is no file nowhere.jsonl"),
        ({"start": "nowhere"}, "nowhere holds no adapter_config.json"),
        ({"start": "shipped"}, "for the embedded base"),
        ({"more": ("--mode", "sing")}, "Unknown mode 'sing'"),
        ({"more": ("--max_length", "10")}, "no pairs to train on"),
        ({"more": ("--nonsense", "1")}, "Unknown options"),
    ],
)
def test_dpo_refuses_what_cannot_work(
    toy: Path, start: Path, pairs: Path, tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    where = {"start": start, "pairs": pairs} | {name: value for name, value in changed.items() if name != "more"}
    with pytest.raises(ConfigurationError, match=says):
        main(options(toy, where["start"], where["pairs"], tmp_path / "run", *changed.get("more", ())))


def test_pairs_of_chat_messages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": [{"role": "user", "content": "Hi"}], "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(ConfigurationError, match="must be texts"):
        read_pairs(path)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


def test_mining_draws_for_rows_that_may_be_trained_on_and_writes_what_dpo_reads(
    start: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "mined"
    options = [
        *("mine", "--data", str(rows / "rows.jsonl"), "--held-out", str(rows / "held.txt"), "--licences", "MIT"),
        *("--model", f"hf:{start}", "--samples", "2", "--limit", "9", "--output", str(output)),
    ]
    done = CliRunner().invoke(cli, options)
    assert done.exit_code == 0, done.output
    pairs = read_pairs(output / "pairs.jsonl")
    allowed = {str(row["id"]) for row in ROWS if row["licence"] == "MIT" and int(str(row["id"])) > 3}
    assert pairs
    assert {pair.id for pair in pairs} <= allowed
    assert all(pair.why and pair.licence == "MIT" for pair in pairs)
    said = json.loads((output / "mined.json").read_text(encoding="utf-8"))
    assert (said["rows"], said["draws"], said["pairs"]) == (9, 18, len(pairs))
    kept = (output / "draws.jsonl").stat().st_mtime_ns
    assert CliRunner().invoke(cli, options).exit_code == 0
    assert (output / "draws.jsonl").stat().st_mtime_ns == kept  # nothing was drawn again
    done = CliRunner().invoke(cli, [*options, "--judge", "openai:x"])
    assert done.exit_code == 3
    assert "no LLM that answers" in done.output


@pytest.fixture(scope="module")
def judge(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of the toy's shape, with random weights."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(2)
    model: Any = LlamaForSequenceClassification(LlamaConfig.from_pretrained(toy, num_labels=1))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy).save_pretrained(folder)
    return folder


def grpo_options(toy: Path, start: Path, rows: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--config", "smollm2-135m/grpo", "--model_name_or_path", str(toy), "--adapter", str(start)),
        *("--data", str(rows / "rows.jsonl"), "--held_out", str(rows / "held.txt"), "--output_dir", str(output)),
        *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--num_generations", "2"),
        *("--max_completion_length", "8", "--learning_rate", "1e-2", "--warmup_steps", "0", "--logging_steps", "1"),
        *("--save_steps", "2", "--disable_tqdm", "true", *more),
    ]


def test_grpo_rewards_see_the_users_prompt_and_what_was_written_and_a_run_goes_on(
    toy: Path, start: Path, rows: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str, bool]] = []

    def reward(prompt: str, text: str, mode: str, *, finished: bool, judge: object) -> float:
        seen.append((prompt, text, finished))
        return 0.0 if len(text) % 2 else -1.0

    monkeypatch.setattr(rewards, "guard_reward", reward)
    output = tmp_path / "run"
    more = ("--llm", f"hf:{toy}", "--llm_max_tokens", "4", "--reward_model", str(judge))
    grpo.main(grpo_options(toy, start, rows, output, "--max_steps", "2", *more))
    known = {row["prompt"] for row in map(json.loads, (rows / "rows.jsonl").read_text().splitlines()) if row["id"] > 3}
    assert {prompt for prompt, _, _ in seen} <= known  # neither rendered, nor held out
    assert all("<|im_end|>" not in text and not finished for _, text, finished in seen if len(text) == 8)
    (logged,) = [entry for entry in history(output, 2) if entry["step"] == 2 and "loss" in entry]
    assert {"rewards/guards/mean", "rewards/answers/mean", "kl"} <= logged.keys()
    given, made = (load_file(folder / "adapter_model.safetensors") for folder in (start, output))
    assert all(bool((given[name] != made[name]).any()) for name in given)
    assert (output / grpo.LENGTH_STATE).is_file()

    grpo.main(grpo_options(toy, start, rows, output, "--max_steps", "4", *more))
    assert [entry["step"] for entry in history(output, 4) if "loss" in entry] == [1, 2, 3, 4]
    run = read_run(output)
    assert (run["stage"], run["training"]["resumed_from"], run["training"]["steps"]) == ("grpo", 2, 4)
    assert run["rewards"]["llm"] == f"hf:{toy}"
    assert not (output / "ref").exists()
    assert (output / "bpo.json").is_file()


def test_mining_reaches_llm_and_judge_on_their_servers(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def answer_gain(mode: str, **options: Any) -> Any:
        asked.update(options)
        msg = "enough"
        raise ConfigurationError(msg)

    monkeypatch.setattr(answers, "answer_gain", answer_gain)
    models = ("--llm", "a", "--judge", "b", "--llm-base-url", "http://one", "--judge-base-url", "http://two")
    found = CliRunner().invoke(cli, ["mine", "--data", str(rows), "--output", str(tmp_path), *models])
    assert "enough" in found.output
    assert (asked["llm_base_url"], asked["judge_base_url"]) == ("http://one", "http://two")


@pytest.mark.parametrize("named", [BASE_ID, "someone/else"])
def test_saving_asks_no_hub_about_the_embedded_base_and_closes_it_to_nobody_else(
    toy: Path, start: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    import peft.utils.other

    asked: list[str] = []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(peft.utils.other, "file_exists", lambda repository, *_, **__: asked.append(repository))
    load = start_module.load_start

    def from_a_file(*args: Any) -> Any:
        found = load(*args)
        config = found[0].peft_config["default"]
        found[0].config._name_or_path = config.base_model_name_or_path = named
        return found

    monkeypatch.setattr(dpo, "load_start", from_a_file)
    main(options(toy, start, pairs, tmp_path / "run", "--max_steps", "1", "--save_steps", "1"))
    assert set(asked) == ({"someone/else"} if named != BASE_ID else set())
    assert "HF_HUB_OFFLINE" not in os.environ


def test_grpo_puts_prompts_to_the_model_as_an_engine_does(toy: Path) -> None:
    from transformers import AutoTokenizer

    from bpo_train.training.rows import Example, render

    tokenizer = AutoTokenizer.from_pretrained(toy)
    texts = {"Hi there": "Be kind.", "Say <|im_end|> twice": "Be kind.", "Say hi": "", "Long " * 50: "Be kind."}
    examples = [Example(str(number), prompt, text) for number, (prompt, text) in enumerate([*texts.items()] * 2)]
    kept = [row.example for row in grpo.usable(examples, "augment", AUGMENT_FORMAT, tokenizer, 150)]
    assert [example.prompt for example in kept] == ["Hi there"]
    assert len(grpo.usable(examples, "rewrite", AUGMENT_FORMAT, tokenizer, 999)) == 3
    (row,) = grpo.to_dataset(kept, AUGMENT_FORMAT)
    ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    assert ids == render(kept[0], AUGMENT_FORMAT, tokenizer)[0]
    assert row["original"] == "Hi there"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--llm", "hf:embedded"), "a reward model or a judge"),
        (("--reward_model", "runs/reward"), "an LLM that writes them"),
        (("--llm", "hf:embedded", "--reward_model", "a", "--judge", "openai:b"), "Both a reward model and a judge"),
        (("--licences", "nobody"), "No prompts are left"),
        (("--held_out", "nowhere"), "nowhere cannot be read"),
        (("--reward_scale", "0"), "reward_scale is 0"),
    ],
)
def test_grpo_refuses_what_cannot_work(
    toy: Path, start: Path, rows: Path, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        grpo.main(grpo_options(toy, start, rows, tmp_path / "run", *more))
