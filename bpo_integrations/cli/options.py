"""The options that configure the optimizer, shared by every command that optimizes, and where the prompt comes from."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import click

from bpo_integrations.cli.rows import decode_utf8
from bpo_integrations.decoding import DECODINGS, GREEDY, STABLE, Decoding, named_decoding
from bpo_integrations.optimizer import MAX_PASSES, PromptOptimizer
from bpo_integrations.result import Mode
from bpo_integrations.rewriter import Rewriter

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from bpo_integrations.gate import Gate


@dataclass(frozen=True, slots=True)
class Parts:
    """Ready-made parts for a program that embeds `bpo`: `main(args, obj=Parts(rewriter=...))`.

    Args:
        rewriter: Used instead of the one that `--model` names.
        llm: Used instead of the one that `--llm` names.
    """

    rewriter: Rewriter | None = None
    llm: BaseChatModel | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options say about the optimizer; each field is the option of that name."""

    model: str = "embedded"
    engine: tuple[tuple[str, Any], ...] = field(default=(), repr=False)
    mode: Mode | None = None
    decoding: str | None = None
    n: int | None = None
    seed: int | None = None
    passes: int = 1
    threshold: float | None = None
    unsafe: Literal["keep", "soften"] = "keep"
    protect: tuple[str, ...] = ()
    profile: Gate | None = None
    policy: Gate | None = None
    timeout: float = 60.0
    strict: bool = False

    def settled_decoding(self) -> Decoding:
        """Return the decoding that the options ask for.

        Raises:
            click.UsageError: Several candidates are asked of greedy decoding, which has one.
        """
        if self.decoding == "greedy" and self.n is not None and self.n > 1:
            msg = f"--n {self.n} needs sampling, and greedy decoding has one candidate only. Use --decoding stable."
            raise click.UsageError(msg)
        default = GREEDY if self.n is None or self.n == 1 else STABLE
        decoding = default if self.decoding is None else named_decoding(self.decoding)
        return replace(decoding, n=self.n or decoding.n, seed=self.seed, empty_threshold=self.threshold)

    def build(self, rewriter: Rewriter | None = None) -> PromptOptimizer:
        """Build the optimizer; weights load when it is first used.

        Args:
            rewriter: Used instead of the one that `model` names.

        Raises:
            click.UsageError: Options contradict each other.
            ConfigurationError: A model or a package is missing, or the model cannot do what is asked.
        """
        if self.mode == "rewrite" and self.threshold is not None:
            msg = "--threshold is for augment mode: a rewrite is never empty."
            raise click.UsageError(msg)
        return PromptOptimizer(
            self.model if rewriter is None else rewriter,
            mode=self.mode,
            decoding=self.settled_decoding(),
            unsafe=self.unsafe,
            protect=self.protect,
            profile=self.profile,
            policy=self.policy,
            passes=self.passes,
            timeout=self.timeout,
            on_error="raise" if self.strict else "passthrough",
            engine_options={} if rewriter is not None else dict(self.engine),
        )

    def fingerprint(self, rewriter: Rewriter) -> dict[str, Any]:
        """Return, as plain data, everything that a result depends on besides its prompt."""
        names = ("decoding", "n", "seed", "passes", "threshold", "unsafe")
        values = {name: getattr(self, name) for name in names}
        gates = {name: gate.id for name, gate in (("profile", self.profile), ("policy", self.policy)) if gate}
        return {"rewriter": rewriter.id, **values, "protect": list(self.protect), **gates}


