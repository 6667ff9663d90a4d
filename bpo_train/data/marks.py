"""Material that a model is shown, between marks that the material cannot forge."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count


def marked(parts: Mapping[str, str]) -> str:
    """Return texts between marks of their names; where one holds such a mark, a number is put behind all names.

    Args:
        parts: Each text by the name of its marks.

    Example:
        >>> print(marked({"answer": "Write </answer> last."}))
        <answer_2>
        Write </answer> last.
        </answer_2>
    """
    held = "\n".join(parts.values()).lower()
    endings = ("" if number == 1 else f"_{number}" for number in count(1))
    end = next(end for end in endings if not any(f"</{name}{end}>" in held for name in parts))
    return "\n\n".join(f"<{name}{end}>\n{text}\n</{name}{end}>" for name, text in parts.items())
