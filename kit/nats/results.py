"""Results of jobs, remembered by message id: what a late caller gets, and what makes an effect happen once.

A result is published once, to a subject that its caller listens on and a stream keeps. Beside it there may be three
notes: that it was too large to be kept for long, that its job was put into the queue again and is open once more, and
how often workers that stopped handed the job back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from kit import codec
from kit.catalogue import ERROR, RESULTS_PREFIX, Operation
from kit.errors import CodecError, JobError, MalformedEnvelope, NoResponders
from kit.nats.client import encode_headers
from kit.nats.faults import Fault
from kit.nats.ids import AGAIN, is_inbox, job_id, token
from kit.nats.layout import results_stream
from kit.nats.queues import settled
from kit.nats.streams import FIRST, TTL, Streams

if TYPE_CHECKING:
    from kit.nats.connection import Connection

_log = logging.getLogger("kit.nats")

_SECONDS = 30.0  # for a cluster to keep a result, an election included
_LARGE = 8 * 1024  # bytes; larger results are kept no longer than a lost acknowledgement needs
_LARGE_SECONDS = 60.0  # at least
_RECENT_BYTES = 64 * 1024  # of one result that a worker keeps by itself, at most
_RECENT_OVERHEAD = 400  # bytes of memory beside each
_RECENT_TOTAL = 64 * 1024 * 1024  # … of all of them
RESULT_HEADERS = len(encode_headers({FIRST: "0", TTL: "9" * 10, AGAIN: "1"}))  # bytes beside a result, at most
_HANDED_BACK = "~back"  # behind the name of a job, which has no "~"
_COUNT = re.compile(rb"[1-9][0-9]{0,5}")
_NOBODY, _GONE, _OPEN = "-", "gone", "open"  # in place of a caller


class ResultForgotten(JobError):
    """The job was done, and its result is not remembered any more."""

    retryable = False

    def __init__(self, subject: str, *, message_id: str) -> None:
        self.subject, self.message_id = subject, message_id
        super().__init__(
            f"job {message_id} on {subject} was done, but its result is not remembered any more: it is too large, "
            "or too much was done since; enqueue it under another id to do it again"
        )


class Memory(NamedTuple):
    """What is known of a job.

    Attributes:
        answer: its result, or the error in its place; None when there is none.
        is_open: whether it is to run again, because it was requeued.
    """

    answer: bytes | None
    is_open: bool


class Recent:
    """A worker's own results by message id: a crashed server may have lost them and redeliver the jobs.

    Args:
        seconds: how long results are kept, counted from the last reconnect if that is later.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._since, self._size = seconds, 0.0, 0
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, message_id: str) -> bytes | None:
        """Return a result if it is still kept."""
        return self._kept.get(message_id, (0.0, None))[1]

    def put(self, message_id: str, answer: bytes, *, connected: bool) -> None:
        """Keep a result; while ``connected``, forget what is old enough."""
        if len(answer) > _RECENT_BYTES or message_id in self._kept:
            return
        now = self._loop.time()
        self._kept[message_id] = now, answer
        self._size += len(answer) + _RECENT_OVERHEAD
        while self._size > _RECENT_TOTAL or (connected and max(self._oldest, self._since) < now - self._seconds):
            _, (_, forgotten_answer) = self._kept.popitem(last=False)
            self._size -= len(forgotten_answer) + _RECENT_OVERHEAD

    def renew(self) -> None:
        """Keep everything as long as if it had just arrived."""
        self._since = self._loop.time()

    @property
    def _oldest(self) -> float:
        return next(iter(self._kept.values()))[0]


