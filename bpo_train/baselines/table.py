"""The paper's table at small size: what was judged, counted, beside the figures of the paper.

Promises: every comparison has a row, and says "not run" where it was not; raw and length-controlled figures stand side
by side; the table says of itself how large it is and how far its judge can be trusted. It counts and writes only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpo_integrations.models.base import BASE_ID
from bpo_train.baselines.answers import answers_file
from bpo_train.baselines.arms import ARMS, BY_NAME, COMPARISONS, MODELS
from bpo_train.baselines.models import read_metrics
from bpo_train.baselines.verdicts import read_judge
from bpo_train.data.outputs import replacing
from bpo_train.evaluation.length import length_controlled
from bpo_train.evaluation.records import BASELINE, VERDICTS, Answer, TestPrompt, Verdict, read_records
from bpo_train.evaluation.winrate import mean_delta, outcomes, win_rate

TABLE_JSON, TABLE_MD = "table.json", "table.md"
NOT_RUN = "not run"

PAPER: dict[tuple[str, str], str] = {
    ("rewrite", BASELINE): "+17.4 (llama-2-chat 7B), +22.0 (gpt-3.5-turbo)",
    ("rewrite", "ppo"): "+7.9 (vicuna 13B)",
    ("rewrite", "dpo"): "+0.9 (vicuna 13B)",
    ("dpo+bpo", "dpo"): "+11.2 (vicuna 13B)",
    ("meta", BASELINE): "+4.6 (gpt-3.5-turbo)",
    ("rewrite", "meta"): "+15.9 (gpt-3.5-turbo)",
}
"""The paper's mean of (win - loss) over the four sets, judged by gpt-4 (sections 4 and 5); it has no other figure that
a row here could stand beside. Its BPO rewrites, whatever it is combined with."""


def build_table(folder: Path, models: Path, prompts: Sequence[TestPrompt], about: Mapping[str, Any]) -> dict[str, Any]:
    """Count, and write `table.json` and `table.md`.

    Args:
        folder: The table's folder.
        models: The trained models' folder, for what their trainings measured.
        prompts: The test prompts.
        about: What is said of the run: its size, settings, device.

    Returns:
        What `table.json` holds.
    """
    verdicts = read_records(folder / VERDICTS, Verdict) if (folder / VERDICTS).is_file() else []
    answers = {
        arm.name: {row.id: row for row in read_records(answers_file(folder, arm.name), Answer)}
        for arm in ARMS
        if answers_file(folder, arm.name).is_file()
    }
    sets = {prompt.id: prompt.set for prompt in prompts}
    found: dict[str, Any] = {
        "about": {**about, "prompts": len(prompts)},
        "judge": read_judge(folder),
        "arms": [_arm(arm.name, answers.get(arm.name)) for arm in ARMS],
        "comparisons": [
            _comparison(
                arm,
                base,
                [one for one in verdicts if (one.arm, one.baseline) == (arm, base)],
                answers=answers,
                sets=sets,
            )
            for arm, base in COMPARISONS
        ],
        "trainings": {name: read_metrics(models / name) for name in (*MODELS, "reward-ppo", "reward-judge")},
    }
    for name, text in ((TABLE_JSON, json.dumps(found, indent=1)), (TABLE_MD, to_markdown(found))):
        with replacing(folder / name) as file:
            file.write(text + "\n")
    return found


def to_markdown(found: Mapping[str, Any]) -> str:
    """Render the table: a caption, the comparisons, the arms, the trainings."""
    about, judge = found["about"], found["judge"]
    sets = list(dict.fromkeys(name for one in found["comparisons"] for name in one.get("sets", {})))
    head = ["A against B", *(f"{name}: win/tie/loss" for name in sets), "mean delta of the sets"]
    head += ["delta (95%)", "at equal length (95%)", "words A / B", "the paper"]
    rows = [_row(one, sets) for one in found["comparisons"]]
    arms = [
        [arm["label"], *(NOT_RUN for _ in range(3))]
        if arm["answers"] is None
        else [arm["label"], f"{arm['changed']:.0f}%", f"{arm['words']:.0f}", f"{arm['finished']:.0f}%"]
        for arm in found["arms"]
    ]
    parts = [
        _caption(about, judge),
        _grid(head, rows),
        "What the arms did:",
        _grid(["arm", "prompts changed", "words an answer (mean)", "answers that came to their end"], arms),
        "What the trainings measured:",
        _grid(["training", "figures"], [[name, _figures(one)] for name, one in found["trainings"].items()]),
    ]
    return "\n\n".join(parts)


def _arm(name: str, rows: Mapping[str, Answer] | None) -> dict[str, Any]:
    arm = BY_NAME[name]
    found: dict[str, Any] = {"name": name, "label": arm.label, "model": arm.model, "answers": None}
    if not rows:
        return found
    count = len(rows)
    return found | {
        "answers": count,
        "changed": 100 * sum(row.kind != "kept" for row in rows.values()) / count,
        "words": sum(len(row.answer.split()) for row in rows.values()) / count,
        "finished": 100 * sum(row.finished for row in rows.values()) / count,
        "empty": sum(not row.answer for row in rows.values()),
    }


def _comparison(
    arm: str,
    baseline: str,
    verdicts: Sequence[Verdict],
    *,
    answers: Mapping[str, Mapping[str, Answer]],
    sets: Mapping[str, str],
) -> dict[str, Any]:
    found: dict[str, Any] = {"arm": arm, "baseline": baseline, "paper": PAPER.get((arm, baseline))}
    if not verdicts:
        return found | {"run": False}
    ended = outcomes(verdicts)
    lengths = {
        one.id: (len(answers[arm][one.id].answer.split()), len(answers[baseline][one.id].answer.split()))
        for one in ended
    }
    by_set = {
        name: win_rate([one for one in ended if sets[one.id] == name])
        for name in dict.fromkeys(sets[one.id] for one in ended)
    }
    return found | {
        "run": True,
        "all": win_rate(ended).to_dict(),
        "length_controlled": length_controlled(ended, lengths).to_dict(),
        "sets": {name: rate.to_dict() for name, rate in by_set.items()},
        "mean_delta": round(mean_delta(by_set.values()), 4),
        "words": [sum(pair[side] for pair in lengths.values()) / len(lengths) for side in (0, 1)],
    }


def _row(one: Mapping[str, Any], sets: Sequence[str]) -> list[str]:
    label = f"{BY_NAME[one['arm']].label} against {BY_NAME[one['baseline']].label}"
    paper = one["paper"] or ""
    if not one["run"]:
        return [label, *(NOT_RUN for _ in range(len(sets) + 4)), paper]
    cells = [
        "{win:.1f}/{tie:.1f}/{loss:.1f}".format(**one["sets"][name]) if name in one["sets"] else NOT_RUN
        for name in sets
    ]
    deltas = [_interval(one["all"]), _interval(one["length_controlled"])]
    words = " / ".join(f"{mean:.0f}" for mean in one["words"])
    return [label, *cells, f"{one['mean_delta']:+.1f}", *deltas, words, paper]


def _interval(figures: Mapping[str, Any]) -> str:
    low, high = figures["delta_ci95"]
    return f"{figures['delta']:+.1f} ({low:+.1f} to {high:+.1f})"


def answered_by(model: str, new_tokens: int) -> str:
    """Say which model answered, and how; `embedded` by its own name."""
    name = BASE_ID if model == "embedded" else model
    return f"Answering model: {name}, greedy, at most {new_tokens} new tokens"


def _caption(about: Mapping[str, Any], judge: Mapping[str, Any]) -> str:
    lines = []
    if about["size"] == "smoke":
        lines.append("**A smoke run: it shows that the stages work. Its figures mean nothing.**")
    lines.append(
        f"{answered_by(about['model'], about['new_tokens'])}; {about['prompts']} prompts. Positive deltas are A's. "
        "Intervals: bootstrap over prompts."
    )
    held_out, lengths = judge.get("held_out") or {}, judge.get("length_correlation") or {}
    if not held_out:
        return "\n".join([*lines, f"Judge: {NOT_RUN}."])
    lines.append(
        f"Judge: a reward model of the same base, trained on {held_out['trained_pairs']:.0f} pairs of the other half "
        f"of the preferences (lengths balanced by repeating pairs, another seed). It agrees with "
        f"{100 * held_out['accuracy']:.1f}% of {held_out['pairs']:.0f} pairs that it was not trained on "
        f"({100 * held_out['accuracy_longer']:.0f}% where the preferred answer is the longer one, "
        f"{100 * held_out['accuracy_shorter']:.0f}% where it is not). Correlation of score and words: "
        f"{lengths.get('answers', 0):+.2f} over answers, {lengths.get('margins', 0):+.2f} of margins with what an "
        "answer has more in words than the original's."
    )
    llmbar = judge.get("llmbar")
    lines.append("LLMBar: " + (" ".join(llmbar["text"]) if llmbar else f"{NOT_RUN}."))
    return "\n".join(lines)


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items()) or NOT_RUN


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
