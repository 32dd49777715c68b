"""Drills of events, deadlines, clusters and telemetry: what may be missed is counted, what waits ends in time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from kit.catalogue import AGENT_MESSAGE, AGENT_TASKS, LLMOPS_REPORTS, MLOPS_TRAINING, RAG_INGEST
from kit.lab.drills.drill import Run, drill
from kit.lab.drills.faults import Processes, Stand, eventually, fill, late, paused, require_mounts, within
from kit.lab.drills.ledger import figures
from kit.lab.drills.load import (
    NOTE,
    TASK,
    TIME,
    bus_at,
    calls,
    drained,
    embedded,
    lab_beside,
    quiet,
    send,
    serve,
    under_load,
    working,
)
from kit.lab.drills.worker import missed
from kit.nats import Bus, Message
from kit.nats.cluster import Cluster
from kit.nats.connection import connect


@drill("5", "sent = delivered + counted as missed, in order", short={"events": 6000}, long={"events": 20_000})
async def slow_subscriber(run: Run, events: int) -> None:
    """Publish events faster than a slow handler takes them."""
    heard: list[int] = []

    async def hear(message: Message) -> None:
        await asyncio.sleep(0.0002)
        heard.append(int(message.data["content"]))

    async with run.lab() as lab:
        await lab.bus.subscribe(AGENT_MESSAGE, hear)
        for number in range(events):
            await lab.bus.publish(AGENT_MESSAGE, {**NOTE, "content": str(number)})
        await eventually(lambda: len(heard) + missed(lab) >= events)
        run.figure("delivered", len(heard))
        run.figure("counted", missed(lab))
        run.expect("of sent", len(heard) + missed(lab), least=events, most=events)
        run.expect("out of order", int(heard != sorted(heard)))


@drill("5", "the subscriber counts what it missed, or at least warns that it missed some",
       short={"events": 1500, "blocked": 4.0}, long={"events": 3000, "blocked": 12.0})  # fmt: skip
async def blocked_subscriber(run: Run, events: int, blocked: float) -> None:
    """Publish events of 100 KB to a process whose loop is blocked, until the server gives its connection up."""
    async with lab_beside(run) as (lab, processes):
        process = await processes.worker("listen", str(blocked))
        for number in range(events):
            await lab.bus.publish(AGENT_MESSAGE, {**NOTE, "content": f"{number:8d}" + "x" * 100_000})

        def told() -> int:
            return max((int(one.detail) for one in run.ledger.entries() if one.what == "missed"), default=-1)

        await eventually(lambda: told() >= 0, blocked + 20.0)
        await eventually(lambda: told() > 0 or _heard(run) >= events, 10.0, 0.2)
        heard = _heard(run)
        run.figure("delivered", heard)
        run.figure("missed", events - heard)
        warned = told() > 0 or "missed" in processes.output(process)
        run.expect("missed without a word", 0 if warned else events - heard)


def _heard(run: Run) -> int:
    return sum(entry.what == "delivered" for entry in run.ledger.entries())


@drill("5", "every call ends within its deadline + 0.5 s, the first of a row too; stop() within 15 s",
       short={"deadline": 1.0}, long={"deadline": 3.0})  # fmt: skip
async def server_paused(run: Run, deadline: float) -> None:
    """SIGSTOP nats-server and make every kind of call, on warm and on new connections and rows; stop the lab."""
    lab = await run.lab()
    await lab.bus.work(AGENT_TASKS, working(run.ledger))
    ask, row = await calls(lab.bus, lab.bus), {"tenant_id": "acme", "timestamp": TIME}
    training = {"job_id": "j", "model_type": "m", "training_data": "d", "parameters": {}, **row}
    async with bus_at(embedded(lab)) as fresh:
        with paused(embedded(lab).pid):
            run.ledger.note("fault", detail="server paused")
            run.expect("warm calls late by", await ask(deadline), "s", most=0.5)
            cold = [
                (deadline, fresh.enqueue(AGENT_TASKS, TASK, timeout=deadline)),
                (deadline, fresh.request(LLMOPS_REPORTS, {"request_id": "r", "timestamp": TIME}, timeout=deadline)),
                (deadline, fresh.enqueue(MLOPS_TRAINING, training, timeout=deadline)),
            ]
            run.expect("first calls late by", await late(cold), "s", most=0.5)
            run.expect("stop()", (await within(lab.stop()))[0], "s", most=15.5)


# --- a cluster --------------------------------------------------------------------------------------------------


def _node(bus: Bus, cluster: Cluster) -> int:
    """Return which node a bus is connected to."""
    url = bus.connection.client.connected_url
    return next(index for index, one in enumerate(cluster.servers) if url and one.url.endswith(f":{url.port}"))


@asynccontextmanager
async def _buses(cluster: Cluster, count: int) -> AsyncIterator[list[Bus]]:
    """Give buses on connections of their own to a cluster; they close within a second, also without a quorum."""
    who = {"url": cluster.url, "credentials": cluster.credentials("acme")}
    buses = [Bus(await connect(tenant_id="acme", **who), "acme", quiet()) for _ in range(count)]  # type: ignore[arg-type]
    try:
        yield buses
    finally:
        for bus in buses:
            await within(bus.close(1.0))
            await within(bus.connection.close())


@drill("3", "0 lost, 0 repeated, 0 errors within their deadline; no gap above 10 s; calls wait instead of failing",
       short={"rounds": 1, "pause": 0.0}, long={"rounds": 2, "pause": 12.0})  # fmt: skip
async def node_lost(run: Run, rounds: int, pause: float) -> None:
    """Kill the connected node of a cluster of three under load, and bring it back; pause it as well where asked to."""
    failed: list[Exception] = []
    async with Cluster(3) as cluster, _buses(cluster, 2) as (bus, elsewhere):
        store = await bus.store("drill")
        enough = asyncio.Event()

        async def storing() -> None:
            while not enough.is_set():
                _, said = await within(asyncio.wait_for(store.put("a", b"b"), 10.0))
                failed.extend([said] if isinstance(said, Exception) else [])
                await asyncio.sleep(0.1)

        await elsewhere.work(AGENT_TASKS, working(run.ledger), concurrency=8)
        puts = asyncio.create_task(storing())
        async with under_load(run, bus, senders=4, pause=0.02, timeout=20.0):
            for _ in range(rounds):
                await asyncio.sleep(1.0)
                connected = _node(bus, cluster)
                run.ledger.note("fault", detail="node killed")
                await cluster.kill_node(connected)
                await asyncio.sleep(1.0)
                await cluster.start_node(connected)
                run.ledger.note("back", detail="node")
                if pause:
                    with paused(cluster.servers[_node(bus, cluster)].pid):
                        run.ledger.note("fault", detail="node paused")
                        await asyncio.sleep(pause)
                    run.ledger.note("back", detail="node")
            await asyncio.sleep(1.0)
        enough.set()
        await puts
    run.expect_jobs(gap=10.0, crashed=True)
    run.expect("failed stores", len(failed))


@drill("3c", "every call ends within its deadline + 0.5 s", short={"deadline": 1.5}, long={"deadline": 3.0})
async def quorum_lost(run: Run, deadline: float) -> None:
    """Kill two of a cluster's three nodes; make calls on warm rows and on new ones."""
    async with Cluster(3) as cluster, _buses(cluster, 1) as (bus,):
        connected = _node(bus, cluster)
        job = await bus.enqueue(AGENT_TASKS, TASK, timeout=20.0)
        await asyncio.gather(*(cluster.kill_node(index) for index in range(3) if index != connected))
        run.ledger.note("fault", detail="two nodes killed")
        data = {"document_id": "d", "tenant_id": "acme", "timestamp": TIME, "content": "text"}
        for what, call in (
            ("enqueue", bus.enqueue(AGENT_TASKS, TASK, timeout=deadline)),
            ("first enqueue", bus.enqueue(RAG_INGEST, data, timeout=deadline)),
            ("result", job.result(deadline)),
        ):
            run.expect(f"{what} late by", await late([(deadline, call)]), "s", most=0.5)


