"""What policy and guards say: whether a prompt is left alone, whether a candidate may be used, and how it is joined.

Pure but for a small memory of what our own rules said. A module of its own because the rules' patterns take a sixth of
a second to compile: `PromptOptimizer(preload=True)` does that while the weights load.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from bpo_integrations.guards import (
    ADDITION_GUARDS,
    REWRITE_GUARDS,
    SOFTENING_GUARDS,
    Guard,
    first_violation,
    protected,
)
from bpo_integrations.joint import already_said, join
from bpo_integrations.policy import Afterthought, Policy, PolicyContext, default_policy
from bpo_integrations.result import Candidate, Mode, Violation
from bpo_integrations.safety import is_unsafe

__all__ = ["Judge", "is_unsafe", "join"]

REMEMBERED_CHARACTERS = 2000
"""What our rules, which are pure, said about texts up to this length is remembered: agents, retries and batches bring
the same prompt again."""

_policy_memory = lru_cache(maxsize=512)(default_policy)
_guard_memory = lru_cache(maxsize=2048)(first_violation)


class Judge:
    """The policy and the guards of an optimizer.

    Args:
        mode: What is done to prompts; chooses the guards.
        policy: Replaces the default policy.
        guards: Replace the mode's guards.
        protect: Literals or compiled patterns that must survive in a rewrite.
    """

    def __init__(
        self,
        mode: Mode,
        policy: Policy | None,
        guards: Sequence[Guard] | None,
        protect: Sequence[str | re.Pattern[str]],
    ) -> None:
        self.policy = policy or default_policy
        self.guards: tuple[Guard, ...] = (
            tuple(guards) if guards is not None else ADDITION_GUARDS if mode == "augment" else REWRITE_GUARDS
        )
        self._protect: tuple[Guard, ...] = (protected(protect),) if protect else ()

    def reason_to_keep(self, prompt: str, context: PolicyContext) -> str | None:
        """Return why the prompt is left alone, or None."""
        if self.policy is default_policy and len(prompt) <= REMEMBERED_CHARACTERS and not context.history:
            return _policy_memory(prompt, context)
        return self.policy(prompt, context)

    def reason_to_revert(self, prompt: str, candidate: Candidate, context: PolicyContext) -> str | None:
        """Return why the prompt is kept although the candidate is clean, or None."""
        return self.policy.after(prompt, candidate, context) if isinstance(self.policy, Afterthought) else None

    def violation(self, original: str, candidate: Candidate, mode: Mode, *, softens: bool) -> Violation | None:
        """Return why a candidate of a rewriter of this mode cannot be used, or None."""
        if candidate.violation is not None:
            return candidate.violation
        if not candidate.text.strip():
            return None if mode == "augment" else Violation("empty", "the model returned nothing")
        if candidate.finish_reason == "length":
            return Violation("unfinished", f"cut off after {candidate.tokens} tokens")
        if mode == "augment":
            if already_said(original, candidate.text):
                return Violation("said already", "the prompt says it")
            return _first_violation(self.guards, original, candidate.text)
        guards = SOFTENING_GUARDS if softens else self.guards
        found = first_violation(self._protect, original, candidate.text)
        return found or _first_violation(guards, original, candidate.text)


def _first_violation(guards: tuple[Guard, ...], original: str, candidate: str) -> Violation | None:
    ours = guards is ADDITION_GUARDS or guards is REWRITE_GUARDS
    if ours and len(original) + len(candidate) <= REMEMBERED_CHARACTERS:
        return _guard_memory(guards, original, candidate)
    return first_violation(guards, original, candidate)
