"""`bpo-train export`: every form loads by its spec and says what the trained model says; nothing half-done is left."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from toy_model import write_gguf

pytest.importorskip("trl", reason="needs the extra 'train'")
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from bpo_integrations import BPORunnable, load_rewriter
from bpo_integrations.cli.exits import FileError
from bpo_integrations.decoding import Decoding
from bpo_integrations.engines.base import Request
from bpo_integrations.engines.causal_lm import ChatTokenizer, load_causal_lm
from bpo_integrations.errors import ConfigurationError, ModelFormatError, ModelNotFoundError
from bpo_integrations.models.gguf_base import GGUFBase
from bpo_integrations.rewriter import Record
from bpo_integrations.templates import PromptFormat
from bpo_train.cli import cli
from bpo_train.export import Export, export
from bpo_train.exporting.record import record_of
from bpo_train.exporting.trained import TrainedRun
from bpo_train.training.run import write_run

PROMPTS = [f"What is the meaning of number {number}, and why?" for number in range(20)]
NEW_TOKENS = 24
FORMAT = PromptFormat(system="Add what is missing.")
FACTS = {
    "stage": "sft",
    "mode": "augment",
    "format": {"system": FORMAT.system, "user": FORMAT.user, "history": ""},
    "base": "toy/base",
    "method": "lora",
    "data": {"rows": 40, "distinct": 40, "licences": {"MIT": 30, "CC-BY-NC-4.0": 10}, "sources": {"mine": 40}},
    "hyperparameters": {"learning_rate": 8e-4},
    "metrics": {"eval_loss": 3.25},
    "versions": {"trl": "1.16.0"},
}
SPECS = {"adapter": "hf", "merged": "hf", "ct2": "ct2", "gguf": "gguf"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, as transformers saves it."""
    folder = tmp_path_factory.mktemp("toy") / "base"
    model, tokenizer = load_causal_lm(str(write_gguf(folder.with_suffix(".gguf"))))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(base: Path, folder: Path, *, seed: int = 0) -> Path:
    """Write what a LoRA run leaves behind, every factor moved."""
    model, tokenizer = load_causal_lm(str(base))
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_run(folder, FACTS)
    return folder


def test_a_record_that_no_decoding_takes_is_refused(tmp_path: Path) -> None:
    trained = TrainedRun((tmp_path,), True, "toy/base", ({"mode": "augment"},))
    assert record_of(trained, name="mine", chosen={"repetition_penalty": 1.0}).repetition_penalty == 1
    for chosen in ({"repetition_penalty": 0.9}, {"max_prompt_tokens": 0}, {"empty_threshold": -1.0}):
        with pytest.raises(ConfigurationError, match="Impossible record"):
            record_of(trained, name="mine", chosen=chosen)


def test_a_checkpoint_has_the_record_that_its_run_has(tmp_path: Path) -> None:
    (tmp_path / "bpo.json").write_text(Record("run", "augment", FORMAT, empty_threshold=0.85).to_json())
    checkpoint = tmp_path / "checkpoint-50"
    checkpoint.mkdir()
    record = record_of(TrainedRun((checkpoint,), True, "toy/base", (None,)), name="mine")
    assert (record.name, record.empty_threshold, record.format) == ("mine", 0.85, FORMAT)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(base, tmp_path_factory.mktemp("runs") / "lora")


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Every form, in float32."""
    output = tmp_path_factory.mktemp("exports") / "mine"
    forms = ("adapter", "merged", "ct2", "gguf")
    return export(Export([run], output, forms, dtype="float32", ct2_type="float32", gguf_type="f32"))


@pytest.fixture(scope="module")
def trained(base: Path, run: Path) -> list[tuple[str, int]]:
    """What the model says as the trainer has it: the adapter beside the base's weights, not merged."""
    model, tokenizer = load_causal_lm(str(base))
    return says(PeftModel.from_pretrained(model, str(run)).eval(), tokenizer)


