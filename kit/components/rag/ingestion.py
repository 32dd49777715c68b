"""The ingestion worker: a document read, cut, embedded and indexed, and everybody who watches told about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.catalogue import RAG_DOCUMENTS_INGESTED, RAG_STATUS
from kit.components.rag.batching import Batcher
from kit.components.rag.chunking import Chunk, Chunking, chunk
from kit.components.rag.embedding import Embedded, Embedder
from kit.components.rag.errors import DocumentRefused, DocumentSuperseded, EmbeddingMismatch, EmptyDocument, error_data
from kit.components.rag.index import COLLECTION, Database
from kit.components.rag.latest import State
from kit.components.rag.readers import PLAIN, Reader, Reading, title_from
from kit.components.rag.rows import Entry, embedded_lead, embedded_text, fingerprint
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.message import Message

_WRITES = 256  # documents in one commit
_THREAD_CHARS = 100_000  # what is longer is cut on a thread, so that the loop stays free
_KNOWN = ("title", "source", "media_type", "language")


class Ingester:
    """Handles ``rag.ingest``: returns the last ``rag_status`` of each document."""

    def __init__(self, bus: Bus, database: Database, embedder: Embedder, chunking: Chunking) -> None:
        self._bus, self._database, self._embedder, self._chunking = bus, database, embedder, chunking
        self._reader = Reader()
        self._writers: dict[str, Batcher[Entry, int | None]] = {}

    async def close(self) -> None:
        """End the process that reads documents."""
        await self._reader.close()

    async def handle(self, message: Message) -> dict[str, Any]:
        """Index or delete one document.

        Raises:
            DocumentRefused: it can never be indexed as it is.
            RagError, BusError: it could not be this time.
        """
        data, started = message.data, time.monotonic()
        self._bus.telemetry.annotate({semconv.RAG_DOCUMENT_ID: data["document_id"]})
        try:
            _check_id(data["document_id"])
            sent_at = f"{message.sent_at} {message.stored_at or ''}"  # of two sent at once, the one stored last
            told = await (
                self._delete(data, sent_at) if data.get("action") == "delete" else self._upsert(message, sent_at)
            )
        except Exception as error:
            self._bus.telemetry.count(RAG_DOCUMENTS_INGESTED, status="error", error_type=type(error).__name__)
            await self._failed(data, message, error)
            raise
        self._bus.telemetry.count(RAG_DOCUMENTS_INGESTED, status=told["status"])
        return await self._tell(data, duration=time.monotonic() - started, attempt=message.attempt, **told)

    async def _delete(self, data: dict[str, Any], sent_at: str) -> dict[str, Any]:
        entry = Entry(document_id=data["document_id"], sha256=None, sent_at=sent_at)
        removed = await self._writer(data.get("collection", COLLECTION)).add(entry)
        return _superseded(data["document_id"]) if removed is None else {"status": "deleted", "removed": removed}

    async def _upsert(self, message: Message, sent_at: str) -> dict[str, Any]:
        data, attempt = message.data, message.attempt
        await self._tell(data, status="processing", stage="fetch" if "claim" in data else "parse", attempt=attempt)
        content = await self._content(data)
        sha256 = self._fingerprint(data, content)
        if told := await self._known(data, sha256, sent_at):
            return told
        reading, chunks = await self._chunks(data, content)
        title = data.get("title") or reading.title or title_from(data.get("source", ""))
        vectors, leads, embedded = await self._embedded(data, chunks, title)
        entry = Entry(
            document_id=data["document_id"], sha256=sha256, sent_at=sent_at, chunks=chunks, vectors=vectors,
            leads=leads, title=title, source=data.get("source", ""), metadata=data.get("metadata", {}),
            pages=reading.pages,
        )  # fmt: skip
        removed = await self._writer(data.get("collection", COLLECTION)).add(entry)
        self._bus.telemetry.annotate({semconv.CHUNKS_COUNT: len(chunks)})
        if removed is None:  # a later message was faster, or another of the same text
            return await self._known(data, sha256, sent_at) or _superseded(data["document_id"])
        tokens = {"prompt": embedded.tokens, "completion": 0, "total": embedded.tokens}
        told = {"status": "indexed", "chunks": len(chunks), "removed": removed, "sha256": sha256, "progress": 1.0}
        told |= {"notes": list(reading.notes)} if reading.notes else {}
        costs = {"tokens": tokens, "cost": embedded.cost, "currency": embedded.currency}
        return {**told, **costs, "embedding_model": self._embedder.model}

    # --- the steps ----------------------------------------------------------------------------------------------

    async def _content(self, data: dict[str, Any]) -> str | bytes:
        if "claim" in data:
            return await self._bus.get_object(data["claim"])
        content = data.get("content")
        return content if isinstance(content, str) else "\n\n".join(part["content"] for part in data["chunks"])

    def _fingerprint(self, data: dict[str, Any], content: str | bytes) -> str:
        known = {key: data[key] for key in _KNOWN if key in data} | {"metadata": data.get("metadata", {})}
        if "chunks" in data:
            known["cut"] = [{k: v for k, v in part.items() if k != "embedding"} for part in data["chunks"]]
        return fingerprint(content, model=self._embedder.model, chunking=self._chunking, known=known)

    async def _known(self, data: dict[str, Any], sha256: str, sent_at: str) -> dict[str, Any] | None:
        """Return the status of a document that needs no work; None where there is some."""
        name, document_id = data.get("collection", COLLECTION), data["document_id"]
        collection = await self._database.collection(name)
        state = State() if collection is None else (await collection.states([document_id])).get(document_id, State())
        if state.sha256 != sha256:
            return _superseded(data["document_id"]) if state.sent_at > sent_at else None
        if state.written_at == sent_at:  # by a worker that died before it said so
            return {"status": "indexed", "chunks": state.chunks, "removed": 0, "sha256": sha256, "progress": 1.0}
        again = Entry(document_id=document_id, sha256=sha256, sent_at=sent_at)
        if state.sent_at <= sent_at and await self._writer(name).add(again) is None:
            return None  # deleted meanwhile
        return {"status": "unchanged", "sha256": sha256}

    async def _chunks(self, data: dict[str, Any], content: str | bytes) -> tuple[Reading, list[Chunk]]:
        """Return the document as text, and its passages: those that the sender cut, or our own."""
        document_id = data["document_id"]
        if "chunks" in data:
            reading = Reading(text=content if isinstance(content, str) else "")
            chunks = _given(data["chunks"])
        else:
            reading = await self._reader.read(document_id, content, data.get("media_type", PLAIN))
            cut = partial(chunk, reading.text, self._chunking, markdown=reading.markdown)
            chunks = await asyncio.to_thread(cut) if len(reading.text) > _THREAD_CHARS else cut()
        if not chunks:
            raise EmptyDocument(document_id)
        return reading, chunks

    async def _embedded(
        self, data: dict[str, Any], chunks: list[Chunk], title: str
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Embedded]:
        """Return the embeddings of the passages and of their leads, those that came along untouched."""
        given = [part.get("embedding") for part in data.get("chunks", ())]
        came = bool(given) and all(vector is not None for vector in given)
        if came and data.get("embedding_model", self._embedder.model) != self._embedder.model:
            raise EmbeddingMismatch(
                data.get("collection", COLLECTION), held=self._embedder.model, given=data["embedding_model"]
            )
        texts = [] if came else [embedded_text(part, title) for part in chunks]
        leads = [embedded_lead(part, title, self._chunking) for part in chunks]
        # A passage that is its own lead is embedded once.
        wanted = list(dict.fromkeys([*texts, *leads]))
        embedded = await self._embedder.documents(wanted, partial(self._embedding, data))
        row = dict(zip(wanted, embedded.vectors, strict=True))
        vectors = np.stack(given if came else [row[text] for text in texts]).astype(np.float32, copy=False)
        if vectors.shape[1] != embedded.vectors.shape[1]:
            raise EmbeddingMismatch(
                data.get("collection", COLLECTION), held=str(embedded.vectors.shape[1]), given=str(vectors.shape[1])
            )
        return vectors, np.stack([row[text] for text in leads]), embedded

    def _writer(self, collection: str) -> Batcher[Entry, int | None]:
        writer = self._writers.get(collection)
        if writer is None:

            async def write(entries: Sequence[Entry]) -> list[int | None]:
                """Return how many old passages went for each; None for one that is not as it says."""
                removed = await self._database.write(collection, entries, model=self._embedder.model)
                latest = {entry.document_id: entry for entry in sorted(entries, key=lambda entry: entry.sent_at)}
                return [removed.get(e.document_id) if latest[e.document_id] is e else None for e in entries]

            writer = self._writers[collection] = Batcher(write, most=_WRITES)
        return writer

    # --- telling ------------------------------------------------------------------------------------------------

    async def _failed(self, data: dict[str, Any], message: Message, error: Exception) -> None:
        """Tell that a document failed for good; an attempt that will be repeated is no failure yet."""
        retryable = bool(getattr(error, "retryable", True))
        if retryable and not message.is_last:
            return
        stage = "parse" if isinstance(error, DocumentRefused) else "index"
        await self._tell(
            data, status="failed", stage=stage, error=error_data(error, retryable), attempt=message.attempt
        )

    async def _embedding(self, data: dict[str, Any], part: float) -> None:
        """Tell how far the embedding of a large document has come."""
        await self._tell(data, status="processing", stage="embed", progress=part)

    async def _tell(self, data: dict[str, Any], **told: Any) -> dict[str, Any]:
        """Publish a status and return it."""
        echo: dict[str, Any] = {
            key: data[key] for key in ("collection", "source", "title", "ingestion_id") if key in data
        }
        status: dict[str, Any] = {"document_id": data["document_id"], "tenant_id": self._bus.tenant_id}
        status |= {"timestamp": codec.now(), **echo, **told}
        await self._bus.publish(RAG_STATUS, status)
        return status


def _check_id(document_id: str) -> None:
    if "\x00" in document_id:
        raise DocumentRefused(document_id, "an id must not hold NUL")


def _superseded(document_id: str) -> dict[str, Any]:
    """Return the status of a message that came after a later one about its document."""
    return {"status": "failed", "stage": "index", "error": error_data(DocumentSuperseded(document_id))}


def _given(parts: list[dict[str, Any]]) -> list[Chunk]:
    """Return passages that the sender cut; without offsets, they follow each other as if parted by blank lines."""
    chunks, position = [], 0
    for index, part in enumerate(parts):
        start = part.get("start", position)
        end = part.get("end", start + len(part["content"]))
        position = end + 2
        if part["content"].strip():
            chunks.append(
                Chunk(index=index, start=start, end=end, content=part["content"], heading=part.get("heading", ""))
            )
    return chunks
