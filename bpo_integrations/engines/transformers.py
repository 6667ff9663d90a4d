"""Runs a model with transformers: the paper's own THUDM/BPO, any causal model, and PEFT adapters on one.

Promises: safetensors only, no remote code, no network unless allowed; special tokens inside a message stay text; a
prompt alone and in a batch is put to the model with the same tokens. Left-padded batches, one at a time a process.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.engines.causal_lm import CausalModel
from bpo_integrations.engines.generation import SharedModels, banned_variants, check_packages, chunks, cut_at
from bpo_integrations.errors import (
    ConfigurationError,
    EngineClosedError,
    EngineError,
    ModelFormatError,
    ModelNotFoundError,
    PromptTooLongError,
)
from bpo_integrations.models.adapter import ADAPTER_CONFIG
from bpo_integrations.models.base import BASE_ID, download_allowed, find_base
from bpo_integrations.result import Candidate
from bpo_integrations.rewriter import BUILT_IN_RECORDS, RECORD_FILE, Record, Rewriter

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")

_ROWS, _TOKENS, _SPREAD = 16, 16384, 64
"""Largest batch, and its spread of prompt lengths in tokens."""

_WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def load_transformers(
    rest: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    base: str | None = None,
    allow_download: bool = False,
) -> Rewriter:
    """Return the rewriter of `hf:REST`.

    Args:
        rest: A hub id or a folder: whole weights, or a PEFT adapter (with `adapter_config.json`). Its record is
            `bpo.json` beside the weights, or a built-in one (THUDM/BPO).
        device: torch's name of the device; None takes CUDA where there is one, else the CPU.
        dtype: float32, bfloat16 or float16; None takes float32 on the CPU and bfloat16 elsewhere.
        base: For an adapter, the base to put it on, instead of the one that its configuration names.
        allow_download: Whether the hub may be asked; `BPO_ALLOW_DOWNLOAD=1` does the same.

    Raises:
        MissingExtraError: torch, transformers, or for an adapter peft, is not installed.
        ModelNotFoundError: The weights are not on this machine.
        ModelFormatError: There is no record, or it cannot be used.
        ConfigurationError: An option is out of its range.
    """
    check_packages(["torch", "transformers"], extra="hf")
    allowed = download_allowed(allow_download)
    folder = _folder(rest, allow_download=allowed)
    if (folder / RECORD_FILE).is_file():
        record = Record.read(folder)
    elif rest in BUILT_IN_RECORDS:
        record = BUILT_IN_RECORDS[rest]
    else:
        msg = f"{rest} has no {RECORD_FILE}, so how to prompt it is not known."
        raise ModelFormatError(msg, hint="Export it with bpo-train, or put a bpo.json beside the weights.")
    weights, adapter = str(folder), None
    if (folder / ADAPTER_CONFIG).is_file():
        check_packages(["peft"], extra="hf")
        adapter = folder
        weights = base or _base_of(folder, allow_download=allowed)
    engine = TransformersEngine(
        weights, adapter=adapter, device=device, dtype=dtype, allow_download=allowed, name=rest if not adapter else None
    )
    return Rewriter(engine, record)


def _folder(rest: str, *, allow_download: bool) -> Path:
    """Return the folder of a spec: itself, or the hub's snapshot of it."""
    folder = Path(rest).expanduser()
    if folder.is_dir():
        return folder.resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(rest, allow_patterns=_WANTED_FILES, local_files_only=not allow_download))
    # No snapshot, no network, no such repository, not an id at all: the client has an error of its own for each.
    except Exception as error:
        msg = f"{rest} is neither a folder nor in the hub's cache on this machine."
        hint = "Check the spelling; or allow the download with BPO_ALLOW_DOWNLOAD=1."
        raise ModelNotFoundError(msg, hint=hint) from error


def _base_of(adapter: Path, *, allow_download: bool) -> str:
    """Return the spec of the base that an adapter was trained on; the embedded base is found without any hub."""
    try:
        named = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        msg = f"{adapter / ADAPTER_CONFIG} cannot be used: {error}."
        raise ModelFormatError(msg, hint="Export the adapter again.") from error
    if not named and (adapter / RECORD_FILE).is_file():
        named = Record.read(adapter).base
    if not named:
        msg = f"{adapter} does not name its base."
        raise ConfigurationError(msg, hint="Give base=, a hub id or a folder.")
    if named == BASE_ID:
        try:
            find_base()
        except ModelNotFoundError:
            if not allow_download:
                raise
            return BASE_ID
        return "embedded"
    return str(_folder(named, allow_download=allow_download))


_MODELS: SharedModels[CausalModel] = SharedModels()


