"""RAG: documents of a tenant cut, embedded and indexed; questions answered from them, with citations to check.

service = await rag.serve(bus)                              # or: kit worker rag
await rag.ingest_folder(bus, "handbook/", progress=print)   # Markdown, text, HTML, PDF, JSON Lines
result = await rag.query(bus, "What is the refund policy?", filters=rag.field("year") >= 2024)
rag.check_citations(result).table()                         # which words of which passage support which sentence
"""

from __future__ import annotations

from kit.components.rag.chunking import Chunk, Chunking, chunk
from kit.components.rag.citations import Citations, check_citations
from kit.components.rag.client import (
    Ingestion,
    Progress,
    delete_document,
    ingest_documents,
    ingest_folder,
    ingest_jsonl,
    query,
    watch_status,
)
from kit.components.rag.errors import (
    BadEncoding,
    DocumentRefused,
    DocumentSuperseded,
    DocumentTooLarge,
    EmbeddingMismatch,
    EmptyDocument,
    FilterRefused,
    IndexBusy,
    ModelFailed,
    QueryRefused,
    RagError,
    UnreadableDocument,
    UnsupportedType,
)
from kit.components.rag.evaluation import Case, ablation, evaluate, evaluate_answers, figure, read_cases
from kit.components.rag.filters import Condition, document, field
from kit.components.rag.index import Analysis, Collection, Database
from kit.components.rag.instructions import TEMPLATE, TEMPLATE_ID, VARIABLES
from kit.components.rag.ranking import Ranking
from kit.components.rag.readers import Document, Folder
from kit.components.rag.rows import Hit
from kit.components.rag.service import serve

__all__ = [
    "TEMPLATE",
    "TEMPLATE_ID",
    "VARIABLES",
    "Analysis",
    "BadEncoding",
    "Case",
    "Chunk",
    "Chunking",
    "Citations",
    "Collection",
    "Condition",
    "Database",
    "Document",
    "DocumentRefused",
    "DocumentSuperseded",
    "DocumentTooLarge",
    "EmbeddingMismatch",
    "EmptyDocument",
    "FilterRefused",
    "Folder",
    "Hit",
    "IndexBusy",
    "Ingestion",
    "ModelFailed",
    "Progress",
    "QueryRefused",
    "RagError",
    "Ranking",
    "UnreadableDocument",
    "UnsupportedType",
    "ablation",
    "check_citations",
    "chunk",
    "delete_document",
    "document",
    "evaluate",
    "evaluate_answers",
    "field",
    "figure",
    "ingest_documents",
    "ingest_folder",
    "ingest_jsonl",
    "query",
    "read_cases",
    "serve",
    "watch_status",
]
