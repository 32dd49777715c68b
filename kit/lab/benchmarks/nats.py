"""Messaging measured: the specification's three targets, the price of each layer, jobs, and how cost grows.

    async with Messaging.open(nats.connect) as messaging:
        result = await messaging.request_reply(rounds=20, samples=50)

One server, one process, one event loop for all. Each contender has an account of its own, a connection that asks and
one that answers, so that none hears another's messages.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import AGENT_MESSAGE, GATEWAY_REQUESTS, RAG_INGEST, RAG_QUERIES
from kit.lab.bench import Clock, Comparison, compare_async
from kit.lab.benchmarks.contest import with_absent
from kit.lab.benchmarks.nats_peers import (
    ANSWERED,
    SECONDS,
    BareNats,
    Connect,
    Count,
    FastStream,
    RawSocket,
    installed,
)
from kit.lab.benchmarks.variables import telemetry_variables
from kit.nats import layout
from kit.nats.bus import Bus
from kit.nats.connection import connect
from kit.nats.jobs import Job
from kit.nats.message import Message
from kit.nats.server import Server
from kit.nats.worker import Worker
from kit.otel import start_telemetry

if TYPE_CHECKING:
    import pandas as pd

CODEC, UNSAMPLED, SAMPLED = "codec only", "+ unsampled trace", "+ sampled trace"
BARE, RAW, FASTSTREAM = "bare nats-py", "raw socket", "FastStream"
STORED, TOGETHER = "only stored, one by one", "only stored, as one batch"
ALONE = "codec only, without batches"
BARE_RESULTS, FASTSTREAM_RESULTS = f"{BARE} + results", f"{FASTSTREAM} + results"
KIT = "kit"
LAYERS = (CODEC, UNSAMPLED, SAMPLED)
_TENANTS = {CODEC: "codec", UNSAMPLED: "unsampled", SAMPLED: "sampled", ALONE: "alone"}
_DISABLED = {"OTEL_SDK_DISABLED": "true"}
_VARIABLES = {CODEC: _DISABLED, UNSAMPLED: {"OTEL_TRACES_SAMPLER": "always_off"}, SAMPLED: {}, ALONE: _DISABLED}
_PEERS = "peers"  # the account of everything that is not the kit

# Both ways the same agent_message, so that all contenders carry the same bytes; subject and spans are the row's own.
ECHO = replace(RAG_QUERIES, message_type="agent_message", result_type="agent_message")

_PAYLOAD = b"x" * 300  # of a bare job

Asks = Callable[[], Awaitable[Any]]


def note(size: int = 100, to: str | None = None) -> dict[str, Any]:
    """Return an ``agent_message`` whose content has so many bytes."""
    data = {
        "message_id": "msg-0001", "source_agent_id": "researcher", "content": "x" * size, "message_type": "question",
        "timestamp": codec.now(), "conversation_id": "conversation-1",
    }  # fmt: skip
    return data if to is None else data | {"target_agent_id": to}


def document(tenant_id: str) -> dict[str, Any]:
    """Return a ``rag_document`` of half a kilobyte."""
    return {
        "document_id": "policy/refunds", "tenant_id": tenant_id, "timestamp": codec.now(),
        "content": "Refunds are paid within fourteen days of purchase. " * 10, "media_type": "text/markdown",
    }  # fmt: skip


def prompt(tenant_id: str) -> dict[str, Any]:
    """Return an ``llm_request``."""
    return {
        "request_id": uuid.uuid4().hex, "tenant_id": tenant_id, "timestamp": codec.now(), "model": "default",
        "messages": [{"role": "user", "content": "What is the refund policy?"}],
    }  # fmt: skip


def response(request: dict[str, Any]) -> dict[str, Any]:
    """Return an ``llm_response`` to a ``prompt``, of the model that it asks for."""
    return {
        "request_id": request["request_id"], "response": "Fourteen days.", "model": request["model"], "cost": 0.0,
        "tokens": {"prompt": 6, "completion": 3, "total": 9}, "timestamp": codec.now(),
    }  # fmt: skip


class Messaging:
    """The contenders, connected and answering.

    Attributes:
        missing: peers that are not installed.
    """

    def __init__(self, server: Server, stack: AsyncExitStack) -> None:
        self.server, self._stack = server, stack
        self.senders: dict[str, Bus] = {}
        self.workers: dict[str, Bus] = {}
        self.raw: RawSocket
        self.bare: BareNats
        self.faststream: FastStream | None = None
        self.missing: tuple[str, ...] = ()
        self._counts: dict[str, tuple[Count, Worker]] = {}
        self._job: Job | None = None
        self._arrived: asyncio.Future[Any] | None = None
        self._ready: set[str] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, nats_connect: Connect) -> AsyncIterator[Messaging]:
        """Start a server and every contender that is installed.

        Args:
            nats_connect: ``nats.connect``, which makes the bare connections.
        """
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(Server(tenants=(*_TENANTS.values(), _PEERS)))
            self = cls(server, stack)
            for layer in _TENANTS:
                await self._start(layer)
            who = server.credentials(_PEERS)
            self.raw = await RawSocket.open(server.url, who.user, who.password, stack)
            self.bare = await BareNats.open(nats_connect, server.url, who.user, who.password, stack)
            if installed("faststream"):
                self.faststream = await FastStream.open(server.url, who.user, who.password, stack)
            else:
                self.missing = (FASTSTREAM,)
            yield self

    async def _start(self, layer: str) -> None:
        with telemetry_variables(_VARIABLES[layer]):
            telemetry = start_telemetry("benchmark", tenant_id=_TENANTS[layer], capture_logging=False)
        self._stack.callback(telemetry.shutdown, 1.0)
        for buses in (self.senders, self.workers):
            buses[layer] = await self.bus(layer, telemetry)

        async def echo(message: Message) -> dict[str, Any]:
            return message.data

        await self.workers[layer].serve(ECHO, echo, concurrency=256)

    async def bus(self, layer: str, telemetry: Any = None) -> Bus:
        """Return one more bus of a layer, on a connection of its own."""
        tenant = _TENANTS[layer]
        made = await connect(self.server.url, tenant_id=tenant, credentials=self.server.credentials(tenant))
        self._stack.push_async_callback(made.close)
        bus = Bus(made, tenant, telemetry or self.senders[layer].telemetry)
        self._stack.push_async_callback(bus.close)
        return bus

    # --- requests -----------------------------------------------------------------------------------------------

    def askers(self, size: int = 100) -> dict[str, Asks]:
        """Return what sends one request and returns its answer, by contender; bare nats-py first."""
        data = note(size)
        payload = codec.encode("agent_message", data)

        def by_bus(layer: str) -> Asks:
            return lambda: self.senders[layer].request(ECHO, data, timeout=SECONDS)

        asks: dict[str, Asks] = {BARE: lambda: self.bare.ask(payload), RAW: lambda: self.raw.ask(payload)}
        asks |= {layer: by_bus(layer) for layer in LAYERS}
        if (peer := self.faststream) is not None:
            asks[FASTSTREAM] = lambda: peer.ask(data)
        return asks

    def table(self, result: Comparison) -> pd.DataFrame:
        """Return a measurement, with a row for each peer that is not installed.

        Where it has rates, their ratios are shown, as the goals have them, instead of those of time.
        """
        absent, table = [name for name in self.missing if name not in result.samples], result.table()
        if result.operations > 1:
            place = table.columns.get_loc(of_time := f"ratio to {result.baseline}")
            rates = [str(result.ratio(name).inverse()) if name != result.baseline else "1" for name in table.index]
            table = table.drop(columns=of_time)
            table.insert(place, f"rate over {result.baseline}", rates)
        return with_absent(table, absent)

    async def request_reply(self, *, rounds: int, samples: int) -> Comparison:
        """Measure one request at a time."""
        return await self._one_by_one("nats_request_reply", 100, rounds, samples)

    async def payload(self, size: int, *, rounds: int, samples: int) -> Comparison:
        """Measure one request at a time that carries so many bytes."""
        return await self._one_by_one(f"nats_payload_{size}", size, rounds, samples)

    async def throughput(self, in_flight: int, *, rounds: int) -> Comparison:
        """Measure so many requests at once."""
        return await self._at_once(f"nats_throughput_{in_flight}", in_flight, rounds)

    async def in_flight(self, number: int, *, rounds: int) -> Comparison:
        """Measure so many requests at once, as one step of a curve."""
        return await self._at_once(f"nats_in_flight_{number}", number, rounds)

    async def _one_by_one(self, name: str, size: int, rounds: int, samples: int) -> Comparison:
        return await compare_async(self.askers(size), name=name, check=same(size), rounds=rounds, samples=samples)

    async def _at_once(self, name: str, number: int, rounds: int) -> Comparison:
        def many(ask: Asks) -> Asks:
            return lambda: asyncio.gather(*(ask() for _ in range(number)))

        right = same(100)
        return await compare_async(
            {contender: many(ask) for contender, ask in self.askers().items()}, name=name,
            check=lambda answers: len(answers) == number and all(right(answer) for answer in answers),
            rounds=rounds, samples=2, operations=number,
        )  # fmt: skip

    # --- the specification --------------------------------------------------------------------------------------

    async def agent_message(self) -> Any:
        """Send a message to an agent, and return what it got, once it has it."""
        await self._once("agents", self._listen)
        arrived = self._expect()
        await self.senders[SAMPLED].publish(AGENT_MESSAGE, note(to="writer"), to="writer")
        return await arrived

    async def queued_request(self) -> Any:
        """Queue a request for a model, and return it once a worker begins to handle it and ``enqueue`` has returned."""
        await self._once("gateway", self._queue)
        arrived, sender = self._expect(), self.senders[SAMPLED]
        self._job = await sender.enqueue(GATEWAY_REQUESTS, prompt(sender.tenant_id))
        return await arrived

    async def agents(self, *, rounds: int, samples: int) -> Comparison:
        """Measure messages to an agent, one at a time, beside the same bytes from one raw socket to another."""
        payload = codec.encode(AGENT_MESSAGE.message_type, note(to="writer"))
        arms: dict[str, Asks] = {KIT: self.agent_message, RAW: lambda: self.raw.tell(payload)}
        return await compare_async(arms, name="nats_agent_messaging", check=same(100), rounds=rounds, samples=samples)

    async def queuing(self, *, rounds: int, samples: int) -> Comparison:
        """Measure requests for a model that are queued, one at a time, each after the one before it is done.

        Beside them a job of bare nats-py, and a message that a raw socket stores: what the disk and the machine take by
        themselves.
        """
        await self._once("bare jobs", lambda: self.bare.work(self._stack))
        arms: dict[str, Asks] = {
            KIT: self.queued_request,
            BARE: lambda: self.bare.jobs(_PAYLOAD, _ids(1)),
            RAW: lambda: self.raw.store(_PAYLOAD, 1),
        }
        checks = dict.fromkeys(arms, lambda done: done == 1) | {KIT: lambda got: "messages" in got}
        return await compare_async(
            arms, name="nats_gateway_queuing", check=checks, rounds=rounds, samples=samples, before=self.settle
        )

    async def settle(self) -> None:
        """Wait until what was queued last is done, so that the next does not wait behind it."""
        if self._job is not None:
            await self._job.result(SECONDS)
            self._job = None

    async def server_settings(self) -> dict[str, str]:
        """Return what the server says of itself, as far as it weighs on a timing."""
        said = (await self.server.monitor()).raw["varz"]
        storage = said["jetstream"]["config"]
        return {
            "server": f"nats-server {said['version']}, {'a cluster' if said.get('cluster') else 'one node'}",
            "processors": str(said["gomaxprocs"]),
            "largest payload": f"{said['max_payload']} bytes",
            "storage": f"files, {'synced at each write' if storage['sync_always'] else 'synced now and then'}",
        }

    async def rag_queue(self, jobs: int = 64) -> int:
        """Queue documents, and return how many were handled and acknowledged."""
        return await self.kit_jobs(SAMPLED, jobs)

    def _expect(self) -> asyncio.Future[Any]:
        self._arrived = asyncio.get_running_loop().create_future()
        return self._arrived

    async def _took(self, message: Message) -> dict[str, Any]:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(message.data)
        return response(message.data) if message.message_type == "llm_request" else {}

    async def _listen(self) -> None:
        await self.workers[SAMPLED].subscribe(AGENT_MESSAGE, self._took, to="writer")

    async def _queue(self) -> None:
        await self.workers[SAMPLED].work(GATEWAY_REQUESTS, self._took)

    async def _once(self, what: str, begin: Callable[[], Awaitable[None]]) -> None:
        if what not in self._ready:
            self._ready.add(what)
            await begin()

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def jobs(self, *, rounds: int, jobs: int = 64) -> Comparison:
        """Measure jobs, all enqueued at once, until the last one is done."""
        return await self._jobs("nats_jobs", rounds, jobs, "wall")

    async def jobs_work(self, *, rounds: int, jobs: int = 64) -> Comparison:
        """Measure the same by the time for which this process runs: both ends, without the server and its disk."""
        return await self._jobs("nats_jobs_cpu", rounds, jobs, "cpu")

    async def _jobs(self, name: str, rounds: int, jobs: int, clock: Clock) -> Comparison:
        arms = await self.job_arms(jobs)
        return await compare_async(
            arms, name=name, check=lambda done: done == jobs, rounds=rounds, samples=1, operations=jobs, clock=clock
        )

    async def job_arms(self, jobs: int) -> dict[str, Asks]:
        """Return what enqueues so many jobs and returns how many were done, by contender; bare nats-py first.

        The peers' jobs are done when they are acknowledged; ``+ results`` does as much as the kit's jobs always do: the
        result is stored too, and has come back to the caller.
        """
        await self._once("peers' jobs", self._start_peers)
        data = document(_PEERS)
        payload = codec.encode(RAG_INGEST.message_type, data)
        bare, peer = self.bare, self.faststream
        arms: dict[str, Asks] = {
            BARE: lambda: bare.jobs(payload, _ids(jobs)),
            TOGETHER: lambda: self.raw.store_together(payload, jobs),
            STORED: lambda: self.raw.store(payload, jobs),
            BARE_RESULTS: lambda: bare.jobs(payload, _ids(jobs), ANSWERED),
            ALONE: lambda: self.kit_jobs(ALONE, jobs),
            CODEC: lambda: self.kit_jobs(CODEC, jobs),
            SAMPLED: lambda: self.kit_jobs(SAMPLED, jobs),
        }
        if peer is not None:
            arms[FASTSTREAM] = lambda: peer.jobs(data, _ids(jobs))
            arms[FASTSTREAM_RESULTS] = lambda: peer.jobs(data, _ids(jobs), "answered")
        return arms

    async def _start_peers(self) -> None:
        await self._once("bare jobs", lambda: self.bare.work(self._stack))
        if self.faststream is not None:
            await self.faststream.work()

    async def kit_jobs(self, layer: str, jobs: int) -> int:
        """Enqueue jobs, all at once, and return how many were acknowledged and have told the caller their result."""
        if layer not in self._counts:
            if layer == ALONE:
                await self._refuse_batches(layer)
            self._counts[layer] = await self._work(layer)
        (count, worker), bus = self._counts[layer], self.senders[layer]
        count.expect(jobs)
        goal = worker.handled + jobs
        data = document(bus.tenant_id)
        waiting = await asyncio.gather(*(bus.enqueue(RAG_INGEST, data) for _ in range(jobs)))
        await count.reached()
        while worker.handled < goal:  # noqa: ASYNC110 - the last acknowledgements, which nobody tells of
            await asyncio.sleep(0)
        results = [await job.result(SECONDS) for job in waiting]
        told = sum(result.data["document_id"] == data["document_id"] for result in results)
        return told if worker.handled == goal else worker.handled - goal

    async def _refuse_batches(self, layer: str) -> None:
        """Set the queue up before the kit does, as an operator may, without batches: each job is stored by itself."""
        config = layout.job_config(RAG_INGEST)
        config.allow_atomic = None
        await self.senders[layer].connection.client.jetstream().add_stream(config)

    async def _work(self, layer: str) -> tuple[Count, Worker]:
        bus, count = self.workers[layer], Count()

        async def handle(message: Message) -> dict[str, Any]:
            count.add()
            return {
                "document_id": message.data["document_id"], "status": "indexed", "timestamp": codec.now(),
                "tenant_id": bus.tenant_id,
            }  # fmt: skip

        return count, await bus.work(RAG_INGEST, handle, concurrency=64)


def same(size: int) -> Callable[[Any], bool]:
    """Return a check that an answer is what was sent, whoever brings it."""
    content = "x" * size

    def check(answer: Any) -> bool:
        if isinstance(answer, bytes):
            answer = codec.decode(answer)
        data = answer if isinstance(answer, dict) else answer.data
        return bool(data["content"] == content)

    return check


def _ids(number: int) -> list[str]:
    batch = uuid.uuid4().hex
    return [f"{batch}-{index}" for index in range(number)]
