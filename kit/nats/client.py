"""nats-py's client with its traps closed; everything of the kit that sends goes through it, JetStream included.

What is overridden, and why (each has a test that fails without it):

- ``publish``: a message whose headers and body exceed ``max_payload`` makes the server close the connection for good,
  and so does a subject that with its reply exceeds 4 KB (in ``subscribe``: with its queue);
  a message for a dead connection goes into a buffer and seems sent; a publisher that waits for room in that buffer
  waits for ever when the connection is closed. All three are errors here. Headers are encoded once, for size and wire,
  and what one turn of the event loop publishes is written in the next one, without waking a task for it.
- ``_send_ping``: nats-py writes PING past its own buffer, so that a ``flush()`` overtakes the SUB, UNSUB or PUB before
  it; and the PONG of a cancelled or timed-out ``flush()`` raises in the read loop, which then reads no more.
- ``_read_loop``: an unforeseen error ends it and leaves the connection deaf, yet "connected"; it reconnects here.
- ``_process_op_err``: before it reconnects, nats-py waits until a server that says nothing has read what is unsent.
- ``_process_msg``: what goes straight to its taker needs none of nats-py's queues, limits and flow control.
- ``_connect_command``: with ``tls://`` or a CA given, nats-py sends the password in clear to a server without TLS.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

import nats.errors
from nats.aio.client import PING_PROTO
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol.command import hpub_cmd, pub_cmd

from kit.errors import SURROGATE, ConfigurationError, Disconnected, PayloadTooLarge

PENDING = 2 * 1024 * 1024  # bytes; publishers wait while more than this is unsent

_CONTROL_LINE = 4096  # bytes. Source: nats-server, `max_control_line`: a longer one closes the connection for good
_NUMBERS = 32  # bytes of it for everything but subject and queue
_LONGEST_HEADER = 16 * 1024  # characters of one value
_SHOWN = 60  # characters of a subject that is refused

_FULL = 1024 * 1024  # bytes that wait for the socket; beyond, nats-py's flusher waits for room

_NO_SUBJECT = re.compile(r"[ \t\r\n]")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # Source: RFC 7230, token
_PLAIN_HEADERS = b"NATS/1.0\r\n"  # else a status follows
_LINE_ENDS = str.maketrans("\r\n", "  ")


class Direct(Protocol):
    """Stands where nats-py takes a future for one answer, and takes every message as it is read."""

    def cancelled(self) -> bool:
        """Say that messages are still wanted."""

    def set_result(self, message: Msg) -> None:
        """Take a message; what is raised here ends the read loop."""


class Client(NatsClient):
    """A nats-py client that refuses what it could not send, and whose round trips are barriers."""

    def __init__(self) -> None:
        super().__init__()
        self.tls_wanted = False
        self.closed_because = ""
        self.trouble: Callable[[], str] = str  # why this program's own server cannot work
        self.refused = 0  # publishes that were not taken, for whatever reason
        self.takers: dict[int, Direct] = {}  # by the subscription's id
        self._writing = False
        self._waiters: set[asyncio.Future[Any]] = set()

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish, or raise.

        Raises:
            Disconnected: the connection is down or closed.
            PayloadTooLarge: headers and body together exceed the server's limit.
            ConfigurationError: a subject, a reply subject or a header is invalid or too long.
        """
        if not self.is_connected or self.is_draining_pubs:
            self.refused += 1
            raise Disconnected(subject, reason=self.why_down())
        head = encode_headers(headers) if headers else b""
        self.check_size(subject, len(head) + len(payload))
        frame = self._frame(subject, reply, head, payload)
        if self._pending_data_size > PENDING:
            await self._wait_for_room(subject)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        self._pending.append(frame)
        self._pending_data_size += len(frame)
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_soon(self._write)

    def _frame(self, subject: str, reply: str, head: bytes, payload: bytes) -> bytes:
        """Return the bytes of a message; refuse a control line for which the server would close the connection."""
        reason = "empty, or contains white space"
        if subject and not _NO_SUBJECT.search(subject) and not (reply and _NO_SUBJECT.search(reply)):
            try:
                frame = hpub_cmd(subject, reply, head, payload) if head else pub_cmd(subject, reply, payload)
            except UnicodeEncodeError:
                reason = "not valid Unicode"
            else:
                if len(frame) - len(head) - len(payload) <= _CONTROL_LINE:
                    return frame
                reason = f"too long: together they may have about {_CONTROL_LINE - _NUMBERS:,} bytes"
        self.refused += 1
        raise ConfigurationError(f"{_shown(subject)} with reply {_shown(reply)} is not a valid subject: {reason}")

    async def subscribe(self, subject: str, queue: str = "", *args: Any, **kwargs: Any) -> Subscription:
        """Subscribe as nats-py does, or raise.

        Raises:
            ConfigurationError: subject and queue are too long, or not valid Unicode.
        """
        named = subject + queue
        if SURROGATE.search(named) or len(named.encode()) > _CONTROL_LINE - _NUMBERS:
            raise ConfigurationError(
                f"cannot subscribe to {_shown(subject)} with queue {_shown(queue)}: "
                f"together they may have {_CONTROL_LINE - _NUMBERS:,} bytes of valid Unicode"
            )
        return await super().subscribe(subject, queue, *args, **kwargs)

    def _write(self) -> None:
        """Write at once what this turn of the loop has published.

        nats-py wakes a task for it, which costs a tenth of a round trip. That task is still left what may have to wait:
        for room in the socket, for a connection that is coming back, for a websocket.
        """
        self._writing = False
        transport = self._transport
        writer = transport._io_writer if isinstance(transport, TcpTransport) else None
        if not self._pending or not self.is_connected:
            return
        if writer is None or writer.transport.get_write_buffer_size() > _FULL:
            if self._flush_queue is not None and self._flush_queue.empty():
                self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
            return
        frames, self._pending, self._pending_data_size = self._pending, [], 0
        writer.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def check_size(self, subject: str, size: int) -> None:
        """Refuse a message that the server would not only refuse, but close the connection for.

        Raises:
            PayloadTooLarge: ``size`` (bytes, headers and body together) exceeds the server's limit.
        """
        if size > self._max_payload:
            self.refused += 1
            raise PayloadTooLarge(subject, size=size, limit=self._max_payload)

    @property
    def server_id(self) -> str:
        """The id by which the system account addresses the server that this client is connected to."""
        return str(self._server_info.get("server_id", ""))

    @property
    def server_version(self) -> tuple[int, int]:
        """Major and minor version of the server that this client is connected to; (0, 0) when it says none."""
        found = re.match(r"\A(\d+)\.(\d+)", str(self._server_info.get("version", "")))
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def why_down(self) -> str:
        """Say why nothing can be sent."""
        if trouble := self.trouble():
            return trouble
        if self.is_closed:
            return self.closed_because or "the connection was closed"
        if self.is_draining:
            return "the connection is being closed"
        seen = f" ({self.last_error})" if self.last_error is not None else ""
        return f"the connection to the server is down{seen}; it reconnects by itself"

    def fail_waiters(self) -> None:
        """Fail the round trips that were under way when the connection broke: their PONG never comes."""
        for future in tuple(self._waiters):
            if not future.done():
                future.set_exception(
                    Disconnected("the server", reason="the connection broke before it answered", sent=True)
                )

    def abort(self) -> None:
        """Drop the socket, unsent bytes included."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    def _waiter(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._watch(future)
        return future

    def _watch(self, future: asyncio.Future[Any]) -> None:
        self._waiters.add(future)
        future.add_done_callback(self._waiters.discard)

    @property
    def has_room(self) -> bool:
        """Whether a message can be published at once."""
        return self.is_connected and self._pending_data_size <= PENDING

    async def _wait_for_room(self, subject: str) -> None:
        taken = self._waiter()  # resolved by nats-py's flusher, or failed by `fail_waiters`
        assert self._flush_queue is not None
        await self._flush_queue.put(taken)
        with suppress(Disconnected):
            await taken
        if not self.is_connected:
            raise Disconnected(subject, reason=self.why_down())

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        pong: asyncio.Future[Any] = asyncio.get_running_loop().create_future()  # nobody else's, so nobody cancels it
        if future is not None:
            caller = future
            self._watch(caller)
            pong.add_done_callback(lambda _: None if caller.done() else caller.set_result(True))
        self._pongs.append(pong)
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _read_loop(self) -> None:
        try:
            await super()._read_loop()
        finally:  # an interrupt of the kernel may be raised in here as well
            task = asyncio.current_task()
            if self.is_connected and not self.is_draining and task is not None and not task.cancelling():
                await self._process_op_err(nats.errors.StaleConnectionError())

    async def _process_op_err(self, error: Exception) -> None:
        if isinstance(error, nats.errors.StaleConnectionError):
            self.abort()
        await super()._process_op_err(error)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        self._pings_outstanding = 0  # a server that sends is alive; its PONG may be queued behind data
        taker = self.takers.get(sid)
        if taker is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        decoded = None
        if headers:
            plain = headers.startswith(_PLAIN_HEADERS)
            decoded = decode_headers(headers) if plain else await self._process_headers(headers)
        taker.set_result(Msg(self, subject.decode(), reply.decode(), data, decoded, None, False, sid))

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self.takers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    def _connect_command(self) -> bytes:
        if self.tls_wanted and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()


def encode_headers(headers: dict[str, str]) -> bytes:
    """Encode message headers; line breaks in a value become spaces, as in nats-py.

    Raises:
        ConfigurationError: a name is invalid, or a value is too long or not valid Unicode.
    """
    lines = ["NATS/1.0"]
    for name, value in headers.items():
        if len(value) > _LONGEST_HEADER:
            raise ConfigurationError(
                f"header {name[:_SHOWN]!r} is refused: {len(value):,} characters, the limit is {_LONGEST_HEADER:,}"
            )
        if "\n" in value or "\r" in value:
            value = value.translate(_LINE_ENDS)
        lines.append(_header_prefix(name) + value.strip())
    lines.append("\r\n")
    try:
        return "\r\n".join(lines).encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"one of the headers {', '.join(headers)} is refused: {error.reason}") from None


def carries(name: str, value: str) -> bool:
    """Return whether a foreign header can be sent on."""
    return len(value) <= _LONGEST_HEADER and _HEADER_NAME.fullmatch(name) is not None


def decode_headers(block: bytes) -> dict[str, str]:
    """Decode message headers as nats-py does: what is no header is passed over, what is no UTF-8 is marked."""
    headers: dict[str, str] = {}
    for line in block.decode("utf-8", "replace").split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon and (known := _header_name(name)):
            headers[known] = value.strip()
    return headers


def _shown(subject: str) -> str:
    return repr(subject) if len(subject) <= _SHOWN else f"{subject[:_SHOWN]!r}…"


@lru_cache(maxsize=256)
def _header_name(name: str) -> str:
    """Return a header's name, or nothing where it cannot be one."""
    name = name.strip()
    return name if name.isascii() and not any(letter.isspace() for letter in name) else ""


@lru_cache(maxsize=256)
def _header_prefix(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no header name: ASCII letters, digits and !#$%&'*+-.^_`|~ only")
    return f"{name}: "
