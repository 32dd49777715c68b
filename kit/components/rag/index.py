"""The tenant's index: a LanceDB table of passages with vectors, two full-text indices, and filters.

Each tenant has a database of its own, ``<uri>/<tenant>``; each collection is one table in it. Writing a document is
one commit that puts its passages in and takes its old ones out, so an interruption leaves the one or the other.

Rows are found from the moment that a write returns: what an index does not cover yet, LanceDB reads row by row.
Covering new rows rewrites the full-text indices (1 s of CPU at 7,000 passages, however few are new), so it is done when
a tenth of the rows is new, and whenever nothing was written for a second; what a worker that died left uncovered, the
next one covers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np

from kit.catalogue import check_id
from kit.components import KEEP_VERSIONS, DatabaseFailed, commit, connect_database, database_failed
from kit.components.rag.candidates import Places, nearest, ranked, run
from kit.components.rag.errors import EmbeddingMismatch, FilterRefused, IndexBusy
from kit.components.rag.filters import Condition, of_documents, to_sql
from kit.components.rag.latest import Latest, State, beyond, is_news, sent_before, states_of
from kit.components.rag.ranking import Ranking
from kit.components.rag.rows import COLUMNS, Entry, Hit, hits_of, schema, table_of, vectors_of
from kit.components.rag.text import STOP_WORDS, content_words, spaced

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    Vector: TypeAlias = NDArray[np.float32]

_log = logging.getLogger("kit.rag")

Mode: TypeAlias = Literal["hybrid", "vector", "text"]
COLLECTION = "documents"
FLAT_ROWS = 10_000  # below, every vector of the table is compared: 5 ms at 10,000 rows, 200 ms at 100,000
GRAM = 5  # letters
_UNCOVERED = (256, 2000)  # rows that an index may leave out: reading 256 adds some 10 ms to a search
_UNCOVERED_SHARE = 0.1  # … or this part of the table, between the two
_ALWAYS = {"text", "grams", "document_id", "chunk_id"}  # columns with an index, however few rows there are
_IDLE = 1.0  # s without a write, after which every row is covered
_ATTEMPTS = 5  # of a search, when writes move rows under it
_RENEW = 16  # versions of a table, after which its files are let go of that are of older ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """How the full-text index reads words."""

    language: str = "English"
    stem: bool = True
    stop_words: tuple[str, ...] | None = field(default=tuple(sorted(STOP_WORDS)), repr=False)


class Database:
    """A tenant's database: opens its collections."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Any]],
        connection: Any,
        *,
        analysis: Analysis | None = None,
        flat_rows: int = FLAT_ROWS,
    ) -> None:
        self._connect, self._connection = connect, connection
        self._analysis = analysis or Analysis()
        self._flat_rows = flat_rows
        self._collections: dict[str, Collection] = {}
        self._latest: dict[str, Latest] = {}
        self._opening = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        tenant_id: str,
        uri: str | Path | None = None,
        *,
        analysis: Analysis | None = None,
        flat_rows: int = FLAT_ROWS,
        storage_options: dict[str, str] | None = None,
    ) -> Self:
        """Connect to a tenant's database, made when it is missing.

        Args:
            flat_rows: rows above which an IVF index takes over, which holds its vectors in memory.
            storage_options: credentials and the like for object storage; LanceDB also reads them from the environment.
        """
        connect = partial(connect_database, tenant_id, uri, storage_options=storage_options)
        return cls(connect, await connect(), analysis=analysis, flat_rows=flat_rows)

    async def collection(self, name: str = COLLECTION) -> Collection | None:
        """Return a collection, or None when nothing was ever written to it."""
        known = self._collections.get(name)
        if known is None:
            async with self._opening:
                known = await self._held(name)
        return known

    async def create(self, name: str, *, model: str, dimension: int) -> Collection:
        """Return a collection for vectors of a model, made when it is missing.

        Raises:
            EmbeddingMismatch: it holds vectors of another model or size.
        """
        known = self._collections.get(name)
        if known is None:
            async with self._opening:
                known = await self._held(name)
                if known is None:
                    known = await self._made(name, model, dimension)
        known.check(model, dimension)
        return known

    async def _held(self, name: str) -> Collection | None:
        known = self._collections.get(name)
        if known is not None:
            return known
        try:
            known = self._collections[name] = await self._wrapped(check_id(name, what="collection"))
            await known.resume()
        except (ValueError, RuntimeError) as error:
            if "not found" not in str(error):
                raise
        return known

    async def _made(self, name: str, model: str, dimension: int) -> Collection:
        try:
            await commit(
                self._connection, partial(self._connection.create_table, name, schema=schema(model, dimension))
            )
        except (ValueError, RuntimeError) as error:
            if "already exists" not in str(error):
                raise
            # Another worker was faster: its table counts.
        made = self._collections[name] = await self._wrapped(name)
        return made

    async def _wrapped(self, name: str) -> Collection:
        async def reopen() -> Any:
            return await (await self._connect()).open_table(name)

        table = await reopen()
        return Collection(
            reopen, table, await table.schema(), await self.latest(name),
            analysis=self._analysis, flat_rows=self._flat_rows,
        )  # fmt: skip

    async def latest(self, name: str = COLLECTION) -> Latest:
        """Return the notes of a collection, which may be there before it is itself."""
        known = self._latest.get(name)
        if known is None:
            known = self._latest[name] = await Latest.open(self._connection, check_id(name, what="collection"))
        return known

    async def close(self) -> None:
        """Cover what is not yet indexed, and release the database's files."""
        for collection in self._collections.values():
            await collection.close()
        for notes in self._latest.values():
            notes.close()
        self._connection.close()

    async def write(self, name: str, entries: Sequence[Entry], *, model: str) -> dict[str, int]:
        """Write to a collection as its ``upsert`` does; it is made as soon as there are passages for it."""
        full = next((entry for entry in entries if entry.chunks), None)
        if full is not None:
            return await (await self.create(name, model=model, dimension=full.vectors.shape[1])).upsert(entries)
        await (await self.latest(name)).note(entries)  # first: a worker that makes the collection now finds it there
        known = await self.collection(name)
        if known is None:
            return {entry.document_id: 0 for entry in entries if entry.sha256 is None}
        return await known.upsert(entries)


