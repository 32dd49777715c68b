"""Dead letters: jobs that failed for good, kept with their evidence, listed, and sent again.

Nothing dies unseen. A worker buries what it gives up itself. What it cannot bury, because it was killed at every
attempt, the server gives up after ``policy.max_attempts`` deliveries, with nothing but an advisory; a stream keeps the
advisories, and whoever is alive (a worker, a waiting caller, someone who lists dead letters) buries what they name.
So it is with a job of an addressed row that has an end to its time: whoever waits or lists buries it when that is over
and nobody has begun it, since its receiver may never come.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kit import codec
from kit.catalogue import DEAD_LETTER, DEAD_LETTERS_PREFIX, JOBS_DEAD, OPERATIONS, Mode, Operation
from kit.errors import BusError, CodecError, KitError, PayloadTooLarge, UnknownContract
from kit.nats.client import carries
from kit.nats.faults import Fault
from kit.nats.ids import MESSAGE_ID, REPLAYED, REPLY, job_id, token
from kit.nats.layout import DEAD_STREAM, EXHAUSTED, EXHAUSTED_STREAM
from kit.nats.queues import JobExpired, overdue, prod
from kit.nats.worker import drain

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.results import Results
    from kit.nats.streams import Stored, Streams

_log = logging.getLogger("kit.nats")

_BUCKET = "dead-letters"  # of payloads that fit no message any more
_LONGEST_REPLY = 200  # characters, as the contract of dead letters says
_SWEEP = 1.0  # s; between two sweeps of a queue for those who wait
_ADVISED = 0.02  # s; for the server's advisory to be stored
_SECONDS = 5.0  # for a dead letter to be stored, or sent again


class WorkerLost(BusError):
    """Every worker that took the job was lost (killed, or cut off) before it had finished."""

    def __init__(self, subject: str, *, attempts: int) -> None:
        self.subject, self.attempts = subject, attempts
        super().__init__(f"the worker was lost at each of {attempts} attempts")


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class DeadLetter:
    """A job that failed for good.

    Attributes:
        operation: the catalogue's row.
        message_id: the job's id.
        subject: where it was sent.
        error_type: class name of the last error.
        detail: its message, without content of the job.
        reason: why it was given up: attempts_exhausted, not_retryable, contract_violation or unknown_contract.
        attempts: deliveries it took.
        first_seen: when it was enqueued: UTC, RFC 3339.
        failed_at: when it was given up.
        path: JSON pointer to the fault, when it broke its contract.
        payload: what was sent, unchanged.
        headers: of what was sent.
        sequence: its place among the dead letters.
    """

    operation: Operation
    message_id: str
    subject: str
    error_type: str
    detail: str
    reason: str
    attempts: int
    first_seen: str
    failed_at: str
    path: str | None
    payload: bytes
    headers: dict[str, str]
    sequence: int

    def __repr__(self) -> str:
        return (
            f"<DeadLetter {self.operation.name} {self.message_id}: {self.error_type} after {self.attempts} attempt(s), "
            f"{self.reason}>"
        )

    @property
    def data(self) -> dict[str, Any] | None:
        """What was sent, decoded; None when it cannot be."""
        try:
            return codec.decode(self.payload).data
        except CodecError:
            return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A job that is given up, as it lies in its stream."""

    operation: Operation
    subject: str
    payload: bytes
    headers: dict[str, str]
    sequence: int
    stored_at: str
    attempts: int

    @property
    def message_id(self) -> str:
        """The job's id."""
        return job_id(self.headers, self.operation, self.sequence)


