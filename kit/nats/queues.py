"""What lies in a JOB's queue: how much and for whom, and what the server alone would never give up."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import nats.js.errors
from nats.js import api

from kit import codec
from kit.catalogue import Mode, Operation
from kit.errors import ContractViolation, JobError, KitError
from kit.nats import layout
from kit.nats.ids import expiry
from kit.nats.streams import NEXT, Stored, Streams

_PRODS = 64  # at most, of one consumer at a time
_LOOKS = 64  # jobs of one subject that are looked at, at a time
_PAGE = 256  # consumers that the server tells of at once


class JobExpired(JobError):
    """Nobody had begun the job when its time was over."""

    retryable = False

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__("nobody had begun it when its time was over")


async def prod(streams: Streams, operation: Operation) -> bool:
    """Have the server look at a queue that nobody pulls, and say whether that was of use.

    It gives a message up only when someone pulls. A pull that takes one byte at most gets nothing and costs no message
    an attempt, but makes the server give up what has had all its attempts, and tell so.
    """
    stream, useful = operation.stream, False
    if operation.mode is not Mode.JOB or stream is None:
        return False
    for known in await _consumers(streams, operation):
        waiting = known.num_redelivered or 0
        order = codec.dumps({"batch": 1, "max_bytes": 1, "no_wait": True})
        for _ in range(min(waiting, _PRODS)):  # each brings one to the front
            await streams.ask(f"{NEXT}.{stream}.{known.name}", order)
        useful = useful or waiting > 0
    return useful


async def overdue(streams: Streams, operation: Operation) -> list[tuple[Stored, KitError]]:
    """Return jobs of an addressed row that nobody has begun and that end, each with why: their receiver may never come.

    Their time is over, or cannot be read, for whoever sent it may be anybody.
    """
    stream, found = operation.stream, list[tuple[Stored, KitError]]()
    if not operation.addressed or operation.mode is not Mode.JOB or stream is None:
        return found
    begun = {known.config.filter_subject for known in await _consumers(streams, operation) if known.num_ack_pending}
    now = datetime.now(UTC)
    for subject, count in (await _subjects(streams, operation)).items():
        sequence = 0
        for _ in range(0 if subject in begun else min(count, _LOOKS)):
            kept = await streams.next(stream, subject, sequence + 1)
            if kept is None:
                break
            sequence = kept.sequence
            try:
                end = expiry(kept.headers, operation)
            except ContractViolation as error:
                found.append((kept, error))
            else:
                if end is not None and end <= now:
                    found.append((kept, JobExpired(kept.subject)))
    return found


async def gave_up(streams: Streams, operation: Operation, consumer: str, kept: Stored) -> bool | None:
    """Say whether a consumer gave up a message that lies in its stream; None when that cannot be said yet.

    The server's advisory alone proves nothing: anybody in the account can send one.
    """
    stream = operation.stream or ""

    async def known() -> list[api.ConsumerInfo]:
        with suppress(nats.js.errors.NotFoundError):
            return [await streams.context.consumer_info(stream, consumer)]
        return []

    counts = []
    lying: dict[str, int] = {}
    for _ in range(2):  # before and after what lies there is counted
        info = next(iter(await streams.patiently(f"consumer {consumer} of {stream}", known)), None)
        if info is None or info.delivered is None or kept.sequence > info.delivered.stream_seq:
            return False
        if not info.num_redelivered and info.config.max_deliver != 1:
            return False
        counts.append((info.num_pending or 0) + (info.num_ack_pending or 0))
        lying = lying or await _subjects(streams, operation, info.config.filter_subject)
    if kept.subject not in lying:
        return False
    # Which messages are under way is not told, only how many: what was given up lies in the queue beside them.
    return True if operation.mode is not Mode.JOB or sum(lying.values()) > max(counts) else None


async def settled(streams: Streams, operation: Operation, last: int) -> tuple[list[Stored], bool]:
    """Return jobs up to a sequence that lie below what their consumer has seen settled: it delivers them no more.

    A server that crashed may know of an acknowledgement and still have the job. The second value says whether every
    consumer has seen everything settled that it had to.
    """
    found, whole = list[Stored](), True
    lying = await _subjects(streams, operation)
    for known in await _consumers(streams, operation) if lying else ():
        floor = known.ack_floor.stream_seq if known.ack_floor is not None else 0
        subject, sequence = known.config.filter_subject or "", 0
        if subject not in lying:
            continue
        while (kept := await streams.next(operation.stream or "", subject, sequence + 1)) is not None:
            sequence = kept.sequence
            if sequence > min(floor, last):
                whole = whole and sequence > last
                break
            found.append(kept)
    return found, whole


async def backlog(streams: Streams, operation: Operation) -> dict[str | None, int]:
    """Return how many jobs are not done yet, by receiver; under None those for nobody in particular."""
    found: dict[str | None, int] = {}
    for subject, count in (await _subjects(streams, operation)).items():
        receiver = layout.receiver_of(operation, subject)
        found[receiver] = found.get(receiver, 0) + count
    return found


async def _subjects(streams: Streams, operation: Operation, only: str | None = None) -> dict[str, int]:
    """Return how many messages there are of each subject; ``only`` of this one, wildcards allowed."""
    stream = operation.stream or ""

    async def work() -> dict[str, int]:
        try:
            info = await streams.context.stream_info(stream, subjects_filter=only or f"{operation.prefix}.>")
        except nats.js.errors.NotFoundError:
            return {}
        return dict(info.state.subjects or {})

    return await streams.patiently(f"stream {stream}", work)


async def _consumers(streams: Streams, operation: Operation) -> list[api.ConsumerInfo]:
    """Return the consumers of a queue: of all levels, and of all receivers that somebody has worked for."""
    stream = operation.stream or ""

    async def by_level() -> list[api.ConsumerInfo]:
        found = []
        for level in layout.levels(operation):
            with suppress(nats.js.errors.NotFoundError):
                found.append(await streams.context.consumer_info(stream, level.consumer(operation)))
        return found

    async def listed() -> list[api.ConsumerInfo]:
        found: list[api.ConsumerInfo] = []
        with suppress(nats.js.errors.NotFoundError):
            while len(page := await streams.context.consumers_info(stream, len(found))) == _PAGE:
                found += page
            found += page
        return found

    return await streams.patiently(f"consumers of {stream}", listed if operation.addressed else by_level)
