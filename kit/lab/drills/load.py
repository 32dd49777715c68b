"""The load: jobs sent and worked on, each step in the ledger. All drills of jobs share it."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.catalogue import AGENT_TASKS, AGENT_TOOLS, GATEWAY_EMBEDDINGS, PROMPT_TEMPLATES, Operation
from kit.errors import KitError
from kit.lab.drills.drill import Run
from kit.lab.drills.faults import Processes, late
from kit.lab.drills.ledger import Ledger
from kit.lab.session import Lab
from kit.nats import Bus, Message
from kit.nats.connection import connect
from kit.otel import Telemetry, start_telemetry

if TYPE_CHECKING:
    from kit.nats.jobs import Job
    from kit.nats.server import Server

TIME = "2025-06-01T12:00:00Z"
TASK = {"task_id": "t", "task_type": "drill", "parameters": {}, "timestamp": TIME}
RESULT = {"task_id": "t", "agent_id": "drill", "status": "success", "timestamp": TIME}
NOTE = {"message_id": "m", "source_agent_id": "a", "content": "drill", "message_type": "note", "timestamp": TIME}
_DRAINED = 40.0  # s; for which the queue may stand still once nobody sends any more

Handler = Callable[["Message"], Any]


def with_lease(seconds: float, row: Operation = AGENT_TASKS) -> Operation:
    """Return a job's row with another ack wait (s), so that redelivery takes seconds; 0 leaves it as it is."""
    return replace(row, policy=replace(row.policy, ack_wait=seconds, backoff=(0.1, 0.2))) if seconds else row


@contextmanager
def shortened(seconds: float, row: Operation) -> Iterator[None]:
    """Shorten the ack wait of a component's own row in this process, within the block; 0 leaves it as it is."""
    before = row.policy.ack_wait
    object.__setattr__(row.policy, "ack_wait", seconds or before)
    try:
        yield
    finally:
        object.__setattr__(row.policy, "ack_wait", before)


def working(ledger: Ledger, seconds: float = 0.0) -> Handler:
    """Return a handler that takes its time and writes its delivery and its effect down."""

    async def handle(message: Message) -> dict[str, Any]:
        ledger.note("delivered", message.message_id, message.attempt)
        await asyncio.sleep(seconds)
        ledger.note("effect", message.message_id, message.attempt)
        return RESULT

    return handle


async def send(
    run: Run, bus: Bus, row: Operation = AGENT_TASKS, *, count: int | None = None, senders: int = 16,
    given: bool = False, pause: float = 0.0, timeout: float = 30.0, until: asyncio.Event | None = None,
) -> list[Job]:  # fmt: skip
    """Enqueue jobs from several senders at once, so many or until told to stop; each outcome is in the ledger."""
    numbers = iter(range(count)) if count is not None else itertools.count()
    jobs: list[Job] = []

    async def sender() -> None:
        for number in numbers:
            if until is not None and until.is_set():
                return
            name = f"job-{number}" if given else None
            try:
                job = await bus.enqueue(row, TASK, message_id=name, timeout=timeout)
            except KitError as error:
                run.ledger.note("error", name or f"unknown-{number}", type(error).__name__)
            else:
                run.ledger.note("acked", job.message_id, job.sequence)
                if count is not None:
                    jobs.append(job)  # with thousands under way for minutes nobody waits for results
            if pause:
                await asyncio.sleep(pause)

    await asyncio.gather(*(sender() for _ in range(senders)))
    return jobs


def quiet() -> Telemetry:
    """Return telemetry that records nothing."""
    return start_telemetry("drill", record=False, capture_logging=False)


@asynccontextmanager
async def bus_at(server: Server | None = None, **access: Any) -> AsyncIterator[Bus]:
    """Give a bus on a connection of its own to a server, or to where ``access`` says."""
    if server is None or access:
        if server is not None:
            access |= {"credentials": server.credentials("acme")}
        connection = await connect(tenant_id="acme", **access)
    else:
        connection = await server.connect("acme")  # whose errors say what keeps the server from working
    async with connection, Bus(connection, "acme", quiet()) as bus:
        yield bus


