"""From requests and a decoding to vLLM's sampling parameters, and from its outputs to candidates.

Every candidate is a request of its own, so that it does not depend on the others; vLLM's prefix cache computes their
common prompt once. The gate is a request for one token more, whose prompt the cache then holds as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.engines.generation import cut_at
from bpo_integrations.engines.vllm_runtime import Job
from bpo_integrations.errors import EngineError
from bpo_integrations.result import Candidate

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.lora.request import LoRARequest

PENALTY_KEY = "bpo_repetition_penalty"
"""Where a request carries its penalty on repetition: in `SamplingParams.extra_args`."""


@dataclass(slots=True)
class Plan:
    """The work for one call.

    Args:
        requests: What was asked.
        prompts: Their token ids.
        decoding: How to draw.
        context: Most tokens of a prompt and its candidate together.
        end: The token whose probability at the first step is P(nothing).
        control: The tokens that end a candidate.
        lora: The adapter to put on, or None.
        gated: Whether the gate is asked for.
    """

    requests: Sequence[Request]
    prompts: Sequence[list[int]]
    decoding: Decoding
    context: int
    end: int
    control: list[int]
    lora: LoRARequest | None = None
    gated: bool = False

    def probes(self) -> list[Job]:
        """Return the jobs that tell P(nothing): one a request, or none where the gate is not asked for."""
        options = {"temperature": 0.0, "max_tokens": 1, "logprob_token_ids": [self.end], "detokenize": False}
        return [Job(ids, sampling_params(options), self.lora) for ids in self.prompts] if self.gated else []

    def gate(self, outputs: Sequence[RequestOutput]) -> list[float | None]:
        """Return P(nothing) of each request, from the outputs of `probes`; None where the gate is not asked for."""
        if not self.gated:
            return [None] * len(self.requests)
        return [math.exp(output.outputs[0].logprobs[0][self.end].logprob) for output in outputs]

    def closed(self, p_empty: float | None) -> bool:
        """Whether nothing is added at this probability."""
        threshold = self.decoding.empty_threshold
        return p_empty is not None and threshold is not None and p_empty >= threshold

    def jobs(self, gate: Sequence[float | None]) -> list[Job]:
        """Return one job for each candidate of the requests that the gate leaves open."""
        found = []
        for request, ids, p_empty in zip(self.requests, self.prompts, gate, strict=True):
            if not self.closed(p_empty):
                options = self._options(request, len(ids), nonempty=p_empty is not None)
                found += [Job(ids, sampling_params(options | {"seed": seed}), self.lora) for seed in self._seeds()]
        return found

    def _seeds(self) -> list[int | None]:
        seed = self.decoding.seed
        return [None if seed is None else seed + number for number in range(self.decoding.n)]

    def _options(self, request: Request, length: int, *, nonempty: bool) -> dict[str, Any]:
        """Put a decoding into vLLM's words, for a prompt of `length` tokens."""
        decoding = self.decoding
        longest = min(request.max_new_tokens, self.context - length)
        penalty = decoding.repetition_penalty or 1.0
        return {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": longest,
            "min_tokens": min(max(request.min_new_tokens, int(nonempty)), longest),
            "stop": list(decoding.stop),
            "stop_token_ids": self.control,
            "bad_words": list(decoding.banned),
            "logprobs": 0 if decoding.n > 1 else None,  # 0: of the sampled token alone
            "extra_args": {PENALTY_KEY: penalty} if penalty > 1 else None,
        }

    def candidates(self, gate: Sequence[float | None], outputs: Sequence[RequestOutput]) -> list[list[Candidate]]:
        """Put the outputs of `jobs` in the requests' order."""
        made = iter(outputs)
        return [
            [Candidate("", p_empty=p_empty)]
            if self.closed(p_empty)
            else [self._candidate(output, p_empty) for output in islice(made, self.decoding.n)]
            for p_empty in gate
        ]

    def _candidate(self, output: RequestOutput, p_empty: float | None) -> Candidate:
        """Turn the output of one job into a candidate."""
        made = output.outputs[0]
        if made.finish_reason not in ("stop", "length"):
            msg = f"vLLM ended a request with {made.finish_reason!r}."
            raise EngineError(msg, hint="Try again.")
        ended = made.finish_reason == "stop"
        by_token = ended and not isinstance(made.stop_reason, str)
        text, cut = cut_at(made.text, (*self.decoding.stop, *self.decoding.banned))
        total: float | None = made.cumulative_logprob
        return Candidate(
            text=text,
            tokens=len(made.token_ids) - by_token,
            logprob=None if total is None else total / max(1, len(made.token_ids)),
            finish_reason="stop" if ended or cut else "length",
            p_empty=p_empty,
        )


def sampling_params(options: dict[str, Any]) -> Any:
    """Return vLLM's parameters for one sequence that is told when it is done."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(**options, n=1, output_kind=RequestOutputKind.FINAL_ONLY)
