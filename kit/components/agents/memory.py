"""What an agent remembers: handed over as a job, found again by meaning, forgotten on request.

A memory's document is in JetStream KV (bucket ``agent_memory``), its vector in LanceDB, both under one key:
``<agent>.<memory>``, or ``<agent>.user.<hash of user and memory>`` for a memory that is a user's: ids belong to users,
and another user's memory of the same id is another memory. The document counts: a memory that is found by its vector
and has none is not returned.

The queue stores new memories even if no memory service is up. If the gateway gives no embedding, the memory is stored
and found as soon as the service gets one. A request to forget a user is recorded with its time (bucket
``agent_forgotten``): memories sent earlier that are still on their way are dropped when they arrive.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import AGENT_MEMORY, AGENT_MEMORY_RETRIEVE
from kit.components.agents.embedding import embed
from kit.components.agents.errors import MemoryPending, MemoryRefused
from kit.components.agents.vectors import Near, Vectors
from kit.errors import JobDead
from kit.nats.ids import token
from kit.otel import captures_content, semconv

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from kit.nats.bus import Bus
    from kit.nats.store import Store

BUCKET = "agent_memory"
FORGOTTEN = "agent_forgotten"  # bucket: when everything about a user was to be forgotten
TYPES = ("fact", "preference", "episode")
_SPARE = 8  # more than asked for: some that are near may be forgotten or over


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Something remembered; ``str()`` of it is its content.

    Attributes:
        memory_type: ``fact``, ``preference`` or ``episode``.
        relevance: cosine of it and what was asked, -1 to 1.
        timestamp: when it was handed over: UTC.
    """

    memory_id: str
    content: str
    memory_type: str
    timestamp: datetime
    relevance: float = 0.0
    user_id: str | None = None
    session_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.content


