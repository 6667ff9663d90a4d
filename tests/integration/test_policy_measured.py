"""Policy, language and safety rules on real prompts keep within their bounds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def found(data_dir: Path, root: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("benchmark_policy", root / "tests" / "benchmarks" / "policy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result: dict[str, Any] = module.measure(data_dir)
    return result


def share(pair: tuple[int, int]) -> float:
    assert pair[1]
    return pair[0] / pair[1]


@pytest.mark.parametrize(
    ("group", "most"),
    [
        ("vicuna_eval", 0.02),
        ("bpo_test", 0.13),
        ("dolly_eval", 0.09),
        ("addition written, English", 0.04),
    ],
)
def test_few_prompts_that_gain_from_an_addition_are_left_alone(found: dict[str, Any], group: str, most: float) -> None:
    assert share(found["kept"][group]) <= most


@pytest.mark.parametrize(
    ("group", "least"),
    [
        ("addition empty, other sources", 0.45),
        ("addition empty, unsafe source", 0.40),
        ("addition written, not English", 0.90),
    ],
)
def test_many_prompts_that_are_not_to_be_touched_are_left_alone(
    found: dict[str, Any], group: str, least: float
) -> None:
    assert share(found["kept"][group]) >= least


def test_english_is_hardly_ever_taken_for_another_language_and_others_are_seldom_missed(found: dict[str, Any]) -> None:
    assert share(found["not english"]["English taken for another language"]) <= 0.005
    assert share(found["not english"]["other languages missed"]) <= 0.10


@pytest.mark.parametrize(("half", "recall"), [("even", 0.60), ("odd", 0.20)])
def test_unsafe_prompts_are_recognized_with_hardly_a_false_alarm(
    found: dict[str, Any], half: str, recall: float
) -> None:
    assert share(found["safety"][half]["false alarms"]) <= 0.005
    assert share(found["safety"][half]["recall"]) >= recall
