"""Workers on core NATS: requests that are answered, events that are heard."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kit.catalogue import Mode
from kit.errors import DeadlineExceeded, Disconnected
from kit.nats.faults import Fault
from kit.nats.handling import Handling, Overloaded, WorkerStopped
from kit.nats.ids import MESSAGE_ID, is_inbox
from kit.nats.message import Handler
from kit.nats.route import Route
from kit.nats.worker import Tasks, Worker, drain

if TYPE_CHECKING:
    from kit.nats.bus import Bus

_log = logging.getLogger("kit.nats")

_ANSWER = 5.0  # s; for an answer to wait for a reconnect


class CoreWorker(Worker):
    """A subscription whose messages are handled, ``concurrency`` at once; ``backlog`` more may wait."""

    def __init__(
        self, bus: Bus, route: Route, handler: Handler, *, concurrency: int, backlog: int, queue: str | None
    ) -> None:
        super().__init__(route.operation, route.subject)
        self._bus, self._queue, self._backlog = bus, queue, backlog
        self._answers = route.operation.mode is Mode.REQUEST
        self._handling = Handling(bus, route, handler, kind="server" if self._answers else "consumer", group=queue)
        self._tasks: Tasks[Msg] = Tasks(self._answer if self._answers else self._hear, concurrency)
        self._subscription: Subscription | None = None
        self._told = False

    async def start(self) -> None:
        """Subscribe; on return the server knows it."""
        self._subscription = await self._bus.connection.subscribe(self.subject, self._take, queue=self._queue or "")

    @property
    def listening(self) -> bool:
        """Whether it receives events, and would miss some while its connection is down."""
        return not self._answers and self._stopping is None

    @property
    def in_flight(self) -> int:
        """Messages that are here and not done yet."""
        return len(self._tasks)

    async def _stop(self, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if self._subscription is not None:
            await drain(self._subscription, self._bus.connection, timeout)
        await self._tasks.end(max(0.0, deadline - loop.time()))

    def _take(self, message: Msg) -> None:
        if len(self._tasks.waiting) < self._backlog:
            self._tasks.put(message)
            return
        error = Overloaded(self.subject, waiting=self._backlog)
        self._handling.count_refused(error)
        if self._answers:
            self._bus.background(self._reply(message, Fault(error).encoded(self.operation)))
        elif not self._told:
            self._told = True
            _log.warning("%r cannot keep up: %d events wait, what comes now is dropped", self, self._backlog)

    async def _answer(self, message: Msg) -> None:
        with self._handling.operation(message) as recorded:
            try:
                answer = await self._handling.run(message, recorded)
            except asyncio.CancelledError:
                answer = Fault(WorkerStopped(self.subject))
                answer.record(recorded)
                await self._reply(message, answer.encoded(self.operation))
                raise
            finally:
                self.handled += 1
            await self._reply(message, answer.encoded(self.operation) if isinstance(answer, Fault) else answer)

    async def _hear(self, message: Msg) -> None:
        message_id = message.headers.get(MESSAGE_ID) if message.headers else None
        with self._handling.operation(message) as recorded:
            try:
                await self._handling.run(message, recorded, message_id=message_id)
            finally:
                self.handled += 1

    async def _reply(self, message: Msg, answer: bytes) -> None:
        if not message.reply:
            return
        if not is_inbox(message.reply):
            _log.warning("an answer on %s was not sent: %.60r is not an inbox", self.subject, message.reply)
            return
        try:
            await self._bus.connection.send(message.reply, answer, timeout=_ANSWER)
        except (Disconnected, DeadlineExceeded) as error:
            _log.warning("an answer on %s was not sent: %s", self.subject, error)
