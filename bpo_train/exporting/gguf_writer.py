"""A GGUF file of a plain Llama, written with the `gguf` package: for `gguf:DIR`, and for llama.cpp and its like.

Promises: the file is read back, and its tokenizer compared with the model's, before it counts as written. Only what can
be told for sure is written: plain Llamas with the byte-level tokenizer of GPT-2 or SmolLM; llama.cpp's own converter
knows the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bpo_integrations.errors import ConfigurationError, MissingExtraError, ModelFormatError
from bpo_integrations.models.gguf_base import CONTROL_TOKEN, GGUFBase, gguf_name
from bpo_train.exporting.llama import LlamaModel, why_not_plain

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

GGUFType = Literal["q8_0", "f16", "f32"]
"""How the matrices are stored; vectors are float32 in any case, as llama.cpp has them."""

_HINT = "Export it as merged weights, and convert those with llama.cpp's convert_hf_to_gguf.py."
_NORMAL, _UNUSED = 1, 5  # llama.cpp's LLAMA_TOKEN_TYPE_*
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
_PROBE = "Hello, World! It's 12345 o'clock; naïve façade — 日本語 🙂\n\n\tdef f(x):  return x**2 <|x|>"


def write_gguf(model: Any, tokenizer: Any, path: Path, *, kind: GGUFType = "q8_0", name: str = "") -> None:
    """Write the file.

    Args:
        model: transformers' model, in float32 on the CPU.
        tokenizer: transformers' tokenizer.
        path: The file.
        kind: `q8_0` (8 bits, a scale for each 32 weights), `f16`, or `f32`, which is exact.
        name: The model's name in the file.

    Raises:
        MissingExtraError: gguf is not installed.
        ConfigurationError: There is no such `kind`.
        ModelFormatError: The model is no plain Llama, or its tokenizer is of another kind.
    """
    try:
        from gguf import GGUFWriter
        from gguf.constants import GGMLQuantizationType, LlamaFileType
    except ImportError as error:
        raise MissingExtraError(error.name or "gguf", extra="local") from error
    if kind not in get_args(GGUFType):
        msg = f"Unknown GGUF type {kind!r}."
        raise ConfigurationError(msg, hint=f"Use one of {', '.join(get_args(GGUFType))}.")
    if (reason := why_not_plain(model)) is not None:
        msg = f"The model cannot be written as GGUF here: {reason}."
        raise ModelFormatError(msg, hint=_HINT)
    llama = LlamaModel(model, tokenizer)
    file_type = {
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
        "f16": LlamaFileType.MOSTLY_F16,
        "f32": LlamaFileType.ALL_F32,
    }[kind]
    matrices = {"q8_0": GGMLQuantizationType.Q8_0, "f16": GGMLQuantizationType.F16, "f32": GGMLQuantizationType.F32}
    writer = GGUFWriter(path, "llama")
    try:
        _describe(writer, llama, name=name, file_type=int(file_type))
        _add_tokenizer(writer, llama, tokenizer)
        _write(writer, llama, matrices[kind])
    finally:
        writer.close()
    _check(path, llama)


def _describe(writer: GGUFWriter, llama: LlamaModel, *, name: str, file_type: int) -> None:
    """Add the hyper-parameters."""
    from gguf.constants import GGML_QUANT_VERSION

    shape = llama.shape
    writer.add_type("model")
    if name:
        writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: GGUFWriter, llama: LlamaModel, tokenizer: Any) -> None:
    raw = llama.tokenizer()
    described = json.loads(raw.to_str())
    special = {number for number, token in raw.get_added_tokens_decoder().items() if token.special}
    known = set(raw.get_vocab(with_added_tokens=True).values())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(described))
    writer.add_token_list(llama.tokens)
    writer.add_token_types(
        [
            CONTROL_TOKEN if number in special else _NORMAL if number in known else _UNUSED
            for number in range(llama.shape.vocabulary)
        ]
    )
    merges = described["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(int(number))
    begun = raw.encode("a", add_special_tokens=True).ids != raw.encode("a", add_special_tokens=False).ids
    writer.add_add_bos_token(begun)
    writer.add_add_space_prefix(False)
    if llama.chat_template:
        writer.add_chat_template(llama.chat_template)


def _pre_tokenizer(described: dict[str, Any]) -> str:
    """Return llama.cpp's name of the way in which a tokenizer splits text.

    Raises:
        ModelFormatError: It is none of those that are known for sure.
    """
    model, splitter = described["model"], described.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", [splitter]) if splitter.get("type") == "Sequence" else [splitter]
    plain = model.get("type") == "BPE" and not (
        described.get("normalizer") or model.get("byte_fallback") or model.get("ignore_merges") or model.get("dropout")
    )
    if plain and _is(steps, [_DIGITS, _BYTES]):
        return "smollm"
    if plain and _is(steps, [_BYTES]):
        return "gpt-2"
    msg = "The model's tokenizer is of a kind that cannot be written as GGUF here (known are GPT-2's and SmolLM's)."
    raise ModelFormatError(msg, hint=_HINT)


def _is(steps: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    return len(steps) == len(wanted) and all(
        want.items() <= step.items() for step, want in zip(steps, wanted, strict=True)
    )


def _write(writer: GGUFWriter, llama: LlamaModel, matrices: GGMLQuantizationType) -> None:
    """Write the header, then the tensors, one at a time."""
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape, quantize

    kinds: dict[str, GGMLQuantizationType] = {}
    for name in llama.names:
        shape = llama.shape_of(name)
        kind = matrices if len(shape) > 1 else GGMLQuantizationType.F32
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            kind = GGMLQuantizationType.F16  # a row that the blocks do not divide
        kinds[name] = kind
        native = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind)
        stored = shape if native is not None else quant_shape_to_byte_shape(shape, kind)
        dtype = np.dtype(np.uint8 if native is None else native)
        size = int(np.prod(stored)) * dtype.itemsize
        writer.add_tensor_info(gguf_name(name), stored, dtype, size, None if native is not None else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in llama.names:
        weight = llama.weight(name)
        if name.endswith(".q_proj.weight"):
            weight = _pairs_rotary(weight, llama.shape.heads)
        elif name.endswith(".k_proj.weight"):
            weight = _pairs_rotary(weight, llama.shape.kv_heads)
        writer.write_tensor_data(quantize(weight, kinds[name]))


def _pairs_rotary(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Permute rows as llama.cpp has them: from transformers' two halves to interleaved rotary pairs."""
    import numpy as np

    rows, columns = weight.shape
    paired = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(paired.reshape(rows, columns))


def _check(path: Path, llama: LlamaModel) -> None:
    """Read the file back: every tensor in its place, and a tokenizer that says what the model's says.

    Raises:
        ModelFormatError: It says something else.
    """
    written = GGUFBase(path)
    if set(written.names) != set(llama.names) or _encoded(written.tokenizer()) != _encoded(llama.tokenizer()):
        msg = "The model's tokenizer cannot be told whole in a GGUF file."
        raise ModelFormatError(msg, hint=_HINT)


def _encoded(tokenizer: Tokenizer) -> list[int]:
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return list(tokenizer.encode(" ".join([_PROBE, *added]), add_special_tokens=False).ids)
