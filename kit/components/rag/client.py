"""What a caller of the RAG component needs, all of it over the bus: ingest, watch, delete, ask."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kit import codec
from kit.catalogue import RAG_INGEST, RAG_QUERIES, RAG_QUERIES_QUEUED, RAG_STATUS
from kit.components.rag.errors import REFUSALS, DocumentRefused, QueryRefused, error_data
from kit.components.rag.filters import Condition, as_data
from kit.components.rag.readers import MAX_ID, Document, Folder, named, read_json_lines, shortened
from kit.errors import (
    SURROGATE,
    BusError,
    CodecError,
    ConfigurationError,
    JobDead,
    JobError,
    KitError,
    PayloadTooLarge,
    escape_text,
)

if TYPE_CHECKING:
    import pandas as pd

    from kit.nats.bus import Bus

IN_FLIGHT = 64  # documents under way at once
_INLINE = 0.5  # part of max_payload that a document's content may take; what is larger goes by claim check
_DONE = ("indexed", "unchanged", "deleted")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far an ingestion has come.

    Attributes:
        done: documents finished, whatever became of them; total: documents known of so far.
        status: the last ``rag_status``, of the document that was just finished.
    """

    done: int
    total: int
    failed: int
    status: Mapping[str, Any]


@dataclass(kw_only=True)
class Ingestion:
    """What became of the documents of one ingestion.

    Attributes:
        statuses: the last ``rag_status`` of each document; a failed one has its reason under ``error``.
        seconds: that it took.
        skipped: files for whose suffix there is no reader.
    """

    statuses: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.count(kind)} {kind}" for kind in (*_DONE, "failed") if self.count(kind))
        skipped = f"; {_several(len(self.skipped), 'file')} skipped" if self.skipped else ""
        notes = f"; notes on {_several(len(self.notes), 'document')}" if self.notes else ""
        return f"<Ingestion of {_several(len(self.statuses), 'document')}: {counts or 'nothing'}{notes}{skipped}>"

    def count(self, status: str) -> int:
        """Return how many documents ended as ``indexed``, ``unchanged``, ``deleted`` or ``failed``."""
        return sum(entry["status"] == status for entry in self.statuses)

    @property
    def chunks(self) -> int:
        """Passages that were indexed."""
        return sum(entry.get("chunks", 0) for entry in self.statuses)

    @property
    def failures(self) -> dict[str, str]:
        """Why each document that failed did."""
        return {
            entry["document_id"]: f"{entry['error']['type']}: {entry['error']['message']}"
            for entry in self.statuses
            if entry["status"] == "failed"
        }

    @property
    def notes(self) -> dict[str, list[str]]:
        """What was not read from each document, such as scanned pages."""
        return {entry["document_id"]: entry["notes"] for entry in self.statuses if "notes" in entry}

    def table(self) -> pd.DataFrame:
        """Return a row for each document."""
        import pandas as pd

        rows = [
            {
                "document": entry["document_id"],
                "status": entry["status"],
                "chunks": entry.get("chunks", 0),
                "removed": entry.get("removed", 0),
                "reason": entry["error"]["message"] if "error" in entry else "; ".join(entry.get("notes", ())),
            }
            for entry in self.statuses
        ]
        return pd.DataFrame(rows, columns=["document", "status", "chunks", "removed", "reason"])


Watch: TypeAlias = Callable[[Progress], None]


async def ingest_documents(
    bus: Bus,
    documents: Iterable[Document | Mapping[str, Any]],
    *,
    collection: str | None = None,
    progress: Watch | None = None,
    in_flight: int = IN_FLIGHT,
    timeout: float = 300.0,
) -> Ingestion:
    """Have documents indexed as jobs, and wait until they are; the same ones again change nothing.

    Args:
        documents: each a ``Document``, or its fields as a mapping (``document_id`` and ``content`` at least).
        collection: where they belong; None: the default collection.
        progress: is called after each document.
        in_flight: documents under way at once.
        timeout: seconds for one document.

    Returns:
        What became of each. A document that cannot be read, or has the id of one before it, is among them as failed,
        with its reason.
    """
    made = (_document(entry, place) for place, entry in enumerate(documents, start=1))
    return await _ingest(bus, made, collection, progress, in_flight, timeout)


