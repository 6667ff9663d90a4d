"""LoRA in numpy: equal to PEFT's own merge, and nothing is merged that is not plain LoRA."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toy_model import write_adapter, write_gguf

from bpo_integrations.errors import ModelFormatError
from bpo_integrations.models.adapter import LoRA
from bpo_integrations.models.gguf_base import GGUFBase

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> GGUFBase:
    return GGUFBase(write_gguf(tmp_path / "toy.gguf"))


def to_bfloat16(folder: Path) -> None:
    """Rewrite the adapter as BF16 by hand: safetensors' numpy front end cannot."""
    path = folder / "adapter_model.safetensors"
    header: dict[str, object] = {}
    body = b""
    for name, array in load_file(path).items():
        raw = (array.view("<u4") >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_merged_weights_equal_pefts(tmp_path: Path, base: GGUFBase, rslora: bool) -> None:
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from bpo_integrations.engines.causal_lm import load_causal_lm

    folder = write_adapter(tmp_path / "adapter", use_rslora=rslora)
    model, _ = load_causal_lm(str(base.path))
    merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload().state_dict()
    adapter = LoRA(folder)
    assert len(adapter.names) == 6
    for name in base.names:
        ours = adapter.merge(name, base.weight(name))
        assert np.allclose(ours, merged[name].numpy(), rtol=1e-6, atol=1e-6), name
        assert np.array_equal(ours, base.weight(name)) == (name not in adapter.names)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_adapters_are_read_to_their_precision(tmp_path: Path, base: GGUFBase, dtype: str) -> None:
    full = LoRA(write_adapter(tmp_path / "full")).merge(Q_PROJ, base.weight(Q_PROJ))
    half = write_adapter(tmp_path / "half")
    if dtype == "BF16":
        to_bfloat16(half)
    else:
        path = half / "adapter_model.safetensors"
        save_file({name: array.astype(np.float16) for name, array in load_file(path).items()}, path)
    merged = LoRA(half).merge(Q_PROJ, base.weight(Q_PROJ))
    assert np.allclose(merged, full, atol=0.2)
    assert not np.array_equal(merged, full)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
        {"fan_in_fan_out": True},
        {"layer_replication": [[0, 1]]},
        {"target_parameters": ["x"]},
        {"trainable_token_indices": [1]},
        {"peft_type": "IA3"},
        {"r": "many"},
        {"r": 3},
    ],
)
def test_a_variant_that_is_no_plain_sum_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(ModelFormatError):
        LoRA(write_adapter(tmp_path / "adapter", **config))


def test_a_tensor_that_is_no_lora_matrix_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)}, path)
    with pytest.raises(ModelFormatError, match="lm_head"):
        LoRA(folder)


def test_half_of_a_pair_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "lora_B" in name))
    save_file(tensors, path)
    with pytest.raises(ModelFormatError, match="half of the pair"):
        LoRA(folder)


def test_an_adapter_for_another_model_is_refused(tmp_path: Path, base: GGUFBase) -> None:
    folder = write_adapter(tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    save_file({name.replace("layers.1", "layers.9"): array for name, array in load_file(path).items()}, path)
    with pytest.raises(ModelFormatError, match=r"layers\.9"):
        LoRA(folder).check(base.names)
    with pytest.raises(ModelFormatError, match="base"):
        LoRA(folder).merge(Q_PROJ, np.ones((3, 3), np.float32))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_missing_and_broken_files_raise_our_error(tmp_path: Path, file: str, how: str) -> None:
    folder = write_adapter(tmp_path / "adapter")
    path = folder / file
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFormatError):
        LoRA(folder)
