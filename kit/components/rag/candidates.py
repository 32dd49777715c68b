"""The candidates that several searches of one index bring, merged and ranked by every signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kit.components.rag.ranking import Ranking, centred_cosine, cosine, fuse
from kit.components.rag.rows import Hit, hits_of, vectors_of

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_PARTITIONS = 64  # of an index that are compared, of some 4,096 rows each: all of them up to 260,000 rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """The candidates of several searches, each once: where its row lies, and its scores in the text searches."""

    row_ids: list[int]
    chunk_ids: list[str]
    scores: dict[str, NDArray[np.float32]]

    @classmethod
    def of(cls, tables: dict[str, pa.Table]) -> Self:
        """Merge what the searches found."""
        place: dict[str, int] = {}
        row_ids: list[int] = []
        found: dict[str, list[tuple[int, float]]] = {"text": [], "grams": []}
        for search, table in tables.items():
            scores = table["_score"].to_pylist() if search in found else [0.0] * table.num_rows
            for chunk_id, row_id, score in zip(
                table["chunk_id"].to_pylist(), table["_rowid"].to_pylist(), scores, strict=True
            ):
                candidate = place.setdefault(chunk_id, len(place))
                if candidate == len(row_ids):
                    row_ids.append(row_id)
                if search in found:
                    found[search].append((candidate, score))
        arrays = {search: np.zeros(len(row_ids), np.float32) for search in found}
        for search, scored in found.items():
            for candidate, score in scored:
                arrays[search][candidate] = score
        return cls(row_ids=row_ids, chunk_ids=list(place), scores=arrays)


def ranked(
    rows: pa.Table, places: Places, vector: NDArray[np.float32], top_k: int, threshold: float | None, ranking: Ranking
) -> list[Hit]:
    """Score each candidate by every signal, and return the best."""
    closeness = cosine(vectors_of(rows["vector"]), vector)
    leads = centred_cosine(vectors_of(rows["lead"]), vector)
    total = fuse({"vector": closeness, "lead": leads, **places.scores}, ranking)
    order = np.lexsort((-closeness, -total))
    if threshold is not None:
        order = order[closeness[order] >= threshold]
    best = order[:top_k]
    return hits_of(rows.take(best), total[best], closeness[best], places.scores["text"][best])


def nearest(table: Any, vector: NDArray[np.float32], limit: int) -> Any:
    """Return LanceDB's query for the passages nearest to a vector, float32 (dim,), by cosine."""
    query = table.query().nearest_to(vector).column("vector").distance_type("cosine")
    return query.nprobes(_PARTITIONS).limit(limit)


async def run(query: Any, where: str | None, columns: list[str], *, row_ids: bool = False) -> pa.Table:
    """Return the rows that a query of LanceDB's finds."""
    if where is not None:
        query = query.where(where)
    if row_ids:
        query = query.with_row_id()
    return await query.select(columns).to_arrow()
