"""How fast rewriting is on a GPU: the model card's loop, `hf:` in batches, and vLLM, at 1, 8, 64 and 200 prompts.

    bash tests/benchmarks/gpu.sh                       # one GPU, at most 8 minutes; what is not there is left out
    python tests/benchmarks/gpu.py --smoke             # the same script with a toy model, anywhere

Throughput is measured on the shape of Llama-2-7B with random weights and fixed lengths (128 new tokens), latency and
prompt lookup on the embedded rewriting model, where its base is installed. Beside the tokens/s stands what the measured
memory bandwidth allows: every decoding step reads all weights once, so a batch of n prompts cannot make more than n
times bandwidth / bytes of weights. Rows that could not be run say so; nothing is estimated.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from report import ROOT, put, table

from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.errors import BPOError
from bpo_integrations.templates import PAPER_FORMAT

SIZES = (1, 8, 64, 200)
SUBJECTS = (
    "heat pumps, the French Revolution, vaccines, chess openings, sourdough bread, black holes, inflation, coral reefs"
)
TASKS = (
    "Explain {} to somebody who has never heard of it.",
    "Write a short article about {} for a school newspaper, with a headline.",
    "What are the five most common misunderstandings about {}, and what is true instead?",
    "Give me a reading list on {} for a beginner who has two weeks of time, and say why each book is worth it.",
    "How would you teach {} in one lesson of forty-five minutes?",
)
PROMPTS = [task.format(subject) for task, subject in product(TASKS, SUBJECTS.split(", "))] * 5


@dataclass(frozen=True)
class Shape:
    """The model that throughput is measured on."""

    name: str
    config: dict[str, int]
    new_tokens: int


LLAMA_2_7B = Shape(
    "Llama-2-7B, random weights, bfloat16",
    {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    128,
)
TOY = Shape(
    "a toy of two layers",
    {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 1024,
    },
    8,
)


def write_model(shape: Shape, folder: Path, device: str) -> int:
    """Write the shape with random weights and a tokenizer trained on the prompts; return the weights' bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(PROMPTS, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
    wrapped.save_pretrained(folder)
    config = LlamaConfig(**shape.config, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    return size


def requests(count: int, new_tokens: int) -> list[Request]:
    """Return requests of fixed length."""
    return [
        Request(tuple(PAPER_FORMAT.messages(prompt)), max_new_tokens=new_tokens, min_new_tokens=new_tokens)
        for prompt in PROMPTS[:count]
    ]


def bandwidth(device: str) -> float:
    """Measure the memory's bandwidth for reading, in bytes a second: the best of 20 sums over a GiB (CPU: 64 MiB)."""
    many = torch.ones((1 << 29) if device == "cuda" else (1 << 25), dtype=torch.bfloat16, device=device)
    best = 0.0
    for _ in range(20):
        seconds = timed(lambda: many.view(torch.int16).max(), device)
        best = max(best, many.numel() * many.element_size() / seconds)
    return best


def timed(call: Callable[[], Any], device: str) -> float:
    """Return the seconds that a call takes, its work on the device included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def loop_of(engine: Any) -> Callable[[Sequence[Request]], None]:
    """Return the model card's loop over an `hf:` engine's own weights: one prompt after the other, plain `generate`."""
    model = engine._loaded()

    def run(batch: Sequence[Request]) -> None:
        for request in batch:
            ids = torch.tensor([model.render(request.messages)], device=model.model.device)
            with torch.inference_mode():
                model.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=request.max_new_tokens,
                    min_new_tokens=request.min_new_tokens,
                    do_sample=False,
                    pad_token_id=model.end,
                )

    return run


def throughput(shape: Shape, device: str, note: Callable[[str], None]) -> tuple[str, list[list[str]]]:
    """Measure tokens/s of the loop, of `hf:` and of vLLM."""
    from bpo_integrations.engines.transformers import TransformersEngine

    folder = Path(tempfile.mkdtemp(prefix="bpo-gpu-"))
    rows = []
    try:
        size = write_model(shape, folder, device)
        speed = bandwidth(device)
        note(f"memory bandwidth {speed / 1e9:.0f} GB/s, weights {size / 1e9:.2f} GB")
        engine = TransformersEngine(str(folder), device=device, dtype="bfloat16")
        ways: dict[str, Callable[[Sequence[Request]], Any]] = {
            "loop": loop_of(engine),
            "hf batched": lambda batch: engine.generate(batch, Decoding()),
        }
        took: dict[tuple[str, int], float] = {}
        for name, way in ways.items():
            way(requests(2, 4))
            for count in SIZES:
                asked = requests(min(count, 8) if name == "loop" else count, shape.new_tokens)  # a loop is linear
                took[name, count] = timed(lambda way=way, asked=asked: way(asked), device) * count / len(asked)
                note(f"{name} {count}: {took[name, count]:.2f} s")
        engine.close()
        ways.clear()
        if device == "cuda":
            torch.cuda.empty_cache()
        vllm = "not run: vLLM is not installed"
        if importlib.util.find_spec("vllm") is not None:
            vllm = ""
            from bpo_integrations.engines.vllm import load_vllm

            rewriter = load_vllm(str(folder), dtype="bfloat16", record=paper_record())
            rewriter.engine.generate(requests(2, 4), Decoding())
            for count in SIZES:
                asked = requests(count, shape.new_tokens)
                took["vLLM", count] = timed(lambda asked=asked: rewriter.engine.generate(asked, Decoding()), device)
                note(f"vLLM {count}: {took['vLLM', count]:.2f} s")
            rewriter.close()
        for name in ("loop", "hf batched", "vLLM"):
            for count in SIZES:
                if name == "vLLM" and vllm:
                    rows.append([name, str(count), vllm, "", "", ""])
                    continue
                rate = count * shape.new_tokens / took[name, count]
                floor = (1 if name == "loop" else count) * speed / size
                gain = took["loop", count] / took[name, count]
                asks = ("15x: met" if gain >= 15 else "15x: **missed**") if (name, count) == ("hf batched", 200) else ""
                rows.append([name, str(count), f"{rate:,.0f}", f"{100 * rate / floor:.0f}%", f"{gain:.1f}x", asks])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    head = (
        f"{shape.name} ({size / 1e9:.1f} GB), {shape.new_tokens} new tokens; measured bandwidth {speed / 1e9:,.0f} "
        "GB/s. The loop was timed on at most 8 prompts and scaled, for it is linear."
    )
    return head, rows


def paper_record() -> Any:
    """Return the paper's record."""
    from bpo_integrations.rewriter import PAPER_RECORD

    return PAPER_RECORD


def real_model(device: str, prompts: Sequence[str], note: Callable[[str], None]) -> list[list[str]]:
    """Measure the embedded rewriting model's latency on the device, with and without prompt lookup."""
    from bpo_integrations.rewriter import load_rewriter

    adapter = ROOT / "bpo_integrations" / "models" / "rewrite"
    rows = []
    try:
        found: dict[str, list[float]] = {}
        for name, lookup in (("hf, plain", 0), ("hf, prompt lookup", 10)):
            rewriter = load_rewriter(f"hf:{adapter}", device=device, prompt_lookup=lookup)
            rewriter.candidates(PROMPTS[:1])
            found[name] = [
                timed(lambda one=rewriter, prompt=prompt: one.candidates([prompt]), device) for prompt in prompts
            ]
            rewriter.close()
            note(f"{name}: {statistics.median(found[name]):.3f} s")
        base = statistics.median(found["hf, plain"])
        for name, seconds in found.items():
            median = statistics.median(seconds)
            rows.append([name, f"{median:.3f} s", f"{base / median:.2f}x"])
    except BPOError as error:
        rows.append(["embedded rewriting model", f"not run: {error.message}", ""])
    return rows


@click.command()
@click.option("--smoke", is_flag=True, help="Use a toy model, on the CPU.")
@click.option("--output", type=click.Path(path_type=Path), default=None, help="Write the tables to this file, too.")
@click.option("--write/--no-write", default=False, help="Write docs/benchmarks.md.")
def main(smoke: bool, output: Path | None, write: bool) -> None:
    """Measure on one GPU."""
    if not smoke and not torch.cuda.is_available():
        msg = "There is no CUDA device here. Try --smoke, which runs the same script with a toy model."
        raise click.ClickException(msg)
    device = "cpu" if smoke else "cuda"
    started = time.monotonic()

    def note(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    name = "CPU (smoke)" if smoke else torch.cuda.get_device_name()
    latency = real_model(device, PROMPTS[:2] if smoke else PROMPTS[:40], note)
    head, rows = throughput(TOY if smoke else LLAMA_2_7B, device, note)
    text = "\n\n".join(
        [
            f"{name}, torch {torch.__version__}. {head}",
            table(["way", "prompts", "tokens/s", "of what the bandwidth allows", "of the loop", "asked"], rows),
            "The embedded rewriting model, one prompt at a time, medians.",
            table(["way", "latency", "of plain"], latency),
        ]
    )
    print(f"\n{text}")
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    if write:
        put(ROOT / "docs" / "benchmarks.md", "gpu", text)


if __name__ == "__main__":
    main()
