"""The RAG service: what ``kit worker rag`` and ``lab.serve("rag")`` start."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from kit.catalogue import RAG_INGEST, RAG_QUERIES
from kit.components import Service
from kit.components.rag.answering import Answerer
from kit.components.rag.chunking import Chunking
from kit.components.rag.embedding import Embedder
from kit.components.rag.index import FLAT_ROWS, Analysis, Database
from kit.components.rag.ingestion import Ingester
from kit.components.rag.instructions import Prompts
from kit.components.rag.ranking import Ranking

if TYPE_CHECKING:
    from kit.nats.bus import Bus

EMBEDDING_MODEL = "kit/static-256"
MODEL = "default"  # the gateway's


async def serve(
    bus: Bus,
    *,
    uri: str | Path | None = None,
    embedding_model: str = EMBEDDING_MODEL,
    model: str = MODEL,
    concurrency: int = 64,
    query_concurrency: int = 32,
    chunking: Chunking | None = None,
    ranking: Ranking | None = None,
    analysis: Analysis | None = None,
    flat_rows: int = FLAT_ROWS,
    storage_options: dict[str, str] | None = None,
) -> Service:
    """Index documents and answer questions from them, for the bus's tenant.

    Where the tenant's prompt store has a template ``rag.TEMPLATE_ID`` with the label ``production``, it takes the place
    of RAG's own instructions to the model.

    Args:
        bus: of the tenant.
        uri: folder or object-storage URI that holds a LanceDB database for each tenant; None: ``KIT_LANCEDB_URI``,
            else ``.kit/lancedb`` in the working directory.
        embedding_model: a model of the gateway; a collection keeps to the one it was made with.
        model: the gateway's model that writes answers.
        concurrency: documents handled at once; their embeddings and writes go together.
        query_concurrency: questions handled at once.
        chunking, ranking, analysis: how documents are cut, found and read.
        flat_rows: passages above which an IVF index takes over, which holds its vectors in memory.
        storage_options: for object storage.
    """
    await asyncio.to_thread(importlib.import_module, "lancedb")  # two seconds that must not stop the loop
    database = await Database.open(
        bus.tenant_id, uri, analysis=analysis, flat_rows=flat_rows, storage_options=storage_options
    )
    embedder = Embedder(bus, embedding_model)
    ingester = Ingester(bus, database, embedder, chunking or Chunking())
    prompts = await Prompts.open(bus)
    answerer = Answerer(bus, database, embedder, ranking or Ranking(), model, prompts)
    workers = [
        await bus.work(RAG_INGEST, ingester.handle, concurrency=concurrency),
        await bus.serve(RAG_QUERIES, answerer.handle, concurrency=query_concurrency),
        prompts.worker,
    ]

    async def end() -> None:
        await prompts.close()
        await ingester.close()
        await database.close()

    return Service(workers, end)
