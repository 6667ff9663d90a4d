"""The mining of preference pairs as a run: rows in, draws kept in a file, pairs and their statistics out.

    bpo-train mine --data additions.jsonl --held-out held_out_ids.txt --output runs/mined

Promises: rows that are held out are never drawn for; a run that was killed goes on; `pairs.jsonl` is written in one
step. The rules are in `mining.py`, the draws in `draws.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bpo_integrations.cli.show import dump
from bpo_integrations.errors import ConfigurationError
from bpo_integrations.result import Mode
from bpo_integrations.rewriter import load_rewriter
from bpo_train.data.outputs import replacing
from bpo_train.evaluation.subject import Similarity
from bpo_train.training.draws import DRAWS, Sampling, draw
from bpo_train.training.mining import Pair, Rules, Score
from bpo_train.training.mining import mine as mined
from bpo_train.training.rows import Example, read_ids, read_rows, split_examples

logger = logging.getLogger(__name__)

PAIRS, STATISTICS = "pairs.jsonl", "mined.json"


@dataclass(frozen=True, slots=True)
class Mining:
    """What is mined, and how.

    Args:
        data: Rows as `bpo-train sft` takes them.
        output: Folder of `draws.jsonl`, `pairs.jsonl` and `mined.json`.
        mode: `augment` or `rewrite`.
        model: Spec of the rewriter whose mistakes are mined: `embedded`, `hf:DIR`, ...
        held_out: File of ids that are left out.
        licences: Licences whose rows are taken; empty takes all.
        limit: Take so many rows, spread evenly over the file.
        samples: Candidates drawn for each prompt.
        temperature: As in `Sampling`.
        top_p: As in `Sampling`.
        seed: As in `Sampling`.
        usual: As in `Rules`.
        per_prompt: As in `Rules`.
        margin: As in `Rules`.
    """

    data: str | Path
    output: Path
    mode: Mode = "augment"
    model: str = "embedded"
    held_out: str | Path | None = None
    licences: Sequence[str] = ()
    limit: int | None = None
    samples: int = 4
    temperature: float = 1.0
    top_p: float = 0.95
    seed: int = 0
    usual: float = 0.9
    per_prompt: int = 2
    margin: float = 0.0


def run(
    mining: Mining,
    *,
    near: Similarity | None = None,
    score: Score | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Mine pairs, or go on with an earlier run's draws.

    Args:
        mining: What, and how.
        near: As for `mining.mine`.
        score: As for `mining.mine`.
        progress: Called with the prompts that are drawn for, and all of them.

    Returns:
        The statistics, which `mined.json` holds too.

    Raises:
        ConfigurationError: There are no rows, or the folder holds another run's draws.
        FileError: A file cannot be written.
    """
    examples = training_rows(mining)
    rules = Rules(mining.usual, mining.per_prompt, mining.margin)
    sampling = Sampling(mining.samples, mining.temperature, mining.top_p, mining.seed)
    rewriter = load_rewriter(mining.model, mode=mining.mode)
    try:
        draws = draw(rewriter, examples, mining.output / DRAWS, sampling, progress=progress or _log)
    finally:
        rewriter.close()
    found = mined(draws, mining.mode, rules, near=near, score=score)
    write_pairs(mining.output / PAIRS, found.pairs)
    statistics = {"mode": mining.mode, "model": mining.model, **asdict(sampling), **asdict(rules), **found.statistics}
    with replacing(mining.output / STATISTICS) as file:
        file.write(dump(statistics, indent=2) + "\n")
    return statistics


def training_rows(mining: Mining) -> list[Example]:
    """Return the rows that are mined.

    Raises:
        ConfigurationError: There are none.
    """
    held_out = read_ids(mining.held_out)
    rows, _ = split_examples(read_rows(mining.data), mode=mining.mode, held_out=held_out, licences=mining.licences)
    if not rows:
        msg = "No training rows are left."
        raise ConfigurationError(msg, hint="Check --licences and --held-out against the data.")
    if mining.limit is None or mining.limit >= len(rows):
        return rows
    return [rows[place * len(rows) // mining.limit] for place in range(mining.limit)]


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write pairs as JSONL, in TRL's preference form.

    Raises:
        FileError: It cannot be written.
    """
    with replacing(path) as file:
        for pair in pairs:
            file.write(dump(asdict(pair)) + "\n")


def _log(done: int, total: int) -> None:
    logger.info("drawn for %d of %d prompts", done, total)
