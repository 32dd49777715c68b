"""How messaging's cost grows with tenants, each on an account of its own, and with workers, each a process.

async with Growth.open(nats.connect, most_tenants=64) as growth:
    result = await growth.tenants(16, rounds=4)
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from kit import codec
from kit.catalogue import GATEWAY_REQUESTS
from kit.errors import ReportError
from kit.lab.bench import Comparison, compare_async, growth
from kit.lab.benchmarks.nats import BARE, ECHO, SAMPLED, note, prompt, same
from kit.lab.benchmarks.nats_peers import SECONDS, BareNats, Connect
from kit.nats.bus import Bus
from kit.nats.connection import connect
from kit.nats.message import Message
from kit.nats.server import Server
from kit.otel import start_telemetry

WAITS, COMPUTES = "a job waits", "a job computes"
_MODELS = {WAITS: "waits", COMPUTES: "computes"}  # told to the worker as the request's model
_WORKERS = "workers"  # the tenant whose jobs processes work on
_START = 60.0  # s; for a process to begin to work

Asks = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class _Tenant:
    """Two buses, one that asks and one that answers, and nats-py on two connections beside them."""

    bus: Bus
    bare: BareNats


class Growth:
    """A server with many tenants, and processes that work for one of them."""

    def __init__(self, server: Server, stack: AsyncExitStack, tenants: Sequence[_Tenant], sender: Bus) -> None:
        self._server, self._stack, self._tenants, self._sender = server, stack, tenants, sender
        self._processes: list[asyncio.subprocess.Process] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, nats_connect: Connect, *, most_tenants: int) -> AsyncIterator[Growth]:
        """Start a server, and connect so many tenants.

        Args:
            nats_connect: ``nats.connect``, which makes the bare connections.
        """
        names = [f"tenant-{number}" for number in range(most_tenants)]
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(Server(tenants=(_WORKERS, *names)))
            telemetry = start_telemetry("benchmark", capture_logging=False)
            stack.callback(telemetry.shutdown, 1.0)

            async def bus(tenant: str) -> Bus:
                made = await connect(server.url, tenant_id=tenant, credentials=server.credentials(tenant))
                stack.push_async_callback(made.close)
                return await stack.enter_async_context(Bus(made, tenant, telemetry.for_tenant(tenant)))

            async def echo(message: Message) -> dict[str, Any]:
                return message.data

            tenants = []
            for name in names:
                await (await bus(name)).serve(ECHO, echo, concurrency=256)
                who = server.credentials(name)
                bare = await BareNats.open(nats_connect, server.url, who.user, who.password, stack)
                tenants.append(_Tenant(bus=await bus(name), bare=bare))
            yield cls(server, stack, tenants, await bus(_WORKERS))

    async def tenants(self, number: int, *, rounds: int, samples: int = 2, in_flight: int = 64) -> Comparison:
        """Measure requests in flight, always as many, spread over so many tenants."""
        chosen, data = self._tenants[:number], note()
        payload = codec.encode(ECHO.message_type, data)
        asks: dict[str, list[Asks]] = {
            BARE: [lambda one=one: one.bare.ask(payload) for one in chosen],  # type: ignore[misc]
            SAMPLED: [lambda one=one: one.bus.request(ECHO, data, timeout=SECONDS) for one in chosen],  # type: ignore[misc]
        }

        def all_at_once(mine: list[Asks]) -> Asks:
            return lambda: asyncio.gather(*(ask() for ask in islice(cycle(mine), in_flight)))

        right = same(len(data["content"]))
        return await compare_async(
            {name: all_at_once(mine) for name, mine in asks.items()}, name=f"nats_tenants_{number}",
            check=lambda answers: len(answers) == in_flight and all(right(answer) for answer in answers),
            rounds=rounds, samples=samples, operations=in_flight,
        )  # fmt: skip

    async def workers(self, number: int, *, rounds: int, jobs: int = 40, seconds: float = 0.005) -> Comparison:
        """Measure jobs on so many processes, each with one job at a time, which takes some seconds.

        Once with jobs that wait, as for a model elsewhere, and once with jobs that compute.
        """
        for _ in range(number - len(self._processes)):
            self._processes.append(await self._start(seconds))
        if len(self._processes) != number:
            raise ReportError(f"{len(self._processes)} processes work already, more than {number}")

        async def run(model: str) -> list[Message]:
            request = {**prompt(_WORKERS), "model": model}
            waiting = await asyncio.gather(*(self._sender.enqueue(GATEWAY_REQUESTS, request) for _ in range(jobs)))
            return [await job.result(SECONDS) for job in waiting]

        def right(model: str) -> Callable[[list[Message]], bool]:
            return lambda results: [result.data["model"] for result in results] == [model] * jobs

        return await compare_async(
            {name: lambda model=model: run(model) for name, model in _MODELS.items()},  # type: ignore[misc]
            name=f"nats_workers_{number}", check={name: right(model) for name, model in _MODELS.items()},
            rounds=rounds, samples=1, warmup=1, operations=jobs,
        )  # fmt: skip

    async def _start(self, seconds: float) -> asyncio.subprocess.Process:
        """Start a process, and return it once it works."""
        who = self._server.credentials(_WORKERS)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
        told = {"NATS_URL": self._server.url, "NATS_USER": who.user, "NATS_PASSWORD": who.password}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kit.lab.benchmarks.nats_worker", _WORKERS, str(seconds),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**inherited, **told},
        )  # fmt: skip
        self._stack.push_async_callback(_ended, process)
        assert process.stdout is not None
        async with asyncio.timeout(_START):
            if await process.stdout.readline() != b"works\n":
                raise ReportError("a worker's process ended before it began to work")
        return process


def rates(
    results: Iterable[Comparison],
) -> tuple[dict[str, list[float]], dict[str, tuple[list[float], list[float]]]]:
    """Return curves of operations per second over comparisons, with their bands, as ``growth`` does those of time."""
    steps = list(results)
    series, bands = growth(steps)

    def inverse(seconds: Iterable[float]) -> list[float]:
        return [step.operations / value for step, value in zip(steps, seconds, strict=True)]

    lines = {name: inverse(line) for name, line in series.items()}
    return lines, {name: (inverse(high), inverse(low)) for name, (low, high) in bands.items()}


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Let a process end by itself: it does when nobody writes to it any more."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
