"""Measure the guards: what they reject of good candidates, and what they let through of bad ones.

    python tests/benchmarks/guards.py            prints the tables and writes them into docs/guards.md
    python tests/benchmarks/guards.py --misses   prints what was let through, too

Good: gold rewrites, pairs, human additions. Bad: real answers offered as rewrites, and good candidates broken in one
way each. The phrases for breaking lie in guards_pool.json: `seen` ones were there while the rules were written,
`unseen` ones were written afterwards, to see how far the rules reach. Data: BPO_DATA_DIR, default ../shared/data.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

from report import put, stamp  # noqa: E402

from bpo_integrations.guards import ADDITION_GUARDS, REWRITE_GUARDS, Guard, first_violation  # noqa: E402

POOL: dict[str, Any] = json.loads((Path(__file__).parent / "guards_pool.json").read_text(encoding="utf-8"))
HALVES = ("seen", "unseen")
MOST_ROWS = 240  # rows that a phrase is tried on, at most: the pool goes round and round

Pair = tuple[str, str]


@dataclass
class Share:
    """How many of a set of candidates were rejected, and by which guards."""

    name: str
    rows: int = 0
    rejected: int = 0
    by_guard: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[str, str, str]] = field(default_factory=list)
    passed: list[Pair] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Rejected, of 1."""
        return self.rejected / self.rows if self.rows else 0.0


def judge(name: str, guards: Sequence[Guard], pairs: Iterable[Pair]) -> Share:
    """Put every candidate through every guard."""
    result = Share(name)
    for original, candidate in pairs:
        found = [violation for guard in guards if (violation := guard(original, candidate)) is not None]
        result.rows += 1
        result.rejected += bool(found)
        result.by_guard.update({violation.guard for violation in found})
        if found:
            result.listed.append((original, candidate, "; ".join(map(str, found))))
        else:
            result.passed.append((original, candidate))
    return result


def data_dir() -> Path:
    """Where the data lies."""
    return Path(os.environ.get("BPO_DATA_DIR", ROOT.parent / "shared" / "data"))


def rows(data: Path, name: str) -> list[dict[str, Any]]:
    """Read a JSON or JSONL file."""
    text = (data / name).read_text(encoding="utf-8")
    loaded: list[dict[str, Any]] = (
        json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.split("\n") if line]
    )
    return loaded


def gold(data: Path) -> list[Pair]:
    """The 200 gold rewrites of BPO's test split."""
    return [(row["prompt"], row["optimized_prompt"]) for row in rows(data, "testsets/bpo_test.json")]


def ordinary_pairs(data: Path) -> list[Pair]:
    """`pairs.jsonl` without safety rewrites: hh-rlhf rows to which nothing is added, because their prompt is unsafe."""
    empty = {row["id"] for row in rows(data, "additions.jsonl") if not row["addition"].strip()}
    return [
        (row["prompt"], row["optimized_prompt"])
        for row in rows(data, "pairs.jsonl")
        if not (row["source"] == "hh_rlhf/harmless-base" and row["id"] in empty)
    ]


def answers(data: Path, name: str) -> list[Pair]:
    """Real answers, offered as if they were rewrites."""
    return [(row.get("prompt") or row["instruction"], row["good_res"]) for row in rows(data, name)]


def additions(data: Path) -> list[Pair]:
    """The additions written by people, without the empty ones."""
    return [(row["prompt"], row["addition"]) for row in rows(data, "additions.jsonl") if row["addition"].strip()]


# --- breaking good rewrites -------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(?<![\w.,])\d+(?![\w,]|\.\d)")
_SLOT = re.compile(r"(?<![\w\\}])\{\{?\w[\w ]*\}?\}|\[[A-Za-z][\w ]{1,40}\](?!\()|<[A-Za-z][\w ]{1,40}>|%s")
_QUOTED = re.compile(r'(?<![\w"])"(?=\w)([^"\n]{3,300})"(?!\w)')
_DENIALS = (
    (
        re.compile(
            r"\b(do|does|did|is|are|was|were|has|have|had|should|must|will|would|could|may|can) not "
            r"(?!only|just|sure|to)(\w+)",
            re.I,
        ),
        r"\1 \2",
    ),
    (re.compile(r"\bdon['’]t (?!you\b|we\b)(\w+)", re.I), r"do \1"),
    (
        re.compile(r"\b(does|did|is|are|was|were|has|have|should|would|could)n['’]t (?!it\b|they\b|you\b)(\w+)", re.I),
        r"\1 \2",
    ),
    (re.compile(r"\bcan(?:not|['’]t) (?!you\b)(\w+)", re.I), r"can \1"),
    (re.compile(r"\bwithout (\w+)", re.I), r"with \1"),
    (re.compile(r"\bnever (\w+)", re.I), r"always \1"),
)
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b(?!-)")
_COMMON: set[str] = set()  # words that some prompt writes without a capital: no names


