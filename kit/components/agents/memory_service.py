"""The memory service: does the jobs by which agents remember and forget."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from kit import codec
from kit.components.agents.embedding import embed
from kit.components.agents.errors import MemoryRefused
from kit.components.agents.memory import BUCKET, FORGOTTEN, key_of, key_of_user
from kit.components.agents.vectors import Point, Vectors
from kit.errors import BusError, Conflict, KitError
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.message import Message
    from kit.nats.store import Store

AGAIN = 5.0  # s; after which missing vectors are tried to be made; twice as long each time that none could be
_LONGEST = 300.0  # s
_TRIES = 50
# For which an id is known to be forgotten, should its job to store it come late: as a replayed dead letter, at worst.
_GRAVE_SECONDS = 60 * 86400.0
_BATCH = 64  # memories whose vectors are made at once

_log = logging.getLogger("kit.agents")


class _Done(NamedTuple):
    """What became of a job: the receipt's status, the entry's revision or 0, and whether there is a vector."""

    status: str
    revision: int = 0
    indexed: bool = False


class MemoryService:
    """Writes documents and vectors; doing a job twice does it once.

    A job that gets no embedding in any attempt ends with the document stored and no vector. Such a vector is made as
    soon as the gateway gives embeddings again, by this service or by the next that is opened.

    Args:
        store: of documents; forgotten: of the users who were to be forgotten.
        again: seconds after which missing vectors are tried to be made.
    """

    def __init__(self, bus: Bus, store: Store, forgotten: Store, vectors: Vectors, *, again: float = AGAIN) -> None:
        self._bus, self._store, self._forgotten, self._vectors = bus, store, forgotten, vectors
        self._again = again
        self._missing: dict[str, None] = {}  # keys of documents that have no vector
        self._mending: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, bus: Bus, uri: str | Path | None = None, *, again: float = AGAIN) -> Self:
        """Open the tenant's store and database; vectors that are missing are made, as far as that is possible now."""
        store, forgotten = await bus.store(BUCKET), await bus.store(FORGOTTEN)
        service = cls(bus, store, forgotten, await Vectors.open(bus.tenant_id, uri), again=again)
        known = await service._vectors.keys()
        service._missing = dict.fromkeys(key for key in await store.keys() if key not in known)
        await service.mend()
        service._mending = asyncio.get_running_loop().create_task(service._mend_again())
        return service

    async def close(self) -> None:
        """Release the database."""
        if self._mending is not None:
            self._mending.cancel()
            with suppress(asyncio.CancelledError):
                await self._mending
        self._vectors.close()

    async def handle(self, message: Message) -> dict[str, Any]:
        """Do one job and return its ``memory_receipt``.

        Raises:
            MemoryRefused: the gateway gave no embedding, and there are attempts left.
        """
        started, item = time.perf_counter(), {**message.data, "timestamp": message.sent_at}
        self._bus.telemetry.annotate({semconv.AGENT_ID: item["agent_id"], semconv.MEMORY_TYPE: item["memory_type"]})
        if item.get("action") == "forget":
            done = await self._forget(item)
        else:
            done = await self._remember(item, last=message.is_last)
        receipt: dict[str, Any] = {
            "memory_id": item["memory_id"], "agent_id": item["agent_id"], "memory_type": item["memory_type"],
            "status": done.status, "indexed": done.indexed, "timestamp": codec.now(),
            "duration": time.perf_counter() - started,
        }  # fmt: skip
        return receipt | ({"revision": done.revision} if done.revision else {})

    # --- documents ----------------------------------------------------------------------------------------------

    async def _remember(self, item: dict[str, Any], *, last: bool) -> _Done:
        """Write the document, if it is news, and then its vector: what has a vector has a document."""
        key = _key(item)
        document = {name: value for name, value in item.items() if name not in ("action", "embedding")}
        for _ in range(_TRIES):
            if await self._forgotten_at(item) is not None:
                return _Done("forgotten")
            entry = await self._store.get(key)
            known = codec.loads(entry.value) if entry is not None and entry.value else None
            status = _status(known, document)
            if status in ("forgotten", "outdated"):
                revision = entry.revision if entry else 0
                return _Done("unchanged" if status == "outdated" else status, revision, status == "outdated")
            try:
                if status == "unchanged" and entry is not None:
                    revision = entry.revision
                elif entry is None:
                    revision = await self._store.create(key, codec.dumps(document))
                else:
                    revision = await self._store.update(key, codec.dumps(document), entry.revision)
            except Conflict:
                continue
            if (since := await self._forgotten_at(item)) is not None:  # while the document was written
                await self._forget({**item, "timestamp": since})
                return _Done("forgotten")
            return _Done(status, revision, await self._indexed(item, last=last))
        raise BusError(f"a memory was written by others in {_TRIES} attempts on end")

    async def _forgotten_at(self, item: Mapping[str, Any]) -> str | None:
        """Return when everything about the item's user was to be forgotten, if that was after it was handed over."""
        if "user_id" not in item:
            return None
        entry = await self._forgotten.get(key_of_user(item["agent_id"], item["user_id"]))
        if entry is None or not entry.value:
            return None
        at: str = codec.loads(entry.value)["forgotten_at"]
        return None if _later(item["timestamp"], at) else at

    async def _forget(self, item: dict[str, Any]) -> _Done:
        """Put a grave in the document's place, so that a job to store it that comes late does not bring it back."""
        key = _key(item)
        grave = codec.dumps({"memory_id": item["memory_id"], "forgotten_at": item["timestamp"]})
        for _ in range(_TRIES):
            entry = await self._store.get(key)
            known = codec.loads(entry.value) if entry is not None and entry.value else {}
            if "content" in known and _later(known["timestamp"], item["timestamp"]):
                return _Done("unchanged", entry.revision if entry is not None else 0)  # remembered anew since
            try:
                if entry is None:
                    await self._store.create(key, grave, ttl=_GRAVE_SECONDS)
                else:
                    await self._store.update(key, grave, entry.revision, ttl=_GRAVE_SECONDS)
            except Conflict:
                continue
            await self._vectors.remove(_key(item))
            return _Done("forgotten" if "content" in known else "not_found")
        raise BusError(f"a memory was written by others in {_TRIES} attempts on end")

    async def _document(self, key: str) -> dict[str, Any] | None:
        """Return what is remembered under a key; None when it is forgotten."""
        entry = await self._store.get(key)
        document: dict[str, Any] = codec.loads(entry.value) if entry is not None and entry.value else {}
        return document if "content" in document else None

    # --- vectors ------------------------------------------------------------------------------------------------

    async def _indexed(self, item: dict[str, Any], *, last: bool) -> bool:
        """Make a memory's vector; say no when there is no embedding, and this was the last attempt."""
        key = _key(item)
        self._missing.pop(key, None)
        try:
            await self._index([item])
        except MemoryRefused as error:
            if error.retryable and not last:
                raise
            _log.warning("a memory of %s cannot be found yet: %s", item["agent_id"], error)
            await self._vectors.remove(_key(item))  # it would be of what was there before
            self._missing[key] = None
            return False
        return True

    async def mend(self) -> int:
        """Make vectors that are missing, while the gateway gives embeddings; return how many are missing still."""
        keys = list(self._missing)
        for begin in range(0, len(keys), _BATCH):
            items: dict[str, dict[str, Any]] = {}
            for key in keys[begin : begin + _BATCH]:
                document = await self._document(key)
                if document is None:
                    self._missing.pop(key, None)
                else:
                    items[await self._own_key(key, document)] = document
            for kind in {_kind(item) for item in items.values()}:
                if not await self._mend({key: item for key, item in items.items() if _kind(item) == kind}):
                    return len(self._missing)
        return len(self._missing)

    async def _own_key(self, key: str, document: Mapping[str, Any]) -> str:
        """Return a document's key; one that was written before ids belonged to users is moved there."""
        own = _key(document)
        if own != key:
            with suppress(Conflict):  # there is a later one
                await self._store.create(own, codec.dumps(document))
            await self._store.delete(key)
            self._missing.pop(key, None)
        return own

    async def _mend(self, items: Mapping[str, dict[str, Any]]) -> bool:
        """Make the vectors of memories, of one agent and model; say no when the gateway gives no embedding at all."""
        for key in items:
            self._missing.pop(key, None)
        try:
            await self._index(list(items.values()))
        except BaseException as error:
            self._missing.update(dict.fromkeys(items))
            if not isinstance(error, MemoryRefused):
                raise
            if error.retryable:
                return False
            if len(items) > 1:  # one of them may be what is refused
                return all([await self._mend({key: item}) for key, item in items.items()])
            _log.info("a memory still cannot be found: %s", error)
        return True

    async def _mend_again(self) -> None:
        pause = self._again
        while True:
            await asyncio.sleep(pause)
            before = len(self._missing)
            try:
                left = await self.mend()
            except (KitError, OSError, RuntimeError) as error:  # the last two are LanceDB's
                _log.warning("vectors of memories are missing still: %s", error)
                left = before
            pause = min(pause * 2, _LONGEST) if left and left >= before else self._again

    async def _index(self, items: Sequence[dict[str, Any]]) -> None:
        """Make the vectors of memories of one agent and model.

        Raises:
            MemoryRefused: the gateway gave no embedding.
        """
        agent_id, model = _kind(items[0])
        if len(items) == 1 and items[0].get("embedding") is not None:
            vectors = items[0]["embedding"][None, :]
        else:
            texts = [item["content"] for item in items]
            vectors = await embed(self._bus, texts, model=model, input_type="document", agent_id=agent_id)
        points = [
            Point(
                key=_key(item), agent_id=agent_id, user_id=item.get("user_id", ""),
                memory_type=item["memory_type"], at=datetime.fromisoformat(item["timestamp"]).timestamp(),
                vector=vector,
            )
            for item, vector in zip(items, vectors, strict=True)
        ]  # fmt: skip
        await self._vectors.put(points)
        for item in items:
            await self._agree(item)

    async def _agree(self, item: Mapping[str, Any]) -> None:
        """See that a vector that was written is of what is remembered, and not of what was while it was made."""
        key = _key(item)
        document = await self._document(key)
        if document is None:
            await self._vectors.remove(_key(item))
        elif document["timestamp"] != item["timestamp"]:
            self._missing[key] = None


def _key(item: Mapping[str, Any]) -> str:
    return key_of(item["agent_id"], item["memory_id"], item.get("user_id"))


def _kind(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["agent_id"], item.get("embedding_model", "default")


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
