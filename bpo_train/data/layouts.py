"""The layouts that preference data come in: which one a row is of, and how it becomes a `Preference`.

Here are those whose rows hold an instruction and its responses; `dialogues.py` has those that hold conversations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from bpo_train.data.checked import Loaded, Skip, number_of, preference, rows_in
from bpo_train.data.checked import digest as digest  # rows are told apart by it elsewhere, too
from bpo_train.data.dialogues import arena, hh_rlhf, oasst, trl
from bpo_train.data.rows import Row


def own(row: Row) -> Loaded:
    """Our schema: `instruction` (or `prompt`), `good_res`, `bad_res`, and what else `Preference` has."""
    return preference(
        row.get("instruction", row.get("prompt")),
        row.get("good_res"),
        row.get("bad_res"),
        id=row.get("id"),
        context=row.get("context"),
        source=str(row.get("source") or ""),
        licence=str(row.get("licence") or row.get("license") or ""),
        category=row.get("category"),
    )


_ALPACA = re.compile(
    r"\s*Below is an instruction that describes a task.*?### Instruction:\s*(?P<instruction>.*?)"
    r"(?:\s*### Input:\s*(?P<context>.*?))?(?:\s*### Response:\s*)?",
    re.DOTALL,
)


def alpaca_gpt4(row: Row) -> Loaded:
    """Alpaca-GPT4's comparisons, only where GPT-4 was rated above text-davinci-003 (paper, section 3.1).

    `comparison_data_v2.json` has `user_input`, which may be wrapped in Alpaca's template, and `responses_and_scores`.
    Also taken are rows of `instruction`, `input` and an `output` of two, the better one first; which models wrote them
    cannot be told there.
    """
    licence, output = "CC-BY-NC-4.0", row.get("output")
    if isinstance(output, list):
        if len(output) != 2:
            return Skip("unranked")
        return preference(
            row.get("instruction"), *output, context=row.get("input"), source="alpaca_gpt4", licence=licence
        )
    rated = {
        str(entry.get("source")): (entry.get("response"), number_of(entry.get("score")))
        for entry in rows_in(row.get("responses_and_scores"))
    }
    text = row.get("user_input")
    if not isinstance(text, str):
        return Skip("missing")
    if "gpt4" not in rated or "text-davinci-003" not in rated:
        return Skip("other_model")
    (good, high), (bad, low) = rated["gpt4"], rated["text-davinci-003"]
    if high is None or low is None:
        return Skip("unranked")
    if high <= low:
        return Skip("tie" if high == low else "other_model")
    found = _ALPACA.fullmatch(text)
    instruction, context = (found["instruction"], found["context"]) if found else (text, None)
    return preference(instruction, good, bad, context=context, source="alpaca_gpt4", licence=licence)


def ultrafeedback(row: Row) -> Loaded:
    """UltraFeedback as published: the best rated completion against the worst.

    By `fine-grained_score`, the mean over four aspects; `overall_score` only where that is missing, for early releases
    had it wrong for 2,628 completions (their README).
    """
    rated = []
    for completion in rows_in(row.get("completions")):
        score = number_of(completion.get("fine-grained_score"))
        score = score if score is not None else number_of(completion.get("overall_score"))
        if score is not None and completion.get("response"):
            rated.append((score, completion["response"]))
    if len(rated) < 2:
        return Skip("unranked")
    best, worst = max(rated, key=lambda entry: entry[0]), min(rated, key=lambda entry: entry[0])
    if best[0] == worst[0]:
        return Skip("tie")
    return preference(
        row.get("instruction"),
        best[1],
        worst[1],
        source="ultrafeedback",
        licence="MIT",
        category=row.get("source"),
    )


def _each(layout: Callable[[Row], Loaded]) -> Callable[[Iterable[Row]], Iterator[Loaded]]:
    return lambda rows: map(layout, rows)


LAYOUTS: dict[str, Callable[[Iterable[Row]], Iterator[Loaded]]] = {
    "own": _each(own),
    "oasst": oasst,
    "hh_rlhf": _each(hh_rlhf),
    "arena": _each(arena),
    "alpaca_gpt4": _each(alpaca_gpt4),
    "ultrafeedback": _each(ultrafeedback),
    "trl": _each(trl),
}
"""The kinds of source by name."""


def recognise(row: Row) -> str | None:
    """Return the kind of source that a row is of, by its fields; None where it is of no known kind.

    Example:
        >>> recognise({"prompt": "Why?", "chosen": "Because.", "rejected": "No."})
        'trl'
    """
    fields = row.keys()
    if {"good_res", "bad_res"} <= fields:
        return "own"
    if "message_tree_id" in fields:
        return "oasst"
    if {"conversation_a", "conversation_b", "winner"} <= fields:
        return "arena"
    if "responses_and_scores" in fields or ("instruction" in fields and isinstance(row.get("output"), list)):
        return "alpaca_gpt4"
    if {"instruction", "completions"} <= fields:
        return "ultrafeedback"
    if {"chosen", "rejected"} <= fields:
        transcript = isinstance(row["chosen"], str) and row["chosen"].startswith("\n\nHuman:")
        return "hh_rlhf" if transcript and "prompt" not in fields else "trl"
    return None
