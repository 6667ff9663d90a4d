"""The stages of the paper's table, what each needs, and how they are run: one after the other, or several at a time.

Promises: a stage that is done is not done again; one that was killed is, from its last checkpoint where it trains; one
that fails takes down only what needs it, and the table says "not run" there. What a stage does stands in the module
that it calls.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from bpo_integrations.errors import BPOError, ConfigurationError, in_a_line
from bpo_train.baselines.answers import answer_group
from bpo_train.baselines.arms import GROUPS, MODELS
from bpo_train.baselines.models import METRICS, compute_dtype, load_model, save_model, write_metrics
from bpo_train.baselines.prompts import optimize_prompts, rewrite_again, rewrite_by_llm
from bpo_train.baselines.split import divide, read_pairs, write_pairs
from bpo_train.baselines.table import build_table
from bpo_train.baselines.verdicts import judge_arms
from bpo_train.data.outputs import replacing
from bpo_train.evaluation.records import PROMPTS, TestPrompt, read_records, write_records
from bpo_train.evaluation.testsets import load_testsets, sampled

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parents[1] / "recipes" / "baselines"
SETTINGS = "settings.json"
HALVES = ("half_a.jsonl", "half_b.jsonl")


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is.

    Args:
        name: Its name.
        prompts: Test prompts; None takes all.
        new_tokens: An answer is cut after so many tokens.
        recipes: Folder of the trainings' recipes.
        llmbar: Pairs of LLMBar that the judge is checked on; None takes all.
    """

    name: str
    prompts: int | None
    new_tokens: int
    recipes: str
    llmbar: int | None = None


SIZES = {
    size.name: size
    for size in (
        Size("full", None, 384, "h200"),
        Size("cpu", 300, 256, "cpu"),
        Size("smoke", 24, 32, "smoke", llmbar=24),
    )
}


