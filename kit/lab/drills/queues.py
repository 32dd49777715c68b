"""Drills of jobs: what a server, its supervisor, a worker and foreign messages can do to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections import defaultdict
from itertools import pairwise
from typing import Any

from kit import codec
from kit.catalogue import AGENT_TASKS
from kit.errors import JobDead, KitError
from kit.lab.drills.drill import NotHere, Run, drill
from kit.lab.drills.faults import (
    Processes,
    Proxy,
    eventually,
    kill_server,
    nats_below,
    paused,
    within,
)
from kit.lab.drills.load import (
    RESULT,
    TASK,
    bus_at,
    calls,
    drained,
    embedded,
    lab_beside,
    send,
    serve,
    under_load,
    with_lease,
    working,
)
from kit.nats import Message
from kit.nats.server import Server

_CRASHES = 6  # within a minute: one more than the supervisor forgives


_KEPT = "0 lost, 0 repeated, 0 errors; first ack ≤ 2 s after the server is back"
_DONE = "0 lost; at most the effect of a kill's own jobs repeated; redelivery ≤ ack wait + 1 s"


@drill("1", _KEPT,
       short={"kills": 2, "every": 1.0}, long={"kills": 10, "every": 13.0, "lease": 0.0})  # fmt: skip
async def server_killed(
    run: Run, kills: int, every: float, lease: float = 2.0, given: bool = False, rate: float = 0.002
) -> None:
    """SIGKILL nats-server again and again while 16 senders enqueue and a worker works."""
    row = with_lease(lease)
    async with run.lab() as lab:
        worker = await lab.bus.work(row, working(run.ledger), concurrency=16)
        async with under_load(run, lab.bus, row, given=given, pause=rate, senders=64 if not rate else 16):
            for _ in range(kills):
                await asyncio.sleep(every)
                await kill_server(run, embedded(lab))
            await asyncio.sleep(1.0)
        await worker.stop()
    run.expect_jobs(first_ack=2.0, crashed=True)


@drill("1", _KEPT, short={"kills": 1, "every": 1.0}, long={"kills": 5, "every": 4.0, "lease": 0.0})
async def server_killed_given_ids(run: Run, **sizes: Any) -> None:
    """The same with ids that the caller gives, as one does who may enqueue again."""
    await server_killed(run, given=True, **sizes)


@drill("1", _KEPT, short={"kills": 1, "every": 2.0}, long={"kills": 6, "every": 12.5, "lease": 0.0})
async def server_killed_full_rate(run: Run, **sizes: Any) -> None:
    """The same with 64 senders at full rate: more is done than a small memory of results holds."""
    await server_killed(run, rate=0.0, **sizes)


@drill("1b", "its store is kept, calls and the server say why; started again, it has every job")
async def server_given_up(run: Run) -> None:
    """Kill nats-server more often than its supervisor restarts it, over acknowledged jobs in a temporary store."""
    async with Server() as server, bus_at(server) as bus:
        store = server.store
        await send(run, bus, count=20)
        for _ in range(_CRASHES):
            await eventually(lambda: not server.is_up or server.pid)
            with contextlib.suppress(KitError):
                server.crash()
            await asyncio.sleep(0.1)
        await eventually(lambda: not server.is_up)
        run.check("the server is given up", not server.is_up)
        run.check("its store is kept", store.exists())
        _, said = await within(bus.enqueue(AGENT_TASKS, TASK, timeout=2.0))
        run.check("calls and the server say why", "crashed" in str(said) and "crashed" in repr(server))
        await server.start()
        await bus.connection.wait_connected(10.0)
        async with await bus.work(AGENT_TASKS, working(run.ledger)):
            await drained(run, bus)
    run.expect_jobs(crashed=True)


@drill("1c", "`kit server` ends with an error that says so")
async def kit_server_given_up(run: Run) -> None:
    """Kill nats-server below `kit server` more often than its supervisor restarts it."""
    async with Processes(run) as processes:
        process, _ = await serve(run, processes)
        for _ in range(_CRASHES):
            await eventually(lambda: nats_below(process.pid) or process.poll() is not None)
            for pid in nats_below(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.1)
        ended = await eventually(lambda: process.poll() is not None, 8.0)
        run.check("it ends", bool(ended))
        run.expect("exit code", process.poll() or 0, least=1)
        run.check("says why", "crashed" in processes.output(process))


@drill("1d", "≥ 1 sync a job that is enqueued alone", short={"jobs": 20}, long={"jobs": 200})
async def synced_before_ack(run: Run, jobs: int) -> None:
    """Count nats-server's fsync calls with strace while jobs are enqueued one after the other."""
    if shutil.which("strace") is None:
        raise NotHere("strace is not installed")
    async with run.lab() as lab:
        await lab.bus.enqueue(AGENT_TASKS, TASK)  # makes the queue
        told = run.folder / "strace"
        command = ("strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(told), "-p", str(lab.server.pid))  # type: ignore[union-attr]
        tracer = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        assert tracer.stderr is not None
        said = (await tracer.stderr.readline()).decode()
        if "attached" not in said:
            raise NotHere(f"strace may not attach: {said.strip()}")
        await send(run, lab.bus, count=jobs, senders=1)
        tracer.send_signal(signal.SIGINT)
        await tracer.wait()
    run.figure("acked", jobs)
    run.expect("syncs a job", len(re.findall(r"^\d+ +(?:fsync|fdatasync)\(", told.read_text(), re.M)) / jobs, least=1.0)


# --- workers ----------------------------------------------------------------------------------------------------


@drill("2", _DONE,
       short={"jobs": 60, "kills": 1, "seconds": 0.05, "lease": 1.5},
       long={"jobs": 2000, "kills": 10, "seconds": 0.05, "lease": 0.0})  # fmt: skip
async def workers_killed(run: Run, jobs: int, kills: int, seconds: float, lease: float) -> None:
    """SIGKILL one of three workers again and again, a new one in its place, until all jobs are done."""
    row = with_lease(lease)
    async with lab_beside(run) as (lab, processes):
        alive = list(await asyncio.gather(*(processes.worker("steady", str(seconds), lease=lease) for _ in range(3))))
        sent = await send(run, lab.bus, row, count=jobs)
        for kill in range(1, kills + 1):
            await eventually(lambda kill=kill: _effects(run) >= jobs * kill // (kills + 1), 120.0, 0.1)  # type: ignore[misc]
            alive.pop(0).kill()
            run.ledger.note("fault", detail="worker killed")
            alive.append(await processes.worker("steady", str(seconds), lease=lease))
        await asyncio.gather(*(job.result(120.0) for job in sent))
        await drained(run, lab.bus, row)
    run.expect_jobs(repeated=kills)
    given = defaultdict[str, list[float]](list)
    for entry in run.ledger.entries():
        if entry.what == "delivered":
            given[entry.id].append(entry.at)
    waits = [after - before for times in given.values() for before, after in pairwise(times)]
    run.figure("redelivered", len(waits))
    run.expect("longest redelivery", max(waits, default=0.0), "s", most=row.policy.ack_wait + 1.0 + seconds)


@drill("2", _DONE, short={"jobs": 600, "kills": 1}, long={"jobs": 20_000, "kills": 10, "lease": 0.0})
async def workers_killed_quick_jobs(run: Run, jobs: int, kills: int, lease: float = 1.5) -> None:
    """The same with jobs of a millisecond, many of which are under way at a kill."""
    await workers_killed(run, jobs, kills, 0.001, lease)


def _effects(run: Run) -> int:
    return sum(entry.what == "effect" for entry in run.ledger.entries())


@drill("2b", "one effect a job; the stale worker's handler is cancelled", short={"lease": 1.0}, long={"lease": 5.0})
async def worker_paused(run: Run, lease: float) -> None:
    """SIGSTOP a worker past its ack wait; another one does its jobs; SIGCONT."""
    row = with_lease(lease)
    async with lab_beside(run) as (lab, processes):
        stale = await processes.worker("steady", str(3 * lease), lease=lease)
        jobs = await send(run, lab.bus, row, count=4)
        await eventually(lambda: sum(entry.what == "delivered" for entry in run.ledger.entries()) == 4)
        async with await lab.bus.work(row, working(run.ledger), concurrency=4):
            with paused(stale.pid):
                run.ledger.note("fault", detail="worker paused")
                await asyncio.gather(*(job.result(30.0 + 3 * lease) for job in jobs))
            await asyncio.sleep(3 * lease)  # the time in which the stale one would have had its effect
            await drained(run, lab.bus, row)
    run.expect_jobs()


@drill("2b", "effect once, although handlers take longer than the ack wait",
       short={"lease": 1.0, "jobs": 8}, long={"lease": 2.0, "jobs": 24})  # fmt: skip
async def blocking_handlers(run: Run, lease: float, jobs: int) -> None:
    """Two workers with plain functions that block for one and a half ack waits, four at a time."""
    row = with_lease(lease)
    async with lab_beside(run) as (lab, processes):
        await asyncio.gather(*(processes.worker("plain", str(1.5 * lease), lease=lease) for _ in range(2)))
        sent = await send(run, lab.bus, row, count=jobs)
        await asyncio.gather(*(job.result(60.0) for job in sent))
        await drained(run, lab.bus, row)
    run.expect_jobs()


@drill("16", "0 lost, 0 repeated, 0 errors", short={"kills": 1, "jobs": 60}, long={"kills": 3, "jobs": 600})
async def kit_server_killed(run: Run, kills: int, jobs: int) -> None:
    """SIGKILL `kit server` and start it again on its store and port, under a worker and a caller."""
    async with Processes(run) as processes:
        process, given = await serve(run, processes)
        async with bus_at(**given) as bus, await bus.work(AGENT_TASKS, working(run.ledger), concurrency=8):
            sending = asyncio.create_task(send(run, bus, count=jobs, senders=4, pause=0.05 * kills, timeout=30.0))
            for _ in range(kills):
                await asyncio.sleep(0.3)
                process.kill()
                process.wait()
                run.ledger.note("fault", detail="kit server killed")
                process, _ = await serve(run, processes, given["url"].rpartition(":")[2])
                run.ledger.note("back", detail="kit server")
            await sending
            await drained(run, bus)
    run.expect_jobs()


# --- what is foreign --------------------------------------------------------------------------------------------

_RAW = (b"", b"garbage", b"{", b'{"schema_version": "9.0", "message_type": "agent_task", "data": {}}', b"[" * 5000,
        b'{"schema_version": "1.0", "message_type": "agent_task", "data": 7}', b"x" * 900_000)  # fmt: skip


@drill("4", "each dead once, the healthy ones done within 1 s; a replay has its effect once",
       short={"poison": 6, "healthy": 60}, long={"poison": 30, "healthy": 3000})  # fmt: skip
async def poison(run: Run, poison: int, healthy: int) -> None:
    """Send jobs that always fail and raw bytes of all kinds among healthy jobs; mend the cause; replay."""
    row, mended = with_lease(2.0), False

    async def handle(message: Message) -> dict[str, Any]:
        if message.data["task_type"] == "poison" and not mended:
            raise ValueError("poison")
        run.ledger.note("effect", message.message_id)
        return RESULT

    async with run.lab() as lab, await lab.bus.work(row, handle, concurrency=8):
        bus = lab.bus
        sick = [await bus.enqueue(row, {**TASK, "task_type": "poison"}) for _ in range(poison)]
        for number, raw in enumerate(_RAW):
            await bus.connection.jetstream().publish(row.subject("acme"), raw, headers={"Nats-Msg-Id": f"raw-{number}"})
        took = [await within(bus.run(row, TASK, timeout=10.0)) for _ in range(healthy)]
        run.expect("healthy", sum(not isinstance(said, Exception) for _, said in took), least=healthy)
        run.expect("slowest of them", max(seconds for seconds, _ in took), "s", most=1.0)
        ends = await asyncio.gather(*(job.result(30.0) for job in sick), return_exceptions=True)
        run.expect("poison told as dead", sum(isinstance(end, JobDead) for end in ends), least=poison)

        async def dead() -> list[str]:
            return [letter.message_id for letter in await bus.dead_letters(row)]

        async def all_dead() -> bool:
            return len(await dead()) >= poison + len(_RAW)

        await eventually(all_dead, 20.0, 0.1)
        letters = await dead()
        run.expect("dead letters", len(letters), least=poison + len(_RAW), most=poison + len(_RAW))
        run.expect("dead twice", len(letters) - len(set(letters)))
        mended = True
        await bus.replay(row, [job.message_id for job in sick])
        await drained(run, bus, row)
    effects = [entry.id for entry in run.ledger.entries() if entry.what == "effect"]
    replayed = [effects.count(job.message_id) for job in sick]
    run.expect("replayed once", replayed.count(1), least=poison)


_HEADERS: tuple[dict[str, str], ...] = (
    {"Kit-Expires": "soon"}, {"Kit-Expires": "2025-06-01T12:00:00"}, {"Kit-Expires": "9" * 300}, {"Status": "503"},
    {"Kit-Reply": "$JS.API.>"}, {"traceparent": "garbage"}, {"Kit-Again": "?"},
)  # fmt: skip


@drill("4c", "dead letters are listed and other callers have their results, whatever lies in the queue")
async def foreign_messages(run: Run) -> None:
    """Put messages with odd headers and a long subject into the queue of a receiver for whom nobody works."""
    async with run.lab() as lab:
        bus = lab.bus
        jetstream = bus.connection.jetstream()
        await bus.enqueue(AGENT_TASKS, TASK, to="bob")  # makes the queue
        body = codec.encode("agent_task", TASK)
        for number, headers in enumerate(_HEADERS):
            await jetstream.publish(
                AGENT_TASKS.subject("acme", "bob"), body, headers={"Nats-Msg-Id": f"odd-{number}", **headers}
            )
        _, long_subject = await within(jetstream.publish(f"{AGENT_TASKS.prefix}.acme.{'b' * 300}", body))
        run.figure("odd messages", len(_HEADERS) + (not isinstance(long_subject, Exception)))
        job = await bus.enqueue(AGENT_TASKS, TASK)
        _, waiting = await within(job.result(3.0))  # nobody works: it sweeps, and says so in time
        run.check("result() waits for its job", type(waiting).__name__ == "DeadlineExceeded")
        _, letters = await within(bus.dead_letters(AGENT_TASKS))
        run.check("dead letters are listed", not isinstance(letters, Exception))
        async with await bus.work(AGENT_TASKS, working(run.ledger)):
            seconds, done = await within(job.result(10.0))
            run.check("other callers have their results", isinstance(done, Message))
            run.expect("within", seconds, "s", most=5.0)


@drill("5", "a job whose result is too large ends as an error with its name; the connection lives",
       short={"around": 150}, long={"around": 300})  # fmt: skip
async def payload_limits(run: Run, around: int) -> None:
    """Send and answer messages of just under, at, and over the server's limit, in steps of 10 bytes."""
    async with run.lab() as lab:
        bus, limit = lab.bus, lab.bus.connection.max_payload

        async def handle(message: Message) -> dict[str, Any]:
            return {**RESULT, "output": {"text": "x" * message.data["parameters"]["size"]}}

        async with await bus.work(AGENT_TASKS, handle, concurrency=4):
            empty = len(codec.encode("agent_result", {**RESULT, "output": {"text": ""}}))
            ends: dict[str, int] = {}
            for size in range(limit - empty - around, limit - empty + 20, 10):
                _, said = await within(bus.run(AGENT_TASKS, {**TASK, "parameters": {"size": size}}, timeout=20.0))
                end = said.error_type if isinstance(said, JobDead) else type(said).__name__
                ends[end] = ends.get(end, 0) + 1
            run.figure("results that fit", ends.pop("Message", 0))
            run.expect("refused by name", ends.pop("PayloadTooLarge", 0), least=2)
            run.expect("other ends", sum(ends.values()))
            _, sent = await within(bus.enqueue(AGENT_TASKS, {**TASK, "parameters": {"text": "x" * limit}}))
            run.check("a job that is too large is refused", type(sent).__name__ == "PayloadTooLarge")
            run.expect("disconnects", bus.connection.counters.disconnects)


@drill("5", "0 lost, 0 repeated, 0 stored twice, 0 errors, no call later than its deadline + 0.5 s",
       short={"cuts": 3, "every": 0.5}, long={"cuts": 20, "every": 1.0})  # fmt: skip
async def connection_cut(run: Run, cuts: int, every: float) -> None:
    """Cut the connection of caller and worker (a TCP proxy) under jobs, requests, stored events and stores."""
    async with (
        run.lab() as lab,
        Proxy(int(lab.url.rpartition(":")[2])) as proxy,
        bus_at(embedded(lab), url=proxy.url) as bus,
        await bus.work(AGENT_TASKS, working(run.ledger), concurrency=8),
    ):
        ask = await calls(lab.bus, bus)
        over: list[float] = []
        enough = asyncio.Event()

        async def asking() -> None:
            while not enough.is_set():
                over.append(await ask(2.0))

        asks = asyncio.create_task(asking())
        async with under_load(run, bus, senders=4, pause=0.01):
            for _ in range(cuts):
                await asyncio.sleep(every)
                run.ledger.note("fault", detail="connection cut")
                proxy.cut()
                await bus.connection.wait_connected(10.0)
                run.ledger.note("back", detail="connection")
            await asyncio.sleep(0.5)
        enough.set()
        await asks
    found = run.expect_jobs()
    run.figure("longest gap", found.longest_gap, "s")
    run.figure("rounds of other calls", len(over))
    run.expect("late by", max(over), "s", most=0.5)
