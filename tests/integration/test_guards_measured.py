"""The bounds that are asked of the guards, on the real data, with the measuring functions of the benchmark."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.data


FAR_FROM_95 = {
    "add a request to the user (unseen)": 0.35,
    "add a comment (unseen)": 0.90,
    "asks back (unseen)": 0.65,
}
"""What the lists of phrases reach on phrasings they were not written for (docs/guards.md): kept from getting worse."""


def below(shares: list[Any]) -> list[tuple[str, float]]:
    """The kinds of which too little is rejected."""
    return [(share.name, share.share) for share in shares if share.share < FAR_FROM_95.get(share.name, 0.95)]


@pytest.fixture(scope="module")
def measured(root: Path, data_dir: Path) -> Any:
    """Everything, measured once."""
    spec = importlib.util.spec_from_file_location("guards_benchmark", root / "tests" / "benchmarks" / "guards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module.measure(data_dir)


def test_at_most_8_percent_of_the_gold_rewrites_are_rejected(measured: Any) -> None:
    assert measured.gold.rows == 200
    assert measured.gold.share <= 0.08


def test_at_most_3_percent_of_the_ordinary_pairs_are_rejected(measured: Any) -> None:
    assert measured.pairs.rows > 1600
    assert measured.pairs.share <= 0.03


def test_95_percent_of_the_real_answers_offered_as_rewrites_are_rejected(measured: Any) -> None:
    assert [share.name for share in measured.answers if share.share < 0.95] == []
    assert sum(share.rows for share in measured.answers) == 1378


def test_95_percent_of_each_known_kind_of_broken_rewrite_are_rejected(measured: Any) -> None:
    assert all(share.rows for share in measured.broken)
    assert below(measured.broken) == []


def test_few_of_the_additions_written_by_people_are_rejected(measured: Any) -> None:
    assert measured.additions.rows == 1511
    assert measured.additions.share <= 0.02


def test_95_percent_of_each_known_kind_of_bad_addition_are_rejected(measured: Any) -> None:
    assert all(share.rows for share in measured.bad_additions)
    assert below(measured.bad_additions) == []
