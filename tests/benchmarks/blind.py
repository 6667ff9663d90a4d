"""Answers of the paper's table, judged blind by whoever can read: a strong LLM, or people.

    python tests/benchmarks/blind.py write runs/paper-table runs/blind --pair augment:original --pair placebo:original
    # each runs/blind/cases-K.md goes to a reader, who writes runs/blind/verdicts-K.txt
    python tests/benchmarks/blind.py read runs/blind

Every pair is shown in both orders, each to another reader, among pairs of all kinds in a random order, and with nothing
that tells where an answer is from. Among them are pairs of LLMBar, on which people have judged. Equal answers tie
without being shown. The table goes into docs/benchmarks.md, the verdicts into blind.jsonl, for `bpo-train winrate
--verdicts`. The key lies in runs/blind/key, which is also the folder of an evaluation, for `bpo-train report` and
`calibrate`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from report import ROOT, put, table

from bpo_train.baselines.answers import answers_file
from bpo_train.baselines.arms import BY_NAME
from bpo_train.baselines.stages import SETTINGS, SIZES
from bpo_train.baselines.table import answered_by
from bpo_train.evaluation import judge_check
from bpo_train.evaluation.judge import Shown, messages, parse_pairwise
from bpo_train.evaluation.judge_figures import OTHER, PREFERRED, figures
from bpo_train.evaluation.length import length_controlled
from bpo_train.evaluation.records import (
    ANSWERS,
    PROMPTS,
    VERDICTS,
    Answer,
    TestPrompt,
    Verdict,
    read_records,
    write_records,
)
from bpo_train.evaluation.testsets import sampled
from bpo_train.evaluation.verdicts import CHOICES
from bpo_train.evaluation.winrate import Outcome, outcomes, pairings, reading, win_rate

PAGE = ROOT / "docs" / "benchmarks.md"
KEY = Path("key")
CASES, TIED = "key.jsonl", "tied.jsonl"
ROWS = Path(__file__).with_name("blind.jsonl")
KEPT = ("id", "category", "arm", "baseline", "order", "verdict")
JUDGE = "blind"
FORM = """
There are {count} cases below. Write one line for each into {verdicts}: the case's number, a colon, a comparison in a
sentence or less, then the verdict. For example:

17: A misreads the question as one about prices, B answers it, though with an error. [[B]]
"""


@dataclass(frozen=True, slots=True)
class Case:
    """What stands behind a numbered case.

    Args:
        part: The reader's number, from 1.
        number: The case's number within the part, from 1.
        verdict: Whose verdict it is; what was said is filled in later.
    """

    part: int
    number: int
    verdict: Verdict


@click.group()
def main() -> None:
    """Have answers judged blind, and count."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
@click.option("--pair", "pairs", multiple=True, required=True, help="ARM:BASELINE; several.")
@click.option("--prompts", default=160, show_default=True, help="Prompts, each set by its share.")
@click.option("--llmbar", default=40, show_default=True, help="Pairs of LLMBar among them.")
@click.option("--parts", type=click.IntRange(2), default=8, show_default=True, help="Readers.")
def write(folder: Path, output: Path, *, pairs: Sequence[str], prompts: int, llmbar: int, parts: int) -> None:
    """Write the cases of FOLDER, a paper's table, into OUTPUT."""
    drawn = sampled(read_records(folder / PROMPTS, TestPrompt), prompts)
    shown: list[tuple[Verdict, Shown]] = []
    tied: list[Verdict] = []
    used: dict[str, list[Answer]] = {}
    for spec in pairs:
        arm, _, baseline = spec.partition(":")
        for name in (arm, baseline):
            used[name] = [row for row in answers(folder, name) if row.id in {one.id for one in drawn}]
        said = {name: {row.id: row.answer for row in used[name]} for name in (arm, baseline)}
        for one in drawn:
            blank = Verdict(one.id, "AB", "C", one.set, arm, baseline, JUDGE)
            both = (said[arm][one.id], said[baseline][one.id])
            if both[0] == both[1]:
                tied += [blank, replace(blank, order="BA")]
            else:
                shown.append((blank, Shown(one.id, one.prompt, *both)))
    for pair in judge_check.sampled(judge_check.load_pairs(), llmbar):
        blank = Verdict(pair.id, "AB", None, pair.subset, PREFERRED, OTHER, JUDGE)
        shown.append((blank, Shown(pair.id, pair.prompt, pair.preferred, pair.other)))
    cases = [
        Case(part, number, verdict)
        for part, batch in enumerate(shares(shown, parts), start=1)
        for number, verdict in enumerate(put_cases(output, part, batch), start=1)
    ]
    write_records(output / KEY / PROMPTS, drawn)
    write_records(output / KEY / ANSWERS, (row for rows in used.values() for row in rows))
    write_records(output / KEY / TIED, tied)
    lines = [json.dumps(asdict(case)) + "\n" for case in cases]
    (output / KEY / CASES).write_text("".join(lines), encoding="utf-8")
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    (output / KEY / SETTINGS).write_text(json.dumps({**settings, "prompts": len(drawn)}), encoding="utf-8")
    click.echo(f"{len(cases)} cases in {parts} parts; {len(tied) // 2} pairs are equal.")


def answers(folder: Path, arm: str) -> list[Answer]:
    """Return an arm's answers."""
    return read_records(answers_file(folder, arm), Answer)


