"""A connection sends, asks and subscribes, and says what it could not do."""

from __future__ import annotations

import os

import pytest

from kit.errors import DeadlineExceeded, NoResponders, PayloadTooLarge
from kit.nats.connection import Connection
from kit.nats.server import Server


async def test_a_request_is_answered(connection: Connection) -> None:
    async def handler(message: object) -> None:
        await message.respond(b"pong")  # type: ignore[attr-defined]

    await connection.subscribe("test.ping", handler)
    assert (await connection.request("test.ping", b"ping")).data == b"pong"


async def test_nobody_serves(connection: Connection) -> None:
    with pytest.raises(NoResponders):
        await connection.request("test.nobody", b"")


async def test_silence_ends_at_the_deadline(connection: Connection) -> None:
    async def handler(message: object) -> None:
        return

    await connection.subscribe("test.silent", handler)
    with pytest.raises(DeadlineExceeded):
        await connection.request("test.silent", b"", timeout=0.1)


async def test_too_large_is_refused_and_the_connection_lives(connection: Connection) -> None:
    with pytest.raises(PayloadTooLarge):
        await connection.publish("test.large", b"x" * connection.max_payload, headers={"a": "b"})
    await connection.flush()
    assert connection.counters.disconnects == 0


async def test_reconnects_by_itself(server: Server, connection: Connection) -> None:
    os.kill(server.pid, 9)
    await connection._down.wait()
    await connection.wait_connected(5.0)
    await connection.flush()
    assert connection.counters.reconnects == 1
