"""`BPOTransformRetriever`: a retriever that searches for the optimized query, and by default for the user's words too.

A drop-in for LlamaIndex's `TransformRetriever`, whose async calls block the event loop. Here the searches of an async
call run at the same time, the first of them while the query is still being optimized.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.retrievers import TransformRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle

from bpo_integrations.errors import ConfigurationError
from bpo_integrations.fusion import Fusion, fuse
from bpo_integrations.llama_index.query_engine import transformed
from bpo_integrations.llama_index.query_transform import BPOQueryTransform

logger = logging.getLogger(__name__)


class BPOTransformRetriever(TransformRetriever):
    """Searches for the optimized query, and for the original beside it.

    Where the query is left alone, or the search for the optimized one fails, the result is the plain retriever's. By
    default the user's own words weigh twice (`fusion.ORIGINAL_WEIGHT`): of a search for up to 62 nodes the order may
    change, and none is lost. Nodes keep the scores that their search gave them: after a fusion the order counts.

    Args:
        retriever: Any retriever.
        query_transform: The transform; None is `BPOQueryTransform(embed="optimized")`. With `embed="original"` an
            embedding search would find the same twice.
        transform_metadata: Handed to the transform, for example `{"history": [...]}`.
        callback_manager: As in `TransformRetriever`.
        object_map: As in `TransformRetriever`.
        verbose: As in `TransformRetriever`.
        include_original: Search for the user's own words too, and merge what is found.
        fusion: `rrf` (reciprocal rank fusion) returns as many nodes as one search; `union` returns the nodes of the
            user's own words in their order, and behind them what the optimized query found besides.

    Raises:
        ConfigurationError: `fusion` is neither, or the transform cannot be built.

    Example:
        >>> from llama_index.core import Document, VectorStoreIndex
        >>> retriever = VectorStoreIndex.from_documents([Document(text="...")]).as_retriever()  # doctest: +SKIP
        >>> BPOTransformRetriever(retriever).retrieve("Tell me about Harry Potter")  # doctest: +SKIP
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        query_transform: BaseQueryTransform | None = None,
        transform_metadata: dict[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
        *,
        include_original: bool = True,
        fusion: Fusion = "rrf",
    ) -> None:
        if fusion not in ("rrf", "union"):
            msg = f"fusion is {fusion!r}; it must be 'rrf' or 'union'."
            raise ConfigurationError(msg, hint="Correct fusion=.")
        transform = BPOQueryTransform(embed="optimized") if query_transform is None else query_transform
        super().__init__(retriever, transform, transform_metadata, callback_manager, object_map, verbose)
        self.include_original = include_original
        self.fusion: Fusion = fusion

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        query = self._query_transform.run(query_bundle, self._transform_metadata)
        if not self.include_original:
            return self._retriever.retrieve(query)
        own = self._retriever.retrieve(query_bundle)
        if not _differs(query, query_bundle):
            return own
        other: list[NodeWithScore] | Exception
        try:
            other = self._retriever.retrieve(query)
        except Exception as error:  # judged in `_merged`
            other = error
        return self._merged(own, other)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not self.include_original:
            query = await transformed(self._query_transform, query_bundle, self._transform_metadata)
            return await self._retriever.aretrieve(query)
        own, other = await asyncio.gather(self._retriever.aretrieve(query_bundle), self._aother(query_bundle))
        return self._merged(own, other)

    async def _aother(self, query_bundle: QueryBundle) -> list[NodeWithScore] | Exception | None:
        """Search for the optimized query, where there is one."""
        query = await transformed(self._query_transform, query_bundle, self._transform_metadata)
        if not _differs(query, query_bundle):
            return None
        try:
            return await self._retriever.aretrieve(query)
        except Exception as error:  # judged in `_merged`
            return error

    def _merged(self, own: list[NodeWithScore], other: list[NodeWithScore] | Exception | None) -> list[NodeWithScore]:
        """Merge what both searches found; a failed second search costs nobody the first."""
        if isinstance(other, Exception):
            logger.warning("The search with the optimized query failed: %s", type(other).__name__)
        if other is None or isinstance(other, Exception):
            return own
        return fuse([own, other], self.fusion, key=lambda node: node.node.node_id)


def _differs(query: QueryBundle, other: QueryBundle) -> bool:
    """Whether two queries can find different things."""
    return query.query_str != other.query_str or query.embedding_strs != other.embedding_strs
