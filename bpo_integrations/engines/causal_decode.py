"""One decoding call on a model of transformers: a left-padded batch in, candidates out. For `transformers.py`.

Promises: each row keeps its own bounds; a row that is given up ends at the next step, and the call with its last row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.engines.causal_lm import CausalModel
from bpo_integrations.engines.generation import banned_variants, cut_at
from bpo_integrations.result import Candidate

if TYPE_CHECKING:
    import torch

Rows = dict[int, list[Candidate]]
"""Candidates by the place of their request."""


@dataclass(frozen=True, slots=True)
class Job:
    """One request on its way: its place, its bounds in tokens, and the prompt's tokens."""

    index: int
    ids: tuple[int, ...]
    longest: int
    shortest: int

    @classmethod
    def of(cls, index: int, request: Request, ids: Sequence[int], context: int) -> Job:
        """Settle the bounds of a request within the model's context."""
        longest = min(request.max_new_tokens, context - len(ids))
        return cls(index, tuple(ids), longest, min(request.min_new_tokens, longest))


def decode(
    model: CausalModel,
    jobs: Sequence[Job],
    decoding: Decoding,
    stopped: Callable[[int], bool],
    *,
    lookup: int = 0,
) -> Rows:
    """Decode one batch; the caller holds the model's lock and has set the seed.

    Args:
        model: The model.
        jobs: What is decoded together.
        decoding: How candidates are drawn.
        stopped: Whether the request of an index was given up; asked at each step.
        lookup: Tokens to draft from the prompt at a time (0: none), where the batch is one greedy candidate without a
            gate.
    """
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, StoppingCriteriaList

    found: Rows = {}
    chances: dict[int, float] = {}
    if decoding.empty_threshold is not None:
        chances = _chances_of_nothing(model, jobs)
        found = {
            index: [Candidate("", p_empty=chance)]
            for index, chance in chances.items()
            if chance >= decoding.empty_threshold
        }
    jobs = [job for job in jobs if job.index not in found and not stopped(job.index)]
    if not jobs:
        return found
    ids, mask = _pad(model, [job.ids for job in jobs])
    rows = [job for job in jobs for _ in range(decoding.n)]
    bounds = _Bounds(ids.shape[1], rows, stopped)
    score = _Score() if decoding.n > 1 else None
    processors: list[Any] = [_Minimum(ids.shape[1], rows, model.ends, gated=bool(chances))]
    if decoding.repetition_penalty is not None and decoding.repetition_penalty > 1:
        penalty = RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty, prompt_ignore_length=ids.shape[1])
        processors.append(penalty)
    if score:
        processors.append(score)
    drafts = len(jobs) == 1 and decoding.greedy and not chances and not decoding.stop
    output = model.model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max(job.longest for job in jobs),
        stopping_criteria=StoppingCriteriaList([bounds]),
        logits_processor=LogitsProcessorList(processors),
        prompt_lookup_num_tokens=(lookup or None) if drafts else None,
        **_options(model, decoding),
    )[:, ids.shape[1] :]
    scores = score.means(output, rows, model.ends) if score else [None] * len(rows)
    for job, row, logprob in zip(rows, output.tolist(), scores, strict=True):
        found.setdefault(job.index, []).append(
            _candidate(model, job, row, decoding, logprob=logprob, p_empty=chances.get(job.index))
        )
    return found


def _chances_of_nothing(model: CausalModel, jobs: Sequence[Job]) -> dict[int, float]:
    """Return by index the probability that the model ends its answer at once."""
    ids, mask = _pad(model, [job.ids for job in jobs])
    logits = model.model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
    chances = logits.float().softmax(-1)[:, model.end].tolist()
    return {job.index: chance for job, chance in zip(jobs, chances, strict=True)}


def _candidate(
    model: CausalModel,
    job: Job,
    row: Sequence[int],
    decoding: Decoding,
    *,
    logprob: float | None,
    p_empty: float | None,
) -> Candidate:
    """Turn one row of the output into a candidate."""
    end = next((at for at, token in enumerate(row) if token in model.ends), len(row))
    made = row[: min(end, job.longest)]
    text, cut = cut_at(model.tokenizer.decode(made, skip_special_tokens=True), (*decoding.stop, *decoding.banned))
    ended = cut or (end < len(row) and end < job.longest)
    return Candidate(text, len(made), logprob=logprob, finish_reason="stop" if ended else "length", p_empty=p_empty)


def _options(model: CausalModel, decoding: Decoding) -> dict[str, Any]:
    """Put a decoding into `generate`'s words."""
    options: dict[str, Any] = {
        "do_sample": not decoding.greedy,
        "num_return_sequences": decoding.n,
        "eos_token_id": model.ends,
        "pad_token_id": model.end,
        "suppress_tokens": sorted(model.control.keys() - set(model.ends)) or None,
    }
    if not decoding.greedy:
        options |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    if decoding.stop:
        options |= {"stop_strings": list(decoding.stop), "tokenizer": model.tokenizer}
    if decoding.banned:
        options["bad_words_ids"] = [model.encode(text) for text in banned_variants(decoding.banned)]
    return options


def _pad(model: CausalModel, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, padded on the left, on the model's device."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), model.end, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(model.model.device), mask.to(model.model.device)


class _Bounds:
    """A stopping criterion: each row ends at its own length, or when it is given up."""

    def __init__(self, width: int, rows: Sequence[Job], stopped: Callable[[int], bool]) -> None:
        self._width = width
        self._rows = rows
        self._stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        import torch

        made = input_ids.shape[1] - self._width
        given_up = {index for index in {job.index for job in self._rows} if self._stopped(index)}
        done = [made >= job.longest or job.index in given_up for job in self._rows]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class _Minimum:
    """A logits processor: no row ends before its own lower bound; with the gate open, none is empty."""

    def __init__(self, width: int, rows: Sequence[Job], ends: Sequence[int], *, gated: bool) -> None:
        self._width = width
        self._shortest = [min(max(job.shortest, int(gated)), job.longest) for job in rows]
        self._ends = list(ends)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        made = input_ids.shape[1] - self._width
        early = [row for row, shortest in enumerate(self._shortest) if made < shortest]
        if not early:
            return scores
        scores = scores.clone()  # prompt lookup asks about several steps with the same scores
        ends = torch.tensor(self._ends, device=scores.device)
        scores[torch.tensor(early, device=scores.device)[:, None], ends] = -torch.inf
        return scores


class _Score:
    """A logits processor that changes nothing: it sums up the log-probabilities of the tokens that are taken.

    They are the model's own, before temperature and nucleus; what must not be generated does not count.
    """

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None
        self._taken: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._take(input_ids[:, -1:])
        self._last = scores.log_softmax(-1)
        return scores

    def _take(self, tokens: torch.Tensor) -> None:
        if self._last is not None:
            self._taken.append(self._last.gather(1, tokens).squeeze(1))

    def means(self, output: torch.Tensor, rows: Sequence[Job], ends: Sequence[int]) -> list[float]:
        """Return each row's mean over its tokens; what ends it counts only where it is all there is."""
        import torch

        self._take(output[:, -1:])
        ended = torch.isin(output, torch.tensor(list(ends), device=output.device)).cumsum(1) > 0
        beyond = torch.arange(output.shape[1]) >= torch.tensor([job.longest for job in rows])[:, None]
        counted = ~(ended | beyond.to(output.device))
        counted[:, 0] = True
        taken = torch.stack(self._taken, dim=1).masked_fill(~counted, 0.0)
        found: list[float] = (taken.sum(1) / counted.sum(1)).tolist()
        return found