class TransformersEngine:
    """An engine for a causal model in transformers.

    Args:
        spec: As for `load_causal_lm`.
        adapter: A folder with a PEFT adapter, merged into the weights.
        device: torch's name of the device; None takes CUDA where there is one, else the CPU.
        dtype: float32, bfloat16 or float16; None takes float32 on the CPU and bfloat16 elsewhere.
        allow_download: Whether the hub may be asked.
        name: Names the weights in `id`; None takes the adapter's path, or the spec.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ConfigurationError: An option is out of its range.

    Example:
        >>> TransformersEngine("embedded").id  # doctest: +SKIP
        'hf:embedded:cpu:float32'
    """

    def __init__(
        self,
        spec: str,
        *,
        adapter: Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        allow_download: bool = False,
        name: str | None = None,
    ) -> None:
        check_packages(["torch", "transformers"], extra="hf")
        if dtype is not None and dtype not in DTYPES:
            msg = f"Unknown dtype {dtype!r}."
            raise ConfigurationError(msg, hint=f"Use one of {', '.join(DTYPES)}.")
        self._spec = spec
        self._adapter = adapter
        self._device = device
        self._dtype = dtype
        self._allow_download = allow_download
        self._name = name or str(adapter or spec)
        self._model: CausalModel | None = None
        self._closed = False

    @property
    def id(self) -> str:
        """Names the weights and the way they run."""
        return f"hf:{self._name}:{self._device or 'auto'}:{self._dtype or 'auto'}"

    def _load(self) -> CausalModel:
        import torch

        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = self._dtype or ("float32" if device == "cpu" else "bfloat16")
        return CausalModel(self._spec, self._adapter, device, dtype, allow_download=self._allow_download)

    def _loaded(self) -> CausalModel:
        if self._closed:
            msg = f"The engine {self.id} is closed."
            raise EngineClosedError(msg, hint="Make a new one.")
        if self._model is None:
            key = (self._spec, str(self._adapter), self._device, self._dtype)
            self._model = _MODELS.get(key, self._load)
        return self._model

    def close(self) -> None:
        """Let go of the weights; they are freed when no engine holds them."""
        self._closed = True
        self._model = None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without any template."""
        model = self._loaded()
        return [len(model.encode(text)) for text in texts]

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As `generate`, in a worker thread."""
        return await asyncio.to_thread(self.generate, requests, decoding)

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """Return `decoding.n` candidates for each request, in order; with the gate of the `Engine` protocol.

        Raises:
            PromptTooLongError: A request does not fit into the model's context.
            EngineClosedError: The engine was closed.
            EngineError: Generation failed.
        """
        import torch

        model = self._loaded()
        found: list[list[Candidate]] = [[] for _ in requests]
        jobs = [(index, request, model.render(request.messages)) for index, request in enumerate(requests)]
        for _, _, ids in jobs:
            if len(ids) >= model.context:
                msg = f"The messages are {len(ids)} tokens long; the model's context is {model.context}."
                raise PromptTooLongError(msg, hint="Shorten them.")
        alike: dict[int, list[tuple[int, Request, list[int]]]] = {}
        for job in jobs:
            alike.setdefault(job[1].min_new_tokens, []).append(job)
        # One lock for weights and random state: a seeded call must not be disturbed by another thread's draws.
        with model.lock, torch.inference_mode(), torch.random.fork_rng(enabled=decoding.seed is not None):
            if decoding.seed is not None:
                torch.manual_seed(decoding.seed)
            for part in alike.values():
                for group in chunks(
                    part,
                    lambda job: len(job[2]),
                    rows=_ROWS,
                    tokens=_TOKENS // decoding.n,
                    spread=_SPREAD,
                    cost=lambda job: len(job[2]) + job[1].max_new_tokens,
                ):
                    try:
                        _decode(model, group, decoding, found)
                    except (RuntimeError, MemoryError) as error:
                        msg = f"transformers failed: {error}"
                        raise EngineError(msg, hint="Try again with fewer or shorter prompts.") from error
        return found


def _decode(
    model: CausalModel,
    group: Sequence[tuple[int, Request, list[int]]],
    decoding: Decoding,
    found: list[list[Candidate]],
) -> None:
    """Decode one left-padded batch and put the candidates where they belong."""
    gate: dict[int, float] = {}
    if decoding.empty_threshold is not None:
        ids, mask = _pad(model, [job[2] for job in group])
        logits = model.model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
        for job, p_empty in zip(group, logits.float().softmax(-1)[:, model.end].tolist(), strict=True):
            gate[job[0]] = p_empty
            if p_empty >= decoding.empty_threshold:
                found[job[0]] = [Candidate("", p_empty=p_empty)]
        group = [job for job in group if not found[job[0]]]
        if not group:
            return
    ids, mask = _pad(model, [job[2] for job in group])
    width = ids.shape[1]
    longest = min(max(request.max_new_tokens for _, request, _ in group), model.context - width)
    shortest = min(max(group[0][1].min_new_tokens, 1 if gate else 0), longest)
    output = model.model.generate(
        ids, attention_mask=mask, **_options(model, decoding, longest=longest, shortest=shortest, width=width)
    )
    rows = output[:, width:].tolist()
    cuts = (*decoding.stop, *decoding.banned)
    for place, (index, request, _) in enumerate(group):
        for row in rows[place * decoding.n : (place + 1) * decoding.n]:
            end = next((at for at, token in enumerate(row) if token in model.ends), None)
            made = row[:end][: request.max_new_tokens]
            ended = end is not None and end < request.max_new_tokens
            text, cut = cut_at(model.tokenizer.decode(made, skip_special_tokens=True), cuts)
            reason = "stop" if ended or cut else "length"
            found[index].append(
                Candidate(text, len(made), finish_reason=reason, p_empty=gate.get(index))  # type: ignore[arg-type]
            )


def _options(model: CausalModel, decoding: Decoding, *, longest: int, shortest: int, width: int) -> dict[str, Any]:
    """Put a decoding into `generate`'s words; the prompts are `width` tokens wide."""
    options: dict[str, Any] = {
        "max_new_tokens": longest,
        "min_new_tokens": shortest,
        "do_sample": not decoding.greedy,
        "num_return_sequences": decoding.n,
        "eos_token_id": model.ends,
        "pad_token_id": model.end,
        "suppress_tokens": sorted(model.control.keys() - set(model.ends)) or None,
    }
    if not decoding.greedy:
        options |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    if decoding.repetition_penalty is not None and decoding.repetition_penalty > 1:
        from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

        penalty = RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty, prompt_ignore_length=width)
        options["logits_processor"] = LogitsProcessorList([penalty])
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
