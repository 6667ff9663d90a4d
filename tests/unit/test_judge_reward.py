"""The reward model as a judge, with a toy model; and models in this process that answer in batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.errors import ConfigurationError, ModelNotFoundError, PromptTooLongError
from bpo_integrations.result import Candidate
from bpo_train.data.llm import Annotator, Limits, RowFailedError
from bpo_train.data.local import BatchBackend
from bpo_train.evaluation.judge import Shown
from bpo_train.evaluation.reward_judge import RewardJudge
from bpo_train.evaluation.steps import Step, Terms
from bpo_train.evaluation.verdicts import open_judge

PAIRS = [
    Shown("1", "Why?", "Because it rains.", "No."),
    Shown("2", "Why?", "No.", "Because it rains."),
    Shown("3", "How?", "By hand.", "By hand."),
    Shown("4", "How?", "", "By hand."),
]


class ByLength:
    """Scores by length; counts what it is asked."""

    def __init__(self) -> None:
        self.scored: list[tuple[str, str]] = []

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.scored += pairs
        return [len(answer) / 10 if answer != "odd" else math.nan for _, answer in pairs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "reward"
    made.mkdir()
    (made / "config.json").write_text("{}")
    return made


def judge_of(folder: Path, **options: Any) -> tuple[RewardJudge, ByLength]:
    judge, model = RewardJudge(folder, **options), ByLength()
    judge._model = model  # type: ignore[assignment]
    return judge, model


async def test_the_better_score_wins_whatever_the_order_and_each_answer_is_scored_once(
    folder: Path, tmp_path: Path
) -> None:
    judge, model = judge_of(folder)
    with Step(tmp_path / "verdicts", {}) as step:
        found, ended = await judge.judge(PAIRS, step, Terms())
        assert ended == "done"
        assert [one and one.which for one in found] == ["first", "second", "tie", "second"]
        first, second = found[0], found[1]
        assert first is not None
        assert second is not None
        assert first.margin == pytest.approx(1.4)
        assert second.margin == pytest.approx(-1.4)
        assert len(model.scored) == len(set(model.scored)) == 4
        closer, other = judge_of(folder, tie=2.0)
        assert [one and one.which for one in (await closer.judge(PAIRS, step, Terms()))[0]] == ["tie"] * 4
        assert not other.scored  # another margin scores nothing anew


async def test_a_score_that_is_no_number_is_counted_and_stays_so_when_read_again(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        judge, _ = judge_of(folder)
        with Step(tmp_path / "verdicts", {}) as step:
            ((one,), _) = await judge.judge([Shown("1", "Why?", "odd", "even")], step, Terms())
        assert one is not None
        assert (one.which, one.failed) == (None, "the score is no number")


def test_what_is_no_reward_model_is_refused_before_anything_is_asked(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="bpo-train baseline reward"):
        open_judge(f"reward:{tmp_path / 'none'}")
    with pytest.raises(ConfigurationError, match="margin of a tie"):
        open_judge(f"reward:{folder}", tie=-1)
    assert open_judge(f"reward:{folder}").name == f"reward:{folder}"


# -- models in this process --------------------------------------------------------------------------------------------


async def test_what_is_asked_at_once_is_one_batch_and_its_time_is_shared() -> None:
    engine = FakeEngine(lambda text: f"To {text}", delay=0.02)
    annotator = Annotator(BatchBackend(engine, 0.0, 50), Limits(concurrency=8))
    found = await asyncio.gather(*(annotator.ask([{"role": "user", "content": str(place)}]) for place in range(8)))
    assert [completion.texts[0] for completion, _ in found] == [f"To {place}" for place in range(8)]
    assert len(engine.calls) == 1
    assert sum(completion.seconds for completion, _ in found) == pytest.approx(8 * found[0][0].seconds)
    assert found[0][1].prompt_tokens == 1


async def test_one_that_is_too_long_fails_alone() -> None:
    class Short(FakeEngine):
        async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
            if any(len(request.messages[0]["content"]) > 5 for request in requests):
                raise PromptTooLongError("too long", hint="Shorten.")
            return await super().agenerate(requests, decoding)

    annotator = Annotator(BatchBackend(Short(lambda text: text), 0.0, 50), Limits(retries=0))
    asked = [annotator.ask([{"role": "user", "content": text}]) for text in ("a", "much too long", "b")]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(found[1], RowFailedError)
    assert [one[0].texts[0] for one in (found[0], found[2]) if isinstance(one, tuple)] == ["a", "b"]


async def test_an_engine_that_breaks_is_told_to_all_who_wait() -> None:
    class Broken(FakeEngine):
        async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
            raise MemoryError

    backend = BatchBackend(Broken(), 0.0, 50)
    asked = [backend.complete([{"role": "user", "content": text}], 1) for text in "ab"]
    assert [type(one) for one in await asyncio.gather(*asked, return_exceptions=True)] == [MemoryError] * 2
