"""What a trace shows of an optimization.

Every adapter for LangChain runs a `BPORunnable`, so that each optimization is a run of its own: the original in its
inputs, the result in its outputs, where LangSmith's settings for hiding them reach both. Its metadata, which those
settings do not reach, never hold a piece of a prompt.
"""

from __future__ import annotations

from typing import Any, Final

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForChainRun,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForChainRun,
    CallbackManagerForLLMRun,
)
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer

from bpo_integrations.result import OptimizedPrompt

ChainRun = CallbackManagerForChainRun | AsyncCallbackManagerForChainRun
LLMRun = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun

NO_STREAM: Final = "nostream"
"""LangGraph's tag (`langgraph.constants.TAG_NOSTREAM`) of calls whose tokens are not for the user."""


def run_metadata(result: OptimizedPrompt) -> dict[str, Any]:
    """Return what the run's metadata say about `result`.

    What a guard found or an exception says may hold a piece of a prompt, so of these only the name is kept.

    Example:
        >>> run_metadata(OptimizedPrompt("a", "a", "kept", "guard numbers: 1985"))["bpo_reason"]
        'guard numbers'
    """
    words = result.reason.split(": ")
    named = 1 if words[0].startswith("guard ") else 2
    return {
        "bpo_kind": result.kind,
        "bpo_reason": ": ".join(words[:named]),
        "bpo_rewriter": result.rewriter,
        "bpo_seconds": round(result.seconds, 4),
    }


def note(result: OptimizedPrompt, run: ChainRun) -> None:
    """Add `run_metadata` to the run, where anybody traces it."""
    noted: dict[str, Any] | None = None
    for handler in run.handlers:
        if isinstance(handler, (BaseTracer, AsyncBaseTracer)) and (found := handler.run_map.get(str(run.run_id))):
            noted = noted or run_metadata(result)
            found.add_metadata(noted)


def below_llm(run: LLMRun | None) -> RunnableConfig:
    """Return the config of a run inside an LLM's run, for which LangChain has no `get_child`.

    Args:
        run: The LLM's run; None, as when streaming, puts the run where the LLM's own is.
    """
    config = RunnableConfig(tags=[NO_STREAM])
    if run is None:
        return config
    manager = CallbackManager if isinstance(run, CallbackManagerForLLMRun) else AsyncCallbackManager
    metadata = {key: value for key, value in run.inheritable_metadata.items() if not key.startswith("ls_")}
    config["callbacks"] = manager(
        handlers=run.inheritable_handlers,
        inheritable_handlers=run.inheritable_handlers,
        parent_run_id=run.run_id,
        tags=run.inheritable_tags,
        inheritable_tags=run.inheritable_tags,
        metadata=metadata,
        inheritable_metadata=metadata,
    )
    return config
