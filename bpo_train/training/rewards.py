"""What a rewriter's text is worth, for `bpo-train grpo`: guards, and what the LLM makes of the optimized prompt.

Promises: plain functions of texts, which run without a trainer. A text that breaks a guard has a reward below 0 and is
never sent to the LLM, so that no answer can make up for it. An answer is compared with the LLM's answer to the original
prompt, as it would read at the same length: what a longer answer gains by its length alone is taken off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpo_integrations.guards.text import sentences
from bpo_integrations.joint import join
from bpo_integrations.judging import Judge
from bpo_integrations.result import Candidate, Mode
from bpo_train.data.outputs import replacing
from bpo_train.data.words import words

WORST = 0.5
"""The mildest violation's reward is minus this, the gravest's -1."""

Answer = Callable[[Sequence[str]], Sequence[str | None]]
"""Prompts to the LLM's answers; None where it gave none."""


@dataclass(frozen=True, slots=True)
class Duel:
    """Two answers to the same prompt.

    Args:
        prompt: The user's own.
        answer: The LLM's answer to the optimized prompt.
        baseline: Its answer to the original.
    """

    prompt: str
    answer: str
    baseline: str


Compare = Callable[[Sequence[Duel]], Sequence[float | None]]
"""How much better each answer is than its baseline; None where nobody can tell."""


def guard_reward(prompt: str, text: str, mode: Mode, *, finished: bool = True, judge: Judge | None = None) -> float:
    """Return 0 for a text without a violation, else a number from -0.5 to -1.

    A violation that stands in one sentence of several is milder than one in all of them: -0.5 less half the share of
    sentences that break a guard by themselves, -1 where only the whole does.

    Args:
        prompt: The user's prompt.
        text: The addition (empty: nothing is added, which breaks nothing), or the whole rewrite.
        mode: Chooses the guards.
        finished: Whether the model ended the text itself.
        judge: The guards; None takes the mode's.

    Example:
        >>> guard_reward("Name a prime.", "Say why it is one.", "augment")
        0.0
        >>> guard_reward("Name a prime.", "Say why it is one. Please provide the text first.", "augment")
        -0.75
    """
    judge = judge or Judge(mode, None, None, ())

    def broken(part: str, *, whole: bool) -> bool:
        candidate = Candidate(part, finish_reason="stop" if finished or not whole else "length")
        return judge.violation(prompt, candidate, mode, softens=False) is not None

    if not broken(text, whole=True):
        return 0.0
    parts = sentences(text) if mode == "augment" else ()
    bad = sum(broken(part, whole=False) for part in parts)
    return -WORST - (1 - WORST) * (bad / len(parts) if bad else 1.0)


