"""What the bus is measured against: a raw socket, bare nats-py, FastStream. Each answers a request with what came.

Every peer has two connections, one that asks and one that answers, as the kit's bus has.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

SUBJECT = "peer.echo"
JOBS = "peer.jobs"
STREAM = "PEER_JOBS"
SECONDS = 10.0  # for anything that does not come

Connect = Callable[..., Awaitable[Any]]


class Peer(Protocol):
    """Asks on one connection and answers on another."""

    async def ask(self, payload: bytes) -> bytes:
        """Send a request and return the answer."""


class Count:
    """Waits until so many were handled."""

    def __init__(self) -> None:
        self.seen = 0
        self._goal, self._reached = 0, asyncio.Event()

    def expect(self, more: int) -> None:
        """Begin to wait for so many more."""
        self.seen, self._goal = 0, more
        self._reached.clear()

    def add(self) -> None:
        """Note that one was handled."""
        self.seen += 1
        if self.seen >= self._goal:
            self._reached.set()

    async def reached(self) -> int:
        """Return how many were handled, once they all were."""
        async with asyncio.timeout(SECONDS):
            await self._reached.wait()
        return self.seen


class _Wire(asyncio.Protocol):
    """Speaks as much of the NATS client protocol as a request needs: INFO, CONNECT, PING, SUB, PUB, MSG.

    Source: https://docs.nats.io/reference/reference-protocols/nats-protocol
    """

    def __init__(self, user: str, password: str) -> None:
        self._login = json.dumps({"verbose": False, "user": user, "pass": password, "lang": "raw", "version": "0"})
        self._buffer = b""
        self.transport: asyncio.Transport
        self.deliver: Callable[[bytes, bytes, bytes], None] = lambda subject, reply, payload: None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(f"CONNECT {self._login}\r\nPING\r\n".encode())

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        at = 0
        while (end := buffer.find(b"\r\n", at)) >= 0:
            line, begin = buffer[at:end], end + 2
            if line.startswith(b"MSG "):
                words = line.split()
                size = int(words[-1])
                if len(buffer) < begin + size + 2:
                    break
                self.deliver(words[1], words[3] if len(words) == 5 else b"", buffer[begin : begin + size])
                begin += size + 2
            elif line == b"PONG" and not self.ready.done():
                self.ready.set_result(None)
            elif line == b"PING":
                self.transport.write(b"PONG\r\n")
            at = begin
        self._buffer = buffer[at:]

    async def barrier(self) -> None:
        """Wait until the server knows all that was sent."""
        self.ready = asyncio.get_running_loop().create_future()
        self.transport.write(b"PING\r\n")
        await self.ready


class RawSocket:
    """The limit: two asyncio sockets, no client library, no checks, no headers, no deadlines."""

    def __init__(self, asking: _Wire, answering: _Wire) -> None:
        self._asking, self._answering = asking, answering
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._serial = 0

    @classmethod
    async def open(cls, url: str, user: str, password: str, stack: AsyncExitStack) -> RawSocket:
        """Connect, and begin to answer."""
        where, loop = urlsplit(url), asyncio.get_running_loop()
        host, port = where.hostname or "127.0.0.1", where.port or 4222
        wires = []
        for _ in range(2):
            transport, wire = await loop.create_connection(lambda: _Wire(user, password), host, port)
            stack.callback(transport.close)
            await wire.ready
            wires.append(wire)
        peer = cls(*wires)
        wires[0].deliver, wires[1].deliver = peer._answered, peer._echo
        wires[0].transport.write(b"SUB raw.inbox.* 1\r\n")
        wires[1].transport.write(b"SUB raw.echo 1\r\n")
        await wires[0].barrier()
        await wires[1].barrier()
        return peer

    def _echo(self, subject: bytes, reply: bytes, payload: bytes) -> None:
        self._answering.transport.write(b"PUB %b %d\r\n%b\r\n" % (reply, len(payload), payload))

    def _answered(self, subject: bytes, reply: bytes, payload: bytes) -> None:
        self._waiting.pop(subject).set_result(payload)

    async def ask(self, payload: bytes) -> bytes:
        """Send a request and return the answer."""
        self._serial += 1
        inbox = b"raw.inbox.%d" % self._serial
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[inbox] = answer
        self._asking.transport.write(b"PUB raw.echo %b %d\r\n%b\r\n" % (inbox, len(payload), payload))
        return await answer


class BareNats:
    """nats-py as its documentation shows it: bytes in, bytes out; jobs by a work queue that is pulled."""

    def __init__(self, asking: Any, answering: Any) -> None:
        self._asking, self._answering = asking, answering
        self._queue = asking.jetstream()
        self._count = Count()

    @classmethod
    async def open(cls, connect: Connect, url: str, user: str, password: str, stack: AsyncExitStack) -> BareNats:
        """Connect twice by ``nats.connect``, and begin to answer."""
        clients = []
        for _ in range(2):
            clients.append(await connect(url, user=user, password=password))
            stack.push_async_callback(clients[-1].close)

        async def echo(message: Any) -> None:
            await message.respond(message.data)

        await clients[1].subscribe(SUBJECT, cb=echo)
        await clients[1].flush()
        return cls(*clients)

    async def ask(self, payload: bytes) -> bytes:
        """Send a request and return the answer."""
        answer: bytes = (await self._asking.request(SUBJECT, payload, timeout=SECONDS)).data
        return answer

    async def work(self, stack: AsyncExitStack) -> None:
        """Make the queue and begin to pull it, 64 at a time."""
        jetstream = self._answering.jetstream()
        await jetstream.add_stream(name=STREAM, subjects=[JOBS], retention="workqueue")
        subscription = await jetstream.pull_subscribe(JOBS, durable="workers")

        async def pull() -> None:
            while True:
                try:
                    messages = await subscription.fetch(64, timeout=1)
                except TimeoutError:  # nothing was waiting
                    continue
                for message in messages:
                    await message.ack()
                    self._count.add()

        task = asyncio.create_task(pull())
        stack.push_async_callback(_cancelled, task)

    async def jobs(self, payload: bytes, ids: list[str]) -> int:
        """Put jobs into the queue, all at once, and return how many were done."""
        self._count.expect(len(ids))
        await asyncio.gather(*(self._queue.publish(JOBS, payload, headers={"Nats-Msg-Id": key}) for key in ids))
        return await self._count.reached()


class FastStream:
    """FastStream with its NATS broker: JSON of plain dictionaries, no contract, no trace."""

    def __init__(self, asking: Any, answering: Any) -> None:
        self._asking, self._answering = asking, answering
        self._count = Count()

    @classmethod
    async def open(cls, url: str, user: str, password: str, stack: AsyncExitStack) -> FastStream:
        """Start two brokers: one answers and works, one asks."""
        module = importlib.import_module("faststream.nats")
        login = importlib.import_module("faststream.security").SASLPlaintext(username=user, password=password)
        brokers = [module.NatsBroker(url, security=login, logger=None) for _ in range(2)]
        peer = cls(*brokers)

        @brokers[1].subscriber("faststream.echo", max_workers=64)  # type: ignore[untyped-decorator]
        async def echo(body: dict[str, Any]) -> dict[str, Any]:
            return body

        stream = module.JStream("FASTSTREAM_JOBS", subjects=["faststream.jobs"], retention="workqueue")
        pulled = module.PullSub(batch_size=64, timeout=1.0)

        @brokers[1].subscriber(  # type: ignore[untyped-decorator]
            "faststream.jobs", stream=stream, pull_sub=pulled, durable="faststream"
        )
        async def work(body: dict[str, Any]) -> None:
            peer._count.add()

        for broker in brokers:
            await broker.start()
            stack.push_async_callback(broker.stop)
        return peer

    async def ask(self, data: dict[str, Any]) -> Any:
        """Send a request and return the answer."""
        return await (await self._asking.request(data, "faststream.echo", timeout=SECONDS)).decode()

    async def jobs(self, data: dict[str, Any], ids: list[str]) -> int:
        """Put jobs into the queue, all at once, and return how many were done."""
        self._count.expect(len(ids))
        publish = partial(self._asking.publish, data, "faststream.jobs", stream="FASTSTREAM_JOBS", timeout=SECONDS)
        await asyncio.gather(*(publish(headers={"Nats-Msg-Id": key}) for key in ids))
        return await self._count.reached()


def installed(package: str) -> bool:
    """Return whether a peer is installed."""
    return importlib.util.find_spec(package) is not None


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
