"""Loads a rewriter that runs in vLLM: from a spec, an adapter, or around an engine that the user has built.

Promises: nothing is loaded here, and what cannot work is refused here; safetensors only, no remote code, no network
unless allowed. How it runs is told in `vllm_engine.py`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bpo_integrations.engines.causal_lm import load_causal_lm
from bpo_integrations.engines.generation import check_packages
from bpo_integrations.engines.transformers import _base_of, _folder, _record_of
from bpo_integrations.engines.vllm_engine import PENALTY, VLLMEngine
from bpo_integrations.errors import ConfigurationError, ModelFormatError
from bpo_integrations.models.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from bpo_integrations.models.base import download_allowed, find_base
from bpo_integrations.models.embedded import model_key
from bpo_integrations.models.store import cache_root, stored
from bpo_integrations.rewriter import BUILT_IN_RECORDS, Record, Rewriter

NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
"""What `speculation="ngram"` means to vLLM: four tokens are guessed where two to four have occurred before."""

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM takes (`vllm.config.lora.MaxLoRARanks` of 0.32)."""


def load_vllm(
    model: str | object,
    *,
    record: Record | None = None,
    adapter: str | os.PathLike[str] | None = None,
    base: str | None = None,
    dtype: str | None = None,
    tensor_parallel_size: int | None = None,
    quantization: str | None = None,
    max_model_len: int | None = None,
    gpu_memory_utilization: float | None = None,
    speculation: Literal["ngram"] | Mapping[str, Any] | None = None,
    allow_download: bool = False,
    **engine_args: Any,
) -> Rewriter:
    """Return the rewriter of `vllm:MODEL`, or one around an engine of vLLM that is built already.

    Args:
        model: A hub id or a folder: whole weights in safetensors, or a LoRA adapter (with `adapter_config.json`). Or a
            `vllm.LLM` or `AsyncLLM`: it stays the caller's to close, and takes none of the options below `adapter`.
        record: What the rewriter can do; None reads `bpo.json` beside the weights, or takes a built-in one (THUDM/BPO).
        adapter: With a built engine that has LoRA enabled, a folder with the adapter to put on each request.
        base: For an adapter, the base to put it on, instead of the one that its configuration names.
        dtype: vLLM's name of the weights' type; None takes that of the checkpoint.
        tensor_parallel_size: Over how many GPUs each layer is spread; None is 1.
        quantization: vLLM's name of a method (`fp8`, `bitsandbytes`); None reads it from the checkpoint.
        max_model_len: Most tokens of a prompt and its candidate together; None takes the model's context. Smaller is
            cheaper: a rewriter needs few.
        gpu_memory_utilization: Share of each GPU's memory that vLLM takes; None takes vLLM's own.
        speculation: `ngram` looks for what comes next in the prompt, which a rewrite repeats; or a `speculative_config`
            of vLLM; None is none. Not for a record with a gate or a penalty on repetition.
        allow_download: Whether the hub may be asked; `BPO_ALLOW_DOWNLOAD=1` does the same.
        engine_args: Anything else that `vllm.LLM` takes, for example `enforce_eager=True`.

    Raises:
        MissingExtraError: vllm is not installed.
        ModelNotFoundError: The weights are not on this machine.
        ModelFormatError: There is no record, or it cannot be used.
        ConfigurationError: Options contradict each other or the record.

    Example:
        >>> load_vllm("exported", dtype="bfloat16", max_model_len=2048)  # doctest: +SKIP
    """
    check_packages(["vllm"], extra="vllm")
    named = {
        "dtype": dtype,
        "tensor_parallel_size": tensor_parallel_size,
        "quantization": quantization,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory_utilization,
    }
    args = engine_args | {name: value for name, value in named.items() if value is not None}
    if not isinstance(model, str):
        if args or base or speculation:
            msg = "An engine that is built already takes no options of loading."
            raise ConfigurationError(msg, hint="Give them to the engine, or give load_rewriter a spec: 'vllm:MODEL'.")
        engine = VLLMEngine(model, adapter=None if adapter is None else Path(adapter).expanduser().resolve())
        record = record or _record_beside(engine)
    else:
        if args.get("trust_remote_code"):
            msg = "Code that comes with a model is not run."
            raise ConfigurationError(msg, hint="Leave out trust_remote_code.")
        allowed = download_allowed(allow_download)
        folder = _folder(model, allow_download=allowed)
        record = record or _record_of(folder, model)
        lora = folder if (folder / ADAPTER_CONFIG).is_file() else None
        args = _engine_args(record, args, speculation, lora)
        weights = base or _base_of(folder, allow_download=allowed) if lora else str(folder)
        if weights != "embedded":
            weights = str(_folder(weights, allow_download=allowed))
        engine = VLLMEngine(
            weights,
            adapter=lora,
            engine_args=args,
            card=record in BUILT_IN_RECORDS.values(),
            name=model,
            prepare=_embedded_base if weights == "embedded" else None,
        )
    _check(record, engine)
    return Rewriter(engine, record)


