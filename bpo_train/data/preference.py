"""The one schema that every source is turned into, and that everything after it reads.

It holds what the annotator is shown and what the card must say of a row; it knows nothing of files.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preference:
    """One instruction with a preferred and a rejected response.

    Attributes:
        id: Unique within its source: the source's own id where it has one, else `source:digest` of the content, so
            that it stays the same when files are split, joined or reordered.
        instruction: What the user asked, as they wrote it.
        good_res: The response that was preferred.
        bad_res: The response that was rejected.
        context: Material that belongs to the instruction and stands apart from it (Alpaca's `input`); it is never
            rewritten. None where the instruction is whole by itself.
        source: The data set.
        licence: Its licence, as an SPDX identifier where there is one; empty when unknown.
        category: The source's own label, if it has one; empty otherwise.

    Example:
        >>> row = Preference("mine:1", "Tell me about tea", "Tea is a drink ...", "No.", source="mine")
        >>> row.context is None
        True
    """

    id: str
    instruction: str
    good_res: str
    bad_res: str
    context: str | None = None
    source: str = ""
    licence: str = ""
    category: str = ""