async def ingest_folder(
    bus: Bus,
    path: str | Path,
    *,
    pattern: str = "**/*",
    metadata: Mapping[str, Any] | None = None,
    follow_links: bool = False,
    collection: str | None = None,
    progress: Watch | None = None,
    in_flight: int = IN_FLIGHT,
    timeout: float = 300.0,
) -> Ingestion:
    """Have the files of a folder indexed: Markdown, text, HTML, PDF, and JSON Lines with a document in each line.

    Args:
        path: a folder, or one file. A document's id is its file's path within the folder.
        pattern: which files; hidden ones are passed over, those without a reader are named in ``skipped``.
        metadata: put on every document.
        follow_links: whether to follow links to files outside the folder.
        collection, progress, in_flight, timeout: as for ``ingest_documents``.

    Raises:
        ConfigurationError: there is no such folder.
    """
    folder = await asyncio.to_thread(partial(Folder.of, Path(path), pattern, follow_links=follow_links))
    documents = _documents(folder, metadata or {})
    ingestion = await _ingest(bus, documents, collection, progress, in_flight, timeout)
    ingestion.skipped = folder.skipped
    return ingestion


async def ingest_jsonl(
    bus: Bus,
    path: str | Path,
    *,
    content: str | None = None,
    document_id: str | None = None,
    collection: str | None = None,
    progress: Watch | None = None,
    in_flight: int = IN_FLIGHT,
    timeout: float = 300.0,
) -> Ingestion:
    """Have the lines of a JSON Lines file indexed, each a document.

    Args:
        content: the field with the text; None: the first of content, text, body.
        document_id: the field with the id; None: document_id or id, else the line's number.
        collection, progress, in_flight, timeout: as for ``ingest_documents``.

    ``title`` and ``source`` are taken as such; every other field is metadata: kept for filters and shown with
    sources, never searched.

    Raises:
        ConfigurationError: there is no such file, or it cannot be read.
    """
    file = Path(path)
    try:
        raw = await asyncio.to_thread(file.read_bytes)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    lines = read_json_lines(raw, name=named(Path(file.name)), content=content, document_id=document_id)
    return await _ingest(bus, lines, collection, progress, in_flight, timeout)


async def delete_document(
    bus: Bus, document_id: str, *, collection: str | None = None, timeout: float = 60.0
) -> dict[str, Any]:
    """Take a document out of the index and return its last ``rag_status``.

    Raises:
        JobDead: every attempt failed.
        DeadlineExceeded: it takes longer than ``timeout`` seconds; the job goes on.
    """
    data = {**_envelope(bus, document_id, collection), "action": "delete"}
    job = await bus.enqueue(RAG_INGEST, data)
    return (await job.result(timeout)).data


async def query(
    bus: Bus,
    text: str,
    *,
    top_k: int = 5,
    similarity_threshold: float | None = None,
    mode: str = "hybrid",
    filters: Condition | None = None,
    generate: bool = True,
    model: str | None = None,
    collection: str | None = None,
    timeout: float = 30.0,
    **parameters: Any,
) -> dict[str, Any]:
    """Ask the tenant's documents and return a ``rag_result``: an answer with numbered sources, or why there is none.

    Args:
        text: the question.
        top_k: passages to find at most.
        similarity_threshold: least cosine similarity of a passage, -1 to 1.
        mode: hybrid, vector or text.
        filters: a condition on documents and metadata, of ``rag.field`` and ``rag.document``.
        generate: whether to have an answer written; False only finds passages.
        model: that writes; None: the service's own.
        collection: where to look; None: the default collection.
        timeout: seconds for the whole answer.
        parameters: further ones of the ``rag_query`` contract: ``candidates``, ``min_support``, ``temperature``, …

    Raises:
        QueryRefused: there is no question.
        NoResponders: no RAG worker is there.
        RemoteError: the worker refused or failed; ``error_type`` tells which error it was.
        DeadlineExceeded: no answer within ``timeout`` seconds.
    """
    if not text.strip():
        raise QueryRefused("there is no question", parameter="text")
    given = {"top_k": top_k, "similarity_threshold": similarity_threshold, "mode": mode, "generate": generate,
             "filters": None if filters is None else as_data(filters), "model": model, **parameters}  # fmt: skip
    data: dict[str, Any] = {
        "query_id": uuid.uuid4().hex, "query": text, "tenant_id": bus.tenant_id, "timestamp": codec.now(),
        "parameters": {key: value for key, value in given.items() if value is not None}, "timeout": timeout,
    }  # fmt: skip
    data |= {} if collection is None else {"collection": collection}
    bus.telemetry.count(RAG_QUERIES_QUEUED)
    return (await bus.request(RAG_QUERIES, data, timeout=timeout)).data


