"""What is said to the rewriting model: prompt formats, and the paper's own words.

A `PromptFormat` turns a prompt into chat messages; an engine turns those into tokens with its model's chat template.
Pure data and string functions: nothing here knows an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from bpo_integrations.errors import ModelFormatError


class Message(TypedDict):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


PAPER_INSTRUCTION = (
    "You are an expert prompt engineer. Please help me improve this prompt to get a more helpful and harmless response:"
)
"""The instruction that BPO's model is trained with (paper, section 3.3 and the model card)."""

AUGMENT_INSTRUCTION = "Say what to add to this prompt for a better answer."
"""The instruction that the embedded augmenting adapter is trained with."""


@dataclass(frozen=True, slots=True)
class PromptFormat:
    r"""How a prompt is put to the rewriting model.

    Args:
        system: The system turn, or None for none.
        user: The user turn; `{prompt}` stands for the prompt and must occur exactly once.
        history: What stands before `user` where the prompt has a history; `{history}` stands for it, exactly once.
            Empty for a model that knows single turns only.

    Raises:
        ModelFormatError: A template does not hold its place exactly once.

    Example:
        >>> PAPER_FORMAT.messages("Say hi")[0]["content"].splitlines()[-1]
        'Say hi'
    """

    system: str | None
    user: str = "{prompt}"
    history: str = ""

    def __post_init__(self) -> None:
        if self.user.count("{prompt}") != 1:
            msg = f"The user template {self.user!r} must hold {{prompt}} exactly once."
            raise ModelFormatError(msg, hint="Correct `format.user` in bpo.json.")
        if self.history and self.history.count("{history}") != 1:
            msg = f"The history template {self.history!r} must hold {{history}} exactly once."
            raise ModelFormatError(msg, hint="Correct `format.history` in bpo.json.")

    def messages(self, prompt: str, history: Sequence[str] = ()) -> list[Message]:
        """Return the chat messages for `prompt`, whose text is inserted as it is.

        Args:
            prompt: The user's turn.
            history: Earlier turns and answers, oldest first; left out where the format has no place for them.
        """
        messages: list[Message] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        content = self.user.replace("{prompt}", prompt)
        if history and self.history:
            content = self.history.replace("{history}", "\n\n".join(turn.strip() for turn in history)) + content
        messages.append({"role": "user", "content": content})
        return messages


PAPER_FORMAT = PromptFormat(system=None, user=PAPER_INSTRUCTION + "\n{prompt}")
"""The format of THUDM/BPO: one user turn."""

REWRITE_FORMAT = PromptFormat(system=PAPER_INSTRUCTION)
"""The embedded rewriting adapter's: the paper's words as the system turn, so that the user turn is the prompt alone."""

AUGMENT_FORMAT = PromptFormat(system=AUGMENT_INSTRUCTION)
"""The embedded augmenting adapter's."""


def last_user_text(messages: Sequence[Message]) -> str:
    """Return the text of the last user turn, or the empty string."""
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
