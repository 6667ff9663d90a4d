"""`bpo-train winrate` and `bpo-train report`: verdicts in, figures out. No model is asked, and there is no logic here.

Exit codes: 0 done, 2 wrong usage, 3 wrong configuration or damaged rows, 4 a file cannot be used, 6 an arm is shown to
be below --fail-below.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpo_integrations.errors import ConfigurationError
from bpo_train.cli_data import exits
from bpo_train.cli_evaluation import BELOW

if TYPE_CHECKING:
    from bpo_train.evaluation.records import Verdict
    from bpo_train.evaluation.winrate import Outcome, Pairing, WinRate


@click.command()
@click.option(
    "--verdicts",
    "path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSONL of {id, category, order, verdict}; arm, baseline and judge where there are several.",
)
@click.option("--arm", help="Count this arm alone.")
@click.option("--judge", help="Count this judge alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or a list where there are several.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--resamples", type=click.IntRange(1), default=10_000, show_default=True, help="Of the bootstrap.")
def winrate(path: Path, arm: str | None, judge: str | None, as_json: bool, seed: int, resamples: int) -> None:
    """Win, tie and loss from verdicts, with how sure they are: `bpo-train winrate --verdicts V.jsonl`.

    A verdict is A, B or C (a tie); the order AB says that the optimized prompt's answer was shown as A. Two orders of a
    prompt are one prompt. All figures are percent of the prompts.
    """
    from bpo_integrations.cli.show import dump, emit, rendered
    from bpo_train.evaluation.records import Verdict, read_records
    from bpo_train.evaluation.winrate import outcomes, win_rate

    with exits():
        chosen = _chosen(read_records(path, Verdict), path, arm, judge)
        found = {pairing: outcomes(verdicts) for pairing, verdicts in chosen.items()}
        rates = {pairing: win_rate(of, seed=seed, resamples=resamples) for pairing, of in found.items()}
        if not as_json:
            for pairing, of in found.items():
                emit(rendered(_table(pairing, rates[pairing], of, seed), width=None))
            return
        if len(rates) == 1:
            emit(dump(next(iter(rates.values())).to_dict()))
            return
        names = ("judge", "arm", "baseline")
        rows = [{**dict(zip(names, pairing, strict=True)), **rate.to_dict()} for pairing, rate in rates.items()]
        emit(dump(rows, indent=2))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--judge-check",
    type=click.Path(path_type=Path, exists=True),
    help="Output of bpo-train judge-check; default: the one in FOLDER, where there is one.",
)
@click.option("--title", help="Of the page.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstraps and of the paper's orders.")
@click.option("--fail-below", type=float, metavar="POINTS", help="Exit with 6 where an arm is shown to be below.")
@click.option("--arm", "arms", multiple=True, help="With --fail-below: an arm that must pass; several.")
def report(
    folder: Path, judge_check: Path | None, title: str | None, seed: int, fail_below: float | None, arms: Sequence[str]
) -> None:
    """Write report.html, report.md and report.json from the rows in FOLDER, the output of bpo-train evaluate."""
    from bpo_train.evaluation.judge_check import CHECK, read_check
    from bpo_train.evaluation.report import FILES, TITLE, check, write_report

    if arms and fail_below is None:
        msg = "--arm goes with --fail-below."
        raise click.UsageError(msg)
    with exits():
        kept = judge_check or folder / CHECK
        checked = read_check(kept) if judge_check or kept.is_file() else None
        written = write_report(folder, judge_check=checked, title=title or TITLE, seed=seed)
        for line in _summary(written):
            click.echo(line)
        click.echo(f"Written to {folder}: {', '.join(FILES)}.")
        if fail_below is not None:
            _leave(check(written, fail_below, arms=arms).reasons)


def _chosen(
    verdicts: Sequence[Verdict], path: Path, arm: str | None, judge: str | None
) -> dict[Pairing, list[Verdict]]:
    from bpo_train.evaluation.winrate import pairings

    if not verdicts:
        msg = f"There is no verdict in {path}."
        raise ConfigurationError(
            msg, hint='A line is such as {"id": "1", "category": "", "order": "AB", "verdict": "A"}.'
        )
    found = pairings(verdicts)
    chosen = {key: of for key, of in found.items() if arm in (None, key[1]) and judge in (None, key[0])}
    if not chosen:
        has = "; ".join(f"{arm or 'no name'} by {judge or 'no name'}" for judge, arm, _ in found)
        msg = f"{path} has no verdict on that arm by that judge."
        raise ConfigurationError(msg, hint=f"It has: {has}.")
    return chosen


def _table(pairing: Pairing, rate: WinRate, found: Sequence[Outcome], seed: int) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from bpo_train.evaluation.breakdown import breakdown
    from bpo_train.evaluation.conclusions import interval, points

    judge, arm, baseline = pairing
    title = f"{arm or 'arm'} against {baseline}" + (f", judged by {judge}" if judge else "")
    sure = "a difference is shown" if rate.shown else "no difference shown"
    table = Table(title=Text(title), caption=f"Sign test p = {rate.p_value:.2g}; {sure}.", box=box.SIMPLE_HEAD)
    for name in ("", "n", "win %", "tie %", "loss %", "delta", "95% interval"):
        table.add_column(name, justify="right" if name else "left")
    rows = [("all", rate)]
    parts = breakdown(found, {outcome.id: outcome.category for outcome in found}, seed=seed)
    if len(parts) > 1:
        rows += [(part.label or "none", part.rate) for part in parts]
    for number, (label, of) in enumerate(rows):
        shares = [f"{share:.1f}" for share in (of.win, of.tie, of.loss)]
        cells = [str(of.n), *shares, points(of.delta), interval(of.delta_ci95)]
        table.add_row(Text(label), *cells, end_section=number == 0, style="bold" if number == 0 else None)
    return table


def _summary(written: Mapping[str, Any]) -> list[str]:
    from bpo_train.evaluation.conclusions import interval, points
    from bpo_train.evaluation.report_text import about, named

    lines = [about(written), *written["remarks"]]
    for result in written["results"]:
        lines.append(f"{named(result)}: {points(result['delta'])} points ({interval(result['delta_ci95'])})")
        lines += [f"  {sentence}" for sentence in result["sentences"]]
    return lines


def _leave(reasons: Sequence[str]) -> None:
    """End with the code for what is below, where there is a reason."""
    for reason in reasons:
        click.echo(f"bpo-train: {reason}.", err=True)
    if reasons:
        sys.exit(BELOW)
