"""Pulling from a JetStream consumer: as much as can be worked on, requested before it is needed.

One subscription takes everything; what was requested and has not come is kept count of. nats-py's ``fetch`` makes a
task, a uuid and a timer for every message, and leaves the worker idle between two batches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kit import codec
from kit.errors import Disconnected, KitError
from kit.nats.ids import Delivery, delivery
from kit.nats.streams import NEXT
from kit.nats.worker import drain

if TYPE_CHECKING:
    from kit.nats.connection import Connection

_log = logging.getLogger("kit.nats")

_EXPIRES = 30.0  # s; after which the server forgets a request that it could not fill
_HEARTBEAT = 2.0  # s; at which the server says that it has not forgotten
_DEAF = 5.0  # s of silence, after which a request is taken for lost
_PAUSE = 0.25  # s; after the server refused a request
_PENDING = "Nats-Pending-Messages"
_NS = 1_000_000_000


Bind: TypeAlias = Callable[[int], Awaitable[str]]


class Puller:
    """Keeps ``wanted()`` messages requested, and hands over what comes.

    Args:
        bind: makes sure that the consumer exists and returns its name; gets the last sequence that came, and is called
            again when the consumer has vanished.
        take: gets each message, in the read loop.
        wanted: how many more messages can be taken now, beside those that were requested.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        *,
        bind: Bind,
        take: Callable[[Msg, Delivery], None],
        wanted: Callable[[], int],
    ) -> None:
        self._connection, self._stream = connection, stream
        self._bind, self._deliver, self._wanted = bind, take, wanted
        self._loop = asyncio.get_running_loop()
        self._next = ""
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._requested = 0
        self._seen = self._backlog = 0
        self._serial = 0
        self._heard = 0.0
        self._reconnects = 0
        self._orders: dict[int, bytes] = {}
        self._binding: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def start(self) -> None:
        """Bind to the consumer and request the first messages."""
        self._inbox = self._connection.client.new_inbox()
        self._subscription = await self._connection.subscribe(f"{self._inbox}.*", self._take)
        await self._rebind()

    async def stop(self, timeout: float) -> None:
        """Request nothing more; what the server had sent already is still handed over."""
        self._stopped = True
        if self._binding is not None:
            self._binding.cancel()
        if self._subscription is not None:
            await drain(self._subscription, self._connection, timeout)

    @property
    def coming(self) -> int:
        """How many of the requested messages are there to be sent, as far as is known."""
        return self._requested if self._backlog else 0

    @property
    def missing(self) -> int:
        """How many messages shall be requested now: none until that is worth a request."""
        missing = self._wanted() - self._requested
        return missing if missing > 0 and missing * 2 >= self._requested else 0

    async def top_up(self) -> None:
        """Request what is missing."""
        missing = self.missing
        if not missing or self._stopped or not self._next or not self._connection.client.is_connected:
            return
        self._requested += missing
        self._serial += 1
        order = self._orders.get(missing)
        if order is None:
            order = self._orders[missing] = codec.dumps(
                {"batch": missing, "expires": int(_EXPIRES * _NS), "idle_heartbeat": int(_HEARTBEAT * _NS)}
            )
        self._heard = self._loop.time()
        await self._connection.client.publish(self._next, order, f"{self._inbox}.{self._serial}")

    async def check(self) -> None:
        """Look for requests that were lost, with a connection or with a server; called every second or so."""
        reconnects = self._connection.counters.reconnects
        lost = self._requested and self._loop.time() - self._heard > _DEAF
        if lost or reconnects != self._reconnects:
            self._reconnects = reconnects
            self._requested = 0
        if self._next:
            await self.top_up()
        else:
            self._bind_later(0.0)

    def _take(self, message: Msg) -> None:
        self._heard = self._loop.time()
        if not message.subject.startswith(self._inbox):
            self._requested = max(self._requested - 1, 0)
            given = delivery(message.reply)
            self._seen = max(self._seen, given.sequence)
            self._backlog = given.pending
            self._deliver(message, given)
            return
        headers = message.headers or {}
        status = headers.get("Status")
        if status == "100":
            return
        left = headers.get(_PENDING)
        self._requested = max(self._requested - int(left), 0) if left is not None else 0
        if status in ("404", "408"):
            task = self._loop.create_task(self._top_up_quietly())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            _log.info("%s: %s %s", self._next, status, headers.get("Description", ""))
            self._next = ""
            self._bind_later(_PAUSE)

    def _bind_later(self, seconds: float) -> None:
        if not self._stopped and (self._binding is None or self._binding.done()):
            self._binding = self._loop.create_task(self._rebind_after(seconds))

    async def _rebind_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        try:
            await self._rebind()
        except KitError as error:
            _log.warning("%s: cannot bind to its consumer: %s; tried again", self._stream, error)

    async def _rebind(self) -> None:
        self._next = f"{NEXT}.{self._stream}.{await self._bind(self._seen)}"
        self._requested = 0
        self._reconnects = self._connection.counters.reconnects
        await self.top_up()

    async def _top_up_quietly(self) -> None:
        with suppress(Disconnected):  # check() requests again once the connection is back
            await self.top_up()
