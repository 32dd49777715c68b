"""What lies in a JOB's queue: how much and for whom, and what the server alone would never give up."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import nats.js.errors
from nats.js import api

from kit import codec
from kit.catalogue import Mode, Operation
from kit.errors import JobError
from kit.nats import layout
from kit.nats.ids import EXPIRES
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


async def overdue(streams: Streams, operation: Operation) -> list[Stored]:
    """Return jobs of an addressed row that nobody has begun and whose time is over: their receiver may never come."""
    stream, found = operation.stream, list[Stored]()
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
            if EXPIRES in kept.headers and datetime.fromisoformat(kept.headers[EXPIRES]) <= now:
                found.append(kept)
    return found


async def backlog(streams: Streams, operation: Operation) -> dict[str | None, int]:
    """Return how many jobs are not done yet, by receiver; under None those for nobody in particular."""
    found: dict[str | None, int] = {}
    for subject, count in (await _subjects(streams, operation)).items():
        receiver = layout.receiver_of(operation, subject)
        found[receiver] = found.get(receiver, 0) + count
    return found


async def _subjects(streams: Streams, operation: Operation) -> dict[str, int]:
    """Return how many messages there are of each subject."""
    stream = operation.stream or ""

    async def work() -> dict[str, int]:
        try:
            info = await streams.context.stream_info(stream, subjects_filter=f"{operation.prefix}.>")
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
