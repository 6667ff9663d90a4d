"""Reading a base from GGUF: whole and known files only, the same numbers as the reference reader."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from toy_model import CONTROL, HEADS, KV_HEADS, LAYERS, WIDTH, write_gguf

from bpo_integrations.errors import ModelFormatError, ModelNotFoundError
from bpo_integrations.models import base as base_module
from bpo_integrations.models.base import INSTALL_LINE, find_base
from bpo_integrations.models.gguf_base import GGUFBase


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "toy.gguf")


def test_the_metadata_equals_that_of_the_reference_reader(toy: Path) -> None:
    expected = {k: f.contents() for k, f in GGUFReader(toy).fields.items() if not k.startswith("GGUF.")}
    assert GGUFBase(toy).metadata == expected


def test_every_weight_has_a_name_of_transformers_and_the_shape_of_the_model(toy: Path) -> None:
    base = GGUFBase(toy)
    weights = dict(base.tensors())
    assert len(weights) == 2 + 9 * LAYERS
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (WIDTH * KV_HEADS // HEADS, WIDTH)
    assert all(weight.dtype == np.float32 and weight.flags.writeable for weight in weights.values())
    assert base.control_tokens == CONTROL
    assert (base.begin_token, base.end_token, base.unknown_token) == (CONTROL[1], CONTROL[2], CONTROL[0])


@pytest.mark.model
def test_the_real_base_is_dequantized_as_the_reference_does() -> None:
    path = find_base()
    base = GGUFBase(path)
    reference = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    for name, stored in (
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
    ):
        tensor = reference[stored]
        assert np.array_equal(base.weight(name), dequantize(tensor.data, tensor.tensor_type))


def test_rotary_rows_of_queries_and_keys_are_put_back_into_halves(toy: Path) -> None:
    stored = next(tensor for tensor in GGUFReader(toy).tensors if tensor.name == "blk.0.attn_q.weight").data
    head = WIDTH // HEADS
    undone = GGUFBase(toy).weight("model.layers.0.self_attn.q_proj.weight")
    # llama.cpp interleaves (0, head/2, 1, head/2 + 1, ...) within each head
    order = [part * head // 2 + pair for pair in range(head // 2) for part in (0, 1)]
    assert np.array_equal(undone[:head][order], stored[:head])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(toy: Path, share: float) -> None:
    data = toy.read_bytes()
    toy.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelFormatError, match=r"cut off|lacks"):
        GGUFBase(toy)


def test_a_garbled_header_raises_our_error_and_no_other(toy: Path) -> None:
    data = toy.read_bytes()
    rng = random.Random(5)
    for _ in range(200):
        garbled = bytearray(data)
        for _ in range(4):
            garbled[rng.randrange(2000)] = rng.randrange(256)
        toy.write_bytes(garbled)
        with contextlib.suppress(ModelFormatError):
            GGUFBase(toy)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"architecture": "gpt2"}, "architecture 'gpt2'"),
        ({"scaling": True}, "rotary scaling"),
        ({"extra": {"rope_freqs.weight": np.ones(4, np.float32)}}, "unknown tensor 'rope_freqs.weight'"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(WIDTH, np.float32)}}, "unknown tensor 'blk.0.attn_q.bias'"),
        ({"leave_out": "blk.1.ffn_up.weight"}, "lacks the tensor 'model.layers.1.mlp.up_proj.weight'"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path: Path, options: dict, reason: str) -> None:
    with pytest.raises(ModelFormatError, match=reason):
        GGUFBase(write_gguf(tmp_path / "other.gguf", **options))


def test_digits_are_split_and_specials_are_known(toy: Path) -> None:
    tokenizer = GGUFBase(toy).tokenizer()
    assert tokenizer.encode("<|im_end|>").ids == [2]
    assert tokenizer.pre_tokenizer.pre_tokenize_str("\n\n12")[-2:] == [("1", (2, 3)), ("2", (3, 4))]


class TestFindBase:
    @pytest.fixture(autouse=True)
    def nothing_installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(base_module, "BASE_PACKAGE", "no-such-package-here")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        for name in ("BPO_BASE_MODEL", "BPO_ALLOW_DOWNLOAD"):
            monkeypatch.delenv(name, raising=False)

    def cached(self, tmp_path: Path, name: str, size: int) -> Path:
        folder = tmp_path / "hub" / "models--someone--SmolLM2-135M-Instruct-GGUF" / "snapshots" / "abc"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * size)
        return folder / name

    def test_nothing_found_says_what_to_install(self) -> None:
        with pytest.raises(ModelNotFoundError) as caught:
            find_base()
        assert INSTALL_LINE in str(caught.value)

    def test_the_argument_goes_before_the_environment_and_that_before_the_cache(
        self, tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cached = self.cached(tmp_path, "SmolLM2-135M-Instruct-Q8_0.gguf", 9)
        assert find_base() == cached
        environment = write_gguf(tmp_path / "environment.gguf")
        monkeypatch.setenv("BPO_BASE_MODEL", str(environment))
        assert find_base() == environment
        assert find_base(toy) == toy

    def test_a_path_that_does_not_exist_is_an_error_even_where_another_base_is_found(self, tmp_path: Path) -> None:
        self.cached(tmp_path, "smollm2-135m-instruct-q8_0.gguf", 9)
        with pytest.raises(ModelNotFoundError, match="nowhere"):
            find_base(tmp_path / "nowhere.gguf")

    def test_the_largest_file_in_the_cache_is_taken_and_other_models_are_not(self, tmp_path: Path) -> None:
        self.cached(tmp_path, "SmolLM2-135M-Instruct-Q2_K.gguf", 5)
        larger = self.cached(tmp_path, "SmolLM2-135M-Instruct-F16.gguf", 50)
        self.cached(tmp_path, "imatrix.gguf", 500)
        assert find_base() == larger

    def test_the_cache_is_where_the_hub_puts_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_HUB_CACHE")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        file = self.cached(tmp_path, "SmolLM2-135M-Instruct-Q8_0.gguf", 9)
        assert find_base() == file

    def test_without_a_network_an_allowed_download_fails_with_our_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ModelNotFoundError, match="could not be downloaded"):
            find_base(allow_download=True)
