"""A connection says who it is, why it is not there, and what it did not send; each trap of nats-py is closed."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import nats
import nats.errors
import pytest
from nats.aio.msg import Msg
from standing_still import frozen

from kit.errors import (
    ConfigurationError,
    ConnectError,
    DeadlineExceeded,
    Disconnected,
    ForeignLoopError,
    NoResponders,
    PayloadTooLarge,
)
from kit.nats.client import PENDING, Client, encode_headers
from kit.nats.connection import Connection, connect
from kit.nats.server import Server


@pytest.fixture
async def own() -> AsyncIterator[Server]:
    """A server that the test may harm."""
    async with Server() as server:
        yield server


class WireServer:
    """Speaks just enough of the protocol to be connected to, and writes down the order of what it is sent."""

    def __init__(self, info: str = '{"server_id":"x","max_payload":1000,"headers":true}') -> None:
        self.info, self.lines = info, []

    async def __aenter__(self) -> WireServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"INFO {self.info}\r\n".encode())
        while line := await reader.readline():
            self.lines.append(line.split()[0].decode() if line.strip() else "")
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
        writer.close()


# --- the three verbs --------------------------------------------------------------------------------------------


async def echo(message: Msg) -> None:
    await message.respond(message.data)


async def test_a_request_is_answered(connection: Connection) -> None:
    await connection.subscribe("test.echo", echo)
    answers = await asyncio.gather(*(connection.request("test.echo", b"%d" % n, headers={"n": "1"}) for n in range(50)))
    assert [answer.data for answer in answers] == [b"%d" % n for n in range(50)]
    assert answers[0].headers == {"n": "1"}


async def test_a_plain_function_gets_messages_as_they_are_read(connection: Connection) -> None:
    heard: list[bytes] = []
    await connection.subscribe("test.direct", lambda message: heard.append(message.data))
    for number in range(10):
        await connection.publish("test.direct", b"%d" % number)
    await connection.flush()
    assert heard == [b"%d" % number for number in range(10)]


async def test_a_plain_function_that_fails_harms_nothing(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: Msg) -> None:
        raise ValueError("on purpose")

    await connection.subscribe("test.fails", fail)
    await connection.publish("test.fails", b"", confirm=5.0)
    await connection.flush()
    assert connection.counters.errors == 1
    assert "test.fails" in caplog.text


async def test_a_coroutine_that_fails_is_counted_and_logged(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(message: Msg) -> None:
        raise ValueError("on purpose")

    await connection.subscribe("test.fails", fail)
    await connection.publish("test.fails", b"", confirm=5.0)
    await connection.flush()
    assert connection.counters.errors == 1
    assert "on purpose" in caplog.text


async def test_an_object_may_handle_messages(connection: Connection) -> None:
    class Echo:
        async def __call__(self, message: Msg) -> None:
            await message.respond(message.data)

    await connection.subscribe("test.object", Echo())
    assert (await connection.request("test.object", b"x")).data == b"x"


async def test_nobody_serves(connection: Connection) -> None:
    with pytest.raises(NoResponders, match=r"nobody serves test\.nobody"):
        await connection.request("test.nobody", b"")


async def test_silence_ends_at_the_deadline_and_a_late_answer_is_counted(connection: Connection) -> None:
    held: list[Msg] = []
    await connection.subscribe("test.silent", held.append)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
        await connection.request("test.silent", b"", timeout=0.05)
    await connection.publish(held[0].reply, b"too late", confirm=5.0)
    await connection.flush()
    assert connection.counters.late_replies == 1


async def test_the_second_of_two_answers_is_ignored(connection: Connection) -> None:
    async def twice(message: Msg) -> None:
        await message.respond(b"first")
        await message.respond(b"second")

    await connection.subscribe("test.twice", twice)
    assert (await connection.request("test.twice", b"")).data == b"first"
    await connection.flush()
    assert connection.counters.errors == 0


async def test_a_listener_hears_until_it_is_closed(connection: Connection) -> None:
    heard: list[bytes] = []
    listener = await connection.listen(lambda message: heard.append(message.data))
    await connection.publish(listener.subject, b"1", confirm=5.0)
    await connection.publish(listener.subject, b"2", confirm=5.0)
    listener.close()
    await connection.publish(listener.subject, b"3", confirm=5.0)
    await connection.flush()
    assert heard == [b"1", b"2"]
    assert connection.counters.late_replies == 1


async def test_subjects_and_headers_that_cannot_be_are_refused(connection: Connection) -> None:
    for subject in ("", "a b", "a\r\nPUB x 0\r\n"):
        with pytest.raises(ConfigurationError):
            await connection.publish(subject, b"")
        with pytest.raises(ConfigurationError):
            await connection.subscribe(subject, echo)
    with pytest.raises(ConfigurationError, match="no header name"):
        await connection.publish("test.headers", b"", headers={"a: b\r\nc": "d"})
    assert encode_headers({"a": " b\r\nc ", "d": "é"}) == "NATS/1.0\r\na: b  c\r\nd: é\r\n\r\n".encode()


async def test_headers_arrive_as_they_were_sent(connection: Connection) -> None:
    headers = {"traceparent": "00-" + "a" * 32, "x-text": "grün: ja", "empty": ""}
    heard: list[Msg] = []
    await connection.subscribe("test.headers", heard.append)
    await connection.publish("test.headers", b"body", headers=headers, confirm=5.0)
    await connection.flush()
    assert (heard[0].headers, heard[0].data) == (headers, b"body")


# --- traps ------------------------------------------------------------------------------------------------------


async def test_flush_is_a_barrier() -> None:
    async def handler(message: Msg) -> None:
        return

    async with WireServer() as wire, await connect(wire.url) as connection:
        del wire.lines[:]
        subscription = await connection.subscribe("test.order", handler)
        assert wire.lines == ["SUB", "PING"]
        await connection.publish("test.order", b"", confirm=1.0)
        assert wire.lines[2:] == ["PUB", "", "PING"]
        await subscription.drain()
        assert wire.lines[5:] == ["UNSUB", "PING"]


async def test_flush_of_bare_nats_py_is_none() -> None:
    """The reason for the override; when this fails, nats-py has mended it."""
    async with WireServer() as wire:
        bare = await nats.connect(wire.url)
        del wire.lines[:]
        await bare.subscribe("test.order")
        await bare.flush()
        await bare.flush()
        assert wire.lines == ["PING", "SUB", "PING"]
        await bare.close()


async def test_a_flush_that_was_given_up_harms_nothing(own: Server) -> None:
    async with await own.connect("acme") as connection:
        await connection.subscribe("test.echo", echo)
        async with frozen(own):
            with pytest.raises(DeadlineExceeded):
                await connection.flush(0.05)
            cancelled = asyncio.ensure_future(connection.flush())
            await asyncio.sleep(0.02)
            cancelled.cancel()
        await connection.flush()  # with bare nats-py, the late PONG has ended the read loop
        assert (await connection.request("test.echo", b"alive")).data == b"alive"
        assert connection.counters.disconnects == 0


async def test_headers_and_body_together_are_held_to_the_limit(connection: Connection) -> None:
    headers = {"a": "b"}
    room = connection.max_payload - len(encode_headers(headers))
    await connection.publish("test.large", b"x" * room, headers=headers, confirm=5.0)
    with pytest.raises(PayloadTooLarge, match="claim check") as caught:
        await connection.publish("test.large", b"x" * (room + 1), headers=headers)
    assert caught.value.size == connection.max_payload + 1
    with pytest.raises(PayloadTooLarge):
        await connection.request("test.large", b"x" * (room + 1), headers=headers)
    with pytest.raises(PayloadTooLarge):  # JetStream goes through the same gate
        await connection.jetstream().publish("test.large", b"x" * (room + 1), headers=headers)
    await connection.flush()
    assert connection.counters.disconnects == 0
    assert connection.client.refused == 3


async def test_while_the_server_is_down_nothing_is_taken(own: Server) -> None:
    async with await own.connect("acme") as connection:
        back = asyncio.Event()
        connection.on_reconnect.append(back.set)
        await connection.subscribe("test.down", echo)
        await connection.jetstream().account_info()  # opens the inbox of nats-py itself
        await own.halt(kill=True)
        await connection.wait_disconnected(5.0)
        assert connection.state == "reconnecting"
        for send in (
            connection.publish("test.down", b"lost?"),
            connection.request("test.down", b"lost?", timeout=0.2),
            connection.jetstream().publish("test.down", b"lost?"),
            connection.flush(),
            connection.subscribe("test.down", echo),
        ):
            with pytest.raises(Disconnected, match="nothing was sent") as caught:
                await send
            assert not caught.value.sent
        assert connection.client.pending_data_size == 0
        with pytest.raises(Disconnected):
            await connection.wait_connected(0.05)
        await own.start()
        await connection.wait_connected(5.0)
        await asyncio.wait_for(back.wait(), 5.0)
        assert (await connection.request("test.down", b"again")).data == b"again"
        assert (connection.counters.disconnects, connection.counters.reconnects) == (1, 1)


async def test_what_was_not_confirmed_when_the_connection_broke_is_said(own: Server) -> None:
    async with await own.connect("acme") as connection:
        async with frozen(own):
            sending = asyncio.ensure_future(connection.publish("test.confirm", b"x", confirm=10.0))
            await asyncio.sleep(0.05)
            own.crash()
        with pytest.raises(Disconnected, match=r"sent to test\.confirm may be lost") as caught:
            await sending
        assert caught.value.sent


async def test_a_publisher_waits_for_room_and_not_for_ever(own: Server) -> None:
    async with await own.connect("acme") as connection:
        body = b"x" * 1_000_000

        async def flood() -> None:
            while True:
                await connection.publish("test.flood", body)

        async with frozen(own):
            flooding = asyncio.ensure_future(flood())
            await asyncio.sleep(0.3)
            assert not flooding.done()
            assert connection.client.pending_data_size < PENDING + 2 * len(body)
            own.crash()
        with pytest.raises(Disconnected):
            await asyncio.wait_for(flooding, 5.0)
        await connection.wait_connected(5.0)


async def test_what_one_turn_publishes_is_written_at_once_and_in_order(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    await connection.subscribe("test.turn", lambda message: heard.append(message.data))
    writer = connection.client._transport._io_writer  # type: ignore[union-attr]
    write, writes = writer.write, []

    def count(data: bytes) -> None:
        writes.append(len(data))
        write(data)

    monkeypatch.setattr(writer, "write", count)
    for number in range(100):
        await connection.publish("test.turn", b"%d" % number)
    assert writes == []
    await connection.flush()
    assert len(writes) == 1
    assert heard == [b"%d" % number for number in range(100)]


async def test_more_than_the_socket_takes_is_written_in_order_too(own: Server) -> None:
    async with await own.connect("acme") as connection, await own.connect("acme") as other:
        heard: list[int] = []
        await other.subscribe("test.much", lambda message: heard.append(int(message.data[:4])))
        body = b"x" * 500_000

        async def publish() -> None:
            for number in range(40):
                await connection.publish("test.much", b"%04d" % number + body)
                await asyncio.sleep(0)

        async with frozen(own):
            publishing = asyncio.ensure_future(publish())
            await asyncio.sleep(0.2)
            assert connection.client.pending_data_size > 0
        await publishing
        await connection.flush()
        await other.flush()
        assert heard == list(range(40))


async def test_a_slow_consumer_is_counted(connection: Connection) -> None:
    released = asyncio.Event()

    async def slow(message: Msg) -> None:
        await released.wait()

    await connection.subscribe("test.slow", slow, pending_messages=2)
    for _ in range(10):
        await connection.publish("test.slow", b"x")
    await connection.flush()
    released.set()
    assert 7 <= connection.counters.slow_consumers <= 8
    assert connection.counters.errors == 0


async def test_another_event_loop_is_refused_at_once(connection: Connection) -> None:
    def elsewhere() -> None:
        for use in (connection.publish("a", b""), connection.request("a", b""), connection.flush()):
            with pytest.raises(ForeignLoopError, match="another event loop"):
                asyncio.run(use)

    await asyncio.to_thread(elsewhere)


async def test_an_unforeseen_error_while_reading_reconnects(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await own.connect("acme") as connection:
        await connection.subscribe("test.echo", echo)

        async def broken() -> None:
            raise RuntimeError("on purpose")

        monkeypatch.setattr(connection.client, "_process_pong", broken)
        with pytest.raises(Disconnected):
            await connection.flush()
        monkeypatch.undo()
        await connection.wait_connected(5.0)
        assert (await connection.request("test.echo", b"alive")).data == b"alive"


async def test_an_interrupt_while_reading_reconnects(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt(BaseException):
        """Stands for KeyboardInterrupt, which would end the test's own loop."""

    async with await own.connect("acme") as connection:

        async def interrupted(data: bytes) -> None:
            raise Interrupt

        monkeypatch.setattr(connection.client._ps, "parse", interrupted)
        with pytest.raises(Disconnected):
            await connection.flush()
        monkeypatch.undo()
        await connection.wait_connected(5.0)
        await connection.flush()


