"""When a prompt is left alone before any model runs.

A policy is a function of a prompt and its context that returns a reason, or None to go on. The default is a row of
named rules; `all_of` makes a policy of those that are kept and those that are added. A policy may also look at what the
model wrote (`Afterthought`). Pure, linear in the prompt's length, never raises on any str.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

from bpo_integrations import recognize
from bpo_integrations.dialogue import leans_on_history
from bpo_integrations.language import detect, is_english
from bpo_integrations.result import Candidate, Mode
from bpo_integrations.safety import is_unsafe

__all__ = [
    "RULES",
    "Afterthought",
    "Policy",
    "PolicyContext",
    "all_of",
    "default_policy",
    "leans_on_history",
    "rule",
]


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """What a policy may know besides the prompt.

    Args:
        mode: What would be done to the prompt.
        languages: ISO 639-1 codes that the rewriting model knows; empty means any.
        unsafe: `keep` leaves unsafe prompts alone, `soften` lets them through to be softened.
        history: Earlier turns and answers, oldest first.
        uses_history: Whether the rewriting model is shown the history.
    """

    mode: Mode
    languages: tuple[str, ...] = ()
    unsafe: Literal["keep", "soften"] = "keep"
    history: tuple[str, ...] = ()
    uses_history: bool = False


class Policy(Protocol):
    """Decides whether a prompt is left alone."""

    def __call__(self, prompt: str, context: PolicyContext) -> str | None:
        """Return the reason for leaving `prompt` alone, such as `fixed output`, or None to go on."""


@runtime_checkable
class Afterthought(Protocol):
    """What a policy may have besides: a say once the model has written and the guards have judged."""

    def after(self, prompt: str, candidate: Candidate, context: PolicyContext) -> str | None:
        """Return the reason for keeping `prompt` rather than using `candidate`, or None to use it."""


@dataclass(frozen=True, slots=True)
class AllOf:
    """Asks policies in turn, before and after the model runs; `all_of` makes one.

    Args:
        policies: What is asked, in this order.
    """

    policies: tuple[Policy, ...]

    def __call__(self, prompt: str, context: PolicyContext) -> str | None:
        """Return the first reason for leaving `prompt` alone, or None."""
        return next((reason for policy in self.policies if (reason := policy(prompt, context)) is not None), None)

    def after(self, prompt: str, candidate: Candidate, context: PolicyContext) -> str | None:
        """Return the first reason for keeping `prompt` rather than using `candidate`, or None."""
        thinking = (policy for policy in self.policies if isinstance(policy, Afterthought))
        reasons = (policy.after(prompt, candidate, context) for policy in thinking)
        return next((reason for reason in reasons if reason is not None), None)


def all_of(*policies: Policy) -> Policy:
    """Return a policy that asks each of `policies` in turn and returns the first reason.

    Example:
        >>> mine = all_of(*(rule for name, rule in RULES.items() if name != "length limit"))
        >>> mine("Explain inflation in one sentence", PolicyContext(mode="augment"))
    """
    return AllOf(policies)


def rule(reason: str, applies: Callable[[str], object], *, mode: Mode | None = None) -> Policy:
    """Return a policy that leaves a prompt alone, for `reason`, where `applies(prompt)` is true.

    Args:
        reason: The reason to give.
        applies: A predicate on the prompt.
        mode: The only mode in which it counts; None: in both.

    Example:
        >>> rule("a ticket", lambda prompt: prompt.startswith("TICKET-"))("TICKET-7", PolicyContext(mode="augment"))
        'a ticket'
    """

    def policy(prompt: str, context: PolicyContext) -> str | None:
        return reason if mode in (None, context.mode) and applies(prompt) else None

    return policy


def _language(prompt: str, context: PolicyContext) -> str | None:
    known = context.languages
    if not known or ("en" in known and is_english(prompt)):
        return None
    code = detect(prompt)
    return None if code in known or (code is None and "en" not in known) else "language"


def _unsafe(prompt: str, context: PolicyContext) -> str | None:
    return "unsafe" if context.unsafe == "keep" and is_unsafe(prompt) else None


def _needs_conversation(prompt: str, context: PolicyContext) -> str | None:
    """Leave a turn that leans on others to the LLM, which sees them, unless the rewriting model sees them too."""
    if context.history and context.uses_history:
        return None
    leans = recognize.is_bare_turn(prompt) or leans_on_history(prompt, context.history)
    return "needs the conversation" if leans else None


RULES: MappingProxyType[str, Policy] = MappingProxyType(
    {
        "empty": rule("empty", recognize.is_empty),
        "control characters": rule("control characters", recognize.has_control_characters),
        "role marks": rule("role marks", recognize.has_role_marks),
        "injection": rule("injection", recognize.is_injection),
        "template variable": rule("template variable", recognize.is_template_variable),
        "code only": rule("code only", recognize.is_code_only),
        "small talk": rule("small talk", recognize.is_small_talk),
        "needs the conversation": _needs_conversation,
        "command": rule("command", recognize.is_command),
        "unsafe": _unsafe,
        "fixed output": rule("fixed output", recognize.fixes_output, mode="augment"),
        "length limit": rule("length limit", recognize.limits_length, mode="augment"),
        "word for word": rule("word for word", recognize.is_word_for_word, mode="augment"),
        "specific already": rule("specific already", recognize.is_specific, mode="augment"),
        "language": _language,
    }
)
"""The default rules by name, in the order in which they are asked."""

default_policy: Policy = all_of(*RULES.values())
"""All of `RULES`."""
