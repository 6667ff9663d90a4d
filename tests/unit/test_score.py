"""Quality without a judge: each measure reacts to what it is there for, and nothing that goes wrong is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fakes import FakeEngine, fake_rewriter
from hypothesis import given, settings
from hypothesis import strategies as st
from score_drift import drifted

from bpo_integrations import PromptOptimizer
from bpo_integrations.errors import ConfigurationError, EngineError, OptimizationError
from bpo_integrations.judging import join
from bpo_integrations.result import Candidate, OptimizedPrompt, Violation
from bpo_train.cli_score import folder_name, score
from bpo_train.evaluation.optimized import optimized
from bpo_train.evaluation.records import TestPrompt
from bpo_train.evaluation.score import (
    Average,
    Score,
    added,
    contexts_kept,
    distinct_share,
    failure,
    kept_because,
    languages_kept,
    raw_violations,
    score_results,
)
from bpo_train.evaluation.scoreboard import ALL, Scored, by_set, figures, grid, remarks, tables
from bpo_train.evaluation.subject import on_subject, tfidf_similarity

TOPICS = {
    "How is tea made?": "Compare how green, black and oolong tea are dried.",
    "Why is the sky blue?": "Explain which colours the air of the sky scatters.",
    "Tell me about bees": "Describe how bees dance and store honey.",
    "What is inflation?": "Show how inflation and wages move together.",
    "Write about the Alps": "Name two passes of the Alps and their weather.",
    "How do volcanoes erupt?": "Sketch the magma below volcanoes step by step.",
    "What do owls eat?": "List the prey of owls by season.",
    "How does a bicycle stay up?": "Cover balance and steering of a bicycle.",
    "Tell me about lighthouses": "Mention lamps and keepers of lighthouses.",
    "What is a glacier?": "Explain why a glacier flows and melts.",
    "Why do cats purr?": "Separate what is known of why cats purr from guesses.",
    "How do I bake bread?": "Give the stages of bread with temperatures.",
}
PROMPTS = [TestPrompt(str(number), text, set="mine") for number, text in enumerate(TOPICS)]
GENERIC = "Be clear, specific and detailed, and give examples."


def result(prompt: str, addition: str, violation: str | None = None) -> OptimizedPrompt:
    """What the optimizer makes of an addition: kept where a guard rejects it."""
    found = Violation(violation, "7") if violation else None
    candidates = (Candidate(addition, tokens=9, violation=found),)
    if violation or not addition:
        reason = f"guard {found}" if found else "model: nothing to add"
        return OptimizedPrompt(prompt, prompt, "kept", reason, candidates, seconds=0.5)
    return OptimizedPrompt(prompt, join(prompt, addition), "augmented", "added by the model", candidates, seconds=0.5)


def scored(additions: Sequence[str], violations: Sequence[str | None] = ()) -> Score:
    found = violations or [None] * len(additions)
    results = [result(prompt.prompt, *each) for prompt, *each in zip(PROMPTS, additions, found, strict=True)]
    return score_results(results, PROMPTS)


ON_SUBJECT = {"nearer to its prompt", "nearest to its prompt"}
SOUND = scored(list(TOPICS.values()))


def test_good_additions_score_as_such() -> None:
    assert (SOUND.prompts, SOUND.changed, SOUND.kept, SOUND.failed) == (12, 12, {}, 0)
    assert (SOUND.candidates, SOUND.violations, SOUND.violated_share) == (12, {}, 0.0)
    assert SOUND.alone == SOUND.distinct_4 == 1.0
    assert SOUND.subject is not None
    assert SOUND.subject.auc > 0.95
    assert SOUND.subject.first > 0.9
    assert SOUND.languages is not None
    assert SOUND.languages.kept == 1.0
    assert SOUND.seconds == 0.5


def test_one_addition_for_all_prompts_is_told_from_additions_of_their_own() -> None:
    generic = scored([GENERIC] * len(PROMPTS))
    assert generic.changed == 12
    assert generic.alone == 0.0
    assert generic.distinct_4 is not None
    assert generic.distinct_4 < 0.1
    assert generic.subject is not None
    assert (generic.subject.auc, generic.subject.first) == (0.5, 0.1)


def test_additions_that_belong_to_other_prompts_are_off_the_subject_however_distinct() -> None:
    texts = list(TOPICS.values())
    swapped = scored(texts[1:] + texts[:1])
    assert swapped.alone == swapped.distinct_4 == 1.0
    assert swapped.subject is not None
    assert swapped.subject.auc < 0.5
    assert swapped.subject.first < 0.1


def test_violations_are_counted_by_guard_and_their_prompts_count_as_kept() -> None:
    texts, bad = list(TOPICS.values()), ["new numbers"] * 3 + ["asks back"] + [None] * 8
    broken = scored(texts, bad)
    assert broken.violations == {"new numbers": 3, "asks back": 1}
    assert broken.violated_share == pytest.approx(4 / 12)
    assert broken.kept == {"guard new numbers": 3, "guard asks back": 1}
    assert broken.kept_by == {"guard": 4}
    assert broken.changed == 8


def test_a_candidate_counts_once_and_an_empty_one_not_at_all() -> None:
    numbers = Violation("numbers", "1985")
    candidates = [Candidate("a", violation=numbers), Candidate("b"), Candidate("", violation=numbers)]
    assert raw_violations(candidates) == {"numbers": 1}


def test_where_nothing_is_added_there_is_no_figure_rather_than_a_division_by_zero() -> None:
    nothing = scored([""] * len(PROMPTS))
    assert (nothing.changed, nothing.changed_share, nothing.candidates) == (0, 0.0, 0)
    assert nothing.kept_by == {"model": 12}
    for name in ("length_ratio", "words_added", "alone", "distinct_4", "subject", "contexts", "languages", "chrf"):
        assert getattr(nothing, name) is None, name
    assert nothing.violated_share is None
    assert json.loads(json.dumps(nothing.to_dict()))["changed_share"] == 0.0
    assert remarks([Scored("m", "augment", {"mine": nothing})]) == [
        "m, augment: nothing was added to the 12 prompts of mine."
    ]


def test_every_prompt_is_counted_once_as_changed_kept_or_failed() -> None:
    failed = OptimizedPrompt("Why?", "Why?", "kept", "failed: EngineTimeoutError: no answer in 60 s")
    error = OptimizationError("It could not be optimized.")
    error.__cause__ = EngineError("The engine crashed.")
    prompts = [PROMPTS[0], PROMPTS[1], TestPrompt("x", "Why?"), TestPrompt("y", "Who?")]
    results = [result(PROMPTS[0].prompt, "Name teas."), result(PROMPTS[1].prompt, ""), failed, error]
    found = score_results(results, prompts)
    assert found.failures == {"EngineTimeoutError": 1, "EngineError": 1}
    assert (found.changed, sum(found.kept.values()), found.failed, found.prompts) == (1, 1, 2, 4)
    assert "failed" in dict(row[:2] for row in grid({"a": found})[1])
    assert remarks([Scored("m", "augment", {"a": found})]) == [
        "m, augment: 2 of 4 prompts of a failed (EngineTimeoutError 1, EngineError 1)."
    ]


def test_a_later_pass_that_fails_leaves_a_change() -> None:
    changed = OptimizedPrompt("Why?", "Why so?", "rewritten", "rewritten by the model")
    assert failure(changed) is None


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("policy: fixed output", "policy: fixed output"),
        ("model: nothing to add", "model: nothing to add"),
        ("joint: nothing can follow this prompt", "joint: nothing can follow this prompt"),
        ("guard names: 'Ann: the cook'", "guard names"),
        ("optimized before", "optimized before"),
    ],
)
def test_reasons_are_told_without_the_users_words(reason: str, kind: str) -> None:
    assert kept_because(OptimizedPrompt("", "", "kept", reason)) == kind


def test_lengths_are_those_counted_by_hand() -> None:
    results = [
        OptimizedPrompt("one two", "one two three four", "augmented", ""),
        OptimizedPrompt("one two three four", "one, two", "rewritten", ""),
    ]
    found = score_results(results, [TestPrompt("1", "one two"), TestPrompt("2", "one two three four")])
    assert found.length_ratio == Average(1.25, 1.25)  # 4 / 2 and 2 / 4
    assert found.words_added == Average(1.0, 1.0)  # two words, and none


def test_the_new_words_of_a_rewrite_are_its_addition() -> None:
    assert added(OptimizedPrompt("Write a poem", "Write a short poem on owls", "rewritten", "")) == "short on owls"
    assert added(OptimizedPrompt("Hi", "Hi", "kept", "policy: small talk")) == ""


def test_a_context_that_was_shortened_or_dropped_is_noticed() -> None:
    context = "The tower was built in three years by two hundred people."
    found = contexts_kept(
        [(context, f"Sum up:\n{context}"), (context, f"Sum up: {context[:34]}"), (context, "Sum up:")]
    )
    assert found is not None
    assert found.prompts == 3
    assert found.verbatim == pytest.approx(1 / 3, abs=1e-4)
    assert found.similarity == pytest.approx((7 / 11 + 0) / 2, abs=1e-3)


def test_a_change_of_language_is_noticed_and_what_is_too_short_to_tell_does_not_count() -> None:
    found = languages_kept(
        [
            ("Wie geht es dir heute?", "How are you today, my friend?"),
            ("Tell me about tea and coffee", "Tell me about tea and coffee. Explain both."),
            ("x = 1", "x = 1. y = 2"),
        ]
    )
    assert found is not None
    assert (found.prompts, found.kept, found.changes) == (2, 0.5, {"de > en": 1})


def test_nearness_to_gold_rewards_the_gold_and_counts_only_prompts_that_have_one() -> None:
    prompts = [replace(PROMPTS[0], gold=join(PROMPTS[0].prompt, TOPICS[PROMPTS[0].prompt])), PROMPTS[1]]
    perfect = score_results([result(each.prompt, TOPICS[each.prompt]) for each in prompts], prompts).chrf
    worse = score_results([result(each.prompt, GENERIC) for each in prompts], prompts).chrf
    assert perfect is not None
    assert worse is not None
    assert perfect.prompts == worse.prompts == 1
    assert perfect.optimized == pytest.approx(100)
    assert worse.as_is == perfect.as_is < perfect.optimized
    assert worse.optimized < perfect.optimized


def test_no_prompts_and_results_that_do_not_match_are_errors() -> None:
    with pytest.raises(ConfigurationError, match="no prompts"):
        score_results([], [])
    with pytest.raises(ConfigurationError, match="1 results for 12"):
        score_results([result("Why?", "")], PROMPTS)
    with pytest.raises(ConfigurationError, match="no prompts"):
        by_set([], [])


def test_one_prompt_has_no_rivals_and_equal_prompts_are_none() -> None:
    assert on_subject(["Why?"], ["Say why."]) is None
    assert on_subject(["Why?", "Why?"], ["Say why.", "Say it."]) is None
    found = on_subject(["Why tea?", "Why tea?", "Why bees?"], ["On tea.", "Tea.", "On bees."])
    assert found is not None
    assert (found.auc, found.first) == (1.0, 1.0)


def test_the_chance_of_being_first_is_that_of_drawing_rivals() -> None:
    near = np.array([[0.5, 0.9, 0.5, 0.1, 0.1], *([[0.0] * 5] * 4)])
    prompts = list("abcde")
    found = on_subject(prompts, prompts, similarity=lambda additions, others: near, rivals=2)
    assert found is not None
    # of the first, one rival is better, one as good, two worse: 6 draws of two; won are worse+worse (1), and half of
    # tie+worse (2 of them); the other four tie with both of their rivals
    assert found.first == pytest.approx(((1 + 2 / 2) / 6 + 4 * (1 / 3)) / 5, abs=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=12), st.text(max_size=30))
def test_no_text_breaks_a_measure_and_a_constant_addition_is_worth_a_guess(texts: list[str], same: str) -> None:
    found = on_subject(texts, [same] * len(texts))
    if found is not None and len(set(texts)) == len(texts):
        assert found.auc == pytest.approx(0.5)
        assert found.first == pytest.approx(1 / (found.rivals + 1), abs=1e-4)
    assert 0 <= distinct_share(texts) <= 1
    prompts = [TestPrompt(str(number), text, context=same) for number, text in enumerate(texts)]
    results = [OptimizedPrompt(text, text + same, "augmented", "") for text in texts]
    made = score_results(results, prompts)
    assert made.changed == (len(texts) if same else 0)
    json.dumps(made.to_dict())


def test_of_very_many_additions_so_many_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpo_train.evaluation.subject.MOST", 5)
    found = on_subject(list(TOPICS), list(TOPICS.values()))
    assert found is not None
    assert (found.additions, found.rivals) == (4, 3)  # every third of twelve


def test_a_lone_surrogate_is_a_text_like_any_other() -> None:
    odd = "Tell me about \ud800 tea and how it is made"
    results = [
        OptimizedPrompt(odd, odd + ". Be brief \ud800.", "augmented", ""),
        result("What is a glacier?", "Name one."),
    ]
    prompts = [TestPrompt("1", odd, context="\ud800 tea", gold=odd), TestPrompt("2", "What is a glacier?")]
    assert score_results(results, prompts).changed == 2


def test_texts_without_any_word_have_nothing_in_common() -> None:
    assert tfidf_similarity(["  "], ["", " "]).tolist() == [[0.0, 0.0]]


def test_sets_are_scored_apart_and_together() -> None:
    prompts = [replace(each, set="first" if number < 4 else "second") for number, each in enumerate(PROMPTS)]
    results = [result(each.prompt, TOPICS[each.prompt] if each.set == "second" else "") for each in prompts]
    found = by_set(results, prompts)
    assert {name: (each.prompts, each.changed) for name, each in found.items()} == {
        "first": (4, 0),
        "second": (8, 8),
        ALL: (12, 8),
    }


def test_tables_show_sets_of_one_model_and_models_of_each_set_side_by_side() -> None:
    one = Scored("embedded", "augment", {"mine": SOUND, ALL: SOUND})
    (table,) = tables([one])
    assert [column.header for column in table.columns] == ["", "mine", ALL]
    both = tables([one, replace(one, mode="rewrite")])
    assert [each.title for each in both] == ["mine", ALL]
    assert [column.header for column in both[0].columns] == ["", "embedded, augment", "embedded, rewrite"]
    assert figures(SOUND)["changed"] == "12 (100%)"
    assert "failed" not in [row[0] for row in grid({"mine": SOUND})[1]]


@pytest.mark.parametrize(
    ("spoilt", "moved"),
    [
        (scored([GENERIC] * len(PROMPTS)), {"alone", *ON_SUBJECT}),
        (scored([*list(TOPICS.values())[1:], TOPICS["How is tea made?"]]), ON_SUBJECT),
        (scored(list(TOPICS.values()), [*["new names"] * 4, *[None] * 8]), {"violated", "changed"}),
        (scored(list(TOPICS.values())), set()),
    ],
    ids=["always the same", "of other prompts", "with violations", "as it was"],
)
def test_spoilt_additions_drift_in_the_measures_that_are_there_for_it(spoilt: Score, moved: set[str]) -> None:
    assert drifted(spoilt.to_dict(), SOUND.to_dict()) == moved


# -- optimizing with a journal ------------------------------------------------------------------------------------


def test_a_later_run_optimizes_only_what_is_new_or_failed(tmp_path: Path) -> None:
    def flaky(prompt: str) -> str:
        if "tea" in prompt and not healed:
            raise EngineError("The engine crashed.")
        return TOPICS[prompt]

    healed: list[bool] = []
    rewriter = fake_rewriter(flaky)
    engine = rewriter.engine
    assert isinstance(engine, FakeEngine)
    first = optimized(PromptOptimizer(rewriter), PROMPTS[:1], folder=tmp_path)
    assert failure(first[0]) == "EngineError"
    healed.append(True)
    done: list[int] = []
    again = optimized(PromptOptimizer(rewriter), PROMPTS, folder=tmp_path, update=done.append)
    assert [each.original for each in again] == list(TOPICS)
    assert all(each.changed for each in again)
    assert done == [0, 12]
    calls = len(engine.calls)
    assert optimized(PromptOptimizer(rewriter), PROMPTS, folder=tmp_path) == again
    assert len(engine.calls) == calls
    other = [replace(PROMPTS[0], prompt="What do owls eat?"), *PROMPTS[1:]]
    assert optimized(PromptOptimizer(rewriter), other, folder=tmp_path)[0].original == "What do owls eat?"


def test_results_of_another_rewriter_are_refused(tmp_path: Path) -> None:
    optimized(PromptOptimizer(fake_rewriter(TOPICS.__getitem__)), PROMPTS, folder=tmp_path)
    with pytest.raises(ConfigurationError, match="rewriter"):
        optimized(PromptOptimizer(fake_rewriter(TOPICS.__getitem__)), PROMPTS, folder=tmp_path)


def test_results_of_weights_that_were_trained_anew_are_refused(tmp_path: Path) -> None:
    weights, kept = tmp_path / "mine" / "model.safetensors", tmp_path / "kept"
    weights.parent.mkdir()
    weights.write_bytes(b"before")
    optimizer = PromptOptimizer(fake_rewriter(TOPICS.__getitem__))
    first = optimized(optimizer, PROMPTS, folder=kept, of=f"hf:{weights.parent}")
    assert optimized(optimizer, PROMPTS, folder=kept, of=f"hf:{weights.parent}") == first
    weights.write_bytes(b"after!")
    with pytest.raises(ConfigurationError, match="weights"):
        optimized(optimizer, PROMPTS, folder=kept, of=f"hf:{weights.parent}")


@given(st.lists(st.text(max_size=6), min_size=2, max_size=2, unique=True))
def test_two_models_never_share_a_folder(texts: list[str]) -> None:
    assert folder_name(texts[0]) != folder_name(texts[1])
    assert "/" not in folder_name(texts[0])


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `bpo-train score` on a file of the prompts above, with fake rewriters by spec."""
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TOPICS), encoding="utf-8")

    def crash(prompt: str) -> str:
        raise EngineError("The engine crashed.")

    fakes = {
        "sound": fake_rewriter(TOPICS.__getitem__),
        "generic": fake_rewriter(lambda prompt: GENERIC),
        "silent": fake_rewriter(lambda prompt: ""),
        "broken": fake_rewriter(crash),
    }

    def load(spec: Any, **options: Any) -> Any:
        if spec not in fakes:
            msg = f"Unknown rewriter {spec!r}."
            raise ConfigurationError(msg, hint="Use another.")
        return fakes[spec]

    monkeypatch.setattr("bpo_integrations.optimizer.load_rewriter", load)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*args: str, sets: str | None = None) -> Result:
        return CliRunner().invoke(score, [*args, "--set", sets or str(file)])

    return call


