"""`bpo-train evaluate`: options in, progress and a few lines out. No logic.

Exit codes: 0 done, 1 a model fails row after row, 2 wrong usage, 3 wrong configuration (also a refused key or an
unknown model), 4 a file cannot be used, 5 stopped at the budget with rows left, 6 an arm is shown to be below
--fail-below, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpo_integrations.errors import ConfigurationError
from bpo_train.cli_data import AT_BUDGET, _limits, _prices, exits, judge_style, limit_options, progress, prompt_sets

if TYPE_CHECKING:
    from bpo_train.evaluation.evaluate import Evaluation

BELOW = 6
"""The exit code of an evaluation whose gain is below what was asked for."""

FAILED = ("not_optimized", "unanswered", "judge_failed")
"""Counts of `summary.json` that --retry-failed may bring to zero."""

GAIN = 10.0
"""The gain, in percent points, whose price in prompts is shown beforehand: about half of the paper's on gpt-3.5."""

TIES = 20.0
"""Percent of the prompts that are taken to be ties, in what is shown beforehand."""


@click.command()
@click.option("--llm", required=True, metavar="MODEL", help="Answers: openai:NAME, hf:ID, embedded, PROVIDER:NAME ...")
@click.option("--base-url", metavar="URL", help="An OpenAI-compatible server, which has the LLM.")
@click.option("--llm-base", metavar="SPEC", help="Where the LLM is an adapter: the base to put it on.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="Of the answers.")
@prompt_sets
@click.option("--seed", type=int, default=0, show_default=True, help="Of what --limit draws, and of sampled rewrites.")
@click.option(
    "--arm",
    "arms",
    multiple=True,
    default=("augment",),
    show_default=True,
    metavar="ARM,...",
    help="augment, rewrite, rewrite:aggressive, rewrite:passes=3, meta, placebo, model=SPEC ...",
)
@click.option("--baseline", default="original", show_default=True, metavar="ARM", help="What arms are compared with.")
@click.option(
    "--model", default="embedded", show_default=True, metavar="SPEC", help="The rewriter of augment, rewrite."
)
@click.option("--judge", required=True, metavar="MODEL", help="Compares: as --llm, or reward:FOLDER, a reward model.")
@click.option("--judge-base-url", metavar="URL", help="An OpenAI-compatible server, which has the judge.")
@judge_style
@click.option("--judge-max-tokens", type=click.IntRange(1), default=1024, show_default=True, help="Of a verdict.")
@click.option("--tie", type=click.FloatRange(0), default=0.0, show_default=True, help="reward: scores as close tie.")
@click.option("--judge-price-in", type=float, help="Of the judge; default: the LLM's, where both are the same.")
@click.option("--judge-price-out", type=float, help="As --judge-price-in.")
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the files.")
@click.option(
    "--judge-check",
    type=click.Path(path_type=Path, exists=True),
    help="What bpo-train judge-check found of the judge; kept in the output folder.",
)
@click.option(
    "--fail-below", type=float, metavar="DELTA", help="Exit with 6 where an arm is shown to be below: win - loss, in %."
)
@click.option(
    "--gain",
    type=click.FloatRange(0, 100 - TIES, min_open=True),
    default=GAIN,
    show_default=True,
    help="Say beforehand how many prompts show so many points.",
)
@limit_options
def evaluate(**options: Any) -> None:
    """Does it help? Arms against the original prompts, answered by your LLM, compared by a judge.

    `bpo-train evaluate --llm MODEL --set vicuna_eval --judge MODEL --output DIR`; the same command goes on where an
    earlier run stopped.
    """
    with exits():
        evaluation = _evaluation(options)
        if options["dry_run"]:
            click.echo(f"{planned(evaluation)}\n{could_show(len(evaluation.prompts), options['gain'])}")
            return
        from bpo_train.data.backends import open_backend

        checked = _judge_check(options, evaluation.judge.name)
        backend = open_backend(
            options["llm"],
            base_url=options["base_url"],
            temperature=options["temperature"],
            max_tokens=options["max_tokens"],
            timeout=options["timeout"],
            base=options["llm_base"],
        )
        click.echo(could_show(len(evaluation.prompts), options["gain"]))
        with progress(evaluation.prices) as update:
            summary = asyncio.run(evaluation.run(backend, _limits(options), update))
        _finish(summary, options, checked)


def planned(evaluation: Evaluation) -> str:
    """Return what a run would do and cost, a line each."""
    from bpo_train.evaluation.findings import spent_money

    usage = evaluation.estimate()
    lines = [f"{len(evaluation.prompts):,} prompts, {len(evaluation.arms)} arms with {evaluation.baseline}; at most:"]
    for name, what in (("prompts", "rewrites by the LLM"), ("answers", "answers"), ("verdicts", "verdicts")):
        spent = usage[name]
        if spent.requests:
            tokens = f"about {spent.prompt_tokens:,} tokens to read and {spent.completion_tokens:,} to write"
            lines.append(f"{spent.requests:,} {what}, {tokens}")
    if evaluation.prices or evaluation.judge_prices:
        lines.append(f"cost about {spent_money(usage, evaluation.prices, evaluation.judge_prices):.2f}")
    return "\n".join(lines)


def could_show(prompts: int, gain: float) -> str:
    """Return which gain so many prompts can show, and how many a gain of `gain` points needs."""
    from bpo_train.evaluation.power import detectable, prompts_needed

    seen = detectable(prompts, ties=TIES)
    shows = f"a gain of {seen:.0f} points" if seen <= 100 else "no gain, however large"
    return (
        f"With {TIES:.0f}% ties, {prompts:,} prompts show {shows} in four of five runs; {gain:g} points need "
        f"{prompts_needed(gain, ties=TIES):,} prompts."
    )


def _evaluation(options: dict[str, Any]) -> Evaluation:
    from bpo_train.evaluation.arms import parse_arms
    from bpo_train.evaluation.evaluate import Evaluation
    from bpo_train.evaluation.testsets import load_testsets, sampled
    from bpo_train.evaluation.verdicts import open_judge

    arms = parse_arms(options["arms"], baseline=options["baseline"])
    prices, judge_prices = _both_prices(options)
    return Evaluation(
        sampled(load_testsets(options["sets"]), options["limit"], seed=options["seed"]),
        arms,
        options["llm"],
        open_judge(
            options["judge"],
            style=options["judge_style"],
            base_url=options["judge_base_url"],
            limits=_limits(options),
            max_tokens=options["judge_max_tokens"],
            timeout=options["timeout"],
            tie=options["tie"],
        ),
        options["output"],
        model=options["model"],
        temperature=options["temperature"],
        max_tokens=options["max_tokens"],
        seed=options["seed"],
        budget_tokens=options["budget_tokens"],
        retry_failed=options["retry_failed"],
        prices=prices,
        judge_prices=judge_prices,
        llm_base=options["llm_base"],
    )


def _finish(summary: dict[str, Any], options: dict[str, Any], checked: dict[str, Any] | None) -> None:
    """Write the report and say what was found; leave with an exit code where rows are left, or an arm is too bad."""
    folder = options["output"]
    cost = f", cost {summary['cost']:.2f}" if "cost" in summary else ""
    spent = f"{summary['requests']:,} requests, {summary['tokens']:,} tokens{cost}. Written to {folder}."
    for warning in summary["warnings"]:
        click.echo(f"bpo-train: {warning}", err=True)
    if any(arm.get(name) for arm in summary["arms"].values() for name in FAILED):
        click.echo("bpo-train: What failed is asked again with --retry-failed.", err=True)
    if summary["stopped"]:
        click.echo(spent)
        click.echo(
            "bpo-train: Stopped at the budget; the same command with a larger --budget-tokens goes on.", err=True
        )
        sys.exit(AT_BUDGET)
    from bpo_train.evaluation.report import check, write_report
    from bpo_train.evaluation.report_data import PLACEBO

    report = write_report(folder, judge_check=checked, seed=options["seed"])
    for result in report["results"]:
        low, high = result["delta_ci95"]
        found = f"{result['win']:.1f}% win, {result['tie']:.1f}% tie, {result['loss']:.1f}% loss"
        delta = f"delta {result['delta']:+.1f} ({low:+.1f} to {high:+.1f}), n {result['n']}"
        first = result["judge_reading"]["first"]
        place = "" if first is None else f"; {first:.0f}% of the verdicts name the first answer"
        click.echo(f"{result['arm']} against {result['baseline']}: {found}; {delta}{place}")
        click.echo(f"  {result['sentences'][0]}")
    click.echo(spent)
    if options["fail_below"] is not None:
        # Of all that were asked for: one whose prompts all failed is not in the report.
        asked = [arm for arm in summary["arms"] if arm not in (summary["baseline"], PLACEBO)]
        passed = check(report, options["fail_below"], arms=asked)
        for reason in passed.reasons:
            click.echo(f"bpo-train: {reason}.", err=True)
        if not passed.passed:
            sys.exit(BELOW)


def _judge_check(options: dict[str, Any], judge: str) -> dict[str, Any] | None:
    """Return what is known of the judge: a check that is named is kept in the output folder, and used from then on."""
    from bpo_integrations.cli.show import dump
    from bpo_train.data.outputs import replacing
    from bpo_train.evaluation.judge_check import CHECK, read_check

    kept = options["output"] / CHECK
    if options["judge_check"] is None:
        found = read_check(kept) if kept.is_file() else None
        return found if found and found["judge"] == judge else None
    found = read_check(options["judge_check"])
    if found["judge"] != judge:
        msg = f"{options['judge_check']} is about the judge {found['judge']}, not about {judge}."
        raise ConfigurationError(msg, hint="Check the judge that you evaluate with: bpo-train judge-check.")
    with replacing(kept) as file:
        file.write(dump(found, indent=2) + "\n")
    return found


def _both_prices(options: dict[str, Any]) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Return the prices of the LLM and of the judge; a judge that is the LLM costs the same, unless told."""
    prices = _prices(options)
    of_judge = {"price_in": options["judge_price_in"], "price_out": options["judge_price_out"]}
    judge_prices = _prices(of_judge)
    if judge_prices is None and options["judge"] == options["llm"]:
        judge_prices = prices
    return prices, judge_prices
