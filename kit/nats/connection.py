"""One connection to a NATS server: by argument or by environment, bounded, observable, and honest about loss."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import nats.errors
from nats.aio.client import Server as PoolServer
from nats.aio.msg import Msg
from nats.aio.subscription import (
    DEFAULT_SUB_PENDING_BYTES_LIMIT,
    DEFAULT_SUB_PENDING_MSGS_LIMIT,
    Subscription,
)
from nats.js import JetStreamContext

from kit.catalogue import check_id
from kit.errors import (
    BusError,
    ConfigurationError,
    ConnectError,
    DeadlineExceeded,
    Disconnected,
    ForeignLoopError,
    NoResponders,
)
from kit.nats.auth import Access, Given, explain, is_final, resolve
from kit.nats.client import PENDING, Client, Direct
from kit.nats.config import Credentials
from kit.nats.deadlines import bounded, expire, settle, within

_log = logging.getLogger("kit.nats")
_access_log = logging.getLogger("kit.access")  # shown even where connection events are not

_BACKOFF = (0.05, 2.0)  # s; first and longest wait between attempts to reconnect, each times 0.5 to 1
_ATTEMPT = 2.0  # s; for one server to answer
_PING = 2.5  # s; a silent server is given up after three of them
_RECENT = 5.0  # s; after reconnecting, for responders to reconnect as well
_STORED = "Nats-Sequence"  # header of a stored message, whose other headers are the sender's and carry no status
_DROP = 0.1  # s; to close a socket that was never connected
_GOODBYE = 2.0  # s; for the server to answer before a shutdown
_CLOSE = 1.0  # s; to close the socket after the drain

Handler = Callable[[Msg], Awaitable[None]] | Callable[[Msg], None]


@dataclass(slots=True)
class Counters:
    """What happened to a connection since it was made."""

    disconnects: int = 0
    reconnects: int = 0
    errors: int = 0
    slow_consumers: int = 0
    late_replies: int = 0
    unsent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Listener:
    """A subject of one's own, on which a callback gets whatever is sent there until it is closed."""

    subject: str
    close: Callable[[], None]


