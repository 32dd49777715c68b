"""What is too large for a message, in JetStream's Object Store, and the claim that travels in its place.

The layout is that of NATS (ADR-20), so that any other client can read it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import nats.js.errors
from nats.js import api
from nats.js.object_store import ObjectStore

from kit.catalogue import check_id
from kit.errors import BusError, ConfigurationError
from kit.nats.streams import NAME_IN_USE, Streams, asked

if TYPE_CHECKING:
    from kit.nats.connection import Connection

_CHUNK = 512 * 1024  # bytes at most; NATS' own 128 KiB waits for four times as many acknowledgements


class Objects:
    """The object stores of one tenant."""

    def __init__(self, connection: Connection, streams: Streams) -> None:
        self._connection, self._streams = connection, streams
        self._stores: dict[str, ObjectStore] = {}

    async def put(self, name: str, data: bytes, bucket: str) -> dict[str, Any]:
        """Store an object in place of any other of its name, and return its claim."""
        if not name:
            raise ConfigurationError("an object needs a name")
        store = await self._store(bucket)
        chunk = min(_CHUNK, self._connection.max_payload // 2)
        meta = api.ObjectMeta(name=name, options=api.ObjectMetaOptions(max_chunk_size=chunk))
        with asked(f"object {name}"):
            await store.put(name, bytes(data), meta)
        return {"bucket": bucket, "name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    async def get(self, claim: dict[str, Any]) -> bytes:
        """Return the object, checked against its claim."""
        bucket, name = _parts(claim)
        store = await self._store(bucket)
        with asked(f"object {name}"):
            try:
                info = await store.get_info(name)
            except nats.js.errors.NotFoundError:
                raise BusError(f"object {name} is not in {bucket}: deleted, or never stored") from None
        parts: list[bytes] = []
        subject, sequence = f"$O.{bucket}.C.{info.nuid}", 0
        for _ in range(info.chunks or 0):
            # nats-py's own get glues each chunk to all that came before, and waits for ever for one that is lost.
            kept = await self._streams.next(f"OBJ_{bucket}", subject, sequence + 1)
            if kept is None:
                raise BusError(f"object {name} in {bucket} is not complete")
            sequence = kept.sequence
            parts.append(kept.payload)
        data = b"".join(parts)
        if len(data) != claim["size"] or hashlib.sha256(data).hexdigest() != claim["sha256"]:
            raise BusError(f"object {name} in {bucket} is not what its claim says: another was stored under its name")
        return data

    async def delete(self, claim: dict[str, Any]) -> None:
        """Delete the object; do nothing when it is gone."""
        bucket, name = _parts(claim)
        store = await self._store(bucket)
        with asked(f"object {name}"):
            try:
                await store.delete(name)
            except nats.js.errors.NotFoundError:
                return

    async def _store(self, bucket: str) -> ObjectStore:
        store = self._stores.get(bucket)
        if store is None:
            check_id(bucket, what="bucket")

            async def make(replicas: int) -> ObjectStore:
                config = api.ObjectStoreConfig(replicas=replicas)
                try:
                    return await self._streams.context.create_object_store(bucket, config)
                except nats.js.errors.APIError as error:
                    if error.err_code != NAME_IN_USE:
                        raise
                    return await self._streams.context.object_store(bucket)  # set up otherwise, by somebody else

            store = self._stores[bucket] = await self._streams.replicated(f"object store {bucket}", make)
        return store


def _parts(claim: dict[str, Any]) -> tuple[str, str]:
    try:
        return claim["bucket"], claim["name"]
    except (KeyError, TypeError):
        raise ConfigurationError("a claim has bucket, name, size and sha256") from None