def _engine_args(
    record: Record, args: dict[str, Any], speculation: Literal["ngram"] | Mapping[str, Any] | None, lora: Path | None
) -> dict[str, Any]:
    """Put the options into `vllm.LLM`'s words."""
    found: dict[str, Any] = {"enable_prefix_caching": True} | args
    if "quantization" not in args:
        found.setdefault("load_format", "safetensors")  # "auto" would fall back to pickled weights
    penalized = record.repetition_penalty > 1
    if speculation is not None:
        found["speculative_config"] = dict(NGRAM if speculation == "ngram" else speculation)
    if penalized:
        found["logits_processors"] = [*found.get("logits_processors", ()), PENALTY]
        if importlib.util.find_spec("triton") and os.environ.get("VLLM_USE_V2_MODEL_RUNNER") != "0":
            msg = f"{record.name} needs a penalty on repetition, which works with vLLM's first model runner only."
            raise ConfigurationError(msg, hint="Set VLLM_USE_V2_MODEL_RUNNER=0 in the environment.")
    if lora is not None:
        found = {"enable_lora": True, "max_lora_rank": _rank(lora)} | found
    return found


def _rank(adapter: Path) -> int:
    """Return the smallest rank of vLLM's that has room for the adapter, which must be one that vLLM can put on."""
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        msg = f"{adapter} holds no {ADAPTER_WEIGHTS}."
        raise ModelFormatError(msg, hint="Export the adapter again, as safetensors.")
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    rank = next((rank for rank in _LORA_RANKS if rank >= config.get("r", 0)), None)
    if rank is None:
        msg = f"The adapter's rank {config['r']} is more than vLLM takes ({_LORA_RANKS[-1]})."
        raise ModelFormatError(msg, hint="Merge the adapter into its base first.")
    return rank


def _check(record: Record, engine: VLLMEngine) -> None:
    """Make sure that the engine can do what the record needs."""
    if record.mode == "augment" and record.empty_threshold is not None and not engine.traits.gate:
        msg = f"{record.name} decides by a probability that vLLM does not report in this configuration."
        raise ConfigurationError(msg, hint="Turn speculation off, and leave logprobs_mode at raw_logprobs.")
    if record.repetition_penalty > 1 and not engine.penalizes:
        msg = f"{record.name} needs a penalty on repetition, which this vLLM engine does not have."
        raise ConfigurationError(msg, hint=f"Make the engine with logits_processors=[{PENALTY!r}] and no speculation.")


def _record_beside(engine: VLLMEngine) -> Record:
    name = engine.weights
    return _record_of(_folder(name, allow_download=False), name)


def _embedded_base() -> str:
    """Return the embedded base as a folder of safetensors, made from its GGUF file where the cache does not hold it."""
    path = find_base()

    def build(folder: Path) -> None:
        model, tokenizer = load_causal_lm("embedded", dtype="float32", allow_download=False)
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))

    return str(stored(cache_root(), model_key("smollm2-135m-safetensors", path, None, "float32"), build))