class Graveyard:
    """The dead letters of one tenant."""

    def __init__(self, bus: Bus, streams: Streams, results: Results) -> None:
        self._bus, self._streams, self._results = bus, streams, results
        self._watch: Subscription | None = None
        self._swept: dict[str, float] = {}  # when, by operation
        self._opening, self._sweeping = asyncio.Lock(), asyncio.Lock()

    async def open(self) -> None:
        """Make sure that what dies is kept, and hear of what the server gives up."""
        await self._streams.dead()
        async with self._opening:
            if self._watch is None:
                # A queue group: one of all that listen acts; should it be lost, the next sweep finds the advisory.
                subject = f"{EXHAUSTED}.>"
                self._watch = await self._bus.connection.subscribe(subject, self._on_advisory, queue="undertakers")

    async def close(self) -> None:
        """Hear of nothing more."""
        if self._watch is not None:
            await drain(self._watch, self._bus.connection, _SECONDS)
            self._watch = None

    async def bury(self, body: Body, fault: Fault, reason: str) -> None:
        """Keep a job as a dead letter and tell its caller; the caller of this takes it out of its queue.

        Raises:
            NotStored: the dead letter was not acknowledged; the job must stay where it is.
        """
        operation = body.operation
        self._bus.telemetry.count(JOBS_DEAD, operation=operation.name, error_type=fault.error_type)
        _log.error("%s %s died: %s (%s)", operation.name, body.message_id, fault.error_type, reason)
        subject = f"{DEAD_LETTERS_PREFIX}.{operation.stream}.{token(body.message_id)}"
        mark = f"{operation.stream}-{body.sequence}"
        letter = _evidence(body, fault, reason, self._bus.tenant_id) | await self._keep(subject, mark, body)
        await self._streams.store(subject, codec.encode(DEAD_LETTER, letter), {MESSAGE_ID: mark}, _SECONDS)
        await self._tell(body, fault)

    async def _keep(self, subject: str, mark: str, body: Body) -> dict[str, Any]:
        """Keep the payload as it is, and return where."""
        headers = _carried(body.headers) | {MESSAGE_ID: f"{mark}-payload"}
        try:
            kept = await self._streams.store(f"{subject}.payload", body.payload, headers, _SECONDS)
        except PayloadTooLarge:  # it fitted its own headers and not these
            return {"payload_claim": await self._bus.put_object(mark, body.payload, bucket=_BUCKET)}
        return {"payload_stream": DEAD_STREAM, "payload_sequence": kept.sequence}

    async def _tell(self, body: Body, fault: Fault) -> None:
        if body.operation.mode is Mode.JOB:
            answer = fault.encoded(body.operation, body.attempts)
            await self._results.remember(body.operation, body.message_id, body.headers.get(REPLY), answer)

    async def letters(self, operation: Operation) -> list[DeadLetter]:
        """Return the dead letters of an operation, oldest first."""
        await self.open()
        await self.sweep(operation)
        found: list[DeadLetter] = []
        subject, sequence = f"{DEAD_LETTERS_PREFIX}.{operation.stream}.*", 0
        while (kept := await self._streams.next(DEAD_STREAM, subject, sequence + 1)) is not None:
            sequence = kept.sequence
            said = codec.decode(kept.payload).data
            found.append(_letter(operation, kept.sequence, said, await self._payload(said)))
        return found

    async def _payload(self, said: dict[str, Any]) -> bytes:
        if "payload_claim" in said:
            return await self._bus.get_object(said["payload_claim"])
        kept = await self._streams.at(said["payload_stream"], said["payload_sequence"])
        return b"" if kept is None else kept.payload

    async def replay(self, letter: DeadLetter) -> None:
        """Send a dead letter again, under its old id, and keep it no more.

        Raises:
            NotStored: the queue did not acknowledge it; the dead letter is still there.
        """
        operation = letter.operation
        name = token(letter.message_id)
        await self._streams.job(operation)
        await self._results.reopen(operation, letter.message_id)
        # Another mark than before, or the queue would take it for the job that it had; the same at every try.
        headers = {**letter.headers, MESSAGE_ID: f"{letter.message_id}{REPLAYED}{letter.sequence}"}
        await self._streams.store(letter.subject, letter.payload, headers, _SECONDS)
        dead = f"{DEAD_LETTERS_PREFIX}.{operation.stream}.{name}"
        await self._streams.purge(DEAD_STREAM, dead)
        await self._streams.purge(DEAD_STREAM, f"{dead}.payload")

    # --- what the server gave up --------------------------------------------------------------------------------

    def _on_advisory(self, _: Msg) -> None:
        self._bus.background(self._heed())

    async def _heed(self) -> None:
        try:
            await self.sweep()
        except KitError as error:
            _log.warning("a dead letter has to wait for the next sweep: %s", error)

    async def sweep_quietly(self, operation: Operation | None = None) -> None:
        """Sweep, but not the same queue every moment; what fails is tried again by the next sweep."""
        name, now = operation.name if operation is not None else "", asyncio.get_running_loop().time()
        if now - self._swept.get(name, -_SWEEP) < _SWEEP:
            return
        self._swept[name] = now
        try:
            await self.sweep(operation)
        except KitError as error:
            _log.warning("dead letters were not swept: %s", error)

    async def sweep(self, operation: Operation | None = None) -> int:
        """Bury what the server gave up since the last sweep, and what is over its time; return how many.

        Args:
            operation: whose queue to look into first: while nobody works on it, the server gives nothing up.
        """
        buried = 0
        async with self._sweeping:
            if operation is not None:
                if await prod(self._streams, operation):
                    await asyncio.sleep(_ADVISED)
                for kept in await overdue(self._streams, operation):
                    await self._give_up(operation, kept, 0, JobExpired(kept.subject))
                    buried += 1
            while (advisory := await self._streams.next(EXHAUSTED_STREAM, f"{EXHAUSTED}.>", 0)) is not None:
                buried += await self._bury_exhausted(codec.loads(advisory.payload))
                await self._streams.delete(EXHAUSTED_STREAM, advisory.sequence)
        return buried

    async def _bury_exhausted(self, advisory: dict[str, Any]) -> int:
        operation = next((row for row in OPERATIONS if row.stream == advisory.get("stream")), None)
        if operation is None or operation.stream is None:
            return 0
        kept = await self._streams.at(operation.stream, advisory["stream_seq"])
        if kept is None:
            return 0
        attempts = advisory["deliveries"]
        await self._give_up(operation, kept, attempts, WorkerLost(kept.subject, attempts=attempts))
        return 1

    async def _give_up(self, operation: Operation, kept: Stored, attempts: int, error: KitError) -> None:
        """Bury a message that lies in its stream, and take it out there."""
        body = Body(
            operation=operation,
            subject=kept.subject,
            payload=kept.payload,
            headers=kept.headers,
            sequence=kept.sequence,
            stored_at=kept.stored_at,
            attempts=attempts,
        )
        fault = Fault(error)
        await self.bury(body, fault, reason_of(fault))
        if operation.mode is Mode.JOB:
            await self._streams.delete(operation.stream or "", kept.sequence)