class Results:
    """The remembered results of one tenant."""

    def __init__(self, connection: Connection, streams: Streams) -> None:
        self._connection, self._streams = connection, streams

    async def remember(self, operation: Operation, message_id: str, reply: str | None, answer: bytes) -> None:
        """Send a result to its caller and into the memory, which keeps the first: one message for a bus.

        Raises:
            Disconnected: it was not sent.
            NotStored: in a cluster, the memory did not acknowledge it.
        """
        more = {FIRST: "0"}  # a worker whose lease was lost without its knowing comes too late
        name = token(message_id)
        if len(answer) > _LARGE and self._streams.large_results_expire:
            note = forgotten(operation, message_id)
            await self._keep(_subject(operation, _GONE, name), note)
            more[TTL] = str(math.ceil(max(_LARGE_SECONDS, 4 * operation.policy.ack_wait)))
        if reply is not None and is_inbox(reply):
            if reply.startswith(f"{RESULTS_PREFIX}.{operation.stream}."):
                await self._keep(reply, answer, more)
                return
            await self._connection.client.publish(reply, answer, headers=more)
        await self._keep(_subject(operation, _NOBODY, name), answer, more)

    async def _keep(self, subject: str, answer: bytes, headers: dict[str, str] | None = None) -> None:
        """Send to the memory: one server takes what comes on a connection in its order, the next message included.

        In a cluster the memory and the queue may be kept by different servers, one of which may be lost meanwhile.
        """
        if self._streams.clustered:
            await self._streams.store(subject, answer, headers or {}, _SECONDS)
        else:
            await self._connection.client.publish(subject, answer, headers=headers)

    async def recall(self, operation: Operation, message_id: str) -> Memory:
        """Return what is known of a job.

        Raises:
            BusError: the memory did not answer.
        """
        try:
            kept = await self._streams.last(results_stream(operation), _subject(operation, "*", token(message_id)))
        except NoResponders:  # the memory is gone, and has to be made again
            await self._streams.again(operation)
            return Memory(None, False)
        if kept is None or kept.subject == _subject(operation, _OPEN, token(message_id)):
            return Memory(None, kept is not None)
        if not _is_answer(operation, kept.payload):
            _log.warning("%s contains something that is not a result of %s: deleted", kept.subject, operation.name)
            await self._streams.delete(results_stream(operation), kept.sequence)
            return Memory(None, False)
        return Memory(kept.payload, False)

    async def hand_back(self, operation: Operation, message_id: str, times: int) -> None:
        """Record how often stopping workers handed a job back; that uses none of its attempts."""
        await self._connection.client.publish(_handed_back(operation, message_id), str(times).encode())

    async def handed_back(self, operation: Operation, message_id: str) -> int:
        """Return how often a job was handed back.

        Raises:
            BusError: the memory did not answer.
        """
        kept = await self._streams.last(results_stream(operation), _handed_back(operation, message_id))
        return int(kept.payload) if kept is not None and _COUNT.fullmatch(kept.payload) else 0

    async def stored(self, operation: Operation) -> int:
        """Return the sequence of the last job that was ever enqueued."""
        return await self._streams.last_sequence(operation.stream or "")

    async def clear(self, operation: Operation, last: int, recent: Recent) -> bool:
        """Delete finished jobs up to a sequence that the server keeps but no longer delivers.

        Nothing is deleted unless it is known to be done. Return whether there is nothing left to look for.
        """
        found, whole = await settled(self._streams, operation, last)
        for kept in found:
            name = job_id(kept.headers, operation, kept.sequence)
            if recent.get(name) is None and (await self.recall(operation, name)).answer is None:
                _log.warning("%s %s is no longer delivered, but is not known to be done", operation.name, name)
            else:
                await self._streams.delete(operation.stream or "", kept.sequence)
        return whole

    async def reopen(self, operation: Operation, message_id: str) -> None:
        """Forget how a job ended: it is to be done again."""
        name = token(message_id)
        for subject in (_subject(operation, "*", name), _handed_back(operation, message_id)):
            await self._streams.purge(results_stream(operation), subject)
        await self._connection.client.publish(_subject(operation, _OPEN, name), b"")


def _is_answer(operation: Operation, payload: bytes) -> bool:
    """Return whether this can be a result or an error; an unreadable one may be a newer version's."""
    if operation.result_type is None or not payload:
        return True
    try:
        return codec.decode(payload).message_type in (operation.result_type, ERROR)
    except MalformedEnvelope:
        return False
    except CodecError as error:
        return error.message_type in (operation.result_type, ERROR)


def forgotten(operation: Operation, message_id: str) -> bytes:
    """Return the answer in place of a result that is not remembered."""
    return Fault(ResultForgotten(operation.prefix, message_id=message_id)).encoded(operation, 1)


def reply_subject(operation: Operation, caller: str, message_id: str) -> str:
    """Return where a caller listens for the result of a job."""
    return _subject(operation, caller, token(message_id))


def _handed_back(operation: Operation, message_id: str) -> str:
    return _subject(operation, _NOBODY, f"{token(message_id)}{_HANDED_BACK}")


def _subject(operation: Operation, caller: str, name: str) -> str:
    return f"{RESULTS_PREFIX}.{operation.stream}.{caller}.{name}"
