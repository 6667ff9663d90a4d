"""BPO: a learned model improves a user's prompt on its way to any LLM.

Everything public is importable from here and loaded when first asked for: `import bpo_integrations` itself loads no
framework, no engine and no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bpo_integrations.decoding import AGGRESSIVE, GREEDY, STABLE, Decoding
    from bpo_integrations.errors import BPOError
    from bpo_integrations.langchain.runnable import BPORunnable
    from bpo_integrations.optimizer import PromptOptimizer
    from bpo_integrations.result import OptimizedPrompt
    from bpo_integrations.rewriter import load_rewriter

__all__ = [
    "AGGRESSIVE",
    "GREEDY",
    "STABLE",
    "BPOError",
    "BPORunnable",
    "Decoding",
    "OptimizedPrompt",
    "PromptOptimizer",
    "__version__",
    "load_rewriter",
]

_HOMES = {
    "AGGRESSIVE": "decoding",
    "GREEDY": "decoding",
    "STABLE": "decoding",
    "BPOError": "errors",
    "BPORunnable": "langchain.runnable",
    "Decoding": "decoding",
    "OptimizedPrompt": "result",
    "PromptOptimizer": "optimizer",
    "load_rewriter": "rewriter",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
