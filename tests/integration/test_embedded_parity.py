"""The conversion is right: in float32, the embedded model's greedy tokens are those of transformers and peft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.engines.causal_lm import CausalModel
from bpo_integrations.engines.ctranslate2 import CTranslate2Engine
from bpo_integrations.models.adapter import ADAPTER_WEIGHTS
from bpo_integrations.models.embedded import load_embedded
from bpo_integrations.rewriter import Rewriter

pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = [pytest.mark.model, pytest.mark.data]

NEW_TOKENS = 24
TIE = 1e-3  # where the two best logits are closer than this, either token is right


@pytest.fixture(scope="module", params=["augment", "rewrite"])
def adapter(request: pytest.FixtureRequest, root: Path) -> Path:
    folder = root / "bpo_integrations" / "models" / request.param
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pytest.skip(f"there is no adapter in {folder}")
    return folder


@pytest.fixture(scope="module")
def ours(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Rewriter:
    cache = tmp_path_factory.mktemp("cache")
    return load_embedded(adapter=adapter, cache_dir=cache, compute_type="float32")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def reference(adapter: Path) -> CausalModel:
    return CausalModel("embedded", adapter, "cpu", "float32", allow_download=False)


def questions(data_dir: Path) -> list[str]:
    with (data_dir / "testsets" / "vicuna_eval.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines][:20]


def test_greedy_tokens_are_those_of_the_reference(data_dir: Path, ours: Rewriter, reference: CausalModel) -> None:
    import torch

    engine = ours.engine
    assert isinstance(engine, CTranslate2Engine)
    loaded = engine._loaded()
    prompts = questions(data_dir)
    messages = [tuple(ours.record.format.messages(prompt)) for prompt in prompts]
    # The gate is asked for and never closes: both its probability and what follows are compared.
    decoding = Decoding(empty_threshold=2.0)
    rows = engine.generate([Request(turns, max_new_tokens=NEW_TOKENS) for turns in messages], decoding)
    ties = 0
    for turns, row in zip(messages, rows, strict=True):
        ids = reference.render(turns)
        rendered = loaded.chat.render(turns)
        assert [loaded.tokenizer.token_to_id(token) for token in (*rendered.fixed, *rendered.rest)] == ids
        made = loaded.tokenizer.encode(row[0].text, add_special_tokens=False).ids
        made = [*made, loaded.end] if row[0].finish_reason == "stop" else made
        with torch.inference_mode():
            logits = reference.model(torch.tensor([[*ids, *made]])).logits[0, len(ids) - 1 : -1]
        logits = logits.clone()  # outside of inference mode, so that it can be changed
        assert row[0].p_empty == pytest.approx(logits[0].softmax(-1)[loaded.end].item(), rel=1e-3, abs=1e-6)
        logits[0, loaded.end] = -torch.inf
        logits[:, sorted(reference.control.keys() - {loaded.end})] = -torch.inf
        for step, token in enumerate(made):
            best = logits[step].topk(2)
            if token == best.indices[0]:
                continue
            assert token == best.indices[1], (row[0].text, step)
            assert best.values[0] - best.values[1] < TIE, (row[0].text, step)
            ties += 1
    assert ties <= 3


def test_the_reference_is_not_the_bare_base(data_dir: Path, adapter: Path, reference: CausalModel) -> None:
    import torch

    base = CausalModel("embedded", None, "cpu", "float32", allow_download=False)
    ids = torch.tensor([reference.render([{"role": "user", "content": questions(data_dir)[0]}])])
    with torch.inference_mode():
        assert (base.model(ids).logits - reference.model(ids).logits).abs().max() > 1
