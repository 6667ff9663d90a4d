"""Load the model that is to be trained: a Hugging Face id or folder, or the embedded base from its GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bpo_integrations.engines.causal_lm import load_causal_lm
from bpo_integrations.models.base import BASE_ID

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["BASE_ID", "load_base"]


def load_base(spec: str, *, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer for training or reference decoding.

    Args:
        spec: `embedded` for the base of the embedded model (from the installed GGUF file), the path of a `.gguf` file,
            or anything that `AutoModelForCausalLM.from_pretrained` takes, stored as safetensors.
        dtype: torch's name of the weights' type.

    Returns:
        The model, in evaluation mode, and the tokenizer.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ModelNotFoundError: The weights are not to be found.
    """
    return load_causal_lm(spec, dtype=dtype)
