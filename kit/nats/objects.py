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
from kit.errors import SURROGATE, BusError, ConfigurationError
from kit.nats.streams import NAME_IN_USE, Streams

if TYPE_CHECKING:
    from kit.nats.connection import Connection

_CHUNK = 512 * 1024  # bytes at most; NATS' own 128 KiB waits for four times as many acknowledgements
_LONGEST_NAME = 255  # characters; the name is part of a subject


class Objects:
    """The object stores of one tenant."""

    def __init__(self, connection: Connection, streams: Streams) -> None:
        self._connection, self._streams = connection, streams
        self._stores: dict[str, ObjectStore] = {}

    async def put(self, name: str, data: bytes, bucket: str) -> dict[str, Any]:
        """Store an object in place of any other of its name, and return its claim."""
        _check_name(name)
        store = await self._made(bucket)
        chunk = min(_CHUNK, self._connection.max_payload // 2)
        meta = api.ObjectMeta(name=name, options=api.ObjectMetaOptions(max_chunk_size=chunk))
        with self._streams.asked(f"object {name}"):
            await store.put(name, bytes(data), meta)
        return {"bucket": bucket, "name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    async def get(self, claim: dict[str, Any]) -> bytes:
        """Return the object, checked against its claim."""
        bucket, name, size = _parts(claim)
        with self._streams.asked(f"object {name}"):
            try:
                info = await (await self._opened(bucket)).get_info(name)
            except nats.js.errors.NotFoundError:
                raise BusError(f"object {name} is not in {bucket}: deleted, or never stored") from None
        parts: list[bytes] = []
        subject, sequence, missing = f"$O.{bucket}.C.{info.nuid}", 0, size if info.size == size else 0
        while missing > 0:
            # nats-py's own get glues each chunk to all that came before, and waits for ever for one that is lost.
            kept = await self._streams.next(f"OBJ_{bucket}", subject, sequence + 1)
            if kept is None:
                raise BusError(f"object {name} in {bucket} is not complete")
            sequence = kept.sequence
            missing -= len(kept.payload)
            parts.append(kept.payload)
        data = b"".join(parts)
        if len(data) != size or hashlib.sha256(data).hexdigest() != claim["sha256"]:
            raise BusError(f"object {name} in {bucket} is not what its claim says: another was stored under its name")
        return data

    async def delete(self, claim: dict[str, Any]) -> None:
        """Delete the object; do nothing when it is gone."""
        bucket, name, _ = _parts(claim)
        with self._streams.asked(f"object {name}"):
            try:
                await (await self._opened(bucket)).delete(name)
            except nats.js.errors.NotFoundError:
                return

    async def _opened(self, bucket: str) -> ObjectStore:
        """Return the store of a claim; a claim is foreign, so it creates none."""
        check_id(bucket, what="bucket")
        return self._stores.get(bucket) or await self._streams.context.object_store(bucket)

    async def _made(self, bucket: str) -> ObjectStore:
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


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or SURROGATE.search(name):
        raise ConfigurationError(f"an object's name must be 1 to {_LONGEST_NAME} characters of valid Unicode")


def _parts(claim: dict[str, Any]) -> tuple[str, str, int]:
    try:
        bucket, name, size, _ = claim["bucket"], claim["name"], int(claim["size"]), claim["sha256"]
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError("a claim has bucket, name, size and sha256") from None
    _check_name(name)
    return bucket, name, size
