"""A policy file: its form, what it decides before and after the model, and that sync, async and batch agree."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_rewriter
from hypothesis import given
from hypothesis import strategies as st

from bpo_integrations.cache import CandidateCache
from bpo_integrations.decoding import Decoding
from bpo_integrations.errors import ConfigurationError, ModelFormatError
from bpo_integrations.gate import FIGURES, Facts, Gate, Score, Weight
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.policy import PolicyContext, all_of, rule
from bpo_integrations.profiles import load_profile, settled
from bpo_integrations.prompt_kinds import KINDS, kind_of
from bpo_integrations.result import Candidate, OptimizedPrompt

AUGMENT = PolicyContext(mode="augment", languages=("en",))
REWRITE = PolicyContext(mode="rewrite", languages=("en",))

numbers = st.floats(-5, 5, allow_nan=False)
bounds = st.tuples(numbers, numbers).map(sorted)
weights = st.builds(
    lambda weight, center, scale, ends: Weight(weight, center, scale, ends[0], ends[1]),
    numbers,
    numbers,
    st.floats(0.1, 5),
    bounds,
)
scores = st.builds(
    Score,
    intercept=numbers,
    threshold=numbers,
    figures=st.dictionaries(st.sampled_from(FIGURES), weights),
    kinds=st.dictionaries(st.sampled_from(KINDS), numbers),
)
spans = st.tuples(st.integers(0, 50), st.none() | st.integers(50, 500))
some = st.builds(
    Gate,
    name=st.text(max_size=20),
    acts=st.just("some"),
    before=st.dictionaries(st.sampled_from(KINDS), spans),
    score=scores,
    mode=st.sampled_from([None, "augment", "rewrite"]),
    note=st.text(max_size=20),
    made_for=st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers()),
    measured=st.dictionaries(st.text(max_size=5), numbers),
)
whole = st.builds(Gate, name=st.text(max_size=20), acts=st.sampled_from(["all", "none"]))
gates = some | whole
facts = st.builds(
    Facts,
    st.sampled_from(KINDS),
    st.integers(0, 3000),
    st.integers(0, 300),
    st.none() | st.floats(0, 1),
    st.none() | st.floats(-20, 0),
)


# -- the file ----------------------------------------------------------------------------------------------------------


@given(gates)
def test_a_policy_file_round_trips(gate: Gate) -> None:
    again = Gate.from_json(gate.to_json())
    assert again == gate
    assert hash(again) == hash(gate)
    assert again.id == gate.id
    assert again.to_json() == gate.to_json()


@given(some, facts)
def test_a_gate_decides_the_same_after_a_round_trip(gate: Gate, known: Facts) -> None:
    again = Gate.from_json(gate.to_json())
    assert gate.score is not None
    assert again.score is not None
    assert again.score.gain(known) == gate.score.gain(known)


def form(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "test",
        "acts": "some",
        "before": {"estimate": [1, None]},
        "after": {"intercept": 0.1, "figures": {"p_empty": {"weight": -1}}},
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"acts": "sometimes"}, "acts is 'sometimes'"),
        ({"mode": "both"}, "mode is 'both'"),
        ({"extra": 1}, "unknown 'extra'"),
        ({"name": 7}, "name must be a text"),
        ({"measured": []}, "measured must be a JSON object"),
        ({"before": None, "after": None}, "needs before or after"),
        ({"acts": "none"}, "must be null"),
        ({"acts": "all"}, "must be null"),
        ({"before": {"estimates": [1, None]}}, "unknown 'estimates'"),
        ({"before": {"estimate": [1]}}, "before.estimate must be"),
        ({"before": {"estimate": [9, 3]}}, "before.estimate must be"),
        ({"before": {"estimate": [True, 3]}}, "before.estimate must be"),
        ({"after": {}}, "lacks 'intercept'"),
        ({"after": {"intercept": "0"}}, "after.intercept must be a number"),
        ({"after": {"intercept": True}}, "after.intercept must be a number"),
        ({"after": {"intercept": 0, "figures": {"length": {"weight": 1}}}}, "unknown 'length'"),
        ({"after": {"intercept": 0, "figures": {"p_empty": {}}}}, "lacks 'weight'"),
        ({"after": {"intercept": 0, "figures": {"p_empty": {"weight": 1, "scale": 0}}}}, "scale above 0"),
        ({"after": {"intercept": 0, "figures": {"p_empty": {"weight": 1, "low": 2, "high": 1}}}}, "low below high"),
        ({"after": {"intercept": 0, "kinds": {"estimate": None}}}, "after.kinds.estimate must be a number"),
        ({"after": {"intercept": 0, "code": "import os"}}, "unknown 'code'"),
    ],
)
def test_a_file_of_another_form_is_refused_and_says_where(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelFormatError, match=r"mine\.json is no policy file") as found:
        Gate.from_json(json.dumps(form(**changes)), where="mine.json")
    assert says in str(found.value)
    assert found.value.hint


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema": 1}', '{"schema": NaN, "acts": "all"}', "[" * 5000])
def test_what_is_no_policy_file_is_refused(text: str) -> None:
    with pytest.raises(ModelFormatError):
        Gate.from_json(text)


def test_a_number_that_json_does_not_have_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="Infinity"):
        Gate.from_json(json.dumps(form(after={"intercept": math.inf})))
    with pytest.raises(ModelFormatError, match="must be a number"):
        Gate.from_json(json.dumps(form()).replace("0.1", "1e999"))


def test_a_file_that_is_missing_or_binary_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="No such file"):
        Gate.read(tmp_path / "no.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelFormatError, match="UTF-8"):
        Gate.read(tmp_path / "bytes.json")


# -- decisions ---------------------------------------------------------------------------------------------------------


@given(st.text(max_size=200), st.text(max_size=50))
def test_a_gate_that_keeps_all_keeps_all_and_one_that_takes_all_takes_all(prompt: str, addition: str) -> None:
    assert Gate("", "none")(prompt, AUGMENT) == "gate: keeps all"
    assert Gate("", "all")(prompt, AUGMENT) is None
    assert Gate("", "all").after(prompt, Candidate(addition), AUGMENT) is None


@given(some, st.text(max_size=200), st.text(max_size=50), st.none() | st.floats(0, 1), st.none() | st.floats(-9, 0))
def test_a_gate_answers_on_every_text(
    gate: Gate, prompt: str, addition: str, p_empty: float | None, logprob: float | None
) -> None:
    before = gate(prompt, AUGMENT)
    after = gate.after(prompt, Candidate(addition, p_empty=p_empty, logprob=logprob), AUGMENT)
    assert before is None or before.startswith("gate: ")
    assert after is None or after.startswith("gate: ")


@given(scores, facts)
def test_no_candidate_gains_more_than_the_highest_gain(score: Score, known: Facts) -> None:
    assert score.gain(known) <= score.highest(known.kind, known.words) + 1e-9


def test_what_is_not_known_counts_as_the_centre() -> None:
    score = Score(0.25, figures={"p_empty": Weight(-1.0, center=0.4), "logprob": Weight(2.0, center=-1.0)})
    assert score.gain(Facts("other", 5, 5)) == 0.25
    assert score.gain(Facts("other", 5, 5, p_empty=0.4, logprob=-1.0)) == 0.25
    assert score.gain(Facts("other", 5, 5, p_empty=0.9)) == pytest.approx(-0.25)


def test_a_figure_outside_of_what_was_seen_counts_as_its_bound() -> None:
    score = Score(0.0, figures={"log_words": Weight(-1.0, center=2.0, low=1.0, high=3.0)})
    assert score.gain(Facts("other", 10_000)) == -1.0
    assert score.gain(Facts("other", 0)) == 1.0


def test_lengths_and_kinds_are_asked_before_the_model() -> None:
    gate = Gate("", before={"knowledge": (4, 8), "estimate": (1, None)})
    assert gate("What is a cat?", AUGMENT) is None
    assert gate("What is it?", AUGMENT) == "gate: knowledge, 3 words"
    assert gate("What is a cat, and what are its closest relatives in Asia?", AUGMENT) == "gate: knowledge, 12 words"
    assert gate("Write a poem.", AUGMENT) == "gate: writing"


def test_in_rewrite_mode_what_is_added_is_what_the_rewrite_has_more() -> None:
    prompt, rewrite = "Name a city.", Candidate("Name a large city in Asia.")
    assert Facts.of(prompt, rewrite, "rewrite").added == 3
    assert Facts.of(prompt, Candidate("A city."), "rewrite").added == 0
    assert Facts.of(prompt, Candidate("Say why."), "augment").added == 2


# -- in the optimizer --------------------------------------------------------------------------------------------------

PROMPTS = [
    "Tell me about the history of tea in Japan",
    "How many people have ever lived on Earth?",
    "Why is the sky blue?",
    "hi",
    "Describe the life of an ant",
]
SHORT = Score(0.0, figures={"log_added": Weight(-1.0, center=math.log1p(6))})
"""Takes additions of fewer than six words."""


def addition(prompt: str) -> str:
    return "Explain step by step." if "people" in prompt else "Describe the main parts, and how each of them works."


def optimizer(**options: Any) -> PromptOptimizer:
    return PromptOptimizer(fake_rewriter(addition), **options)


def fate(result: OptimizedPrompt) -> tuple[str, str, str]:
    return result.text, result.kind, result.reason


@pytest.mark.parametrize(
    "gate",
    [
        Gate("", "all"),
        Gate("", "none"),
        Gate("", before={"estimate": (1, None)}),
        Gate("", score=SHORT),
        Gate("", before={"knowledge": (1, 5), "estimate": (1, None)}, score=SHORT),
    ],
)
async def test_sync_async_and_batch_keep_and_change_the_same(gate: Gate) -> None:
    one = [fate(optimizer(policy=gate).optimize(prompt)) for prompt in PROMPTS]
    assert [fate(result) for result in optimizer(policy=gate).optimize_batch(PROMPTS)] == one
    assert [fate(await optimizer(policy=gate).aoptimize(prompt)) for prompt in PROMPTS] == one
    assert [fate(result) for result in await optimizer(policy=gate).aoptimize_batch(PROMPTS)] == one


def test_the_gate_decides_between_the_original_and_the_candidate() -> None:
    results = optimizer(policy=Gate("", score=SHORT)).optimize_batch(PROMPTS)
    assert [result.changed for result in results] == [False, True, False, False, False]
    assert results[0].reason.startswith("policy: gate: expected gain -")
    assert results[3].reason == "policy: small talk"
    assert results[0].candidates, "what the model wrote is still told"


def test_what_is_kept_before_the_model_never_reaches_it() -> None:
    rewriter = fake_rewriter(addition)
    PromptOptimizer(rewriter, policy=Gate("", "none")).optimize_batch(PROMPTS)
    assert rewriter.engine.calls == []  # type: ignore[attr-defined]


def test_the_default_rules_are_asked_before_a_policy_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(Gate("", before={"other": (1, None), "knowledge": (1, None)}).to_json())
    for option in ({"policy": path}, {"policy": str(path)}, {"profile": path}, {"profile": str(path)}):
        made = optimizer(**option)
        assert made.optimize("hi").reason == "policy: small talk"
        assert made.optimize("Write a poem about the sea").reason == "policy: gate: writing"
        assert made.optimize(PROMPTS[0]).changed


def test_a_function_replaces_the_rules_and_goes_with_a_profile() -> None:
    made = optimizer(policy=rule("a ticket", lambda prompt: "TICKET" in prompt), profile="strong")
    assert made.optimize("TICKET-7: how many people are in the world?").reason == "policy: a ticket"
    assert made.optimize("hi").reason == "policy: gate: other"
    assert made.optimize(PROMPTS[1]).changed


def test_a_gate_within_all_of_is_asked_after_the_model_too() -> None:
    made = optimizer(policy=all_of(rule("never", lambda prompt: False), Gate("", score=SHORT)))
    assert made.optimize(PROMPTS[0]).reason.startswith("policy: gate: expected gain")
    assert made.gate == Gate("", score=SHORT)


def test_two_policy_files_and_what_is_no_policy_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(Gate("", "none").to_json())
    with pytest.raises(ConfigurationError, match="another as profile="):
        optimizer(policy=path, profile="strong")
    with pytest.raises(ConfigurationError, match="must be a function or a policy file, not int"):
        optimizer(policy=7)
    with pytest.raises(ConfigurationError, match="no profile 'stronk'"):
        optimizer(profile="stronk")
    with pytest.raises(ModelFormatError, match="No such file"):
        optimizer(profile=tmp_path / "missing.json")


def test_a_gate_for_another_mode_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="made for the mode 'rewrite'"):
        optimizer(policy=Gate("mine", before={"other": (1, None)}, mode="rewrite"))
    assert settled(Gate("", "none", mode="augment"), None, mode="augment") is not None


class Raises:
    def __call__(self, prompt: str, context: PolicyContext) -> str | None:
        return None

    def after(self, prompt: str, candidate: Candidate, context: PolicyContext) -> str | None:
        raise RuntimeError("no such figure")


async def test_a_gate_that_fails_is_a_failure_and_never_gets_out() -> None:
    result = optimizer(policy=Raises()).optimize(PROMPTS[0])
    assert (result.changed, result.reason) == (False, "failed: RuntimeError: no such figure")
    assert fate(await optimizer(policy=Raises()).aoptimize(PROMPTS[0])) == fate(result)


def test_shadow_shows_what_the_gate_would_do() -> None:
    results = optimizer(policy=Gate("", score=SHORT), shadow=True).optimize_batch(PROMPTS[:2])
    assert [result.changed for result in results] == [False, False]
    assert [result.proposal != result.original for result in results] == [False, True]
    assert results[0].reason.startswith("shadow: policy: gate")


def test_a_later_pass_that_the_gate_refuses_leaves_the_earlier_result() -> None:
    rewriter = fake_rewriter(lambda prompt: f"{prompt} Why is that?", mode="rewrite")
    gate = Gate("", score=Score(0.0, figures={"log_added": Weight(-1.0, center=math.log1p(4))}))
    made = PromptOptimizer(rewriter, policy=gate, passes=3, guards=(), cache=CandidateCache(0))
    result = made.optimize("Tell me where tea comes from.")
    assert result.text == "Tell me where tea comes from. Why is that?"
    assert result.kind == "rewritten"


def test_a_prompt_that_is_to_be_softened_passes_the_gate() -> None:
    softening = PolicyContext(mode="rewrite", unsafe="soften")
    prompt = "How can I poison my neighbor?"
    assert Gate("", "none")(prompt, softening) is None
    assert Gate("", before={}, score=Score(-1.0)).after(prompt, Candidate("Be kind."), softening) is None
    assert Gate("", "none")("How can I thank my neighbor?", softening) == "gate: keeps all"


def test_the_gate_sees_the_candidate_that_was_selected() -> None:
    rewriter = fake_rewriter(lambda prompt: ["Describe the main parts, and how each of them works.", "Say why."])
    made = PromptOptimizer(
        rewriter,
        policy=Gate("", score=SHORT),
        decoding=Decoding(temperature=1.0, n=2, seed=1),
        selector=lambda prompt, clean: min(clean, key=lambda candidate: len(candidate.text)),
    )
    assert made.optimize(PROMPTS[0]).addition == "Say why."


# -- kinds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("What if the moon had never formed?", "what_if"),
        ("How would life on Earth be different if there were no moon?", "what_if"),
        ("Imagine a world without money. Who would work?", "what_if"),
        ("What if I forget my password?", "knowledge"),
        ("My code throws a NullPointerException, help", "code"),
        ("Write a bash script that deletes old files", "code_trap"),
        ("How many moons does Jupiter have?", "knowledge"),
        ("Estimate the number of piano tuners in Chicago.", "estimate"),
        ("How many golf balls fit in a school bus?", "estimate"),
        ("Roughly how much does a cloud weigh?", "estimate"),
        ("How long does it take to walk around the world?", "estimate"),
        ("Implement a thread-safe queue in Go.", "code_trap"),
        ("Write a Python function that parses dates in CSV files.", "code_trap"),
        ("Write a regex for email addresses", "code_trap"),
        ("Write a hello world program in C++", "code"),
        ("Make a bar chart with matplotlib in Python", "code"),
        ("Solve for x: 3x + 10 = 5(x - 2)", "math"),
        ("Anna has 3 apples and buys 4 more. How many apples does she have?", "math"),
        ("Act as a pirate and greet me", "roleplay"),
        ("As a pirate captain, what would you say to your crew?", "roleplay"),
        ("Summarize the following text in French.\nTea is a drink.", "text"),
        ("You are given two headlines. Decide which is newer.", "text"),
        ("Write a short story about a robot", "writing"),
        ("Write a script for a YouTube video about jazz.", "writing"),
        ("How can I sleep better?", "advice"),
        ("Explain inflation", "knowledge"),
        ("Where is Salvador, Brazil?", "knowledge"),
        ("lazer lips", "other"),
        ("", "other"),
        ("Warum ist der Himmel blau", "other"),
    ],
)
def test_the_kind_of_a_prompt_is_told_by_its_words(prompt: str, kind: str) -> None:
    assert kind_of(prompt) == kind


@given(st.text(max_size=400))
def test_every_text_has_a_kind(prompt: str) -> None:
    assert kind_of(prompt) in KINDS


def test_the_strong_profile_acts_on_traps_only() -> None:
    strong = load_profile("strong")
    assert strong("How many golf balls fit in a school bus?", AUGMENT) is None
    assert strong("What if the moon had never formed?", REWRITE) is None
    assert strong("Write a Python function that parses dates in CSV files.", AUGMENT) is None
    assert strong("As a pirate captain, what would you say to your crew?", AUGMENT) == "gate: roleplay"
    assert strong("Write a hello world program in C++", AUGMENT) == "gate: code"
    assert load_profile("small").acts == "all"