class Memories:
    """The memories of one agent.

    Args:
        uri: of the databases, as for ``Vectors.open``.
        embedding_model: of the vectors; all who share an agent's memories have to use the same.
    """

    def __init__(
        self, bus: Bus, agent_id: str, *, uri: str | Path | None = None, embedding_model: str = "default"
    ) -> None:
        self._bus, self._agent_id, self._uri, self._model = bus, agent_id, uri, embedding_model
        self._opening = asyncio.Lock()
        self._vectors: Vectors | None = None
        self._opened: Store | None = None

    def close(self) -> None:
        """Release the database; it is opened again when needed."""
        if self._vectors is not None:
            self._vectors.close()
        self._vectors = None

    async def remember(
        self,
        content: str,
        type: str = "fact",
        *,
        memory_id: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        importance: float | None = None,
        expires_at: datetime | None = None,
        wait: float | None = None,
    ) -> str:
        """Hand something over to be remembered and return its id; it is not lost, and is found a moment later.

        Args:
            type: ``fact``, ``preference`` or ``episode``.
            memory_id: replaces the memory of this id, of this user.
            user_id: whose memory it is: runs of other users, or of no user, do not see it; None: anybody's.
            expires_at: after this time it is not found any more.
            wait: seconds to wait until it can be found; None does not wait.

        Raises:
            MemoryRefused: it is empty, or of no such type; with ``wait``: the service failed at it.
            MemoryPending: with ``wait``: it is kept, and cannot be found yet.
            NotStored: the queue did not take it.
            DeadlineExceeded: ``wait`` is over and it is not done yet.
        """
        if type not in TYPES:
            raise MemoryRefused(f"there is no type of memory {type!r}: use one of {', '.join(TYPES)}")
        if not content.strip():
            raise MemoryRefused("there is nothing in it to remember")
        told = {
            "session_id": session_id, "importance": importance,
            "metadata": None if metadata is None else dict(metadata),
            "expires_at": None if expires_at is None else _text(expires_at),
        }  # fmt: skip
        more = {name: value for name, value in told.items() if value is not None}
        item = {**self._item(memory_id or uuid.uuid4().hex, type, user_id), "content": content, **more}
        receipt = await self._hand_over(item, wait)
        if receipt is not None and receipt["status"] in ("stored", "unchanged") and not receipt["indexed"]:
            raise MemoryPending(item["memory_id"])
        return str(item["memory_id"])

    async def forget(self, memory_id: str, *, user_id: str | None = None, wait: float | None = None) -> None:
        """Have a memory forgotten, for good.

        Args:
            user_id: whose it is; None: nobody's in particular.
            wait: seconds to wait until it is; None does not wait.

        Raises:
            MemoryRefused, NotStored, DeadlineExceeded: as for ``remember``.
        """
        await self._hand_over({**self._item(memory_id, "fact", user_id), "action": "forget"}, wait)

    async def forget_user(self, user_id: str, *, wait: float | None = None) -> int:
        """Have everything forgotten that is remembered for a user, and return how much that is.

        What was handed over before and is not stored yet is not counted, and dropped when it arrives.

        Args:
            wait: seconds to wait until it is; None does not wait.

        Raises:
            BusError: it could not be noted.
            MemoryRefused, NotStored, DeadlineExceeded: as for ``remember``.
        """
        # First the note, then the look: what is stored meanwhile is either seen here or dropped there.
        note = codec.dumps({"forgotten_at": codec.now()})
        await (await self._bus.store(FORGOTTEN)).put(key_of_user(self._agent_id, user_id), note)
        mine = [memory for memory in await self.all() if memory.user_id == user_id]
        await asyncio.gather(*(self.forget(memory.memory_id, user_id=user_id, wait=wait) for memory in mine))
        return len(mine)

    async def recall(
        self,
        query: str,
        limit: int = 5,
        *,
        since: datetime | timedelta | None = None,
        min_relevance: float = 0.0,
        types: Iterable[str] = (),
        user_id: str | None = None,
        timeout: float = 10.0,
    ) -> list[Memory]:
        """Return what is remembered that matters here, the most relevant first.

        Args:
            query: what it is about.
            since: remembered after this time, or within this time.
            min_relevance: least cosine.
            types: only of these types.
            user_id: what is remembered for this user and for nobody in particular; None: for nobody in particular.
            timeout: seconds for the query's embedding.

        Raises:
            MemoryRefused: the gateway gave no embedding.
        """
        attributes: dict[str, Any] = {semconv.AGENT_ID: self._agent_id}
        if captures_content():
            attributes[semconv.QUERY] = query
        with self._bus.telemetry.operation(AGENT_MEMORY_RETRIEVE, attributes) as op:
            vectors = await embed(
                self._bus, [query], model=self._model, input_type="query", agent_id=self._agent_id, timeout=timeout
            )
            kept = {
                "agent_id": self._agent_id, "user_id": user_id, "types": tuple(types), "since": _seconds(since),
            }  # fmt: skip
            memories = await self._nearest(vectors[0], limit, min_relevance, kept)
            op.set(semconv.MEMORY_COUNT, len(memories))
        return memories

    async def _nearest(
        self, vector: NDArray[np.float32], limit: int, min_relevance: float, kept: dict[str, Any]
    ) -> list[Memory]:
        """Return the nearest memories; look further while those found are forgotten, over or of another store."""
        database, wanted = await self._database(), limit + _SPARE
        while True:
            found = await database.search(vector, limit=wanted, **kept)
            near = [one for one in found if one.relevance >= min_relevance]
            memories = [memory for memory in await self._documents(near) if memory is not None]
            # Fewer were found than looked for, even should each stand there twice: there are no more.
            if len(memories) >= limit or len(near) < len(found) or len(found) < wanted // 2:
                return memories[:limit]
            wanted *= 4

    async def all(self) -> list[Memory]:
        """Return all memories of all users, oldest first: for the agent's operator, not for the agent."""
        store = await self._store()
        keys = await store.keys(f"{self._agent_id}.")
        entries = await asyncio.gather(*(store.get(key) for key in keys))
        memories = [_memory(entry.value, 0.0) for entry in entries if entry is not None]
        return sorted((m for m in memories if m is not None), key=lambda memory: (memory.timestamp, memory.memory_id))

    async def table(self) -> pd.DataFrame:
        """Return all memories of all users as a table, oldest first."""
        import pandas as pd

        rows = [(m.memory_type, m.content, m.user_id, m.timestamp) for m in await self.all()]
        return pd.DataFrame(rows, columns=["type", "content", "user_id", "timestamp"])

    async def _hand_over(self, item: dict[str, Any], wait: float | None) -> dict[str, Any] | None:
        if wait is None:
            await self._bus.enqueue(AGENT_MEMORY, item)
            return None
        try:
            return (await self._bus.run(AGENT_MEMORY, item, timeout=wait)).data
        except JobDead as error:
            raise MemoryRefused(f"{error.error_type}: {error.detail}") from error

    def _item(self, memory_id: str, memory_type: str, user_id: str | None) -> dict[str, Any]:
        item = {
            "agent_id": self._agent_id, "memory_id": memory_id, "memory_type": memory_type, "timestamp": codec.now(),
            "embedding_model": self._model,
        }  # fmt: skip
        return item if user_id is None else {**item, "user_id": user_id}

    async def _documents(self, found: list[Near]) -> list[Memory | None]:
        store = await self._store()
        entries = await asyncio.gather(*(store.get(near.key) for near in found))
        return [
            None if entry is None else _memory(entry.value, near.relevance)
            for entry, near in zip(entries, found, strict=True)
        ]

    async def _store(self) -> Store:
        if self._opened is None:
            self._opened = await self._bus.store(BUCKET)
        return self._opened

    async def _database(self) -> Vectors:
        async with self._opening:
            if self._vectors is None:
                self._vectors = await Vectors.open(self._bus.tenant_id, self._uri)
        return self._vectors


def key_of(agent_id: str, memory_id: str, user_id: str | None = None) -> str:
    """Return the key of a memory's document and vector; it does not reveal the user."""
    if user_id is None:
        return f"{agent_id}.{token(memory_id)}"
    return f"{agent_id}.user.{hashlib.sha256(codec.dumps([user_id, memory_id])).hexdigest()}"


def key_of_user(agent_id: str, user_id: str) -> str:
    """Return the key of the note that a user was to be forgotten; it does not tell who that is."""
    return f"{agent_id}.{hashlib.sha256(user_id.encode()).hexdigest()}"


def _memory(document: bytes | None, relevance: float) -> Memory | None:
    """Return what a document says; None when it is forgotten or over."""
    item = codec.loads(document) if document else {}
    if "content" not in item:
        return None
    if "expires_at" in item and datetime.fromisoformat(item["expires_at"]) <= datetime.now(UTC):
        return None
    return Memory(
        memory_id=item["memory_id"], content=item["content"], memory_type=item["memory_type"], relevance=relevance,
        timestamp=datetime.fromisoformat(item["timestamp"]), user_id=item.get("user_id"),
        session_id=item.get("session_id"), metadata=item.get("metadata", {}),
    )  # fmt: skip


def _seconds(since: datetime | timedelta | None) -> float | None:
    if isinstance(since, timedelta):
        since = datetime.now(UTC) - since
    return None if since is None else since.timestamp()


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