def shares(shown: Sequence[tuple[Verdict, Shown]], parts: int) -> list[list[tuple[Verdict, Shown]]]:
    """Deal the pairs out in both orders, the second order of each to another reader, in a random order."""
    order = random.Random(0)
    dealt: list[list[tuple[Verdict, Shown]]] = [[] for _ in range(parts)]
    mixed = list(shown)
    order.shuffle(mixed)
    for at, (verdict, pair) in enumerate(mixed):
        dealt[at % parts].append((verdict, pair))
        dealt[(at + parts // 2) % parts].append((replace(verdict, order="BA"), pair.turned()))
    for share in dealt:
        order.shuffle(share)
    return dealt


def put_cases(output: Path, part: int, batch: Sequence[tuple[Verdict, Shown]]) -> Iterator[Verdict]:
    """Write a reader's file; yield whose verdict each case is."""
    output.mkdir(parents=True, exist_ok=True)
    rules = str(messages(batch[0][1], "pairwise")[0]["content"])
    texts = [rules, FORM.format(count=len(batch), verdicts=f"verdicts-{part}.txt")]
    for number, (verdict, pair) in enumerate(batch, start=1):
        texts.append(f"# Case {number}\n\n{messages(pair, 'pairwise')[1]['content']}\n")
        yield verdict
    (output / f"cases-{part}.md").write_text("\n".join(texts), encoding="utf-8")


@main.command()
@click.argument("outputs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
def read(outputs: Sequence[Path]) -> None:
    """Count the verdicts of OUTPUTS, and put the table into docs/benchmarks.md."""
    verdicts: list[Verdict] = []
    rows = []
    for output in outputs:
        found = list(said_in(output))
        write_records(output / KEY / VERDICTS, (one for one in found if one.arm != PREFERRED))
        verdicts += found
        given = {(one.id, one.arm): one for one in read_records(output / KEY / ANSWERS, Answer)}
        rows += [
            row(arm, baseline, outcomes(own), given)
            for (_, arm, baseline), own in pairings(found).items()
            if arm != PREFERRED
        ]
    settings = json.loads((outputs[0] / KEY / SETTINGS).read_text(encoding="utf-8"))
    about = f"{answered_by(settings['model'], SIZES[settings['size']].new_tokens)}. Positive deltas are A's."
    head = ["A against B", "prompts", "win / tie / loss", "delta (95%)", "p", "at equal length (95%)", "words A / B"]
    head.append("both answers came to their end: won, tied, lost")
    text = "\n\n".join([about, table(head, rows), trust(verdicts)])
    put(PAGE, "blind", text)
    kept = [json.dumps({name: getattr(one, name) for name in KEPT}) + "\n" for one in verdicts]
    ROWS.write_text("".join(kept), encoding="utf-8")
    click.echo(text)


def said_in(output: Path) -> Iterator[Verdict]:
    """Yield the verdicts of a folder.

    Raises:
        ClickException: A case has no verdict, or one that cannot be read.
    """
    texts: dict[int, dict[int, str]] = {}
    for path in sorted(output.glob("verdicts-*.txt")):
        part = int(path.stem.rpartition("-")[2])
        lines = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
        texts[part] = {int(number): words.strip() for number, _, words in lines if number.strip().isdecimal()}
    for line in (output / KEY / CASES).read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        words = texts.get(case["part"], {}).get(case["number"], "")
        which = parse_pairwise(words)
        if which is None:
            raise click.ClickException(
                f"{output}: part {case['part']}, case {case['number']} has no verdict: {words!r}"
            )
        yield Verdict(**{**case["verdict"], "verdict": CHOICES[which], "raw": words})
    yield from read_records(output / KEY / TIED, Verdict)


def row(arm: str, baseline: str, found: Sequence[Outcome], given: Mapping[tuple[str, str], Answer]) -> list[str]:
    """Return a row of the table."""
    pairs = {one.id: (given[one.id, arm], given[one.id, baseline]) for one in found}
    lengths = {id_: (len(one.answer.split()), len(other.answer.split())) for id_, (one, other) in pairs.items()}
    rate, even = win_rate(found), length_controlled(found, lengths)
    words = " / ".join(f"{sum(pair[side] for pair in lengths.values()) / len(lengths):.0f}" for side in (0, 1))
    whole = [one.value for one in found if all(answer.finished for answer in pairs[one.id])]
    low, high = rate.delta_ci95
    least, most = even.delta_ci95
    return [
        f"{BY_NAME[arm].label} against {BY_NAME[baseline].label}",
        str(rate.n),
        f"{rate.win:.1f} / {rate.tie:.1f} / {rate.loss:.1f}",
        f"{rate.delta:+.1f} ({low:+.1f} to {high:+.1f})",
        f"{rate.p_value:.3f}",
        f"{even.delta:+.1f} ({least:+.1f} to {most:+.1f})",
        words,
        ", ".join(str(whole.count(value)) for value in (1, 0, -1)),
    ]


def trust(verdicts: Sequence[Verdict]) -> str:
    """Say how far the readers can be trusted."""
    found = figures(judge_check.load_pairs(), [one for one in verdicts if one.arm == PREFERRED])
    asked = [one for one in verdicts if one.raw and one.arm != PREFERRED]
    by_pair = [reading(own) for own in pairings(asked).values()]
    count = sum(one.verdicts for one in by_pair)
    consistent = sum(one.verdicts * (one.consistent or 0) for one in by_pair) / count
    first = sum(one.verdicts * (one.first or 0) for one in by_pair) / count
    return (
        f"The judge, on {found['n']} pairs of LLMBar that lay among them: {' '.join(found['text'])} "
        f"It gave {count} verdicts on the table's pairs; {consistent:.0f}% of the pairs were judged alike in both "
        f"orders, and of the verdicts that name an answer {first:.0f}% named the first."
    )


if __name__ == "__main__":
    main()
