"""Every recipe parses into the dataclasses that it is for, and every accelerate configuration into accelerate's."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra 'train'")

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.templates import PAPER_FORMAT
from bpo_train.training.dpo import DPOArguments
from bpo_train.training.options import RECIPES, RecipeParser, computes_in_bf16, sft_parser, with_recipe_path

SFT = sorted(path for path in RECIPES.glob("*/*.yaml") if path.stem.partition("-")[0] in ("augment", "rewrite"))
"""A recipe of `bpo-train sft` is named after its mode."""


def _name(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def _options(recipe: Path | str) -> list[str]:
    # use_cpu lets bf16 be parsed on a machine without a GPU.
    return ["--config", str(recipe), "--data", "rows.jsonl", "--output_dir", "run", "--use_cpu", "true"]


@pytest.mark.parametrize("recipe", SFT, ids=_name)
def test_a_recipe_parses_and_says_what_its_name_says(recipe: Path) -> None:
    parser = sft_parser()
    assert parser.preview(_options(recipe))[1] == []
    arguments, config, model = parser.parse(_options(recipe))
    assert arguments.mode == recipe.stem.partition("-")[0]
    assert config.train_sampling_strategy == "group_by_length"
    assert config.report_to == ["tensorboard"]
    if "full" in recipe.stem:
        assert not model.use_peft
    if "lora" in recipe.stem:
        assert model.use_peft
        assert model.load_in_4bit == ("qlora" in recipe.stem)
    head = " ".join(recipe.read_text(encoding="utf-8").partition("\nmode:")[0].split())
    assert "Run on" in head or "Not run" in head  # whether its figures are of a run


def test_there_is_a_recipe_for_each_model_mode_and_method() -> None:
    names = {_name(recipe).removesuffix(".yaml") for recipe in SFT}
    qwen = {f"qwen3-0.6b/{mode}-{how}" for mode in ("augment", "rewrite") for how in ("full", "lora")}
    llama = {f"llama-2-7b-chat/rewrite{how}" for how in ("", "-lora", "-qlora")}
    assert names == qwen | llama | {"smollm2-135m/augment", "smollm2-135m/rewrite"}


def test_the_papers_recipe_has_the_papers_values() -> None:
    arguments, config, model = sft_parser().parse(_options(RECIPES / "llama-2-7b-chat" / "rewrite.yaml"))
    assert (arguments.mode, arguments.format, arguments.total_batch_size) == ("rewrite", PAPER_FORMAT, 32)
    assert (model.model_name_or_path, model.use_peft) == ("meta-llama/Llama-2-7b-chat-hf", False)
    assert (config.num_train_epochs, config.learning_rate, config.max_length) == (3, 2e-5, 512)
    assert (config.adam_beta1, config.adam_beta2, str(config.optim)) == (0.9, 0.999, "OptimizerNames.ADAMW_TORCH_FUSED")
    assert (config.lr_scheduler_type, config.warmup_steps) == ("linear", 0.1)
    assert (config.per_device_train_batch_size, config.load_best_model_at_end) == (4, False)


def test_the_lora_recipe_has_the_reference_codes_values() -> None:
    _, config, model = sft_parser().parse(_options(RECIPES / "llama-2-7b-chat" / "rewrite-lora.yaml"))
    assert (model.lora_r, model.lora_alpha, model.lora_dropout, config.learning_rate) == (8, 32, 0.1, 2e-4)


def test_the_recipe_for_trls_own_command_has_no_option_of_ours() -> None:
    from trl.scripts.sft import make_parser

    recipe = RECIPES / "qwen3-0.6b" / "trl.yaml"
    options = ["--config", str(recipe), "--dataset_name", "rows", "--output_dir", "run", "--use_cpu", "true"]
    script, _, model, _ = make_parser().parse_args_and_config(options)  # unknown options fail
    assert (script.dataset_test_split, model.use_peft) == ("validation", True)


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=_name)
def test_accelerate_loads_the_configuration(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kinds = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}
    assert config.distributed_type == kinds.get(path.stem, "DEEPSPEED")
    assert not config.use_cpu
    if path.stem.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2


def test_the_command_line_wins_over_the_recipe_which_is_found_by_name() -> None:
    options = with_recipe_path(_options("smollm2-135m/augment"))
    _, config, model = sft_parser().parse([*options, "--learning_rate", "0.5", "--lora_r", "3"])
    assert (config.learning_rate, model.lora_r, config.max_length) == (0.5, 3, 256)


@pytest.mark.parametrize(
    ("recipe", "more", "says"),
    [
        ("mode: augment\nlearning_rat: 1\n", (), "options that nobody knows: learning_rat"),
        ("- mode\n", (), "no table of options"),
        ("mode: [\n", (), "no YAML"),
        ("mode: augment\n", ("--learning_rate", "fast"), "invalid float value: 'fast'"),
    ],
)
def test_a_wrong_recipe_or_value_is_one_clear_line(
    tmp_path: Path, recipe: str, more: tuple[str, ...], says: str
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says):
        sft_parser().preview([*_options(path), *more])


def test_options_that_do_not_go_together_are_one_clear_line() -> None:
    with pytest.raises(ConfigurationError, match="do not go together"):
        sft_parser().parse(["--data", "x", "--output_dir", "run", "--load_best_model_at_end", "true"])


def test_an_unknown_recipe_names_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read.*llama-2-7b-chat/rewrite.*smollm2-135m/augment"):
        sft_parser().preview(["--config", "nowhere"])


def test_what_is_looked_for_by_name_may_be_written_with_an_equals_sign() -> None:
    found = with_recipe_path(["--config=smollm2-135m/augment", "--num_processes=2", "--weights", "a=2"])
    assert (found[0], Path(found[1]).name) == ("--config", "augment.yaml")
    assert found[2:] == ["--num_processes", "2", "--weights", "a=2"]


def test_an_error_names_the_command_that_was_given() -> None:
    parser = RecipeParser([DPOArguments], prog="bpo-train dpo")
    with pytest.raises(ConfigurationError, match=r"bpo-train dpo --help"):
        parser.preview(["--pairs", "x", "--limit", "few"])
    with pytest.raises(ConfigurationError, match=r"one of llama-2-7b-chat/dpo, smollm2-135m/dpo\.$"):
        parser.preview(["--config", "nowhere"])


def test_bf16_is_off_where_no_gpu_computes_in_it() -> None:
    import torch

    _, config, _ = sft_parser().parse(["--data", "x", "--output_dir", "run"])
    assert config.bf16 == (torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False))


def test_bf16_is_off_on_a_gpu_that_only_emulates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not computes_in_bf16(Namespace(bf16=None, fp16=False))
    assert computes_in_bf16(Namespace(bf16=True, fp16=False))
