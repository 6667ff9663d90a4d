"""The loss of the shipped adapters on the held-out rows, in nats per completion token, beside the unadapted base.

    python tests/benchmarks/held_out_loss.py [--adapter DIR --mode augment]

Needs the extra `train` and the data; float32, transformers and peft.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from peft import PeftModel
from report import ROOT, put, stamp, table

from bpo_integrations.engines.causal_lm import load_causal_lm
from bpo_train.evaluation.loss import completion_loss
from bpo_train.training.sft import read_rows, split_examples

DATA = Path(os.environ.get("BPO_DATA_DIR", ROOT.parent / "shared" / "data"))
FILES = {"augment": "additions.jsonl", "rewrite": "pairs.jsonl"}
REFERENCE = {"augment": "3.09", "rewrite": "1.19"}
"""The reference runs: augment after two epochs, rewrite after one (measured on other rows)."""


def measure(mode: str, adapter: Path) -> list[object]:
    """Return a row of the table."""
    held_out = (DATA / "held_out_ids.txt").read_text(encoding="utf-8").split()
    _, test = split_examples(read_rows(DATA / FILES[mode]), mode=mode, held_out=held_out)
    model, tokenizer = load_causal_lm("embedded")
    before, tokens = completion_loss(model, tokenizer, test, mode=mode)
    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    after, _ = completion_loss(adapted, tokenizer, test, mode=mode)
    return [mode, len(test), tokens, f"{before:.3f}", f"{after:.3f}", REFERENCE[mode]]


@click.command()
@click.option("--mode", "modes", type=click.Choice(list(FILES)), multiple=True, default=list(FILES))
@click.option("--adapter", type=click.Path(path_type=Path, exists=True), help="Another adapter than the shipped one.")
def main(modes: tuple[str, ...], adapter: Path | None) -> None:
    """Measure the held-out loss."""
    rows = []
    for mode in modes:
        rows.append(measure(mode, adapter or ROOT / "bpo_integrations" / "models" / mode))
        print(rows[-1], flush=True)
    if adapter is None:
        header = ["mode", "rows", "completion tokens", "base", "shipped adapter", "reference run"]
        put(ROOT / "docs" / "benchmarks.md", "loss", f"{table(header, rows)}\n\n{stamp()}")


if __name__ == "__main__":
    main()