@dataclass(slots=True)
class LengthControl:
    """How much longer answers gain by their length alone, learnt from the comparisons as they come.

    The slope of a line through the origin, of gains on the logarithm of the ratio of lengths, by least squares with a
    ridge: until something is known, it is 0. A slope below 0 counts as 0: shorter is not better by itself either.

    Args:
        products: Sum of gain times log ratio.
        squares: Sum of squared log ratios.
        ridge: Added to `squares`.

    Example:
        >>> control = LengthControl(ridge=0.0)
        >>> control.controlled([2.0, 4.0], [1.0, 2.0])
        [0.0, 0.0]
    """

    products: float = 0.0
    squares: float = 0.0
    ridge: float = 1.0

    @property
    def slope(self) -> float:
        """Gain for an answer e times as long."""
        below = self.squares + self.ridge
        return max(0.0, self.products / below) if below else 0.0

    def controlled(self, gains: Sequence[float], ratios: Sequence[float]) -> list[float]:
        """Learn from gains, and return them as they would be at equal length.

        Args:
            gains: How much better each answer is.
            ratios: Logarithms of its length by the baseline's.
        """
        self.products += sum(gain * ratio for gain, ratio in zip(gains, ratios, strict=True))
        self.squares += sum(ratio * ratio for ratio in ratios)
        return [gain - self.slope * ratio for gain, ratio in zip(gains, ratios, strict=True)]

    def save(self, path: Path) -> None:
        """Write what was learnt, in one step.

        Raises:
            FileError: It cannot be written.
        """
        with replacing(path) as file:
            file.write(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> LengthControl:
        """Read what was learnt; nothing where there is no such file, or it cannot be read."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()


class AnswerGain:
    """How much better the LLM answers with a text than without it, at equal length.

    Args:
        answer: Asks the LLM.
        compare: Compares its answers.
        mode: Whether the text is an addition or the whole prompt.
        control: What is known of length; it learns as it goes.
    """

    def __init__(self, answer: Answer, compare: Compare, mode: Mode, control: LengthControl | None = None) -> None:
        self._answer = answer
        self._compare = compare
        self._mode = mode
        self.control = control or LengthControl()
        self._baselines: dict[str, str | None] = {}

    def __call__(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float | None]:
        """Return a gain for each text: exactly 0 where it changes nothing, None where the LLM or the judge failed.

        Args:
            prompts: The users' prompts.
            texts: What the rewriter wrote for each.
        """
        sent = [
            join(prompt, text) if self._mode == "augment" else text.strip() or prompt
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        changed = [at for at, (prompt, new) in enumerate(zip(prompts, sent, strict=True)) if new != prompt]
        gains: list[float | None] = [0.0] * len(sent)
        if not changed:
            return gains
        missing = list(dict.fromkeys(prompts[at] for at in changed if prompts[at] not in self._baselines))
        answers = list(self._answer([*missing, *(sent[at] for at in changed)]))
        self._baselines |= zip(missing, answers[: len(missing)], strict=True)
        duels: dict[int, Duel] = {}
        for at, found in zip(changed, answers[len(missing) :], strict=True):
            gains[at] = None
            baseline = self._baselines[prompts[at]]
            if found is not None and baseline is not None:
                duels[at] = Duel(prompts[at], found, baseline)
        values = dict(zip(duels, self._compare(list(duels.values())), strict=True)) if duels else {}
        known = {at: value for at, value in values.items() if value is not None}
        ratios = [_longer(duels[at]) for at in known]
        for at, gain in zip(known, self.control.controlled(list(known.values()), ratios), strict=True):
            gains[at] = gain
        return gains


def _longer(duel: Duel) -> float:
    """Return the logarithm of the answer's words by the baseline's."""
    return math.log((1 + len(words(duel.answer))) / (1 + len(words(duel.baseline))))


class GuardReward:
    """`guard_reward` as TRL calls it. Rows have the user's prompt in the column `original`.

    Args:
        mode: The mode.
        end: The token that ends a turn.
    """

    __name__ = "guards"

    def __init__(self, mode: Mode, end: int) -> None:
        self._mode = mode
        self._end = end
        self._judge = Judge(mode, None, None, ())

    def __call__(
        self, completions: Sequence[Any], original: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        """Return a reward for each completion."""
        return [
            guard_reward(prompt, written(text), self._mode, finished=self._end in ids, judge=self._judge)
            for prompt, text, ids in zip(original, completions, completion_ids, strict=True)
        ]


class AnswerReward:
    """`AnswerGain` as TRL calls it, between -1 and 1; 0, and no request, for what breaks a guard.

    Args:
        gain: The gain.
        guards: Says which texts are not sent.
        scale: The gain that counts for three quarters of the most: reward models differ in their units.
        state: Where what is known of length is kept, so that a run that goes on knows it.
    """

    __name__ = "answers"

    def __init__(self, gain: AnswerGain, guards: GuardReward, *, scale: float = 1.0, state: Path | None = None) -> None:
        self._gain = gain
        self._guards = guards
        self._scale = scale
        self._state = state

    def __call__(
        self, completions: Sequence[Any], original: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float | None]:
        """Return a reward for each completion; None where nobody can tell, which TRL leaves out."""
        clean = [value == 0 for value in self._guards(completions, original, completion_ids)]
        asked = [at for at, sound in enumerate(clean) if sound]
        gains = self._gain([original[at] for at in asked], [written(completions[at]) for at in asked])
        rewards: list[float | None] = [0.0] * len(clean)
        for at, gain in zip(asked, gains, strict=True):
            rewards[at] = None if gain is None else math.tanh(gain / self._scale)
        if self._state is not None:
            self._gain.control.save(self._state)
        return rewards


def written(completion: str | Sequence[Mapping[str, str]]) -> str:
    """Return the text of a completion, which TRL hands over as chat messages where the prompt is a chat."""
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return text.strip()
