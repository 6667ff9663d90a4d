"""Guards: pure functions that say why a candidate must not be used, and never repair it.

`REWRITE_GUARDS` judge a whole new prompt, `ADDITION_GUARDS` what is put behind the prompt, `SOFTENING_GUARDS` an unsafe
request made harmless (whose words must change). docs/guards.md has what each costs and catches.
"""

from __future__ import annotations

from bpo_integrations.guards.addition import (
    asks_no_short_question,
    invents_no_names,
    invents_no_numbers,
    is_an_instruction,
    is_finished,
    is_language,
    repeats_nothing,
    says_something_new,
)
from bpo_integrations.guards.base import Guard, first_violation, guard, protected
from bpo_integrations.guards.contradict import adds_within_length_limits, contradicts_nothing, respects_length_limits
from bpo_integrations.guards.intrude import (
    asks_nothing_back,
    brings_no_emoji,
    brings_no_placeholders,
    brings_no_role_marks,
    leaks_no_template,
    makes_no_comments,
)
from bpo_integrations.guards.literal import (
    keeps_addresses,
    keeps_code,
    keeps_passages,
    keeps_placeholders,
    keeps_quotations,
)
from bpo_integrations.guards.meaning import (
    stays_a_request,
    stays_in_the_language,
    stays_of_a_length,
    stays_on_the_subject,
)
from bpo_integrations.guards.preserve import keeps_limits, keeps_names, keeps_negations, keeps_numbers

_INTRUSION_GUARDS: tuple[Guard, ...] = (
    brings_no_role_marks,
    leaks_no_template,
    makes_no_comments,
    asks_nothing_back,
    brings_no_emoji,
    brings_no_placeholders,
)

REWRITE_GUARDS: tuple[Guard, ...] = (
    *_INTRUSION_GUARDS,
    stays_a_request,
    stays_of_a_length,
    stays_in_the_language,
    stays_on_the_subject,
    keeps_numbers,
    keeps_limits,
    keeps_negations,
    keeps_names,
    keeps_placeholders,
    keeps_addresses,
    keeps_code,
    keeps_quotations,
    keeps_passages,
    respects_length_limits,
)
"""Rewrite mode: (prompt, the new prompt)."""

ADDITION_GUARDS: tuple[Guard, ...] = (
    *_INTRUSION_GUARDS,
    asks_no_short_question,
    is_language,
    stays_in_the_language,
    is_finished,
    repeats_nothing,
    says_something_new,
    is_an_instruction,
    adds_within_length_limits,
    contradicts_nothing,
    invents_no_numbers,
    invents_no_names,
)
"""Augment mode: (prompt, the addition alone)."""

SOFTENING_GUARDS: tuple[Guard, ...] = (*_INTRUSION_GUARDS, stays_a_request, stays_of_a_length, stays_in_the_language)
"""Unsafe requests made harmless: the words may change, what must not come in stays out."""

__all__ = [
    "ADDITION_GUARDS",
    "REWRITE_GUARDS",
    "SOFTENING_GUARDS",
    "Guard",
    "first_violation",
    "guard",
    "protected",
]
