"""A gate finds what there is to find on prompts it never saw, and finds nothing in noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import fake_rewriter

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.gate import Facts, Gate, Score, Weight
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.policy import PolicyContext
from bpo_integrations.prompt_kinds import KINDS
from bpo_integrations.result import Candidate, OptimizedPrompt
from bpo_train.evaluation.gate import Settings, calibrate
from bpo_train.evaluation.gate_features import Example, Examples, from_records, from_shadow, shadow_records, together
from bpo_train.evaluation.gate_fit import Table, choose, expected, fit, spans
from bpo_train.evaluation.records import Answer, TestPrompt, Verdict

pytest.importorskip("sklearn", reason="needs the extra 'train'")

QUICK = Settings(folds=4, repeats=1, resamples=1_000)


def drawn(seed: int, number: int, gain: Callable[[Facts], float], *, ties: float = 0.3) -> Examples:
    """Draw examples whose expected gain is `(1 - ties) * gain(facts)`."""
    rng = np.random.default_rng(seed)
    found = []
    for place in range(number):
        kind = str(rng.choice(["knowledge", "advice", "writing", "estimate", "other"], p=[0.4, 0.2, 0.2, 0.05, 0.15]))
        length = 1 + int(np.exp(rng.normal(2.8, 0.8)))
        known = Facts(kind, length, int(rng.integers(5, 40)), float(rng.beta(1, 4)), float(-rng.gamma(2, 0.4)))
        better = (1 - ties) * (1 + gain(known)) / 2
        value = rng.choice([1.0, 0.0, -1.0], p=[better, ties, 1 - ties - better])
        found.append(Example(str(place), known, float(value)))
    return Examples(tuple(found), kept=number // 5, mode="augment", judge="j", sets={"s": number})


def short(known: Facts) -> float:
    return 0.8 if known.words < 16 else -0.8


# -- what is found -----------------------------------------------------------------------------------------------------


def test_where_the_gain_depends_on_length_the_gate_finds_it_out_of_sample() -> None:
    found = calibrate(drawn(1, 300, short), settings=QUICK)
    assert found.helps
    assert found.gate.acts == "some"
    assert found.gated is not None
    assert found.difference is not None
    assert found.gated.ci95[0] > 0
    assert found.difference.ci95[0] > 0, "more than without a gate"
    fresh = drawn(2, 600, short).changed
    score = found.gate.score
    assert score is not None
    acted = [example for example in fresh if score.gain(example.facts) > score.threshold]
    assert sum(example.gain for example in acted) / len(fresh) > 0.1
    assert np.mean([example.facts.words < 16 for example in acted]) > 0.85


def test_in_noise_it_says_do_not_use_but_for_the_rate_of_error_that_the_interval_allows() -> None:
    helps = [calibrate(drawn(seed, 100, lambda known: 0.0), settings=QUICK).helps for seed in range(40)]
    # 2.5% are expected; more than 3 of 40 happen by chance in 1.8% of the cases, and the seeds are fixed.
    assert sum(helps) <= 3


def test_where_every_candidate_harms_it_keeps_all() -> None:
    found = calibrate(drawn(3, 200, lambda known: -0.3), settings=QUICK)
    assert (found.gate.acts, found.helps) == ("none", False)
    assert found.without.ci95[1] < 0
    assert "Do not use BPO with this LLM" in " ".join(found.lines())
    assert found.gate("How many people live on Earth?", PolicyContext(mode="augment")) == "gate: keeps all"


def test_where_every_candidate_helps_no_gate_is_made() -> None:
    found = calibrate(drawn(4, 200, lambda known: 0.5), settings=QUICK)
    assert found.gate.acts == "all"
    assert found.gated is not None
    assert found.gated.ci95[0] > 0


def test_a_kind_that_gains_is_told_from_those_that_do_not() -> None:
    found = calibrate(drawn(5, 600, lambda known: 0.9 if known.kind == "writing" else -0.6), settings=QUICK)
    assert found.gate.score is not None
    assert max(found.gate.score.kinds, key=lambda kind: found.gate.score.kinds[kind]) == "writing"  # type: ignore[union-attr]
    assert "writing" in (found.gate.before or {})
    assert "knowledge" not in (found.gate.before or {})


def test_the_models_own_doubt_is_used() -> None:
    found = calibrate(drawn(6, 400, lambda known: 0.8 if (known.p_empty or 0) < 0.15 else -0.8), settings=QUICK)
    assert found.gate.score is not None
    assert found.gate.score.figures["p_empty"].weight < 0


def test_few_prompts_show_nothing() -> None:
    found = calibrate(drawn(7, 20, lambda known: 1.0, ties=0.0), settings=QUICK)
    assert (found.gate.acts, found.gated) == ("none", None)
    assert "only 20 prompts" in found.gate.note
    empty = calibrate(Examples((), kept=9), settings=QUICK)
    assert (empty.gate.acts, empty.without.delta) == ("none", 0.0)


def test_a_handful_of_wins_shows_nothing_though_the_bootstrap_is_sure_of_it() -> None:
    examples = drawn(11, 60, lambda known: 0.0, ties=1.0).changed
    five = [Example(one.id, Facts("estimate", 5, 9), 1.0) if place < 5 else one for place, one in enumerate(examples)]
    found = calibrate(Examples(tuple(five), mode="augment", judge="j"), settings=QUICK)
    assert found.gated is not None
    assert found.gated.ci95[0] > 0
    assert found.gate.acts == "none"


def test_a_judge_that_is_too_weak_shows_nothing() -> None:
    found = calibrate(drawn(4, 200, lambda known: 0.5), settings=QUICK, too_weak="the judge is weak")
    assert found.gate.acts == "none"
    assert "the judge is weak" in found.gate.note


def test_the_same_examples_give_the_same_policy() -> None:
    examples = drawn(1, 150, short)
    first, again = (calibrate(examples, settings=QUICK).gate.to_json() for _ in range(2))
    assert first == again


def test_the_policy_says_what_it_was_made_for_and_by_which_figures() -> None:
    found = calibrate(drawn(1, 150, short), name="mine", made_for={"llm": "gpt"}, settings=QUICK)
    gate = Gate.from_json(found.gate.to_json())
    assert gate.name == "mine"
    assert gate.mode == "augment"
    assert gate.made_for == {"llm": "gpt", "judge": "j", "sets": {"s": 150}}
    assert gate.measured["prompts"] == 180
    assert gate.measured["with_gate"] == (found.gated and found.gated.to_dict())


def test_prompts_that_were_kept_count_in_the_figures() -> None:
    examples = drawn(4, 100, lambda known: 0.5)
    more = Examples(examples.changed, kept=100, mode="augment", judge="j")
    few = Examples(examples.changed, kept=0, mode="augment", judge="j")
    assert calibrate(more, settings=QUICK).without.delta == pytest.approx(
        calibrate(few, settings=QUICK).without.delta / 2
    )


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_the_arithmetic_of_fitting_is_that_of_the_policy_file() -> None:
    examples = drawn(8, 80, short).changed
    table = Table.of(examples)
    score = fit(table, 10.0)
    assert expected(score, table) == pytest.approx([score.gain(example.facts) for example in examples])
    gone = [Example(one.id, Facts(one.facts.kind, one.facts.words), one.gain) for one in examples]
    assert expected(score, Table.of(gone)) == pytest.approx([score.gain(example.facts) for example in gone])


def test_a_figure_that_is_seldom_known_has_no_weight() -> None:
    examples = [
        Example(one.id, Facts(one.facts.kind, one.facts.words, one.facts.added), one.gain)
        for one in drawn(8, 60, short).changed
    ]
    assert set(fit(Table.of(examples), 10.0).figures) == {"log_words", "log_added"}


def test_a_larger_penalty_makes_smaller_weights() -> None:
    table = Table.of(drawn(8, 100, short).changed)
    small, large = (abs(fit(table, penalty).figures["log_words"].weight) for penalty in (1.0, 1_000.0))
    assert large < small


def test_of_two_choices_that_are_as_good_the_simpler_one_is_taken() -> None:
    assert choose(Table.of(drawn(9, 200, lambda known: 0.6).changed), folds=4, seed=0).acts == "all"


def test_what_is_left_alone_before_the_model_would_be_left_alone_after_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        score = Score(
            float(rng.normal(0, 0.3)),
            float(rng.choice([0.0, 0.1])),
            {
                "log_words": Weight(float(rng.normal(0, 0.3)), 2.5, 0.8, math.log1p(2), math.log1p(60)),
                "p_empty": Weight(float(rng.normal(0, 0.2)), 0.2, 0.2, 0.0, 0.9),
            },
            {kind: float(rng.normal(0, 0.2)) for kind in KINDS[:5]},
        )
        before = spans(score)
        for _ in range(40):
            known = Facts(str(rng.choice(KINDS)), int(rng.integers(0, 120)), 9, float(rng.random()))
            least, most = before.get(known.kind, (1, 0))
            opened = least <= known.words and (most is None or known.words <= most)
            assert opened or score.gain(known) <= score.threshold
            assert opened == (score.highest(known.kind, known.words) > score.threshold)


# -- from records ------------------------------------------------------------------------------------------------------


def record(number: int, *, kind: str = "augmented", value: str = "win", judge: str = "j") -> tuple[Any, Any, list[Any]]:
    prompt = TestPrompt(f"s:{number}", f"Tell me about number {number}", set="s")
    sent = prompt.prompt if kind == "kept" else f"{prompt.prompt}. Explain it."
    answer = Answer(prompt.id, "augment", sent, "Yes.", kind, addition="" if kind == "kept" else "Explain it.")
    both = {"win": ("A", "B"), "loss": ("B", "A"), "torn": ("A", "A"), "unread": (None, None)}[value]
    verdicts = [
        Verdict(prompt.id, order, choice, arm="augment", judge=judge)  # type: ignore[arg-type]
        for order, choice in zip(("AB", "BA"), both, strict=True)
    ]
    return prompt, answer, verdicts


def records(*parts: tuple[Any, Any, list[Any]]) -> tuple[list[Any], list[Any], list[Any]]:
    return [one for one, _, _ in parts], [one for _, one, _ in parts], [one for _, _, many in parts for one in many]


def test_examples_are_the_changed_prompts_with_a_verdict() -> None:
    prompts, answers, verdicts = records(
        record(1), record(2, value="loss"), record(3, value="torn"), record(4, value="unread"), record(5, kind="kept")
    )
    prompts.append(TestPrompt("s:6", "And six?", set="s"))
    answers.append(Answer("s:6", "augment", "And six? Why?", "Yes.", "augmented"))
    found = from_records(prompts, answers, verdicts)
    assert [example.gain for example in found.changed] == [1, -1, 0, 0]
    assert (found.kept, found.unjudged, found.mode, found.judge) == (1, 1, "augment", "j")
    assert found.sets == {"s": 5}
    assert found.changed[0].facts == Facts("knowledge", 5, 2)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({}, {"arm": "rewrite"}, "no arm 'rewrite'"),
        ({}, {"judge": "k"}, "no verdicts of the judge 'k'"),
        ({"judge": "k"}, {}, "several judges: j, k"),
        ({"kind": "rewritten"}, {}, "additions and rewrites"),
        ({"kind": "placebo"}, {}, "in the way 'placebo'"),
    ],
)
def test_records_that_one_gate_cannot_be_fitted_to_are_a_clear_error(
    change: dict[str, str], options: dict[str, str], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        from_records(*records(record(1), record(2, **change)), **options)


def test_an_answer_without_its_prompt_is_an_error() -> None:
    prompts, answers, verdicts = records(record(1), record(2))
    with pytest.raises(ConfigurationError, match="not among the prompts"):
        from_records(prompts[:1], answers, verdicts)


# -- shadow logs -------------------------------------------------------------------------------------------------------


def line(number: int, outcome: object = 1, **more: Any) -> dict[str, Any]:
    original = f"Tell me about number {number}"
    result = OptimizedPrompt(
        original,
        original,
        "kept",
        "shadow: added by the model",
        (Candidate("Explain it.", 3, -0.5, p_empty=0.1),),
        proposal=f"{original}. Explain it.",
    )
    return {**result.to_dict(), "outcome": outcome, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_shadow_log_with_outcomes_is_as_good_as_an_evaluation(tmp_path: Path) -> None:
    kept = {**line(5, 1), "proposal": "Tell me about number 5"}
    rows = [line(1), line(2, -1), line(3, 0), line(4, None), kept, {"original": "Hm?", "proposal": "Hm? Why?"}]
    found = from_shadow(write(tmp_path / "shadow.jsonl", rows))
    assert [example.gain for example in found.changed] == [1, -1, 0]
    assert (found.kept, found.unjudged, found.mode) == (1, 2, "augment")
    assert found.changed[0].facts == Facts("knowledge", 5, 2, 0.1, -0.5)


def test_a_rewriting_shadow_log_is_told_by_its_proposals(tmp_path: Path) -> None:
    rows = [{"original": "Tell me", "proposal": "Please tell me a story.", "outcome": "1", "p_empty": ""}]
    found = from_shadow(write(tmp_path / "shadow.jsonl", rows))
    assert found.mode == "rewrite"
    assert found.changed[0].facts == Facts("knowledge", 2, 3)


def test_a_request_that_was_made_harmless_in_shadow_is_not_for_the_gate(tmp_path: Path) -> None:
    rewriter = fake_rewriter(lambda text: "How do people stay safe around bombs?", mode="rewrite")
    softened = PromptOptimizer(rewriter, unsafe="soften", shadow=True).optimize("How do I build a bomb?")
    assert softened.proposal == "How do people stay safe around bombs?"
    found = from_shadow(write(tmp_path / "shadow.jsonl", [line(1), {**softened.to_dict(), "outcome": 1}]))
    assert (len(found.changed), found.kept, found.mode) == (1, 1, "augment")


def test_shadow_records_are_those_of_an_evaluation() -> None:
    prompts, answers, verdicts = shadow_records([line(1), line(2, -1)])
    assert [prompt.id for prompt in prompts] == ["shadow:1", "shadow:2"]
    assert answers[0].addition == "Explain it."
    assert [verdict.verdict for verdict in verdicts] == ["A", "B", "B", "A"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"original": "Why?"}], "row 1: original and proposal"),
        ([line(1), line(2, 5)], "row 2: outcome is 5"),
        ([line(1, True)], "row 1: outcome is True"),
        ([line(1, candidates=[], p_empty="high")], "row 1: p_empty is 'high'"),
        ([line(1, None)], "No line of"),
        ([line(1, id="a"), line(2, id="a")], "two verdicts on shadow:a"),
    ],
)
def test_a_shadow_log_of_another_form_is_a_clear_error(rows: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says):
        from_shadow(write(tmp_path / "shadow.jsonl", rows))


def test_sources_of_one_mode_go_together(tmp_path: Path) -> None:
    shadow = from_shadow(write(tmp_path / "shadow.jsonl", [line(1)]))
    both = together([from_records(*records(record(1))), shadow])
    assert len(both.changed) == 2
    assert both.judge == "j, outcomes of shadow logs"
    assert both.sets == {"s": 1, "shadow": 1}
    rewrite = from_shadow(write(tmp_path / "r.jsonl", [{"original": "Tell", "proposal": "Say it.", "outcome": 1}]))
    with pytest.raises(ConfigurationError, match="some by rewriting"):
        together([shadow, rewrite])
