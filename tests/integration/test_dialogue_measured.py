"""Leaning turns of real conversations are found, and figures that the docs give still hold."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bpo_integrations.dialogue import leans_on_history

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def benchmark_dialogue(root: Path) -> ModuleType:
    name = "benchmark_dialogue"
    spec = importlib.util.spec_from_file_location(name, root / "tests" / "benchmarks" / "dialogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("year", "recall", "false_alarms"), [(2020, 0.95, 0.30), (2021, 0.88, 0.37)])
def test_most_leaning_turns_are_found_with_few_false_alarms(
    benchmark_dialogue: ModuleType, data_dir: Path, year: int, recall: float, false_alarms: float
) -> None:
    found = benchmark_dialogue.measure(benchmark_dialogue.turns_of(data_dir, year), leans_on_history)
    assert found["recall"] >= recall
    assert found["false alarms"] <= false_alarms


def test_more_is_found_than_by_pronouns(benchmark_dialogue: ModuleType, data_dir: Path) -> None:
    turns = benchmark_dialogue.turns_of(data_dir, 2021)
    ours = benchmark_dialogue.measure(turns, leans_on_history)
    theirs = benchmark_dialogue.measure(turns, benchmark_dialogue.pronoun_rules)
    assert ours["recall"] > theirs["recall"] + 0.1


@pytest.mark.parametrize(("name", "most"), [("vicuna_eval", 0.30), ("bpo_test", 0.40)])
def test_most_prompts_that_begin_anew_are_not_taken_for_leaning(
    benchmark_dialogue: ModuleType, data_dir: Path, name: str, most: float
) -> None:
    from policy import prompts_of  # beside the benchmark, which puts its folder on the path

    history = ("How high is the VAT in France?", "The standard rate is 20%.")
    said = [leans_on_history(prompt, history) for prompt in prompts_of(data_dir, name)]
    assert sum(said) / len(said) <= most


def test_the_label_compares_content_words(benchmark_dialogue: ModuleType) -> None:
    leans = benchmark_dialogue.is_leaning
    assert leans("How old is he?", "How old is Barron Trump?")
    assert not leans("How old is the bridge?", "How old are bridges?")
    assert not leans("How do they sleep?", "How do those sleep?")


def test_token_f1_counts_shared_content_words(benchmark_dialogue: ModuleType) -> None:
    f1 = benchmark_dialogue.token_f1
    assert f1("How old is Barron?", "How old is Barron?") == 1
    assert f1("How old is he?", "How old is Barron?") == pytest.approx(2 / 3)
    assert f1("What?", "How old is Barron?") == 0
