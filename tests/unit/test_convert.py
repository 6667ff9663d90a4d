"""The files written for CTranslate2 equal those of its own converter, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toy_model import write_adapter, write_gguf

from bpo_integrations.models.adapter import LoRA
from bpo_integrations.models.convert import Quantization, convert
from bpo_integrations.models.gguf_base import OUTPUT_WEIGHT, GGUFBase


def write_reference(base: GGUFBase, adapter: LoRA, folder: Path, quantization: str) -> None:
    """Do with ctranslate2.specs what its converter for Llama models does."""
    from ctranslate2.specs import common_spec, transformer_spec

    def weight(name: str) -> np.ndarray:
        return adapter.merge(name, base.weight(name))

    shape = base.shape
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        shape.layers,
        shape.heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=shape.rope_base,
        num_heads_kv=shape.kv_heads,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    embedding = weight("model.embed_tokens.weight")
    decoder.embeddings.weight = embedding
    decoder.projection.weight = weight(OUTPUT_WEIGHT) if OUTPUT_WEIGHT in base.names else embedding
    decoder.layer_norm.gamma = weight("model.norm.weight")
    for number, layer in enumerate(decoder.layer):
        at = f"model.layers.{number}"
        layer.self_attention.layer_norm.gamma = weight(f"{at}.input_layernorm.weight")
        layer.ffn.layer_norm.gamma = weight(f"{at}.post_attention_layernorm.weight")
        fused = np.concatenate([weight(f"{at}.self_attn.{part}_proj.weight") for part in "qkv"])
        layer.self_attention.linear[0].weight = fused
        layer.self_attention.linear[1].weight = weight(f"{at}.self_attn.o_proj.weight")
        layer.ffn.linear_0.weight = weight(f"{at}.mlp.gate_proj.weight")
        layer.ffn.linear_0_noact.weight = weight(f"{at}.mlp.up_proj.weight")
        layer.ffn.linear_1.weight = weight(f"{at}.mlp.down_proj.weight")
    spec.register_vocabulary(base.tokens)
    spec.config.layer_norm_epsilon = shape.norm_eps
    spec.config.bos_token, spec.config.eos_token = base.begin_token, base.end_token
    spec.config.unk_token = base.unknown_token
    spec.validate()
    spec.optimize(quantization=None if quantization == "float32" else quantization)
    spec.save(str(folder))


@pytest.mark.parametrize("quantization", ["int8", "float32"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_files_equal_those_of_the_official_converter(
    tmp_path: Path, quantization: Quantization, tied: bool
) -> None:
    base = GGUFBase(write_gguf(tmp_path / "toy.gguf", tied=tied))
    adapter = LoRA(write_adapter(tmp_path / "adapter"))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    convert(base, ours, adapter=adapter, quantization=quantization)
    write_reference(base, adapter, theirs, quantization)
    for file in ("model.bin", "vocabulary.json"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()
    config = json.loads((ours / "config.json").read_text())
    assert config.pop("max_position_embeddings") == base.shape.context
    assert config == json.loads((theirs / "config.json").read_text())
