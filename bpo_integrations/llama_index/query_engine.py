"""`BPOQueryEngine`: a query engine whose query is optimized first.

A drop-in for LlamaIndex's `TransformQueryEngine`, which runs its transform on the event loop's thread and once more for
each call; here async calls await the transform, and a query is optimized once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.query_engine import TransformQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType

from bpo_integrations.llama_index.query_transform import BPOQueryTransform


class BPOQueryEngine(TransformQueryEngine):
    """Optimizes the query, and asks the engine with it.

    Args:
        query_engine: Any query engine.
        query_transform: The transform; None is `BPOQueryTransform()`. Another transform works too, in a thread.
        transform_metadata: Handed to the transform, for example `{"history": [...]}`.
        callback_manager: As in `TransformQueryEngine`.

    Example:
        >>> from llama_index.core import Document, SummaryIndex
        >>> engine = SummaryIndex.from_documents([Document(text="...")]).as_query_engine()  # doctest: +SKIP
        >>> BPOQueryEngine(engine, BPOQueryTransform()).query("Tell me about Harry Potter")  # doctest: +SKIP
    """

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        query_transform: BaseQueryTransform | None = None,
        transform_metadata: dict[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        transform = BPOQueryTransform() if query_transform is None else query_transform
        super().__init__(query_engine, transform, transform_metadata, callback_manager)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """As `retrieve`, without blocking the event loop."""
        query = await transformed(self._query_transform, query_bundle, self._transform_metadata)
        found: list[NodeWithScore]
        if hasattr(self._query_engine, "aretrieve"):  # not part of the base class
            found = await self._query_engine.aretrieve(query)
        else:
            found = await asyncio.to_thread(self._query_engine.retrieve, query)
        return found

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """As `synthesize`, without blocking the event loop."""
        query = await transformed(self._query_transform, query_bundle, self._transform_metadata)
        return await self._query_engine.asynthesize(query, nodes, additional_source_nodes)

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        return await self._query_engine.aquery(
            await transformed(self._query_transform, query_bundle, self._transform_metadata)
        )


async def transformed(transform: BaseQueryTransform, query: QueryType, metadata: dict[str, Any] | None) -> QueryBundle:
    """Run a transform without blocking the event loop: by its `arun`, else in a thread."""
    if isinstance(transform, BPOQueryTransform):
        return await transform.arun(query, metadata)
    return await asyncio.to_thread(transform.run, query, metadata)