# --- disks ------------------------------------------------------------------------------------------------------


@drill("8", "an error within 5.5 s; the server names the disk; 0 lost; works again ≤ 20 s after space is back",
       short={"jobs": 50, "megabytes": 48}, long={"jobs": 300, "megabytes": 96})  # fmt: skip
async def disk_full(run: Run, jobs: int, megabytes: int) -> None:
    """Fill the disk (a tmpfs) under nats-server, enqueue, make room again."""
    require_mounts()
    async with Processes(run) as processes:
        process, given = await serve(run, processes, disk=f"{megabytes}m")
        async with bus_at(**given) as bus:
            await send(run, bus, count=jobs)
            filler = fill(processes.disk(process))
            run.ledger.note("fault", detail="disk full")
            large = {**TASK, "parameters": {"x": "y" * 99_999}}
            for _ in range(50):  # what is already allocated takes some more
                seconds, said = await within(bus.enqueue(AGENT_TASKS, large))
                if isinstance(said, Exception):
                    break
                run.ledger.note("acked", said.message_id, said.sequence)
            run.expect("error after", seconds, "s", most=5.5)
            told = f"{said} {processes.output(process)}"  # a caller elsewhere hears of it, the server's owner why
            run.check("the server names the disk", "disk of" in told)
            filler.unlink()
            began = time.monotonic()

            async def stored() -> bool:
                _, told = await within(bus.enqueue(AGENT_TASKS, TASK, message_id="again", timeout=2.0))
                return not isinstance(told, Exception)

            run.check("recovers", bool(await eventually(stored, 20.0, 0.2)))
            run.figure("recovered after", time.monotonic() - began, "s")
            async with await bus.work(AGENT_TASKS, working(run.ledger), concurrency=8):
                await drained(run, bus, seconds=10.0)
    run.expect("lost", figures(run.ledger.entries()).lost)


