"""The paper's table at small size, as `bpo-train paper-table` made it, into docs/benchmarks.md.

    bpo-train paper-table --output runs/paper-table --workers 4      # a GPU: some twenty minutes; the CPU: a smoke run
    python tests/benchmarks/paper_table.py runs/paper-table

It measures nothing itself. A smoke run's table is not written unless asked: its figures mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from report import ROOT, put

from bpo_train.baselines.table import TABLE_JSON, to_markdown

PAGE = ROOT / "docs" / "benchmarks.md"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--smoke", is_flag=True, help="Write the table of a smoke run, too.")
def main(folder: Path, smoke: bool) -> None:
    """Write the table of FOLDER."""
    found = json.loads((folder / TABLE_JSON).read_text(encoding="utf-8"))
    if found["about"]["size"] == "smoke" and not smoke:
        raise click.ClickException("This is a smoke run, whose figures mean nothing. Give --smoke to write it anyway.")
    took = f"The stages took {seconds(folder):.0f} s, added up."
    made = f"_Made by `bpo-train paper-table` on {found['about']['device']}. {took}_"
    put(PAGE, "paper-table", "\n\n".join([to_markdown(found), made]))


def seconds(folder: Path) -> float:
    """Return what the stages took, added up; several ran at a time."""
    texts = [path.read_text(encoding="utf-8") for path in (folder / "done").glob("*.json")]
    return sum(float(json.loads(text)["seconds"]) for text in texts)


if __name__ == "__main__":
    main()
