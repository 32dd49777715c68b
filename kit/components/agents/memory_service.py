"""The memory service: does the jobs by which agents remember and forget."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kit import codec
from kit.components.agents.embedding import embed
from kit.components.agents.memory import BUCKET, key_of
from kit.components.agents.vectors import Point, Vectors
from kit.errors import BusError, Conflict
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.message import Message
    from kit.nats.store import Store

_TRIES = 50
_GRAVE_SECONDS = 86400.0  # for which an id is known to be forgotten, should its job to store it come late
_BATCH = 64  # memories whose vectors are made again at once


class MemoryService:
    """Writes documents and vectors; doing a job twice does it once."""

    def __init__(self, bus: Bus, store: Store, vectors: Vectors) -> None:
        self._bus, self._store, self._vectors = bus, store, vectors

    @classmethod
    async def open(cls, bus: Bus, uri: str | Path | None = None) -> Self:
        """Open the tenant's store and database; vectors that are gone are made again."""
        service = cls(bus, await bus.store(BUCKET), await Vectors.open(bus.tenant_id, uri))
        if not await service._vectors.count():
            await service.restore()
        return service

    async def close(self) -> None:
        """Release the database."""
        self._vectors.close()

    async def handle(self, message: Message) -> dict[str, Any]:
        """Do one job and return its ``memory_receipt``.

        Raises:
            MemoryRefused: the gateway gave no embedding.
        """
        started, item = time.perf_counter(), message.data
        self._bus.telemetry.annotate({semconv.AGENT_ID: item["agent_id"], semconv.MEMORY_TYPE: item["memory_type"]})
        forgetting = item.get("action") == "forget"
        status, revision = await (self._forget(item) if forgetting else self._remember(item))
        receipt: dict[str, Any] = {
            "memory_id": item["memory_id"], "agent_id": item["agent_id"], "memory_type": item["memory_type"],
            "status": status, "indexed": status in ("stored", "unchanged"), "timestamp": codec.now(),
            "duration": time.perf_counter() - started,
        }  # fmt: skip
        return receipt | ({"revision": revision} if revision else {})

    async def restore(self) -> int:
        """Make the vectors of all documents again, and return how many there are."""
        keys = await self._store.keys()
        documents = [codec.loads(entry.value) for key in keys if (entry := await self._store.get(key)) and entry.value]
        items = [item for item in documents if "content" in item]
        for begin in range(0, len(items), _BATCH):
            for model in {item["embedding_model"] for item in items[begin : begin + _BATCH]}:
                batch = [item for item in items[begin : begin + _BATCH] if item["embedding_model"] == model]
                await self._index(batch, model)
        return len(items)

    async def _remember(self, item: dict[str, Any]) -> tuple[str, int]:
        """Write the document, if it is news, and then its vector: what has a vector has a document."""
        key = key_of(item["agent_id"], item["memory_id"])
        document = {name: value for name, value in item.items() if name not in ("action", "embedding")}
        for _ in range(_TRIES):
            entry = await self._store.get(key)
            known = codec.loads(entry.value) if entry is not None and entry.value else None
            status = _status(known, document)
            if status in ("forgotten", "outdated"):
                return ("unchanged" if status == "outdated" else status), entry.revision if entry else 0
            try:
                if status == "unchanged" and entry is not None:
                    revision = entry.revision
                elif entry is None:
                    revision = await self._store.create(key, codec.dumps(document))
                else:
                    revision = await self._store.update(key, codec.dumps(document), entry.revision)
            except Conflict:
                continue
            await self._index([item], item.get("embedding_model", "default"))
            return status, revision
        raise BusError(f"a memory was written by others in {_TRIES} attempts on end")

    async def _forget(self, item: dict[str, Any]) -> tuple[str, int]:
        """Put a grave in the document's place, so that a job to store it that comes late does not bring it back."""
        key = key_of(item["agent_id"], item["memory_id"])
        grave = codec.dumps({"memory_id": item["memory_id"], "forgotten_at": item["timestamp"]})
        for _ in range(_TRIES):
            entry = await self._store.get(key)
            known = codec.loads(entry.value) if entry is not None and entry.value else {}
            if "content" in known and _later(known["timestamp"], item["timestamp"]):
                return "unchanged", entry.revision if entry is not None else 0  # remembered anew since
            try:
                if entry is None:
                    await self._store.create(key, grave, ttl=_GRAVE_SECONDS)
                else:
                    await self._store.update(key, grave, entry.revision, ttl=_GRAVE_SECONDS)
            except Conflict:
                continue
            await self._vectors.remove(item["agent_id"], [item["memory_id"]])
            return ("forgotten" if "content" in known else "not_found"), 0
        raise BusError(f"a memory was written by others in {_TRIES} attempts on end")

    async def _index(self, items: list[dict[str, Any]], model: str) -> None:
        texts = [item["content"] for item in items]
        if len(items) == 1 and items[0].get("embedding") is not None:
            vectors = items[0]["embedding"][None, :]
        else:
            vectors = await embed(self._bus, texts, model=model, input_type="document", agent_id=items[0]["agent_id"])
        points = [
            Point(
                memory_id=item["memory_id"], agent_id=item["agent_id"], user_id=item.get("user_id", ""),
                memory_type=item["memory_type"], at=datetime.fromisoformat(item["timestamp"]).timestamp(),
                vector=vector,
            )
            for item, vector in zip(items, vectors, strict=True)
        ]  # fmt: skip
        await self._vectors.put(points)


def _status(known: Mapping[str, Any] | None, document: Mapping[str, Any]) -> str:
    """Say what becomes of a document beside the one that is known."""
    if known is None:
        return "stored"
    if "forgotten_at" in known:
        return "stored" if _later(document["timestamp"], known["forgotten_at"]) else "forgotten"
    if known == document:
        return "unchanged"
    return "outdated" if _later(known["timestamp"], document["timestamp"]) else "stored"


def _later(one: str, other: str) -> bool:
    return datetime.fromisoformat(one) > datetime.fromisoformat(other)