def drop_number(original: str, candidate: str) -> Iterator[str]:
    """Take out a number that stands once in the candidate, by digits and in the prompt too."""
    from bpo_integrations.guards.text import number_values

    values = number_values(candidate)
    for match in _NUMBER.finditer(candidate):
        value = match.group().lstrip("0") or "0"
        if values.count(value) == 1 and _NUMBER.search(original) and value in number_values(original):
            yield candidate[: match.start()] + candidate[match.end() :]


def drop_negation(original: str, candidate: str) -> Iterator[str]:
    """Turn a denial, which the prompt has in the same words, into its opposite."""
    for pattern, opposite in _DENIALS:
        for match in pattern.finditer(candidate):
            said = match.group().lower()
            if candidate.lower().count(said) == 1 == original.lower().count(said):
                yield candidate[: match.start()] + match.expand(opposite) + candidate[match.end() :]


def drop_placeholder(original: str, candidate: str) -> Iterator[str]:
    """Take out every occurrence of a slot."""
    for slot in dict.fromkeys(_SLOT.findall(candidate)):
        if slot in original:
            yield candidate.replace(slot, "")


def spoil_quotation(original: str, candidate: str) -> Iterator[str]:
    """Take out a quotation, or exchange one of its words."""
    for match in _QUOTED.finditer(candidate):
        quoted = match[1]
        outside = candidate[: match.start()] + candidate[match.end() :]
        if f'"{quoted}"' not in original or quoted.lower() in outside.lower() or len(quoted) > 0.7 * len(original):
            continue
        yield outside
        parts = quoted.split()
        if len(parts) > 2:
            yield candidate.replace(quoted, " ".join([*parts[:1], "zebra", *parts[2:]]))


def drop_line(original: str, candidate: str) -> Iterator[str]:
    """Take out a line of pasted material: neither the first nor the last, of three words or more, found once."""
    known = [line.strip() for line in original.splitlines() if line.strip()]
    lines = candidate.splitlines()
    for place, line in enumerate(lines):
        text = line.strip()
        if (
            text in known[1:-1]
            and not text.endswith(":")
            and candidate.count(text) == 1
            and len(re.findall(r"\w+", text)) >= 3
        ):
            yield "\n".join(lines[:place] + lines[place + 1 :])


def change_name(half: str) -> Callable[[str, str], Iterator[str]]:
    """Exchange a capitalised word that stands inside a sentence of both texts."""

    def change(original: str, candidate: str) -> Iterator[str]:
        new = POOL["other names"][half]
        for place, name in enumerate(dict.fromkeys(_NAME.findall(candidate))):
            if name.lower() not in _COMMON and re.search(rf"(?<=[a-z,] ){name}\b", original) and new:
                broken = re.sub(rf"\b{name}", new[(place + len(original)) % len(new)], candidate, flags=re.IGNORECASE)
                if name[:4].lower() not in broken.lower():  # "Mexican" is still there without "Mexicans"
                    yield broken

    return change


STRUCTURAL: dict[str, Callable[[str, str], Iterator[str]]] = {
    "drop a number": drop_number,
    "drop a negation": drop_negation,
    "drop a placeholder": drop_placeholder,
    "drop or alter a quotation": spoil_quotation,
    "drop a pasted line": drop_line,
}


def broken_rewrites(good: Sequence[Pair]) -> list[Share]:
    """Break rewrites that pass, in one way each; a mutation yields at most three candidates a row."""
    shares = []
    _COMMON.update(word for pair in good for text in pair for word in re.findall(r"(?<![A-Za-z])[a-z]+", text))
    for kind, break_it in STRUCTURAL.items():
        shares.append(judge(kind, REWRITE_GUARDS, _broken(good, break_it)))
    for half in HALVES:
        shares.append(judge(f"change a name ({half})", REWRITE_GUARDS, _broken(good, change_name(half))))
        for kind, pool in (("add a request to the user", "asks back"), ("add a comment", "comments")):
            shares.append(
                judge(f"{kind} ({half})", REWRITE_GUARDS, ((o, f"{c} {p}") for (o, c), p in _round(good, pool, half)))
            )
        shares.append(judge(f"contradict a length limit ({half})", REWRITE_GUARDS, _against_limit(good, half)))
        shares.append(
            judge(
                f"translate ({half})",
                REWRITE_GUARDS,
                ((o, p) for (o, _), p in _round(good, "translated", half) if _latin(o)),
            )
        )
    shares.append(judge("translate (true translations)", REWRITE_GUARDS, [(o, c) for o, c in POOL["translations"]]))
    return shares


