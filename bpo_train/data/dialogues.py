"""Layouts whose rows hold conversations: trees of messages, transcripts, pairs of chats.

Pure functions from rows to preferences. Only single-turn data are taken (paper, section 3.1): of a longer dialogue the
last instruction cannot be judged without its history, and the first one has no two answers to compare.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from bpo_train.data.checked import Loaded, Skip, digest, number_of, preference, rows_in
from bpo_train.data.rows import Row


def oasst(rows: Iterable[Row]) -> Iterator[Loaded]:
    """OASST1 and OASST2: the root's best ranked reply against its worst, from flat messages or from whole trees.

    Flat messages must lie tree by tree, as they do in the published files: one tree is in memory at a time. Replies
    that were deleted, that failed review or that have no rank are no candidates; rank 0 is the best.
    """
    tree: list[Row] = []
    closed: set[str] = set()
    for row in rows:
        if isinstance(row.get("prompt"), dict):  # a whole tree
            yield _tree(row["prompt"], rows_in(row["prompt"].get("replies")))
            continue
        if tree and row.get("message_tree_id") != tree[0].get("message_tree_id"):
            closed.add(digest(str(tree[0].get("message_tree_id"))))
            yield _flat(tree)
            tree = []
        if digest(str(row.get("message_tree_id"))) in closed:
            yield Skip("scattered")
        else:
            tree.append(row)
    if tree:
        yield _flat(tree)


def _flat(messages: list[Row]) -> Loaded:
    root = next((message for message in messages if not message.get("parent_id")), None)
    if root is None:
        return Skip("missing")
    return _tree(root, [message for message in messages if message.get("parent_id") == root.get("message_id")])


def _tree(root: Row, replies: list[Row]) -> Loaded:
    if root.get("deleted") or root.get("review_result") is False:
        return Skip("withdrawn")
    ranked = sorted(
        (
            (rank, reply.get("text"))
            for reply in replies
            if reply.get("role") == "assistant"
            and (rank := number_of(reply.get("rank"))) is not None
            and not reply.get("deleted")
            and reply.get("review_result") is not False
        ),
        key=lambda entry: entry[0],
    )
    if len(ranked) < 2:
        return Skip("unranked")
    (first, best), (last, worst) = ranked[0], ranked[-1]
    if first == last:
        return Skip("tie")
    identifier = root.get("message_id")
    return preference(
        root.get("text"),
        best,
        worst,
        id=f"oasst:{identifier}" if identifier else None,
        source="oasst",
        licence="Apache-2.0",
        category=root.get("lang"),
    )


_MARK = re.compile(r"\n\n(Human|Assistant): ?")


def hh_rlhf(row: Row) -> Loaded:
    """hh-rlhf: two transcripts that differ in the last answer."""
    chosen, rejected = _transcript(row.get("chosen")), _transcript(row.get("rejected"))
    if chosen is None or rejected is None:
        return Skip("missing")
    if len(chosen) > 2 or len(rejected) > 2:
        return Skip("multi_turn")
    if [role for role, _ in chosen + rejected] != ["Human", "Assistant"] * 2:
        return Skip("missing")
    if chosen[0] != rejected[0]:
        return Skip("no_prompt")
    return preference(chosen[0][1], chosen[1][1], rejected[1][1], source="hh_rlhf", licence="MIT")


def _transcript(text: Any) -> list[tuple[str, str]] | None:
    if not isinstance(text, str) or not text.startswith("\n\nHuman:"):
        return None
    parts = _MARK.split(text)
    return [(role, said.strip()) for role, said in zip(parts[1::2], parts[2::2], strict=True)]


def arena(row: Row) -> Loaded:
    """Chatbot Arena Conversations: two conversations and who won; both kinds of tie are skipped."""
    winner = row.get("winner")
    if winner not in ("model_a", "model_b"):
        return Skip("tie" if isinstance(winner, str) and "tie" in winner else "missing")
    good, bad = ("a", "b") if winner == "model_a" else ("b", "a")
    identifier = row.get("question_id")
    return _conversations(
        row.get(f"conversation_{good}"),
        row.get(f"conversation_{bad}"),
        id=f"arena:{identifier}" if identifier else None,
        source="chatbot_arena",
        licence="CC-BY-NC-4.0",  # of the responses; the prompts are CC-BY-4.0
        category=row.get("language"),
    )


_SCORES = (("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"), ("chosen_score", "rejected_score"))


def trl(row: Row) -> Loaded:
    """A TRL preference data set: `chosen`, `rejected`, and `prompt` unless it is their common beginning.

    Each may be text or chat messages. System messages are left out: they are not the user's words. Where both sides
    are scored alike it is a tie.
    """
    for one, other in _SCORES:
        if row.get(one) is not None and row.get(one) == row.get(other):
            return Skip("tie")
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    about: dict[str, Any] = {
        "source": str(row.get("source") or row.get("dataset") or "trl"),
        "licence": str(row.get("licence") or row.get("license") or ""),
        "category": row.get("category"),
    }
    if isinstance(prompt, str) and isinstance(chosen, str) and prompt.startswith("\n\nHuman:"):
        turns = _transcript(prompt.rstrip().removesuffix("Assistant:").rstrip()) or []
        if len(turns) != 1:
            return Skip("multi_turn")
        prompt = turns[0][1]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return Skip("no_prompt")
        prompt = prompt if isinstance(prompt, str) else _only_question(prompt)
        return prompt if isinstance(prompt, Skip) else preference(prompt, chosen, rejected, **about)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return _conversations(_joined(prompt, chosen), _joined(prompt, rejected), **about)


def _joined(prompt: Any, answer: Any) -> Any:
    """Return the whole conversation, whether the answer repeats the prompt or only goes on from it."""
    if not isinstance(answer, list) or not prompt or not isinstance(prompt, list):
        return answer
    repeats = any(isinstance(message, dict) and message.get("role") == "user" for message in answer)
    return answer if repeats else [*prompt, *answer]


def _conversations(good: Any, bad: Any, **about: Any) -> Loaded:
    good, bad = _messages(good), _messages(bad)
    if good is None or bad is None:
        return Skip("missing")
    if len(good) > 2 or len(bad) > 2:
        return Skip("multi_turn")
    if [role for role, _ in good] != ["user", "assistant"] or [role for role, _ in bad] != ["user", "assistant"]:
        return Skip("missing")
    if good[0] != bad[0]:
        return Skip("no_prompt")
    return preference(good[0][1], good[1][1], bad[1][1], **about)


def _only_question(messages: Any) -> str | Skip:
    turns = _messages(messages)
    if not turns or turns[0][0] != "user":
        return Skip("missing")
    return turns[0][1] if len(turns) == 1 else Skip("multi_turn")


def _messages(value: Any) -> list[tuple[str, str]] | None:
    """Return (role, text) of each message but the system's; None where it is no list of such messages."""
    if not isinstance(value, list) or not value:
        return None
    turns = []
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return None
        content = message.get("content")
        if isinstance(content, list):  # parts: of text alone, or nothing that can be used
            texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
            content = texts[0] if len(texts) == len(content) == 1 else None
        if not isinstance(content, str):
            return None
        if message["role"] != "system":
            turns.append((message["role"], content))
    return turns
