"""PPO of the answering model: the paper's RLHF baseline (section 4.3).

    bpo-train baseline ppo --config bpo_train/recipes/baselines/h200/ppo.yaml \
        --data preferences.jsonl --reward_model runs/reward --output_dir runs/ppo

TRL has no PPO any more, so this is ours, and meant to be read: a step is `PPO.step`, its arithmetic `ppo_step.py`, the
model `actor_critic.py`. Answers are sampled from the policy, a reward model scores them, each token pays for its
divergence from the model that training began with, and the clipped losses are followed for some epochs.

A run that was interrupted goes on from its last checkpoint, with the same prompts and random numbers as if it had not
been. Several processes (`accelerate launch`) take their share of each step's prompts and average their gradients; each
holds the whole model, so large models are trained by adapter.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import torch

from bpo_integrations.errors import ConfigurationError, EngineError
from bpo_train.baselines.actor_critic import ActorCritic, Rollout
from bpo_train.baselines.common import parse, trainable
from bpo_train.baselines.models import compute_dtype, load_model, save_model, write_metrics
from bpo_train.baselines.ppo_state import load_checkpoint, remove_checkpoints, save_checkpoint
from bpo_train.baselines.ppo_step import Before, KLControl, advantages, losses, token_rewards, whitened
from bpo_train.baselines.split import read_pairs
from bpo_train.data.outputs import replacing
from bpo_train.reward_model import RewardModel

logger = logging.getLogger(__name__)

LOG = "log.jsonl"

Score = Callable[[Sequence[tuple[str, str]]], list[float]]
"""Scores (prompt, answer) pairs: a reward model, or a rule."""


@dataclass
class PPOArguments:
    """Which prompts are answered, and who scores the answers."""

    data: str = field(metadata={"help": "JSONL whose `instruction` (or `prompt`) is answered; as for `dpo`."})
    reward_model: str = field(metadata={"help": "Folder of a reward model."})
    limit: int | None = field(default=None, metadata={"help": "Use the first N prompts only (smoke runs)."})


@dataclass
class PPOConfig:
    """How PPO trains. The defaults are those of the literature, named at the field."""

    output_dir: str = field(metadata={"help": "Receives the model, `log.jsonl` and `metrics.json`."})
    steps: int = field(default=48, metadata={"help": "Steps: each samples, scores and learns once."})
    batch_size: int = field(default=64, metadata={"help": "Prompts a step, all processes together."})
    minibatch_size: int = field(default=32, metadata={"help": "Answers an update of the weights, a process."})
    microbatch_size: int = field(default=16, metadata={"help": "Answers in memory at once while learning."})
    epochs: int = field(default=4, metadata={"help": "Times that a step's answers are learned from (PPO's K)."})
    max_new_tokens: int = field(default=128, metadata={"help": "An answer is cut after so many tokens."})
    max_prompt_tokens: int = field(default=384, metadata={"help": "Longer prompts are left out."})
    temperature: float = field(default=1.0, metadata={"help": "Of the sampling."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Of the policy; DeepSpeed-Chat's is 9.65e-6."})
    value_learning_rate: float = field(default=1e-4, metadata={"help": "Of the value head, which begins at zero."})
    warmup_steps: int = field(default=3, metadata={"help": "Steps in which the rates rise; then they fall linearly."})
    gamma: float = field(default=1.0, metadata={"help": "Discount a token (DeepSpeed-Chat)."})
    lam: float = field(default=0.95, metadata={"help": "GAE's lambda (DeepSpeed-Chat)."})
    clip: float = field(default=0.2, metadata={"help": "Of the ratio of probabilities (PPO paper, section 6.1)."})
    value_clip: float = field(default=0.2, metadata={"help": "Of a value's change (DeepSpeed-Chat)."})
    value_weight: float = field(default=0.1, metadata={"help": "Of the value loss; it shares the policy's trunk."})
    kl_weight: float = field(default=0.05, metadata={"help": "Of the KL penalty a token."})
    kl_target: float | None = field(default=None, metadata={"help": "Nats an answer that the weight is adapted to."})
    kl_horizon: float = field(default=10_000.0, metadata={"help": "Answers over which it is adapted."})
    score_clip: float = field(default=5.0, metadata={"help": "Scores are cut at plus and minus this (DeepSpeed-Chat)."})
    unfinished_penalty: float = field(default=0.0, metadata={"help": "Taken from the score of an answer that was cut."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are scaled down to this norm."})
    bf16: bool = field(default=True, metadata={"help": "Compute in bfloat16 where the machine is fast in it."})
    save_steps: int = field(default=10, metadata={"help": "Steps between checkpoints."})
    max_minutes: float | None = field(default=None, metadata={"help": "Stop learning after this, and save."})
    seed: int = field(default=0, metadata={"help": "Draws the prompts' order and the answers."})

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "minibatch_size", "microbatch_size", "epochs", "max_new_tokens"):
            if getattr(self, name) < 1:
                msg = f"{name} is {getattr(self, name)}; it must be 1 or more."
                raise ConfigurationError(msg, hint=f"Correct {name} in the recipe or on the command line.")


class PPO:
    """A policy in training.

    Args:
        model: The policy with its value head.
        score: Scores answers.
        config: How to train.
        prompts: The prompts that are answered, again and again in a new order.
    """

    def __init__(self, model: ActorCritic, score: Score, config: PPOConfig, prompts: Sequence[str]) -> None:
        self.model, self.score, self.config = model, score, config
        self.state = processes()
        if config.batch_size % self.state.num_processes:  # they would update unequally often, and wait for one another
            msg = f"batch_size {config.batch_size} cannot be shared by {self.state.num_processes} processes."
            raise ConfigurationError(msg, hint=f"Make batch_size a multiple of {self.state.num_processes}.")
        encoded = [(prompt, model.chat.render([{"role": "user", "content": prompt}])) for prompt in prompts]
        self.prompts = [(prompt, ids) for prompt, ids in encoded if len(ids) <= config.max_prompt_tokens]
        trainable(self.prompts, f"prompts of at most {config.max_prompt_tokens} tokens")
        self.control = KLControl(config.kl_weight, config.kl_target, config.kl_horizon)
        policy = [weight for weight in model.causal.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": policy, "lr": config.learning_rate, "peak": config.learning_rate},
                {
                    "params": list(model.value_head.parameters()),
                    "lr": config.value_learning_rate,
                    "peak": config.value_learning_rate,
                },
            ],
            weight_decay=0.0,
        )

    def train(self, folder: Path) -> list[dict[str, float]]:
        """Train from the last checkpoint on; return what was logged in this run, a row a step."""
        started, config = time.monotonic(), self.config
        folder.mkdir(parents=True, exist_ok=True)
        done, weight = load_checkpoint(folder, self.model, self.optimizer) or (0, self.control.weight)
        self.control = KLControl(weight, config.kl_target, config.kl_horizon)
        if self.state.is_main_process:
            _keep_log(folder / LOG, done)
        rows = []
        for number in range(done, config.steps):
            if config.max_minutes is not None and self._late(time.monotonic() - started > 60 * config.max_minutes):
                logger.warning("PPO stops after %d of %d steps: its time is up.", number, config.steps)
                break
            row = {"step": number + 1, **self.step(number)}
            rows.append(row)
            if self.state.is_main_process:
                with (folder / LOG).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                logger.info("%s", {name: round(value, 4) for name, value in row.items()})
                if (number + 1) % config.save_steps == 0 and number + 1 < config.steps:
                    save_checkpoint(folder, number + 1, self.model, self.optimizer, self.control)
        return rows

    def step(self, number: int) -> dict[str, float]:
        """Sample, score and learn once.

        Args:
            number: The step's, from 0; with the seed it decides prompts and random numbers.
        """
        started, config, model = time.monotonic(), self.config, self.model
        torch.manual_seed(config.seed + 7919 * number + self.state.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * _rate(number, config.steps, config.warmup_steps)
        mine = self._prompts_of(number)
        rollout = model.sample([ids for _, ids in mine], config.max_new_tokens)
        answers = model.texts(rollout)
        raw = torch.tensor(self.score([(prompt, text) for (prompt, _), text in zip(mine, answers, strict=True)]))
        finished = (rollout.answers == model.tokenizer.eos_token_id).any(1).cpu()
        scores = raw.clamp(-config.score_clip, config.score_clip) - config.unfinished_penalty * ~finished
        logps, values, reference = self._look(rollout)
        rewards = token_rewards(scores.to(model.device), logps, reference, rollout.mask, self.control.weight)
        gained = advantages(rewards, values, rollout.mask, gamma=config.gamma, lam=config.lam)
        old = Before(logps, values, whitened(gained, rollout.mask), gained + values)
        learned = self._learn(rollout, old)
        kl = float(((logps - reference) * rollout.mask).sum(1).mean())
        found = {
            "score": float(raw.mean()),
            "kl": kl,
            "tokens": float(rollout.mask.sum(1).float().mean()),
            "finished": float(finished.float().mean()),
            **learned,
        }
        found = {name: float(self._mean(torch.tensor(value, device=model.device))) for name, value in found.items()}
        self.control = self.control.after(found["kl"], config.batch_size)
        return {**found, "kl_weight": self.control.weight, "seconds": time.monotonic() - started}

    def _prompts_of(self, number: int) -> list[tuple[str, list[int]]]:
        """Return this process's share of a step's prompts: pass after pass over all, each in an order of its own."""
        size, count = self.config.batch_size, len(self.prompts)
        places = [
            _order(count, self.config.seed, at // count)[at % count]
            for at in range(number * size + self.state.process_index, (number + 1) * size, self.state.num_processes)
        ]
        return [self.prompts[place] for place in places]

    @torch.no_grad()
    def _look(self, rollout: Rollout) -> list[torch.Tensor]:
        """Return log-probabilities and values of the policy that wrote the answers, and the reference's."""
        parts = []
        for rows in self._micro(torch.arange(len(rollout.ids))):
            part = rollout.rows(rows)
            parts.append((*self.model(part)[:2], self.model.reference_logps(part)))
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    def _learn(self, rollout: Rollout, old: Before) -> dict[str, float]:
        """Follow the clipped losses over the step's answers, `epochs` times; return means over tokens."""
        config = self.config
        totals = torch.zeros(5, device=self.model.device)
        for _ in range(config.epochs):
            for minibatch in _parts(torch.randperm(len(rollout.ids)), config.minibatch_size):
                tokens = self._mean(rollout.mask[minibatch].sum().float())  # of all processes' minibatches
                self.optimizer.zero_grad(set_to_none=True)
                for rows in self._micro(minibatch):
                    logps, values, entropy = self.model(rollout.rows(rows))
                    mask = rollout.mask[rows]
                    loss = losses(logps, values, old.rows(rows), mask, clip=config.clip, value_clip=config.value_clip)
                    mean = (loss.policy + config.value_weight * loss.value) / tokens
                    mean.backward()  # type: ignore[no-untyped-call]
                    parts = [part.detach() for part in loss] + [(entropy * mask).sum(), mask.sum()]
                    totals += torch.stack([part.float() for part in parts])
                self._update()
        policy, value, clipped, entropy_sum, count = totals.tolist()
        return {
            "policy_loss": policy / count,
            "value_loss": value / count,
            "clipped": clipped / count,
            "entropy": entropy_sum / count,
        }

    def _update(self) -> None:
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for weight in weights:
            if weight.grad is not None and self.state.num_processes > 1:
                weight.grad.copy_(self._mean(weight.grad))
        torch.nn.utils.clip_grad_norm_(weights, self.config.max_grad_norm)
        self.optimizer.step()

    def _mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the mean over all processes."""
        if self.state.num_processes == 1:
            return tensor
        from accelerate.utils import reduce

        found: torch.Tensor = reduce(tensor, "mean")
        return found

    def _late(self, late: bool) -> bool:
        """Return whether the time is up for any process: one that stopped alone would leave the others waiting."""
        return bool(self._mean(torch.tensor(float(late), device=self.model.device)) > 0)

    def _micro(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        return _parts(rows, self.config.microbatch_size)


def train(arguments: PPOArguments, config: PPOConfig, model_config: Any) -> dict[str, float]:
    """Train, and save the whole model into `config.output_dir`.

    Args:
        arguments: The prompts and the reward model.
        config: How to train.
        model_config: TRL's `ModelConfig`; `model_name_or_path` may be `embedded`, `use_peft` trains an adapter.

    Returns:
        Steps, and score, divergence and length of the first and the last steps.
    """
    from trl import get_peft_config

    prompts = list(dict.fromkeys(pair.prompt for pair in read_pairs(arguments.data)))[: arguments.limit]
    state = processes()
    causal, tokenizer = load_model(model_config.model_name_or_path or "embedded", model_config.dtype or "float32")
    peft = get_peft_config(model_config)
    if peft is not None:
        from peft import get_peft_model

        causal = get_peft_model(causal, peft)
    dtype = compute_dtype(str(state.device))
    bf16 = config.bf16 and dtype == "bfloat16"
    torch.manual_seed(config.seed)
    model = ActorCritic(causal.to(state.device), tokenizer, temperature=config.temperature, bf16=bf16)
    judge = RewardModel(arguments.reward_model, device=str(state.device), dtype=dtype)
    ppo = PPO(model, judge.score, config, prompts)
    output = Path(config.output_dir)
    ppo.train(output)
    if not state.is_main_process:
        return {}
    save_model(model.causal, tokenizer, output)
    metrics = summary(output / LOG)
    write_metrics(output, metrics)
    remove_checkpoints(output)
    return metrics


def processes() -> Any:
    """Return accelerate's view of the processes that train together, and of this one's device."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())  # without this, processes on the CPU do not see each other