def says(model: Any, tokenizer: Any) -> list[tuple[str, int]]:
    """Return transformers' own greedy answer to each prompt: its text, and its number of tokens."""
    chat = ChatTokenizer(tokenizer)
    end = tokenizer.eos_token_id
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([chat.render(FORMAT.messages(prompt))])
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            suppress_tokens=sorted(chat.control.keys() - {end}),
            eos_token_id=end,
            pad_token_id=end,
        )[0, ids.shape[1] :].tolist()
        made = made[: made.index(end)] if end in made else made
        found.append((tokenizer.decode(made, skip_special_tokens=True), len(made)))
    return found


def loaded_says(spec: str, **options: Any) -> list[tuple[str, int]]:
    """Return what a rewriter's engine says to the same prompts, with neither gate nor penalty."""
    rewriter = load_rewriter(spec, **options)
    requests = [Request(tuple(rewriter.record.format.messages(prompt)), NEW_TOKENS) for prompt in PROMPTS]
    rows = rewriter.engine.generate(requests, Decoding())
    return [(row[0].text, row[0].tokens or 0) for row in rows]


def gguf_options(folder: Path) -> dict[str, Any]:
    return {"cache_dir": str(folder), "compute_type": "float32"}


@pytest.mark.parametrize("form", ["adapter", "merged", "ct2", "gguf"])
def test_every_form_loads_by_its_spec_and_gives_the_trainers_greedy_tokens(
    form: str, exported: dict[Any, Path], trained: list[tuple[str, int]], tmp_path: Path
) -> None:
    spec = f"{SPECS[form]}:{exported[form]}"
    options = gguf_options(tmp_path) if form == "gguf" else {}
    assert len({text for text, _ in trained}) > 10  # the toy does not say one thing to all
    assert loaded_says(spec, **options) == trained
    runnable = BPORunnable(model=spec, engine_options=options, policy=None)
    assert runnable.invoke("Tell me about tea").startswith("Tell me about tea")


def test_the_base_can_be_named_anew_when_an_adapter_is_loaded(
    base: Path, exported: dict[Any, Path], trained: list[tuple[str, int]]
) -> None:
    assert loaded_says(f"hf:{exported['adapter']}", base=str(base)) == trained


