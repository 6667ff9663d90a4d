"""Runs a model with transformers: the paper's own THUDM/BPO, any causal model, and PEFT adapters on one.

Promises: safetensors only, no remote code, no network unless allowed; special tokens inside a message stay text; a
prompt alone and in a batch is put to the model with the same tokens. Left-padded batches, one at a time a process; a
cancelled call ends at the next decoding step. After a fork the child loads its own weights and computes with one
thread where they are on the CPU; a GPU cannot be used there, and says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request, Traits
from bpo_integrations.engines.causal_decode import Job, Rows, decode
from bpo_integrations.engines.causal_lm import CausalModel, Quantization
from bpo_integrations.engines.generation import SharedModels, check_packages, chunks
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

DTYPES = ("float32", "bfloat16", "float16")

LOOKUP_TOKENS = 10
"""Tokens that prompt lookup drafts at a time, on CUDA; transformers' own default."""

_WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def load_transformers(
    rest: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    base: str | None = None,
    allow_download: bool = False,
    quantize: Quantization | None = None,
    prompt_lookup: int | None = None,
    record: Record | None = None,
) -> Rewriter:
    """Return the rewriter of `hf:REST`.

    Args:
        rest: A hub id or a folder: whole weights, or a PEFT adapter (with `adapter_config.json`). Its record is
            `bpo.json` beside the weights, or a built-in one (THUDM/BPO).
        device: As for `TransformersEngine`.
        dtype: As for `TransformersEngine`.
        base: For an adapter, the base to put it on, instead of the one that its configuration names.
        allow_download: Whether the hub may be asked; `BPO_ALLOW_DOWNLOAD=1` does the same.
        quantize: As for `TransformersEngine`.
        prompt_lookup: As for `TransformersEngine`.
        record: How to prompt the model, instead of `bpo.json`: `PAPER_RECORD` for a folder with THUDM/BPO's weights.

    Raises:
        MissingExtraError: torch, transformers, for an adapter peft, or for `quantize` bitsandbytes, is not installed.
        ModelNotFoundError: The weights are not on this machine.
        ModelFormatError: There is no record, or it cannot be used.
        ConfigurationError: An option is out of its range.
    """
    check_packages(["torch", "transformers"], extra="hf")
    allowed = download_allowed(allow_download)
    folder = _folder(rest, allow_download=allowed)
    if record is None:
        record = _record_of(folder, rest)
    weights, adapter = str(folder), None
    if (folder / ADAPTER_CONFIG).is_file():
        check_packages(["peft"], extra="hf")
        adapter = folder
        weights = base or _base_of(folder, allow_download=allowed)
    engine = TransformersEngine(
        weights,
        adapter=adapter,
        device=device,
        dtype=dtype,
        allow_download=allowed,
        name=None if adapter or weights == str(Path(rest).expanduser().resolve()) else rest,
        quantize=quantize,
        prompt_lookup=prompt_lookup,
        card=record in BUILT_IN_RECORDS.values(),
    )
    return Rewriter(engine, record)


def _record_of(folder: Path, rest: str) -> Record:
    """Return the record beside the weights, or the built-in one."""
    if (folder / RECORD_FILE).is_file():
        return Record.read(folder)
    if rest in BUILT_IN_RECORDS:
        return BUILT_IN_RECORDS[rest]
    msg = f"{rest} has no {RECORD_FILE}, so how to prompt it is not known."
    raise ModelFormatError(msg, hint="Export it with bpo-train, put a bpo.json beside the weights, or give record=.")


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
    if named.endswith(".gguf") and Path(named).is_file():
        return str(named)
    return str(_folder(named, allow_download=allow_download))


_MODELS: SharedModels[CausalModel] = SharedModels()


@dataclass(frozen=True, slots=True)
class _Limits:
    """Largest batch in rows and tokens, and its spread of prompt lengths in tokens."""

    rows: int
    tokens: int
    spread: int


_ON_CPU = _Limits(rows=16, tokens=16384, spread=64)
_ON_GPU = _Limits(rows=256, tokens=16384, spread=512)  # of tokens, as many more as its memory holds


