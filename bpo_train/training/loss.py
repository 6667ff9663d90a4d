"""TRL's trainer with three things made exact: the loss on a CPU, the order of the rows, and the loss of an evaluation.

- TRL's fused output head scores only the labelled positions on a GPU, and every position elsewhere. With a vocabulary
  of 49,152 and a completion that is a fifth of the row, that is most of a CPU's time and memory. Here the head sees the
  labelled positions only, within the model's own forward pass, so that data-parallel training works as ever.
- The order of the rows depends on the seed, the epoch and the rows of a step alone: not on how many processes share
  the step, nor on whether the run was interrupted.
- An evaluation's loss is the mean over completion tokens, not a mean of batches' means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from bpo_train.training.checkpoints import AsksNoHub

IGNORED = -100
"""The label of a token that is not trained on (torch's own)."""


class EpochSampler(Sampler[int]):
    """An order of rows for each epoch, from the seed and the epoch's number alone.

    Args:
        lengths: Tokens of each row.
        group: Rows of a step, over all processes; rows of similar length stand together in groups of it. 0: at random.
        seed: Of the first epoch.
    """

    def __init__(self, lengths: Sequence[int], *, group: int, seed: int) -> None:
        self.epoch = 0
        self._lengths = list(lengths)
        self._group = group
        self._seed = seed

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self.epoch)
        if not self._group:
            return iter(torch.randperm(len(self), generator=generator).tolist())
        found: list[int] = get_length_grouped_indices(self._lengths, self._group, generator=generator)
        return iter(found)


class _CountEpochs(TrainerCallback):
    """Tells the sampler which epoch begins; accelerate does not reach it in every arrangement of processes."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the epoch's number."""
        self.sampler.epoch = math.floor((state.epoch or 0) + 1e-6)


class CompletionLossTrainer(AsksNoHub, SFTTrainer):
    """`SFTTrainer` for rows with `labels`, as `rows.to_dataset` makes them."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the negative log-likelihood in nats per completion token, over `num_items_in_batch` tokens.

        As `SFTTrainer`'s, which it calls wherever its fused head is the better way: on a GPU, or where the loss is
        more than the likelihood.
        """
        options: Any = self.args
        special = options.loss_type != "nll" or self.label_smoother is not None or self.aux_loss_enabled
        if return_outputs or special or inputs["input_ids"].device.type == "cuda":
            return super().compute_loss(  # type: ignore[no-untyped-call]
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        targets = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
        mask = targets != IGNORED
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, args: (args[0][mask], *args[1:]))
        try:
            # Through the wrapped model, whose forward pass prepares the exchange of gradients.
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).logits
        finally:
            handle.remove()
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[mask], reduction="sum")
        tokens = mask.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(tokens).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The tokens are those of every process, and the exchange takes the mean of the gradients.
            loss = loss * self.accelerator.num_processes
        if model.training:
            self._total_train_tokens += int(self.accelerator.reduce(inputs["attention_mask"].sum(), "sum"))
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """As `SFTTrainer`'s; notes each batch's loss with its tokens."""
        found: tuple[Any, Any, Any] = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        tokens = int((inputs["labels"][:, 1:] != IGNORED).sum())
        self._evaluated += torch.tensor([float(found[0]) * tokens, tokens], dtype=torch.float64)
        return found

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As `SFTTrainer`'s, with the loss as the mean over all completion tokens."""
        self._evaluated = torch.zeros(2, dtype=torch.float64)
        output: Any = super().evaluation_loop(*args, **kwargs)
        device = self.accelerator.device
        sums = self._evaluated.float() if device.type == "mps" else self._evaluated  # MPS knows no float64
        nats, tokens = self.accelerator.reduce(sums.to(device), "sum").tolist()
        prefix = kwargs.get("metric_key_prefix", "eval")
        if tokens and f"{prefix}_loss" in output.metrics:
            output.metrics[f"{prefix}_loss"] = nats / tokens
        return output

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return the order of the rows: see the module's third line."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        if strategy not in ("group_by_length", "random"):
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        sampler = EpochSampler(
            [len(ids) for ids in dataset["input_ids"]],
            group=rows if strategy == "group_by_length" else 0,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        self.add_callback(_CountEpochs(sampler))
        return sampler
