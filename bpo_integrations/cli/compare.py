"""`bpo compare`: an LLM answers the prompt as it is and as optimized; both answers side by side."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bpo_integrations.cli import show
from bpo_integrations.cli.exits import LLMError, one_line
from bpo_integrations.cli.options import Parts, Settings, optimizer_options, read_prompt
from bpo_integrations.errors import BPOError, ConfigurationError, MissingExtraError
from bpo_integrations.result import OptimizedPrompt

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

NARROW = 100
"""Columns of a terminal below which the answers stand one above the other."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An LLM's answer.

    Args:
        prompt: What it was asked.
        text: What it said.
        words: Words in it.
        seconds: Seconds that it took.
    """

    prompt: str
    text: str
    words: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both answers; `after` is None where the prompt was kept, and the LLM was asked once only."""

    prompt: OptimizedPrompt
    before: Answer
    after: Answer | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "prompt": self.prompt.to_dict(),
            "original_answer": asdict(self.before),
            "optimized_answer": asdict(self.after) if self.after is not None else None,
        }


def load_llm(spec: str) -> BaseChatModel:
    """Return the chat model that a spec names.

    Args:
        spec: `embedded`, the small local model without any adapter, or what LangChain's `init_chat_model` knows, for
            example `openai:gpt-4o-mini`.

    Raises:
        MissingExtraError: LangChain is not installed.
        ConfigurationError: The model cannot be made: an unknown provider, a missing package or key.
    """
    if spec == "embedded":
        try:
            from bpo_integrations.langchain.embedded_chat import ChatEmbedded
        except BPOError:
            raise
        except ImportError as error:
            raise MissingExtraError(error.name or "langchain-core", extra="langchain") from error
        return ChatEmbedded()
    try:
        from langchain.chat_models import init_chat_model
    except ImportError as error:
        raise MissingExtraError("langchain", extra="agents") from error
    try:
        llm: BaseChatModel = init_chat_model(spec)
    except Exception as error:  # every provider has errors of its own; all of them are about the configuration
        msg = f"The LLM {spec!r} cannot be used: {one_line(str(error))}"
        raise ConfigurationError(msg, hint="Give --llm as PROVIDER:MODEL, or 'embedded'.") from error
    return llm


def ask(llm: BaseChatModel, prompt: str) -> Answer:
    """Ask an LLM.

    Raises:
        LLMError: It failed.
    """
    started = time.perf_counter()
    try:
        text = str(llm.invoke(prompt).text)
    except BPOError:
        raise
    except Exception as error:  # a remote model's client may raise anything; one line is what the user can use
        msg = f"The LLM failed: {type(error).__name__}: {one_line(str(error))}"
        raise LLMError(msg, hint="Check its key and its network, and try again.") from error
    return Answer(prompt, text, len(text.split()), time.perf_counter() - started)


def _report(found: Comparison, width: int) -> RenderableType:
    """Return the comparison for people, `width` columns wide."""
    if found.after is None:
        note = Text(f"The prompt is kept as it is ({found.prompt.reason}); the LLM was asked once.", style="bold")
        return Group(note, _panel("the prompt", found.before, width))
    if width < NARROW:
        return Group(_panel("original", found.before, width), _panel("optimized", found.after, width))
    table = Table(width=width, show_lines=True)
    table.add_column("original", ratio=1)
    table.add_column("optimized", ratio=1)
    both = (found.before, found.after)
    table.add_row(*(Text(answer.prompt, style="bold") for answer in both))
    table.add_row(*(Text(answer.text) for answer in both))
    table.add_row(*(_size(answer) for answer in both))
    return table


def _panel(title: str, answer: Answer, width: int) -> Panel:
    body = Text.assemble((answer.prompt, "bold"), "\n\n", answer.text)
    return Panel(body, title=Text(title), subtitle=_size(answer), width=width)


def _size(answer: Answer) -> Text:
    return Text(f"{answer.words} words, {answer.seconds:.1f} s", style="dim")


@click.command("compare")
@click.argument("prompt", required=False)
@click.option(
    "--llm", metavar="SPEC", default="embedded", show_default=True,
    help="The answering model: 'embedded', or what LangChain knows, such as openai:gpt-4o-mini.",
)  # fmt: skip
@optimizer_options
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def compare(ctx: click.Context, prompt: str | None, llm: str, settings: Settings, as_json: bool) -> None:
    """Show what an LLM answers to PROMPT, as it is and as optimized.

    Where the prompt is kept, the LLM is asked once.
    """
    parts: Parts = ctx.obj or Parts()
    given = read_prompt(prompt)
    optimizer = settings.build(parts.rewriter)
    answering = parts.llm or load_llm(llm)
    result = optimizer.optimize(given.text)
    before = ask(answering, result.original)
    found = Comparison(result, before, ask(answering, result.text) if result.changed else None)
    if as_json:
        show.emit(show.dump(found.to_dict(), indent=2))
        return
    width = Console().width
    show.emit(show.rendered(_report(found, width), width=width))