# --- telemetry --------------------------------------------------------------------------------------------------

_TELEMETRY = """
import json, sys, time
from kit.catalogue import RAG_QUERY
from kit.otel import start_telemetry
endpoint, protocol, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
telemetry = start_telemetry("drill", endpoint=endpoint, protocol=protocol, capture_logging=False)
began = time.perf_counter()
for _ in range(count):
    with telemetry.operation(RAG_QUERY):
        pass
worked = (time.perf_counter() - began) / count
began = time.perf_counter()
telemetry.shutdown(3.0)
told = telemetry.dropped["traces"] + telemetry.exported["traces"]
print(json.dumps([worked, told, time.perf_counter() - began]), flush=True)
"""


@drill("6", "spans = exported + dropped; a span ≤ 1 ms; end ≤ 3.5 s, process gone ≤ 1 s later",
       short={"spans": 700}, long={"spans": 3600})  # fmt: skip
async def collector_hangs(run: Run, spans: int) -> None:
    """Export to collectors that are down, refuse, hang, or answer 404, by gRPC and by HTTP, and end."""

    async def one(endpoint: str, protocol: str, processes: Processes) -> tuple[float, int, float, float]:
        process = processes.start("-c", _TELEMETRY, endpoint, protocol, str(spans))
        text = await processes.said(process, "]\n")
        seconds, _ = await within(asyncio.to_thread(process.wait, 30.0))
        worked, told, shutdown = json.loads(next(line for line in text.splitlines() if line.startswith("[")))
        return worked, told, shutdown, seconds

    answers: tuple[Any, ...] = (None, (503, b"no"), (404, b"no"))
    async with AsyncExitStack() as stack:
        stands = [await stack.enter_async_context(Stand(lambda *_, said=said: said)) for said in answers]
        processes = await stack.enter_async_context(Processes(run))
        urls = [*(stand.url for stand in stands), "http://127.0.0.1:9"]
        cases = [(url, "http/protobuf") for url in urls] + [(url, "grpc") for url in (urls[0], urls[-1])]
        ends = []
        for pair in (cases[:2], cases[2:4], cases[4:]):  # a busy machine would be measured, not the kit
            ends += await asyncio.gather(*(one(*case, processes) for case in pair))
    run.figure("endpoints", len(ends))
    run.expect("spans unaccounted for", sum(abs(spans - told) for _, told, _, _ in ends))
    run.expect("slowest span", max(worked for worked, *_ in ends) * 1e3, "ms", most=1.0)
    run.expect("slowest shutdown", max(end for _, _, end, _ in ends), "s", most=3.5)
    run.expect("slowest exit", max(gone for *_, gone in ends), "s", most=1.0)
