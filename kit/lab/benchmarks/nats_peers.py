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
from typing import Any
from urllib.parse import urlsplit

SUBJECT = "peer.echo"
JOBS, ANSWERED, RESULTS, STORE = "peer.jobs", "peer.answered", "peer.results", "peer.store"
_ANSWER = b"y" * 150  # what a job's result takes, in bytes
_LEAST = {"max_msgs": 10_000}  # of streams that nobody takes from
_BATCHES = {"allow_atomic": True}  # of a stream that takes atomic batches, as the kit's queues do
SECONDS = 10.0  # for anything that does not come

Connect = Callable[..., Awaitable[Any]]


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
    """Speaks as much of the NATS client protocol as a request needs: INFO, CONNECT, PING, SUB, PUB, HPUB, MSG.

    Source: https://docs.nats.io/reference/reference-protocols/nats-protocol
    """

    def __init__(self, user: str, password: str) -> None:
        told = {"verbose": False, "headers": True, "user": user, "pass": password, "lang": "raw", "version": "0"}
        self._login = json.dumps(told)
        self._buffer = bytearray()
        self._needed = 0  # bytes, before it is worth to look at the buffer again
        self._unsent: list[bytes] = []
        self.transport: asyncio.Transport
        self.deliver: Callable[[bytes, bytes, bytes], None] = lambda subject, reply, payload: None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(f"CONNECT {self._login}\r\nPING\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) < self._needed:
            return
        buffer, at, self._needed = bytes(self._buffer), 0, 0
        while (end := buffer.find(b"\r\n", at)) >= 0:
            line, begin = buffer[at:end], end + 2
            if line.startswith(b"MSG "):
                words = line.split()
                size = int(words[-1])
                if len(buffer) < begin + size + 2:
                    self._needed = begin + size + 2 - at
                    break
                self.deliver(words[1], words[3] if len(words) == 5 else b"", buffer[begin : begin + size])
                begin += size + 2
            elif line == b"PONG" and not self.ready.done():
                self.ready.set_result(None)
            elif line == b"PING":
                self.transport.write(b"PONG\r\n")
            at = begin
        del self._buffer[:at]

    def send(self, frame: bytes) -> None:
        """Send in one write what one turn of the event loop has to send."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._write)
        self._unsent.append(frame)

    def _write(self) -> None:
        self.transport.write(b"".join(self._unsent))
        self._unsent.clear()

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
        self._told: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
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
        wires[1].transport.write(b"SUB raw.echo 1\r\nSUB raw.told 2\r\n")
        await wires[0].barrier()
        await wires[1].barrier()
        return peer

    def _echo(self, subject: bytes, reply: bytes, payload: bytes) -> None:
        if not reply:
            self._told.set_result(payload)
            return
        self._answering.send(b"PUB %b %d\r\n%b\r\n" % (reply, len(payload), payload))

    def _answered(self, subject: bytes, reply: bytes, payload: bytes) -> None:
        self._waiting.pop(subject).set_result(payload)

    def tell(self, payload: bytes) -> asyncio.Future[bytes]:
        """Send a message and return what will have arrived at the other socket; one at a time."""
        self._told = asyncio.get_running_loop().create_future()
        self._asking.send(b"PUB raw.told %d\r\n%b\r\n" % (len(payload), payload))
        return self._told

    def ask(self, payload: bytes, subject: bytes = b"raw.echo") -> asyncio.Future[bytes]:
        """Send a request and return what will be the answer."""
        inbox, answer = self._expect()
        self._asking.send(b"PUB %b %b %d\r\n%b\r\n" % (subject, inbox, len(payload), payload))
        return answer

    def _expect(self) -> tuple[bytes, asyncio.Future[bytes]]:
        self._serial += 1
        inbox = b"raw.inbox.%d" % self._serial
        answer = self._waiting[inbox] = asyncio.get_running_loop().create_future()
        return inbox, answer

    async def store(self, payload: bytes, number: int) -> int:
        """Store messages in a stream that nobody takes from, one by one, and return how many are on the disk."""
        acks = await asyncio.gather(*(self.ask(payload, STORE.encode()) for _ in range(number)))
        return sum("seq" in json.loads(ack) for ack in acks)

    async def store_together(self, payload: bytes, number: int) -> int:
        """Store messages as one atomic batch, and return how many are on the disk: the limit of jobs enqueued at once.

        Source: NATS ADR-50, atomic batch publish.
        """
        subject, batch = STORE.encode(), f"raw-{self._serial}".encode()
        for place in range(1, number):
            self._asking.send(_stored(subject, b"", batch, place, payload))
        inbox, answer = self._expect()
        self._asking.send(_stored(subject, inbox, batch, number, payload, b"Nats-Batch-Commit: 1\r\n"))
        return int(json.loads(await answer).get("count", 0))


def _stored(subject: bytes, reply: bytes, batch: bytes, place: int, payload: bytes, commit: bytes = b"") -> bytes:
    """Return the frame of one message of a batch."""
    head = b"NATS/1.0\r\nNats-Batch-Id: %b\r\nNats-Batch-Sequence: %d\r\n%b\r\n" % (batch, place, commit)
    where = b"%b %b" % (subject, reply) if reply else subject
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (where, len(head), len(head) + len(payload), head, payload)


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
        """Make the queues and begin to pull them, 64 at a time: one that tells no result, and one that does."""
        jetstream = self._answering.jetstream()
        await jetstream.add_stream(name="PEER_STORE", subjects=[STORE], **_LEAST, **_BATCHES)
        await jetstream.add_stream(name="PEER_RESULTS", subjects=[RESULTS], **_LEAST)
        for name, subject in (("PEER_JOBS", JOBS), ("PEER_ANSWERED", ANSWERED)):
            await jetstream.add_stream(name=name, subjects=[subject], retention="workqueue")
            subscription = await jetstream.pull_subscribe(subject, durable="workers")
            task = asyncio.create_task(self._pull(subscription, tells=subject == ANSWERED))
            stack.push_async_callback(_cancelled, task)

        async def hear(message: Any) -> None:
            self._count.add()

        await self._asking.subscribe(RESULTS, cb=hear)
        await self._asking.flush()

    async def _pull(self, subscription: Any, *, tells: bool) -> None:
        while True:
            try:
                messages = await subscription.fetch(64, timeout=1)
            except TimeoutError:  # nothing was waiting
                continue
            for message in messages:
                if tells:
                    await self._answering.publish(RESULTS, _ANSWER)
                await message.ack()
                if not tells:
                    self._count.add()

    async def jobs(self, payload: bytes, ids: list[str], subject: str = JOBS) -> int:
        """Put jobs into the queue, all at once, and return how many were done."""
        self._count.expect(len(ids))
        await asyncio.gather(*(self._queue.publish(subject, payload, headers={"Nats-Msg-Id": key}) for key in ids))
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

        # Without `max_workers`, which halves the rate of a handler that waits for nothing.
        @brokers[1].subscriber("faststream.echo")  # type: ignore[untyped-decorator]
        async def echo(body: dict[str, Any]) -> dict[str, Any]:
            return body

        def queue(name: str) -> dict[str, Any]:
            stream = module.JStream(
                f"FASTSTREAM_{name.upper()}", subjects=[f"faststream.{name}"], retention="workqueue"
            )
            pulled = module.PullSub(batch_size=64, timeout=1.0)
            return {"subject": f"faststream.{name}", "stream": stream, "pull_sub": pulled, "durable": "workers"}

        @brokers[1].subscriber(**queue("jobs"))  # type: ignore[untyped-decorator]
        async def work(body: dict[str, Any]) -> None:
            peer._count.add()

        @brokers[1].subscriber(**queue("answered"))  # type: ignore[untyped-decorator]
        @brokers[1].publisher("faststream.results")  # type: ignore[untyped-decorator]
        async def answer(body: dict[str, Any]) -> dict[str, Any]:
            return {"document_id": body["document_id"], "status": "indexed"}

        @brokers[0].subscriber("faststream.results")  # type: ignore[untyped-decorator]
        async def hear(body: dict[str, Any]) -> None:
            peer._count.add()

        for broker in brokers:
            await broker.start()
            stack.push_async_callback(broker.stop)
        return peer

    async def work(self) -> None:
        """Make the stream that keeps results."""
        jetstream = (await self._asking.connect()).jetstream()
        await jetstream.add_stream(name="FASTSTREAM_RESULTS", subjects=["faststream.results"], **_LEAST)

    async def ask(self, data: dict[str, Any]) -> Any:
        """Send a request and return the answer."""
        return await (await self._asking.request(data, "faststream.echo", timeout=SECONDS)).decode()

    async def jobs(self, data: dict[str, Any], ids: list[str], name: str = "jobs") -> int:
        """Put jobs into the queue, all at once, and return how many were done."""
        self._count.expect(len(ids))
        where = {"subject": f"faststream.{name}", "stream": f"FASTSTREAM_{name.upper()}"}
        publish = partial(self._asking.publish, data, timeout=SECONDS, **where)
        await asyncio.gather(*(publish(headers={"Nats-Msg-Id": key}) for key in ids))
        return await self._count.reached()


def installed(package: str) -> bool:
    """Return whether a peer is installed."""
    return importlib.util.find_spec(package) is not None


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
