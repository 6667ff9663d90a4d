"""The context goes back to the instruction, in one of the forms in which users write (paper, section 3.2).

The annotator improves the instruction alone, its context set aside. A training pair holds both again, on both sides in
the same form. Which form a row gets depends on its id and the seed alone, never on the rows before it.
"""

from __future__ import annotations

import random
from enum import Enum


class Form(Enum):
    """A way to put an instruction and its context together, and the share of rows that get it at random."""

    BELOW = ("{instruction}\n{context}", 0.25)
    ABOVE = ("{context}\n{instruction}", 0.25)
    BEHIND = ("{instruction} {context}", 0.0625)
    BEFORE = ("{context} {instruction}", 0.0625)
    QUOTED_BEHIND = ('{instruction} "{context}"', 0.1875)
    QUOTED_BEFORE = ('"{context}" {instruction}', 0.1875)

    def write(self, instruction: str, context: str) -> str:
        """Return the whole prompt; braces in the texts stay what they are."""
        pattern: str = self.value[0]
        return pattern.format(instruction=instruction, context=context).strip()


def choose(instruction: str, optimized: str, *, id: str, seed: int = 0) -> Form:
    r"""Return the form for a row: below where the wording asks for it, else at random by the shares of the paper.

    Args:
        instruction: The user's instruction.
        optimized: The improved one.
        id: The row's id.
        seed: Another seed deals other forms.

    Example:
        >>> choose("Sum up the following text", "Sum up this text in two sentences.", id="1")
        <Form.BELOW: ('{instruction}\n{context}', 0.25)>
    """
    if "follow" in instruction or "follow" in optimized or instruction.endswith(":"):
        return Form.BELOW
    forms = list(Form)
    dealt = random.Random(f"{seed}/{id}")  # noqa: S311 - forms are dealt, no secrets
    return dealt.choices(forms, weights=[form.value[1] for form in forms])[0]


def put_back(instruction: str, optimized: str, context: str | None, *, id: str, seed: int = 0) -> tuple[str, str]:
    r"""Return the pair of prompts with the context in both.

    Args:
        instruction: The user's instruction.
        optimized: The improved one.
        context: What belongs to it; None or blank leaves both as they are.
        id: The row's id.
        seed: Another seed deals other forms.

    Returns:
        The prompt, and the optimized prompt. Where the improved instruction holds the context already (in any case of
        letters) it stays as it is, and the prompt has the context below.

    Example:
        >>> put_back("Translate to French:", "Translate this into French:", "Good morning", id="1")
        ('Translate to French:\nGood morning', 'Translate this into French:\nGood morning')
    """
    if context is None or not context.strip():
        return instruction, optimized
    if context.lower() in optimized.lower():
        return Form.BELOW.write(instruction, context), optimized
    form = choose(instruction, optimized, id=id, seed=seed)
    return form.write(instruction, context), form.write(optimized, context)
