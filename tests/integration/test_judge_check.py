"""`bpo-train judge-check` with judges whose failings are known: on loopback, and a toy reward model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from llm_server import Key, llm_server, longer

from bpo_train.cli_gate import judge_check
from bpo_train.evaluation.judge import Shown
from bpo_train.evaluation.judge_check import load_pairs, read_check, sampled
from bpo_train.evaluation.verdicts import open_judge

for package in ("aiohttp", "filelock", "scipy"):
    pytest.importorskip(package, reason="needs the extra 'train'")

SUBSETS = ("natural", "adversarial_length")
Judge = Callable[[str, str, str], str]
"""(question, answer A, answer B) -> A, B or C."""


def rows(number: int, *, longer_is_better: bool) -> list[dict[str, Any]]:
    found = []
    for place in range(number):
        good = f"Right: {place}." + " It is so because it must be." * (3 if longer_is_better else 0)
        bad = f"Wrong: {place}." + " One might say many things about it." * (0 if longer_is_better else 3)
        outputs = (good, bad) if place % 2 else (bad, good)
        found.append(
            {
                "input": f"What is number {place}?",
                "output_1": outputs[0],
                "output_2": outputs[1],
                "label": 1 if place % 2 else 2,
            }
        )
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "llmbar"
    folder.mkdir()
    for subset, better in zip(SUBSETS, (True, False), strict=True):
        (folder / f"{subset}.json").write_text(json.dumps(rows(12, longer_is_better=better)), encoding="utf-8")
    return folder


def perfect(question: str, first: str, second: str) -> str:
    return "A" if first.startswith("Right") else "B"


def always_a(question: str, first: str, second: str) -> str:
    return "A"


def check(judge: Judge, data: Path, output: Path, *options: str, **server: Any) -> tuple[Result, Counter[Key]]:
    """Run the command against a judge on loopback; return the result, and how often the judge was asked what."""
    with llm_server(choose=judge, **server) as asked:
        arguments = ("--judge", "judge", "--base-url", asked.base_url, "--data", str(data), "--output", str(output))
        done = CliRunner().invoke(judge_check, [*arguments, *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done, asked.of("judge")


# -- what a check finds ------------------------------------------------------------------------------------------------


def test_a_judge_that_agrees_with_people_is_usable(data: Path, tmp_path: Path) -> None:
    done, asked = check(perfect, data, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    found = read_check(tmp_path / "out")
    assert (found["judge"], found["style"], found["n"]) == ("judge (pairwise)", "pairwise", 24)
    assert (found["agreement"], found["ci95"], found["verdict"]) == (100.0, [100.0, 100.0], "usable")
    assert {name: one["n"] for name, one in found["by_subset"].items()} == dict.fromkeys(SUBSETS, 12)
    assert found["position_bias"]["first"] == 50.0
    assert found["length_bias"]["longer_where_people_prefer_shorter"] == 0.0
    assert found["length_bias"]["correlation"] == found["length_bias"]["people"]
    assert "agrees with people on 100%" in done.stdout
    assert len(asked) == asked.total() == 48
    assert {(kind, question, second, first) for kind, question, first, second in asked} == set(asked), "both orders"


def test_a_judge_that_always_says_a_is_too_weak_and_goes_by_position(data: Path, tmp_path: Path) -> None:
    done, _ = check(always_a, data, tmp_path / "out")
    found = read_check(tmp_path / "out")
    assert (found["agreement"], found["verdict"]) == (50.0, "too weak")
    assert (found["right"], found["undecided"], found["wrong"]) == (0, 24, 0)
    assert found["position_bias"]["first"] == 100.0
    assert {one["position_bias"] for one in found["by_subset"].values()} == {100.0}
    assert "too weak to conclude" in done.stdout
    assert "goes by position: 100%" in done.stdout


def test_a_judge_that_prefers_the_longer_answer_is_found_out(data: Path, tmp_path: Path) -> None:
    done, _ = check(longer, data, tmp_path / "out")
    found = read_check(tmp_path / "out")
    assert found["by_subset"]["natural"]["agreement"] == 100.0
    assert found["by_subset"]["adversarial_length"]["agreement"] == 0.0
    assert found["length_bias"]["longer"] == found["length_bias"]["longer_where_people_prefer_shorter"] == 100.0
    assert found["length_bias"]["correlation"] > 0.9 > abs(found["length_bias"]["people"])
    assert found["verdict"] == "too weak"
    assert "worse than chance on: adversarial_length (0%)" in done.stdout
    assert "falls for length" in done.stdout


def test_a_judge_whose_verdicts_cannot_be_read_counts_half_and_nothing_is_dropped(data: Path, tmp_path: Path) -> None:
    done, _ = check(perfect, data, tmp_path / "out", say=lambda letter, ranking: "Who knows?")
    found = read_check(tmp_path / "out")
    assert (found["n"], found["agreement"], found["position_bias"]["unreadable"]) == (24, 50.0, 48)
    assert found["position_bias"]["first"] is None
    assert found["length_bias"]["longer"] is None
    assert done.exit_code == 0


def test_the_ranking_style_is_checked_in_its_own_words(data: Path, tmp_path: Path) -> None:
    check(perfect, data, tmp_path / "out", "--judge-style", "ranking")
    found = read_check(tmp_path / "out")
    assert (found["judge"], found["style"], found["agreement"]) == ("judge (ranking)", "ranking", 100.0)


# -- how it runs -------------------------------------------------------------------------------------------------------


def test_a_check_that_stopped_at_its_budget_goes_on_and_asks_nothing_twice(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    pair = load_pairs(data)[0]
    judge = open_judge("judge", base_url="http://localhost:1/v1")
    one = judge.expected(Shown(pair.id, pair.prompt, pair.preferred, pair.other)).tokens
    budget = str(2 * one + 300)  # two are under way at a time; a verdict of this server costs about 15
    done, first = check(perfect, data, output, "--budget-tokens", budget, "--concurrency", "1")
    assert done.exit_code == 5
    assert "larger --budget-tokens" in done.stderr
    part = read_check(output)
    assert 0 < part["n"] < 24
    assert part["left"] == 24 - part["n"]
    done, second = check(perfect, data, output)
    assert done.exit_code == 0, done.stderr
    assert set((first + second).values()) == {1}
    assert len(first + second) == 48
    whole, _ = check(perfect, data, tmp_path / "whole")
    assert whole.exit_code == 0
    same = ("n", "agreement", "ci95", "by_subset", "position_bias", "length_bias", "verdict", "text")
    again, at_once = read_check(output), read_check(tmp_path / "whole")
    assert {name: again[name] for name in same} == {name: at_once[name] for name in same}
    assert (output / "verdicts.jsonl").read_bytes() == (tmp_path / "whole" / "verdicts.jsonl").read_bytes()


def test_a_dry_run_asks_nobody_and_a_limit_takes_each_subset_by_its_share(data: Path, tmp_path: Path) -> None:
    done, asked = check(perfect, data, tmp_path / "out", "--limit", "6", "--dry-run")
    assert done.stdout.startswith("6 of 6 rows; about ")
    assert not asked
    assert not (tmp_path / "out").exists()
    pairs = sampled(load_pairs(data), 6)
    assert [pair.subset for pair in pairs].count("natural") == 3


def test_a_wrong_key_stops_at_once(data: Path, tmp_path: Path) -> None:
    done, _ = check(perfect, data, tmp_path / "out", "--concurrency", "2", refuse=401)
    assert done.exit_code == 3
    assert "key" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input": "Why?", "output_1": "a", "output_2": "b", "label": 3}, "row 1: no pair with a label"),
        ({"input": "Why?", "output_1": "a", "label": 1}, "row 1: no pair with a label"),
    ],
)
def test_a_row_that_is_no_pair_is_an_error_that_names_it(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps([row]))
    done, asked = check(perfect, tmp_path / "mine.json", tmp_path / "out")
    assert done.exit_code == 3
    assert says in done.stderr
    assert not asked


def test_files_that_differ_behind_a_dot_are_subsets_and_two_of_a_name_are_refused_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    row = {"input": "Why?", "output_1": "a", "output_2": "b", "label": 1}
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("pairs.v1.json", "pairs.v2.json"):
        (mine / name).write_text(json.dumps([row]))
    assert [pair.id for pair in load_pairs(mine)] == ["pairs.v1:1", "pairs.v2:1"]
    (mine / "pairs.v1.jsonl").write_text(json.dumps(row))
    done, asked = check(perfect, mine, tmp_path / "out")
    assert done.exit_code == 3
    assert "the subset pairs.v1" in done.stderr
    assert not asked


def test_an_empty_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    done, _ = check(perfect, tmp_path / "nothing", tmp_path / "out")
    assert done.exit_code == 3
    assert "no pairs in" in done.stderr


@pytest.mark.data
def test_llmbar_is_read_whole(data_dir: Path) -> None:
    pairs = load_pairs(data_dir / "llmbar")
    assert len(pairs) == len({pair.id for pair in pairs}) == 419
    assert {pair.subset for pair in pairs} == {
        "natural",
        *(f"adversarial_{name}" for name in ("gptinst", "gptout", "manual", "neighbor")),
    }
    rows_of = json.loads((data_dir / "llmbar" / "natural.json").read_text(encoding="utf-8"))
    assert [pair.preferred for pair in pairs if pair.subset == "natural"] == [
        row[f"output_{row['label']}"] for row in rows_of
    ]


# -- a reward model ----------------------------------------------------------------------------------------------------


def test_a_reward_model_is_checked_without_any_server(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra 'train'")
    from toy_llama import write_toy
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    toy = write_toy(tmp_path / "toy")
    model = AutoModelForSequenceClassification.from_pretrained(toy, num_labels=1)
    model.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(toy).save_pretrained(tmp_path / "reward")
    arguments = ["--judge", f"reward:{tmp_path / 'reward'}", "--data", str(data), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(judge_check, arguments)
    assert done.exit_code == 0, done.output
    found = read_check(tmp_path / "out")
    assert (found["style"], found["n"], found["tokens"]) == ("reward", 24, 0)
    assert found["position_bias"]["first"] == 50.0, "a score knows no position"
    assert "position" not in " ".join(found["text"])
    assert 0 <= found["agreement"] <= 100
