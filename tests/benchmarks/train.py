"""Useful tokens a second: the trainer of `bpo-train sft` beside a loop that pads each row to 512.

The loop is the reference code's way (paper, section 3.3).

    python tests/benchmarks/train.py [--seconds 120] [--mode rewrite]

Needs the extra `train`, the embedded base and the data. Both sides train the same adapter (the recipe's) on the same
rows in batches of four, in turns of a quarter of a minute, so that whatever else the machine does falls on both. A
useful token is one of a prompt or a completion; padding is none.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from peft import LoraConfig, get_peft_model
from report import ROOT, put, stamp, table
from transformers import TrainerCallback
from trl import SFTConfig

from bpo_integrations.engines.causal_lm import load_causal_lm
from bpo_train.training.loss import CompletionLossTrainer, EpochSampler
from bpo_train.training.rows import Encoded, encode, fitting, read_rows, split_examples, to_dataset

DATA = Path(os.environ.get("BPO_DATA_DIR", ROOT.parent / "shared" / "data"))
FILES = {"augment": ("additions.jsonl", 256), "rewrite": ("pairs.jsonl", 448)}
"""The rows, and the recipe's longest, by mode."""
WIDTH = 512
"""What the reference code pads a row to (paper, section 3.3)."""
BATCH, TURN = 4, 15.0
"""Rows a step on each side (the paper's, for a device), and seconds of a turn."""
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


class Padded:
    """The loop of the reference code: every row padded to 512, the loss from the logits of all positions."""

    def __init__(self, rows: list[Encoded]) -> None:
        base, _ = load_causal_lm("embedded")
        self.model: Any = get_peft_model(base, LoraConfig(**LORA)).train()
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=8e-4)
        self._rows = self._batches(rows)
        self.steps, self.tokens, self.seconds = 0, 0, 0.0

    def _batches(self, rows: list[Encoded]) -> Iterator[list[Encoded]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            order = torch.randperm(len(rows), generator=generator).tolist()
            for at in range(0, len(order) - BATCH + 1, BATCH):
                yield [rows[index] for index in order[at : at + BATCH]]

    def work(self, seconds: float) -> None:
        """Train for so many seconds; a step that has begun is finished."""
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            batch = next(self._rows)
            ids = torch.zeros(BATCH, WIDTH, dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for row, each in enumerate(batch):
                ids[row, : len(each)] = torch.tensor([*each.prompt, *each.completion])
                mask[row, : len(each)] = 1
                labels[row, len(each.prompt) : len(each)] = torch.tensor(each.completion)
            self.model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1
            self.tokens += sum(map(len, batch))
        self.seconds += time.perf_counter() - started


class Turns(TrainerCallback):
    """Gives the other side its turn after each of ours, and ends when both have had their time."""

    def __init__(self, other: Padded, seconds: float) -> None:
        self.other, self.limit, self.seconds = other, seconds, 0.0
        self._since = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        turn = time.perf_counter() - self._since
        if turn < TURN:
            return
        self.seconds += turn
        self.other.work(turn)
        control.should_training_stop = self.seconds >= self.limit
        self._since = time.perf_counter()


def epoch(rows: list[Encoded]) -> list[Encoded]:
    """Return the rows in the trainer's batches by length, and these in random order.

    The trainer begins with the longest, and a short measurement would see no others.
    """
    order = list(EpochSampler([len(row) for row in rows], group=BATCH, seed=0))
    batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
    random.Random(0).shuffle(batches)
    return [rows[index] for batch in batches for index in batch]


def measure(mode: str, seconds: float) -> list[object]:
    """Return a row of the table."""
    file, longest = FILES[mode]
    model, tokenizer = load_causal_lm("embedded")
    examples, _ = split_examples(read_rows(DATA / file), mode=mode, licences=["Apache-2.0", "MIT"])
    rows = fitting(encode(examples, mode, tokenizer), longest, allow_dropping=True)
    turns = Turns(Padded(rows), seconds)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            learning_rate=8e-4,
            num_train_epochs=100,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            bf16=False,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = CompletionLossTrainer(
            model=model,
            args=config,
            train_dataset=to_dataset(epoch(rows)),
            processing_class=tokenizer,
            peft_config=LoraConfig(**LORA),
            callbacks=[turns],
        )
        trainer.train()
    ours = trainer._total_train_tokens / turns.seconds
    theirs = turns.other.tokens / turns.other.seconds
    mean = sum(map(len, rows)) / len(rows)
    steps = f"{turns.other.steps}, {trainer.state.global_step}"
    return [mode, len(rows), f"{mean:.0f}", steps, f"{theirs:.1f}", f"{ours:.1f}", f"{ours / theirs:.1f}x"]


@click.command()
@click.option("--seconds", default=120.0, show_default=True, help="Of each side.")
@click.option("--mode", "modes", type=click.Choice(list(FILES)), multiple=True, default=["rewrite"])
@click.option("--note", default="", help="What else the machine did.")
def main(seconds: float, modes: tuple[str, ...], note: str) -> None:
    """Measure both sides."""
    found: list[list[object]] = []
    for mode in modes:
        found.append(measure(mode, seconds))
        print(found[-1], flush=True)
        write(found, seconds, note)


def write(rows: list[list[object]], seconds: float, note: str) -> None:
    """Put the table into its place."""
    header = [
        "mode",
        "rows",
        "tokens a row",
        "steps of each",
        f"padded to {WIDTH}, tokens/s",
        "`bpo-train sft`, tokens/s",
        "factor",
    ]
    threads = f"{torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "1 thread"
    what = f"Useful tokens, both sides in turns, {seconds:.0f} seconds each, {threads}. {note}".strip()
    put(ROOT / "docs" / "benchmarks.md", "train", f"{table(header, rows)}\n\n{what} {stamp()}")


if __name__ == "__main__":
    main()
