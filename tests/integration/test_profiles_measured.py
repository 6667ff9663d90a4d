"""What the built-in profiles let through of the test sets."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.data


def test_strong_acts_on_the_traps_of_vicuna_and_on_little_else(root: Path, data_dir: Path) -> None:
    spec = importlib.util.spec_from_file_location("bench", root / "tests" / "benchmarks" / "profiles.py")
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    vicuna = bench.measure("vicuna_eval")
    assert vicuna["let"] == {"small": 80, "strong": 27}
    assert {(c, k) for c, k in vicuna["categories"] if k in bench.TRAPS} == {
        ("counterfactual", "what_if"),
        ("fermi", "estimate"),
        ("coding", "code_trap"),
    }
    for name in ("bpo_test", "dolly_eval", "self_instruct_eval"):
        found = bench.measure(name)
        assert found["let"]["strong"] <= 0.03 * found["prompts"]
        assert found["let"]["small"] >= 0.85 * found["prompts"]
