"""BPO in LangChain: `BPORunnable` for chains, and `ChatEmbedded`, a tiny local chat model for demos and tests."""

from __future__ import annotations

from bpo_integrations.errors import MissingExtraError

try:
    import langchain_core as _langchain_core  # noqa: F401  # every module of this package needs it: say so once
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    raise MissingExtraError("langchain-core", extra="langchain") from error

from bpo_integrations.langchain.embedded_chat import ChatEmbedded
from bpo_integrations.langchain.runnable import BPORunnable

__all__ = ["BPORunnable", "ChatEmbedded"]