async def test_a_subscription_that_the_server_never_saw_is_undone(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.nats.connection._ATTEMPT", 0.05)
    async with await own.connect("acme") as connection:
        async with frozen(own):
            with pytest.raises(DeadlineExceeded):
                await connection.subscribe("test.never", echo)
        with pytest.raises(NoResponders):
            await connection.request("test.never", b"")


async def test_a_server_that_closes_for_good_is_quoted(own: Server, caplog: pytest.LogCaptureFixture) -> None:
    connection = await own.connect("acme")
    connection.client._max_payload = 10**9  # the gate left open
    await connection.publish("test.large", b"x" * (1024 * 1024 + 1))
    await connection.wait_disconnected(5.0)
    with pytest.raises(Disconnected):
        await connection.wait_connected(5.0)
    with pytest.raises(Disconnected, match=r"closed the connection for good .*maximum payload"):
        await connection.publish("test.large", b"x")
    assert connection.state == "closed"
    await connection.wait_closed()
    await connection.close()


# --- reconnecting and closing -----------------------------------------------------------------------------------


async def test_a_request_under_way_survives_a_short_break(own: Server) -> None:
    async with await own.connect("acme") as connection, await own.connect("acme") as worker:
        held: list[Msg] = []
        await worker.subscribe("test.long", held.append)
        asking = asyncio.ensure_future(connection.request("test.long", b"x", timeout=10.0))
        await asyncio.sleep(0.05)
        own.crash()
        await asyncio.gather(connection.wait_disconnected(5.0), worker.wait_disconnected(5.0))
        await asyncio.gather(connection.wait_connected(5.0), worker.wait_connected(5.0))
        await connection.flush()
        await worker.publish(held[0].reply, b"answer", confirm=5.0)
        assert (await asking).data == b"answer"


def test_the_backoff_grows_is_jittered_and_bounded() -> None:
    from nats.aio.client import Server as PoolServer

    from kit.nats.connection import _next_server

    def pauses(reconnects: int) -> list[float]:
        pool = [PoolServer(uri=None, reconnects=reconnects), PoolServer(uri=None, reconnects=reconnects + 1)]
        chosen = [_next_server(pool, {}) for _ in range(50)]
        assert all(server is pool[0] for server, _ in chosen)
        return [pause for _, pause in chosen]

    assert max(pauses(0)) <= 0.05
    assert min(pauses(3)) >= 0.2
    assert len(set(pauses(3))) > 25
    assert max(pauses(1000)) <= 2.0


async def test_closing_waits_for_the_handlers_and_not_for_ever(own: Server) -> None:
    done: list[bytes] = []

    async def slow(message: Msg) -> None:
        await asyncio.sleep(0.1 if message.data == b"slow" else 60)
        done.append(message.data)

    for body, expected in ((b"slow", [b"slow"]), (b"endless", [])):
        connection = await own.connect("acme")
        await connection.subscribe("test.slow", slow)
        await connection.publish("test.slow", body, confirm=5.0)
        await connection.flush()
        before = time.monotonic()
        await asyncio.gather(connection.close(0.5), connection.close(0.5))
        assert time.monotonic() - before < 3.0
        assert (done, connection.state) == (expected, "closed")
        done.clear()
        with pytest.raises(Disconnected, match="the connection was closed"):
            await connection.publish("test.slow", b"")


async def test_closing_is_bounded_when_nobody_answers(own: Server, caplog: pytest.LogCaptureFixture) -> None:
    connection = await own.connect("acme")
    async with frozen(own):
        await connection.publish("test.unsent", b"x")
        before = time.monotonic()
        await connection.close(0.3)
        assert time.monotonic() - before < 2.5
    assert connection.state == "closed"


async def test_closing_while_disconnected_is_at_once(own: Server) -> None:
    connection = await own.connect("acme")
    with pytest.raises(DeadlineExceeded):
        await connection.wait_closed(0.01)
    await own.halt(kill=True)
    await connection.wait_disconnected(5.0)
    await connection.client._send_command(b"PUB test.unsent 1\r\nx\r\n")  # as if taken just before the break
    before = time.monotonic()
    await connection.close()
    assert time.monotonic() - before < 1.5
    assert "closed" in repr(connection)
    assert connection.counters.unsent_bytes == 22
    with pytest.raises(Disconnected):
        await connection.wait_connected()


async def test_waiting_for_a_break_that_does_not_come_ends(connection: Connection) -> None:
    with pytest.raises(DeadlineExceeded):
        await connection.wait_disconnected(0.02)


# --- the first connection ---------------------------------------------------------------------------------------


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"nats://user:secret-word@127.0.0.1:{reserved.getsockname()[1]}"
        before = time.monotonic()
        with pytest.raises(ConnectError, match=r"nothing listens there.*kit server") as caught:
            await connect(url, connect_timeout=0.2)
        assert time.monotonic() - before < 1.0
        assert "secret-word" not in str(caught.value)
    assert not caplog.records


async def test_a_server_that_comes_up_in_time_is_reached() -> None:
    server = Server()
    await server.start()
    url, credentials = server.url, server.credentials("acme")
    await server.halt()
    connecting = asyncio.ensure_future(connect(url, credentials=credentials, connect_timeout=10.0))
    await asyncio.sleep(0.1)
    async with server, await connecting as connection:
        await connection.flush()
        assert connection.counters.disconnects == 0


async def test_one_server_of_several_is_enough(server: Server) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        dead = f"nats://127.0.0.1:{reserved.getsockname()[1]}"
        for urls in ([dead, server.url], f"{dead}, {server.url}"):
            async with await connect(urls, credentials=server.credentials("acme")) as connection:
                await connection.flush()


async def test_silence_is_not_waited_for_long() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        before = time.monotonic()
        with pytest.raises(ConnectError, match=r"no answer within 0\.3 s"):
            await connect(f"nats://127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.3)
        assert time.monotonic() - before < 2.0


async def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ConnectError, match="host name is unknown"):
        await connect("nats://no-such-host.invalid:4222")


async def test_something_else_than_a_nats_server_is_said() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    web = await asyncio.start_server(serve, "127.0.0.1", 0)
    with pytest.raises(ConnectError, match="expecting INFO"):
        await connect(f"nats://127.0.0.1:{web.sockets[0].getsockname()[1]}", connect_timeout=0.2)
    web.close()


async def test_the_end_of_the_stream_is_no_answer() -> None:
    """nats-py takes it for one, and connect() returns without a connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x"}\r\n')
        await reader.readline()
        writer.close()

    rude = await asyncio.start_server(serve, "127.0.0.1", 0)
    with pytest.raises(ConnectError, match="closed the connection during the handshake"):
        await connect(f"nats://127.0.0.1:{rude.sockets[0].getsockname()[1]}", connect_timeout=0.2)
    rude.close()


async def test_a_tenant_id_that_is_none_is_refused(server: Server) -> None:
    with pytest.raises(ConfigurationError, match="tenant_id"):
        await connect(server.url, tenant_id="No Tenant")


async def test_errors_while_reconnecting_are_counted_and_quiet(own: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="kit.nats")
    async with await own.connect("acme") as connection:
        await own.halt(kill=True)
        await connection.wait_disconnected(5.0)
        await asyncio.sleep(0.3)
        assert connection.counters.errors >= 2
        with pytest.raises(Disconnected, match=r"is down \(.*\); it reconnects by itself"):
            await connection.publish("test.down", b"")
        await own.start()
        await connection.wait_connected(5.0)
    assert [record.getMessage() for record in caplog.records] == [
        "kit: disconnected from the server", "kit: connected again",
    ]  # fmt: skip


# --- the import -------------------------------------------------------------------------------------------------


def test_importing_nats_leaves_aiohttp_for_later() -> None:
    code = (
        "import sys, kit.nats.connection, nats.aio.transport as t; assert 'aiohttp' not in sys.modules; "
        "assert t.aiohttp and t.aiohttp.ClientSession and 'aiohttp' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_thread_may_import_what_is_left_for_later() -> None:
    from kit.nats.lazy import _Absent

    finder = _Absent("aiohttp")
    with pytest.raises(ModuleNotFoundError):
        finder.find_spec("aiohttp")
    assert finder.find_spec("aiohttp.web") is None
    finder._thread += 1
    assert finder.find_spec("aiohttp") is None


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\ntraceparent: 00-ab-cd-01\r\n\r\n",
        b"NATS/1.0\r\na:1\r\nb:\t2 \r\nc: x: y\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n: no name\r\ntwo words: x\r\nd: 4\r\n\r\n",
        b"NATS/1.0\r\nna\xc3\xafve: x\r\nvalue: na\xc3\xafve\r\nbroken: \xff\r\nempty:\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n",
    ],
)
async def test_headers_are_decoded_as_by_nats_py(block: bytes) -> None:
    client, got = Client(), []

    class Taker:
        def cancelled(self) -> bool:
            return False

        def set_result(self, message: Msg) -> None:
            got.append(message)

    client.takers[1] = Taker()
    await client._process_msg(1, b"subject", b"reply", b"data", block)
    expected = await nats.NATS()._process_headers(block)
    expected = {name: value for name, value in (expected or {}).items() if name}
    assert (got[0].headers or {}) == expected
    assert (got[0].subject, got[0].reply, got[0].data) == ("subject", "reply", b"data")
