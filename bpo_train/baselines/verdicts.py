"""The judging of the paper's table: a reward model scores every answer to its original prompt; who scores more wins.

Promises: an answer is scored once, whatever it is compared with; equal answers tie; how far the judge can be trusted
(accuracy on pairs that it was not trained on, agreement with people on LLMBar, how much it goes by length) is measured
beside. What it says is counted in `table.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bpo_integrations.cli.show import dump
from bpo_train.baselines.answers import answers_file
from bpo_train.baselines.arms import ARMS, COMPARISONS
from bpo_train.baselines.models import METRICS, compute_dtype, read_metrics
from bpo_train.data.outputs import replacing
from bpo_train.evaluation.records import (
    BASELINE,
    VERDICTS,
    Answer,
    Choice,
    TestPrompt,
    Verdict,
    read_records,
    write_records,
)
from bpo_train.reward_model import RewardModel

JUDGE, JUDGE_FILE = "reward model", "judge.json"

Scores = dict[str, float]
"""By the prompt's id."""

Scored = dict[tuple[str, str], float]
"""By the prompt's id and the answer."""


def scores_file(folder: Path, arm: str) -> Path:
    """Return where the scores of an arm's answers are."""
    return folder / "scores" / f"{arm}.json"


def judge_arms(
    folder: Path, model: Path, prompts: Sequence[TestPrompt], llmbar: Path | None, *, pairs: int | None = None
) -> None:
    """Score every arm that was answered and not scored yet; write the verdicts, and how good the judge is.

    Scores that are older than their answers or than the judge are of others, and are made again.

    Args:
        folder: The table's folder; receives `scores/`, `verdicts.jsonl` and `judge.json`.
        model: The judging reward model's folder.
        prompts: The test prompts; the judge is shown these, not what was sent.
        llmbar: The folder of LLMBar; None where there is none.
        pairs: Pairs of LLMBar that the judge is checked on; None takes all.
    """
    judge = RewardModel(model, dtype=compute_dtype())
    texts = {prompt.id: prompt.prompt for prompt in prompts}
    known: Scored = {}
    todo: dict[str, list[Answer]] = {}
    for arm, path in ((arm.name, answers_file(folder, arm.name)) for arm in ARMS):
        if path.is_file():
            rows = read_records(path, Answer)
            if _newer(scores_file(folder, arm), path, model / METRICS):
                scores = _read_scores(folder, arm)
                known |= {(row.id, row.answer): scores[row.id] for row in rows}
            else:
                todo[arm] = rows
    for arm, rows in todo.items():
        # In another batch the same answer's score differs slightly, and two arms that said the same would not tie.
        new = [row for row in rows if (row.id, row.answer) not in known]
        found = judge.score([(texts[row.id], row.answer) for row in new])
        known |= {(row.id, row.answer): score for row, score in zip(new, found, strict=True)}
        with replacing(scores_file(folder, arm)) as file:
            file.write(dump({row.id: known[row.id, row.answer] for row in rows}) + "\n")
    write_records(folder / VERDICTS, verdicts(read_scores(folder), prompts))
    checked = read_judge(folder) if _newer(folder / JUDGE_FILE, model / METRICS) else {}
    trust = {
        "held_out": read_metrics(model),
        "length_correlation": length_correlation(folder),
        "llmbar": checked.get("llmbar") or (agreement(judge, llmbar, pairs) if llmbar else None),
    }
    with replacing(folder / JUDGE_FILE) as file:
        file.write(json.dumps(trust, indent=2) + "\n")


def _newer(path: Path, *sources: Path) -> bool:
    """Whether a file is there, and none of those that it was made from was written after it."""
    made = path.stat().st_mtime_ns if path.is_file() else -1
    return made >= max((source.stat().st_mtime_ns for source in sources if source.is_file()), default=0)


def read_scores(folder: Path) -> dict[str, Scores]:
    """Return the scores of each arm that was scored."""
    return {arm.name: _read_scores(folder, arm.name) for arm in ARMS if scores_file(folder, arm.name).is_file()}


def _read_scores(folder: Path, arm: str) -> Scores:
    found: Scores = json.loads(scores_file(folder, arm).read_text(encoding="utf-8"))
    return found


def read_judge(folder: Path) -> dict[str, Any]:
    """Return how good the judge is; empty where it has not judged yet."""
    path = folder / JUDGE_FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def verdicts(scores: Mapping[str, Scores], prompts: Sequence[TestPrompt]) -> Iterator[Verdict]:
    """Yield the verdicts of all comparisons whose two arms were scored.

    A reward model knows no order, so that each pair has one verdict; a tie is an equal score, as equal answers have.
    """
    for arm, baseline in COMPARISONS:
        if arm in scores and baseline in scores:
            for prompt in prompts:
                margin = scores[arm][prompt.id] - scores[baseline][prompt.id]
                choice: Choice = "C" if margin == 0 else "A" if margin > 0 else "B"
                yield Verdict(prompt.id, "AB", choice, prompt.category, arm, baseline, JUDGE, round(margin, 5))


def agreement(judge: RewardModel, llmbar: Path, limit: int | None = None) -> dict[str, Any]:
    """Return how the judge does on LLMBar, or on `limit` pairs of it, as `bpo-train judge-check` counts it."""
    from bpo_train.evaluation.judge_check import load_pairs, sampled
    from bpo_train.evaluation.judge_figures import OTHER, PREFERRED, figures

    pairs = sampled(load_pairs(llmbar), limit)
    found = judge.score([(pair.prompt, text) for pair in pairs for text in (pair.preferred, pair.other)])
    said = []
    for pair, better, worse in zip(pairs, found[::2], found[1::2], strict=True):
        choice: Choice = "C" if better == worse else "A" if better > worse else "B"
        said.append(Verdict(pair.id, "AB", choice, pair.subset, PREFERRED, OTHER, JUDGE))
    return figures(pairs, said, positional=False)


def length_correlation(folder: Path) -> dict[str, float]:
    """Return how much the judge goes by length, in the answers that it judged.

    Returns:
        `answers`: Pearson's correlation of score and words over all answers; `margins`: the same of an arm's margin and
        of what its answer has more in words than the original's, which is what a verdict hangs on. 0 where one does
        not vary, or the original was not scored.
    """
    import numpy as np

    scores = read_scores(folder)
    words = {
        arm: {row.id: len(row.answer.split()) for row in read_records(answers_file(folder, arm), Answer)}
        for arm in scores
    }
    base = BASELINE if BASELINE in scores else None
    pairs = [(scores[arm][id_], words[arm][id_]) for arm in scores for id_ in scores[arm]]
    margins = [
        (scores[arm][id_] - scores[base][id_], words[arm][id_] - words[base][id_])
        for arm in scores
        if base is not None and arm != base
        for id_ in scores[arm]
    ]
    found = {}
    for name, values in (("answers", pairs), ("margins", margins)):
        array = np.array(values, dtype=float).reshape(-1, 2)
        varies = len(array) > 1 and bool((array.std(axis=0) > 0).all())
        found[name] = round(float(np.corrcoef(array.T)[0, 1]), 4) if varies else 0.0
    return found