async def watch_status(bus: Bus, timeout: float = 60.0) -> AsyncIterator[dict[str, Any]]:
    """Yield each ``rag_status`` as it is told, by any worker, until none comes for ``timeout`` seconds."""
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def take(message: Any) -> None:
        told.put_nowait(message.data)

    worker = await bus.subscribe(RAG_STATUS, take)
    try:
        while True:
            try:
                yield await asyncio.wait_for(told.get(), timeout)
            except TimeoutError:
                return
    finally:
        await worker.stop()


# --- how it is done ------------------------------------------------------------------------------------------------


async def _ingest(
    bus: Bus,
    documents: Iterator[Document | DocumentRefused],
    collection: str | None,
    progress: Watch | None,
    in_flight: int,
    timeout: float,
) -> Ingestion:
    """Send documents with at most ``in_flight`` under way, and gather what became of them, in their order."""
    if in_flight < 1:
        raise ConfigurationError("in_flight must be at least 1")
    ingestion, started = Ingestion(), time.monotonic()
    run_id, total, done, failed = uuid.uuid4().hex, 0, 0, 0
    under_way: set[asyncio.Task[None]] = set()

    async def one(place: int, entry: Document | DocumentRefused) -> None:
        nonlocal done, failed
        status = await _outcome(bus, entry, collection, run_id, timeout)
        ingestion.statuses[place] = status
        done, failed = done + 1, failed + (status["status"] == "failed")
        if progress is not None:
            progress(Progress(done=done, total=total, failed=failed, status=status))

    try:
        for place, entry in enumerate(_once(documents)):
            total = place + 1
            ingestion.statuses.append({})
            under_way.add(asyncio.create_task(one(place, entry)))
            if len(under_way) >= in_flight:
                finished, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    task.result()
        await asyncio.gather(*under_way)
    except BaseException:  # a cancellation too: nobody waits for the others any more
        for task in under_way:
            task.cancel()
        raise
    ingestion.seconds = time.monotonic() - started
    return ingestion


async def _outcome(
    bus: Bus, entry: Document | DocumentRefused, collection: str | None, run_id: str, timeout: float
) -> dict[str, Any]:
    """Return the last status of one document; a refusal is told to whoever watches, like any other failure."""
    if isinstance(entry, DocumentRefused):
        return await _refused(bus, entry.document_id, collection, entry)
    data: dict[str, Any] = _envelope(bus, entry.document_id, collection)
    try:
        data = await _message(bus, entry, data)
        job = await bus.enqueue(RAG_INGEST, data | {"ingestion_id": run_id})
        await _told(bus, data, {"status": "queued"})
        status = (await job.result(timeout)).data
    except (CodecError, PayloadTooLarge) as error:
        return await _refused(bus, entry.document_id, collection, error)
    except JobDead as error:
        told = {"type": error.error_type, "message": error.detail, "retryable": error.error_type not in REFUSALS}
        return _status(bus, data) | {"status": "failed", "error": told}
    except (BusError, JobError) as error:
        return _status(bus, data) | {"status": "failed", "error": error_data(error, retryable=True)}
    if "claim" in data:
        await bus.delete_object(data["claim"])
    return status


