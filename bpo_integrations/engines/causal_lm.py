"""A causal language model of transformers: loading it, and messages to tokens. For the engines that tokenize with it.

Promises: safetensors only, no remote code; special tokens inside a message stay text.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bpo_integrations.engines.generation import encodable
from bpo_integrations.errors import (
    ConfigurationError,
    EngineError,
    MissingExtraError,
    ModelFormatError,
    ModelNotFoundError,
)
from bpo_integrations.models.base import BASE_ID, find_base
from bpo_integrations.templates import Message

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Quantization = Literal["4bit", "8bit"]

_SLOT = "\ue000{}\ue001"
"""Stands for a message's text while a template is rendered; private-use characters that no template holds."""

_BEFORE = "\n"
"""A character that merges with nothing: put before a text, it takes the place of a start of text."""


def load_causal_lm(
    spec: str,
    *,
    dtype: str = "float32",
    allow_download: bool = True,
    quantize: Quantization | None = None,
    device: str = "cpu",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Args:
        spec: `embedded` for the embedded model's base (its GGUF file, dequantized), the path of a `.gguf` file, or
            anything that `AutoModelForCausalLM.from_pretrained` takes, stored as safetensors.
        dtype: torch's name of the weights' type.
        allow_download: Whether the hub may be asked.
        quantize: Keep the linear layers in 4 bits (NF4) or 8 bits with bitsandbytes, computing in `dtype`.
        device: torch's name of the device; only used with `quantize`, where the weights are put there at once.

    Returns:
        The model, in evaluation mode (on the CPU, unless quantized), and the tokenizer.

    Raises:
        MissingExtraError: torch or transformers is not installed.
        ModelNotFoundError: The weights are not on this machine (and could not be downloaded).
        ConfigurationError: `quantize` was asked for a GGUF file, which has been quantized once already.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", extra="hf") from error
    kind = getattr(torch, dtype)
    if spec == "embedded" or spec.endswith(".gguf"):
        if quantize is not None:
            msg = f"The base {spec} is a GGUF file, which cannot be quantized again."
            raise ConfigurationError(msg, hint="Leave out quantize=, or give base= as a folder of safetensors.")
        path = find_base(None if spec == "embedded" else spec)
        return _load_gguf(path, kind, name=BASE_ID if spec == "embedded" else str(path.resolve()))
    local = not allow_download
    options: dict[str, Any] = {"dtype": kind, "use_safetensors": True, "local_files_only": local}
    if quantize is not None:
        from transformers import BitsAndBytesConfig

        bits: dict[str, Any] = {"load_in_8bit": True}
        if quantize == "4bit":
            bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": kind}
        options |= {"quantization_config": BitsAndBytesConfig(**bits), "device_map": {"": device}}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(spec, local_files_only=local)
        model: Any = AutoModelForCausalLM.from_pretrained(spec, **options)
    except OSError as error:
        msg = f"The model {spec} cannot be loaded: {error}"
        hint = (
            "Download it first, or allow it with BPO_ALLOW_DOWNLOAD=1. Only safetensors are loaded: a checkpoint of "
            "pickled weights (pytorch_model.bin) must be converted once, by transformers' save_pretrained."
        )
        raise ModelNotFoundError(msg, hint=hint) from error
    return model.eval(), tokenizer


def _load_gguf(path: Path, dtype: torch.dtype, *, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from bpo_integrations.models.gguf_base import OUTPUT_WEIGHT, GGUFBase

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
        tie_word_embeddings=OUTPUT_WEIGHT not in weights,
        bos_token_id=base.tokens.index(base.begin_token),
        eos_token_id=end,
        pad_token_id=end,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(dtype)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {OUTPUT_WEIGHT}:
        msg = f"{path} does not fit: missing {missing}, unexpected {unexpected}."
        raise ModelFormatError(msg, hint="Install or download the file again.")
    model.tie_weights()
    model.config._name_or_path = name  # an adapter trained on it says so
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.tokenizer(),
        bos_token=base.begin_token,
        eos_token=base.end_token,
        pad_token=base.end_token,
        model_max_length=shape.context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = base.chat_template
    return model.eval(), tokenizer


class ChatTokenizer:
    """Turns chat messages into tokens with the tokenizer of a model; no weights.

    Args:
        tokenizer: A tokenizer of transformers, with a chat template of its own or none.
        card: Write the one user turn as the model card of THUDM/BPO does, whatever template the tokenizer brings.
            A tokenizer without any template is put the turn in this form, too.

    Example:
        >>> chat = ChatTokenizer(load_causal_lm("embedded")[1])  # doctest: +SKIP
        >>> chat.encode("</s> is text here")  # doctest: +SKIP
        [9617, 99, 46, 314, 1694, 1535]
    """

    def __init__(self, tokenizer: Any, *, card: bool = False) -> None:
        self.tokenizer = tokenizer
        self._card = card
        # Whether special tokens are split is state of the tokenizer that all threads share: without the lock, a mark in
        # one thread's text became the special token while another rendered a template.
        self._lock = threading.RLock()
        decoder = tokenizer.added_tokens_decoder
        self.control: dict[int, str] = {number: token.content for number, token in decoder.items() if token.special}
        self._specials = re.compile("|".join(re.escape(text) for text in self.control.values()) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text in which nothing is special."""
        with self._lock:
            found = self.tokenizer(encodable(text), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(found)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that put the messages to the model.

        Raises:
            EngineError: The form of the model card was asked for, and the messages are more than one user turn.
        """
        turns = [{"role": message["role"], "content": encodable(message["content"])} for message in messages]
        with self._lock:
            return self._render(turns)

    def _render(self, turns: list[dict[str, str]]) -> list[int]:
        if self._card or not self.tokenizer.chat_template:
            return self._render_card(turns)
        if not any(self._specials.search(turn["content"]) for turn in turns):
            return list(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))
        # Render with slots for the texts, so that only the template's own special tokens are seen as such.
        slots = [{**turn, "content": _SLOT.format(number)} for number, turn in enumerate(turns)]
        rendered = self.tokenizer.apply_chat_template(slots, add_generation_prompt=True, tokenize=False)
        ids: list[int] = []
        at = 0
        for mark in [*self._specials.finditer(rendered), None]:
            stretch = rendered[at : mark.start() if mark else None]
            for number, turn in enumerate(turns):
                stretch = stretch.replace(_SLOT.format(number), turn["content"])
            if stretch:
                ids += self._encode_inside(stretch) if ids else self.encode(stretch)
            if mark:
                ids.append(self.tokenizer.convert_tokens_to_ids(mark.group()))
                at = mark.end()
        return ids

    def _encode_inside(self, text: str) -> list[int]:
        """Return the tokens of a text that follows a special token, where some tokenizers add no space in front."""
        if self._prefixed:
            before, ids = self.encode(_BEFORE), self.encode(_BEFORE + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self.encode(text)

    @cached_property
    def _prefixed(self) -> bool:
        """Whether a text at the start has other tokens than after a special token (Llama's later tokenizers)."""
        special, text = next(iter(self.control.items()), (None, ""))
        both = self.tokenizer(text + "a", add_special_tokens=False)["input_ids"]
        return special is not None and list(both) != [special, *self.encode("a")]

    def _render_card(self, turns: Sequence[dict[str, str]]) -> list[int]:
        """Render one turn as the model card of THUDM/BPO has it: a plain string, its beginning marked by `<s>`."""
        if len(turns) != 1 or turns[0]["role"] != "user":
            msg = "This model has no chat template, and takes one user turn only."
            raise EngineError(msg, hint="Use a record whose format has no system turn.")
        text = f"[INST] {turns[0]['content']} [/INST]"
        return list(self.tokenizer(text, split_special_tokens=True)["input_ids"])


class CausalModel:
    """Weights and tokenizer in memory.

    Args:
        spec: As for `load_causal_lm`.
        adapter: A folder with a PEFT adapter: merged into the weights, or put beside them where they are quantized.
        device: torch's name of the device.
        dtype: torch's name of the weights' type.
        allow_download: Whether the hub may be asked.
        quantize: As for `load_causal_lm`.
        card: As for `ChatTokenizer`.

    Raises:
        ModelNotFoundError: The weights are not on this machine.
        ModelFormatError: The adapter does not fit.
    """

    def __init__(
        self,
        spec: str,
        adapter: Path | None,
        device: str,
        dtype: str,
        *,
        allow_download: bool,
        quantize: Quantization | None = None,
        card: bool = False,
    ) -> None:
        import torch
        from transformers import GenerationConfig

        self.pid = os.getpid()
        self.lock = threading.Lock()
        model: Any
        model, tokenizer = load_causal_lm(
            spec, dtype=dtype, allow_download=allow_download, quantize=quantize, device=device
        )
        if adapter is not None:
            from peft import PeftModel

            try:
                model = PeftModel.from_pretrained(model, str(adapter))
                # Merging into quantized weights would round the adapter away.
                model = model.merge_and_unload() if quantize is None else model.get_base_model()
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                msg = f"The adapter {adapter} cannot be put on {spec}: {error}"
                raise ModelFormatError(msg, hint="Give the base that it was trained on with base=.") from error
        self.chat = ChatTokenizer(tokenizer, card=card)
        self.tokenizer: Any = tokenizer
        self.model: Any = (model if quantize is not None else model.to(torch.device(device))).eval()
        ends = model.generation_config.eos_token_id
        ends = ends if ends is not None else tokenizer.eos_token_id
        self.ends: list[int] = [ends] if isinstance(ends, int) else list(ends)
        self.end = int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else self.ends[0])
        self.model.generation_config = GenerationConfig()  # the checkpoint's own sampling must not leak in
        self.context = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
        self.control = self.chat.control

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text in which nothing is special."""
        return self.chat.encode(text)

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that put the messages to the model."""
        return self.chat.render(messages)
