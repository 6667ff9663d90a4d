"""RAG over real documents: the LLM reads the optimized question, and the search keeps the user's own words in front.

    python docs/examples/rag_langchain.py ["How ...?"]

Runs offline. The documents are the sections of this project's own pages, the search is BM25 (`pip install bm25s`), the
embedded model improves the question, and the same small base answers it (`ChatEmbedded`, which often errs: put your own
chat model in its place). The second search is shown, not recommended: measured, the plain retriever found as much
(docs/rag.md).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableParallel, RunnablePassthrough

from bpo_integrations import BPORunnable
from bpo_integrations.langchain import BPORetriever, ChatEmbedded

PAGES = Path(__file__).resolve().parents[1]
QUESTION = "Which prompts are left alone, and why?"
PROMPT = ChatPromptTemplate.from_template(
    "Answer the question from these sections of a manual.\n\n{context}\n\nQuestion: {question}"
)


def sections(folder: Path) -> list[Document]:
    """Cut the pages into sections, one a heading."""
    found = []
    for page in sorted(folder.glob("*.md")):
        for section in re.split(r"^(?=#+ )", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            title, _, text = section.partition("\n")
            if text.strip():
                found.append(Document(text.strip()[:600], metadata={"source": f"{page.name}, {title.strip('# ')}"}))
    return found


class Manual(BaseRetriever):
    """Finds sections by their words (BM25)."""

    index: Any
    documents: list[Document]
    k: int = 3

    @classmethod
    def of(cls, documents: list[Document]) -> Manual:
        """Index documents."""
        index = bm25s.BM25()
        texts = [f"{document.metadata['source']} {document.page_content}" for document in documents]
        index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
        return cls(index=index, documents=documents)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        (words,) = bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)
        best = np.argsort(-self.index.get_scores(words), kind="stable")[: k or self.k]
        return [self.documents[place] for place in best]


def as_text(documents: list[Document]) -> str:
    """Put sections into a prompt."""
    return "\n\n".join(document.page_content for document in documents)


def main() -> None:
    """Ask the manual, and show what each step made of the question."""
    question = sys.argv[1] if len(sys.argv) > 1 else QUESTION
    manual = Manual.of(sections(PAGES))
    answer = PROMPT | ChatEmbedded(max_tokens=60) | StrOutputParser()
    rag = RunnableParallel(
        question=BPORunnable(), documents=BPORetriever(retriever=manual)
    ) | RunnablePassthrough.assign(
        answer=RunnablePassthrough.assign(context=lambda found: as_text(found["documents"])) | answer
    )
    found = rag.invoke(question)
    print(f"{len(manual.documents)} sections of {PAGES.name}/\n")
    print(f"The user asks:      {question}")
    print(f"The LLM is asked:   {found['question']}")
    print(
        "It reads:           " + "\n                    ".join(each.metadata["source"] for each in found["documents"])
    )
    print(f"It answers:         {found['answer']}")


if __name__ == "__main__":
    main()
