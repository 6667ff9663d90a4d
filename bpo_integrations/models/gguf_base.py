"""The base model as its GGUF file holds it: float32 arrays in Hugging Face's layout, and the tokenizer.

Promises: every tensor of the file is accounted for, or the file is refused; the arrays equal, bit for bit, those that
transformers makes from the same file. Needs `gguf`, `numpy` and `tokenizers`; neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_integrations.errors import ModelFormatError
from bpo_integrations.models.gguf_file import GGUFFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of a token that never stands for text (llama.cpp, `LLAMA_TOKEN_TYPE_CONTROL`)."""

OUTPUT_WEIGHT = "lm_head.weight"
"""transformers' name of the output projection, absent from models whose embedding serves for both."""

_HEAD_SIZES = ("rope.dimension_count", "attention.key_length", "attention.value_length")

_TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": OUTPUT_WEIGHT,
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The hyper-parameters of a Llama model, in transformers' words.

    Args:
        layers: Number of decoder layers.
        width: Hidden size.
        feed_forward: Inner size of the feed-forward block.
        heads: Attention heads.
        kv_heads: Key/value heads (grouped-query attention when fewer than `heads`).
        rope_base: Base of the rotary embedding.
        norm_eps: Epsilon of the RMS norms.
        context: Longest sequence, in tokens.
        vocabulary: Rows of the embedding.
    """

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    rope_base: float
    norm_eps: float
    context: int
    vocabulary: int


class GGUFBase:
    """A Llama-architecture GGUF file, opened.

    Args:
        path: The `.gguf` file.

    Raises:
        MissingExtraError: `gguf` is not installed.
        ModelNotFoundError: There is no such file.
        ModelFormatError: The file is not a GGUF file, is cut off, or holds a model that this reader does not know.

    Example:
        >>> base = GGUFBase(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))  # doctest: +SKIP
        >>> base.shape.layers  # doctest: +SKIP
        30
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GGUFFile(path)
        self.metadata: dict[str, Any] = self._file.metadata
        self._check_kind()
        try:
            self.shape = self._read_shape()
        except KeyError as error:
            msg = f"{self.path} lacks the key {error}."
            raise ModelFormatError(msg, hint="Install or download the file again.") from error
        self._stored = self._match_names()

    def _check_kind(self) -> None:
        architecture = self.metadata.get("general.architecture")
        if architecture != "llama":
            msg = f"{self.path} holds a model of architecture {architecture!r}, not 'llama'."
            raise ModelFormatError(msg, hint="Give a GGUF file of SmolLM2-135M-Instruct or another Llama-style model.")
        scaling = [name for name in self.metadata if name.startswith("llama.rope.scaling.")]
        if scaling:
            msg = f"{self.path} asks for rotary scaling ({scaling[0]}), which is not supported."
            raise ModelFormatError(msg, hint="Use a model without rotary scaling.")

    def _read_shape(self) -> LlamaShape:
        meta = self.metadata
        heads = int(meta["llama.attention.head_count"])
        shape = LlamaShape(
            layers=int(meta["llama.block_count"]),
            width=int(meta["llama.embedding_length"]),
            feed_forward=int(meta["llama.feed_forward_length"]),
            heads=heads,
            kv_heads=int(meta.get("llama.attention.head_count_kv", heads)),
            rope_base=float(meta.get("llama.rope.freq_base", 10000.0)),
            norm_eps=float(meta["llama.attention.layer_norm_rms_epsilon"]),
            context=int(meta["llama.context_length"]),
            vocabulary=len(meta["tokenizer.ggml.tokens"]),
        )
        head = shape.width // heads
        if {int(meta.get(f"llama.{key}", head)) for key in _HEAD_SIZES} != {head}:
            msg = f"{self.path} has heads of another size than width / heads, which is not supported."
            raise ModelFormatError(msg, hint="Use a plain Llama model such as SmolLM2-135M-Instruct.")
        return shape

    def _match_names(self) -> dict[str, str]:
        """Map transformers' names to the file's; each tensor that the model has must be there, and no other."""
        stored = {_hf_name(name) or name: name for name in self._file.tensors}
        expected = {"model.embed_tokens.weight", "model.norm.weight"} | {
            f"model.layers.{layer}.{part}.weight"
            for layer in range(self.shape.layers)
            for part in _LAYER_TENSORS.values()
        }
        missing = sorted(expected - stored.keys())
        unknown = sorted(stored.keys() - expected - {OUTPUT_WEIGHT})
        if missing or unknown:
            what = f"lacks the tensor {missing[0]!r}" if missing else f"holds the unknown tensor {unknown[0]!r}"
            msg = f"{self.path} {what}: it is no plain Llama model."
            raise ModelFormatError(msg, hint="Use a whole file of a model without biases and rotary factors.")
        return stored

    @property
    def names(self) -> list[str]:
        """transformers' names of the weights, in the file's order.

        Tied output weights have no name here: `lm_head.weight` equals `model.embed_tokens.weight` when it is absent.
        """
        return list(self._stored)

    def weight(self, name: str) -> NDArray[np.float32]:
        """Return one weight, by transformers' name, as a new float32 array in transformers' layout."""
        weight = self._file.load(self._stored[name])
        if name.endswith(".q_proj.weight"):
            return _halves_rotary(weight, self.shape.heads)
        if name.endswith(".k_proj.weight"):
            return _halves_rotary(weight, self.shape.kv_heads)
        return weight

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield every weight as (transformers' name, float32 array), one at a time."""
        for name in self.names:
            yield name, self.weight(name)

    @property
    def tokens(self) -> list[str]:
        """The vocabulary, in the order of the token ids."""
        return list(map(str, self.metadata["tokenizer.ggml.tokens"]))

    def _token(self, role: str, default: int) -> str:
        return self.tokens[int(self.metadata.get(f"tokenizer.ggml.{role}_token_id", default))]

    @property
    def end_token(self) -> str:
        """The token that ends a turn."""
        return self._token("eos", 2)

    @property
    def begin_token(self) -> str:
        """The token that begins a text (never added by itself: the chat template does)."""
        return self._token("bos", 1)

    @property
    def unknown_token(self) -> str:
        """The token that stands for nothing known."""
        return self._token("unknown", 0)

    @property
    def control_tokens(self) -> list[str]:
        """The tokens that never stand for text."""
        kinds = self.metadata["tokenizer.ggml.token_type"]
        return [token for token, kind in zip(self.tokens, kinds, strict=True) if kind == CONTROL_TOKEN]

    @property
    def chat_template(self) -> str:
        """The model's Jinja chat template."""
        return str(self.metadata["tokenizer.chat_template"])

    def tokenizer(self) -> Tokenizer:
        """Build the tokenizer, with the digit splitting that the model was pre-trained with.

        transformers' own GGUF import forgets the `Digits` step: pre-tokenizer "smollm" of llama.cpp has it, "gpt-2"
        has not.

        Raises:
            ModelFormatError: The file's tokenizer is of another kind.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        kind = (self.metadata.get("tokenizer.ggml.model"), self.metadata.get("tokenizer.ggml.pre"))
        if kind not in (("gpt2", "smollm"), ("gpt2", "gpt-2")):
            msg = f"{self.path} has a tokenizer of kind {kind}, not ('gpt2', 'smollm') or ('gpt2', 'gpt-2')."
            raise ModelFormatError(msg, hint="Give a GGUF file of SmolLM2-135M-Instruct.")
        tokens = self.tokens
        merges: list[tuple[str, str]] = []
        for merge in self.metadata["tokenizer.ggml.merges"]:
            left, right = merge.split(" ")
            merges.append((left, right))
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if kind[1] == "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
        else:
            tokenizer.pre_tokenizer = byte_level
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in self.control_tokens]
        )
        return tokenizer


def gguf_name(name: str) -> str:
    """Translate transformers' name of a Llama's weight into llama.cpp's.

    Raises:
        KeyError: No plain Llama has such a weight.

    Example:
        >>> gguf_name("model.layers.3.self_attn.q_proj.weight")
        'blk.3.attn_q.weight'
    """
    top, parts = ({hf: own for own, hf in names.items()} for names in (_TOP_TENSORS, _LAYER_TENSORS))
    if name in top:
        return top[name]
    layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    return f"blk.{layer}.{parts[part]}.weight"


def _hf_name(name: str) -> str | None:
    """Translate llama.cpp's name of a tensor into transformers', or None when there is none."""
    if name in _TOP_TENSORS:
        return _TOP_TENSORS[name]
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[3] != "weight" or parts[2] not in _LAYER_TENSORS:
        return None
    return f"model.layers.{parts[1]}.{_LAYER_TENSORS[parts[2]]}.weight"


def _halves_rotary(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's row permutation: from interleaved rotary pairs to transformers' two halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
