"""Key-value stores on JetStream: bytes by key, with revisions, expiry and changes to watch."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import api
from nats.js.kv import KV_DEL, KV_OP, KeyValue

from kit import codec
from kit.errors import BusError, ConfigurationError, Conflict, Disconnected
from kit.nats.streams import DIRECT_GET, NAME_IN_USE, SEQUENCE, TTL, Streams

_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")
_LONGEST_KEY = 512
_CHANGES = 256  # waiting for the watcher
_SILENCE = 5.0  # s; between two keys of a list
_HEARTBEAT = 1.0  # s; a watcher that is silent for two of them resumes where it was: its server crashed
_FORGOTTEN = 300.0  # s; after which the server forgets a watcher that is gone
_MARKER = "Nats-Marker-Reason"  # on what the server puts in place of an expired value
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_WRONG_REVISION = (10071, 10164)  # Source: nats-server's errors.json


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A value as it is stored.

    Attributes:
        key: its key.
        value: its bytes; None tells a watcher that it was deleted or has expired.
        revision: of the whole store, growing; ``update`` expects it.
    """

    key: str
    value: bytes | None
    revision: int


class Store:
    """A key-value store of one tenant; ``Bus.store`` opens it. Keys are of letters, digits and ``-_=/.``."""

    def __init__(self, streams: Streams, kv: KeyValue, bucket: str) -> None:
        self.bucket = bucket
        self._streams, self._kv = streams, kv
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."

    def __repr__(self) -> str:
        return f"<Store {self.bucket}>"

    async def get(self, key: str) -> Entry | None:
        """Return the present value, or None.

        Raises:
            BusError: the store did not answer.
            ConfigurationError: the key cannot be one.
        """
        found = await self._get(key)
        return None if found is None or _is_deleted(found) else _entry(key, found)

    async def put(self, key: str, value: bytes, *, ttl: float | None = None) -> int:
        """Store a value, whatever was there, and return its revision.

        Args:
            key: its key.
            value: its bytes.
            ttl: seconds after which it is forgotten, at least 1; None leaves it to the store.

        Raises:
            BusError: it was not stored.
        """
        return await self._write(key, value, _expiring({}, ttl))

    async def create(self, key: str, value: bytes, *, ttl: float | None = None) -> int:
        """Store a value where there is none, and return its revision.

        Raises:
            Conflict: there is one.
            BusError: it was not stored.
        """
        try:
            return await self._write(key, value, _expiring({_EXPECTED: "0"}, ttl))
        except Conflict:
            found = await self._get(key)
            if found is None or not _is_deleted(found):
                raise
            revision = (found.headers or {})[SEQUENCE]
            return await self._write(key, value, _expiring({_EXPECTED: revision}, ttl))

    async def update(self, key: str, value: bytes, revision: int, *, ttl: float | None = None) -> int:
        """Store a value in place of this revision, and return the new one.

        Raises:
            Conflict: somebody else wrote it meanwhile.
            BusError: it was not stored.
        """
        return await self._write(key, value, _expiring({_EXPECTED: str(revision)}, ttl))

    async def delete(self, key: str) -> None:
        """Delete a value; do nothing when there is none."""
        await self._write(key, b"", {KV_OP: KV_DEL})

    async def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix``, in order."""
        found: list[str] = []

        async def watch() -> KeyValue.KeyWatcher:
            return await self._kv.watch(">", ignore_deletes=True, meta_only=True)

        watcher = await self._streams.patiently(f"store {self.bucket}", watch)
        with self._streams.asked(f"store {self.bucket}"):
            while (entry := await watcher.updates(timeout=_SILENCE)) is not None:  # type: ignore[no-untyped-call]
                if entry.key.startswith(prefix):
                    found.append(entry.key)
            await watcher.stop()  # type: ignore[no-untyped-call]
        return sorted(found)

    async def watch(self, prefix: str = "", *, values: bool = True) -> AsyncIterator[Entry]:
        """Yield every present value whose key begins with ``prefix``, then each change as it happens.

        Without ``values`` only keys and revisions are sent: what is there has ``b""`` for its value.
        """
        changes: asyncio.Queue[Msg] = asyncio.Queue(_CHANGES)
        subscription = await self._streams.patiently(
            f"store {self.bucket}",
            lambda: self._streams.context.subscribe(
                f"{self._prefix}>", stream=self._stream, cb=changes.put, ordered_consumer=True,
                deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT, headers_only=not values,
                idle_heartbeat=_HEARTBEAT, inactive_threshold=_FORGOTTEN,
            ),
        )  # fmt: skip
        try:
            while True:
                change = await changes.get()
                key = change.subject[len(self._prefix) :]
                if key.startswith(prefix):
                    value = None if _is_deleted(change) else change.data
                    yield Entry(key=key, value=value, revision=change.metadata.sequence.stream)
        finally:
            with suppress(nats.errors.Error, Disconnected):  # the connection went first
                await subscription.unsubscribe()

    async def _get(self, key: str) -> Msg | None:
        subject = f"{DIRECT_GET}.{self._stream}.{self._prefix}{_checked(key)}"
        answer = await self._streams.ask(subject, b"")
        return answer if answer.headers and SEQUENCE in answer.headers else None

    async def _write(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        answer = await self._streams.ask(self._prefix + _checked(key), value, headers=headers or None, once=True)
        said = codec.loads(answer.data)
        error = said.get("error")
        if error is None:
            return int(said["seq"])
        if error.get("err_code") in _WRONG_REVISION:
            raise Conflict(self.bucket, key, expected=int(headers[_EXPECTED]))
        raise BusError(f"{key} was not stored in {self.bucket}: {error.get('description', 'refused')}")


async def open_store(streams: Streams, bucket: str, ttl: float | None) -> Store:
    """Return the store of this name, made if need be, its values kept for ``ttl`` seconds.

    Raises:
        ConfigurationError: the server refuses it.
    """

    async def make(replicas: int) -> KeyValue:
        config = api.KeyValueConfig(bucket=bucket, ttl=ttl, history=1, direct=True, replicas=replicas)
        try:
            return await streams.context.create_key_value(config)
        except nats.js.errors.APIError as error:
            if error.err_code != NAME_IN_USE:
                raise
        known = (await streams.context.stream_info(f"KV_{bucket}")).config
        known.max_age, known.num_replicas = ttl, replicas
        known.duplicate_window = min(ttl or 120.0, 120.0)
        await streams.context.update_stream(known)
        return await streams.context.key_value(bucket)

    kv = await streams.replicated(f"store {bucket}", make)
    return Store(streams, kv, bucket)


def _checked(key: str) -> str:
    if len(key) > _LONGEST_KEY or not _KEY.fullmatch(key):
        raise ConfigurationError(
            f"key {key[:_LONGEST_KEY]!r} is refused: use letters, digits and -_=/, separated by single dots, "
            f"{_LONGEST_KEY} characters at most"
        )
    return key


def _expiring(headers: dict[str, str], ttl: float | None) -> dict[str, str]:
    if ttl is not None:
        headers[TTL] = str(max(round(ttl), 1))
    return headers


def _is_deleted(message: Msg) -> bool:
    headers = message.headers or {}
    return KV_OP in headers or _MARKER in headers


def _entry(key: str, message: Msg) -> Entry:
    return Entry(key=key, value=message.data, revision=int((message.headers or {})[SEQUENCE]))
