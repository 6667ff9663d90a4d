"""What a rewriter's text is worth: guards, and the LLM's answers at equal length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from bpo_train.data.llm import Completion, RequestError
from bpo_train.training.rewards import (
    AnswerGain,
    AnswerReward,
    Duel,
    GuardReward,
    LengthControl,
    guard_reward,
    written,
)

PROMPT = "Name a prime."
END = 2


def test_guards_are_graded_and_nothing_clean_is_punished() -> None:
    clean, bad = "Say why it is one.", "Please provide the text first."
    assert guard_reward(PROMPT, clean, "augment") == 0
    assert guard_reward(PROMPT, "", "augment") == 0
    whole, half = guard_reward(PROMPT, bad, "augment"), guard_reward(PROMPT, f"{clean} {bad}", "augment")
    assert -1 <= whole < half < -0.5 + 1e-9
    assert guard_reward(PROMPT, clean, "augment", finished=False) == -1
    assert guard_reward("Write 3 haiku on tea.", "Write 5 haiku on tea.", "rewrite") == -1


def test_the_guards_reward_reads_trls_chat_messages_and_its_tokens() -> None:
    guards = GuardReward("augment", END)
    chat = [[{"role": "assistant", "content": " Say why it is one. "}]] * 2
    assert guards(chat, [PROMPT] * 2, [[5, END], [5, 6]]) == [0.0, -1.0]
    assert written("  plain ") == "plain"


class Asked:
    """Answers by prompt, and what was asked."""

    def __init__(self, answers: dict[str, str | None]) -> None:
        self.answers = answers
        self.prompts: list[str] = []

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        self.prompts += prompts
        return [self.answers.get(prompt, "two words") for prompt in prompts]


def longer(duels: Sequence[Duel]) -> list[float | None]:
    """A judge that sees nothing but length."""
    return [math.log((1 + len(duel.answer.split())) / (1 + len(duel.baseline.split()))) for duel in duels]


def test_a_text_that_changes_nothing_gains_nothing_and_asks_nobody() -> None:
    llm = Asked({})
    assert AnswerGain(llm, longer, "augment")([PROMPT, "Fill in: 2 + 2 ="], ["", "Say why."]) == [0.0, 0.0]
    assert llm.prompts == []


def test_the_answer_to_the_optimized_prompt_is_compared_with_the_one_to_the_original_which_is_asked_for_once() -> None:
    llm, seen = Asked({PROMPT: "7", f"{PROMPT} Say why.": "7, since"}), list[Duel]()

    def compare(duels: Sequence[Duel]) -> list[float | None]:
        seen.extend(duels)
        return [1.5] * len(duels)

    gain = AnswerGain(llm, compare, "augment", LengthControl(ridge=1e9))
    assert gain([PROMPT, PROMPT], ["Say why.", "Be brief."]) == pytest.approx([1.5, 1.5])
    assert gain([PROMPT], ["Say how."]) == pytest.approx([1.5])
    assert llm.prompts.count(PROMPT) == 1
    assert seen[0] == Duel(PROMPT, "7, since", "7")


def test_a_judge_that_pays_for_length_alone_pays_nothing_in_the_end() -> None:
    llm = Asked({PROMPT: "one"} | {f"{PROMPT} Say {n}.": "word " * n for n in range(2, 40)})
    gain = AnswerGain(llm, longer, "augment")
    first = gain([PROMPT], ["Say 39."])[0]
    for n in range(2, 30):
        gain([PROMPT], [f"Say {n}."])
    last = gain([PROMPT], ["Say 39."])[0]
    assert first is not None
    assert last is not None
    assert 0 <= last < 0.05 < first
    assert gain.control.slope == pytest.approx(1, abs=0.05)


def test_a_shorter_answer_is_not_better_by_itself() -> None:
    control = LengthControl()
    assert control.controlled([1.0, -1.0], [-2.0, 2.0]) == [1.0, -1.0]
    assert control.slope == 0


def test_where_the_llm_or_the_judge_fails_there_is_no_reward() -> None:
    llm = Asked({PROMPT: "7", f"{PROMPT} Say why.": None})
    gain = AnswerGain(llm, lambda duels: [None] * len(duels), "augment")
    assert gain([PROMPT, PROMPT], ["Say why.", "Be brief."]) == [None, None]


def test_what_breaks_a_guard_is_never_sent_and_rewards_are_bounded(tmp_path: Path) -> None:
    llm = Asked({})
    gain = AnswerGain(llm, lambda duels: [100.0] * len(duels), "augment")
    state = tmp_path / "length.json"
    reward = AnswerReward(gain, GuardReward("augment", END), state=state)
    ids = [[5, END]] * 2
    found = reward(["Please provide the text first.", "Say why it is one."], [PROMPT] * 2, ids)
    assert found[0] == 0
    assert found[1] == pytest.approx(1)
    assert not any("provide" in prompt for prompt in llm.prompts)
    assert LengthControl.load(state) == gain.control
    assert LengthControl.load(tmp_path / "none.json") == LengthControl()


class Judge:
    """A backend that prefers the longer answer, wherever it stands; it fails on what it is told to."""

    def __init__(self, biased: bool = False) -> None:
        self.biased = biased

    async def complete(self, messages: Sequence[dict[str, str]], n: int) -> Completion:
        shown = messages[-1]["content"]
        if "fails" in shown:
            raise RequestError("refused", again=False)
        first = self.biased or shown.index("long") < shown.index("short")
        return Completion((f"Verdict: [[{'A' if first else 'B'}]]",), (True,))

    async def close(self) -> None:
        pass


def test_a_judge_is_asked_in_both_orders_so_that_its_liking_for_a_place_cancels_out() -> None:
    pytest.importorskip("aiohttp", reason="needs the extra 'train'")
    from bpo_train.training.answers import Chat, by_judge

    duels = [Duel(PROMPT, "long", "short"), Duel(PROMPT, "short", "long"), Duel(PROMPT, "fails", "short")]
    honest, biased = Chat(Judge()), Chat(Judge(biased=True))  # type: ignore[arg-type]
    assert by_judge(honest)(duels) == [1.0, -1.0, None]
    assert by_judge(biased)(duels[:2]) == [0.0, 0.0]
    honest.close()
    biased.close()
    honest.close()  # a second time is harmless
