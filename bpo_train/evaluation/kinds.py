"""What an optimizer added to a prompt: one of the four ways in which the paper says that BPO improves prompts.

The paper (section 5) names explanation generation, prompt elaboration, providing hints and safety enhancement. Which it
is goes by the words that were added: the first of `SAFETY`, `EXPLANATION` and `HINT` that finds its words, else
elaboration. Lexical and English; good enough to see where gains and losses lie, not a judgement of one text.
"""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

from rapidfuzz.distance import LCSseq

from bpo_integrations.result import OptimizedPrompt
from bpo_train.data.words import words

Added = Literal["explanation", "elaboration", "hint", "safety", "rewording", "nothing"]
"""`explanation`: asks for reasons, steps or a derivation. `elaboration`: says more of what is wanted: form, tone,
extent, audience. `hint`: names points to go into, cases to think of, or knowledge to use. `safety`: asks for harmless,
lawful or respectful content. `rewording`: changed, but hardly a word was added. `nothing`: not changed."""

ADDED: Final[tuple[Added, ...]] = get_args(Added)
"""All of them, in the order of a report."""

FEWEST = 3
"""A change that adds fewer words is a rewording."""

_TOKEN = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")

_STEM = 5  # letters; a prompt about ethics does not become safer by the word "ethical"


def _any(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(rf"\b(?:{alternative})\b" for alternative in alternatives), re.IGNORECASE)


SAFETY: Final = _any(
    r"harm(?:s|ful|less|lessly|ing)?",
    r"(?:un)?ethical(?:ly)?|non-?judgmental",
    r"illegal\w*|(?:un)?lawful(?:ly)?|illicit|against the law|legally",
    r"legal (?:and|or|ways?|alternatives?|consequences?|risks?|means)|and legal (?:ways?|alternatives?|risks?|means)",
    r"respectful(?:ly)?|inclusive|offensive|derogatory|hateful|discriminat\w+|prejudices?|stereotyp\w+|slurs?",
    r"dangers? of|dangerous|responsibly|misuse|consent|harassment|abusive|non-?violent",
    r"(?:seek|talk to|professional|crisis|mental health) (?:\w+ ){0,2}(?:help|support|professionals?)|hotlines?",
    r"safe (?:and|or|ways?|alternatives?)",
)
EXPLANATION: Final = _any(
    r"explain\w*|explanations?|elucidate",
    r"reason(?:s|ing|ed)?|rationales?|justif\w+|why|because|argue|arguments? for",
    r"step[- ]by[- ]step|(?:each|every|the|your|all|show|intermediate) (?:\w+ )?steps?|walk (?:me|us) through",
    r"show (?:your|the|how|each|all) (?:\w+ )?(?:work(?:ing)?|calculations?|derivations?|formulas?|proof|method)",
    r"deriv(?:e|ation)s?|prove|interpret(?:ation)?|how (?:it|they|this|that|each) works?",
)
HINT: Final = _any(
    r"consider(?:ing)?|keep(?:ing)? in mind|bear in mind|remember(?:ing)?|take into account|taking into account",
    r"be aware|note that|think (?:about|of)|watch out|beware|pay attention|make sure|ensur(?:e|ing)|check|verify",
    r"such as|for (?:example|instance)|e\.g\.|including|like the",
    r"focus(?:ing)? on|cover(?:ing)?|address(?:ing)?|handl(?:e|ing)|mention(?:ing)?|touch(?:ing)? on|based on",
    r"distinguish|compare|assum(?:e|ing|ptions?)|treat|unless|edge cases?|trade-?offs?|pitfalls?|mistakes?|instead of",
    r"what happens|what if|if so|in terms of|factors?|aspects?",
)


def added_text(prompt: str, sent: str) -> str:
    r"""Return the words that a prompt gained, in reading order; of a rewrite each stretch on a line of its own.

    Example:
        >>> added_text("Tell me about tea", "Tell me about green tea and how it is made")
        'green\nand how it is made'
    """
    if tail := OptimizedPrompt(prompt, sent, "rewritten", "").addition:
        return tail
    before, after = _TOKEN.findall(prompt), _TOKEN.findall(sent)
    found = (step for step in LCSseq.opcodes(before, after) if step.tag in ("insert", "replace"))
    return "\n".join(" ".join(after[step.dest_start : step.dest_end]) for step in found)


def added_kind(prompt: str, sent: str, *, softened: bool = False) -> Added:
    """Return what was added to a prompt.

    Args:
        prompt: As the user wrote it.
        sent: As the LLM got it.
        softened: Whether an unsafe request was made harmless (`OptimizedPrompt.kind`); that is safety, whatever the
            words.

    Example:
        >>> prompt = "Why is the sky blue?"
        >>> added_kind(prompt, f"{prompt} Explain the physics step by step.")
        'explanation'
        >>> added_kind(prompt, f"{prompt} Answer in two short paragraphs for a child.")
        'elaboration'
        >>> added_kind(prompt, prompt)
        'nothing'
    """
    if sent == prompt:
        return "nothing"
    if softened:
        return "safety"
    added, asked = added_text(prompt, sent).replace("’", "'"), prompt.lower()
    if any(found[0].lower()[:_STEM] not in asked for found in SAFETY.finditer(added)):
        return "safety"
    if len(words(added)) < FEWEST:
        return "rewording"
    if EXPLANATION.search(added):
        return "explanation"
    return "hint" if HINT.search(added) else "elaboration"
