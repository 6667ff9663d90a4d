"""`bpo-train`: train a rewriter and export it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bpo_integrations.errors import BPOError
from bpo_integrations.rewriter import Record
from bpo_train.cli_data import construct, reproduce


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Train a prompt rewriter of your own, and export it."""


cli.add_command(construct)
cli.add_command(reproduce)


@cli.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def sft(options: tuple[str, ...]) -> None:
    """Supervised fine-tuning: `bpo-train sft --config RECIPE.yaml --data FILE --output_dir DIR`.

    Takes every option of TRL's SFTConfig and ModelConfig; they override the recipe's.
    """
    from bpo_train.training.sft import main as train

    train(options)


@cli.command()
@click.option(
    "--run",
    "runs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    multiple=True,
    help="A run's output folder or one of its checkpoints; several are averaged.",
)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--mode", type=click.Choice(["augment", "rewrite"]), required=True)
@click.option("--name", help="The rewriter's name; default: the output folder's.")
@click.option("--base", help="The base model's hub id; default: the embedded one.")
@click.option("--threshold", type=float, default=0.5, show_default=True, help="Augment: add nothing from this P on.")
def export(
    runs: tuple[Path, ...], output: Path, mode: str, name: str | None, base: str | None, threshold: float
) -> None:
    """Export a LoRA run as an adapter with bpo.json, which `hf:DIR` and the embedded model load."""
    from bpo_integrations.models.base import BASE_ID
    from bpo_train.export import copy_tokenizer, export_adapter

    record = record_for(mode, name=name or output.name, base=base or BASE_ID, threshold=threshold)
    export_adapter(runs, output, record, base=record.base)
    if record.base != BASE_ID:
        copy_tokenizer(runs[0], output)
    click.echo(f"{output}: {record.name}, {mode}")


def record_for(mode: str, *, name: str, base: str, threshold: float) -> Record:
    """Return the record of a rewriter that was trained with this package's formats."""
    from bpo_integrations.templates import AUGMENT_FORMAT, REWRITE_FORMAT

    if mode == "augment":
        return Record(
            name=name,
            mode="augment",
            format=AUGMENT_FORMAT,
            base=base,
            languages=("en",),
            max_prompt_tokens=1024,
            new_tokens=72,
            empty_threshold=threshold,
            repetition_penalty=1.15,  # see docs/training-log.md
        )
    return Record(
        name=name,
        mode="rewrite",
        format=REWRITE_FORMAT,
        base=base,
        languages=("en",),
        max_prompt_tokens=512,
        new_tokens=96,
        new_tokens_per_token=2.0,
    )


def main() -> None:
    """Run the command; an error of ours is one line, not a traceback."""
    try:
        cli()
    except BPOError as error:
        click.echo(f"bpo-train: {error}", err=True)
        sys.exit(3)


if __name__ == "__main__":
    main()
