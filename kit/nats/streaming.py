"""Answers piece by piece: each piece goes to a subject of the caller's own, the result where results always go.

Nobody has to tell that a caller left. Each piece names a reply subject that a caller never uses; when nobody is
subscribed to the pieces any more, the server itself answers there (503, no responders), and the handler is cancelled.
While there is no piece to send, an empty one asks after the caller every second: a handler that waits for something is
cancelled within two seconds after its caller left, too. Callers pass over empty pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kit.catalogue import CHUNKS_PREFIX, LLM_CHUNK, Mode
from kit.codec import encode
from kit.errors import BusError, Disconnected
from kit.nats.ids import is_inbox
from kit.nats.message import Message
from kit.nats.route import Route

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.connection import Listener

CHUNKS = "Kit-Chunks"  # header: the subject on which the caller wants the pieces
_QUIET = 1.0  # s; without a piece, after which the caller is asked after
_AGAIN = 0.5  # s; until it is asked after once more, when nobody listened
_LOST = 30.0  # s; to wait for this side's connection
_BACK = 3.0  # s; after this side's own connection was lost, for the caller to be back as well


class CallerGone(BusError):
    """The caller of a streamed answer left; nobody wants the rest."""

    retryable = False

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"the caller left; nobody listens on {subject} any more")


class ChunkSender:
    """Sends the pieces of one answer, and cancels its handler once the caller is gone.

    A caller is gone when nobody listens twice within a second: one whose server went away has come to another by then.
    """

    def __init__(self, bus: Bus, subject: str) -> None:
        self._bus, self.subject = bus, subject
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._listener: Listener | None = None
        self._sent = self._loop.time()  # when something was sent last
        self._missed = -2 * _AGAIN  # when nobody listened last
        self._reconnects = bus.connection.counters.reconnects
        self._timer = self._loop.call_later(_QUIET, self._ask)
        self._closed = self.gone = False

    async def send(self, data: dict[str, Any]) -> None:
        """Send one piece; while this side's connection is lost, wait for it: a stream cannot be restarted."""
        payload = encode(LLM_CHUNK, data)
        try:
            await self._publish(payload)
        except Disconnected:
            await self._bus.connection.wait_connected(_LOST)
            await self._publish(payload)

    def close(self) -> None:
        """Watch for the caller no more."""
        self._closed = True
        self._timer.cancel()
        if self._listener is not None:
            self._listener.close()

    def survive(self) -> None:
        """Let the task that was cancelled for the caller's sake go on: it still has to settle the message."""
        if self._task is not None:
            self._task.uncancel()

    async def _publish(self, payload: bytes) -> None:
        connection = self._bus.connection
        if self._listener is None:
            listener = await connection.listen(self._on_gone)
            if self._listener is not None or self._closed:
                listener.close()
            else:
                self._listener = listener
        if self._listener is not None:
            self._sent = self._loop.time()
            await connection.client.publish(self.subject, payload, self._listener.subject)

    def _ask(self) -> None:
        """Ask after the caller, unless a piece has done so a moment ago."""
        if self._reconnects != (reconnects := self._bus.connection.counters.reconnects):
            self._reconnects = reconnects
            self._timer = self._loop.call_later(_BACK, self._ask)
            return
        quiet = self._loop.time() - self._sent
        if quiet >= _AGAIN:
            self._bus.background(self._probe())
            quiet = 0.0
        self._timer = self._loop.call_later(_QUIET - quiet, self._ask)

    async def _probe(self) -> None:
        with suppress(Disconnected):  # asked again once the connection is back
            await self._publish(b"")

    def _on_gone(self, _: Msg) -> None:
        now = self._loop.time()
        again, self._missed = now - self._missed <= 2 * _AGAIN, now
        if self.gone or self._closed:
            return
        if not again:
            self._timer.cancel()
            self._timer = self._loop.call_later(_AGAIN, self._ask)
        elif self._task is not None:
            self.gone = True
            self._task.cancel()


def chunks_for(bus: Bus, headers: dict[str, str]) -> ChunkSender | None:
    """Return the sender of pieces, when the caller asked for them."""
    subject = headers.get(CHUNKS)
    return None if subject is None or not is_inbox(subject) else ChunkSender(bus, subject)


class Stream:
    """One streamed answer on the caller's side.

    The call runs in a task of its own: a span that stayed open in a generator would be the parent of whatever its
    caller does between two pieces.
    """

    def __init__(self, bus: Bus, route: Route, data: dict[str, Any], *, timeout: float, message_id: str | None) -> None:
        self._bus, self._route, self._data = bus, route, data
        self._timeout, self._message_id = timeout, message_id
        self._subject = f"{CHUNKS_PREFIX}.{bus.new_id().replace('-', '.')}"
        self._pieces: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._subscription: Subscription | None = None
        self._call: asyncio.Task[Message] | None = None

    async def messages(self) -> AsyncIterator[Message]:
        """Yield the pieces, then the result."""
        self._subscription = await self._bus.connection.subscribe(self._subject, self._pieces.put_nowait)
        self._call = asyncio.ensure_future(self._run())
        while (piece := await self._pieces.get()) is not None:
            if not piece.data:  # the other side asks whether somebody is here
                continue
            yield self._route.message(self._route.read_chunk(piece.data), message_id=self._message_id)
        yield await self._call

    async def close(self) -> None:
        """Stop listening, which the other side notices, and stop waiting."""
        if self._subscription is not None:
            with suppress(Disconnected, nats.errors.Error):
                await self._subscription.unsubscribe()
        if self._call is not None and not self._call.done():
            self._call.cancel()
            await asyncio.wait((self._call,))

    async def _run(self) -> Message:
        try:
            headers = {CHUNKS: self._subject}
            if self._route.operation.mode is Mode.REQUEST:
                return await self._bus.ask(self._route, self._data, self._timeout, headers)
            return await self._bus.order(self._route, self._data, self._timeout, self._message_id, headers)
        finally:
            self._pieces.put_nowait(None)
