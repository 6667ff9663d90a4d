r"""ChatML, from messages to tokens: `<|im_start|>role\ncontent<|im_end|>\n`, as SmolLM2, Qwen and others have it.

Promises: the tokens equal those of transformers' `apply_chat_template` for messages without special tokens; special
tokens that stand inside a message stay text. Each stretch between two marks is encoded as a whole, as tokenizers do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bpo_integrations.engines.generation import encodable
from bpo_integrations.errors import ModelFormatError
from bpo_integrations.templates import Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = "<|im_start|>", "<|im_end|>"

_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\n|\\n)([^'{}]*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as tokens.

    Args:
        fixed: The beginning that does not depend on the user: the system turn, and the mark that opens the next one.
        rest: What follows.
    """

    fixed: tuple[str, ...]
    rest: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.fixed) + len(self.rest)


class ChatML:
    """Renders messages for one model.

    Args:
        tokenizer: The model's; it is set to take special tokens inside a text for text.
        template: The model's Jinja template, from which only the default system turn is taken; None for none.

    Raises:
        ModelFormatError: The tokenizer has no ChatML marks, or the template is of another kind.

    Example:
        >>> ChatML(tokenizer).render([{"role": "user", "content": "Hi"}]).rest[0]  # doctest: +SKIP
        '<|im_start|>'
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        if None in (tokenizer.token_to_id(START), tokenizer.token_to_id(END)) or (template and START not in template):
            msg = f"The model's chat template is not ChatML ({START} ... {END})."
            raise ModelFormatError(msg, hint="Run this model through transformers, with the spec hf:DIR.")
        tokenizer.encode_special_tokens = True  # is not kept in tokenizer.json
        self._tokenizer = tokenizer
        found = _DEFAULT_SYSTEM.search(template or "")
        self.default_system = found.group(1) if found else None
        self._newline = self.encode("\n")
        self._answer = [START, *self.encode("assistant\n")]
        # Tokens at the end of every prompt that no answer is likely to hold: a newline, and the opened turn.
        self.harmless_tail = len(self._newline) + len(self._answer)

    def encode(self, text: str) -> list[str]:
        """Return the tokens of a text in which nothing is special; lone surrogates count as `?`."""
        tokens: list[str] = self._tokenizer.encode(encodable(text), add_special_tokens=False).tokens
        return tokens

    def render(self, messages: Sequence[Message]) -> Prompt:
        """Return the tokens that put the messages to the model, with the assistant's turn opened."""
        turns = [(message["role"], message["content"]) for message in messages]
        if self.default_system is not None and turns and turns[0][0] != "system":
            turns.insert(0, ("system", self.default_system))
        tokens: list[str] = []
        fixed = 0
        for role, content in turns:
            tokens += [START, *self.encode(f"{role}\n{content}"), END, *self._newline]
            if not fixed and role == "system":
                fixed = len(tokens) + 1
        tokens += self._answer
        return Prompt(tuple(tokens[:fixed]), tuple(tokens[fixed:]))
