"""Jobs on the caller's side: enqueued for good, and their results, which come by themselves or are looked up.

What is promised:

- Once ``enqueue`` returns, the job is on the server's disk. It is worked on until its handler succeeds or it becomes a
  dead letter; a worker that dies meanwhile costs time, never the job. One that is stopped hands back what it has not
  finished, which spends no attempt.
- Its effect happens once for its message id: the queue takes an id once within ten minutes, and a worker that gets an
  id again (its own acknowledgement was lost, a caller repeats itself) finds the remembered result and runs nothing.
  Results are remembered for ``policy.result_ttl``; of those over 8 KiB, after a minute or more, only that they were.
- A job for one receiver (``to=``) is done by those who work for that one. While there is nobody it waits and has all
  its attempts; if its time has an end (``expires=``), it is a dead letter once that is over and nobody has begun it.
- After a crash of the *server* (not a stop), what ended in its last moments may be forgotten there; a worker that lived
  through it still knows what it did itself, for longer than the server takes to give it out again. What the server
  keeps though it is done is deleted.
- What no queue can promise: a worker that dies *between* its effect and the note of it leaves an effect that nobody
  knows of, and the job runs again. A handler whose effect must not double even then makes it under
  ``message.message_id`` (an upsert, a conditional write).
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kit.catalogue import ERROR, RESULTS_PREFIX, Operation
from kit.errors import DeadlineExceeded, JobDead, KitError
from kit.nats.batches import Batches
from kit.nats.dead import Graveyard
from kit.nats.ids import AGAIN, MESSAGE_ID, REPLY, Serial, checked_id
from kit.nats.layout import Level
from kit.nats.message import Message
from kit.nats.results import Results, forgotten, reply_subject
from kit.nats.route import Route
from kit.nats.streams import Streams
from kit.otel import inject

if TYPE_CHECKING:
    from kit.nats.bus import Bus

_log = logging.getLogger("kit.nats")

_FIRST_LOOK = 2.0  # s; after which a result that has not come is looked up, in case it was missed
_NEXT_LOOK = 0.05  # s; … when somebody else's job of this id is waited for
_LONGEST_LOOK = 5.0


class Job:
    """A job that was enqueued.

    Attributes:
        operation: the catalogue's row.
        message_id: its id: enqueue it again under this id, and nothing happens twice.
        duplicate: whether a job of this id was there already.
        sequence: its place in the queue.
    """

    def __init__(self, desk: Desk, route: Route, message_id: str, answer: asyncio.Future[bytes]) -> None:
        self.operation = route.operation
        self.message_id = message_id
        self.duplicate = False
        self.sequence = 0
        self.answer = answer
        self._desk, self._route = desk, route

    def __repr__(self) -> str:
        return f"<Job {self.operation.name} {self.message_id} {'done' if self.done else 'under way'}>"

    @property
    def done(self) -> bool:
        """Whether the result is here."""
        return self.answer.done()

    def put(self, payload: bytes) -> None:
        """Take the result; the first one counts."""
        if not self.answer.done():
            self.answer.set_result(payload)

    async def result(self, timeout: float = 30.0) -> Message:
        """Wait for the result, at most ``timeout`` seconds; it may have come before.

        Raises:
            DeadlineExceeded: there is none yet; it may be waited for again.
            JobDead: every attempt failed.
            CodecError: the result breaks its contract.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pause, look = 0.0 if self.duplicate else _FIRST_LOOK, None
        while not self.done:
            left = deadline - loop.time()
            if left <= 0:
                raise DeadlineExceeded(self._route.subject, seconds=timeout)
            await asyncio.wait((self.answer,), timeout=min(pause, left))
            if not self.done and (look is None or look.done()):
                look = self._desk.look_up_soon(self)  # which goes on when this one's time is over
                pause = min(max(pause * 2, _NEXT_LOOK), _LONGEST_LOOK)
        return self._read(self.answer.result())

    def _read(self, payload: bytes) -> Message:
        envelope = self._route.read_result(payload)
        if envelope.message_type == ERROR:
            raise JobDead(
                self._route.subject,
                message_id=self.message_id,
                attempts=envelope.data.get("attempts", 1),
                error_type=envelope.data["error_type"],
                detail=envelope.data["message"],
                retry_after=envelope.data.get("retry_after"),
            )
        return self._route.message(envelope, message_id=self.message_id)


