"""Load the model that is to be trained: a Hugging Face id or folder, or the embedded base from its GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.errors import MissingExtraError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_base(spec: str, *, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer for training or reference decoding.

    Args:
        spec: `embedded` for the base of the embedded model (from the installed GGUF file), the path of a `.gguf` file,
            or anything that `AutoModelForCausalLM.from_pretrained` takes.
        dtype: torch's name of the weights' type.

    Returns:
        The model, in evaluation mode, and the tokenizer.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ModelNotFoundError: `embedded` was asked for and no base file is installed.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", extra="hf") from error
    if spec == "embedded" or spec.endswith(".gguf"):
        return _load_gguf(spec, getattr(torch, dtype))
    tokenizer: Any = AutoTokenizer.from_pretrained(spec)
    model: Any = AutoModelForCausalLM.from_pretrained(spec, dtype=getattr(torch, dtype))
    return model.eval(), tokenizer


def _load_gguf(spec: str, dtype: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from bpo_integrations.models.base import find_base
    from bpo_integrations.models.gguf_base import GGUFBase

    path = Path(spec) if spec.endswith(".gguf") else find_base()
    base = GGUFBase(path)
    shape = base.shape
    weights = {name: torch.from_numpy(array).to(dtype) for name, array in base.tensors()}
    end = base.tokens.index(base.end_token)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base},
        tie_word_embeddings="lm_head.weight" not in weights,
        bos_token_id=int(base.metadata["tokenizer.ggml.bos_token_id"]),
        eos_token_id=end,
        pad_token_id=end,
    )
    model = LlamaForCausalLM(config).to(dtype)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        msg = f"the weights do not fit: missing {missing}, unexpected {unexpected}"
        raise RuntimeError(msg)
    model.tie_weights()
    model.config._name_or_path = BASE_ID
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.tokenizer(),
        bos_token=base.tokens[int(base.metadata["tokenizer.ggml.bos_token_id"])],
        eos_token=base.end_token,
        pad_token=base.end_token,
        model_max_length=shape.context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = base.chat_template
    return model.eval(), tokenizer


BASE_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The hub's name of the embedded base."""
