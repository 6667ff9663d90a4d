"""`bpo-train judge-check` and `bpo-train calibrate`: options in, a few lines out. No logic.

Exit codes: 0 done, whatever was found; 1 the judge fails row after row, 2 wrong usage, 3 wrong configuration (also a
refused key or an unknown model), 4 a file cannot be used, 5 stopped at the budget with rows left, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import click

from bpo_integrations.errors import ConfigurationError
from bpo_train.cli_data import AT_BUDGET, _limits, _prices, exits, judge_style, limit_options, planned, progress


@click.command("judge-check")
@click.option("--judge", required=True, metavar="MODEL", help="openai:NAME, hf:ID, reward:FOLDER, PROVIDER:NAME ...")
@click.option("--judge-base-url", "--base-url", metavar="URL", help="An OpenAI-compatible server, which has the judge.")
@judge_style
@click.option("--tie", type=click.FloatRange(0), default=0.0, show_default=True, help="reward: scores as close tie.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="LLMBar's folder, or pairs of your own.")
@click.option("--limit", type=click.IntRange(1), help="Take so many pairs, each subset by its share.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what --limit draws.")
@click.option("--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the files.")
@limit_options
def judge_check(**options: Any) -> None:
    """Does the judge agree with people? Compares the pairs of LLMBar, each in both orders.

    `bpo-train judge-check --judge MODEL --output DIR`; the same command goes on where an earlier run stopped.
    """
    from bpo_train.evaluation.judge_check import JudgeCheck, load_pairs, sampled
    from bpo_train.evaluation.verdicts import REWARD, open_judge

    with exits():
        limits, prices = _limits(options), _prices(options)
        check = JudgeCheck(
            sampled(load_pairs(options["data"]), options["limit"], seed=options["seed"]),
            open_judge(
                options["judge"],
                style=options["judge_style"],
                base_url=options["judge_base_url"],
                limits=limits,
                max_tokens=options["max_tokens"],
                timeout=options["timeout"],
                tie=options["tie"],
            ),
            options["output"],
            style="reward" if options["judge"].startswith(REWARD) else options["judge_style"],
            budget_tokens=options["budget_tokens"],
            retry_failed=options["retry_failed"],
            prices=prices,
        )
        if options["dry_run"]:
            from bpo_train.data.journal import Plan

            cost, pairs = check.estimate(), len(check.pairs)
            click.echo(planned(Plan(pairs, pairs, cost.prompt_tokens, cost.completion_tokens), prices))
            return
        with progress(prices) as update:
            found = asyncio.run(check.run(limits, update))
        _show(found, options["output"])


def _show(found: dict[str, Any], folder: Path) -> None:
    for line in found["text"]:
        click.echo(line)
    for name, one in found["by_subset"].items():
        click.echo(f"  {name}: {one['agreement']:.1f}% of {one['n']}")
    cost = f", cost {found['cost']:.2f}" if "cost" in found else ""
    click.echo(f"{found['requests']:,} requests, {found['tokens']:,} tokens{cost}. Written to {folder}.")
    if found["judge_failed"]:
        click.echo("bpo-train: Pairs that the judge failed on are asked again with --retry-failed.", err=True)
    if found["stopped"]:
        left = f"{found['left']:,} pairs are left; the same command with a larger --budget-tokens goes on."
        click.echo(f"bpo-train: Stopped at the budget. {left}", err=True)
        sys.exit(AT_BUDGET)


@click.command()
@click.option(
    "--evaluation", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Output of bpo-train evaluate."
)
@click.option("--arm", default="augment", show_default=True, help="The arm that is to be gated.")
@click.option("--judge", help="The judge whose verdicts count; needed where there are several.")
@click.option(
    "--judge-check",
    "check",
    type=click.Path(path_type=Path, exists=True),
    help="Output of bpo-train judge-check: a judge that is too weak shows nothing.",
)
@click.option(
    "--shadow",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A log of shadow=True with outcomes, see docs/gate.md; several.",
)
@click.option("--llm", help="The LLM that the policy is for; default: the evaluation's.")
@click.option("--name", default="", help="What the policy is called; default: the LLM.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the folds and of the bootstrap.")
@click.option("--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The policy file.")
def calibrate(**options: Any) -> None:
    """When should a prompt be left alone for this LLM? Fits a policy file that `PromptOptimizer(policy=F)` loads.

    `bpo-train calibrate --evaluation DIR --output policy.json`. Where the data show no gain, it says so, and the
    policy keeps every prompt.
    """
    with exits():
        from bpo_train.data.outputs import replacing
        from bpo_train.evaluation.gate import Settings
        from bpo_train.evaluation.gate import calibrate as fitted
        from bpo_train.evaluation.gate_features import from_evaluation, from_shadow, together

        if options["evaluation"] is None and not options["shadow"]:
            msg = "There is nothing to calibrate with."
            raise ConfigurationError(msg, hint="Give --evaluation DIR, or --shadow F, or both.")
        parts = [from_shadow(path) for path in options["shadow"]]
        judge = ""
        if options["evaluation"] is not None:
            parts.insert(0, from_evaluation(options["evaluation"], arm=options["arm"], judge=options["judge"]))
            judge = parts[0].judge
        llm = options["llm"] or _llm(options["evaluation"])
        made_for = {"llm": llm, **({"arm": options["arm"]} if options["evaluation"] is not None else {})}
        agreement, weak = _agreement(options["check"], options["evaluation"], judge)
        if agreement is not None:
            made_for["judge_agreement"] = agreement
        found = fitted(
            together(parts),
            name=options["name"] or llm,
            made_for=made_for,
            settings=Settings(seed=options["seed"]),
            too_weak=weak,
        )
        with replacing(options["output"]) as file:
            file.write(found.gate.to_json())
        for line in found.lines():
            click.echo(line)
        click.echo(f"Written to {options['output']}.")


def _llm(folder: Path | None) -> str:
    """Return the LLM that an evaluation was made with, as far as it says."""
    from bpo_train.data.outputs import SUMMARY

    try:
        return str(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["llm"]) if folder else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _agreement(check: Path | None, evaluation: Path | None, judge: str) -> tuple[float | None, str]:
    """Return the judge's agreement with people, where it was checked, and what is wrong with it, if something is."""
    from bpo_train.evaluation.judge_check import CHECK, read_check
    from bpo_train.evaluation.judge_figures import standing

    if evaluation is None:
        if check is None:
            return None, ""
        msg = "--judge-check is about the judge of an evaluation, and there is none."
        raise ConfigurationError(msg, hint="Leave it out: the outcomes of shadow logs are no judge's.")
    path = check or evaluation / CHECK
    if not path.exists():
        return None, ""
    found = read_check(path)
    if found["judge"] != judge:
        if check is None:  # the evaluation has several judges, and this one was not checked
            return None, ""
        msg = f"{check} is about the judge {found['judge']!r}, the evaluation about {judge!r}."
        raise ConfigurationError(msg, hint="Check the judge that you evaluate with, or choose one with --judge.")
    weak = "the judge agrees too little with people for any conclusion" if standing(found) == "too weak" else ""
    return found["agreement"], weak
