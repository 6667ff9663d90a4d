"""The paper's table from end to end on a toy Llama, and what happens when stages fail, stop, or were never run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")
from click.testing import CliRunner, Result
from toy_model import write_gguf

from bpo_train.baselines import stages
from bpo_train.baselines.arms import ARMS, BY_NAME, COMPARISONS, GROUPS
from bpo_train.baselines.prompts import sent_file
from bpo_train.baselines.stages import SIZES, STAGES, PaperTable, Stage, run_all
from bpo_train.baselines.table import to_markdown
from bpo_train.baselines.verdicts import judge_arms, length_correlation, scores_file, verdicts
from bpo_train.cli import cli
from bpo_train.evaluation.records import BASELINE, Answer, TestPrompt, Verdict, read_records, write_records

QUESTIONS = {"first": ["Tell me about tea.", "How do vaccines work?"], "second": ["What is a prime?", "Name a city."]}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of a run on a toy model, forty pairs and four prompts."""
    folder = tmp_path_factory.mktemp("given")
    write_gguf(folder / "toy.gguf", context=4096)
    rows = [
        {
            "id": number,
            "instruction": f"Say {number}",
            "good_res": f"It is {number}." * (number % 3 + 1),
            "bad_res": "No",
        }
        for number in range(40)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ["--model", str(folder / "toy.gguf"), "--data", str(folder / "pairs.jsonl"), "--size", "smoke"]
    for name, questions in QUESTIONS.items():
        lines = [json.dumps({"prompt": question}) for question in questions]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        options += ["--set", str(folder / f"{name}.jsonl")]
    return options


def paper_table(output: Path, given: list[str], *more: str) -> Result:
    return CliRunner().invoke(cli, ["paper-table", "--output", str(output), *given, *more])


def put_prompts(output: Path) -> None:
    """Do the stages `optimize` and `passes` by hand, as another machine might have done them."""
    prompts = read_records(output / "prompts.jsonl", TestPrompt)
    for arm in {arm.sends for arm in ARMS} - {BASELINE, "placebo", "meta"}:
        rows = [Answer(one.id, arm, f"{one.prompt} Be {arm}.", "", kind="augmented") for one in prompts]
        write_records(sent_file(output, arm), rows)


@pytest.fixture(scope="module")
def whole(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished table."""
    output = tmp_path_factory.mktemp("whole") / "table"
    assert paper_table(output, given, "--stages", "split").exit_code == 0
    put_prompts(output)
    done = paper_table(output, given)
    assert done.exit_code == 0, done.output
    assert f"Written to {output / 'table.md'}." in done.output
    return output


def test_every_cell_is_there_and_the_table_says_that_it_is_a_smoke_run(whole: Path) -> None:
    found = json.loads((whole / "table.json").read_text(encoding="utf-8"))
    assert [(one["arm"], one["baseline"]) for one in found["comparisons"]] == list(COMPARISONS)
    assert all(one["run"] and one["all"]["n"] == 4 for one in found["comparisons"])
    assert all(set(one["sets"]) == set(QUESTIONS) for one in found["comparisons"])
    assert all(arm["answers"] == 4 for arm in found["arms"])
    assert all(found["trainings"].values())
    text = (whole / "table.md").read_text(encoding="utf-8")
    assert text.startswith("**A smoke run")
    assert "not run" not in text.replace("LLMBar: not run", "")
    assert found["judge"]["held_out"]["pairs"] > 0


def test_the_halves_share_nothing_and_the_judge_was_trained_on_the_other_one(whole: Path) -> None:
    halves = [
        {json.loads(line)["id"] for line in (whole / name).read_text(encoding="utf-8").splitlines()}
        for name in ("half_a.jsonl", "half_b.jsonl")
    ]
    assert len(halves[0]) == len(halves[1]) == 20
    assert not halves[0] & halves[1]
    judging = next(stage for stage in STAGES if stage.name == "reward-judge").run.keywords  # type: ignore[attr-defined]
    others = [stage.run.keywords["data"] for stage in STAGES if stage.name in ("dpo", "ppo", "rloo", "reward-ppo")]  # type: ignore[attr-defined]
    assert judging["data"] == 1
    assert others == [0, 0, 0, 0]
    assert judging["options"]["seed"] == "2"


def test_every_answer_is_an_answer_to_what_its_arm_sends(whole: Path) -> None:
    for arm in ARMS:
        sent = {row.id: row.sent for row in read_records(sent_file(whole, arm.sends), Answer)}
        rows = read_records(whole / "answers" / f"{arm.name}.jsonl", Answer)
        assert {row.id: row.sent for row in rows} == sent
        assert all(row.arm == arm.name and 0 < row.completion_tokens <= 32 for row in rows)


def test_verdicts_are_the_margins_of_the_scores(whole: Path) -> None:
    scores = {arm: json.loads((whole / "scores" / f"{arm}.json").read_text()) for arm in ("augment", BASELINE)}
    found = [
        row
        for row in read_records(whole / "verdicts.jsonl", Verdict)
        if (row.arm, row.baseline) == ("augment", BASELINE)
    ]
    assert len(found) == 4
    for row in found:
        margin = scores["augment"][row.id] - scores[BASELINE][row.id]
        assert row.margin == pytest.approx(margin, abs=1e-5)
        assert row.verdict == ("C" if margin == 0 else "A" if margin > 0 else "B")


def test_what_is_done_is_not_done_again(whole: Path, given: list[str]) -> None:
    files = [*(whole / "models").rglob("*.safetensors"), *(whole / "answers").iterdir(), *(whole / "scores").iterdir()]
    before = {file: file.stat().st_mtime_ns for file in files}
    table = (whole / "table.json").read_text(encoding="utf-8")
    assert paper_table(whole, given).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert (whole / "table.json").read_text(encoding="utf-8") == table
    (whole / "answers" / "dpo+bpo.jsonl").unlink()
    (whole / "done" / "answer-dpo.json").unlink()
    assert paper_table(whole, given, "--stages", "answer:dpo").exit_code == 0
    assert (whole / "answers" / "dpo+bpo.jsonl").is_file()
    assert (whole / "answers" / "dpo.jsonl").stat().st_mtime_ns == before[whole / "answers" / "dpo.jsonl"]


def test_scores_of_other_answers_or_of_another_judge_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[str, str]] = []

    class Judge:
        def __init__(self, folder: Path, *, dtype: str) -> None:
            pass

        def score(self, pairs: list[tuple[str, str]]) -> list[float]:
            counted.extend(pairs)
            return [float(len(counted)) for _ in pairs]

    monkeypatch.setattr("bpo_train.baselines.verdicts.RewardModel", Judge)
    prompts, model = [TestPrompt("1", "Why?"), TestPrompt("2", "How?")], tmp_path / "judge"
    for arm in (BASELINE, "ppo"):
        rows = [Answer("1", arm, "Why?", f"So says {arm}."), Answer("2", arm, "How?", "So.")]
        write_records(tmp_path / "answers" / f"{arm}.jsonl", rows)
    model.mkdir()
    (model / "metrics.json").write_text("{}")

    def scored(touched: Path | None = None) -> int:
        if touched:
            later = scores_file(tmp_path, "ppo").stat().st_mtime_ns + 1_000_000
            os.utime(touched, ns=(later, later))
        before = len(counted)
        judge_arms(tmp_path, model, prompts, None)
        return len(counted) - before

    assert scored() == 3  # what both said is scored once, and ties, however a score hangs on its batch
    assert [row.verdict for row in read_records(tmp_path / "verdicts.jsonl", Verdict)] == ["A", "C"]
    assert scored() == 0
    assert scored(tmp_path / "answers" / "ppo.jsonl") == 1
    assert scored(model / "metrics.json") == 3


def test_a_table_before_anything_was_judged_says_not_run_everywhere(given: list[str], tmp_path: Path) -> None:
    done = paper_table(tmp_path, given, "--stages", "split,table")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert not any(one["run"] for one in found["comparisons"])
    text = to_markdown(found)
    assert text.count("| not run |") >= len(COMPARISONS)
    assert "Judge: not run." in text


def test_wrong_options_are_one_clear_line(given: list[str], tmp_path: Path) -> None:
    assert "There is no stage 'sing'" in paper_table(tmp_path, given, "--stages", "sing").stderr
    lonely = paper_table(tmp_path, given, "--stages", "ppo")
    assert (lonely.exit_code, "needs the stage split" in lonely.stderr) == (3, True)
    assert paper_table(tmp_path, given, "--stages", "split").exit_code == 0
    other = paper_table(tmp_path, given, "--stages", "split", "--seed", "1")
    assert (other.exit_code, "begun with other settings: {'seed': 0}" in other.stderr) == (3, True)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Why?", "chosen": "a", "rejected": "b"}', encoding="utf-8")
    other = paper_table(tmp_path, given, "--stages", "split", "--data", str(tmp_path / "pairs.jsonl"))
    assert (other.exit_code, "begun with other settings: {'data':" in other.stderr) == (3, True)
    assert paper_table(tmp_path, given, "--stages", "split", "--data", str(tmp_path / "elsewhere.jsonl")).exit_code == 0


# -- the order of things, with stages that do nothing -----------------------------------------------------------------


def bare(tmp_path: Path) -> PaperTable:
    return PaperTable(tmp_path, tmp_path / "models", SIZES["smoke"], tmp_path / "none", ())


def test_a_stage_that_fails_takes_down_only_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def does(name: str) -> Callable[[PaperTable], None]:
        def run(table: PaperTable) -> None:
            ran.append(name)
            if name == "b" and ran.count("b") == 1:
                message = "the disk is full"
                raise OSError(message)

        return run

    names = {"a": (), "b": ("a",), "c": ("b",), "d": ("a",)}
    all_stages = [Stage(name, needs, does(name)) for name, needs in names.items()]
    all_stages.append(Stage("end", (), does("end"), after=tuple(names), again=True))
    monkeypatch.setattr(stages, "STAGES", tuple(all_stages))
    monkeypatch.setattr(stages, "_release", lambda: None)  # nothing was loaded
    failed = run_all(bare(tmp_path), [*names, "end"])
    assert ran == ["a", "b", "d", "end"]
    assert failed == {"b": "OSError: the disk is full", "c": "b was not done"}
    ran.append("b")  # it does not fail twice
    assert run_all(bare(tmp_path), [*names, "end"]) == {}
    assert ran[5:] == ["b", "c", "end"]


def test_when_the_time_is_up_only_what_counts_and_writes_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    all_stages = (
        Stage("a", (), lambda table: ran.append("a")),
        Stage("table", (), lambda table: ran.append("table"), after=("a",), again=True),
    )
    monkeypatch.setattr(stages, "STAGES", all_stages)
    assert run_all(bare(tmp_path), ["a", "table"], max_seconds=-1.0) == {"a": "the time was up"}
    assert ran == ["table"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_late_stage_is_ended_and_the_table_is_still_written(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Stage("slow", (), lambda table: None)
    monkeypatch.setattr(stages, "STAGES", (slow, Stage("table", (), lambda table: None, after=("slow",), again=True)))
    script = f"import sys, time; time.sleep(60 if sys.argv[1] == 'slow' else 1); open({str(tmp_path / 'made')!r}, 'w')"
    command = [sys.executable, "-c", script]
    failed = run_all(bare(tmp_path), ["slow", "table"], workers=workers, command=command, max_seconds=1.0)
    assert failed == {"slow": "the time was up"}
    assert (tmp_path / "made").is_file()


def test_an_interruption_ends_what_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def begin(*_: object) -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return begun[-1]

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "STAGES", (Stage("slow", (), lambda table: None),))
    monkeypatch.setattr(stages, "_begin", begin)
    monkeypatch.setattr(stages.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(bare(tmp_path), ["slow"], workers=2, command=["none"])
    assert [process.returncode for process in begun] == [-signal.SIGTERM]


def test_the_papers_arms_are_answered_before_anything_that_the_table_can_do_without() -> None:
    names = [stage.name for stage in STAGES]
    wanted = [names.index(f"answer:{group}") for group in ("main", "dpo", "ppo")]
    assert max(wanted) < min(names.index(name) for name in ("rloo", "meta", "passes"))


def test_margins_are_against_the_original_or_not_counted(tmp_path: Path) -> None:
    for arm, words in (("ppo", (1, 2, 3)), ("dpo", (2, 4, 6))):
        rows = [Answer(str(number), arm, "", "a " * count) for number, count in enumerate(words)]
        write_records(tmp_path / "answers" / f"{arm}.jsonl", rows)
        scores_file(tmp_path, arm).parent.mkdir(exist_ok=True)
        scores_file(tmp_path, arm).write_text(json.dumps({row.id: len(row.answer) for row in rows}))
    assert length_correlation(tmp_path) == {"answers": 1.0, "margins": 0.0}


def test_stages_run_in_processes_of_their_own(given: list[str], tmp_path: Path) -> None:
    done = paper_table(tmp_path, given, "--stages", "split,base,table", "--workers", "2")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "logs" / "base.log").is_file()
    found = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert found["about"]["prompts"] == 4
    assert (tmp_path / "models" / "base" / "model.safetensors").is_file()


def test_equal_scores_tie_and_an_arm_that_was_not_scored_has_no_verdicts() -> None:
    prompts = [TestPrompt("1", "Why?"), TestPrompt("2", "How?")]
    found = list(verdicts({BASELINE: {"1": 0.5, "2": 0.5}, "ppo": {"1": 0.5, "2": 0.75}}, prompts))
    assert [(one.arm, one.id, one.verdict, one.margin) for one in found] == [
        ("ppo", "1", "C", 0.0),
        ("ppo", "2", "A", 0.25),
    ]


def test_every_arm_is_answered_in_one_group_and_compared_with_the_original() -> None:
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(BY_NAME)
    assert {arm for arm, base in COMPARISONS if base == BASELINE} == set(BY_NAME) - {BASELINE}
    for group in GROUPS.values():
        assert len({BY_NAME[name].model for name in group}) == 1
