"""`bpo-train sft`: options in, the trainer's process or processes started, errors as one line. No logic."""

from __future__ import annotations

import click

from bpo_train.cli_data import PASSED_ON, exits


@click.command(
    context_settings=PASSED_ON,
    add_help_option=False,
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def sft(options: tuple[str, ...]) -> None:
    """Supervised fine-tuning: `bpo-train sft --config RECIPE --data FILE --output_dir DIR`.

    Takes every option of TRL's SFTConfig and ModelConfig; they override the recipe's. With --num_processes N or
    --accelerate_config NAME it starts the processes itself.
    """
    with exits():
        from bpo_train.training.sft import main

        main(options)
