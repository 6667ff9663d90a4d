"""`bpo-train`: train a rewriter and export it."""

from __future__ import annotations

import sys

import click

from bpo_integrations.errors import BPOError
from bpo_train.cli_baselines import baseline, paper_table
from bpo_train.cli_data import construct, reproduce
from bpo_train.cli_evaluation import evaluate
from bpo_train.cli_export import export
from bpo_train.cli_gate import calibrate, judge_check
from bpo_train.cli_preference import dpo, grpo, mine
from bpo_train.cli_score import score
from bpo_train.cli_training import sft
from bpo_train.cli_winrate import report, winrate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train a prompt rewriter of your own, and export it."""


cli.add_command(baseline)
cli.add_command(construct)
cli.add_command(paper_table)
cli.add_command(reproduce)
cli.add_command(sft)
cli.add_command(export)
cli.add_command(mine)
cli.add_command(dpo)
cli.add_command(grpo)
cli.add_command(score)
cli.add_command(evaluate)
cli.add_command(report)
cli.add_command(winrate)
cli.add_command(judge_check)
cli.add_command(calibrate)


def main() -> None:
    """Run the command; an error of ours is one line, not a traceback."""
    try:
        cli()
    except BPOError as error:
        click.echo(f"bpo-train: {error}", err=True)
        sys.exit(3)


if __name__ == "__main__":
    main()