def _engine_options(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[tuple[str, Any], ...]:
    """Read KEY=VALUE; a value is JSON where it can be (4, true, null), else a text."""
    found: dict[str, Any] = {}
    for item in given:
        key, mark, value = item.partition("=")
        if not mark or not key.isidentifier():
            # Not the whole item: what stands behind the mark may be a key.
            msg = f"{key!r} is no option's name. Give KEY=VALUE, with _ and not -."
            raise click.BadParameter(msg, context, parameter)
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return tuple(found.items())


def _gate(context: click.Context, parameter: click.Parameter, given: str | None) -> Gate | None:
    """Read a profile or policy file now: a job goes on with what it was begun with, on other machines too."""
    if given is None:
        return None
    from bpo_integrations.profiles import load_profile

    return load_profile(given)


_OPTIONS = (
    click.option(
        "--model", metavar="SPEC", default="embedded", show_default=True,
        help="What optimizes: 'embedded', 'ct2:DIR', 'gguf:DIR', 'hf:ID' such as hf:THUDM/BPO, 'vllm:ID', "
        "'server:MODEL', or any LLM that LangChain knows, such as openai:gpt-4o-mini.",
    ),
    click.option(
        "--engine", metavar="KEY=VALUE", multiple=True, callback=_engine_options,
        help="An option of the model's engine, such as base_url=http://localhost:8000/v1 or device=cuda. May be given "
        "repeatedly.",
    ),
    click.option(
        "--mode", type=click.Choice(["augment", "rewrite"]),
        help="Add to the prompt, or rewrite it whole. Default: the model's own (embedded: augment).",
    ),
    click.option(
        "--decoding", type=click.Choice(list(DECODINGS)),
        help="How candidates are drawn. Default: greedy, or stable when --n is more than 1.",
    ),
    click.option("--n", metavar="N", type=click.IntRange(min=1), help="Candidates to draw; the best one is used."),
    click.option("--seed", metavar="N", type=click.IntRange(min=0), help="Make sampling repeatable."),
    click.option(
        "--passes", metavar="N", type=click.IntRange(1, MAX_PASSES), default=1, show_default=True,
        help=f"Rewrite mode: optimize the result again, up to {MAX_PASSES} times in all.",
    ),
    click.option(
        "--threshold", metavar="P", type=click.FloatRange(min=0),
        help="Augment mode: add nothing where the model's probability of adding nothing is at least P "
        "(0: never add, above 1: always). Default: the model's own.",
    ),
    click.option(
        "--unsafe", type=click.Choice(["keep", "soften"]), default="keep", show_default=True,
        help="Leave a plainly unsafe prompt to the LLM's own policy, or ask for a harmless one on its topic.",
    ),
    click.option(
        "--protect", metavar="TEXT", multiple=True, help="Words that must survive a rewrite. May be given repeatedly."
    ),
    click.option(
        "--profile", metavar="NAME|FILE", callback=_gate,
        help="Which prompts are worth it: 'small' (all that the rules let through), 'strong' (estimates, what-ifs and "
        "code with traps), or a policy file.",
    ),
    click.option("--policy", metavar="FILE", callback=_gate, help="A policy file of bpo-train calibrate."),
    click.option(
        "--timeout", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
        help="How long a prompt (of a file: every 8 of them) may wait for the model.",
    ),
    click.option("--strict", is_flag=True, help="Fail where the model fails, instead of keeping the prompt."),
)  # fmt: skip


def optimizer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the optimizer's options; it receives them as one `settings`."""

    @functools.wraps(command)
    def packed(**given: Any) -> None:
        settings = Settings(**{part.name: given.pop(part.name) for part in fields(Settings)})
        command(settings=settings, **given)

    for option in reversed(_OPTIONS):
        packed = option(packed)
    return packed


@dataclass(frozen=True, slots=True)
class PromptInput:
    """A prompt and the line ending that goes behind its result."""

    text: str
    ending: str = "\n"


def read_prompt(argument: str | None) -> PromptInput:
    r"""Return the prompt of the command line, or of standard input where it is `-` or missing and input is piped.

    One line ending at the end of standard input is the shell's and no part of the prompt; it is put back behind the
    result. A byte order mark at the start is dropped. Everything else stays byte for byte.

    Raises:
        click.UsageError: There is no prompt.
        FileError: Standard input is not UTF-8.
    """
    if argument not in (None, "-"):
        return PromptInput(str(argument))
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        msg = "Missing PROMPT. Give one in quotes, or pipe it in."
        raise click.UsageError(msg)
    text = decode_utf8(sys.stdin.buffer.read(), "Standard input").removeprefix("\ufeff")
    for ending in ("\r\n", "\n"):
        if text.endswith(ending):
            return PromptInput(text.removesuffix(ending), ending)
    return PromptInput(text)