class Connection:
    """A connection of one event loop to one NATS account; made by `connect`.

    Attributes:
        client: nats-py's client underneath, with its traps closed: safe to use, JetStream included.
        tenant_id: whose account it is, where the caller said so.
        counters: what happened so far.
    """

    def __init__(self, client: Client, *, tenant_id: str | None, name: str) -> None:
        self.client, self.tenant_id, self.name = client, tenant_id, name
        self.counters = Counters()
        self.on_reconnect: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        self._up, self._down, self._closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._hurry = asyncio.Event()
        self._serial = itertools.count(1)
        self._inbox = ""
        self._opening = asyncio.Lock()
        self._back = -_RECENT  # time of the last reconnect
        self._listeners: dict[str, Callable[[Msg], None]] = {}
        self._attempts: list[Exception] | None = []  # while the first connection is being made
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.name!r} {self.state} tenant={self.tenant_id}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def check_loop(self) -> None:
        """Raise at once when used from another event loop than its own.

        Raises:
            ForeignLoopError: it is another one.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise ForeignLoopError(f"connection {self.name!r}")

    # --- state --------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """One of ``connected``, ``reconnecting``, ``draining``, ``closed``."""
        if self.client.is_closed:
            return "closed"
        if self.client.is_draining:
            return "draining"
        return "connected" if self.client.is_connected else "reconnecting"

    @property
    def max_payload(self) -> int:
        """Bytes that headers and body of one message may have together, as the server said."""
        return self.client.max_payload

    @property
    def patient(self) -> bool:
        """Whether sends wait for a lost connection to come back; not while its user is stopping."""
        return not self._hurry.is_set()

    @patient.setter
    def patient(self, patient: bool) -> None:
        self._hurry.clear() if patient else self._hurry.set()

    @property
    def is_fresh(self) -> bool:
        """Whether it reconnected only a moment ago, so that others may not have reconnected yet."""
        return self._loop.time() - self._back < _RECENT

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Wait until the connection is up again.

        Raises:
            Disconnected: it is closed, or not up within ``timeout`` seconds.
        """
        self.check_loop()
        await within(timeout, self._up, self._closed, self._hurry)
        if self.client.is_closed or not self._up.is_set():
            raise Disconnected("the server", reason=self.client.why_down())

    async def wait_disconnected(self, timeout: float | None = None) -> None:
        """Wait until the connection is down; return at once when it is.

        Raises:
            DeadlineExceeded: it is still up after ``timeout`` seconds.
        """
        self.check_loop()
        if not await within(timeout, self._down):
            raise DeadlineExceeded("the break of the connection", seconds=timeout or 0.0)

    async def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until the connection is closed for good, by `close` or by the server.

        Raises:
            DeadlineExceeded: it is not, after ``timeout`` seconds.
        """
        self.check_loop()
        if not await within(timeout, self._closed):
            raise DeadlineExceeded("the end of the connection", seconds=timeout or 0.0)

    # --- sending ------------------------------------------------------------------------------------------------

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: dict[str, str] | None = None,
        reply: str = "",
        confirm: float | None = None,
    ) -> None:
        """Publish a message; with ``confirm`` (seconds), wait until the server has it.

        Core NATS promises no more than that the bytes were handed to the socket: what was written when the connection
        breaks may be lost. ``confirm`` costs a round trip and leaves no doubt.

        Raises:
            Disconnected: the connection is down, or broke before the confirmation.
            PayloadTooLarge: headers and body exceed the server's limit.
            DeadlineExceeded: no confirmation within the time.
        """
        self.check_loop()
        await self.client.publish(subject, payload, reply, headers)
        if confirm is not None:
            await self._round_trip(subject, confirm)

    async def send(
        self, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None
    ) -> None:
        """Publish a message; if the connection is down or its buffer is full, wait at most ``timeout`` seconds.

        Raises:
            Disconnected, DeadlineExceeded, PayloadTooLarge: nothing was sent.
        """
        self.check_loop()
        if self.client.has_room:
            await self.client.publish(subject, payload, headers=headers)
            return
        try:
            async with asyncio.timeout(timeout):
                await self._when_up(lambda: self.client.publish(subject, payload, headers=headers))
        except TimeoutError:
            raise self._late(subject, timeout) from None

    async def request(
        self, subject: str, payload: bytes, *, timeout: float = 5.0, headers: dict[str, str] | None = None
    ) -> Msg:
        """Send a request and return the first answer; while the connection is down, wait to send it.

        Raises:
            NoResponders: nobody serves the subject.
            DeadlineExceeded: no answer came within ``timeout`` seconds.
            Disconnected, PayloadTooLarge: nothing was sent.
        """
        self.check_loop()
        token = str(next(self._serial))
        answered: asyncio.Future[Msg] = self._loop.create_future()
        self._listeners[token] = partial(settle, answered)
        timer = self._loop.call_later(timeout, expire, answered, subject, timeout)
        try:
            if self._inbox and self.client.has_room:
                await self.client.publish(subject, payload, self._inbox + token, headers)
            else:
                await self._send_request(subject, payload, token, headers, timeout)
            answer = await answered
        finally:
            timer.cancel()
            self._listeners.pop(token, None)
        said = answer.headers or {}
        if not answer.data and said.get("Status") == "503" and _STORED not in said:
            raise NoResponders(subject)
        return answer

    async def _send_request(
        self, subject: str, payload: bytes, token: str, headers: dict[str, str] | None, timeout: float
    ) -> None:
        """Send a request that has to wait: for the inbox, for room in the buffer, or for the connection."""
        try:
            async with asyncio.timeout(timeout):
                if not self._inbox:
                    await self._when_up(lambda: self._open_inbox(timeout))
                await self._when_up(lambda: self.client.publish(subject, payload, self._inbox + token, headers))
        except TimeoutError:
            raise self._late(subject, timeout) from None

    async def _when_up(self, send: Callable[[], Awaitable[None]]) -> None:
        """Send something once, as soon as the connection is up, unless it is closed for good."""
        while True:
            try:
                await send()
                return
            except Disconnected:
                if self.client.is_closed or self.client.is_draining or not self.patient or self.client.trouble():
                    raise
            if self._up.is_set():
                await asyncio.sleep(_BACKOFF[0])  # it has just broken; nats-py notices in a moment
            await within(None, self._up, self._closed, self._hurry)

    def _late(self, subject: str, seconds: float) -> BusError:
        if self.client.is_connected:
            return DeadlineExceeded(subject, seconds=seconds)
        return Disconnected(subject, reason=self.client.why_down())

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until the server has taken everything that was sent so far, subscriptions included.

        Raises:
            DeadlineExceeded: it did not answer within ``timeout`` seconds.
            Disconnected: the connection is down or broke.
        """
        self.check_loop()
        await self._round_trip("the server", timeout)

    async def _round_trip(self, subject: str, timeout: float) -> None:
        if not self.client.is_connected:
            raise Disconnected(subject, reason=self.client.why_down())
        try:
            await self.client.flush(cast(int, timeout))  # it says int and takes seconds
        except nats.errors.TimeoutError:
            raise DeadlineExceeded(subject, seconds=timeout) from None
        except Disconnected:
            raise Disconnected(subject, reason="the connection broke before it was confirmed", sent=True) from None
        except nats.errors.Error:
            raise Disconnected(subject, reason=self.client.why_down(), sent=True) from None

    # --- receiving ----------------------------------------------------------------------------------------------

    async def subscribe(
        self,
        subject: str,
        handler: Handler,
        *,
        queue: str = "",
        pending_messages: int = DEFAULT_SUB_PENDING_MSGS_LIMIT,
        pending_bytes: int = DEFAULT_SUB_PENDING_BYTES_LIMIT,
        timeout: float = _ATTEMPT,
    ) -> Subscription:
        """Subscribe, and return once the server knows it.

        A coroutine function handles one message at a time, from a queue of ``pending_messages`` and ``pending_bytes``,
        beyond which messages are dropped and counted as ``slow_consumers``. A plain function is called as the message
        is read, without a queue: it must be quick, and bound what it starts by itself.

        Raises:
            Disconnected: the connection is down.
            DeadlineExceeded: the server did not confirm it within ``timeout`` seconds.
        """
        self.check_loop()
        if not self.client.is_connected:
            raise Disconnected(subject, reason=self.client.why_down())
        direct: Direct | None = _Direct(handler, self)
        how: dict[str, Any] = {"future": direct}  # a future is all that nats-py hands messages to at once
        if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):

            async def handle(message: Msg) -> None:
                await cast(Callable[[Msg], Awaitable[None]], handler)(message)

            how = {"cb": handle, "pending_msgs_limit": pending_messages, "pending_bytes_limit": pending_bytes}
            direct = None
        try:
            subscription = await self.client.subscribe(subject, queue, **how)
        except nats.errors.BadSubjectError:
            raise ConfigurationError(f"{subject!r} with queue {queue!r} is nothing to subscribe to") from None
        if direct is not None:
            self.client.takers[subscription._id] = direct
        try:
            await self._round_trip(subject, timeout)
        except BaseException:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()
            raise
        return subscription

    async def listen(self, deliver: Callable[[Msg], None]) -> Listener:
        """Open a subject of one's own for answers, without a subscription of its own."""
        self.check_loop()
        if not self._inbox:
            await self._open_inbox()
        token = str(next(self._serial))
        self._listeners[token] = deliver
        return Listener(self._inbox + token, lambda: (self._listeners.pop(token, None), None)[1])

    def jetstream(self, timeout: float = 5.0) -> JetStreamContext:
        """Return a JetStream context of this connection; its requests wait ``timeout`` seconds."""
        self.check_loop()
        return self.client.jetstream(timeout=timeout)

    async def _open_inbox(self, timeout: float = _ATTEMPT) -> None:
        async with self._opening:
            if not self._inbox:
                inbox = self.client.new_inbox() + "."
                await self.subscribe(inbox + "*", self._deliver, timeout=timeout)
                self._inbox = inbox

    def _deliver(self, message: Msg) -> None:
        deliver = self._listeners.get(message.subject[len(self._inbox) :])
        if deliver is None:
            self.counters.late_replies += 1
        else:
            deliver(message)

    # --- the end ------------------------------------------------------------------------------------------------

    async def prepare_close(self) -> None:
        """Stop waiting for a lost server, and treat one that does not answer within 2 s as lost.

        Call this before stopping many things over this connection: otherwise each of them would wait for a server that
        hangs.
        """
        self.check_loop()
        self.patient = False
        with suppress(Disconnected):
            try:
                await self.flush(_GOODBYE)
            except DeadlineExceeded:
                _log.warning("%s: the server does not answer; closing without unsubscribing", self.name)
                await self.client._process_op_err(nats.errors.StaleConnectionError())

    async def close(self, timeout: float = 5.0) -> None:
        """Finish the handlers that run, send what is unsent, and close; bounded by ``timeout`` seconds and two more."""
        self.check_loop()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(timeout))
        await asyncio.shield(self._closing)

    async def _close(self, timeout: float) -> None:
        client = self.client
        if client.is_connected:
            client.options["drain_timeout"] = timeout
            await bounded(client.drain(), timeout)
        if not client.is_closed:
            if not client.is_connected and client.pending_data_size:  # taken just before it broke
                self.counters.unsent_bytes = client.pending_data_size
                _log.warning("%s: closed with %d bytes unsent", self.name, client.pending_data_size)
            await bounded(client.close(), _CLOSE)
        client.abort()
        await self.on_closed()

    # --- what nats-py reports -----------------------------------------------------------------------------------

    async def on_error(self, error: Exception) -> None:
        """Count and log an error that belongs to no call; while connecting, let it end the attempt."""
        if self._attempts is not None:
            self._attempts.append(error)
            if is_final(error) or len(self._attempts) >= len(self.client.server_pool):
                raise _AttemptFailed
            return
        if isinstance(error, nats.errors.SlowConsumerError):
            self.counters.slow_consumers += 1
            _log.warning("%s: slow consumer on %s: a message was dropped", self.name, error.subject)
            return
        self.counters.errors += 1
        lost = isinstance(error, nats.errors.StaleConnectionError) or not self.client.is_connected
        handled = not lost  # then it comes out of a handler; else it is why the connection breaks or does not come back
        _log.log(
            logging.ERROR if handled else logging.INFO, "%s: %r", self.name, error, exc_info=error if handled else None
        )

    async def on_disconnected(self) -> None:
        """Note that the connection broke."""
        if self._attempts is None and not self._down.is_set():
            self.counters.disconnects += 1
            if self._closing is None:
                _log.warning("%s: disconnected from the server", self.name)
        self._up.clear()
        self._down.set()
        self.client.fail_waiters()

    async def on_reconnected(self) -> None:
        """Note that it is back, and tell those who asked."""
        self.counters.reconnects += 1
        self._back = self._loop.time()
        self._down.clear()
        self._up.set()
        _log.warning("%s: connected again", self.name)
        for callback in self.on_reconnect:
            self._loop.call_soon(callback)

    async def on_closed(self) -> None:
        """Note that it is closed for good: by `close`, or by a server that will not have it."""
        if self._closing is None and self._attempts is None and not self._closed.is_set():
            self.client.closed_because = f"the server closed the connection for good ({self.client.last_error})"
            if self._attempts is None:  # while connecting, the caller gets the reason as an error
                _log.error("%s: %s", self.name, self.client.closed_because)
        self._up.clear()
        self._down.set()
        self._closed.set()
        self.client.fail_waiters()

    async def establish(self, access: Access, seconds: float) -> Exception | None:
        """Make the first connection: one attempt on each server; return why there is none, or None."""
        client = self.client
        client.tls_wanted = access.tls
        try:
            async with asyncio.timeout(seconds):
                await client.connect(
                    list(access.urls),
                    name=self.name,
                    connect_timeout=cast(int, min(_ATTEMPT, seconds)),
                    max_reconnect_attempts=-1,
                    reconnect_to_server_handler=_next_server,
                    ping_interval=cast(int, _PING),
                    pending_size=32 * PENDING,  # `Client.publish` waits at PENDING; what nats-py would do is worse
                    flush_timeout=10.0,
                    error_cb=self.on_error,
                    disconnected_cb=self.on_disconnected,
                    reconnected_cb=self.on_reconnected,
                    closed_cb=self.on_closed,
                    **access.options,
                )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            failure: Exception = error
        except _AttemptFailed:
            failure = (self._attempts or [nats.errors.NoServersError()])[-1]
        else:
            if client.is_connected:
                self._attempts = None
                self._up.set()
                return None
            failure = nats.errors.UnexpectedEOF()  # nats-py takes the end of the stream for an answer to its CONNECT
        client.abort()  # nothing is to be sent any more, and a failed TLS handshake would be waited for
        await bounded(client.close(), _DROP)
        return failure