def test_the_forms_of_fewer_bits_load_and_answer(run: Path, tmp_path: Path) -> None:
    """What rounding does to the texts of a random toy says nothing; `test_export_real.py` measures it."""
    done = export(Export([run], tmp_path / "mine", ("adapter", "merged", "ct2", "gguf"), dtype="bfloat16"))
    for form in ("adapter", "merged", "ct2", "gguf"):
        options = {"cache_dir": str(tmp_path / "cache")} if form == "gguf" else {}
        found = loaded_says(f"{SPECS[form]}:{done[form]}", **options)
        assert sum(bool(text) for text, _ in found) > 10
    kinds = {weight.dtype for weight in load_file(done["merged"] / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    assert (done["gguf"] / "mine.Q8_0.gguf").stat().st_size < (done["merged"] / "model.safetensors").stat().st_size


def test_a_full_fine_tune_is_exported_as_whole_weights(base: Path, tmp_path: Path) -> None:
    done = export(Export([base], tmp_path / "full", mode="augment", record={"format": FORMAT}))
    assert list(done) == ["merged"]
    model, tokenizer = load_causal_lm(str(base))
    assert loaded_says(f"hf:{tmp_path / 'full'}") == says(model, tokenizer)
    with pytest.raises(ConfigurationError, match="no adapter"):
        export(Export([base], tmp_path / "other", ("adapter",), mode="augment"))


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_the_gguf_file_holds_the_merged_weights_and_their_tokenizer(
    kind: Any, run: Path, exported: dict[Any, Path], tmp_path: Path
) -> None:
    done = export(Export([run], tmp_path / "one", ("gguf",), gguf_type=kind))
    (path,) = done["gguf"].glob("*.gguf")
    model, tokenizer = load_causal_lm(str(path))
    merged, own = load_causal_lm(str(exported["merged"]))
    text = "It's 1234 o'clock — naïve ab <|im_end|>\n"
    assert tokenizer(text)["input_ids"] == own(text)["input_ids"]
    ids = torch.tensor([own("Tell me about tea")["input_ids"]])
    with torch.inference_mode():
        logits, expected = model(ids).logits, merged(ids).logits
    if kind == "f32":
        assert torch.equal(logits, expected)
    assert torch.allclose(logits, expected, atol={"f32": 0, "f16": 0.1, "q8_0": 2.0}[kind])
    assert GGUFBase(path).metadata["general.name"] == "one"


def test_a_model_of_another_architecture_goes_through_ctranslate2s_own_converter(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4}
    config = Qwen3Config(vocab_size=280, max_position_embeddings=300, eos_token_id=2, **sizes, **heads)
    model = Qwen3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    wanted = {"mode": "augment", "record": {"format": FORMAT}}
    done = export(Export([tmp_path / "qwen"], tmp_path / "ct2", ("ct2",), ct2_type="float32", **wanted))
    assert json.loads((done["ct2"] / "config.json").read_text())["max_position_embeddings"] == 300
    assert not list(done["ct2"].glob(".*"))
    found, expected = loaded_says(f"ct2:{done['ct2']}"), says(model, tokenizer)
    assert found == expected
    with pytest.raises(ModelFormatError, match=r"'qwen3'.*convert_hf_to_gguf"):
        export(Export([tmp_path / "qwen"], tmp_path / "gguf", ("merged", "gguf"), **wanted))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct2", "qwen"]  # nothing of what failed


def test_a_model_that_ctranslate2_does_not_know_is_refused(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, SmolLM3Config, SmolLM3ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 274}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 2, "eos_token_id": 2}
    SmolLM3ForCausalLM(SmolLM3Config(**sizes, **heads)).save_pretrained(tmp_path / "run")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "run")
    with pytest.raises(ModelFormatError, match=r"SmolLM3.*hf:DIR"):
        export(Export([tmp_path / "run"], tmp_path / "out", ("ct2",), mode="augment"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["ct2", "gguf"])
@pytest.mark.parametrize("template", ["[INST] {{ messages[0]['content'] }} [/INST]", None, "thinks"])
def test_a_chat_template_that_the_engine_does_not_have_is_refused(
    base: Path, tmp_path: Path, form: Any, template: str | None
) -> None:
    model, tokenizer = load_causal_lm(str(base))
    if template == "thinks":
        template = str(tokenizer.chat_template) + "{{ '<|im_start|>' }}"
    tokenizer.chat_template = template
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    with pytest.raises(ModelFormatError, match="ChatML"):
        export(Export([tmp_path / "run"], tmp_path / "out", (form,), mode="augment"))


def test_a_tokenizer_that_gguf_cannot_tell_is_refused(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_causal_lm(str(base))
    tokenizer.add_tokens(["number"])  # a token that is no control token, and takes precedence over the merges
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    with pytest.raises(ModelFormatError, match=r"tokenizer.*convert_hf_to_gguf"):
        export(Export([tmp_path / "run"], tmp_path / "out", ("gguf",), mode="augment"))


def test_the_tokenizer_of_gpt2_goes_through_gguf(base: Path, tmp_path: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    model, tokenizer = load_causal_lm(str(base))
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)  # without SmolLM's single digits
    model.save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    wanted = {"mode": "augment", "record": {"format": FORMAT}, "gguf_type": "f32"}
    done = export(Export([tmp_path / "run"], tmp_path / "out", ("gguf",), **wanted))
    (path,) = done["gguf"].glob("*.gguf")
    assert GGUFBase(path).metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert loaded_says(f"gguf:{path}", **gguf_options(tmp_path / "cache")) == says(model, tokenizer)


def test_a_gguf_spec_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"0 \.gguf files"):
        load_rewriter(f"gguf:{tmp_path}")
    with pytest.raises(ModelNotFoundError, match="There is no file"):
        load_rewriter(f"gguf:{tmp_path / 'no.gguf'}")
    write_gguf(tmp_path / "one.gguf")
    with pytest.raises(ModelFormatError, match=r"bpo\.json"):
        load_rewriter(f"gguf:{tmp_path}")
    write_gguf(tmp_path / "two.gguf")
    with pytest.raises(ModelNotFoundError, match=r"2 \.gguf files"):
        load_rewriter(f"gguf:{tmp_path}")


def test_several_adapters_become_their_mean(base: Path, run: Path, tmp_path: Path) -> None:
    other = train(base, tmp_path / "other", seed=1)
    done = export(Export([run, other], tmp_path / "mean", ("adapter", "merged"), dtype="float32"))
    found = load_file(done["adapter"] / "adapter_model.safetensors")
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (run, other))
    assert all(torch.allclose(found[name], (one[name] + two[name]) / 2) for name in one)
    assert loaded_says(f"hf:{done['adapter']}") == loaded_says(f"hf:{done['merged']}")
    assert "the mean of 2 trained adapters" in (done["merged"] / "README.md").read_text()


