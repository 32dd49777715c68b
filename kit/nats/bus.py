"""The bus of one tenant: what components talk through, and the only thing they talk through.

A component hands over a ``dict`` and a row of the catalogue. The row gives the subject, the contracts and the spans;
codec checks and wraps; otel adds the trace context; nats sends. On the other side the same happens backwards, and the
handler gets a ``Message``. What it returns goes back the same way.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any, Self

from nats.aio.msg import Msg

from kit import codec
from kit.catalogue import ERROR, EVENTS_INTERRUPTED, Mode, Operation, check_id, suggest_operation
from kit.errors import BusError, ConfigurationError, ForeignLoopError, NoResponders
from kit.nats.connection import Connection
from kit.nats.dead import Graveyard
from kit.nats.deadlines import deadline
from kit.nats.faults import remote_error
from kit.nats.ids import EXPIRES, MESSAGE_ID, Serial, checked_id
from kit.nats.jobs import Desk, Job
from kit.nats.layout import NORMAL, Level, level_of, levels
from kit.nats.letters import DeadLetter
from kit.nats.message import Handler, Message
from kit.nats.objects import Objects
from kit.nats.pulling import Bind
from kit.nats.queues import backlog
from kit.nats.results import Results
from kit.nats.route import Route, check_mode
from kit.nats.serving import CoreWorker
from kit.nats.store import Store, open_store
from kit.nats.streaming import Stream
from kit.nats.streams import Streams
from kit.nats.worker import Worker
from kit.nats.working import PullWorker
from kit.otel import Telemetry, semconv

_log = logging.getLogger("kit.nats")

_AGAIN = 0.1  # s; before a request without responders is sent again
_MOVING = 3.0  # s; for a cluster's responders to reconnect to another server
_BACKLOG = 4096  # messages that may wait for a worker on core NATS; JetStream keeps what is not pulled
_USUAL = 5  # priority
_MOST_ROUTES = 4096  # remembered; there is one for each receiver of an addressed operation


class Bus:
    """Everything that one tenant sends and receives, over a connection to the tenant's account.

    Args:
        connection: to the tenant's account; it stays the caller's to close.
        tenant_id: whose messages these are.
        telemetry: what records them.

    Raises:
        ConfigurationError: the tenant's id is invalid, or the connection belongs to another tenant.
    """

    def __init__(self, connection: Connection, tenant_id: str, telemetry: Telemetry) -> None:
        if connection.tenant_id not in (None, tenant_id):
            raise ConfigurationError(
                f"this connection belongs to tenant {connection.tenant_id!r}: tenant {tenant_id!r} needs its own"
            )
        self.connection = connection
        self.tenant_id = check_id(tenant_id)
        self.telemetry = telemetry.for_tenant(tenant_id)
        self._loop = asyncio.get_running_loop()
        self._routes: dict[tuple[str, str, str | None], Route] = {}
        self._workers: weakref.WeakSet[Worker] = weakref.WeakSet()  # what still works is held by its subscription
        self._tasks: set[asyncio.Task[None]] = set()
        self._serial = Serial()
        self._streams = Streams(connection)
        self._results = Results(connection, self._streams)
        self._graveyard = Graveyard(self, self._streams, self._results)
        self._desk = Desk(self, self._streams, self._results, self._graveyard)
        self._objects = Objects(connection, self._streams)
        self._closed = False
        self._listening = False
        self._served: set[str] = set()  # subjects that were answered in a cluster

    def __repr__(self) -> str:
        return f"<Bus of {self.tenant_id}, {len(self._workers)} workers>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self, timeout: float = 10.0) -> None:
        """Stop every worker of this bus; what is under way may finish within ``timeout`` seconds."""
        self._closed = True
        await self.connection.prepare_close()
        await asyncio.gather(*(worker.stop(timeout) for worker in tuple(self._workers)))
        for task in tuple(self._tasks):
            task.cancel()
        await self._graveyard.close()
        if self._listening:
            self._listening = False
            self.connection.on_reconnect.remove(self._warn_of_missed)
        self.connection.patient = True  # its owner may use it for another bus

    # --- events -------------------------------------------------------------------------------------------------

    async def publish(
        self, operation: Operation, data: dict[str, Any], *, to: str | None = None, message_id: str | None = None,
        timeout: float = 5.0,
    ) -> None:  # fmt: skip
        """Tell everybody who listens now: an EVENT.

        Args:
            operation: the catalogue's row.
            data: the content.
            to: the one receiver, where the row is addressed; None tells all.
            message_id: of a stored event: published again under it within two minutes, it is stored once.
            timeout: seconds for the stream to acknowledge a stored event, or for the connection to accept another one.

        Raises:
            CodecError: the data break their contract.
            Disconnected, DeadlineExceeded, PayloadTooLarge: nothing was sent.
            NotStored: the stream did not acknowledge a stored event.
            ConfigurationError: the row is no EVENT, or has no single receiver.
        """
        route = self._route(operation, "publish", Mode.EVENT, to=to)
        with self.telemetry.operation(operation.send_span, route.send_attributes, kind="producer") as recorded:
            payload = route.encode(data)
            if recorded.recording:
                recorded.set(semconv.MESSAGING_MESSAGE_BODY_SIZE, len(payload))
            if not operation.stored:
                await self.connection.send(route.subject, payload, headers=recorded.headers(), timeout=timeout)
                return
            headers = {MESSAGE_ID: checked_id(message_id) if message_id is not None else self._serial.next()}
            recorded.set(semconv.MESSAGING_MESSAGE_ID, headers[MESSAGE_ID])
            end = self._loop.time() + timeout
            if not self._streams.has(operation):
                make = partial(self._streams.event, operation)
                await self._streams.set_up(make, route.subject, headers[MESSAGE_ID], timeout)
            await self._streams.store(
                route.subject, payload, recorded.headers(headers) or headers, end - self._loop.time(),
                partial(self._streams.again, operation),
            )  # fmt: skip

    async def subscribe(
        self,
        operation: Operation,
        handler: Handler,
        *,
        to: str | None = None,
        queue: str | None = None,
        durable: str | None = None,
        replay: bool = False,
        concurrency: int = 1,
    ) -> Worker:
        """Listen to an EVENT; on return the server knows it. With ``concurrency`` 1 events are handled in order.

        Args:
            operation: the catalogue's row.
            handler: gets each event; what it returns is ignored. A plain function may block: it runs on a thread.
            to: listen as this one receiver, and not to what is for all.
            queue: share the events with all subscribers of the same queue group.
            durable: of a stored event: keep the place under this name, so that nothing is missed while away.
            replay: of a stored event: begin with the oldest one kept.
            concurrency: events handled at once.

        Raises:
            ConfigurationError: the row is no EVENT, has no single receiver, or is not stored.
        """
        route = self._route(operation, "subscribe", Mode.EVENT, to=to)
        if durable is None and not replay:
            worker = await self._serve(route, handler, concurrency, queue)
            if not self._listening:
                self._listening = True
                self.connection.on_reconnect.append(self._warn_of_missed)
            return worker
        if not operation.stored:
            raise ConfigurationError(f"{operation.name} is not stored: leave `durable` and `replay` out")
        if durable is not None:
            check_id(durable, what="durable")
        await self._streams.event(operation)

        async def bind(seen: int) -> str:
            begin = seen + 1 if seen or replay else None
            return await self._streams.subscriber(operation, route.subject, durable=durable, begin=begin)

        return await self._pull(route, handler, concurrency, durable or queue, [[bind]], once=False)

    # --- requests -----------------------------------------------------------------------------------------------

    async def request(self, operation: Operation, data: dict[str, Any], *, timeout: float = 5.0) -> Message:
        """Ask, and wait at most ``timeout`` seconds for the answer: a REQUEST.

        Raises:
            CodecError: the data, or the answer, break their contract.
            NoResponders: nobody serves it.
            DeadlineExceeded: no answer in time.
            RemoteError: the handler failed.
            Disconnected, PayloadTooLarge: nothing was sent.
            ConfigurationError: the row is no REQUEST.
        """
        return await self.ask(self._route(operation, "request", Mode.REQUEST), data, timeout)

    async def serve(self, operation: Operation, handler: Handler, *, concurrency: int = 64) -> Worker:
        """Answer a REQUEST, sharing the requests with all who serve it; on return the server knows it.

        Args:
            operation: the catalogue's row.
            handler: its result is the answer; its exception is a typed error at the caller. A plain function may block:
                it runs on a thread.
            concurrency: requests handled at once; some thousands more wait, what comes then is refused.

        Raises:
            ConfigurationError: the row is no REQUEST.
        """
        route = self._route(operation, "serve", Mode.REQUEST)
        return await self._serve(route, handler, concurrency, operation.queue)

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def enqueue(
        self,
        operation: Operation,
        data: dict[str, Any],
        *,
        message_id: str | None = None,
        priority: int = 5,
        to: str | None = None,
        expires: float | None = None,
        timeout: float = 5.0,
    ) -> Job:
        """Put a JOB into its queue; on return it is stored.

        Args:
            operation: the catalogue's row.
            data: the content.
            message_id: enqueued again under the same id, it is the same job and is done once.
            priority: 0 is the least and 9 the most urgent, where the row knows priorities; 7 and more overtake what is
                less, 3 and less wait for all others.
            to: the one receiver, where the row is addressed; it waits until somebody works for that one.
            expires: seconds after which it need not be begun any more, where the row is addressed.
            timeout: seconds for the queue to acknowledge.

        Raises:
            CodecError: the data break their contract.
            NotStored: the queue did not acknowledge; enqueue it again under the same id.
            PayloadTooLarge: nothing was sent.
            ConfigurationError: the row is no JOB or has no single receiver, or the id cannot be one.
        """
        route = self._route(operation, "enqueue", Mode.JOB, to=to)
        more = None if expires is None else {EXPIRES: codec.now(expires)}
        level = NORMAL if priority == _USUAL else level_of(operation, priority)
        with self.telemetry.operation(operation.send_span, route.send_attributes, kind="producer") as recorded:
            payload = route.encode(data)
            job = await self._desk.enqueue(route, payload, message_id, timeout, level=level, more=more)
            if recorded.recording:
                recorded.set(semconv.MESSAGING_MESSAGE_BODY_SIZE, len(payload))
                recorded.set(semconv.MESSAGING_MESSAGE_ID, job.message_id)
            return job

    async def run(
        self,
        operation: Operation,
        data: dict[str, Any],
        *,
        timeout: float = 30.0,
        message_id: str | None = None,
        priority: int = 5,
        to: str | None = None,
    ) -> Message:
        """Enqueue a JOB and wait for its result: one span over both.

        Raises:
            JobDead: every attempt failed.
            DeadlineExceeded: no result within ``timeout`` seconds; the job goes on.
            CodecError, NotStored, PayloadTooLarge, ConfigurationError: as ``enqueue``.
        """
        route = self._route(operation, "run", Mode.JOB, to=to)
        return await self.order(route, data, timeout, message_id, level=level_of(operation, priority))

    async def work(
        self, operation: Operation, handler: Handler, *, concurrency: int = 1, receivers: Sequence[str] = ()
    ) -> Worker:
        """Do a JOB, sharing the queue with all who work on it.

        Args:
            operation: the catalogue's row.
            handler: its result goes to the caller; its exception means another attempt later, as the row's policy says.
                A plain function may block: it runs on a thread, which nothing can stop.
            concurrency: jobs handled at once.
            receivers: whose jobs it does beside those for nobody in particular.

        Raises:
            ConfigurationError: the row is no JOB, or has no such receivers.
        """
        route = self._route(operation, "work", Mode.JOB)
        for receiver in receivers:
            operation.subject(self.tenant_id, receiver)  # refuses what can be none

        def binding(level: Level, to: str | None) -> Bind:
            return lambda _: self._streams.job_consumer(operation, self.tenant_id, level, to)

        bindings = [[binding(level, to) for to in (None, *receivers)] for level in levels(operation)]
        return await self._pull(route, handler, concurrency, operation.queue, bindings, once=True)

    async def backlog(self, operation: Operation, *, timeout: float = 10.0) -> dict[str | None, int]:
        """Return how many of a JOB are not done yet, by receiver; under None those for nobody in particular.

        Raises:
            DeadlineExceeded: the server did not answer within ``timeout`` seconds.
            ConfigurationError: the row is no JOB.
        """
        self._route(operation, "look", Mode.JOB)
        async with deadline(timeout, f"the queue of {operation.name}"):
            return await backlog(self._streams, operation)

    async def dead_letters(self, operation: Operation, *, timeout: float = 10.0) -> list[DeadLetter]:
        """Return the jobs that failed for good, oldest first.

        Raises:
            DeadlineExceeded: the server did not give all of them within ``timeout`` seconds.
            ConfigurationError: the row is neither a JOB nor a stored EVENT.
        """
        self._check()
        if not isinstance(operation, Operation):
            raise ConfigurationError(f"{operation!r:.100} is not an operation: {suggest_operation(operation)}")
        if operation.stream is None:
            raise ConfigurationError(f"{operation.name} is not stored, so nothing of it is kept when it fails")
        async with deadline(timeout, f"the dead letters of {operation.name}"):
            return await self._graveyard.letters(operation)

    async def replay(self, operation: Operation, ids: list[str] | None = None, *, timeout: float = 60.0) -> int:
        """Enqueue dead letters again, all or those of these message ids, and return how many.

        A letter that is not ``replayable`` stays where it is, with a warning.

        Raises:
            NotStored: the queue did not acknowledge; the rest are still dead letters.
            DeadlineExceeded: not all were sent within ``timeout`` seconds; the rest are still dead letters.
            ConfigurationError: the row is no JOB.
        """
        self._route(operation, "replay", Mode.JOB)
        async with deadline(timeout, f"the dead letters of {operation.name}"):
            letters = await self._graveyard.letters(operation)
            chosen = [letter for letter in letters if ids is None or letter.message_id in ids]
            return sum([await self._graveyard.replay(letter) for letter in chosen])

    # --- answers piece by piece ---------------------------------------------------------------------------------

    async def stream(
        self, operation: Operation, data: dict[str, Any], *, timeout: float = 60.0, message_id: str | None = None
    ) -> AsyncIterator[Message]:
        """Ask for an answer piece by piece: yield each ``llm_chunk`` as it comes, and the result at the end.

        Leave the loop, and the handler on the other side is cancelled within two seconds, also while it emits nothing.

        Args:
            operation: a JOB or a REQUEST whose handler emits pieces.
            data: the content.
            timeout: seconds for the whole answer.
            message_id: of a JOB; as for ``enqueue``.

        Raises:
            RemoteError, JobDead: the handler failed.
            DeadlineExceeded: the answer was not complete in time.
            CodecError, NoResponders, NotStored, Disconnected, PayloadTooLarge, ConfigurationError: as for ``request``.
        """
        route = self._route(operation, "stream", Mode.REQUEST, Mode.JOB)
        stream = Stream(self, route, data, timeout=timeout, message_id=message_id)
        try:
            async for message in stream.messages():
                yield message
        finally:
            await stream.close()

    # --- stores -------------------------------------------------------------------------------------------------

    async def store(self, bucket: str, ttl: float | None = None) -> Store:
        """Return the key-value store of this name, made if need be.

        Args:
            bucket: its name.
            ttl: seconds after which a value is forgotten; None keeps values.
        """
        self._check()
        return await open_store(self._streams, check_id(bucket, what="bucket"), ttl)

    async def put_object(self, name: str, data: bytes, *, bucket: str = "objects") -> dict[str, Any]:
        """Store what is too large for a message, and return the claim to send in its place.

        The claim is ``{"bucket", "name", "size", "sha256"}``.
        """
        self._check()
        return await self._objects.put(name, data, bucket)

    async def get_object(self, claim: dict[str, Any]) -> bytes:
        """Return what a claim stands for, checked against its size and SHA-256.

        Raises:
            BusError: it is not there, or is something else.
        """
        self._check()
        return await self._objects.get(claim)

    async def delete_object(self, claim: dict[str, Any]) -> None:
        """Delete what a claim stands for; do nothing when it is gone."""
        self._check()
        await self._objects.delete(claim)

    # --- for the modules of this room ---------------------------------------------------------------------------

    def _warn_of_missed(self) -> None:
        """Warn after a disconnect that events may have been missed: the server keeps only stored ones."""
        interrupted = [worker for worker in self._workers if isinstance(worker, CoreWorker) and worker.listening]
        for worker in interrupted:
            self.telemetry.count(EVENTS_INTERRUPTED, operation=worker.operation.name)
        if interrupted:
            subjects = ", ".join(sorted({worker.subject for worker in interrupted}))
            _log.warning("events may have been missed while the connection was down: %s", subjects)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%r: %s", self, error, exc_info=error)

    async def ask(
        self, route: Route, data: dict[str, Any], timeout: float, headers: dict[str, str] | None = None
    ) -> Message:
        """Send a request and return its answer."""
        with self.telemetry.operation(route.operation.send_span, route.send_attributes, kind="client") as recorded:
            payload = route.encode(data)
            if recorded.recording:
                recorded.set(semconv.MESSAGING_MESSAGE_BODY_SIZE, len(payload))
            answer = await self._answer(route.subject, payload, timeout, recorded.headers(headers))
            envelope = route.read_result(answer.data)
            if envelope.message_type == ERROR:
                raise remote_error(route.subject, envelope.data)
            return route.message(envelope)

    async def _answer(self, subject: str, payload: bytes, timeout: float, headers: dict[str, str] | None) -> Msg:
        begun = self._loop.time()
        left = timeout
        while True:
            try:
                answer = await self.connection.request(subject, payload, timeout=left, headers=headers)
            except NoResponders:  # so nobody received it
                gone = self._loop.time() - begun
                left = timeout - gone - _AGAIN
                if left <= 0 or not (self.connection.is_fresh or (subject in self._served and gone < _MOVING)):
                    self._served.discard(subject)
                    raise
            else:
                if self._streams.clustered:
                    self._served.add(subject)
                return answer
            await asyncio.sleep(_AGAIN)

    async def order(
        self,
        route: Route,
        data: dict[str, Any],
        timeout: float,
        message_id: str | None,
        headers: dict[str, str] | None = None,
        level: Level = NORMAL,
    ) -> Message:
        """Enqueue a job and return its result."""
        with self.telemetry.operation(route.operation.send_span, route.send_attributes, kind="client") as recorded:
            end = self._loop.time() + timeout
            payload = route.encode(data)
            job = await self._desk.enqueue(route, payload, message_id, timeout, level=level, more=headers)
            recorded.set(semconv.MESSAGING_MESSAGE_ID, job.message_id)
            return await job.result(max(end - self._loop.time(), 0.0))

    def new_id(self) -> str:
        """Return an id that nobody else has."""
        return self._serial.next()

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something that nobody waits for, until the bus is closed."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def _serve(self, route: Route, handler: Handler, concurrency: int, queue: str | None) -> Worker:
        worker = CoreWorker(self, route, handler, concurrency=_many(concurrency), backlog=_BACKLOG, queue=queue)
        await worker.begin(handler)
        self._workers.add(worker)
        return worker

    async def _pull(
        self, route: Route, handler: Handler, concurrency: int, group: str | None, bindings: list[list[Bind]], *,
        once: bool,
    ) -> Worker:  # fmt: skip
        worker = PullWorker(
            self,
            route,
            handler,
            results=self._results,
            graveyard=self._graveyard,
            group=group,
            concurrency=_many(concurrency),
            bindings=bindings,
            once=once,
        )
        await worker.begin(handler)
        self._workers.add(worker)
        return worker

    def _route(self, operation: Operation, verb: str, *modes: Mode, to: str | None = None) -> Route:
        self._check()
        if not isinstance(operation, Operation):
            raise ConfigurationError(f"{operation!r:.100} is not an operation: {suggest_operation(operation)}")
        key = (operation.name, verb, to)
        route = self._routes.get(key)
        if route is None or route.operation is not operation:
            check_mode(operation, verb, *modes)
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            route = self._routes[key] = Route(operation, self.tenant_id, verb, to)
        return route

    def _check(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise ForeignLoopError(f"the bus of {self.tenant_id}")
        if self._closed:
            raise BusError(f"the bus of {self.tenant_id} was closed")


def _many(concurrency: int) -> int:
    if concurrency < 1:
        raise ConfigurationError(f"concurrency {concurrency} is refused: at least 1")
    return concurrency
