"""A report as Markdown: for a pull request, a wiki or a terminal.

Promises: the same figures as the page, without its plots; texts of users and models stand in fences that they cannot
close. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from bpo_train.data.card import table
from bpo_train.evaluation.conclusions import interval, points

PARTS: Final = {
    "set": "By test set",
    "category": "By category",
    "words": "By words of the prompt",
    "added": "By what was added",
    "answer_words": "By answer length against the baseline's",
}
"""The breakdowns, by their names in report.json."""

LONGEST: Final = 1200
"""Characters of a text that are shown."""

_MARKS = {"same": ("", ""), "removed": ("[-", "-]"), "added": ("{+", "+}")}


def to_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown.

    Args:
        report: What `report.compute` returns.
    """
    remarks = "\n".join(f"- {plain(text)}" for text in report["remarks"])
    parts = [f"# {plain(report['title'])}", plain(about(report)), remarks]
    parts += [_finding(result) for result in report["results"]]
    if report["results"]:
        parts += [_win_rates(report["results"]), _judges(report), _paper(report["results"])]
    parts.append(_costs(report))
    for result in report["results"]:
        parts += [_breakdowns(result), _examples(result, "hurt"), _examples(result, "helped")]
    return "\n\n".join(part for part in parts if part) + "\n"


def about(report: Mapping[str, Any]) -> str:
    """Return in a sentence or two what was measured."""
    prompts = report["prompts"]
    sets = ", ".join(f"{name} {count}" for name, count in prompts["sets"].items() if name)
    arms = [arm["arm"] for arm in report["arms"] if arm["arm"] != report["baseline"]]
    text = f"{prompts['n']:,} {'prompt' if prompts['n'] == 1 else 'prompts'}"
    text += f" ({sets})" if sets else ""
    text += f"; {_listed(arms)} against {report['baseline']}." if arms else "; no arm besides the baseline yet."
    if not report["results"]:
        text += " There are no verdicts yet: nothing is said about which answers are better."
    if report["left_out"]:
        text += f" {report['left_out']} answers and verdicts on other prompts were left out."
    return text


def judged_by(judge: Mapping[str, Any]) -> str:
    """Return in a few sentences how far a judge can be trusted: those of its check, where there is one."""
    name = judge["judge"] or "The judge"
    if judge["agreement"] is None:
        return f"{name}: agreement with people was not measured. Run bpo-train judge-check."
    if judge.get("text"):
        return f"{name}: {' '.join(judge['text'])}"
    verdict = "too weak to conclude" if judge["weak"] else "good enough to go by"
    return f"{name}: agrees with people on {judge['agreement']:.0f}% of LLMBar (chance 50%), {verdict}."


def subsets(judge: Mapping[str, Any]) -> str:
    """Return a judge's agreement with people on each subset of its check; empty where there is none."""
    found = judge.get("by_subset") or {}
    known = [f"{name} {part['agreement']:.0f}%" for name, part in found.items() if part.get("agreement") is not None]
    return f"By subset: {', '.join(known)}." if known else ""


def named(result: Mapping[str, Any]) -> str:
    """Return what one result is about."""
    arm = f"{result['arm'] or 'arm'} against {result['baseline']}"
    return f"{arm}, judged by {result['judge']}" if result["judge"] else arm