def _broken(good: Sequence[Pair], break_it: Callable[[str, str], Iterator[str]]) -> Iterator[Pair]:
    for original, candidate in good:
        for broken in itertools.islice(break_it(original, candidate), 3):
            yield original, broken


def _round(good: Sequence[Pair], pool: str, half: str) -> Iterator[tuple[Pair, Any]]:
    """Rows in a fixed disorder, each with the pool's next phrase."""
    phrases = POOL[pool][half]
    chosen = random.Random(pool).sample(list(good), min(MOST_ROWS, len(good)))
    return zip(chosen, itertools.cycle(phrases), strict=False) if phrases else iter(())


def _against_limit(good: Sequence[Pair], half: str) -> Iterator[Pair]:
    for (original, candidate), (limit, demand) in _round(good, "length limit", half):
        limited = (f"{original.rstrip()} {limit}", f"{candidate.rstrip()} {limit}")
        if first_violation(REWRITE_GUARDS, *limited) is None:
            yield limited[0], f"{limited[1]} {demand}"


def _latin(text: str) -> bool:
    return sum(sign.isascii() and sign.isalpha() for sign in text) > 0.7 * max(1, sum(map(str.isalpha, text)))


# --- bad additions ----------------------------------------------------------------------------------------------------

APPENDED = ("asks back", "comments", "template", "emoji", "new placeholders", "new numbers", "new names", "role marks")
ALONE = ("answers", "nonsense", "translated")


def bad_additions(good: Sequence[Pair], real_answers: Sequence[Pair]) -> list[Share]:
    """Additions that must be rejected: a bad sentence alone or behind a good one, or a good one spoilt."""
    plain = [(o, a) for o, a in good if _latin(o) and _latin(a)]
    short = [(o, a) for o, a in plain if len(o.split()) <= 60]
    shares = []
    for half in HALVES:
        for kind in APPENDED:
            chosen = enumerate(_round(plain, kind, half))
            shares.append(
                judge(
                    f"{kind} ({half})", ADDITION_GUARDS, ((o, p if i % 2 else f"{a} {p}") for i, ((o, a), p) in chosen)
                )
            )
        for kind in ALONE:
            shares.append(
                judge(f"{kind} ({half})", ADDITION_GUARDS, ((o, p) for (o, _), p in _round(plain, kind, half)))
            )
        limits = ((f"{o.rstrip()} {limit}", demand) for (o, _), (limit, demand) in _round(short, "length limit", half))
        shares.append(judge(f"detail against a length limit ({half})", ADDITION_GUARDS, limits))
        shares.append(
            judge(f"contradiction ({half})", ADDITION_GUARDS, [(o, c) for o, c in POOL["contradiction"][half]])
        )
    shares.append(judge("the first sentence of a real answer", ADDITION_GUARDS, _first_sentences(real_answers)))
    shares.append(judge("a phrase twice", ADDITION_GUARDS, _twice(plain[:MOST_ROWS])))
    shares.append(judge("the prompt again", ADDITION_GUARDS, _again(short[:MOST_ROWS])))
    shares.append(judge("cut off", ADDITION_GUARDS, _cut(plain[:MOST_ROWS])))
    shares.append(
        judge("letters at random", ADDITION_GUARDS, ((o, _noise(i)) for i, (o, _) in enumerate(plain[:MOST_ROWS])))
    )
    return shares


def _first_sentences(real_answers: Sequence[Pair]) -> Iterator[Pair]:
    """A statement that opens an answer; questions are no answers, and one-line answers may be anything."""
    for prompt, answer in real_answers:
        first = re.split(r"(?<=[.!?])\s|\n", answer.strip())[0]
        if first.endswith(".") and len(first.split()) >= 5 and _latin(first):
            yield prompt, first


def _twice(good: Sequence[Pair]) -> Iterator[Pair]:
    for i, (prompt, addition) in enumerate(good):
        parts = addition.rstrip(".").split()
        if len(parts) > 7:
            run = " ".join(parts[3:7]).strip(",;:")
            yield prompt, (f"{addition} {addition}", f"{' '.join(parts)}, {run}, {run}.")[i % 2]


