"""The arms of the paper's table: what each sends, and to which model; and which arm is compared with which.

Plain data. Arms that are sent to the same model are answered together (`answers.py`), in the order of their worth to
the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpo_train.evaluation.records import BASELINE

AUGMENT, REWRITE, PLACEBO, META = "augment", "rewrite", "placebo", "meta"
PASSES = tuple(f"{REWRITE}-{number}" for number in range(2, 6))
"""Two to five passes of the rewriter (paper, section 5.3); one pass is `rewrite` itself."""

MODELS = ("ppo", "dpo", "rloo")
"""The answering models that were trained; `base` is the one that was not."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to an answer.

    Args:
        name: Its name.
        label: How the table calls it.
        sends: The prompts that are sent: `original`, or the name of the arm whose prompts these are.
        model: The answering model: `base`, or one of `MODELS`.
    """

    name: str
    label: str
    sends: str
    model: str = "base"


ARMS = (
    Arm(BASELINE, "original", BASELINE),
    Arm(PLACEBO, "placebo", PLACEBO),
    Arm(AUGMENT, "+BPO augment", AUGMENT),
    Arm(REWRITE, "+BPO rewrite", REWRITE),
    Arm("ppo", "+PPO", BASELINE, "ppo"),
    Arm("ppo+bpo", "+PPO+BPO augment", AUGMENT, "ppo"),
    Arm("dpo", "+DPO", BASELINE, "dpo"),
    Arm("dpo+bpo", "+DPO+BPO augment", AUGMENT, "dpo"),
    Arm("rloo", "+RLOO", BASELINE, "rloo"),
    Arm(META, "rewrite by the LLM itself, no feedback", META),
    *(Arm(name, f"+BPO rewrite, {number} passes", name) for number, name in enumerate(PASSES, start=2)),
)
BY_NAME = {arm.name: arm for arm in ARMS}

GROUPS: dict[str, tuple[str, ...]] = {
    "main": (BASELINE, AUGMENT, REWRITE, PLACEBO),
    "ppo": ("ppo", "ppo+bpo"),
    "dpo": ("dpo", "dpo+bpo"),
    "rloo": ("rloo",),
    "meta": (META,),
    "passes": PASSES,
}
"""Arms that are answered in one stage: they share a model, and the prompts that an arm left alone."""

COMPARISONS: tuple[tuple[str, str], ...] = (
    *((arm.name, BASELINE) for arm in ARMS if arm.name != BASELINE),
    *((bpo, trained) for trained in MODELS for bpo in (AUGMENT, REWRITE)),
    ("ppo+bpo", "ppo"),
    ("dpo+bpo", "dpo"),
    (AUGMENT, PLACEBO),
    (REWRITE, META),
)
"""Arm and what it is judged against: all against the original, then as the paper compares (section 4.3)."""