def parts_of(result: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return a breakdown as it may be told: where the judge is too weak, it shows nothing."""
    weak = result["standing"] == "weak"
    return [{**part, "shown": part["shown"] and not weak} for part in result["by"][name]]


def plain(text: str) -> str:
    r"""Return text that is only text in Markdown, on one line.

    Example:
        >>> plain("<b>*a*\n| [x](y)")
        '\\<b\\>\\*a\\* \\| \\[x\\](y)'
    """
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def fenced(text: str) -> str:
    """Return text in a fence that it cannot close, cut where it is long.

    Example:
        >>> print(fenced("a ``` b"))
        ````text
        a ``` b
        ````
    """
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]} [...]"
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{ticks}text\n{shown}\n{ticks}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _finding(result: Mapping[str, Any]) -> str:
    figures = f"{points(result['delta'])} points, 95% interval {interval(result['delta_ci95'])}."
    lines = [f"**{plain(named(result))}: {figures}** {plain(result['sentences'][0])}"]
    return "\n".join([*lines, *(f"- {plain(text)}" for text in result["sentences"][1:])])


def _win_rates(results: Iterable[Mapping[str, Any]]) -> str:
    head = ["arm", "judge", "n", "win", "tie", "loss", "delta (95%)", "at equal length (95%)", "sign test p"]
    rows = []
    for result in results:
        equal = result["length_controlled"]
        rows.append(
            (
                plain(result["arm"]),
                plain(result["judge"]),
                result["n"],
                *(f"{result[name]:.1f}" for name in ("win", "tie", "loss")),
                f"{points(result['delta'])} ({interval(result['delta_ci95'])})",
                f"{points(equal['delta'])} ({interval(equal['delta_ci95'])})" if equal else "",
                f"{result['p_value']:.2g}",
            )
        )
    note = "Percent of the prompts. Both orders are judged where there are two; what they contradict is a tie."
    return f"## Win rates\n\n{_table(head, rows)}\n\n{note}"


def _judges(report: Mapping[str, Any]) -> str:
    lines = [f"- {plain(f'{judged_by(judge)} {subsets(judge)}')}" for judge in report["judges"]]
    head = ["arm", "judge", "verdicts", "not readable", "names the first", "same in both orders"]
    rows = [
        (
            plain(result["arm"]),
            plain(result["judge"]),
            result["judge_reading"]["verdicts"],
            result["judge_reading"]["unreadable"],
            *(percent(result["judge_reading"][name]) for name in ("first", "consistent")),
        )
        for result in report["results"]
    ]
    return "## The judges\n\n" + "\n".join(lines) + f"\n\n{_table(head, rows)}\n\nOn answers that are not the same."


def _paper(results: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            plain(result["arm"]),
            plain(result["judge"]),
            "; ".join(
                f"{plain(name) or 'all'} {rate['win']:.1f}/{rate['tie']:.1f}/{rate['loss']:.1f}"
                for name, rate in result["paper"]["sets"].items()
            ),
            points(result["paper"]["dwr"]),
        )
        for result in results
    ]
    note = "One order a pair, drawn once; dWR is the mean of (win - loss) over the sets. Without intervals, as there."
    return f"## The paper's arithmetic\n\n{_table(['arm', 'judge', 'win/tie/loss', 'dWR'], rows)}\n\n{note}"


def _costs(report: Mapping[str, Any]) -> str:
    head = ["arm", "answers", "empty", "cut off", "prompts changed", "words", "tokens", "tokens read", "seconds"]
    head.append("seconds to optimize")
    rows = []
    for arm in report["arms"]:
        ratio = arm["ratio"] if arm["arm"] != report["baseline"] else {}
        rows.append(
            (
                plain(arm["arm"]),
                arm["answers"],
                arm["empty"],
                arm["unfinished"],
                percent(arm["changed"]),
                *(
                    measured(arm[name], ratio.get(name))
                    for name in ("words", "completion_tokens", "prompt_tokens", "seconds")
                ),
                measured(arm["optimizer_seconds"]),
            )
        )
    note = f"Means of an answer; in brackets how many times {plain(report['baseline'])}'s (seconds: with optimization)."
    return f"## What it costs\n\n{_table(head, rows)}\n\n{note}" if rows else ""


def measured(value: float | None, ratio: float | None = None) -> str:
    """Return a mean and its ratio for people.

    Example:
        >>> measured(1234.5, 1.5), measured(0.25), measured(None)
        ('1,234 (1.50x)', '0.25', '')
    """
    if value is None:
        return ""
    text = f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return text if ratio is None else f"{text} ({ratio:.2f}x)"


def percent(value: float | None) -> str:
    """Return a share for people; nothing where it is not known.

    Example:
        >>> percent(81.25), percent(None)
        ('81%', '')
    """
    return "" if value is None else f"{value:.0f}%"


def _breakdowns(result: Mapping[str, Any]) -> str:
    tables = []
    for name, title in PARTS.items():
        parts = parts_of(result, name)
        if len(parts) < 2:
            continue
        rows = [
            (
                plain(part["label"]) or "none",
                part["n"],
                *(f"{part[figure]:.0f}" for figure in ("win", "tie", "loss")),
                f"{points(part['delta'])} ({interval(part['delta_ci95'])})",
                "yes" if part["shown"] else "",
            )
            for part in parts
        ]
        tables.append(f"### {title}\n\n{_table(['', 'n', 'win', 'tie', 'loss', 'delta (95%)', 'shown'], rows)}")
    if not tables:
        return ""
    note = (
        "*Shown* takes into account how many parts a table has (Holm). An interval of a few prompts is too narrow: go "
        "by *shown*."
    )
    return "\n\n".join([f"## Where: {plain(named(result))}", *tables, note])


def _examples(result: Mapping[str, Any], which: str) -> str:
    found = result[which]
    if not found:
        return ""
    title = "hurt most" if which == "hurt" else "helped most"
    parts = [f"## Prompts that it {title}: {plain(named(result))}"]
    for example in found:
        diff = "".join(f"{_MARKS[op][0]}{text}{_MARKS[op][1]}" for op, text in example["diff"])
        parts += [
            f"### {plain(example['id'])}",
            fenced(diff),
            f"Answer to {plain(result['arm'])}:",
            fenced(example["answer"]),
            f"Answer to {plain(result['baseline'])}:",
            fenced(example["baseline"]),
        ]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; `plain` has escaped bars already, and `table` does it again."""
    return table(head, [[str(cell).replace("\\|", "|") for cell in row] for row in rows])