class Desk:
    """Where one bus enqueues its jobs and waits for their results."""

    def __init__(self, bus: Bus, streams: Streams, results: Results, graveyard: Graveyard) -> None:
        self._bus, self._streams, self._results, self._graveyard = bus, streams, results, graveyard
        self._serial = Serial()
        self._batches = Batches(bus.connection, streams)
        # A job that nobody holds is waited for by nobody.
        self._waiting: weakref.WeakValueDictionary[str, Job] = weakref.WeakValueDictionary()
        self._subscription: Subscription | None = None
        self._opening = asyncio.Lock()
        self._open: set[str] = set()

    async def open(self, operation: Operation) -> None:
        """Make sure that the queue exists and that its results are heard."""
        await self._streams.job(operation)
        async with self._opening:  # many begin at once, and one subscription is enough for all
            if self._subscription is None:
                subject = f"{RESULTS_PREFIX}.*.{self._serial.prefix}.*"
                self._subscription = await self._bus.connection.subscribe(subject, self._take)
        self._open.add(operation.name)

    async def enqueue(
        self,
        route: Route,
        payload: bytes,
        message_id: str | None,
        timeout: float,
        *,
        level: Level,
        more: dict[str, str] | None = None,
    ) -> Job:
        """Store a job and return it.

        Raises:
            NotStored: the queue did not acknowledge it.
            PayloadTooLarge: nothing was sent.
        """
        operation, loop = route.operation, asyncio.get_running_loop()
        deadline = loop.time() + timeout
        name = self._serial.next() if message_id is None else checked_id(message_id)
        if operation.name not in self._open:
            await self._streams.set_up(lambda: self.open(operation), route.subject, name, timeout)
            timeout = deadline - loop.time()
        reply = reply_subject(operation, self._serial.prefix, name)
        headers = {MESSAGE_ID: name, REPLY: reply}
        if message_id is not None:
            headers[AGAIN] = "1"
        if more is not None:
            headers.update(more)
        twin = self._waiting.get(reply)
        # The same job, enqueued twice here, has one answer; one that is done may have been sent again since.
        answer = loop.create_future() if twin is None or twin.done else twin.answer
        job = self._waiting[reply] = Job(self, route, name, answer)
        headers = inject(headers) or headers
        subject, again = level.subject(route.subject), partial(self._streams.again, operation)
        ack = await self._batches.store(operation.stream or "", subject, payload, headers, timeout, again)
        job.duplicate, job.sequence = ack.duplicate, ack.sequence
        return job

    def look_up_soon(self, job: Job) -> asyncio.Task[None]:
        """Look a result up while its job is waited for."""
        return self._bus.background(self.look_up_quietly(job))

    async def look_up_quietly(self, job: Job) -> None:
        """Look a result up; what fails is tried again by the next look, and the job is waited for in any case."""
        try:
            await self.look_up(job)
        except KitError as error:
            _log.info("%r could not be looked up: %s", job, error)

    async def look_up(self, job: Job) -> None:
        """Look for a result that was given while nobody listened, and for jobs that died with their workers."""
        operation = job.operation
        # Looked for in this order, for a job leaves its queue only after its result was sent.
        gone = job.duplicate and await self._streams.at(operation.stream or "", job.sequence) is None
        answer, is_open = await self._results.recall(operation, job.message_id)
        if answer is not None:
            job.put(answer)
        elif gone and not is_open:
            job.put(forgotten(operation, job.message_id))
        else:
            await self._graveyard.open()
            await self._graveyard.sweep_quietly(operation)

    def _take(self, message: Msg) -> None:
        job = self._waiting.get(message.subject)
        if job is not None:
            job.put(message.data)