@dataclass(frozen=True, slots=True)
class PaperTable:
    """A table in the making.

    Args:
        folder: Receives prompts, answers, scores, verdicts and the table.
        models: Receives the models.
        size: How large it is.
        data: The preference pairs.
        sets: The test sets, as for `load_testsets`.
        model: The answering model's spec.
        llmbar: LLMBar's folder; None where there is none.
        seed: Divides the preferences.
    """

    folder: Path
    models: Path
    size: Size
    data: Path
    sets: tuple[str, ...]
    model: str = "embedded"
    llmbar: Path | None = None
    seed: int = 0

    @property
    def prompts(self) -> list[TestPrompt]:
        """The test prompts, once `split` has drawn them."""
        return read_records(self.folder / PROMPTS, TestPrompt)

    def settings(self) -> dict[str, Any]:
        """What the figures depend on; a folder holds those of one setting only.

        The preferences by their SHA-256, where they are there: a folder that is carried to another machine has the
        halves with it.
        """
        found = {"size": self.size.name, "model": self.model, "sets": list(self.sets), "seed": self.seed}
        return found | ({"data": hashlib.sha256(self.data.read_bytes()).hexdigest()} if self.data.is_file() else {})

    def done(self, stage: str) -> bool:
        """Whether a stage has come to its end."""
        return self.marker(stage).is_file()

    def marker(self, stage: str) -> Path:
        """Return the file that says so."""
        return self.folder / "done" / f"{stage.replace(':', '-')}.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Args:
        name: Its name.
        needs: Stages that must be done before.
        run: Does it.
        after: Stages that it waits for where they are wanted, and does without where they failed.
        again: Whether it is done again whenever it is wanted, and also when the time is up.
        short: Whether it is over before another process has begun, and so is always done in this one.
    """

    name: str
    needs: tuple[str, ...]
    run: Callable[[PaperTable], None]
    after: tuple[str, ...] = ()
    again: bool = False
    short: bool = False


def prepare(table: PaperTable) -> None:
    """Make the folder, or make sure that it is this table's.

    Raises:
        ConfigurationError: It was begun with other settings.
    """
    path = table.folder / SETTINGS
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        given = table.settings()
        other = {name: value for name, value in found.items() if given.get(name, value) != value}
        if other:
            msg = f"{table.folder} was begun with other settings: {other}."
            raise ConfigurationError(msg, hint="Give the same options, or name another --output.")
        return
    with replacing(path) as file:
        file.write(json.dumps(table.settings()) + "\n")


def run_stage(table: PaperTable, stage: Stage) -> None:
    """Do a stage in this process, unless it is done.

    Raises:
        ConfigurationError: A stage that it needs was not done.
    """
    if table.done(stage.name) and not stage.again:
        return
    for need in stage.needs:
        if not table.done(need):
            msg = f"The stage {stage.name} needs the stage {need}, which is not done."
            raise ConfigurationError(msg, hint=f"Run it first: --stages {need}.")
    started = time.monotonic()
    logger.info("stage %s", stage.name)
    stage.run(table)
    with replacing(table.marker(stage.name)) as file:
        file.write(json.dumps({"seconds": round(time.monotonic() - started, 1)}) + "\n")
    _release()


def run_all(
    table: PaperTable,
    names: Sequence[str],
    *,
    workers: int = 1,
    command: Sequence[str] = (),
    max_seconds: float | None = None,
) -> dict[str, str]:
    """Do stages, each as soon as those that it needs are done.

    Args:
        table: The table.
        names: The stages; they are begun in the order of `STAGES`.
        workers: Stages at a time; more than one run in processes of their own.
        command: What runs one stage in a process of its own, when its name is put behind. With one worker it is used
            where there is a time limit only: nothing ends a stage that runs in this process.
        max_seconds: After this what still runs is ended, and only `judge` and `table` are begun, which then take as
            long as they need.

    Returns:
        By the stage's name, why it was not done; empty where all were.
    """
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    waiting = [stage for stage in STAGES if stage.name in names]
    last = {stage.name for stage in STAGES if stage.again}
    failed: dict[str, str] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            late = deadline is not None and time.monotonic() > deadline
            for name in list(running):
                process = running[name]
                cut = late and name not in last and process.poll() is None
                if cut:
                    process.terminate()
                if cut or process.poll() is not None:
                    del running[name]
                    if process.wait():
                        failed[name] = "the time was up" if cut else f"see {_log(table, name)}"
            for stage in list(waiting):
                open_ = {one.name for one in waiting} | running.keys()
                lost = next(
                    (need for need in stage.needs if need in failed or not (need in open_ or table.done(need))), None
                )
                if lost is not None or (late and not stage.again):
                    waiting.remove(stage)
                    if not table.done(stage.name) or stage.again:
                        failed[stage.name] = "the time was up" if lost is None else f"{lost} was not done"
                elif not open_ & {*stage.needs, *stage.after} and len(running) < workers:
                    waiting.remove(stage)
                    if stage.short or (workers == 1 and (deadline is None or not command)):
                        _here(table, stage, failed)
                        break
                    running[stage.name] = _begin(table, stage.name, command)
            if running:
                time.sleep(0.2)
    finally:  # an interruption must not leave behind what a second run would meet
        for process in running.values():
            process.terminate()
            process.wait()
    return failed


def _here(table: PaperTable, stage: Stage, failed: dict[str, str]) -> None:
    """Do a stage in this process; whatever stops it must not stop the others."""
    try:
        run_stage(table, stage)
    except (BPOError, ValueError, RuntimeError, OSError, ImportError) as error:
        logger.exception("stage %s", stage.name)
        failed[stage.name] = in_a_line(error)
        _release()


def _begin(table: PaperTable, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
    path = _log(table, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Answers grow token by token: without this the memory of several processes would not suffice for its own holes.
    memory = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    with path.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own command
            [*command, name], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=memory | dict(os.environ)
        )


def _log(table: PaperTable, name: str) -> Path:
    return table.folder / "logs" / f"{name.replace(':', '-')}.log"


def _release() -> None:
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _split(table: PaperTable) -> None:
    write_records(table.folder / PROMPTS, sampled(load_testsets(table.sets), table.size.prompts, seed=table.seed))
    halves = divide(read_pairs(table.data), 0.5, seed=table.seed)
    for name, half in zip(HALVES, halves, strict=True):
        write_pairs(table.folder / name, half)


def _base(table: PaperTable) -> None:
    folder = table.models / "base"
    if not (folder / METRICS).is_file():
        model, tokenizer = load_model(table.model)
        save_model(model, tokenizer, folder)
        write_metrics(folder, {"parameters": float(sum(weight.numel() for weight in model.parameters()))})


def _train(table: PaperTable, *, kind: str, name: str, data: int, options: dict[str, str]) -> None:
    """Run a training of `baselines/` with the size's recipe."""
    folder = table.models / name
    if (folder / METRICS).is_file():
        return
    given = {
        "config": RECIPES / table.size.recipes / f"{kind}.yaml",
        "model_name_or_path": table.models / "base",
        "data": table.folder / HALVES[data],
        "output_dir": folder,
        **options,
    }
    if kind == "reward":
        given["eval_data"] = table.folder / HALVES[1 - data]
    if kind in ("ppo", "rloo"):
        given["reward_model"] = table.models / "reward-ppo"
    if compute_dtype() != "bfloat16":
        given["bf16"] = "false"
    if kind != "ppo":  # which goes by the machine itself
        given["use_cpu"] = str(not _on_gpu()).lower()
    argv = [part for option, value in given.items() for part in (f"--{option}", str(value))]
    import_module(f"bpo_train.baselines.{kind}").main(argv)


