"""The arms of an evaluation: what is done to a prompt before the LLM sees it.

Promises: an arm is named by what it does, in words that `Arm.parse` reads; nothing is loaded to parse one. How prompts
are sent through an arm is `respond.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from bpo_integrations.decoding import DECODINGS
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.optimizer import MAX_PASSES, PromptOptimizer
from bpo_integrations.result import Mode
from bpo_integrations.rewriter import Rewriter, load_rewriter
from bpo_train.evaluation.records import BASELINE

PLACEBO = "Please give a helpful, accurate and complete answer."
"""What the arm `placebo` adds to every prompt: it fits any, and says nothing about this one. What an optimizer gains
over it, it gains by knowing the prompt."""

KINDS = ("original", "augment", "rewrite", "meta", "placebo")
HINT = (
    "Arms are original, placebo, augment, rewrite, meta and model=SPEC; behind a colon may stand stable, aggressive, "
    "greedy (not of meta), passes=1 to 5, mode=augment or rewrite, profile=NAME or FILE, and as the last model=SPEC."
)


@dataclass(frozen=True, slots=True)
class Arm:
    """What is done to prompts.

    Args:
        name: What the arm is called: the words it was parsed from.
        kind: `original` sends them as they are, `placebo` adds one fixed sentence; `optimizer` is a trained rewriter,
            `meta` the answering LLM itself, asked for a better prompt (the paper's ablation without feedback).
        mode: `augment` or `rewrite`; None is the rewriter's own.
        model: The rewriter's spec; None is the evaluation's.
        decoding: How candidates are drawn; None is the paper's `stable` in rewrite mode, greedy in augment mode.
        passes: How often a prompt is rewritten.
        profile: As `PromptOptimizer(profile=...)`.

    Example:
        >>> Arm.parse("rewrite:passes=3").passes
        3
    """

    name: str
    kind: Literal["original", "placebo", "optimizer", "meta"]
    mode: Mode | None = None
    model: str | None = None
    decoding: str | None = None
    passes: int = 1
    profile: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an arm.

        Args:
            text: For example `augment`, `rewrite:aggressive`, `rewrite:passes=3`, `meta`, `model=hf:runs/mine`,
                `augment:profile=policy.json`.

        Raises:
            ConfigurationError: It names no arm, or its options do not go together.
        """
        text = text.strip()
        head, mark, model = text.partition("model=")
        words = (head.removesuffix(":") if mark else head).split(":") if head else []
        if mark and (not model or (head and not head.endswith(":"))):
            raise _wrong(text, "model= needs a spec, and stands at the end")
        first = words.pop(0) if words and "=" not in words[0] else ""
        if first not in KINDS and not (mark and not first):
            raise _wrong(text, f"{first or text!r} is none of them" if text else "it is empty")
        settled: dict[str, Any] = {"model": model or None}
        if first in ("augment", "rewrite"):
            settled["mode"] = first
        for word in words:
            settled |= _option(text, word)
        if first in (BASELINE, "placebo"):
            if mark or words:
                raise _wrong(text, f"{first} takes no options")
            return cls(text, "original" if first == BASELINE else "placebo")
        if first == "meta" and model:
            raise _wrong(text, "meta asks the LLM that answers; model=SPEC alone asks another one")
        if first == "meta" and "decoding" in settled:
            raise _wrong(text, "the LLM is asked for a better prompt at the temperature of its answers")
        arm = cls(text, "meta" if first == "meta" else "optimizer", **settled)
        if arm.mode == "augment" and arm.passes > 1:
            raise _wrong(text, "an addition is not added to again")
        return arm

    def optimizer(self, model: str | Rewriter, *, seed: int = 0) -> PromptOptimizer:
        """Return what optimizes prompts in this arm.

        Args:
            model: The rewriter, unless the arm has its own.
            seed: Of sampled candidates.

        Raises:
            ConfigurationError: The rewriter cannot do this, or is not there.
        """
        rewriter = load_rewriter(self.model or model, mode=self.mode)
        default = "greedy" if rewriter.mode == "augment" or self.kind == "meta" else "stable"
        decoding = DECODINGS[self.decoding or default]
        return PromptOptimizer(
            rewriter,
            # A seed has no effect on greedy decoding, but calls that have none may share a batch.
            decoding=decoding if decoding.greedy else replace(decoding, seed=seed),
            passes=self.passes,
            profile=self.profile,
            timeout=None,
            on_error="raise",
        )

    def settings(self) -> dict[str, Any]:
        """Return everything that the arm's prompts depend on, besides the rewriter."""
        return {name: value for name, value in asdict(self).items() if name != "name"}


def parse_arms(texts: Iterable[str], *, baseline: str = BASELINE) -> tuple[Arm, ...]:
    """Read arms, several of which may stand in one text with commas between them; the baseline comes first.

    Args:
        texts: What `Arm.parse` reads.
        baseline: The arm that the others are compared with; added where it is not there.

    Raises:
        ConfigurationError: One is wrong, one is there twice, or nothing is left to compare.

    Example:
        >>> [arm.name for arm in parse_arms(["augment,placebo"])]
        ['original', 'augment', 'placebo']
    """
    found = [Arm.parse(part) for text in texts for part in text.split(",")]
    first = Arm.parse(baseline)
    names = [arm.name for arm in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        msg = f"The arm {twice} is there twice."
        raise ConfigurationError(msg, hint="Name each arm once.")
    arms = (first, *(arm for arm in found if arm.name != first.name))
    if len(arms) < 2:
        msg = f"There is no arm besides {first.name}."
        raise ConfigurationError(msg, hint="Name one to compare, such as --arm augment.")
    return arms


def _option(text: str, word: str) -> dict[str, Any]:
    name, _, value = word.partition("=")
    if word in DECODINGS:
        return {"decoding": word}
    if name == "passes" and value.isdecimal() and 1 <= int(value) <= MAX_PASSES:
        return {"passes": int(value)}
    if name == "mode" and value in ("augment", "rewrite"):
        return {"mode": value}
    if name == "profile" and value:
        return {"profile": value}
    raise _wrong(text, f"{word!r} is no option")


def _wrong(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"There is no arm {text!r}: {why}.", hint=HINT)