class _AttemptFailed(Exception):  # ends nats-py's connect(), which would go on for ever
    """No server was reached in one round."""


class _Direct:
    """Stands where nats-py takes a future for one answer, and hands every message on as it is read."""

    def __init__(self, deliver: Callable[[Msg], Any], connection: Connection) -> None:
        self._deliver, self._connection = deliver, connection

    def cancelled(self) -> bool:
        return False

    def set_result(self, message: Msg) -> None:
        try:
            self._deliver(message)
        except Exception:  # noqa: BLE001 - logged with its traceback; raised, it would end the read loop of the whole connection
            self._connection.counters.errors += 1
            _log.exception("%s: the handler of %s failed", self._connection.name, message.subject)


async def connect(
    url: str | Sequence[str] | None = None,
    *,
    tenant_id: str | None = None,
    credentials: Credentials | None = None,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    creds: str | Path | None = None,
    nkey_seed: str | Path | None = None,
    ca: str | Path | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    tls_hostname: str | None = None,
    name: str = "kit",
    connect_timeout: float = 5.0,
) -> Connection:
    """Connect to a NATS server as given by the arguments, else by the environment (see ``kit.nats.auth``).

    The first connection is made within ``connect_timeout`` seconds or refused with its reason; afterwards the client
    reconnects by itself, for ever, with a jittered backoff of up to 2 s.

    Args:
        url: one URL, several separated by commas, or a sequence of URLs; all of one cluster.
        tenant_id: whose account it is; the first tenant that connects to an account claims it.
        credentials: user and password in one, as the embedded server gives them.
        creds: path or text of a credentials file (JWT).
        nkey_seed: path of a seed file, or the seed.
        ca, cert, key: PEM files for TLS; with ``ca`` or ``tls://``, a server without TLS is refused.
        tls_hostname: name to expect in the certificate, where the URL has an address.
        name: shown in the server's monitoring and in log lines.

    Raises:
        ConnectError: no server answers, or it refuses; the message says what to do.
        AccountTaken: the account belongs to another tenant.
        ConfigurationError: arguments or variables that cannot work.
    """
    if tenant_id is not None:
        check_id(tenant_id)
    if credentials is not None:
        user, password = credentials.user, credentials.password
    access = resolve(
        Given(
            url=url, user=user, password=password, token=token, creds=creds, nkey_seed=nkey_seed,
            ca=ca, cert=cert, key=key, tls_hostname=tls_hostname,
        ),
        tenant_id=tenant_id,
    )  # fmt: skip
    if access.exposed:
        _access_log.warning(
            "the credentials (%s) and all messages may be sent unencrypted to %s: use tls://",
            access.who, ", ".join(access.exposed),
        )  # fmt: skip
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + connect_timeout, _BACKOFF[0]
    while True:
        connection = Connection(Client(), tenant_id=tenant_id, name=name)
        failure = await connection.establish(access, max(0.01, deadline - loop.time()))
        if failure is None:
            if tenant_id is not None:
                await _claim(connection, tenant_id, max(1.0, deadline - loop.time()))
            return connection
        if is_final(failure) or loop.time() + pause >= deadline:
            raise ConnectError(explain(failure, access, connect_timeout)) from None
        await asyncio.sleep(random.uniform(0.5, 1.0) * pause)
        pause = min(2 * pause, 0.5)


async def _claim(connection: Connection, tenant_id: str, seconds: float) -> None:
    """Make sure that the account belongs to this tenant before anything is sent or read."""
    from kit.nats.owner import claim  # it uses a connection's streams

    try:
        await claim(connection, tenant_id, seconds)
    except BaseException:
        await connection.close(timeout=1.0)
        raise


def _next_server(pool: list[PoolServer], _info: dict[str, Any]) -> tuple[PoolServer | None, float]:
    """Choose the server tried least, after a jittered backoff."""
    least = min(pool, key=lambda server: server.reconnects)
    first, longest = _BACKOFF
    return least, random.uniform(0.5, 1.0) * min(longest, first * 2 ** min(least.reconnects, 10))
