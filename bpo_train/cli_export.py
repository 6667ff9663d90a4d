"""`bpo-train export`: options in, one line for each form out. No logic.

Exit codes: 0 done, 1 the hub fails, 2 wrong usage, 3 wrong configuration (also a model that a form cannot hold, and a
token that the hub refuses), 4 the folder cannot be written, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bpo_train.cli_data import exits

_FORMS = ("adapter", "merged", "ct2", "gguf")


@click.command()
@click.option(
    "--run",
    "runs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    multiple=True,
    help="A run's output folder or one of its checkpoints; the adapters of several are averaged.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the export.")
@click.option(
    "--to",
    "forms",
    type=click.Choice(_FORMS),
    multiple=True,
    help="Several go into folders of their names. Default: adapter, or merged after a full fine-tune.",
)
@click.option("--mode", type=click.Choice(["augment", "rewrite"]), help="Default: what the run says.")
@click.option("--name", help="The rewriter's name; default: the output folder's.")
@click.option("--base", metavar="ID|DIR", help="The base model; default: what the run says.")
@click.option("--threshold", type=click.FloatRange(0), help="Augment: add nothing from this P on; default 0.5.")
@click.option("--languages", metavar="en,de,...|any", help="That the model knows; default: en.")
@click.option("--max-prompt-tokens", type=click.IntRange(1), help="Longest prompt that it is given.")
@click.option("--new-tokens", type=click.IntRange(1), help="Most tokens that it writes, before what the prompt adds.")
@click.option("--repetition-penalty", type=click.FloatRange(1), help="That it decodes best with; 1 is none.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of adapter (default bfloat16) and merged (default float32).",
)
@click.option("--ct2-type", type=click.Choice(["int8", "float32"]), default="int8", show_default=True)
@click.option("--gguf-type", type=click.Choice(["q8_0", "f16", "f32"]), default="q8_0", show_default=True)
@click.option("--licence", default="", metavar="apache-2.0", help="The model's, for the card; default: left open.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in the output folder.")
@click.option("--push-to-hub", "repository", metavar="REPO", help="Upload it; of several forms each to REPO-FORM.")
@click.option("--private", is_flag=True, help="With --push-to-hub: make a new repository private.")
@click.option("--dry-run", is_flag=True, help="With --push-to-hub: show what would be uploaded, and upload nothing.")
def export(**options: Any) -> None:
    """Make a run usable: adapter, merged weights, CTranslate2 or GGUF, with bpo.json and a model card.

    `bpo-train export --run runs/mine --output mine --to ct2`, and then `bpo optimize --model ct2:mine "..."`.
    """
    repository, dry = options["repository"], options["dry_run"]
    if (dry or options["private"]) and not repository:
        msg = "--dry-run and --private go with --push-to-hub."
        raise click.UsageError(msg)
    with exits():
        from bpo_train.exporting.hub import check_repository

        if repository:
            check_repository(repository, token=not dry)
        from bpo_train.export import Export
        from bpo_train.export import export as write
        from bpo_train.model_card import FORMS

        wanted = Export(
            runs=options["runs"],
            output=options["output"],
            forms=options["forms"],
            mode=options["mode"],
            name=options["name"],
            base=options["base"],
            record={
                "empty_threshold": options["threshold"],
                "languages": _languages(options["languages"]),
                "max_prompt_tokens": options["max_prompt_tokens"],
                "new_tokens": options["new_tokens"],
                "repetition_penalty": options["repetition_penalty"],
            },
            dtype=options["dtype"],
            ct2_type=options["ct2_type"],
            gguf_type=options["gguf_type"],
            licence=options["licence"],
            overwrite=options["overwrite"],
        )
        _no_bars()
        folders = write(wanted)
        for form, folder in folders.items():
            click.echo(f"{form}: {FORMS[form][1]}:{folder}")
        if repository:
            for form, folder in folders.items():
                name = f"{repository}-{form}" if len(folders) > 1 else repository
                _push(folder, name, dry=dry, private=options["private"])


def _no_bars() -> None:
    """Keep transformers' progress bars out of what is a matter of seconds."""
    try:
        from transformers.utils import logging
    except ImportError:
        return  # the export says what is missing
    logging.disable_progress_bar()


def _push(folder: Path, repository: str, *, dry: bool, private: bool) -> None:
    from bpo_train.exporting.hub import check_folder, listed, push

    check_folder(folder)
    if not dry:
        click.echo(f"Uploaded: {push(folder, repository, private=private)}")
        return
    click.echo(f"Would upload to {repository}:")
    for name, size in listed(folder):
        click.echo(f"{size:>14,}  {name}")
    click.echo("README.md:\n" + (folder / "README.md").read_text(encoding="utf-8"))


def _languages(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return () if text == "any" else tuple(part.strip() for part in text.split(",") if part.strip())
