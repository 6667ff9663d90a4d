"""Whole weights as safetensors, in transformers' own form: what `hf:DIR` and `vllm:DIR` load without any adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_merged(model: Any, tokenizer: Any, folder: Path, *, dtype: str = "float32") -> None:
    """Write a model and its tokenizer.

    Args:
        model: transformers' model; its weights are turned into `dtype` in place.
        tokenizer: transformers' tokenizer.
        folder: An existing folder.
        dtype: torch's name of the type: `float32` keeps what was trained exactly, `bfloat16` and `float16` are half as
            large.
    """
    import torch

    model = model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
