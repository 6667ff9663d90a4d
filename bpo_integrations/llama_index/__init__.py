"""BPO in LlamaIndex: for query engines and retrievers, for agents, for chat engines, and around an LLM."""

from __future__ import annotations

from bpo_integrations.errors import MissingExtraError

try:
    import llama_index.core as _llama_index  # noqa: F401  # every module of this package needs it: say so once
except ModuleNotFoundError as error:
    if error.name not in ("llama_index", "llama_index.core"):
        raise
    raise MissingExtraError("llama-index-core", extra="llama-index") from error

from bpo_integrations.llama_index.agent import BPOAgentMixin, BPOFunctionAgent, BPOReActAgent
from bpo_integrations.llama_index.chat_engine import BPOChatEngine
from bpo_integrations.llama_index.events import PromptOptimizationEndEvent, PromptOptimizationStartEvent
from bpo_integrations.llama_index.llm import BPOLLM
from bpo_integrations.llama_index.query_engine import BPOQueryEngine
from bpo_integrations.llama_index.query_transform import BPOQueryTransform
from bpo_integrations.llama_index.retriever import BPOTransformRetriever

__all__ = [
    "BPOLLM",
    "BPOAgentMixin",
    "BPOChatEngine",
    "BPOFunctionAgent",
    "BPOQueryEngine",
    "BPOQueryTransform",
    "BPOReActAgent",
    "BPOTransformRetriever",
    "PromptOptimizationEndEvent",
    "PromptOptimizationStartEvent",
]
