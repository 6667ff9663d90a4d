"""What the default policy leaves alone, on real prompts: the tables of docs/policy.md.

    python tests/benchmarks/policy.py

An empty addition in `additions.jsonl` means that nothing should be added, so leaving the prompt alone is right; a row
with an addition should mostly go through. For the unsafe requests the rows are halved by the parity of their id: the
rules were written with sight of the even half only.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

from bpo_integrations.language import is_english  # noqa: E402
from bpo_integrations.policy import PolicyContext, default_policy  # noqa: E402
from bpo_integrations.safety import is_unsafe  # noqa: E402

CONTEXT = PolicyContext(mode="augment", languages=("en",))
HARMLESS_BASE = "hh_rlhf/harmless-base"
NOT_ENGLISH = frozenset(
    (
        "102 179 389 423 502 587 637 671 730 732 850 864 878 909 1131 1170 1299 1418 1451 1618 1622 1674 1734 1739 "
        "1740 1817 1822 1830 1831"
    ).split()
)
"""Ids of the rows of additions.jsonl whose task is not in English, labelled by hand."""


def prompts_of(data: Path, name: str) -> list[str]:
    """Return the prompts of a test set; Dolly's with their context behind a newline."""
    if name == "vicuna_eval":
        lines = (data / "testsets" / "vicuna_eval.jsonl").read_text(encoding="utf-8").strip().split("\n")
        return [json.loads(line)["text"] for line in lines]
    rows = json.loads((data / "testsets" / f"{name}.json").read_text(encoding="utf-8"))
    if name == "bpo_test":
        return [row["prompt"] for row in rows]
    return ["\n".join(filter(None, (row["instruction"], row["context"]))) for row in rows]


def measure(data: Path) -> dict[str, Any]:
    """Return counts: (kept, all) by group, reasons by group, and what language and safety rules say."""
    lines = (data / "additions.jsonl").read_text(encoding="utf-8").strip().split("\n")
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["reason"] = default_policy(row["prompt"], CONTEXT)
    groups: dict[str, list[dict[str, Any]]] = {
        "addition empty, unsafe source": [r for r in rows if not r["addition"] and r["source"] == HARMLESS_BASE],
        "addition empty, other sources": [r for r in rows if not r["addition"] and r["source"] != HARMLESS_BASE],
        "addition written, English": [r for r in rows if r["addition"] and str(r["id"]) not in NOT_ENGLISH],
        "addition written, not English": [r for r in rows if r["addition"] and str(r["id"]) in NOT_ENGLISH],
    }
    for source in sorted({row["source"] for row in rows}):
        groups[f"addition written, English: {source}"] = [
            r for r in groups["addition written, English"] if r["source"] == source
        ]
    for name in ("vicuna_eval", "bpo_test", "dolly_eval"):
        groups[name] = [{"reason": default_policy(prompt, CONTEXT)} for prompt in prompts_of(data, name)]
    english = [r["prompt"] for r in rows if str(r["id"]) not in NOT_ENGLISH]
    english += [p for name in ("vicuna_eval", "dolly_eval", "self_instruct_eval") for p in prompts_of(data, name)]
    foreign = [r["prompt"] for r in rows if str(r["id"]) in NOT_ENGLISH]
    safety = {}
    for half, parity in (("even", 0), ("odd", 1)):
        mine = [r for r in rows if r["id"] % 2 == parity]
        safety[half] = {
            "recall": _share(r for r in mine if r["source"] == HARMLESS_BASE and not r["addition"]),
            "false alarms": _share(r for r in mine if r["source"] != HARMLESS_BASE and r["addition"]),
            "harmless-base with an addition": _share(r for r in mine if r["source"] == HARMLESS_BASE and r["addition"]),
        }
    return {
        "kept": {name: (sum(r["reason"] is not None for r in group), len(group)) for name, group in groups.items()},
        "reasons": {name: Counter(r["reason"] for r in group if r["reason"]) for name, group in groups.items()},
        "not english": {
            "English taken for another language": (sum(not is_english(p) for p in english), len(english)),
            "other languages missed": (sum(is_english(p) for p in foreign), len(foreign)),
        },
        "safety": safety,
    }


def _share(rows: Iterable[dict[str, Any]]) -> tuple[int, int]:
    found = [is_unsafe(row["prompt"]) for row in rows]
    return sum(found), len(found)


def _percent(pair: tuple[int, int]) -> str:
    return f"{pair[0]} of {pair[1]} ({100 * pair[0] / max(1, pair[1]):.1f}%)"


def main() -> None:
    """Measure, print the tables and write them into docs/policy.md."""
    from report import put, stamp, table

    data = Path(os.environ.get("BPO_DATA_DIR") or ROOT.parent / "shared" / "data")
    found = measure(data)
    kept = table(
        ("prompts", "left alone", "reasons"),
        [
            (name, _percent(pair), ", ".join(f"{reason} {n}" for reason, n in found["reasons"][name].most_common()))
            for name, pair in found["kept"].items()
        ],
    )
    language = table(("language", "prompts"), [(name, _percent(pair)) for name, pair in found["not english"].items()])
    safety = table(
        ("half", "recall on unsafe rows", "false alarms on safe rows", "harmless-base with an addition"),
        [(half, *map(_percent, shares.values())) for half, shares in found["safety"].items()],
    )
    text = f"{kept}\n\n{language}\n\n{safety}\n\n{stamp()}"
    print(text)
    put(ROOT / "docs" / "policy.md", "policy", text)


if __name__ == "__main__":
    main()
