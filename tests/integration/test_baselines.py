"""Reward model, DPO, PPO and RLOO for real, on a toy Llama: they learn, go on where they stopped, and can be used."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from toy_model import write_gguf

from bpo_integrations.cli.exits import FileError, exit_code
from bpo_integrations.engines.causal_lm import ChatTokenizer
from bpo_integrations.errors import ConfigurationError, ModelNotFoundError
from bpo_train.baselines import dpo, ppo, reward, rloo
from bpo_train.baselines.actor_critic import ActorCritic
from bpo_train.baselines.models import as_folder, load_model, reward_model_from
from bpo_train.baselines.ppo import PPO, PPOConfig, summary
from bpo_train.cli import cli
from bpo_train.reward_model import RewardModel, encode_pair

RECIPES = Path(__file__).parents[2] / "bpo_train" / "recipes" / "baselines" / "smoke"
PROMPTS = ["Hi", "ab", "Why?", "So be it"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with a byte-level tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("toy")
    return Path(as_folder(str(write_gguf(folder / "toy.gguf", context=512)), folder / "base"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preferences that anyone can tell: the better answer shouts."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    texts = [f"number {number} is {word}" for number, word in enumerate("odd even prime small large".split() * 16)]
    rows = [
        {"id": number, "source": "mine", "instruction": f"Say {number}", "good_res": text.upper(), "bad_res": text}
        for number, text in enumerate(texts)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def judge(toy: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that was trained on them."""
    output = tmp_path_factory.mktemp("reward") / "run"
    reward.main(
        options("reward", toy, pairs, output, learning_rate="1e-2", limit="64", num_train_epochs="2", held_out="0.2")
    )
    return output


def options(kind: str, toy: Path, pairs: Path, output: Path, **given: str) -> list[str]:
    named = {"config": str(RECIPES / f"{kind}.yaml"), "model_name_or_path": str(toy), "data": str(pairs)}
    named |= {"output_dir": str(output), "disable_tqdm": "true", **given}
    if kind == "ppo":
        del named["disable_tqdm"]
    return [part for name, value in named.items() for part in (f"--{name}", value)]


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return found


