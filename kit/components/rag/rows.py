"""A passage as a row of the index, and a row as a hit of a search."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.components.rag.chunking import Chunk, Chunking, lead
from kit.components.rag.filters import facets_of, labels_of
from kit.components.rag.readers import page_of, shortened
from kit.components.rag.text import content_words, spaced

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

VERSION = "2"  # of what is derived from a document; another one makes every document new
COLUMNS = [
    "chunk_id", "document_id", "position", "content", "heading", "title", "source", "start", "end", "metadata",
]  # fmt: skip


def _no_vectors() -> NDArray[np.float32]:
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A document ready for the index.

    Attributes:
        sha256: over everything that its rows are made of, to recognise an unchanged one; None: it is to be deleted.
        sent_at: when its message was sent; an older message never replaces a newer one's rows.
        chunks: its passages; none for one to be deleted, or to be noted as sent again as it was.
        vectors, leads: embeddings of the passages and of their first sentences, float32 (n, dim).
    """

    document_id: str
    sha256: str | None
    sent_at: str
    chunks: Sequence[Chunk] = ()
    vectors: NDArray[np.float32] = field(default_factory=_no_vectors)
    leads: NDArray[np.float32] = field(default_factory=_no_vectors)
    title: str = ""
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    pages: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A passage that a search found.

    Attributes:
        score: what the ranking made of it; comparable within one search only.
        vector_score: cosine of question and passage, 0 where it was not measured; text_score: BM25.
        start, end: where the passage lies in its document, in characters.
    """

    chunk_id: str
    document_id: str
    content: str
    score: float
    vector_score: float = 0.0
    text_score: float = 0.0
    heading: str = ""
    title: str = ""
    source: str = ""
    start: int = 0
    end: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


def fingerprint(content: str | bytes, *, model: str, chunking: Chunking, known: Mapping[str, Any]) -> str:
    """Return the SHA-256 over everything that a document's rows are made of, hexadecimal."""
    digest = hashlib.sha256(content.encode() if isinstance(content, str) else content)
    settings = {"version": VERSION, "model": model, "chunking": repr(chunking), "known": dict(known)}
    digest.update(codec.dumps(settings))
    return digest.hexdigest()


def embedded_text(chunk: Chunk, title: str) -> str:
    """Return what is embedded and indexed for a passage: its headings, then itself."""
    return f"{headline(chunk.heading, title)}\n{chunk.content}" if chunk.heading or title else chunk.content


def embedded_lead(chunk: Chunk, title: str, chunking: Chunking) -> str:
    """Return what is embedded as a passage's lead: its headings and its first sentences."""
    return f"{headline(chunk.heading, title)}\n{lead(chunk.content, chunking)}".strip()


def headline(heading: str, title: str) -> str:
    """Return the document's title and the headings above a passage, the title once."""
    return " › ".join(part for part in (title if not heading.startswith(title) else "", heading) if part)


def schema(model: str, dimension: int) -> pa.Schema:
    """Return the table's Arrow schema, which remembers the model of the vectors."""
    import pyarrow as pa

    vector = pa.list_(pa.float32(), dimension)
    text, number = pa.string(), pa.int32()
    fields = {
        "chunk_id": text, "document_id": text, "position": number, "content": text, "heading": text, "title": text,
        "source": text, "start": number, "end": number, "metadata": text, "facets": pa.json_(pa.utf8()),
        "labels": pa.list_(text), "sha256": text, "sent_at": text, "text": text, "grams": text, "vector": vector,
        "lead": vector,
    }  # fmt: skip
    return pa.schema(list(fields.items()), metadata={"kit.embedding_model": model, "kit.rows": VERSION})


def table_of(entries: Sequence[Entry]) -> pa.Table:
    """Return the rows of documents as an Arrow table."""
    import pyarrow as pa

    rows = [row for entry in entries for row in _rows(entry)]
    vectors = np.concatenate([entry.vectors for entry in entries])
    leads = np.concatenate([entry.leads for entry in entries])
    made = schema("", vectors.shape[1]).remove_metadata()
    columns: list[pa.Array] = []
    for column in made:
        if column.name in ("vector", "lead"):
            flat = pa.array(np.ascontiguousarray(vectors if column.name == "vector" else leads, np.float32).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
        elif column.name == "facets":
            columns.append(
                pa.ExtensionArray.from_storage(column.type, pa.array([row["facets"] for row in rows], pa.utf8()))
            )
        else:
            columns.append(pa.array([row[column.name] for row in rows], column.type))
    return pa.Table.from_arrays(columns, schema=made)


def _rows(entry: Entry) -> list[dict[str, Any]]:
    shared = {
        "document_id": entry.document_id, "title": entry.title, "source": entry.source, "sha256": entry.sha256,
        "sent_at": entry.sent_at, "labels": labels_of(entry.metadata),
        "facets": codec.dumps(facets_of(entry.metadata)).decode(),
    }  # fmt: skip
    return [shared | _row(entry, chunk) for chunk in entry.chunks]


def _row(entry: Entry, chunk: Chunk) -> dict[str, Any]:
    page = page_of(entry.pages, chunk.start)
    metadata = dict(entry.metadata) if page is None else {**entry.metadata, "page": page}
    text = embedded_text(chunk, entry.title)
    return {
        "chunk_id": chunk_id(entry.document_id, chunk.index), "position": chunk.index, "content": chunk.content,
        "heading": chunk.heading, "start": chunk.start, "end": chunk.end, "text": spaced(text, singles=True),
        "metadata": codec.dumps(metadata).decode(), "grams": " ".join(content_words(text)),
    }  # fmt: skip


def chunk_id(document_id: str, index: int) -> str:
    """Return the id of a document's passage."""
    return shortened(f"{document_id}#{index}")


def hits_of(
    table: pa.Table,
    scores: NDArray[np.float32] | None = None,
    vector_scores: NDArray[np.float32] | None = None,
    text_scores: NDArray[np.float32] | None = None,
) -> list[Hit]:
    """Return the rows of a search's result as hits."""
    names = table.column_names
    if scores is None and "_distance" in names:
        scores = vector_scores = 1 - table["_distance"].to_numpy()
    elif scores is None:
        scores = text_scores = table["_score"].to_numpy()
    assert scores is not None
    hits = []
    for number, row in enumerate(table.select(COLUMNS).to_pylist()):
        del row["position"]
        row["metadata"] = codec.loads(row["metadata"])
        hits.append(
            Hit(
                **row,
                score=float(scores[number]),
                vector_score=0.0 if vector_scores is None else float(vector_scores[number]),
                text_score=0.0 if text_scores is None else float(text_scores[number]),
            )
        )
    return hits


def vectors_of(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return a column of vectors as float32 (n, dim), without copying where it is one piece."""
    array = column.combine_chunks()
    flat: NDArray[np.float32] = array.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(array), -1) if len(array) else np.zeros((0, column.type.list_size), np.float32)