@asynccontextmanager
async def lab_beside(run: Run, **environment: str) -> AsyncIterator[tuple[Lab, Processes]]:
    """Give a lab, and processes that connect to its server."""
    async with run.lab() as lab:
        who = embedded(lab).credentials("acme").environment(lab.url)
        async with Processes(run, **who, **environment) as processes:
            yield lab, processes


def embedded(lab: Lab) -> Server:
    """Return the server of a lab that has one of its own."""
    assert lab.server is not None
    return lab.server


async def serve(run: Run, processes: Processes, port: str = "0", disk: str = "") -> tuple[Any, dict[str, Any]]:
    """Start ``kit server`` on the drill's own store; return its process, and how to connect to it."""
    store = run.folder / ("disk/nats" if disk else "nats")
    process = processes.start("-m", "kit", "server", "--port", port, "--store", str(store), disk=disk)
    text = await processes.said(process, "Ctrl-C")
    found = dict(re.findall(r"NATS_(\w+)=(\S+)", text))
    if disk:
        found["CREDS"] = f"/proc/{process.pid}/root{found['CREDS']}"
    return process, {"url": found["URL"], "creds": found["CREDS"]}


@asynccontextmanager
async def under_load(run: Run, bus: Bus, row: Operation = AGENT_TASKS, **how: Any) -> AsyncIterator[None]:
    """Send jobs within the block; at its end wait until the queue is empty, and write down what it says."""
    enough = asyncio.Event()
    sending = asyncio.create_task(send(run, bus, row, until=enough, **how))
    try:
        yield
    finally:
        enough.set()
        await sending
    await drained(run, bus, row)


async def drained(run: Run, bus: Bus, row: Operation = AGENT_TASKS, seconds: float = _DRAINED) -> None:
    """Wait until the queue is empty, or stands still for some seconds; note what is left, stored at all, and dead."""
    last, deadline = -1, time.monotonic() + seconds
    while last and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        with suppress(KitError):
            left = sum((await bus.backlog(row)).values())
            if left != last:
                last, deadline = left, time.monotonic() + seconds
    run.ledger.note("left", detail=sum((await bus.backlog(row)).values()))
    info = await bus.connection.jetstream().stream_info(row.stream or "")
    run.ledger.note("stored", detail=info.state.last_seq)
    for letter in await bus.dead_letters(row):
        run.ledger.note("dead", letter.message_id)


TOOL = {"request_id": "r", "agent_id": "a", "tool_name": "drill", "arguments": {}, "timestamp": TIME}
_TEMPLATE = {"template_id": "t", "template": "Hi", "variables": {}, "version": "1", "tenant_id": "acme"}
TEXTS = {"request_id": "r", "texts": ["drill"], "model": "drill", "tenant_id": "acme", "timestamp": TIME}
_STORES = 5.0  # s; the deadline of a store's calls, which take none


async def calls(serving: Bus, bus: Bus) -> Callable[[float], Awaitable[float]]:
    """Return what makes every kind of call on ``bus`` at once and returns by how much the latest was late, s.

    Args:
        serving: a bus that no fault reaches, which answers the requests.
    """

    async def answer(message: Message) -> dict[str, Any]:
        one = {
            "model": "drill",
            "embeddings": np.ones((1, 1), np.float32),
            "dimension": 1,
            "count": 1,
            "timestamp": TIME,
        }
        return {**one, "request_id": message.data["request_id"], "tokens": {"prompt": 1, "completion": 0, "total": 1}}

    await serving.serve(GATEWAY_EMBEDDINGS, answer)
    store = await bus.store("drill")
    job = await bus.enqueue(AGENT_TOOLS, TOOL)  # nobody works: its result never comes

    async def ask(deadline: float) -> float:
        return await late([
            (deadline, bus.request(GATEWAY_EMBEDDINGS, TEXTS, timeout=deadline)),
            (deadline, bus.enqueue(AGENT_TOOLS, TOOL, timeout=deadline)),
            (deadline, bus.publish(PROMPT_TEMPLATES, _TEMPLATE, timeout=deadline)),
            (deadline, job.result(deadline)),
            (_STORES, store.put("a", b"b")),
            (_STORES, store.get("a")),
        ])  # fmt: skip

    return ask