def test_models_stand_side_by_side_in_json_and_their_order_is_kept(run: Any) -> None:
    done = run("--model", "sound", "--model", "generic", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["subject"] == "TF-IDF"
    sound, generic = found["models"]
    assert (sound["model"], generic["model"]) == ("sound", "generic")
    assert sound["sets"]["mine"]["subject"]["auc"] > 0.9 > generic["sets"]["mine"]["subject"]["auc"] == 0.5
    assert generic["sets"]["mine"]["alone"] == 0.0


def test_the_table_shows_the_figures(run: Any) -> None:
    done = run("--model", "sound", "--limit", "5")
    assert done.exit_code == 0, done.output
    assert "5 (100%)" in done.stdout
    assert "sound, augment" in done.stdout


def test_a_model_that_adds_nothing_is_said_to(run: Any) -> None:
    done = run("--model", "silent")
    assert done.exit_code == 0, done.output
    assert "nothing was added to the 12 prompts of mine" in done.stderr


def test_a_broken_model_is_counted_and_ends_with_an_exit_code(run: Any) -> None:
    done = run("--model", "broken", "--model", "sound", "--json")
    assert done.exit_code == 1
    broken, sound = json.loads(done.stdout)["models"]
    assert broken["sets"]["mine"]["failures"] == {"EngineError": 12}
    assert sound["sets"]["mine"]["changed"] == 12
    assert "12 of 12 prompts of mine failed (EngineError 12)" in done.stderr


def test_an_empty_set_and_an_unknown_model_are_one_line(run: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for done in (run("--model", "sound", sets=str(empty)), run("--model", "sound", "--model", "none")):
        assert done.exit_code == 3
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
    assert run("--model", "none").stderr.startswith("bpo-train: Unknown rewriter 'none'.")


def test_the_output_folder_holds_the_figures_and_a_later_run_goes_on_there(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = run("--model", "sound", "--output", str(folder), "--json", "--limit", "6")
    assert json.loads((folder / "score.json").read_text()) == json.loads(first.stdout)
    assert (folder / "sound-augment" / "journal.jsonl").is_file()
    again = run("--model", "sound", "--output", str(folder), "--json", "--limit", "6")
    assert again.stdout == first.stdout


def test_a_folder_that_cannot_be_written_is_one_line(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("--model", "sound", "--output", str(tmp_path / "file" / "out"))
    assert done.exit_code == 4
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupted_run_says_what_was_kept(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bpo_train.evaluation.optimized.optimized", interrupt)
    done = run("--model", "sound")
    assert (done.exit_code, done.stderr) == (
        130,
        "bpo-train: Interrupted. Nothing was kept; --output DIR keeps what is done.\n",
    )
    assert "The same command goes on" in run("--model", "sound", "--output", str(tmp_path / "out")).stderr


def test_help_is_there_without_anything_heavy() -> None:
    heavy = "torch transformers sklearn sacrebleu scipy matplotlib".split()
    code = f"import sys, bpo_train.cli_score; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
