"""Recipe and command line into dataclasses; what does not parse is one clear line.

Promises: the command line wins over the recipe; an option that nobody knows is an error; bf16 is on where the device
computes in it, unless it was asked for or against.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml  # type: ignore[import-untyped]
from trl import ModelConfig, SFTConfig, TrlParser

from bpo_integrations.errors import BPOError, ConfigurationError
from bpo_train.training.arguments import COMPLETION_FIELD, SFTArguments
from bpo_train.training.launch import FILE, NAMED, PROCESSES

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
RECIPE = "--config"


def computes_in_bf16(config: Any) -> bool:
    """Whether to compute in bfloat16: as asked for, else where the GPU does so itself (an emulation is slow)."""
    if config.bf16 is not None:
        return bool(config.bf16)
    return not config.fp16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass
class SFTOptions(SFTConfig):
    """TRL's `SFTConfig`, with bf16 by device."""

    def __post_init__(self) -> None:
        """Settle what the device decides."""
        self.bf16 = computes_in_bf16(self)
        super().__post_init__()  # type: ignore[no-untyped-call]


class RecipeParser(TrlParser):
    """TRL's parser, whose complaints are `ConfigurationError`s."""

    def error(self, message: str) -> NoReturn:
        """Refuse a value on the command line."""
        msg = f"{message[:1].upper()}{message[1:]}."
        raise ConfigurationError(msg, hint=f"All options: {self.prog} --help.")

    def preview(self, options: Sequence[str]) -> tuple[Namespace, list[str]]:
        """Return the values as they stand in recipe and command line, and the options that are not ours.

        Raises:
            ConfigurationError: The recipe cannot be read, or a value cannot be.
        """
        rest = list(options)
        if RECIPE in rest:
            at = rest.index(RECIPE)
            path = Path("".join(rest[at + 1 : at + 2]))
            values = _read_recipe(path, self.prog.rpartition(" ")[2])
            del rest[at : at + 2]
            values.pop("env", None)
            if unknown := self.set_defaults_with_config(**values):
                names = ", ".join(name.removeprefix("--") for name in unknown[::2])
                msg = f"{path} has options that nobody knows: {names}."
                raise ConfigurationError(msg, hint=f"Correct the recipe; all options: {self.prog} --help.")
        return self.parse_known_args(rest)

    def parse(self, options: Iterable[str]) -> tuple[Any, ...]:
        """Return the dataclasses.

        Raises:
            ConfigurationError: Options are unknown or do not go together.
        """
        try:
            return tuple(self.parse_args_and_config(args=list(options)))
        except BPOError:
            raise
        except (ValueError, TypeError) as error:
            msg = f"These options do not go together: {error}"
            raise ConfigurationError(msg, hint="Correct the recipe or the command line.") from error


def sft_parser() -> RecipeParser:
    """Return the parser of `bpo-train sft`: our arguments, TRL's `SFTConfig` and `ModelConfig`."""
    kinds: Any = [SFTArguments, SFTOptions, ModelConfig]
    return RecipeParser(kinds, prog="bpo-train sft")


def with_recipe_path(options: Sequence[str]) -> list[str]:
    """Return the options with `--config NAME` as a path, where NAME is one of the recipes that come with the package.

    What is looked for by name, here and by the launcher, may be written with `=`, too.

    Example:
        >>> Path(with_recipe_path(["--config", "smollm2-135m/augment"])[1]).name
        'augment.yaml'
    """
    named = (RECIPE, NAMED, FILE, PROCESSES)
    found: list[str] = []
    for option in options:
        found += option.split("=", 1) if option.partition("=")[0] in named else [option]
    for at, name in enumerate(found[1:], start=1):
        shipped = RECIPES / f"{name.removesuffix('.yaml')}.yaml"
        if found[at - 1] == RECIPE and not Path(name).is_file() and shipped.is_file():
            found[at] = str(shipped)
    return found


def _read_recipe(path: Path, stage: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        kinds = COMPLETION_FIELD if stage == "sft" else (stage,)
        shipped = [file for kind in kinds for file in RECIPES.glob(f"*/{kind}*.yaml")]
        names = sorted(str(file.relative_to(RECIPES).with_suffix("")) for file in shipped)
        msg = f"The recipe {path} cannot be read: {error.strerror or error}."
        hint = f"Give a file, or one of {', '.join(names)}."
        raise ConfigurationError(msg, hint=hint) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"The recipe {path} is no YAML: {error}."
        raise ConfigurationError(msg, hint="Correct it.") from error
    if not isinstance(values, dict):
        msg = f"The recipe {path} is no table of options."
        raise ConfigurationError(msg, hint="Write `option: value` in each line.")
    return values