def reason_of(fault: Fault) -> str:
    """Return why a job was given up, in the words of the dead letter's contract."""
    if fault.refused:
        return "unknown_contract" if isinstance(fault.error, UnknownContract) else "contract_violation"
    return "attempts_exhausted" if fault.retryable else "not_retryable"


def _evidence(body: Body, fault: Fault, reason: str, tenant_id: str) -> dict[str, Any]:
    evidence = {
        "operation": body.operation.name,
        "subject": body.subject,
        "message_id": body.message_id,
        "attempts": body.attempts,
        "error_type": fault.error_type,
        "detail": fault.detail,
        "failed_at": codec.now(),
        "first_seen": body.stored_at,
        "reason": reason,
        "path": fault.path,
        "tenant_id": tenant_id,
        "stream": body.operation.stream,
        "stream_sequence": body.sequence,
        "payload_size": len(body.payload),
        "payload_sha256": hashlib.sha256(body.payload).hexdigest(),
        "headers": _carried(body.headers),
        "retryable": fault.retryable,
    }
    if (reply := body.headers.get(REPLY)) is not None and len(reply) <= _LONGEST_REPLY:
        evidence["reply_to"] = reply
    return evidence


def _carried(headers: dict[str, str]) -> dict[str, str]:
    """Return the headers of a message that can be sent again: not what was said to the stream, nor what is refused."""
    return {name: value for name, value in headers.items() if not name.startswith("Nats-") and carries(name, value)}


def _letter(operation: Operation, sequence: int, said: dict[str, Any], payload: bytes) -> DeadLetter:
    return DeadLetter(
        operation=operation,
        message_id=said["message_id"],
        subject=said["subject"],
        error_type=said["error_type"],
        detail=said["detail"],
        reason=said["reason"],
        attempts=said["attempts"],
        first_seen=said["first_seen"],
        failed_at=said["failed_at"],
        path=said.get("path"),
        payload=payload,
        headers=said["headers"],
        sequence=sequence,
    )
