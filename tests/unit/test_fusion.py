"""What fusing rankings promises, whatever is ranked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.fusion import ORIGINAL_WEIGHT, RRF_CONSTANT, fuse, rrf, union, unique

ranking = st.lists(st.integers(0, 90), unique=True, max_size=62)
rankings = st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=4)


def same(item: int) -> int:
    return item


@given(rankings)
def test_every_item_comes_out_once_and_nothing_else(found: list[list[int]]) -> None:
    for merged in (rrf(found, key=same), union(found, key=same)):
        assert len(merged) == len(set(merged))
        assert set(merged) == {item for each in found for item in each}


@given(rankings)
def test_rrf_orders_by_the_sum_of_reciprocal_ranks(found: list[list[int]]) -> None:
    def score(item: int) -> float:
        ranks = [unique(each, key=same).index(item) for each in found if item in each]
        return sum(1 / (RRF_CONSTANT + rank + 1) for rank in ranks)

    scores = [score(item) for item in rrf(found, key=same)]
    assert scores == pytest.approx(sorted(scores, reverse=True))


@given(ranking)
def test_one_ranking_alone_and_a_ranking_with_itself_stay_as_they_are(found: list[int]) -> None:
    for fusion in ("rrf", "union"):
        assert fuse([found], fusion, key=same) == found
        assert fuse([found, found], fusion, key=same) == found
        assert fuse([found, []], fusion, key=same) == found


@given(ranking, ranking)
def test_no_document_of_the_users_own_words_is_lost(own: list[int], other: list[int]) -> None:
    merged = fuse([own, other], "rrf", key=same)
    assert set(own) <= set(merged)
    assert set(merged[: len(own)]) == set(own)
    assert len(merged) == max(len(own), len(set(merged) & set(other)), len(other))
    assert union([own, other], key=same)[: len(own)] == own


def test_with_equal_weights_a_document_would_be_lost() -> None:
    own, other = [1, 2, 3], [4, 1, 2]
    assert 3 not in rrf([own, other], key=same)[:3]
    assert 3 in fuse([own, other], "rrf", key=same)
    assert ORIGINAL_WEIGHT > 1


def test_what_both_found_comes_before_what_one_found() -> None:
    assert rrf([["a", "b"], ["c", "b"]], key=str)[0] == "b"


def test_equal_scores_keep_the_first_rankings_item_first() -> None:
    assert rrf([["a", "b"], ["x", "y"]], key=str) == ["a", "x", "b", "y"]


def test_weights_count() -> None:
    assert rrf([["a"], ["b"]], key=str, weights=[1, 2]) == ["b", "a"]
    with pytest.raises(ConfigurationError, match="2 weights for 1 rankings"):
        rrf([["a"]], key=str, weights=[1, 2])


def test_a_repetition_within_a_ranking_counts_once() -> None:
    assert rrf([["a", "a", "a", "b"], ["b"]], key=str) == ["b", "a"]


def test_the_key_says_what_is_the_same_and_the_first_object_comes_out() -> None:
    assert rrf([["A"], ["b", "a"]], key=str.lower) == ["A", "b"]
    assert union([["A"], ["b", "a"]], key=str.lower) == ["A", "b"]


def test_k_cuts_and_union_without_k_returns_all() -> None:
    found = [[1, 2, 3], [3, 4, 5]]
    assert fuse(found, "rrf", key=same, k=2) == [3, 1]
    assert fuse(found, "union", key=same, k=4) == [1, 2, 3, 4]
    assert fuse(found, "union", key=same) == [1, 2, 3, 4, 5]
    assert len(fuse(found, "rrf", key=same)) == 3
