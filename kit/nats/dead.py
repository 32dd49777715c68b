"""Dead letters: jobs that failed for good, kept with their evidence, listed, and sent again.

Nothing dies unseen. A worker buries what it gives up itself. What it cannot bury, because it was killed at every
attempt, the server gives up after ``policy.max_attempts`` deliveries, with nothing but an advisory; a stream keeps the
advisories, and whoever is alive (a worker, a waiting caller, someone who lists dead letters) buries what they name.
So it is with a job of an addressed row that has an end to its time: whoever waits or lists buries it when that is over
and nobody has begun it, since its receiver may never come.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kit import codec
from kit.catalogue import (
    DEAD_LETTER,
    DEAD_LETTERS_PREFIX,
    JOBS_DEAD,
    JOBS_FORGOTTEN,
    MESSAGES_REFUSED,
    OPERATIONS,
    Mode,
    Operation,
)
from kit.errors import (
    BusError,
    CodecError,
    ContractViolation,
    DeadlineExceeded,
    Disconnected,
    KitError,
    NoResponders,
    PayloadTooLarge,
    escape_text,
)
from kit.nats.faults import Fault
from kit.nats.ids import DELIVERED, MESSAGE_ID, REPLAYED, REPLY, delivered_before, job_id
from kit.nats.layout import DEAD_BYTES, DEAD_STREAM, EXHAUSTED, EXHAUSTED_STREAM, is_own_subject
from kit.nats.letters import (
    Body,
    DeadLetter,
    carried,
    evidence_of,
    letter_of,
    letter_subject,
    payload_subject,
    read_evidence,
    reason_of,
)
from kit.nats.queues import gave_up, overdue, prod
from kit.nats.worker import drain

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.results import Results
    from kit.nats.streams import Stored, Streams

_log = logging.getLogger("kit.nats")

_BUCKET = "dead-letters"  # of payloads that fit no message any more
_SOON = 0.97  # of the age at which the server drops them silently
_CONSUMER = re.compile(r"[^\s.*>]{1,200}")
_SPARE = 256 * 1024  # bytes; for evidence, and for what others keep at the same time
_SHOWN = 200  # characters of a foreign subject
_FEW = 16  # messages that others keep at the same time
_NOWHERE = 2**62  # a sequence that no stream has reached
_SWEEP = 1.0  # s; between two sweeps of a queue for those who wait
_TRIES = 10  # sweeps, while it cannot be said whether the server gave a message up
_ADVISED = 0.02  # s; for the server's advisory to be stored
_SECONDS = 5.0  # for a dead letter to be stored, or sent again


class WorkerLost(BusError):
    """Every worker that took the job was lost (killed, or cut off) before it had finished."""

    def __init__(self, subject: str, *, attempts: int) -> None:
        self.subject, self.attempts = subject, attempts
        super().__init__(f"the worker was lost at each of {attempts} attempts")


class NotReplayable(BusError):
    """A dead letter that cannot be sent again."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"{escape_text(subject)} is not a subject of its operation, or its payload is gone")


class Advisory(NamedTuple):
    """The server's advisory about a message that it gives up, or somebody else's forgery."""

    operation: Operation
    consumer: str
    sequence: int
    deliveries: int