class TransformersEngine:
    """An engine for a causal model in transformers.

    A greedy prompt that is alone in its call, and has no gate, is decoded by prompt lookup: transformers drafts tokens
    that follow the last two in the prompt, and the model checks the draft in one step. The text is the same, up to
    rounding.

    Args:
        spec: As for `load_causal_lm`.
        adapter: A folder with a PEFT adapter, merged into the weights (put beside them where these are quantized).
        device: torch's name of the device; None takes CUDA where there is one, else Apple's MPS, else the CPU.
        dtype: float32, bfloat16 or float16; None takes float32 on the CPU, bfloat16 on a GPU that computes in it, and
            float16 elsewhere.
        allow_download: Whether the hub may be asked.
        name: Names the weights in `id`; None takes the adapter's path, or the spec.
        quantize: `4bit` or `8bit` keeps the linear layers so with bitsandbytes, on CUDA only; None does not.
        prompt_lookup: Tokens to draft at a time; 0 never drafts. None drafts 10 on CUDA (not measured yet) and
            none elsewhere: on the CPU, 4 and 10 took 1.01 and 1.09 times as long as none, with the same text (embedded
            rewriter in float32, median over 12 prompts of Vicuna Eval, processor time of one thread).
        card: As for `ChatTokenizer`: put prompts as THUDM/BPO's model card does.

    Raises:
        MissingExtraError: torch or transformers is not installed, or, for `quantize`, bitsandbytes.
        ConfigurationError: An option is out of its range, or there is no CUDA device to quantize for.

    Example:
        >>> TransformersEngine("embedded").id  # doctest: +SKIP
        'hf:embedded:auto:auto'
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
        quantize: Quantization | None = None,
        prompt_lookup: int | None = None,
        card: bool = False,
    ) -> None:
        check_packages(["torch", "transformers"], extra="hf")
        if dtype is not None and dtype not in DTYPES:
            msg = f"Unknown dtype {dtype!r}."
            raise ConfigurationError(msg, hint=f"Use one of {', '.join(DTYPES)}.")
        if prompt_lookup is not None and prompt_lookup < 0:
            msg = f"prompt_lookup is {prompt_lookup}; it must be 0 (never) or more."
            raise ConfigurationError(msg, hint="Leave it out to let the device decide.")
        if quantize is not None:
            _check_quantize(quantize, device)
        self._spec = spec
        self._adapter = adapter
        self._device = device
        self._dtype = dtype
        self._allow_download = allow_download
        self._name = name or str(adapter or spec)
        self._quantize = quantize
        self._lookup = prompt_lookup
        self._card = card
        self._model: CausalModel | None = None
        self._closed = False

    @property
    def traits(self) -> Traits:
        """What this engine guarantees; a fork is known to work once the device is known to be the CPU."""
        return Traits(
            literal=True,
            repeats=True,
            gate=True,
            stops=True,
            forks="works" if self._device_kind == "cpu" else "refused",
            coalesce=True,
        )

    @property
    def batch_rows(self) -> int:
        """Rows that it decodes at once with the best yield."""
        return (_ON_GPU if self._device_kind == "cuda" else _ON_CPU).rows

    @property
    def _device_kind(self) -> str | None:
        """The kind of device, where it was given or the weights are loaded: finding out would import torch."""
        if self._device is not None:
            return self._device.partition(":")[0]
        model = self._model  # once: another thread may close the engine
        return None if model is None else str(model.model.device.type)

    @property
    def id(self) -> str:
        """Names the weights and the way they run."""
        kept = f":{self._quantize}" if self._quantize else ""
        if self._adapter is not None or self._card:  # the same adapter on another base is another model
            which = (self._spec, str(self._adapter), self._card)
            kept += f":{zlib.crc32(repr(which).encode()):08x}"
        return f"hf:{self._name}:{self._device or 'auto'}:{self._dtype or 'auto'}{kept}"

    def _loaded(self) -> CausalModel:
        model = self._model
        if model is None or model.pid != os.getpid():
            if not self._closed:
                model = self._model = self._share()
            if self._closed or model is None:  # perhaps by another thread, meanwhile
                self._model = None
                msg = f"The engine {self.id} is closed."
                raise EngineClosedError(msg, hint="Make a new one.")
        return model

    def _share(self) -> CausalModel:
        """Return the weights, which all engines of the same spec and settings share."""
        device = self._device or best_device()
        dtype = self._dtype or best_dtype(device)
        if _MODELS.forked:
            _survive_fork(device)

        def load() -> CausalModel:
            try:
                return CausalModel(
                    self._spec,
                    self._adapter,
                    device,
                    dtype,
                    allow_download=self._allow_download,
                    quantize=self._quantize,
                    card=self._card,
                )
            # No such device (torch asserts where it was built without), or not enough memory on it.
            except (RuntimeError, MemoryError, AssertionError) as error:
                msg = f"The model {self._name} cannot be loaded on {device}: {error}"
                raise EngineError(
                    msg, hint="Free memory there, or choose another device=, dtype= or quantize=."
                ) from error

        return _MODELS.get((self._spec, str(self._adapter), device, dtype, self._quantize, self._card), load)

    def close(self) -> None:
        """Let go of the weights; they are freed when no engine and no running call holds them."""
        self._closed = True
        self._model = None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without any template."""
        model = self._loaded()
        return [len(model.encode(text)) for text in texts]

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """Return `decoding.n` candidates for each request, in order; with the gate of the `Engine` protocol.

        `Candidate.logprob` is reported where `decoding.n` > 1, since nothing is chosen by it elsewhere.

        Raises:
            PromptTooLongError: A request does not fit into the model's context.
            EngineClosedError: The engine was closed.
            EngineError: Generation failed.
        """
        return self.generate_rows(requests, decoding, lambda index: False)

    async def agenerate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[Candidate]]:
        """As `generate`, in a worker thread. When the task is cancelled, the work stops at the next decoding step."""
        cancelled = threading.Event()
        try:
            return await asyncio.to_thread(self.generate_rows, requests, decoding, lambda index: cancelled.is_set())
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def generate_rows(
        self, requests: Sequence[Request], decoding: Decoding, stopped: Callable[[int], bool]
    ) -> list[list[Candidate]]:
        """As `generate`; row `i` ends at the next decoding step once `stopped(i)`.

        Raises:
            EngineError: As `generate`.
        """
        if not requests:
            return []
        import torch

        model = self._loaded()
        jobs = [_job(model, index, request) for index, request in enumerate(requests)]
        limits = _limits(model)
        groups = chunks(
            jobs,
            lambda job: len(job.ids),
            rows=max(1, limits.rows // decoding.n),
            tokens=limits.tokens // decoding.n,
            spread=limits.spread,
            cost=lambda job: len(job.ids) + job.longest,
        )
        lookup = self._lookup if self._lookup is not None else _lookup_tokens(model)
        found: Rows = {}
        # One lock for weights and random state: a seeded call must not be disturbed by another thread's draws.
        with model.lock, torch.inference_mode(), torch.random.fork_rng(enabled=decoding.seed is not None):
            if decoding.seed is not None:
                torch.manual_seed(decoding.seed)
            for group in groups:
                waiting = [job for job in group if not stopped(job.index)]
                if not waiting:
                    continue
                try:
                    found |= decode(model, waiting, decoding, stopped, lookup=lookup)
                except (RuntimeError, MemoryError) as error:
                    msg = f"transformers failed: {error}"
                    raise EngineError(msg, hint="Try again with fewer or shorter prompts.") from error
        return [found.get(index, []) for index in range(len(requests))]


def _job(model: CausalModel, index: int, request: Request) -> Job:
    """Render a request and settle its bounds within the model's context."""
    ids = model.render(request.messages)
    if len(ids) >= model.context:
        msg = f"The messages are {len(ids)} tokens long; the model's context is {model.context}."
        raise PromptTooLongError(msg, hint="Shorten them.")
    return Job.of(index, request, ids, model.context)


def _lookup_tokens(model: CausalModel) -> int:
    return LOOKUP_TOKENS if model.model.device.type == "cuda" else 0


def best_device() -> str:
    """Return torch's name of the device to compute on: CUDA, else Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def best_dtype(device: str) -> str:
    """Return torch's name of the type to compute in: float32 on the CPU, which is slow or inexact in the others."""
    import torch

    kind = torch.device(device).type
    if kind == "cpu":
        return "float32"
    computes = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if computes else "float16"


def _check_quantize(quantize: Quantization, device: str | None) -> None:
    """Refuse what bitsandbytes cannot do."""
    if quantize not in get_args(Quantization):
        msg = f"Unknown quantize {quantize!r}."
        raise ConfigurationError(msg, hint=f"Use one of {', '.join(get_args(Quantization))}, or None.")
    kind = (device or best_device()).partition(":")[0]
    if kind != "cuda":
        msg = f"quantize={quantize!r} needs a CUDA device; this is {kind!r}."
        raise ConfigurationError(msg, hint="Leave out quantize=; on the CPU, 'ct2:' runs a model in 8 bits.")
    check_packages(["bitsandbytes"], extra="quantize")


def _survive_fork(device: str) -> None:
    """Make torch usable in a process that was forked after its parent had used it, or say that it cannot be."""
    import torch

    if torch.device(device).type != "cpu":
        msg = f"The model was used on {device} before this process was forked, and a GPU does not survive a fork."
        hint = "Load it after the fork, or start processes by spawn (multiprocessing.set_start_method)."
        raise EngineClosedError(msg, hint=hint)
    # OpenMP's threads do not come through a fork: with more than one the child would wait for them forever.
    torch.set_num_threads(1)


def _limits(model: CausalModel) -> _Limits:
    """Return how much is decoded at once: on a GPU what half of its free memory can hold of keys and values."""
    import torch

    device = model.model.device
    if device.type != "cuda":
        return _ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return replace(_ON_GPU, tokens=max(_ON_GPU.tokens, free // 2 // _bytes_per_token(model.model)))


def _bytes_per_token(model: Any) -> int:
    """Return the size of one token's keys and values."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)
