"""Jobs that are enqueued at once are stored at once: one sync of the disk for all of them, not one for each.

A job that comes alone goes alone, at once. While one is under way, those that come in one turn of the event loop, or
while a batch is being stored, go as one atomic batch of JetStream, if they are many: all of them are stored, or none.
Whatever keeps a batch from being stored (an older server, a stream that was made without), each of its jobs is then
stored by itself.

Source: NATS ADR-50, atomic batch publish.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kit import codec
from kit.errors import BusError, KitError, NotStored
from kit.nats.deadlines import deadline
from kit.nats.ids import AGAIN, MESSAGE_ID, Serial
from kit.nats.streams import TRY_SECONDS, Ack, Streams

if TYPE_CHECKING:
    from kit.nats.connection import Connection

_log = logging.getLogger("kit.nats")

_ID = "Nats-Batch-Id"
_SEQUENCE = "Nats-Batch-Sequence"
_COMMIT = "Nats-Batch-Commit"
_FEW = 8  # jobs; fewer are stored faster one by one
_MOST = 256  # jobs in a batch; the server takes 1000
_SMALL = 16 * 1024  # bytes of a job that goes in a batch
_PATIENCE = 0.1  # s; to wait for the batch before
_DISABLED = 10174  # Source: nats-server's errors.json
_SYNCED = (2, 15)  # the first server that acknowledges a batch after it has synced it


@dataclass(slots=True)
class _Entry:
    """A job that waits to go with others.

    Attributes:
        stored: what the stream said; None: it has to be stored by itself.
    """

    subject: str
    payload: bytes
    headers: dict[str, str]
    deadline: float
    stored: asyncio.Future[Ack | None]


@dataclass(slots=True)
class _Lane:
    """What goes to one stream.

    Attributes:
        alone: how many jobs are being stored by themselves.
        crowded: whether those that come now wait for each other.
        sending: whether what waits is looked at when this turn ends, or the batch that is being stored.
        impatience: sends what waits in any case.
    """

    waiting: list[_Entry] = field(default_factory=list)
    alone: int = 0
    crowded: bool = False
    sending: bool = False
    impatience: asyncio.TimerHandle | None = None
    possible: bool = True


class Batches:
    """Stores the jobs of one bus, together where that pays."""

    def __init__(self, connection: Connection, streams: Streams) -> None:
        self._connection, self._streams = connection, streams
        self._loop = asyncio.get_running_loop()
        self._serial = Serial()
        self._lanes: dict[str, _Lane] = {}
        self._commits: set[asyncio.Task[None]] = set()

    async def store(
        self,
        stream: str,
        subject: str,
        payload: bytes,
        headers: dict[str, str],
        timeout: float,
        make: Callable[[], Awaitable[None]],
    ) -> Ack:
        """Store a job, as ``Streams.store`` does.

        Raises:
            NotStored: no acknowledgement within ``timeout`` seconds, or a refusal.
            PayloadTooLarge: nothing was sent.
        """
        lane = self._lanes.get(stream)
        if lane is None:
            lane = self._lanes[stream] = _Lane(possible=self._connection.client.server_version >= _SYNCED)
        if lane.possible and len(payload) <= _SMALL and (lane.crowded or lane.alone):
            entry = _Entry(subject, payload, headers, self._loop.time() + timeout, self._loop.create_future())
            self._wait(lane, entry)
            timer = self._loop.call_at(entry.deadline, _expire, entry.stored)  # less than a block with a timeout costs
            try:
                ack = await entry.stored
            except TimeoutError:
                reason = f"no acknowledgement within {timeout:g} s"
                raise NotStored(subject, message_id=headers[MESSAGE_ID], reason=reason) from None
            finally:
                timer.cancel()
            if ack is not None:
                return ack
            headers, timeout = entry.headers, max(entry.deadline - self._loop.time(), 0.0)
        lane.alone += 1
        try:
            return await self._streams.store(subject, payload, headers, timeout, make)
        finally:
            lane.alone -= 1
            if lane.waiting:
                self._send_soon(lane)

    def _wait(self, lane: _Lane, entry: _Entry) -> None:
        lane.crowded = True
        lane.waiting.append(entry)
        self._send_soon(lane)
        if lane.impatience is None:
            lane.impatience = self._loop.call_later(_PATIENCE, self._send, lane, False)

    def _send_soon(self, lane: _Lane) -> None:
        """At the end of this turn: who comes until then goes along."""
        if not lane.sending:
            lane.sending = True
            self._loop.call_soon(self._send, lane)

    def _send(self, lane: _Lane, patient: bool = True) -> None:
        """Send what waits: as a batch, or each by itself where there are few."""
        lane.sending = False
        lane.waiting = [entry for entry in lane.waiting if not entry.stored.done()]  # whose callers are still there
        if patient and len(lane.waiting) < _FEW <= lane.alone:
            return  # until there are more of them, or less under way
        if lane.impatience is not None:
            lane.impatience.cancel()
            lane.impatience = None
        entries, lane.waiting = lane.waiting[:_MOST], lane.waiting[_MOST:]
        if len(entries) >= _FEW and lane.possible:
            lane.sending = True
            task = self._loop.create_task(self._commit(lane, entries))
            self._commits.add(task)
            task.add_done_callback(self._commits.discard)
            return
        lane.crowded = lane.alone + len(entries) >= _FEW
        for entry in entries:
            entry.stored.set_result(None)

    async def _commit(self, lane: _Lane, entries: list[_Entry]) -> None:
        last = None
        seconds = min(min(entry.deadline for entry in entries) - self._loop.time(), TRY_SECONDS)
        try:
            async with deadline(seconds, f"a batch for {entries[0].subject}"):
                last = await self._stored(lane, entries)
        except KitError as error:
            # Nobody knows whether it was stored; under its id each is stored once.
            _log.info("a batch of %d jobs is stored one by one: %s", len(entries), error)
            for entry in entries:
                entry.headers = {**entry.headers, AGAIN: "1"}
        finally:
            for behind, entry in enumerate(reversed(entries)):
                if not entry.stored.done():
                    entry.stored.set_result(None if last is None else Ack(last - behind, duplicate=False))
            # After those who are told now: what they send next goes along.
            self._loop.call_soon(self._send, lane)

    async def _stored(self, lane: _Lane, entries: list[_Entry]) -> int | None:
        """Send a batch and return the place of its last job in the stream; None when nothing was stored.

        Raises:
            BusError: there was no answer.
        """
        batch = self._serial.next()
        for number, entry in enumerate(entries[:-1], start=1):
            headers = {**entry.headers, _ID: batch, _SEQUENCE: str(number)}
            await self._connection.client.publish(entry.subject, entry.payload, headers=headers)
        entry = entries[-1]
        headers = {**entry.headers, _ID: batch, _SEQUENCE: str(len(entries)), _COMMIT: "1"}
        answer = await self._connection.request(entry.subject, entry.payload, timeout=TRY_SECONDS, headers=headers)
        said = codec.loads(answer.data)
        if "error" in said:  # e.g. one of them is there already, which only it shall be told
            lane.possible = said["error"].get("err_code") != _DISABLED
            _log.info("a batch for %s is stored one by one: %s", entry.subject, said["error"].get("description"))
            return None
        if said.get("count") != len(entries):
            raise BusError(f"a batch of {len(entries)} jobs was acknowledged as {said.get('count')}")
        return int(said["seq"])


def _expire(stored: asyncio.Future[Ack | None]) -> None:
    if not stored.done():
        stored.set_exception(TimeoutError())
