"""`bpo-train calibrate`: from the files of an evaluation, or shadow logs, to a policy that an optimizer loads."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import fake_rewriter

from bpo_integrations.gate import Gate
from bpo_integrations.optimizer import PromptOptimizer
from bpo_train.cli_gate import calibrate
from bpo_train.evaluation.records import Answer, TestPrompt, Verdict, write_records

for package in ("sklearn", "scipy"):
    pytest.importorskip(package, reason="needs the extra 'train'")

ADDITION = "Explain it step by step, with an example."
SUBJECTS = "tea bees rain trains salt glass bread maps wool tides clocks paper soap ink bells".split()


def prompt_of(place: int, *, long: bool) -> str:
    subject = SUBJECTS[place % len(SUBJECTS)]
    if not long:
        return f"Tell me about the {subject} of region {place}"
    return (
        f"Tell me about the {subject} of region {place}, how people there came to know about it in the first place, who"
        " wrote it down, what was lost over the centuries, and which of the old customs are still alive in the villages"
        " and towns of today"
    )


def evaluation(folder: Path, *, short_gains: float, long_gains: float, number: int = 160, judge: str = "j") -> Path:
    """Write the files of an evaluation in which short prompts win with one probability, long ones with another."""
    draw = random.Random(7)
    prompts, answers, verdicts = [], [], []
    for place in range(number):
        long = place % 2 == 1
        text = prompt_of(place, long=long)
        prompts.append(TestPrompt(f"s:{place}", text, set="s"))
        answers.append(Answer(f"s:{place}", "original", text, "An answer."))
        answers.append(
            Answer(
                *(f"s:{place}", "augment", f"{text}. {ADDITION}", "Another answer.", "augmented", "", ADDITION),
                p_empty=draw.random() / 2,
                logprob=-draw.random(),
            )
        )
        wins = draw.random() < (long_gains if long else short_gains)
        verdicts.append(Verdict(f"s:{place}", "AB", "A" if wins else "B", arm="augment", judge=judge))
        verdicts.append(Verdict(f"s:{place}", "BA", "B" if wins else "A", arm="augment", judge=judge))
    folder.mkdir(parents=True)
    write_records(folder / "prompts.jsonl", prompts)
    write_records(folder / "answers.jsonl", answers)
    write_records(folder / "verdicts.jsonl", verdicts)
    (folder / "summary.json").write_text(json.dumps({"llm": "an-llm", "judge": judge}))
    return folder


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(calibrate, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


async def test_what_an_evaluation_shows_is_what_the_optimizer_does(tmp_path: Path) -> None:
    folder, path = evaluation(tmp_path / "e", short_gains=0.9, long_gains=0.1), tmp_path / "policy.json"
    done = run("--evaluation", folder, "--output", path)
    assert done.exit_code == 0, done.stderr
    assert "Use BPO with this LLM, behind the gate" in done.stdout
    gate = Gate.read(path)
    assert (gate.name, gate.made_for["llm"], gate.made_for["arm"], gate.mode) == (
        "an-llm",
        "an-llm",
        "augment",
        "augment",
    )
    assert gate.measured["with_gate"]["ci95"][0] > 0
    assert gate.measured["difference"]["ci95"][0] > 0
    optimizer = PromptOptimizer(fake_rewriter(lambda prompt: ADDITION), policy=path)
    prompts = [prompt_of(900, long=False), prompt_of(901, long=True)]
    one = [optimizer.optimize(prompt) for prompt in prompts]
    assert [result.changed for result in one] == [True, False]
    assert one[1].reason.startswith("policy: gate: ")
    for results in (optimizer.optimize_batch(prompts), await optimizer.aoptimize_batch(prompts)):
        assert [(result.text, result.reason) for result in results] == [(result.text, result.reason) for result in one]


def test_where_nothing_is_gained_it_says_do_not_use_and_keeps_all(tmp_path: Path) -> None:
    folder, path = evaluation(tmp_path / "e", short_gains=0.35, long_gains=0.3), tmp_path / "policy.json"
    done = run("--evaluation", folder, "--output", path)
    assert done.exit_code == 0
    assert "Do not use BPO with this LLM" in done.stdout
    assert "keeps every prompt" in done.stdout
    optimizer = PromptOptimizer(fake_rewriter(lambda prompt: ADDITION), policy=path)
    assert {optimizer.optimize(prompt_of(place, long=False)).reason for place in range(5)} == {
        "policy: gate: keeps all"
    }


def test_where_all_gain_the_policy_leaves_all_to_the_rules(tmp_path: Path) -> None:
    folder, path = evaluation(tmp_path / "e", short_gains=0.8, long_gains=0.8), tmp_path / "policy.json"
    done = run("--evaluation", folder, "--output", path, "--llm", "mine", "--name", "for mine")
    assert "a gate gains nothing more" in done.stdout
    assert (Gate.read(path).acts, Gate.read(path).name, Gate.read(path).made_for["llm"]) == ("all", "for mine", "mine")


def test_a_judge_that_is_too_weak_shows_no_gain(tmp_path: Path) -> None:
    folder, path = evaluation(tmp_path / "e", short_gains=0.9, long_gains=0.9), tmp_path / "policy.json"
    check = {"judge": "j", "agreement": 55.0, "ci95": [50.0, 60.0]}
    (folder / "judge_check.json").write_text(json.dumps(check))
    done = run("--evaluation", folder, "--output", path)
    assert "agrees too little with people" in done.stdout
    assert Gate.read(path).acts == "none"
    assert Gate.read(path).made_for["judge_agreement"] == 55.0
    better = tmp_path / "better.json"
    better.write_text(json.dumps({**check, "agreement": 82.0, "ci95": [78.0, 86.0]}))
    assert run("--evaluation", folder, "--judge-check", better, "--output", path).exit_code == 0
    assert Gate.read(path).acts == "all"
    (folder / "judge_check.json").write_text(json.dumps({**check, "judge": "k"}))
    assert run("--evaluation", folder, "--output", path).exit_code == 0, "what lies there is about another judge"
    assert "judge_agreement" not in Gate.read(path).made_for
    better.write_text(json.dumps({"judge": "j", "agreement": "high"}))
    assert "agreement is 'high'" in run("--evaluation", folder, "--judge-check", better, "--output", path).stderr
    better.write_text(json.dumps({**check, "judge": "k"}))
    done = run("--evaluation", folder, "--judge-check", better, "--output", path)
    assert done.exit_code == 3
    assert "about the judge 'k'" in done.stderr


def test_shadow_logs_with_outcomes_are_enough(tmp_path: Path) -> None:
    optimizer = PromptOptimizer(fake_rewriter(lambda prompt: ADDITION), shadow=True)
    draw = random.Random(3)
    lines = []
    for place in range(160):
        result = optimizer.optimize(prompt_of(place, long=place % 2 == 1))
        assert not result.changed
        wins = draw.random() < (0.1 if place % 2 else 0.9)
        lines.append(json.dumps({**result.to_dict(), "outcome": 1 if wins else -1}))
    log, path = tmp_path / "shadow.jsonl", tmp_path / "policy.json"
    log.write_text("\n".join(lines), encoding="utf-8")
    done = run("--shadow", log, "--llm", "mine", "--output", path)
    assert done.exit_code == 0, done.stderr
    gate = Gate.read(path)
    assert (gate.acts, gate.made_for["judge"]) == ("some", "outcomes of shadow logs")
    gated = PromptOptimizer(fake_rewriter(lambda prompt: ADDITION), policy=path)
    assert gated.optimize(prompt_of(900, long=False)).changed
    assert not gated.optimize(prompt_of(901, long=True)).changed


def test_a_judge_check_without_the_verdicts_of_that_judge_is_refused_rather_than_left_out(tmp_path: Path) -> None:
    log, path, check = tmp_path / "shadow.jsonl", tmp_path / "policy.json", tmp_path / "check.json"
    log.write_text(json.dumps({"original": "Tell me", "proposal": "Tell me more.", "outcome": 1}))
    check.write_text(json.dumps({"judge": "j", "agreement": 55.0}))
    done = run("--shadow", log, "--judge-check", check, "--output", path)
    assert done.exit_code == 3
    assert "there is none" in done.stderr
    assert not path.exists()
    folder = evaluation(tmp_path / "e", short_gains=0.9, long_gains=0.9, judge="")
    assert "about the judge 'j'" in run("--evaluation", folder, "--judge-check", check, "--output", path).stderr


def test_an_evaluation_and_shadow_logs_go_together(tmp_path: Path) -> None:
    folder, path = evaluation(tmp_path / "e", short_gains=0.9, long_gains=0.9, number=40), tmp_path / "policy.json"
    text = prompt_of(500, long=False)
    log = tmp_path / "shadow.jsonl"
    log.write_text(json.dumps({"original": text, "proposal": f"{text}. {ADDITION}", "outcome": 1}))
    done = run("--evaluation", folder, "--shadow", log, "--output", path)
    assert done.exit_code == 0, done.stderr
    assert Gate.read(path).made_for["sets"] == {"s": 40, "shadow": 1}


def test_the_same_files_give_the_same_policy_byte_for_byte(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "e", short_gains=0.9, long_gains=0.1, number=80)
    for name in ("one.json", "two.json"):
        assert run("--evaluation", folder, "--output", tmp_path / name).exit_code == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def damaged(folder: Path) -> None:
    with (folder / "verdicts.jsonl").open("a") as file:
        file.write('{"id": "s:1", "order": "AC", "verdict": "A"}\n')


def repeated(folder: Path) -> None:
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    (folder / "prompts.jsonl").write_text("\n".join([*lines, lines[0]]))


@pytest.mark.parametrize(
    ("spoil", "options", "says"),
    [
        (lambda folder: (folder / "answers.jsonl").unlink(), (), "no file"),
        (damaged, (), "no Verdict"),
        (repeated, (), "a second row"),
        (lambda folder: None, ("--arm", "rewrite"), "no arm 'rewrite'"),
        (lambda folder: None, ("--judge", "k"), "no verdicts of the judge 'k'"),
        (lambda folder: (folder / "verdicts.jsonl").write_text(""), (), "no verdicts"),
    ],
)
def test_files_that_cannot_be_used_are_one_line_and_no_policy(
    spoil: Any, options: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    folder, path = evaluation(tmp_path / "e", short_gains=0.9, long_gains=0.1, number=10), tmp_path / "policy.json"
    spoil(folder)
    done = run("--evaluation", folder, "--output", path, *options)
    assert done.exit_code == 3
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not path.exists()


def test_nothing_to_calibrate_with_and_no_place_to_write_to(tmp_path: Path) -> None:
    assert run("--output", tmp_path / "policy.json").exit_code == 3
    folder = evaluation(tmp_path / "e", short_gains=0.9, long_gains=0.1, number=10)
    (tmp_path / "taken").write_text("")
    done = run("--evaluation", folder, "--output", tmp_path / "taken" / "policy.json")
    assert done.exit_code == 4
    assert "cannot be written" in done.stderr


# -- from the first command to the last --------------------------------------------------------------------------------


async def test_what_evaluate_writes_is_what_calibrate_reads(tmp_path: Path) -> None:
    from llm_server import llm_server

    from bpo_train.data.backends import open_backend
    from bpo_train.evaluation.arms import parse_arms
    from bpo_train.evaluation.evaluate import Evaluation
    from bpo_train.evaluation.verdicts import open_judge

    def choose(question: str, first: str, second: str) -> str:
        """Prefer the answer to the optimized prompt where the question is short, the other one where it is long."""
        optimized = "A" if ADDITION in first else "B"
        return optimized if len(question) < 80 else "B" if optimized == "A" else "A"

    prompts = [TestPrompt(f"s:{place}", prompt_of(place, long=place % 2 == 1), set="s") for place in range(48)]
    with llm_server(choose=choose) as server:
        judge = open_judge("judge", base_url=server.base_url)
        model = fake_rewriter(lambda prompt: ADDITION)
        run_ = Evaluation(prompts, parse_arms(["augment"]), "llm", judge, tmp_path / "e", model=model)
        await run_.run(open_backend("llm", base_url=server.base_url, temperature=0))
    path = tmp_path / "policy.json"
    done = run("--evaluation", tmp_path / "e", "--output", path)
    assert done.exit_code == 0, done.stderr
    gate = Gate.read(path)
    assert (gate.acts, gate.made_for["llm"], gate.made_for["judge"]) == ("some", "llm", "judge (pairwise)")
    optimizer = PromptOptimizer(model, policy=path)
    assert optimizer.optimize(prompt_of(900, long=False)).changed
    assert not optimizer.optimize(prompt_of(901, long=True)).changed