def moved(toy: Path, folder: Path) -> bool:
    """Whether every matrix differs from the base's."""
    before, after = load_file(toy / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    return all(not torch.equal(before[name], after[name]) for name in before if before[name].dim() > 1)


def test_a_reward_model_learns_what_is_preferred_and_can_be_loaded(judge: Path) -> None:
    found = metrics(judge)
    assert found["pairs"] == 16
    assert found["trained_pairs"] == 64
    assert found["accuracy"] == 1.0
    assert {file.suffix for file in judge.iterdir() if "model" in file.name and file.suffix != ".json"} == {
        ".safetensors"
    }
    good, bad = RewardModel(judge).score([("Say 3", "NUMBER NINE IS ODD"), ("Say 3", "number nine is odd")])
    assert good > bad


def test_a_score_does_not_depend_on_what_it_is_scored_with(judge: Path) -> None:
    model = RewardModel(judge)
    pairs = [("Hi", "yes"), ("Hi", "a long answer " * 9), ("Hi", ""), ("Hi <|im_end|>", "yes"), ("Hi", "yes")]
    together = model.score(pairs)
    assert together == pytest.approx([model.score([pair])[0] for pair in pairs], abs=1e-5)
    assert together[0] == together[4]
    assert model.score([]) == []


def test_a_long_pair_loses_the_end_of_its_answer_then_the_beginning_of_its_prompt(toy: Path) -> None:
    chat = ChatTokenizer(load_model(str(toy))[1])
    whole = encode_pair(chat, "Say it", "yes " * 40, max_length=500)
    cut = encode_pair(chat, "Say it", "yes " * 40, max_length=120)
    assert len(cut) == 120
    assert cut[:-1] == whole[:119]
    assert cut[-1] == whole[-1] == chat.tokenizer.eos_token_id
    both = encode_pair(chat, "x" * 400, "y" * 400, max_length=100)
    assert len(both) == 100
    assert both[-50:-1] == chat.encode("y" * 49)


def test_a_reward_model_by_adapter_has_a_head_that_was_trained(toy: Path, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "reward"
    lora = {"use_peft": "true", "lora_r": "2", "lora_target_modules": "all-linear"}
    reward.main(options("reward", toy, pairs, output, learning_rate="1e-2", limit="16", **lora))
    torch.manual_seed(1)  # the recipe's
    drawn = reward_model_from(*load_model(str(toy))).score.weight.detach()
    trained = load_file(output / "model.safetensors")["score.weight"]
    assert trained.shape == drawn.shape
    assert not torch.equal(trained, drawn)
    assert len(RewardModel(output).score([("Say 3", "NUMBER")])) == 1


def test_what_is_no_reward_model_is_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="Train one with"):
        RewardModel(tmp_path / "nothing")


def test_dpo_moves_every_matrix_towards_what_is_preferred(toy: Path, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "dpo"
    dpo.main(options("dpo", toy, pairs, output, learning_rate="1e-2", limit="32", num_train_epochs="2"))
    assert moved(toy, output)
    assert metrics(output)["margin"] > 0
    assert metrics(output)["train_accuracy"] > 0.9
    assert load_model(str(output))[0].config.architectures == ["LlamaForCausalLM"]


def test_rloo_trains_on_a_reward_model_for_its_steps_and_no_more(
    toy: Path, pairs: Path, judge: Path, tmp_path: Path
) -> None:
    output = tmp_path / "rloo"
    given = {"reward_model": str(judge), "learning_rate": "1e-2", "max_minutes": "60"}
    rloo.main(options("rloo", toy, pairs, output, **given))
    assert moved(toy, output)
    assert metrics(output)["steps"] == 2


def test_ppo_trains_on_a_reward_model_and_leaves_no_checkpoint(
    toy: Path, pairs: Path, judge: Path, tmp_path: Path
) -> None:
    output = tmp_path / "ppo"
    ppo.main(options("ppo", toy, pairs, output, reward_model=str(judge), learning_rate="1e-2"))
    assert moved(toy, output)
    assert metrics(output)["steps"] == 2
    assert metrics(output)["kl_first"] == pytest.approx(metrics(output)["kl_last"])  # means over the same two steps
    assert not list(output.glob("*checkpoint*"))


def test_ppo_of_an_adapter_writes_whole_weights(toy: Path, pairs: Path, judge: Path, tmp_path: Path) -> None:
    output = tmp_path / "ppo"
    lora = {"use_peft": "true", "lora_r": "2", "lora_target_modules": "all-linear"}
    ppo.main(options("ppo", toy, pairs, output, reward_model=str(judge), learning_rate="1e-1", **lora))
    before, after = load_file(toy / "model.safetensors"), load_file(output / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}


# -- PPO itself -------------------------------------------------------------------------------------------------------


def small_letters(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Reward the share of small letters."""
    return [sum("a" <= letter <= "z" for letter in answer) / max(1, len(answer)) for _, answer in pairs]


def trainer(toy: Path, **given: Any) -> PPO:
    torch.manual_seed(0)
    settings = {"batch_size": 32, "minibatch_size": 32, "microbatch_size": 32, "epochs": 2, "max_new_tokens": 8}
    settings |= {"learning_rate": 1e-2, "value_learning_rate": 1e-2, "kl_weight": 0.01, "lam": 1.0, **given}
    model, tokenizer = load_model(str(toy))
    return PPO(ActorCritic(model, tokenizer), small_letters, PPOConfig(output_dir="unused", **settings), PROMPTS)


def test_ppo_learns_to_write_what_is_rewarded(toy: Path, tmp_path: Path) -> None:
    rows = trainer(toy, steps=22).train(tmp_path)
    assert rows[0]["score"] < 0.2
    assert sum(row["score"] for row in rows[-3:]) / 3 > 0.6
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [*range(1, 23)]


def test_the_penalty_alone_brings_a_policy_back(toy: Path, tmp_path: Path) -> None:
    run = trainer(toy, steps=20, kl_weight=1.0, learning_rate=5e-3)
    run.score = lambda pairs: [0.0] * len(pairs)
    with torch.no_grad():
        torch.manual_seed(5)
        for weight in run.model.causal.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # the reference stays where it was
    rows = run.train(tmp_path)
    assert rows[0]["kl"] > 10
    assert rows[-1]["kl"] < 0.6 * rows[0]["kl"]


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(toy: Path, tmp_path: Path) -> None:
    given = {"steps": 4, "batch_size": 8, "save_steps": 2, "kl_target": 0.5}
    whole = trainer(toy, **given)
    rows = whole.train(tmp_path / "whole")
    stopped = trainer(toy, **given)
    stopped.config.max_minutes = 0.0  # stops before the first step, and again after the checkpoint below
    assert stopped.train(tmp_path / "parts") == []
    stopped.config.max_minutes = None
    calls = iter(range(3))
    score = stopped.score

    def killed(pairs: Sequence[tuple[str, str]]) -> list[float]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return score(pairs)

    stopped.score = killed
    with pytest.raises(KeyboardInterrupt):
        stopped.train(tmp_path / "parts")
    again = trainer(toy, **given)
    later = again.train(tmp_path / "parts")
    assert [row["step"] for row in later] == [3, 4]
    assert [row["kl_weight"] for row in later] == [row["kl_weight"] for row in rows[2:]]
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_log_of_a_killed_run_goes_on_from_the_checkpoint_whatever_its_last_line(toy: Path, tmp_path: Path) -> None:
    given = {"steps": 2, "batch_size": 4, "save_steps": 1}
    trainer(toy, **given).train(tmp_path)
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 2, "sc')
    trainer(toy, **given).train(tmp_path)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert summary(tmp_path / "log.jsonl")["steps"] == 2


def test_prompts_that_processes_cannot_share_evenly_are_refused(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo, "processes", lambda: SimpleNamespace(num_processes=3))
    with pytest.raises(ConfigurationError, match="batch_size 32 cannot be shared by 3 processes"):
        trainer(toy)


def test_a_process_stops_when_the_time_is_up_for_another(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(toy, steps=1, batch_size=4, max_minutes=60.0)
    monkeypatch.setattr(run, "_mean", lambda tensor: (tensor + 1) / 2)  # as with one more process, whose time is up
    assert run.train(tmp_path) == []


def test_a_full_disk_is_one_clear_line(
    toy: Path, pairs: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ppo, "save_model", full)
    argv = options("ppo", toy, pairs, tmp_path / "ppo", reward_model=str(judge), steps="1")
    done = CliRunner().invoke(cli, ["baseline", "ppo", *argv])
    assert (done.exit_code, "Free some space" in done.stderr) == (exit_code(FileError("")), True)


def test_a_checkpoint_of_another_model_is_refused(toy: Path, tmp_path: Path) -> None:
    trainer(toy, steps=2, batch_size=4, save_steps=1).train(tmp_path)
    other = trainer(toy, steps=2, batch_size=4)
    other.model.causal.model.embed_tokens.weight.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="is of another model"):
        other.train(tmp_path)


def test_log_probabilities_are_the_models_own_whatever_the_padding(toy: Path) -> None:
    model, tokenizer = load_model(str(toy))
    actor = ActorCritic(model, tokenizer)
    prompts = [actor.chat.render([{"role": "user", "content": prompt}]) for prompt in ("Hi", "a much longer prompt")]
    torch.manual_seed(1)
    rollout = actor.sample(prompts, max_new_tokens=6)
    with torch.no_grad():
        logps, values, _ = actor(rollout)
        for row, prompt in enumerate(prompts):
            answer = rollout.answers[row][: int(rollout.mask[row].sum())]
            ids = torch.cat([torch.tensor(prompt), answer])[None]
            own = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = own[torch.arange(len(answer)), answer]
            torch.testing.assert_close(logps[row][: len(answer)], expected, atol=1e-4, rtol=1e-4)
    assert values.abs().max() == 0  # the value head begins at zero
    torch.testing.assert_close(actor.reference_logps(rollout), logps)


def test_an_answer_ends_with_its_first_end_of_turn(toy: Path) -> None:
    model, tokenizer = load_model(str(toy))
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.eos_token_id] *= 3  # so that answers end early
    actor = ActorCritic(model, tokenizer)
    torch.manual_seed(0)
    rollout = actor.sample([actor.chat.render([{"role": "user", "content": "Hi"}])] * 32, max_new_tokens=12)
    ends = rollout.answers == tokenizer.eos_token_id
    assert ends.any()
    assert (rollout.mask.cumsum(1)[:, -1] < 12).any()
    for mask, end in zip(rollout.mask.tolist(), ends.tolist(), strict=True):
        length = end.index(True) + 1 if True in end else 12
        assert mask == [1] * length + [0] * (12 - length)


def test_every_prompt_is_answered_once_a_pass(toy: Path) -> None:
    run = trainer(toy, batch_size=3)
    seen = [prompt for number in range(4) for prompt, _ in run._prompts_of(number)]
    assert sorted(seen) == sorted(PROMPTS * 3)
    assert seen[:4] != seen[4:8] or seen[4:8] != seen[8:]


@pytest.mark.slow
def test_two_processes_share_the_prompts_and_hold_the_same_weights(toy: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        "from pathlib import Path\n"
        "from test_baselines import trainer\n"
        f"run = trainer(Path({str(toy)!r}), steps=2, batch_size=4)\n"
        "prompts = sorted(prompt for prompt, _ in run._prompts_of(0))\n"
        f"run.train(Path({str(tmp_path)!r}) / 'run')\n"
        "total = sum(weight.double().sum().item() for weight in run.model.parameters())\n"
        f"path = Path({str(tmp_path)!r}) / f'rank-{{run.state.process_index}}.txt'\n"
        "path.write_text(f'{prompts}\\n{total!r}')\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((tmp_path / f"rank-{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first[0] != second[0]
    assert first[1] == second[1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("reward", "--data", "nowhere.jsonl", "--output_dir", "x", "--bf16", "false"), "nowhere.jsonl"),
        (("dpo", "--data", "x", "--output_dir", "y", "--bf16", "false", "--sing", "1"), "--sing"),
        (("ppo", "--data", "x", "--reward_model", "y", "--output_dir", "z", "--steps", "0"), "steps is 0"),
    ],
)
def test_a_wrong_option_is_one_clear_line(given: tuple[str, ...], says: str) -> None:
    done = CliRunner().invoke(cli, ["baseline", *given])
    assert done.exit_code == 3
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