class Collection:
    """One collection of a tenant's documents.

    Attributes:
        model: the model of its embeddings; dimension: their length.
    """

    def __init__(
        self,
        reopen: Callable[[], Awaitable[Any]],
        table: Any,
        held: pa.Schema,
        latest: Latest,
        *,
        analysis: Analysis,
        flat_rows: int = FLAT_ROWS,
    ) -> None:
        self._reopen, self._table, self._latest, self._opened_at = reopen, table, latest, 0
        self._analysis = analysis
        self._flat_rows = flat_rows
        self._writing = asyncio.Lock()
        self._complete = False  # whether every index is known to be there
        self._uncovered = 0  # rows written since the indices were last brought up to date
        self._idle: asyncio.Task[None] | None = None
        self.model = (held.metadata or {}).get(b"kit.embedding_model", b"").decode()
        self.dimension: int = held.field("vector").type.list_size

    async def close(self) -> None:
        """Let a write that is under way end, cover what is not yet indexed, and release the table."""
        if self._idle is not None:
            self._idle.cancel()
        async with self._writing:
            if self._uncovered:
                await self._cover()
            self._table.close()

    def check(self, model: str, dimension: int) -> None:
        """Raise EmbeddingMismatch unless the collection holds vectors of this model and size."""
        if (model, dimension) != (self.model, self.dimension):
            raise EmbeddingMismatch(
                self._table.name, held=f"{self.model} ({self.dimension})", given=f"{model} ({dimension})"
            )

    # --- writing ------------------------------------------------------------------------------------------------

    async def states(self, document_ids: Sequence[str]) -> dict[str, State]:
        """Return what is known of documents: of those that are in the index, and of those that were deleted lately."""
        await self._renew()
        rows = self._table.query().where(of_documents(document_ids)).select(["document_id", "sha256", "sent_at"])
        return states_of(await rows.to_arrow(), await self._latest.of(document_ids))

    async def upsert(self, entries: Sequence[Entry]) -> dict[str, int]:
        """Write documents: their passages in, their old ones out, in one commit; they are found when this returns.

        A document that the index has in the same form, or from a later message, is left alone. An entry without
        passages deletes its document, or notes that it was sent again.

        Returns:
            the ids of what now is as its entry says, and how many old passages each lost or had replaced.
        """
        async with self._writing:
            latest = {entry.document_id: entry for entry in sorted(entries, key=lambda entry: entry.sent_at)}
            before = await self.states(list(latest))
            news = {key: entry for key, entry in latest.items() if is_news(entry, before.get(key, State()))}
            if not news:
                return {}
            await self._latest.note([entry for entry in news.values() if not entry.chunks])
            replaced = [entry for entry in news.values() if entry.chunks or entry.sha256 is None]
            if replaced:
                await self._replace(replaced)
            after = await self._settle(list(latest))
            return {
                key: before.get(key, State()).chunks
                for key, entry in news.items()
                if after.get(key, State()).sha256 == entry.sha256
            }

    async def _replace(self, entries: Sequence[Entry]) -> None:
        """Take documents' rows out, and put those in that they have now."""
        stale = sent_before("<=", {entry.document_id: entry.sent_at for entry in entries})
        full = [entry for entry in entries if entry.chunks]
        if not full:
            await self._delete(stale)
            return
        if not self._complete:
            await self.ensure_indices()  # whoever made the table may have died before it made them
        table = table_of(full)
        await commit(self._table, partial(self._merge, table, stale))
        await self._written(table.num_rows)

    async def _delete(self, condition: str) -> None:
        if await self._table.count_rows(condition):
            await commit(self._table, partial(self._table.delete, condition))
        await self._written(0)

    async def _settle(self, document_ids: Sequence[str]) -> dict[str, State]:
        """Take out the rows of older messages that another worker put in meanwhile; return what is known then."""
        states = await self.states(document_ids)
        odd = {key: state for key, state in states.items() if state.left_over}
        deleted = {key: state.sent_at for key, state in odd.items() if state.sha256 is None}
        written = {key: state.written_at for key, state in odd.items() if state.sha256 is not None}
        if deleted:
            await self._delete(sent_before("<=", deleted))
        if written:
            await self._delete(sent_before("<", written))
        return states

    async def _merge(self, table: pa.Table, stale: str) -> None:
        merge = self._table.merge_insert("chunk_id").when_not_matched_insert_all()
        merge.when_matched_update_all(where=f"target.sent_at <= source.sent_at OR target.sent_at > {beyond()}")
        await merge.when_not_matched_by_source_delete(stale).execute(table)

    async def _renew(self) -> None:
        """Open the table anew after some versions: LanceDB's cache holds the files of every index there was open."""
        version = await self.version()
        if version - self._opened_at >= _RENEW:
            self._opened_at = version
            self._table = await self._reopen()

    # --- indices ------------------------------------------------------------------------------------------------

    async def ensure_indices(self) -> None:
        """Make the indices that are missing: words, letter runs, ids, and vectors where there are many rows."""
        from lancedb.index import FTS, BTree, IvfFlat

        held = _columns(await self._table.list_indices())
        stop_words = self._analysis.stop_words
        wanted: dict[str, Any] = {
            "text": FTS(
                language=self._analysis.language,
                stem=self._analysis.stem,
                remove_stop_words=stop_words is not None,
                custom_stop_words=None if stop_words is None else list(stop_words),
            ),
            "grams": FTS(
                base_tokenizer="ngram",
                ngram_min_length=GRAM,
                ngram_max_length=GRAM,
                stem=False,
                remove_stop_words=False,
            ),
            "document_id": BTree(),
            "chunk_id": BTree(),
        }
        if await self._table.count_rows() > self._flat_rows:
            wanted["vector"] = IvfFlat(distance_type="cosine")
        for column in wanted.keys() - held:
            await commit(self._table, partial(self._table.create_index, column, config=wanted[column]))
        self._complete = True

    async def resume(self) -> None:
        """Have the rows covered that another worker wrote and did not live to cover."""
        self._uncovered = await self.unindexed()
        if self._uncovered:
            self._cover_later()

    async def cover(self) -> None:
        """Bring every row into every index, and drop versions and notes that nobody needs any more."""
        async with self._writing:
            await self._cover()

    async def _cover(self) -> None:
        await self.ensure_indices()
        await commit(self._table, partial(self._table.optimize, cleanup_older_than=KEEP_VERSIONS))
        await self._latest.tidy()
        self._uncovered = 0

    async def _written(self, rows: int) -> None:
        """Cover new rows now, when they are many, or else once nothing more is written."""
        known = self._uncovered = self._uncovered + rows
        least, most = _UNCOVERED
        if known > least and known > min(most, _UNCOVERED_SHARE * await self._table.count_rows()):
            await self._cover()
        self._cover_later()

    def _cover_later(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().create_task(self._cover_when_idle())

    async def _cover_when_idle(self) -> None:
        await asyncio.sleep(_IDLE)
        self._idle = None  # from here on a write does not cancel it, it waits
        try:
            await self.cover()
        except (DatabaseFailed, RuntimeError, OSError) as error:
            # Nothing is lost: rows are found uncovered too, and the next write tries again.
            _log.warning("the indices of %s were not brought up to date: %s", self._table.name, error)

    async def unindexed(self) -> int:
        """Return how many rows some index does not cover yet; all of them where one is missing."""
        indices = await self._table.list_indices()
        if not _columns(indices) >= _ALWAYS:
            return int(await self._table.count_rows())
        stats = [await self._table.index_stats(index.name) for index in indices]
        return max((entry.num_unindexed_rows for entry in stats if entry is not None), default=0)

    # --- reading ------------------------------------------------------------------------------------------------

    async def search(
        self,
        query: str,
        vector: Vector | None = None,
        *,
        mode: Mode = "hybrid",
        top_k: int = 5,
        condition: Condition | None = None,
        threshold: float | None = None,
        ranking: Ranking | None = None,
    ) -> list[Hit]:
        """Return the passages that fit a question best, the best first.

        Args:
            vector: the question's embedding, float32 (dim,); not needed in text mode.
            threshold: least cosine of question and passage.

        Raises:
            FilterRefused: the filter does not fit the metadata.
        """
        await self._renew()
        ranking = ranking or Ranking()
        where = None if condition is None else to_sql(condition)
        try:
            if mode == "text" or vector is None:
                return hits_of(await self._by_text("text", query, top_k, where, COLUMNS))
            if mode == "vector":
                found = await self._by_vector(vector, top_k, where, COLUMNS)
                hits = hits_of(found)
                return hits if threshold is None else [hit for hit in hits if hit.vector_score >= threshold]
            return await self._hybrid(query, vector, top_k, where, threshold, ranking)
        except (RuntimeError, ValueError) as error:
            if (failed := await database_failed(self._table, error)) is not None:
                raise failed from error
            if where is not None:
                raise FilterRefused(f"LanceDB did not take it: {type(error).__name__}") from error
            raise

    async def _by_vector(
        self, vector: Vector, limit: int, where: str | None, columns: list[str], **more: bool
    ) -> pa.Table:
        return await run(nearest(self._table, vector, limit), where, [*columns, "_distance"], **more)

    async def _by_text(
        self, column: str, text: str, limit: int, where: str | None, columns: list[str], **more: bool
    ) -> pa.Table:
        asked = spaced(text) if column == "text" else text
        query = self._table.query().nearest_to_text(asked, columns=column).limit(limit)
        return await run(query, where, [*columns, "_score"], **more)

    async def _hybrid(
        self, query: str, vector: Vector, top_k: int, where: str | None, threshold: float | None, ranking: Ranking
    ) -> list[Hit]:
        for _ in range(_ATTEMPTS):
            tables = await self._candidates(query, vector, max(ranking.candidates, top_k), where, ranking)
            places = Places.of(tables)
            if not places.row_ids:
                return []
            rows = await self._rows(places)
            if rows is not None:
                return ranked(rows, places, vector, top_k, threshold, ranking)
        raise IndexBusy(self._table.name)

    async def _candidates(
        self, query: str, vector: Vector, limit: int, where: str | None, ranking: Ranking
    ) -> dict[str, pa.Table]:
        """Run the searches side by side; each brings ids and scores only."""
        columns, searches = ["chunk_id"], {}
        if ranking.vector or ranking.lead:
            searches["vector"] = self._by_vector(vector, limit, where, columns, row_ids=True)
        if ranking.text:
            searches["text"] = self._by_text("text", query, limit, where, columns, row_ids=True)
        if ranking.grams and (letters := " ".join(content_words(query))):
            searches["grams"] = self._by_text("grams", letters, limit, where, columns, row_ids=True)
        return dict(zip(searches, await asyncio.gather(*searches.values()), strict=True))

    async def _rows(self, places: Places) -> pa.Table | None:
        """Return the candidates' rows in their order, or None when a write moved them since they were found."""
        columns = [*COLUMNS, "vector", "lead"]
        try:
            found = await self._table.take_row_ids(places.row_ids).select(columns).to_arrow()
        except (RuntimeError, ValueError, OSError):
            return None
        row_of = {chunk_id: row for row, chunk_id in enumerate(found["chunk_id"].to_pylist())}
        if row_of.keys() != set(places.chunk_ids):
            return None
        return found.take([row_of[chunk_id] for chunk_id in places.chunk_ids])

    # --- looking ------------------------------------------------------------------------------------------------

    async def count(self) -> tuple[int, int]:
        """Return how many documents and how many passages there are."""
        return int(await self._table.count_rows("position = 0")), int(await self._table.count_rows())

    async def version(self) -> int:
        """Return the table's version: it grows with every write."""
        return int(await self._table.version())

    async def rows(self) -> pa.Table:
        """Return the whole table, sorted by passage."""
        return (await self._table.to_arrow()).sort_by("chunk_id")

    async def recall(self, *, k: int = 10, sample: int = 50) -> float:
        """Return the part of the true ``k`` nearest passages that the vector index finds, for a sample of passages."""
        held = (await self._table.query().select(["vector"]).limit(sample).to_arrow())["vector"]
        found = wanted = 0
        for vector in vectors_of(held):
            query = nearest(self._table, vector, k)
            mine = (await query.select(["chunk_id", "_distance"]).to_arrow())["chunk_id"].to_pylist()
            exact = query.bypass_vector_index().select(["chunk_id", "_distance"])
            truth = (await exact.to_arrow())["chunk_id"].to_pylist()
            found, wanted = found + len(set(mine) & set(truth)), wanted + len(truth)
        return found / wanted if wanted else 1.0


def _columns(indices: Iterable[Any]) -> set[str]:
    return {column for index in indices for column in index.columns}
