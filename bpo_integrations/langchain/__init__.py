"""BPO in LangChain: in chains, agents, retrieval, and as a chat model; each is loaded when first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bpo_integrations.errors import MissingExtraError

try:
    import langchain_core as _langchain_core  # noqa: F401  # every module of this package needs it: say so once
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise MissingExtraError("langchain-core", extra="langchain") from error

if TYPE_CHECKING:
    from bpo_integrations.langchain.chat_model import ChatBPO
    from bpo_integrations.langchain.embedded_chat import ChatEmbedded
    from bpo_integrations.langchain.middleware import BPOMiddleware
    from bpo_integrations.langchain.retriever import BPORetriever
    from bpo_integrations.langchain.runnable import BPORunnable

__all__ = ["BPOMiddleware", "BPORetriever", "BPORunnable", "ChatBPO", "ChatEmbedded"]

_HOMES = {
    "BPOMiddleware": "middleware",
    "BPORetriever": "retriever",
    "BPORunnable": "runnable",
    "ChatBPO": "chat_model",
    "ChatEmbedded": "embedded_chat",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value