def test_the_record_is_the_runs_and_options_override_it(run: Path, tmp_path: Path) -> None:
    chosen = {"languages": ("de", "en"), "new_tokens": 30, "empty_threshold": 0.7, "max_prompt_tokens": None}
    record = Record.read(export(Export([run], tmp_path / "mine", record=chosen))["adapter"])
    assert (record.format, record.mode, record.name) == (FORMAT, "augment", "mine")
    assert (record.languages, record.new_tokens, record.empty_threshold) == (("de", "en"), 30, 0.7)
    assert record.max_prompt_tokens == 1024
    assert record.base == "base"  # a folder of this machine goes by its name
    checkpoint = tmp_path / "run" / "checkpoint-2"
    train(Path(json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"]), checkpoint)
    (checkpoint / "run.json").rename(tmp_path / "run" / "run.json")
    assert Record.read(export(Export([checkpoint], tmp_path / "early"))["adapter"]).format == FORMAT


def test_a_run_that_does_not_say_its_mode_needs_it_said(base: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--mode"):
        export(Export([base], tmp_path / "out"))
    with pytest.raises(ConfigurationError, match="'augment', not 'rewrite'"):
        export(Export([run], tmp_path / "out", mode="rewrite"))


def test_only_an_earlier_export_is_replaced(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileError):
            export(Export([run], output, overwrite=overwrite))
    assert (output / "thesis.tex").read_text() == "years of work"
    (output / "thesis.tex").unlink()
    export(Export([run], output, ("adapter", "ct2")))
    with pytest.raises(FileError, match="--overwrite"):
        export(Export([run], output))
    export(Export([run], output, overwrite=True))
    assert {path.name for path in output.iterdir()} >= {"adapter_config.json", "bpo.json", "README.md"}
    assert not (output / "ct2").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ConfigurationError, match="holds the run"):
        export(Export([run], run.parent, overwrite=True))


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "bpo_train.cli", "export", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.mark.parametrize("form", ["merged", "gguf"])  # written by Rust, and by numpy
def test_a_full_disk_is_one_line_and_leaves_nothing(run: Path, tmp_path: Path, form: str) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    done = command("--run", run, "--output", tmp_path / "out", "--to", form, "--gguf-type", "f32", preexec_fn=small)
    assert done.returncode == 4, done.stderr
    assert "out cannot be written: " in done.stderr
    assert "too large" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_cleared_away(run: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished" / "model.bin").write_text("half")
    export(Export([run], tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "model.bin").exists()


def test_a_dry_run_lists_files_sizes_and_card_and_asks_nobody(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    output = tmp_path / "out"
    options = ["--run", str(run), "--output", str(output), "--to", "merged", "--to", "ct2", "--licence", "apache-2.0"]
    done = CliRunner().invoke(cli, ["export", *options, "--push-to-hub", "me/mine", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "Would upload to me/mine-merged:" in done.stdout
    assert "Would upload to me/mine-ct2:" in done.stdout
    assert f"{(output / 'ct2' / 'model.bin').stat().st_size:,}  model.bin" in done.stdout
    assert "license: apache-2.0" in done.stdout


def test_an_upload_gets_the_whole_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, repository: str, **options: Any) -> Any:
            calls.append((repository, options))
            return type("Made", (), {"repo_id": repository})

        def upload_folder(self, **options: Any) -> Any:
            calls.append(("upload", options))
            return type("Done", (), {"commit_url": "https://hub/commit/1"})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    output = tmp_path / "out"
    options = ["--run", str(run), "--output", str(output), "--to", "merged", "--push-to-hub", "me/mine", "--private"]
    done = CliRunner().invoke(cli, ["export", *options])
    assert done.exit_code == 0, done.output
    assert "Uploaded: https://hub/commit/1" in done.stdout
    (made, how), (_, upload) = calls
    assert (made, how["private"], how["exist_ok"]) == ("me/mine", True, True)
    assert (upload["repo_id"], upload["folder_path"]) == ("me/mine", output)


def test_an_adapter_that_nobody_else_could_load_is_not_uploaded(run: Path, tmp_path: Path) -> None:
    options = ["--run", str(run), "--output", str(tmp_path / "out"), "--push-to-hub", "me/mine", "--dry-run"]
    done = CliRunner().invoke(cli, ["export", *options])
    assert done.exit_code == 3
    assert "only this machine has" in done.stderr
    done = CliRunner().invoke(cli, ["export", *options, "--overwrite", "--base", "toy/base"])
    assert done.exit_code == 0, done.output


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"error": "Invalid username or password."}'
        self.send_response(401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_token_that_the_hub_refuses_is_one_line(run: Path, tmp_path: Path) -> None:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_wrong", "HF_HUB_OFFLINE": "0"}
    options = ("--run", run, "--output", tmp_path / "out", "--base", "toy/base", "--push-to-hub", "me/mine")
    done = command(*options, env={**os.environ, **hub})
    server.shutdown()
    server.server_close()
    assert done.returncode == 3, done.stderr
    assert "refuses to let this token write to me/mine (HTTP 401)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hf_wrong" not in done.stderr
    assert Record.read(tmp_path / "out").name == "out"


def test_a_missing_token_and_a_wrong_name_are_found_before_any_work(run: Path, tmp_path: Path) -> None:
    alone = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    alone.pop("HF_TOKEN", None)
    for repository, says in (("me/mine", "no token"), ("me/my model", "no name for a repository")):
        done = command("--run", run, "--output", tmp_path / "out", "--push-to-hub", repository, env=alone)
        assert done.returncode == 3, done.stderr
        assert says in done.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says", "code"),
    [
        (["--dry-run"], "--push-to-hub", 2),
        (["--to", "onnx"], "onnx", 2),
        (["--base", "no/such-model", "--to", "merged"], "cannot be loaded", 3),
        (["--threshold", "0.5", "--mode", "rewrite"], "not 'rewrite'", 3),
    ],
)
def test_a_wrong_option_is_one_clear_line(run: Path, tmp_path: Path, options: list[str], says: str, code: int) -> None:
    done = CliRunner().invoke(cli, ["export", "--run", str(run), "--output", str(tmp_path / "out"), *options])
    assert done.exit_code == code
    assert says in done.stderr
    assert not (tmp_path / "out").exists()
