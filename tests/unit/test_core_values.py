"""The small values of the core: decodings, results, records, formats, selection, cache."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpo_integrations.cache import CandidateCache
from bpo_integrations.decoding import AGGRESSIVE, GREEDY, STABLE, Decoding, named_decoding
from bpo_integrations.errors import ConfigurationError, EngineError, ModelFormatError
from bpo_integrations.result import Candidate, OptimizedPrompt
from bpo_integrations.rewriter import PAPER_RECORD, Record
from bpo_integrations.selection import first, most_likely, shortest
from bpo_integrations.templates import PAPER_FORMAT, PromptFormat


def test_the_named_decodings_hold_the_papers_values() -> None:
    assert (STABLE.temperature, STABLE.top_p, STABLE.n) == (0.6, 0.9, 1)
    assert (AGGRESSIVE.temperature, AGGRESSIVE.top_p, AGGRESSIVE.n, AGGRESSIVE.min_extra_tokens) == (0.9, 0.9, 5, 5)
    assert GREEDY.greedy
    assert PAPER_RECORD.budget(10) == 1024


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"n": 0},
        {"n": 2},
        {"max_new_tokens": 0},
        {"empty_threshold": -1},
    ],
)
def test_an_impossible_decoding_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Decoding(**wrong)  # type: ignore[arg-type]


def test_an_unknown_decoding_names_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="greedy, stable, aggressive"):
        named_decoding("wild")


def test_the_papers_format_is_one_user_turn_in_its_words() -> None:
    (message,) = PAPER_FORMAT.messages("Say hi")
    assert message == {
        "role": "user",
        "content": "You are an expert prompt engineer. Please help me improve this prompt to get a more helpful and "
        "harmless response:\nSay hi",
    }


def test_a_prompt_with_a_slot_of_its_own_is_inserted_as_it_is() -> None:
    assert PromptFormat(None, "a {prompt} b").messages("{prompt} {x}")[0]["content"] == "a {prompt} {x} b"


def test_a_format_without_a_slot_is_refused() -> None:
    with pytest.raises(ModelFormatError):
        PromptFormat(None, "no slot")


def test_a_record_survives_the_round_trip() -> None:
    record = Record("mine", "augment", PromptFormat("Add."), "base", ("en",), 99, 7, 0.5, 0.25)
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"mode": "sing"},
        {"format": {"user": "x"}},
        {"format": "x"},
        {"surprise": 1},
        {"name": None, "mode": None},
    ],
)
def test_a_record_that_cannot_be_used_says_so(change: dict[str, object]) -> None:
    data = {**json.loads(PAPER_RECORD.to_json()), **change}
    with pytest.raises(ModelFormatError):
        Record.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "3"])
def test_text_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ModelFormatError):
        Record.from_json(text)


@given(before=st.text(max_size=200), after=st.text(max_size=200))
def test_the_diff_rebuilds_both_sides(before: str, after: str) -> None:
    parts = OptimizedPrompt(before, after, "rewritten", "").diff()
    assert "".join(part.text for part in parts if part.op != "added") == before
    assert "".join(part.text for part in parts if part.op != "removed") == after


def test_to_dict_is_json_and_tells_change_and_addition() -> None:
    result = OptimizedPrompt("Why?", "Why? Be brief.", "augmented", "x", (Candidate("Be brief.", p_empty=0.1),))
    data = json.loads(json.dumps(result.to_dict()))
    assert (data["changed"], data["addition"], data["candidates"][0]["p_empty"]) == (True, "Be brief.", 0.1)


def test_selectors_choose_by_their_name() -> None:
    found = [
        Candidate("one two three", logprob=-2.0),
        Candidate("one", logprob=-3.0),
        Candidate("one two", logprob=-1.0),
    ]
    assert first("", found) is found[0]
    assert most_likely("", found) is found[2]
    assert shortest("", found) is found[1]
    assert most_likely("", [Candidate("a"), Candidate("b", logprob=-0.1)]).text == "a"


def test_the_cache_forgets_the_least_recently_used() -> None:
    cache = CandidateCache(size=2)
    for key in "ab":
        cache.settle(cache.claim([key])[1][0], [Candidate(key)])
    cache.claim(["a"])
    cache.settle(cache.claim(["c"])[1][0], [Candidate("c")])
    assert ("a" in cache, "b" in cache, "c" in cache) == (True, False, True)


def test_a_failed_generation_is_told_to_all_and_tried_again() -> None:
    cache = CandidateCache()
    waiting, mine = cache.claim(["k", "k"])
    assert [flight.key for flight in mine] == ["k"]
    cache.fail(mine[0], EngineError("no"))
    for flight in waiting:
        with pytest.raises(EngineError):
            flight.future.result()
    assert [flight.key for flight in cache.claim(["k"])[1]] == ["k"]


def test_what_the_last_waiter_has_left_is_given_up_and_started_anew_by_the_next() -> None:
    cache, given_up = CandidateCache(), list[str]()
    flights, mine = cache.claim(["k", "k"])
    mine[0].give_up = lambda: given_up.append("k")
    cache.leave(flights[:1])
    assert given_up == []
    cache.leave(flights[1:])
    assert given_up == ["k"]
    again = cache.claim(["k"])[1]
    assert again != []
    cache.settle(mine[0], [Candidate("late")])
    assert not again[0].future.done()
