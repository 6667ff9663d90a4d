"""The report of an evaluation: its rows in, `report.json`, `report.md` and `report.html` out, and the check for CI.

Promises: computed from the files of the folder alone, the same each time; each file is replaced in one step; the check
passes only where the data could tell. The figures are `report_data.py`'s, the words `conclusions.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bpo_integrations.cli.show import dump
from bpo_train.data.outputs import replacing
from bpo_train.evaluation.length import LEAST
from bpo_train.evaluation.report_data import PLACEBO, Evaluation, compute

TITLE: Final = "Does prompt optimization help?"

FILES: Final = ("report.json", "report.md", "report.html")


def write_report(
    folder: Path, *, judge_check: Mapping[str, Any] | None = None, title: str = TITLE, seed: int = 0
) -> dict[str, Any]:
    """Write `report.json`, `report.md` and `report.html` into a folder.

    Args:
        folder: Holds `prompts.jsonl`, and `answers.jsonl` and `verdicts.jsonl` as far as they are there.
        judge_check: What `bpo-train judge-check` found: `judge` and `agreement` (in percent), and what else it has; or
            such mappings by the judge's name. None: not measured, and the report says so.
        title: Of the page.
        seed: Of the bootstraps and of the paper's orders.

    Returns:
        What `report.json` holds.

    Raises:
        ConfigurationError: A file is damaged.
        FileError: A report cannot be written.
        MissingExtraError: scipy or jinja2 is not installed.
    """
    from bpo_train.evaluation.report_html import to_html
    from bpo_train.evaluation.report_text import to_markdown

    report = compute(Evaluation.read(folder), title=title, judge_check=judge_check, seed=seed)
    for name, text in zip(FILES, (dump(report, indent=2) + "\n", to_markdown(report), to_html(report)), strict=True):
        with replacing(folder / name) as file:
            file.write(text.encode("utf-8", "replace").decode())  # an answer may hold half a character
    return report


@dataclass(frozen=True, slots=True)
class Check:
    """Whether an evaluation is good enough.

    Args:
        passed: Whether it is.
        reasons: Why it is not; empty where it is.
    """

    passed: bool
    reasons: tuple[str, ...] = ()


def check(report: Mapping[str, Any], fail_below: float, *, arms: Sequence[str] = ()) -> Check:
    """Return whether the arms are at least so good, as far as the data can tell.

    An arm fails where the *upper* end of its interval is below the bound: where the data show that it is worse than
    that, rather than where chance puts the estimate. The interval of a handful of prompts is too sure of itself: harm
    (a bound of 0 or less) must pass the sign test, too, and a lack of gain needs `LEAST` prompts. Every judge that can
    tell has a say. It fails, too, where nothing was judged of one, or no judge can tell: it is too weak, or most of its
    verdicts could not be read. A check that cannot tell must not pass.

    Args:
        report: What `write_report` returns.
        fail_below: The least delta, in percent points; 0 asks that no harm is shown.
        arms: Which must pass; empty asks every arm that has an answer or a verdict, but the placebo.
    """
    there = [arm["arm"] for arm in report["arms"] if arm["arm"] != report["baseline"]]
    there += [result["arm"] for result in report["results"]]
    asked = arms or [arm for arm in dict.fromkeys(there) if arm != PLACEBO]
    judged = {arm: [result for result in report["results"] if result["arm"] == arm] for arm in asked}
    reasons = [] if judged else ["there is no verdict"]
    for arm, results in judged.items():
        telling = [result for result in results if result["standing"] != "weak" and _readable(result)]
        if not telling:
            why = "its judge is too weak, or cannot be read" if results else "there is no verdict on it"
            reasons.append(f"{arm or 'the arm'}: {why}")
        for result in telling:
            low, high = result["delta_ci95"]
            if high < fail_below and (result["shown"] if fail_below <= 0 else result["n"] >= LEAST):
                by = f" by {result['judge']}" if result["judge"] else ""
                figures = f"delta {result['delta']:.1f} ({low:.1f} to {high:.1f})"
                reasons.append(f"{arm or 'the arm'}{by}: {figures} is below {fail_below:g}")
    return Check(not reasons, tuple(reasons))


def _readable(result: Mapping[str, Any]) -> bool:
    verdicts = result["judge_reading"]
    return bool(2 * verdicts["unreadable"] <= verdicts["verdicts"])
