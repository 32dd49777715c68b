"""What the RAG component refuses, by name.

    ComponentError
    └── RagError
        ├── DocumentRefused           a document that can never be indexed as it is
        │   ├── UnsupportedType       no reader for its media type
        │   ├── BadEncoding           its bytes are not in the encoding that they claim
        │   ├── UnreadableDocument    the reader failed on it: damaged, encrypted, gone
        │   ├── DocumentTooLarge      reading it exceeds a limit on text, pages, memory or time
        │   ├── EmptyDocument         nothing to index in it
        │   └── DocumentSuperseded    a later message about it was already applied
        ├── EmbeddingMismatch         vectors of another model or size than the collection has
        ├── ModelFailed               the gateway gave no embeddings or no answer
        ├── IndexBusy                 rows moved under a search each time it was tried; may pass
        ├── QueryRefused              a question or a parameter that cannot work
        └── FilterRefused             a filter that is not one, or does not fit the metadata

Messages name the document, never quote it. ``retryable`` tells the job queue whether another attempt can help.
"""

from __future__ import annotations

from typing import Any

from kit.errors import ComponentError, KitError


class RagError(ComponentError):
    """The RAG component refused or failed."""

    retryable = False


class DocumentRefused(RagError):
    """A document cannot be indexed as it is.

    Attributes:
        document_id: which one.
        reason: why not.
    """

    def __init__(self, document_id: str, reason: str) -> None:
        self.document_id, self.reason = document_id, reason
        self.content_free_start = f"document {document_id!r}: "
        super().__init__(self.content_free_start + reason)


class UnsupportedType(DocumentRefused):
    """There is no reader for the document's media type."""


class BadEncoding(DocumentRefused):
    """The document's bytes are not text in the encoding they claim."""


class UnreadableDocument(DocumentRefused):
    """The document is damaged, encrypted, or cannot be opened."""


class DocumentTooLarge(DocumentRefused):
    """Reading the document exceeds a limit on text, pages, memory or time."""


class EmptyDocument(DocumentRefused):
    """There is nothing to index in the document."""

    def __init__(self, document_id: str, reason: str = "there is no text in it") -> None:
        super().__init__(document_id, reason)


class DocumentSuperseded(DocumentRefused):
    """A later message about the document was applied before this one arrived."""

    def __init__(self, document_id: str) -> None:
        super().__init__(document_id, "a later message about it was already applied")


_REFUSED = (
    DocumentRefused, UnsupportedType, BadEncoding, UnreadableDocument, DocumentTooLarge, EmptyDocument,
    DocumentSuperseded,
)  # fmt: skip
REFUSALS = frozenset(kind.__name__ for kind in _REFUSED)
"""Names of the errors after which the same document will not do either."""


class EmbeddingMismatch(RagError):
    """The collection holds vectors of another model or another size."""

    def __init__(self, collection: str, *, held: str, given: str) -> None:
        self.collection, self.held, self.given = collection, held, given
        super().__init__(
            f"collection {collection!r} holds vectors of {held}, not of {given}: "
            "use that model, or ingest the documents into another collection"
        )


class ModelFailed(RagError):
    """The gateway gave no embeddings, or no answer.

    Attributes:
        stage: ``embed`` or ``generate``.
        error_type, detail: what the gateway said.
    """

    def __init__(self, stage: str, model: str, *, error_type: str, detail: str, retryable: bool) -> None:
        self.stage, self.model, self.error_type, self.detail = stage, model, error_type, detail
        self.retryable = retryable
        self.content_free_start = f"{model} could not {stage}: {error_type}: "
        super().__init__(self.content_free_start + detail)


class IndexBusy(RagError):
    """Writes moved rows under a search, each time it was tried."""

    retryable = True

    def __init__(self, collection: str) -> None:
        self.collection = collection
        super().__init__(f"collection {collection!r} was written to under each attempt of a search: try again")


class QueryRefused(RagError):
    """A question or one of its parameters cannot work."""

    def __init__(self, reason: str, *, parameter: str | None = None) -> None:
        self.reason, self.parameter = reason, parameter
        super().__init__(f"{parameter}: {reason}" if parameter else reason)


class FilterRefused(RagError):
    """A filter is not built of the kit's conditions, or does not fit the metadata it looks at."""

    def __init__(self, reason: str, *, field: str | None = None) -> None:
        self.reason, self.field = reason, field
        super().__init__(f"filter on {field!r}: {reason}" if field else f"filter: {reason}")


def error_data(error: BaseException, retryable: bool = False) -> dict[str, Any]:
    """Return an error for a ``rag_status``; of a foreign error, whose text may quote the document, only the name."""
    detail = str(error) if isinstance(error, KitError) else type(error).__name__
    return {"type": type(error).__name__, "message": detail, "retryable": retryable}
