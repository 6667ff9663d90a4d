"""BPO: a learned model improves a user's prompt on its way to any LLM.

Everything public is importable from here and loaded when first asked for: `import bpo_integrations` itself loads no
framework, no engine and no numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bpo_integrations.commands import agent_policy
    from bpo_integrations.decoding import AGGRESSIVE, GREEDY, STABLE, Decoding
    from bpo_integrations.errors import BPOError
    from bpo_integrations.langchain.chat_model import ChatBPO
    from bpo_integrations.langchain.middleware import BPOMiddleware
    from bpo_integrations.langchain.retriever import BPORetriever
    from bpo_integrations.langchain.runnable import BPORunnable
    from bpo_integrations.llama_index.agent import BPOFunctionAgent, BPOReActAgent
    from bpo_integrations.llama_index.chat_engine import BPOChatEngine
    from bpo_integrations.llama_index.llm import BPOLLM
    from bpo_integrations.llama_index.query_engine import BPOQueryEngine
    from bpo_integrations.llama_index.query_transform import BPOQueryTransform
    from bpo_integrations.llama_index.retriever import BPOTransformRetriever
    from bpo_integrations.optimizer import PromptOptimizer
    from bpo_integrations.result import OptimizedPrompt
    from bpo_integrations.rewriter import Rewriter, load_rewriter

__all__ = [
    "AGGRESSIVE",
    "BPOLLM",
    "GREEDY",
    "STABLE",
    "BPOChatEngine",
    "BPOError",
    "BPOFunctionAgent",
    "BPOMiddleware",
    "BPOQueryEngine",
    "BPOQueryTransform",
    "BPOReActAgent",
    "BPORetriever",
    "BPORunnable",
    "BPOTransformRetriever",
    "ChatBPO",
    "Decoding",
    "OptimizedPrompt",
    "PromptOptimizer",
    "Rewriter",
    "__version__",
    "agent_policy",
    "load_rewriter",
]

_HOMES = {
    "AGGRESSIVE": "decoding",
    "BPOLLM": "llama_index.llm",
    "GREEDY": "decoding",
    "STABLE": "decoding",
    "BPOChatEngine": "llama_index.chat_engine",
    "BPOError": "errors",
    "BPOFunctionAgent": "llama_index.agent",
    "BPOMiddleware": "langchain.middleware",
    "BPOQueryEngine": "llama_index.query_engine",
    "BPOQueryTransform": "llama_index.query_transform",
    "BPOReActAgent": "llama_index.agent",
    "BPORetriever": "langchain.retriever",
    "BPORunnable": "langchain.runnable",
    "BPOTransformRetriever": "llama_index.retriever",
    "ChatBPO": "langchain.chat_model",
    "Decoding": "decoding",
    "OptimizedPrompt": "result",
    "PromptOptimizer": "optimizer",
    "Rewriter": "rewriter",
    "agent_policy": "commands",
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