def _answer(table: PaperTable, *, group: str) -> None:
    model = group if group in MODELS else "base"
    answer_group(table.folder, group, str(table.models / model), new_tokens=table.size.new_tokens)


def _table(table: PaperTable) -> None:
    about = {**table.settings(), "new_tokens": table.size.new_tokens, "device": _device()}
    build_table(table.folder, table.models, table.prompts, about)


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _training(kind: str, name: str, data: int, needs: tuple[str, ...], **options: str) -> Stage:
    return Stage(name, ("split", "base", *needs), partial(_train, kind=kind, name=name, data=data, options=options))


def _answering(group: str, *needs: str) -> Stage:
    return Stage(f"answer:{group}", needs, partial(_answer, group=group))


_WORK = (
    Stage("split", (), _split, short=True),
    Stage("base", (), _base),
    Stage("optimize", ("split",), lambda table: optimize_prompts(table.prompts, table.folder)),
    _training("reward", "reward-ppo", 0, (), seed="1"),
    _training("dpo", "dpo", 0, ()),
    _answering("main", "base", "optimize"),
    _training("reward", "reward-judge", 1, (), seed="2", balance_lengths="true"),
    _training("ppo", "ppo", 0, ("reward-ppo",)),
    _answering("dpo", "dpo", "optimize"),
    _answering("ppo", "ppo", "optimize"),
    _training("rloo", "rloo", 0, ("reward-ppo",)),
    Stage(
        "meta",
        ("split", "base"),
        lambda table: rewrite_by_llm(table.prompts, table.folder, str(table.models / "base")),
    ),
    Stage("passes", ("optimize",), lambda table: rewrite_again(table.prompts, table.folder)),
    _answering("meta", "meta"),
    _answering("passes", "base", "passes"),
    _answering("rloo", "rloo", "optimize"),
)

STAGES = (
    *_WORK,
    Stage(
        "judge",
        ("reward-judge",),
        lambda table: judge_arms(
            table.folder, table.models / "reward-judge", table.prompts, table.llmbar, pairs=table.size.llmbar
        ),
        after=tuple(stage.name for stage in _WORK),
        again=True,
    ),
    Stage("table", ("split",), _table, after=(*(stage.name for stage in _WORK), "judge"), again=True),
)
"""All stages, the most important cells of the table first; halves of the preferences: 0 trains, 1 judges (section 4.3
of the paper trains its RLHF baselines on the data that BPO was made from)."""

assert {stage.name.removeprefix("answer:") for stage in _WORK if stage.name.startswith("answer:")} == GROUPS.keys()