def summary(log: Path, window: int = 5) -> dict[str, float]:
    """Return what a run's log comes to: means over its first and its last steps.

    Args:
        log: `log.jsonl`.
        window: Steps that a mean is over.
    """
    steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    found = {"steps": float(len(steps)), "seconds": sum(row["seconds"] for row in steps)}
    for when, part in (("first", steps[:window]), ("last", steps[-window:])):
        for name in ("score", "kl", "tokens"):
            found[f"{name}_{when}"] = sum(row[name] for row in part) / max(1, len(part))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Parse `--config recipe.yaml` and options over it, then train."""
    arguments, config, model_config = parse(PPOArguments, PPOConfig, argv)
    try:
        metrics = train(arguments, config, model_config)
    except torch.OutOfMemoryError as error:
        msg = "The GPU's memory is full."
        raise EngineError(msg, hint="Halve --microbatch_size, or --batch_size; or --use_peft true.") from error
    for name, value in metrics.items():
        click.echo(f"{name}: {value:.4g}")


def _keep_log(log: Path, done: int) -> None:
    """Leave the steps up to the checkpoint: later ones are done again, and a killed run's last line may be a half."""
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        with suppress(ValueError):
            if json.loads(line)["step"] <= done:
                kept.append(line + "\n")
    with replacing(log) as file:
        file.writelines(kept)


def _rate(number: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate in a step: up over `warmup` steps, then down, never to 0."""
    return min((number + 1) / (warmup + 1), (steps - number) / max(1, steps - warmup))


def _parts(rows: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    parts: Sequence[torch.Tensor] = rows.split(size)  # type: ignore[no-untyped-call]
    return parts


@lru_cache(maxsize=4)
def _order(count: int, seed: int, turn: int) -> list[int]:
    places = list(range(count))
    random.Random(f"{seed} {turn}").shuffle(places)  # noqa: S311 - an order, not a secret
    return places
