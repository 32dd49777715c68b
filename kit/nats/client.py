"""nats-py's client with its traps closed; everything of the kit that sends goes through it, JetStream included.

What is overridden, and why (each has a test that fails without it):

- ``publish``: a message whose headers and body exceed ``max_payload`` makes the server close the connection for good;
  a message for a dead connection goes into a buffer and seems sent. Both are refused before anything is written.
- ``_send_ping``: nats-py writes PING past its own buffer, so a ``flush()`` overtakes the SUB, UNSUB or PUB before it;
  and the PONG of a cancelled or timed-out ``flush()`` raises in the read loop, which then reads no more.
- ``_connect_command``: with ``tls://`` or a CA given, nats-py sends the password in clear to a server without TLS.
"""

from __future__ import annotations

import asyncio
from typing import Any

import nats.errors
from nats.aio.client import PING_PROTO
from nats.aio.client import Client as NatsClient

from kit.errors import Disconnected, PayloadTooLarge

_HEADER_FRAME = len(b"NATS/1.0\r\n") + len(b"\r\n")
_HEADER_LINE = len(b": ") + len(b"\r\n")


class Client(NatsClient):
    """A nats-py client that refuses what it could not send, and whose round trips are barriers."""

    def __init__(self) -> None:
        super().__init__()
        self.tls_wanted = False
        self.closed_because = ""
        self.refused_disconnected = 0
        self.refused_too_large = 0
        self._round_trips: set[asyncio.Future[Any]] = set()

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Publish, or say why not.

        Raises:
            Disconnected: the connection is down, draining or closed.
            PayloadTooLarge: headers and body together exceed the server's limit.
        """
        if not self.is_connected or self.is_draining_pubs:
            self.refused_disconnected += 1
            raise Disconnected(subject, reason=self.why_down())
        size = len(payload) + header_size(headers) if headers else len(payload)
        if size > self._max_payload:
            self.refused_too_large += 1
            raise PayloadTooLarge(subject, size=size, limit=self._max_payload)
        await super().publish(subject, payload, reply, headers)

    def why_down(self) -> str:
        """Say why nothing can be sent."""
        if self.is_closed:
            return self.closed_because or "the connection was closed"
        if self.is_draining:
            return "the connection is being closed"
        return "the connection to the server is down; it reconnects by itself"

    def lose_round_trips(self) -> None:
        """Fail the round trips that were under way when the connection broke: their PONG never comes."""
        for future in tuple(self._round_trips):
            if not future.done():
                future.set_exception(Disconnected("the server", reason="the connection broke before it answered"))
        self._round_trips.clear()

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        loop = asyncio.get_running_loop()
        pong: asyncio.Future[Any] = loop.create_future()  # nobody else has it, so nobody can cancel it
        if future is not None:
            waiting = future
            self._round_trips.add(waiting)
            waiting.add_done_callback(self._round_trips.discard)
            pong.add_done_callback(lambda _: _resolve(waiting))
        self._pongs.append(pong)
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    def _connect_command(self) -> bytes:
        if self.tls_wanted and not self._server_info.get("tls_required"):
            raise nats.errors.SecureConnWantedError
        return super()._connect_command()


def _resolve(waiting: asyncio.Future[Any]) -> None:
    if not waiting.done():
        waiting.set_result(True)


def header_size(headers: dict[str, str]) -> int:
    """Bytes that headers take on the wire, as nats-py writes them."""
    size = _HEADER_FRAME
    for key, value in headers.items():
        size += _HEADER_LINE + len(key) + (len(value) if value.isascii() else len(value.encode()))
    return size
