"""Arms: how they are named, what is refused, and what they make of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import fake_rewriter

from bpo_integrations.decoding import AGGRESSIVE, GREEDY
from bpo_integrations.errors import ConfigurationError, EngineError
from bpo_train.evaluation.arms import PLACEBO, Arm, parse_arms
from bpo_train.evaluation.records import TestPrompt
from bpo_train.evaluation.respond import BLOCK, optimized, unoptimized
from bpo_train.evaluation.steps import Step, Terms

PROMPTS = [TestPrompt(str(place), f"Explain how mill number {place} works") for place in range(BLOCK + 3)]


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("original", Arm("original", "original")),
        ("placebo", Arm("placebo", "placebo")),
        ("augment", Arm("augment", "optimizer", "augment")),
        ("rewrite", Arm("rewrite", "optimizer", "rewrite")),
        (" rewrite:aggressive ", Arm("rewrite:aggressive", "optimizer", "rewrite", decoding="aggressive")),
        ("rewrite:passes=5", Arm("rewrite:passes=5", "optimizer", "rewrite", passes=5)),
        ("rewrite:greedy:passes=2", Arm("rewrite:greedy:passes=2", "optimizer", "rewrite", None, "greedy", 2)),
        ("meta", Arm("meta", "meta")),
        ("meta:mode=augment", Arm("meta:mode=augment", "meta", "augment")),
        ("model=hf:runs/a:b", Arm("model=hf:runs/a:b", "optimizer", None, "hf:runs/a:b")),
        ("mode=rewrite:model=embedded", Arm("mode=rewrite:model=embedded", "optimizer", "rewrite", "embedded")),
        ("augment:model=hf:x", Arm("augment:model=hf:x", "optimizer", "augment", "hf:x")),
        ("augment:profile=strong", Arm("augment:profile=strong", "optimizer", "augment", profile="strong")),
    ],
)
def test_an_arm_is_named_by_what_it_does(text: str, arm: Arm) -> None:
    assert Arm.parse(text) == arm


@pytest.mark.parametrize(
    "text",
    [
        *("", "improve", "rewrite:", "rewrite:fast", "rewrite:passes=6", "rewrite:passes=0", "augment:passes=2"),
        *("rewrite:mode=both", "model=", "rewritemodel=hf:x", "placebo:greedy", "original:model=x", "meta:model=x"),
        *("passes=2", "augment:profile=", "meta:aggressive"),
    ],
)
def test_what_names_no_arm_is_refused_with_all_arms_that_there_are(text: str) -> None:
    with pytest.raises(ConfigurationError, match="Arms are original, placebo"):
        Arm.parse(text)


def test_the_baseline_comes_first_and_is_there_once() -> None:
    assert [arm.name for arm in parse_arms(["augment,original", "placebo"])] == ["original", "augment", "placebo"]
    assert [arm.name for arm in parse_arms(["original,augment"], baseline="augment")] == ["augment", "original"]
    with pytest.raises(ConfigurationError, match="twice"):
        parse_arms(["augment", "augment"])
    with pytest.raises(ConfigurationError, match="no arm besides"):
        parse_arms(["original"])


def test_each_arm_draws_as_it_says() -> None:
    adds, rewrites = fake_rewriter(), fake_rewriter(mode="rewrite")
    assert Arm.parse("augment").optimizer(adds).decoding == GREEDY
    stable = Arm.parse("rewrite").optimizer(rewrites, seed=7).decoding
    assert (stable.temperature, stable.top_p, stable.seed) == (0.6, 0.9, 7)  # the paper's
    assert Arm.parse("rewrite:aggressive").optimizer(rewrites).decoding.n == AGGRESSIVE.n
    assert Arm.parse("rewrite:passes=3").optimizer(rewrites).passes == 3
    with pytest.raises(ConfigurationError, match="mode 'augment'"):
        Arm.parse("rewrite").optimizer(adds)


def test_the_placebo_adds_one_sentence_to_all_and_leaves_what_awaits_its_end() -> None:
    prompts = [TestPrompt("1", "Why?"), TestPrompt("2", "Complete this: two and two is:")]
    first, second = unoptimized(Arm.parse("placebo"), prompts)
    assert (first.sent, first.kind, first.addition) == (f"Why? {PLACEBO}", "placebo", PLACEBO)
    assert (second.sent, second.kind) == (prompts[1].prompt, "kept")
    assert [row.sent for row in unoptimized(Arm.parse("original"), prompts)] == [row.prompt for row in prompts]


async def test_prompts_are_optimized_once_and_what_was_decided_is_kept(tmp_path: Path) -> None:
    rewriter = fake_rewriter(lambda prompt: "" if "number 2 " in prompt else "Name its main parts.")
    optimizer = Arm.parse("augment").optimizer(rewriter)
    for _ in range(2):
        with Step(tmp_path, {}) as step:
            sent, ended = await optimized(Arm.parse("augment"), PROMPTS, optimizer, step, Terms())
        assert ended == "done"
        assert [row.id for row in sent] == [row.id for row in PROMPTS]
        assert sent[0].sent == "Explain how mill number 0 works. Name its main parts."
        assert (sent[0].kind, sent[0].addition, sent[0].arm) == ("augmented", "Name its main parts.", "augment")
        assert (sent[2].kind, sent[2].reason, sent[2].addition) == ("kept", "model: nothing to add", "")
        assert sum(map(len, rewriter.engine.calls)) == len(PROMPTS)  # type: ignore[attr-defined]


async def test_a_rewriter_that_fails_on_a_prompt_fails_for_that_prompt_alone(tmp_path: Path) -> None:
    broken = True

    def answer(prompt: str) -> str:
        if broken and "number 5 " in prompt:
            raise EngineError("out of memory")
        return "Name its main parts."

    arm = Arm.parse("augment")
    optimizer = arm.optimizer(fake_rewriter(answer))
    with Step(tmp_path, {}) as step:
        sent, _ = await optimized(arm, PROMPTS, optimizer, step, Terms())
        assert {row.id for row in PROMPTS} - {row.id for row in sent} == {"5"}
        broken = False
        sent, _ = await optimized(arm, PROMPTS, optimizer, step, Terms(retry_failed=True))
        assert len(sent) == len(PROMPTS)


async def test_a_rewriter_that_is_configured_wrongly_stops_the_run(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        raise ConfigurationError("The key is wrong.")

    arm = Arm.parse("augment")
    with Step(tmp_path, {}) as step, pytest.raises(ConfigurationError, match="key is wrong"):
        await optimized(arm, PROMPTS, arm.optimizer(fake_rewriter(answer)), step, Terms())
