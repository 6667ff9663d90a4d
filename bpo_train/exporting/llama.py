"""A Llama of transformers, in memory, as the numpy conversions read it (`models/convert.py`, `gguf_writer.py`).

Promises: a model that is no plain Llama (another architecture, biases, a scaled rotary embedding) is told apart, with
the reason; weights are given out one at a time, as copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bpo_integrations.errors import ModelFormatError
from bpo_integrations.models.gguf_base import OUTPUT_WEIGHT, LlamaShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


def why_not_plain(model: Any) -> str | None:
    """Return why a model is no plain Llama, in a few words; None where it is one."""
    config = model.config
    if config.model_type != "llama":
        return f"its architecture is {config.model_type!r}, not 'llama'"
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "it has biases"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return f"its rotary embedding is scaled ({rope['rope_type']})"
    if config.hidden_size != config.num_attention_heads * (config.head_dim or 0):
        return "its heads are of another size than width / heads"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}"
    return None


def raw_tokenizer(tokenizer: Any) -> Tokenizer:
    """Return the Rust tokenizer inside one of transformers'.

    Raises:
        ModelFormatError: It has none.
    """
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        msg = "The model's tokenizer has no tokenizer.json."
        raise ModelFormatError(msg, hint="Export it as merged weights, which keep its own files.")
    return backend


class LlamaModel:
    """A plain Llama's weights and tokenizer; satisfies `models.convert.LlamaWeights`.

    Args:
        model: transformers' model, on the CPU.
        tokenizer: transformers' tokenizer.

    Raises:
        ModelFormatError: The model is no plain Llama, or the tokenizer lacks what a converted model needs.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        if (reason := why_not_plain(model)) is not None:
            msg = f"The model cannot be converted: {reason}."
            raise ModelFormatError(msg, hint="Export it as merged weights.")
        self._tokenizer = tokenizer
        self._raw = raw_tokenizer(tokenizer)
        self._weights = dict(model.state_dict())
        if model.config.tie_word_embeddings:
            self._weights.pop(OUTPUT_WEIGHT, None)
        config = model.config
        self.shape = LlamaShape(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            feed_forward=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            rope_base=float(config.rope_parameters["rope_theta"]),
            norm_eps=float(config.rms_norm_eps),
            context=config.max_position_embeddings,
            vocabulary=config.vocab_size,
        )

    @property
    def names(self) -> list[str]:
        """transformers' names of the weights."""
        return list(self._weights)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight, rows first."""
        return tuple(self._weights[name].shape)

    def weight(self, name: str) -> NDArray[np.float32]:
        """Return one weight as a new float32 array."""
        import numpy as np

        return np.array(self._weights[name].float().numpy(), dtype=np.float32)

    @property
    def tokens(self) -> list[str]:
        """The vocabulary; rows of the embedding without a token get a name that no text has.

        Raises:
            ModelFormatError: The tokenizer has more tokens than the embedding has rows.
        """
        known = {number: token for token, number in self._raw.get_vocab(with_added_tokens=True).items()}
        if known and max(known) >= self.shape.vocabulary:
            msg = f"The tokenizer has {max(known) + 1} tokens, the embedding {self.shape.vocabulary} rows."
            raise ModelFormatError(msg, hint="Train with the tokenizer of the base model.")
        return [known.get(number, f"<extra_id_{number}>") for number in range(self.shape.vocabulary)]

    @property
    def begin_token(self) -> str:
        """The token that begins a text; the one that ends it, where there is none."""
        return str(self._tokenizer.bos_token or self.end_token)

    @property
    def end_token(self) -> str:
        """The token that ends a turn.

        Raises:
            ModelFormatError: The tokenizer names none.
        """
        if not self._tokenizer.eos_token:
            msg = "The tokenizer names no token that ends a turn."
            raise ModelFormatError(msg, hint="Set its eos_token and save it beside the weights.")
        return str(self._tokenizer.eos_token)

    @property
    def unknown_token(self) -> str:
        """The token that stands for nothing known; empty where there is none."""
        return str(self._tokenizer.unk_token or "")

    @property
    def chat_template(self) -> str:
        """The model's Jinja chat template; empty where there is none."""
        template = self._tokenizer.chat_template
        return template if isinstance(template, str) else ""

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self._raw
