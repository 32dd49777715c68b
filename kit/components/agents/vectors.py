"""Where memories lie by their meaning: a LanceDB table of vectors in the tenant's database, without any text.

What a memory says is in the key-value store alone, so that what is forgotten there is nowhere else. The table can be
made again from that store at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kit.components import KEEP_VERSIONS, commit, connect_database

if TYPE_CHECKING:
    from numpy.typing import NDArray

TABLE = "memories"
_TIDY = 64  # writes after which small files are put together


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A memory's place: the key of its document, its vector, float32 (dim,), and what can be filtered by."""

    key: str
    agent_id: str
    user_id: str
    memory_type: str
    at: float
    vector: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """A memory that was found: the key of its document and its cosine to what was asked."""

    key: str
    relevance: float


class Vectors:
    """The vectors of a tenant's memories; ``close`` releases the database."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._tables: dict[str, Any] = {}
        self._writing = asyncio.Lock()
        self._writes = 0

    @classmethod
    async def open(cls, tenant_id: str, uri: str | Path | None = None) -> Self:
        """Connect to the tenant's database, made when it is missing.

        Args:
            uri: folder or object-storage URI that holds a database for each tenant; None: ``KIT_LANCEDB_URI``, else
                ``.kit/lancedb`` in the working directory.
        """
        return cls(await connect_database(tenant_id, uri))

    def close(self) -> None:
        """Release the tables and the database."""
        for table in self._tables.values():
            table.close()
        self._connection.close()

    async def put(self, points: Sequence[Point]) -> None:
        """Write points; one of the same key replaces the one before."""
        for dimension in {point.vector.size for point in points}:
            chosen = [point for point in points if point.vector.size == dimension]
            table = await self._table(dimension, make=True)
            merge = table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
            rows = _rows(chosen, dimension)
            await self._write(table, partial(merge.execute, rows))

    async def remove(self, key: str) -> None:
        """Take a memory out."""
        for table in await self._every():
            await self._write(table, partial(table.delete, f"key = {_quoted(key)}"))

    async def count(self, agent_id: str | None = None) -> int:
        """Return how many memories there are, of one agent or of all."""
        condition = None if agent_id is None else f"agent_id = {_quoted(agent_id)}"
        return sum([await table.count_rows(condition) for table in await self._every()])

    async def keys(self) -> set[str]:
        """Return the key of each vector."""
        found: set[str] = set()
        for table in await self._every():
            found.update((await table.query().select(["key"]).to_arrow())["key"].to_pylist())
        return found

    async def search(
        self,
        vector: NDArray[np.float32],
        *,
        agent_id: str,
        user_id: str | None = None,
        types: Sequence[str] = (),
        since: float | None = None,
        limit: int = 5,
    ) -> list[Near]:
        """Return the memories nearest to a vector, the nearest first: of a user, if one is given, and of nobody."""
        table = await self._table(vector.size, make=False)
        if table is None:
            return []
        conditions = [f"agent_id = {_quoted(agent_id)}", f"user_id IN ({_quoted(user_id or '')}, '')"]
        if types:
            conditions.append(f"memory_type IN ({', '.join(map(_quoted, types))})")
        if since is not None:
            conditions.append(f"at >= {since!r}")
        query = table.query().nearest_to(vector.astype(np.float32)).distance_type("cosine")
        found = await query.where(" AND ".join(conditions)).limit(limit).select(["key", "_distance"]).to_list()
        # Two workers that do the same job at once may each put a row in: LanceDB knows no unique keys.
        best: dict[str, float] = {}
        for row in found:
            best.setdefault(row["key"], 1.0 - float(row["_distance"]))
        nearest = [Near(key=key, relevance=relevance) for key, relevance in best.items()]
        return sorted(nearest, key=lambda near: (-near.relevance, near.key))

    async def _table(self, dimension: int, *, make: bool) -> Any:
        name = f"{TABLE}_{dimension}"
        table = await self._opened(name)
        if table is None and make:
            table = await self._connection.create_table(name, schema=_schema(dimension), exist_ok=True)
            self._tables[name] = table
        return table

    async def _every(self) -> list[Any]:
        names = (await self._connection.list_tables()).tables
        opened = [await self._opened(name) for name in names if name.startswith(f"{TABLE}_")]
        return [table for table in opened if table is not None]

    async def _opened(self, name: str) -> Any | None:
        """Return a table, or None where there is none: one that another worker is just making is listed already."""
        if name not in self._tables:
            try:
                self._tables[name] = await self._connection.open_table(name)
            except ValueError as error:
                if "not found" not in str(error):
                    raise
        return self._tables.get(name)

    async def _write(self, table: Any, write: Callable[[], Awaitable[Any]]) -> None:
        async with self._writing:
            await commit(table, write)
            self._writes += 1
            if self._writes % _TIDY == 0:
                await table.optimize(cleanup_older_than=KEEP_VERSIONS)


def _quoted(text: str) -> str:
    """Return a text as a literal of the filter language, in which only the quotation mark has a meaning."""
    return "'" + text.replace("'", "''") + "'"


def _schema(dimension: int) -> Any:
    import pyarrow as pa

    texts = [pa.field(name, pa.string()) for name in ("key", "agent_id", "user_id", "memory_type")]
    return pa.schema([*texts, pa.field("at", pa.float64()), pa.field("vector", pa.list_(pa.float32(), dimension))])


def _rows(points: Sequence[Point], dimension: int) -> Any:
    import pyarrow as pa

    flat = np.concatenate([np.asarray(point.vector, np.float32) for point in points])
    columns: list[Any] = [
        pa.array([point.key for point in points]),
        pa.array([point.agent_id for point in points]),
        pa.array([point.user_id for point in points]),
        pa.array([point.memory_type for point in points]),
        pa.array([point.at for point in points], pa.float64()),
        pa.FixedSizeListArray.from_arrays(pa.array(flat), dimension),
    ]
    return pa.Table.from_arrays(columns, schema=_schema(dimension))
