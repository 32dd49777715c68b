"""A tenant's search beside the same search by hand: tables of made-up passages, from a thousand to many thousands.

Words are as rare as in real text: a passage draws them from a vocabulary of made-up words by Zipf's law, and the two
words that are asked for stand in one of 500 passages each, both of them in one passage only.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.components import database_uri, rag
from kit.components.rag.index import Mode
from kit.components.rag.rows import COLUMNS, Entry, table_of
from kit.lab.bench import Comparison, Target, Verdict, compare_async

if TYPE_CHECKING:
    from numpy.typing import NDArray

VECTOR, LANCEDB, NUMPY = "kit, vector", "bare LanceDB", "numpy"
HYBRID, LANCEDB_HYBRID = "kit, hybrid", "bare LanceDB, hybrid"
DIMENSION = 256
ASKED = ("zuvolar", "quimpest")  # no syllables of the vocabulary
_WORDS, _LENGTH = 20_000, 24  # in the vocabulary, in a passage
_ASKED_EVERY, _BOTH = 500, 123  # passages; the row that has both words
_PARTITIONS = 64  # as the kit compares, which are all
_TENANT = "rows"


class Index:
    """A tenant's collection with so many passages, and the same rows for those who search by hand."""

    def __init__(
        self, database: rag.Database, collection: rag.Collection, table: Any, vectors: NDArray[np.float32]
    ) -> None:
        self._database, self._collection, self._table, self._vectors = database, collection, table, vectors
        noise = np.random.default_rng(1).standard_normal(DIMENSION, dtype=np.float32)
        self._asked = vectors[_BOTH] + 1.5 * noise / np.linalg.norm(noise)  # its cosine with that passage is some 0.55

    def numpy(self) -> list[str]:
        """Return the ids of the five nearest passages: normalised vectors, one product, the best five sorted."""
        query = self._asked / np.linalg.norm(self._asked)
        cosines = self._vectors @ query
        best = np.argpartition(cosines, -5)[-5:]
        return [f"d{row}#0" for row in best[np.argsort(-cosines[best])]]

    async def bare(self) -> list[str]:
        """Return them from LanceDB by hand, with the same columns, and all partitions where there is an index."""
        found = await self._nearest().limit(5).select([*COLUMNS, "_distance"]).to_list()
        return [row["chunk_id"] for row in found]

    async def bare_hybrid(self) -> list[str]:
        """Return what LanceDB's hybrid search finds: by vector and by words, side by side, then its rank fusion.

        Its steps are called one by one, since the query that joins them warns of each of its columns.
        """
        from lancedb.rerankers import RRFReranker

        question = " ".join(ASKED)
        words = self._table.query().nearest_to_text(question, columns=["text"]).limit(5).with_row_id()
        by_vector, by_words = await asyncio.gather(
            self._nearest().limit(5).with_row_id().select([*COLUMNS, "_distance"]).to_arrow(),
            words.select([*COLUMNS, "_score"]).to_arrow(),
        )
        fused = RRFReranker().rerank_hybrid(question, by_vector, by_words).slice(0, 5)
        return [row["chunk_id"] for row in fused.to_pylist()]

    async def search(self, mode: Mode = "vector") -> list[str]:
        """Return what the kit finds."""
        return [hit.chunk_id for hit in await self._collection.search(" ".join(ASKED), self._asked, mode=mode)]

    async def close(self) -> None:
        """Release the files."""
        self._table.close()
        await self._database.close()

    def _nearest(self) -> Any:
        query = self._table.query().nearest_to(self._asked).column("vector").distance_type("cosine")
        return query.nprobes(_PARTITIONS)


class Tables:
    """Indices by their number of rows, each made when it is first measured, in a folder that is gone at the end."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kit-benchmark-")
        self._made: dict[int, Index] = {}

    async def by_vector(self, rows: int, *, rounds: int) -> Comparison:
        """Measure the searches by vector, which have to find the same passages in the same order."""
        index = await self.index(rows)
        truth = index.numpy()

        async def by_hand() -> list[str]:
            return index.numpy()

        contenders: dict[str, Callable[[], Awaitable[list[str]]]] = {
            LANCEDB: index.bare, NUMPY: by_hand, VECTOR: index.search,
        }  # fmt: skip
        return await compare_async(
            contenders, name=f"search_{rows}", check=truth.__eq__, rounds=rounds, samples=1, garbage="rounds"
        )

    async def hybrid(self, rows: int, *, rounds: int) -> Comparison:
        """Measure the hybrid searches, which have to find the passage that has both of the words asked for."""
        index = await self.index(rows)
        contenders: dict[str, Callable[[], Awaitable[list[str]]]] = {
            LANCEDB_HYBRID: index.bare_hybrid, HYBRID: lambda: index.search("hybrid"),
        }  # fmt: skip
        return await compare_async(
            contenders, name=f"search_hybrid_{rows}", rounds=rounds, samples=1, garbage="rounds",
            check=lambda found: len(found) == 5 and f"d{_BOTH}#0" in found,
        )  # fmt: skip

    async def index(self, rows: int) -> Index:
        """Return the index of so many passages."""
        if rows not in self._made:
            self._made[rows] = await _make(Path(self._folder.name) / str(rows), rows)
        return self._made[rows]

    async def close(self) -> None:
        """Release the indices and delete their folder."""
        for index in self._made.values():
            await index.close()
        self._folder.cleanup()


def search_goal(result: Comparison, rows: int) -> Verdict:
    """Return the verdict on the tenant's search by vectors, in a table of so many rows."""
    ratio = result.ratio(VECTOR, to=LANCEDB)
    target = Target("tenant's search", 1.1, unit="×", metric=f"p50 against {LANCEDB}, {rows:,} rows", goal=True)
    return target.verdict(ratio.value, ratio=ratio, interval=ratio)


def passages(rows: int) -> list[str]:
    """Return made-up passages, the words that are asked for among them."""
    rng = np.random.default_rng(0)
    syllables = np.array([a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "ur", "an")])
    words = ["".join(parts) for parts in syllables[rng.integers(len(syllables), size=(_WORDS, 3))]]
    chances = 1 / np.arange(1, _WORDS + 1)
    drawn = rng.choice(_WORDS, size=(rows, _LENGTH), p=chances / chances.sum())
    made = [" ".join([words[word] for word in row]) for row in drawn]
    for which, word in enumerate(ASKED):
        for row in range(which, rows, _ASKED_EVERY):
            made[row] += f" {word}"
    made[_BOTH] += f" {' '.join(ASKED)}"
    return made


async def _make(folder: Path, rows: int) -> Index:
    """Add the kit's rows to the kit's table by hand, and have the kit make the indices once, over all of them."""
    import lancedb

    vectors = np.random.default_rng(0).standard_normal((rows, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    database = await rag.Database.open(_TENANT, folder)
    collection = await database.create("documents", model="random", dimension=DIMENSION)
    connection = await lancedb.connect_async(database_uri(_TENANT, folder), read_consistency_interval=timedelta(0))
    table = await connection.open_table("documents")
    await table.add(table_of([_entry(row, text, vectors[row : row + 1]) for row, text in enumerate(passages(rows))]))
    await collection.cover()
    return Index(database, collection, table, vectors)


def _entry(row: int, text: str, vector: NDArray[np.float32]) -> Entry:
    key, chunk = f"d{row}", rag.Chunk(index=0, start=0, end=len(text), content=text)
    return Entry(document_id=key, sha256=key, sent_at="1", chunks=(chunk,), vectors=vector, leads=vector)
