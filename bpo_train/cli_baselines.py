"""`bpo-train baseline` and `bpo-train paper-table`: the systems that BPO is compared with, and the comparison."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from bpo_integrations.cli.exits import Exit
from bpo_integrations.errors import MissingExtraError
from bpo_train.cli_data import PASSED_ON, exits


@click.group()
def baseline() -> None:
    """Align the answering model itself: what BPO is compared with.

    Each command reads a recipe (--config), takes every option of its trainer over it, and goes on where it stopped.
    """


def _training(name: str, text: str) -> None:
    @baseline.command(name, context_settings=PASSED_ON, add_help_option=False, help=text, short_help=text)
    @click.argument("options", nargs=-1, type=click.UNPROCESSED)
    def command(options: tuple[str, ...]) -> None:
        with exits():
            try:
                from bpo_train.training.sft import failures
            except ImportError as error:
                raise MissingExtraError(error.name or "torch", extra="train") from error
            with failures():
                import_module(f"bpo_train.baselines.{name}").main(options)


_training("reward", "Train a reward model: --config RECIPE --data PAIRS --output_dir DIR.")
_training("dpo", "DPO: --config RECIPE --data PAIRS --output_dir DIR.")
_training("ppo", "PPO: --config RECIPE --data PAIRS --reward_model DIR --output_dir DIR.")
_training("rloo", "RLOO: --config RECIPE --data PAIRS --reward_model DIR --output_dir DIR.")


@click.command("paper-table")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="The table's folder.")
@click.option("--models", type=click.Path(path_type=Path, file_okay=False), help="The models' folder [OUTPUT/models].")
@click.option("--size", type=click.Choice(["full", "cpu", "smoke"]), help="[full on a GPU, smoke on the CPU]")
@click.option("--stages", help="Only these, separated by commas; a name with a * stands for several.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Stages at a time.")
@click.option("--model", default="embedded", show_default=True, help="The answering model.")
@click.option("--data", type=click.Path(path_type=Path, dir_okay=False), help="Preference pairs [BPO_DATA_DIR's].")
@click.option("--set", "sets", multiple=True, help="A test set; give it again for more [the paper's four].")
@click.option("--seed", type=int, default=0, show_default=True, help="Divides the preferences, draws prompts.")
@click.option("--max-minutes", type=click.FloatRange(0), help="Then end what runs, judge what there is, and stop.")
@click.option("--list", "listing", is_flag=True, help="Only say which stages there are, and which are done.")
def paper_table(output: Path, stages: str | None, workers: int, *, max_minutes: float | None, **options: Any) -> None:
    """The paper's comparison at small size: BPO, DPO, PPO, RLOO and both together, with one answering model.

    Each stage that is done stays done; the same command goes on. On the CPU the size is a smoke run, which its table
    says.
    """
    with exits():
        from bpo_train.baselines.stages import STAGES, prepare, run_all, run_stage

        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
        table = _table(output, options)
        if options["listing"]:
            for stage in STAGES:
                click.echo(f"{'done' if table.done(stage.name) else '    '}  {stage.name}")
            return
        names = _names(stages, [stage.name for stage in STAGES])
        prepare(table)
        if len(names) == 1:
            run_stage(table, next(stage for stage in STAGES if stage.name == names[0]))
            failed = {}
        else:
            seconds = None if max_minutes is None else 60 * max_minutes
            failed = run_all(table, names, workers=workers, command=_command(output, options), max_seconds=seconds)
    for name, why in failed.items():
        click.echo(f"bpo-train: {name} was not done: {why}", err=True)
    if table.done("table"):
        click.echo(f"Written to {output / 'table.md'}.")
    if failed:
        sys.exit(Exit.FAILED)


def _table(output: Path, options: dict[str, Any]) -> Any:
    from bpo_train.baselines.stages import SIZES, PaperTable
    from bpo_train.evaluation.testsets import PAPER_SETS, data_folder

    size = options["size"]
    if size is None:
        import torch

        size = "full" if torch.cuda.is_available() else "smoke"
    llmbar = data_folder() / "llmbar"
    return PaperTable(
        folder=output,
        models=options["models"] or output / "models",
        size=SIZES[size],
        data=options["data"] or data_folder() / "preferences.jsonl",
        sets=options["sets"] or PAPER_SETS,
        model=options["model"],
        llmbar=llmbar if llmbar.is_dir() else None,
        seed=options["seed"],
    )


def _names(given: str | None, known: list[str]) -> list[str]:
    from fnmatch import fnmatchcase

    from bpo_integrations.errors import ConfigurationError

    if given is None:
        return known
    wanted = [part.strip() for part in given.split(",") if part.strip()]
    for name in wanted:
        if not any(fnmatchcase(stage, name) for stage in known):
            msg = f"There is no stage {name!r}."
            raise ConfigurationError(msg, hint=f"The stages are: {', '.join(known)}.")
    return [stage for stage in known if any(fnmatchcase(stage, name) for name in wanted)]


def _command(output: Path, options: dict[str, Any]) -> list[str]:
    """Return the command that runs one stage, whose name is put behind, with the same options."""
    command = [sys.executable, "-m", "bpo_train.cli", "paper-table", "--output", str(output)]
    for name in ("models", "size", "model", "data", "seed"):
        if options[name] is not None:
            command += [f"--{name}", str(options[name])]
    for name in options["sets"]:
        command += ["--set", name]
    return [*command, "--stages"]
