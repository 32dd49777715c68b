"""One connection to a NATS server: by argument or by environment, bounded, observable, and honest about loss."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import nats.errors
from nats.aio.client import Server as PoolServer
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from kit.errors import ConnectError, DeadlineExceeded, Disconnected, ForeignLoopError, NoResponders
from kit.nats.client import Client

_log = logging.getLogger("kit.nats")


@dataclass(slots=True)
class Counters:
    """What happened to a connection since it was made."""

    disconnects: int = 0
    reconnects: int = 0
    errors: int = 0
    slow_consumers: int = 0
    late_replies: int = 0


class Connection:
    """A connection of one event loop to one NATS account."""

    def __init__(self, client: Client, *, tenant_id: str | None, name: str) -> None:
        self.client, self.tenant_id, self.name = client, tenant_id, name
        self.counters = Counters()
        self._loop = asyncio.get_running_loop()
        self._up, self._down, self._closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._up.set()
        self._serial = itertools.count(1)
        self._inbox = ""
        self._replies: dict[str, asyncio.Future[Msg]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def check_loop(self) -> None:
        """Raise at once when awaited from another event loop than its own.

        Raises:
            ForeignLoopError: it is another one.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise ForeignLoopError(f"connection {self.name!r}")

    @property
    def max_payload(self) -> int:
        """Bytes that headers and body of one message may have together, as the server said."""
        return self.client.max_payload

    async def publish(
        self, subject: str, payload: bytes, *, headers: dict[str, str] | None = None, reply: str = "",
        confirm: float | None = None,
    ) -> None:  # fmt: skip
        """Publish a message; with ``confirm`` (seconds), wait until the server has it.

        Raises:
            Disconnected: the connection is down, or broke before the confirmation.
            PayloadTooLarge: headers and body exceed the server's limit.
            DeadlineExceeded: no confirmation within the time.
        """
        self.check_loop()
        await self.client.publish(subject, payload, reply, headers)
        if confirm is not None:
            await self.flush(confirm)

    async def request(
        self, subject: str, payload: bytes, *, timeout: float = 5.0, headers: dict[str, str] | None = None
    ) -> Msg:
        """Send a request and return the first answer.

        Raises:
            NoResponders: nobody serves the subject.
            DeadlineExceeded: no answer came within ``timeout`` seconds.
            Disconnected, PayloadTooLarge: nothing was sent.
        """
        self.check_loop()
        if not self._inbox:
            await self._open_inbox()
        token = str(next(self._serial))
        future: asyncio.Future[Msg] = self._loop.create_future()
        self._replies[token] = future
        timer = self._loop.call_later(timeout, _expire, future, subject, timeout)
        try:
            await self.client.publish(subject, payload, self._inbox + token, headers)
            answer = await future
        finally:
            timer.cancel()
            del self._replies[token]
        if not answer.data and answer.headers and answer.headers.get("Status") == "503":
            raise NoResponders(subject)
        return answer

    async def subscribe(
        self, subject: str, handler: Callable[[Msg], Awaitable[None]], *, queue: str = ""
    ) -> Subscription:
        """Subscribe, and return once the server knows it."""
        self.check_loop()
        subscription = await self.client.subscribe(subject, queue=queue, cb=handler)
        await self.flush()
        return subscription

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until the server has taken everything that was sent so far."""
        self.check_loop()
        try:
            await self.client.flush(timeout)  # type: ignore[arg-type]  # it says int and means seconds
        except nats.errors.TimeoutError:
            raise DeadlineExceeded("the server", seconds=timeout) from None
        except nats.errors.ConnectionClosedError:
            raise Disconnected("the server", reason=self.client.why_down()) from None

    def jetstream(self, timeout: float = 5.0) -> JetStreamContext:
        """Return a JetStream context of this connection."""
        self.check_loop()
        return self.client.jetstream(timeout=timeout)

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Wait until the connection is up (again)."""
        async with asyncio.timeout(timeout):
            await self._up.wait()

    async def close(self, timeout: float = 5.0) -> None:
        """Drain and close, within ``timeout`` seconds."""
        self.check_loop()
        if self.client.is_closed:
            return
        if self.client.is_connected:
            await asyncio.wait({asyncio.ensure_future(self.client.drain())}, timeout=timeout)
        if not self.client.is_closed:
            await asyncio.wait({asyncio.ensure_future(self.client.close())}, timeout=1.0)

    async def _open_inbox(self) -> None:
        inbox = self.client.new_inbox() + "."
        await self.client.subscribe(inbox + "*", cb=self._deliver)
        self._inbox = inbox

    async def _deliver(self, message: Msg) -> None:
        future = self._replies.get(message.subject[len(self._inbox) :])
        if future is None or future.done():
            self.counters.late_replies += 1
        else:
            future.set_result(message)

    # --- what nats-py reports -----------------------------------------------------------------------------------

    async def on_error(self, error: Exception) -> None:
        """Count and log an error that belongs to no call."""
        if isinstance(error, nats.errors.SlowConsumerError):
            self.counters.slow_consumers += 1
        else:
            self.counters.errors += 1
        _log.warning("%s: %s", self.name, error)

    async def on_disconnected(self) -> None:
        """Note that the connection broke."""
        self.counters.disconnects += 1
        self._up.clear()
        self._down.set()
        self.client.lose_round_trips()

    async def on_reconnected(self) -> None:
        """Note that it is back."""
        self.counters.reconnects += 1
        self._down.clear()
        self._up.set()

    async def on_closed(self) -> None:
        """Note that it is closed for good."""
        self._up.clear()
        self._closed.set()


async def connect(
    url: str | Sequence[str] | None = None,
    *,
    tenant_id: str | None = None,
    user: str | None = None,
    password: str | None = None,
    name: str = "kit",
    connect_timeout: float = 5.0,
) -> Connection:
    """Connect to a NATS server."""
    client = Client()
    connection = Connection(client, tenant_id=tenant_id, name=name)
    servers = [url] if isinstance(url, str) else list(url or ["nats://127.0.0.1:4222"])
    try:
        async with asyncio.timeout(connect_timeout):
            await client.connect(
                servers,
                name=name,
                user=user,
                password=password,
                max_reconnect_attempts=-1,
                reconnect_to_server_handler=_next_server,
                ping_interval=20,
                error_cb=connection.on_error,
                disconnected_cb=connection.on_disconnected,
                reconnected_cb=connection.on_reconnected,
                closed_cb=connection.on_closed,
            )
    except (TimeoutError, OSError, nats.errors.Error) as error:
        raise ConnectError(f"no connection to {', '.join(servers)}: {error}") from None
    return connection


def _next_server(pool: list[PoolServer], _info: dict[str, Any]) -> tuple[PoolServer | None, float]:
    """Choose the server tried least, after a jittered backoff that grows to 2 s."""
    least = min(pool, key=lambda server: server.reconnects)
    return least, random.uniform(0.5, 1.0) * min(2.0, 0.05 * 2 ** min(least.reconnects, 6))


def _expire(future: asyncio.Future[Msg], subject: str, seconds: float) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded(subject, seconds=seconds))
