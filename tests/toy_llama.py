"""A Llama of two layers with a byte-level tokenizer in a folder, and rows to train it on: made in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROWS = [
    {
        "id": number,
        "source": "even" if number % 2 == 0 else "odd",
        "licence": "MIT" if number % 4 else "CC-BY-NC-4.0",
        "prompt": f"What is the meaning of number {number}?",
        "addition": "" if number % 5 == 0 else f"Explain number {number} with {'an example' * (1 + number % 3)}.",
    }
    for number in range(40)
]


def write_toy(folder: Path) -> Path:
    """Write the model and its tokenizer."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel.alphabet()
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(sorted(letters))}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_rows(folder: Path) -> Path:
    """Write the rows, and the ids that are held out."""
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    (folder / "held.txt").write_text("1\n2\n3\n", encoding="utf-8")
    return folder


def sft_options(toy: Path, data: Path, output: Path, *more: str) -> list[str]:
    """Return options of `bpo-train sft` that train the toy for a moment."""
    return [
        *("--config", "smollm2-135m/augment", "--model_name_or_path", str(toy), "--data", str(data / "rows.jsonl")),
        *("--held_out", str(data / "held.txt"), "--output_dir", str(output), "--max_length", "400"),
        *("--logging_steps", "1", "--save_steps", "2", "--eval_generations", "2", "--disable_tqdm", "true"),
        *("--report_to", "none", *more),
    ]


def watched_weights(monkeypatch: pytest.MonkeyPatch, trainer: type) -> dict[str, Any]:
    """Return what fills, while `trainer` trains, with each parameter by name: (is trained, before, after)."""
    found: dict[str, Any] = {}
    real: Any = trainer.train  # type: ignore[attr-defined]

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        result = real(self, *args, **kwargs)
        for name, weight in self.model.named_parameters():
            found[name] = (weight.requires_grad, before[name], weight.detach().clone())
        return result

    monkeypatch.setattr(trainer, "train", train)
    return found
