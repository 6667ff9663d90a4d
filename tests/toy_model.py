"""A Llama of two layers and 274 tokens as a GGUF file, and LoRA adapters for it: made in milliseconds, random weights.

Its tokenizer knows 17 control tokens, the 256 bytes and one merge ("ab"), so every text has tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, HEADS, KV_HEADS, FEED_FORWARD, LAYERS = 32, 4, 2, 64, 2
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<control_{i}>" for i in range(14))]
TOKENS = [*CONTROL, *sorted(ByteLevel.alphabet()), "ab"]
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH // 2, WIDTH),
    "attn_v": (WIDTH // 2, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (FEED_FORWARD, WIDTH),
    "ffn_up": (FEED_FORWARD, WIDTH),
    "ffn_down": (WIDTH, FEED_FORWARD),
}
ADAPTED = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH // 2, WIDTH),
    "mlp.down_proj": (WIDTH, FEED_FORWARD),
}


def write_gguf(
    path: Path,
    *,
    seed: int = 0,
    context: int = 256,
    tied: bool = True,
    architecture: str = "llama",
    extra: dict[str, np.ndarray] | None = None,
    leave_out: str = "",
    scaling: bool = False,
) -> Path:
    """Write the toy model; the options make files that must be refused."""
    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if scaling:
        writer.add_string(f"{architecture}.rope.scaling.type", "linear")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(CONTROL) + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(scale=0.4, size=shape).astype(np.float32)

    tensors = {"token_embd.weight": weight(len(TOKENS), WIDTH), "output_norm.weight": 1 + weight(WIDTH)}
    if not tied:
        tensors["output.weight"] = weight(len(TOKENS), WIDTH)
    for layer in range(LAYERS):
        tensors |= {f"blk.{layer}.{name}.weight": weight(*shape) for name, shape in SHAPES.items()}
        tensors |= {f"blk.{layer}.{name}_norm.weight": 1 + weight(WIDTH) for name in ("attn", "ffn")}
    for name, tensor in (tensors | (extra or {})).items():
        if name != leave_out:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_adapter(folder: Path, *, seed: int = 1, rank: int = 2, alpha: int = 4, **config: object) -> Path:
    """Write a PEFT LoRA adapter for the toy model; `config` overrides keys of adapter_config.json."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in ADAPTED.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = rng.normal(size=(rank, columns)).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = rng.normal(size=(rows, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "target_modules": [name.split(".")[1] for name in ADAPTED],
    } | config
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