def _again(good: Sequence[Pair]) -> Iterator[Pair]:
    for i, (prompt, _) in enumerate(good):
        text = " ".join(prompt.split()).rstrip(".?! ")
        if len(text.split()) >= 4:
            yield prompt, (f"{text}.", f"Please {text[0].lower()}{text[1:]}.", f"{text[0].upper()}{text[1:]}?")[i % 3]


def _cut(good: Sequence[Pair]) -> Iterator[Pair]:
    for i, (prompt, addition) in enumerate(good):
        parts = addition.split()
        if len(parts) > 5:
            kept = parts[: max(3, len(parts) - 1 - i % 5)]
            if not kept[-1].endswith((".", "?", "!")):
                yield prompt, " ".join(kept)


def _noise(seed: int) -> str:
    draw = random.Random(seed)
    return (
        " ".join(
            "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9)))
            for _ in range(draw.randint(3, 12))
        )
        + "."
    )


# --- the report -------------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """Everything that is asked of the guards."""

    gold: Share
    pairs: Share
    answers: list[Share]
    broken: list[Share]
    additions: Share
    bad_additions: list[Share]


def measure(data: Path) -> Measured:
    """Measure everything on the data in `data`; some 20 seconds."""
    golden = judge("gold rewrites of bpo_test", REWRITE_GUARDS, gold(data))
    pairs = judge("pairs.jsonl, safety rewrites left out", REWRITE_GUARDS, ordinary_pairs(data))
    files = ("testsets/bpo_test.json", "preferences.jsonl")
    real = [judge(f"good_res of {name}", REWRITE_GUARDS, answers(data, name)) for name in files]
    added = judge("additions.jsonl", ADDITION_GUARDS, additions(data))
    real_answers = [pair for name in files for pair in answers(data, name)]
    good = [pair for pair in golden.passed + pairs.passed if pair[0] != pair[1]]
    return Measured(golden, pairs, real, broken_rewrites(good), added, bad_additions(added.passed, real_answers))


def _table(head: str, shares: Sequence[Share]) -> str:
    lines = [f"| {head} | rows | rejected | share |", "| --- | --: | --: | --: |"]
    lines += [
        f"| {share.name} | {share.rows} | {share.rejected} | {share.share:.1%} |" for share in shares if share.rows
    ]
    return "\n".join(lines)


def _by_guard(shares: Sequence[Share]) -> str:
    names = sorted(
        {name for share in shares for name in share.by_guard}, key=lambda name: -max(s.by_guard[name] for s in shares)
    )
    lines = [f"| guard | {' | '.join(share.name for share in shares)} |", f"| --- |{' --: |' * len(shares)}"]
    for name in [*names, None]:
        cells = [(share.by_guard[name] if name else share.rejected, share.rows) for share in shares]
        lines.append(
            f"| {name or '**together**'} | {' | '.join(f'{count} ({count / total:.1%})' for count, total in cells)} |"
        )
    return "\n".join(lines)


def _short(text: str, limit: int = 110) -> str:
    line = " ".join(text.split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
    return line if len(line) <= limit else f"{line[:limit]}…"


def report(measured: Measured) -> str:
    """The tables, in Markdown."""
    listed = [
        f"| {_short(prompt)} | {_short(candidate)} | {_short(reason)} |"
        for share in (measured.gold, measured.pairs, measured.additions)
        for prompt, candidate, reason in [(f"**{share.name}**", "", ""), *share.listed]
    ]
    parts = [
        stamp(),
        "### Good candidates that are rejected",
        _by_guard([measured.gold, measured.pairs, measured.additions]),
        "### Real answers offered as rewrites",
        _table("answers", measured.answers),
        "### Good rewrites, broken",
        _table("mutation", measured.broken),
        "### Bad additions",
        _table("kind", measured.bad_additions),
        "### Every false rejection",
        "\n".join(["| prompt | candidate | reason |", "| --- | --- | --- |", *listed]),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Print the report and write it for the documentation."""
    measured = measure(data_dir())
    text = report(measured)
    print(text)
    if "--misses" in sys.argv:
        for share in (*measured.broken, *measured.bad_additions):
            if share.share < 0.99:
                for prompt, candidate in share.passed[:12]:
                    print(f"MISS {share.name}: {_short(prompt, 120)} ==> {_short(candidate[-160:], 200)}")
    put(ROOT / "docs" / "guards.md", "guards", text)


if __name__ == "__main__":
    main()