async def _message(bus: Bus, document: Document, envelope: dict[str, Any]) -> dict[str, Any]:
    """Return a document as ``rag_document`` data, its content by claim check where no message could hold it."""
    data = {**envelope, "media_type": document.media_type}
    data |= {key: value for key in ("title", "source", "modified_at") if (value := getattr(document, key)) is not None}
    if document.metadata:
        data["metadata"] = dict(document.metadata)
    content = document.content
    raw = content if isinstance(content, bytes) else None
    if raw is None and len(content) <= bus.connection.max_payload * _INLINE / 4:
        return data | {"content": content}  # four bytes a character at most, escapes apart
    assert raw is not None or isinstance(content, str)
    raw = raw if raw is not None else content.encode()  # type: ignore[union-attr]
    data["sha256"] = hashlib.sha256(raw).hexdigest()
    # A name of its own for each sending: nobody else deletes it.
    data["claim"] = await bus.put_object(f"rag-{data['sha256'][:16]}-{uuid.uuid4().hex[:16]}", raw)
    return data


def _envelope(bus: Bus, document_id: str, collection: str | None) -> dict[str, Any]:
    data: dict[str, Any] = {"document_id": document_id, "tenant_id": bus.tenant_id, "timestamp": codec.now()}
    return data if collection is None else data | {"collection": collection}


def _status(bus: Bus, data: Mapping[str, Any]) -> dict[str, Any]:
    echo = {key: data[key] for key in ("collection", "source", "title", "ingestion_id") if key in data}
    return {"document_id": data["document_id"], "tenant_id": bus.tenant_id, "timestamp": codec.now(), **echo}


async def _told(bus: Bus, data: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    status = _status(bus, data) | dict(more)
    await bus.publish(RAG_STATUS, status)
    return status


async def _refused(bus: Bus, document_id: str, collection: str | None, error: KitError) -> dict[str, Any]:
    data = _envelope(bus, escape_text(shortened(document_id), MAX_ID) or "?", collection)
    return await _told(
        bus,
        data,
        {"status": "failed", "stage": "fetch", "error": error_data(error)},
    )


def _document(entry: Any, place: int) -> Document | DocumentRefused:
    """Return an entry as a document, or why it is not one."""
    fields = entry if isinstance(entry, Mapping) else {}
    given = entry.document_id if isinstance(entry, Document) else fields.get("document_id")
    document_id = str(given) if isinstance(given, Integral) and str(given).lstrip("-").isdigit() else given
    where = document_id if isinstance(document_id, str) and document_id else f"number {place}"
    unknown = fields.keys() - {field.name for field in dataclasses.fields(Document)}
    if not isinstance(entry, Document | Mapping):
        return DocumentRefused(where, f"a document must be a mapping or a Document, not {type(entry).__name__}")
    if unknown:
        return DocumentRefused(where, f"a document has no field {', '.join(sorted(map(repr, unknown)))}")
    if not isinstance(document_id, str) or not 1 <= len(document_id) <= MAX_ID:
        return DocumentRefused(where[:50], f"an id must be a text of 1 to {MAX_ID} characters, or an integer")
    content = entry.content if isinstance(entry, Document) else fields.get("content")
    if not isinstance(content, str | bytes):
        return DocumentRefused(where, f"its content must be text or bytes, not {type(content).__name__}")
    made = replace(entry, document_id=document_id) if isinstance(entry, Document) else None
    made = made or Document(**{**fields, "document_id": document_id})
    for name, value in (("id", document_id), ("content", content), ("title", made.title), ("source", made.source)):
        if isinstance(value, str) and SURROGATE.search(value):
            return DocumentRefused(where, f"its {name} contains a lone surrogate, which is not valid text")
    return made


def _once(documents: Iterator[Document | DocumentRefused]) -> Iterator[Document | DocumentRefused]:
    """Yield the first document of each id; which of two would stay depends on which is indexed last."""
    seen: set[str] = set()
    for entry in documents:
        if isinstance(entry, Document) and entry.document_id in seen:
            yield DocumentRefused(entry.document_id, "one before it has the same id: that one is kept")
        else:
            seen.add(entry.document_id)
            yield entry


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _documents(folder: Folder, metadata: Mapping[str, Any]) -> Iterator[Document | DocumentRefused]:
    for entry in folder.documents():
        yield entry if isinstance(entry, DocumentRefused) else replace(entry, metadata={**metadata, **entry.metadata})
