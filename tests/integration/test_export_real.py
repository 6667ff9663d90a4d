"""The shipped adapter, exported in every form, says what it says to the trainer: 20 prompts, 24 tokens each, greedy."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft", reason="needs the extra 'train'")
import torch

from bpo_integrations import load_rewriter
from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.engines.causal_lm import ChatTokenizer, load_causal_lm
from bpo_integrations.rewriter import Record
from bpo_train.export import Export, export

pytestmark = [pytest.mark.model, pytest.mark.data, pytest.mark.slow]

logger = logging.getLogger(__name__)

NEW_TOKENS = 24


@pytest.fixture(scope="module")
def adapter(root: Path) -> Path:
    return root / "bpo_integrations" / "models" / "rewrite"


@pytest.fixture(scope="module")
def prompts(data_dir: Path) -> list[str]:
    with (data_dir / "testsets" / "vicuna_eval.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines][:20]


@pytest.fixture(scope="module")
def trained(adapter: Path, prompts: list[str]) -> list[str]:
    """What the trainer's model says: the adapter beside the base's weights, transformers' own greedy search."""
    from peft import PeftModel

    model, tokenizer = load_causal_lm("embedded")
    whole: Any = PeftModel.from_pretrained(model, str(adapter)).eval()
    chat, end = ChatTokenizer(tokenizer), int(tokenizer.eos_token_id)  # type: ignore[arg-type]
    form, found = Record.read(adapter).format, []
    for prompt in prompts:
        ids = torch.tensor([chat.render(form.messages(prompt))])
        mask, limit = torch.ones_like(ids), {"max_new_tokens": NEW_TOKENS, "pad_token_id": end}
        output = whole.generate(input_ids=ids, attention_mask=mask, do_sample=False, **limit)
        found.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return found


def says(spec: str, prompts: list[str], **options: Any) -> list[str]:
    rewriter = load_rewriter(spec, **options)
    requests = [Request(tuple(rewriter.record.format.messages(prompt)), NEW_TOKENS) for prompt in prompts]
    found = [row[0].text for row in rewriter.engine.generate(requests, Decoding())]
    rewriter.close()
    return found


@pytest.fixture(scope="module")
def exported(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    output = tmp_path_factory.mktemp("exports") / "out"
    return export(Export([adapter], output, ("adapter", "merged", "ct2", "gguf"), gguf_type="f32"))


@pytest.mark.parametrize("form", ["adapter", "merged", "gguf"])
def test_the_exact_forms_say_the_same_token_for_token(
    form: str, exported: dict[Any, Path], prompts: list[str], trained: list[str], tmp_path: Path
) -> None:
    assert len(set(trained)) == 20
    options = {"compute_type": "float32", "cache_dir": tmp_path} if form == "gguf" else {}
    assert says(f"{'gguf' if form == 'gguf' else 'hf'}:{exported[form]}", prompts, **options) == trained


@pytest.mark.parametrize("form", ["ct2", "gguf"])
def test_the_forms_of_eight_bits_say_something_like_it(
    form: Any, exported: dict[Any, Path], prompts: list[str], trained: list[str], tmp_path: Path
) -> None:
    """In int8 greedy texts depend on the processor; how much agrees is logged (--log-cli-level INFO)."""
    folder, options = exported[form], {}
    if form == "gguf":
        record = {"format": Record.read(folder).format}
        wanted = Export([exported["merged"]], tmp_path / "q8", ("gguf",), mode="rewrite", record=record)
        folder, options = export(wanted)["gguf"], {"compute_type": "float32", "cache_dir": tmp_path / "cache"}
    found = says(f"{form}:{folder}", prompts, **options)
    assert all(found)
    shares = [common(one.split(), other.split()) for one, other in zip(found, trained, strict=True)]
    mean, same = sum(shares) / len(shares), sum(share == 1 for share in shares)
    logger.info("%s: %.3f of the leading words agree, %d of 20 texts are the same", form, mean, same)
    assert mean > 0.2


def common(one: list[str], other: list[str]) -> float:
    """Return the share of `other` that `one` begins with."""
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return same / max(1, len(other))