class Graveyard:
    """The dead letters of one tenant."""

    def __init__(self, bus: Bus, streams: Streams, results: Results) -> None:
        self._bus, self._streams, self._results = bus, streams, results
        self._watch: Subscription | None = None
        self._swept: dict[str, float] = {}  # when, by operation
        self._undecided = False  # whether the last sweep left an advisory that nobody could say of whether it is true
        self._refused = 0  # up to this sequence, what is no dead letter has been counted
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
        await self._make_room(len(body.payload))
        mark = f"{operation.stream}-{body.sequence}"
        letter = evidence_of(body, fault, reason, self._bus.tenant_id) | await self._keep(mark, body)
        subject = letter_subject(operation, body.message_id)
        await self._streams.store(subject, codec.encode(DEAD_LETTER, letter), {MESSAGE_ID: mark}, _SECONDS)
        await self._tell(body, fault)

    async def _keep(self, mark: str, body: Body) -> dict[str, Any]:
        """Keep the payload as it is, and return where."""
        headers = carried(body.headers) | {MESSAGE_ID: f"{mark}-payload"}
        subject = payload_subject(body.operation, body.message_id)
        try:
            kept = await self._streams.store(subject, body.payload, headers, _SECONDS)
        except PayloadTooLarge:  # it fitted its own headers and not these
            return {"payload_claim": await self._bus.put_object(mark, body.payload, bucket=_BUCKET)}
        return {"payload_stream": DEAD_STREAM, "payload_sequence": kept.sequence}

    async def _tell(self, body: Body, fault: Fault) -> None:
        if body.operation.mode is Mode.JOB:
            answer = fault.encoded(body.operation, body.attempts)
            await self._results.remember(body.operation, body.message_id, body.headers.get(REPLY), answer)

    async def letters(self, operation: Operation) -> list[DeadLetter]:
        """Return an operation's dead letters, oldest first; anything else in the stream is counted and left out."""
        await self.open()
        await self._make_room()
        await self.sweep(operation)
        found: list[DeadLetter] = []
        subject, sequence = f"{DEAD_LETTERS_PREFIX}.{operation.stream}.*", 0
        while (kept := await self._streams.next(DEAD_STREAM, subject, sequence + 1)) is not None:
            sequence = kept.sequence
            try:
                said = read_evidence(operation, kept)
            except CodecError as error:
                if kept.sequence > self._refused:
                    self._refused = kept.sequence
                    self._refuse(operation, error, f"{kept.subject} is not a dead letter")
                continue
            own = is_own_subject(operation, self._bus.tenant_id, said["subject"])
            payload = await self._payload(operation, said)
            found.append(letter_of(operation, sequence, said, payload, own_subject=own))
        return found

    async def _payload(self, operation: Operation, said: dict[str, Any]) -> bytes | None:
        """Return what was sent, if it is stored where a dead letter's payload belongs."""
        if "payload_claim" not in said:
            kept = await self._streams.at(DEAD_STREAM, said.get("payload_sequence", 0) or _NOWHERE)
            mine = kept is not None and kept.subject == payload_subject(operation, said["message_id"])
            return kept.payload if kept is not None and mine else None
        claim = said["payload_claim"]
        if (claim["bucket"], claim["name"]) != (_BUCKET, f"{operation.stream}-{said['stream_sequence']}"):
            return None
        try:
            return await self._bus.get_object(claim)
        except (Disconnected, DeadlineExceeded, NoResponders):
            raise
        except BusError as error:
            _log.warning("a dead letter has lost its payload: %s", error)
            return None

    async def replay(self, letter: DeadLetter) -> bool:
        """Send a dead letter again under its old id, and delete it; return whether that was possible.

        Raises:
            NotStored: the queue did not acknowledge it; the dead letter is still there.
        """
        operation = letter.operation
        if not letter.replayable:
            self._refuse(operation, NotReplayable(letter.subject), f"{letter!r} stays where it is")
            return False
        await self._streams.job(operation)
        await self._results.reopen(operation, letter.message_id)
        # Another mark than before, or the queue would take it for the job that it had; the same at every try.
        headers = {**letter.headers, MESSAGE_ID: f"{letter.message_id}{REPLAYED}{letter.sequence}"}
        await self._streams.store(letter.subject, letter.payload, headers, _SECONDS)
        # By its sequence, never by its subject, which the same job may have again by now if it died again.
        await self._streams.delete(DEAD_STREAM, letter.sequence)
        if letter.payload_claim is not None:
            await self._bus.delete_object(letter.payload_claim)
        else:
            await self._streams.delete(DEAD_STREAM, letter.payload_sequence or _NOWHERE)
        return True

    async def _make_room(self, size: int = 0) -> None:
        """Drop the oldest dead letters, with a warning, if the stream is full or the server is about to drop them.

        Args:
            size: bytes of what will be stored next.
        """
        config, state = await self._streams.state(DEAD_STREAM)
        over = state.bytes + size + _SPARE - (limit if (limit := config.max_bytes or 0) > 0 else DEAD_BYTES)
        if (most := config.max_msgs or 0) > 0 and state.messages + _FEW > most:
            over = max(over, 1)
        oldest_kept = codec.now(_SOON * -config.max_age) if config.max_age else ""
        while over > 0 or oldest_kept:
            kept = await self._streams.next(DEAD_STREAM, f"{DEAD_LETTERS_PREFIX}.*.*", 0)
            if kept is None or not (over > 0 or kept.stored_at < oldest_kept):
                return
            payload = await self._streams.last(DEAD_STREAM, f"{kept.subject}.payload")
            for gone in (kept, payload):
                if gone is not None:
                    await self._streams.delete(DEAD_STREAM, gone.sequence)
                    over -= len(gone.payload)
            stream = kept.subject.split(".")[-2]
            operation = next((row for row in OPERATIONS if row.stream == stream), None)
            with suppress(CodecError):  # what is no dead letter has no payload elsewhere
                claim = read_evidence(operation, kept).get("payload_claim") if operation is not None else None
                if operation is not None and claim is not None and claim["bucket"] == _BUCKET:
                    await self._bus.delete_object(claim)
            self._bus.telemetry.count(
                JOBS_FORGOTTEN, operation=operation.name if operation is not None else DEAD_LETTER
            )
            _log.error("the dead letter %s of %s was dropped: too old, or no room left", kept.subject, kept.stored_at)

    def _refuse(self, operation: Operation | None, error: KitError, what: str) -> None:
        """Count and log what is not what it claims to be."""
        name = DEAD_LETTER if operation is None else operation.name
        self._bus.telemetry.count(MESSAGES_REFUSED, operation=name, error_type=type(error).__name__)
        _log.warning("%s: %s", what, error)

    # --- what the server gave up --------------------------------------------------------------------------------

    def _on_advisory(self, _: Msg) -> None:
        self._bus.background(self._heed())

    async def _heed(self) -> None:
        await asyncio.sleep(_ADVISED)
        try:
            for _ in range(_TRIES):
                await self.sweep()
                if not self._undecided:
                    return
                await asyncio.sleep(_SWEEP)
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
                for kept, error in await overdue(self._streams, operation):
                    if isinstance(error, CodecError):
                        self._refuse(operation, error, f"a job on {kept.subject[:_SHOWN]}")
                    await self._give_up(operation, kept, 0, error)
                    buried += 1
            sequence, self._undecided = 0, False
            while (said := await self._streams.next(EXHAUSTED_STREAM, f"{EXHAUSTED}.>", sequence + 1)) is not None:
                sequence = said.sequence
                try:
                    done = await self._bury_exhausted(read_advisory(said.payload))
                except CodecError as error:
                    done = 0
                    self._refuse(None, error, "an advisory that the server did not send")
                if done is None:
                    self._undecided = True
                else:
                    buried += done
                    await self._streams.delete(EXHAUSTED_STREAM, sequence)
        return buried

    async def _bury_exhausted(self, advisory: Advisory | None) -> int | None:
        """Make what an advisory names a dead letter, or requeue it; return how many died, None if it is not known yet.

        Raises:
            ContractViolation: the server did not give the message up.
        """
        if advisory is None:
            return 0
        operation = advisory.operation
        kept = await self._streams.at(operation.stream or "", advisory.sequence)
        if kept is None:
            return 0
        true = await gave_up(self._streams, operation, advisory.consumer, kept)
        if true is False:
            raise ContractViolation(f"the server did not give up {operation.name} {kept.sequence}", path="/stream_seq")
        if true is None:
            return None
        lost = attempts = advisory.deliveries
        if operation.mode is Mode.JOB:
            attempts += delivered_before(kept.headers)
            name = job_id(kept.headers, operation, kept.sequence)
            handed_back = await self._results.handed_back(operation, name)
            lost = max(attempts - handed_back, 0)
            if handed_back and lost < operation.policy.max_attempts:
                await self._put_back(operation, kept, name, attempts, handed_back)
                return 0
        await self._give_up(operation, kept, attempts, WorkerLost(kept.subject, attempts=lost))
        return 1

    async def _put_back(self, operation: Operation, kept: Stored, name: str, attempts: int, handed_back: int) -> None:
        """Requeue a job that has attempts left: deliveries that were handed back counted only for the server."""
        await self._results.reopen(operation, name)
        await self._results.hand_back(operation, name, handed_back)
        headers = carried(kept.headers) | {
            MESSAGE_ID: f"{name}{REPLAYED}{operation.stream}-{kept.sequence}",
            DELIVERED: str(attempts),
        }
        await self._streams.store(kept.subject, kept.payload, headers, _SECONDS)
        await self._streams.delete(operation.stream or "", kept.sequence)

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
        fault = Fault(error, refused=isinstance(error, CodecError))
        await self.bury(body, fault, reason_of(fault))
        if operation.mode is Mode.JOB:
            await self._streams.delete(operation.stream or "", kept.sequence)


def read_advisory(payload: bytes) -> Advisory | None:
    """Return an advisory; None if it is about no message of the kit.

    Raises:
        CodecError: it is not an advisory.
    """
    said = codec.loads(payload)
    if not isinstance(said, dict):
        raise ContractViolation("an advisory must be an object", path="")
    stream, consumer = said.get("stream"), said.get("consumer")
    if not isinstance(stream, str) or not isinstance(consumer, str) or not _CONSUMER.fullmatch(consumer):
        raise ContractViolation("an advisory must name a stream and a consumer", path="")
    sequence, deliveries = said.get("stream_seq"), said.get("deliveries")
    if type(sequence) is not int or type(deliveries) is not int or min(sequence, deliveries) < 1:
        raise ContractViolation("an advisory must have stream_seq and deliveries of at least 1", path="")
    operation = next((row for row in OPERATIONS if row.stream == stream), None)
    return None if operation is None else Advisory(operation, consumer, sequence, deliveries)
