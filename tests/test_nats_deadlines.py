"""A caller's deadline covers all that is done for it, whether the server stands still, is away, or has no quorum."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from samples import eventually, sample
from standing_still import frozen

from kit.catalogue import AGENT_TASKS, LLMOPS_OPERATIONS, RAG_QUERIES, RAG_STATUS
from kit.errors import DeadlineExceeded, Disconnected, JobError, NoResponders, NotStored
from kit.nats import Bus, Message, Server
from kit.nats import connection as module
from kit.nats.client import PENDING
from kit.nats.cluster import Cluster
from kit.nats.connection import Connection
from kit.otel import Telemetry

TASK, QUERY, RESULT = sample("agent_task"), sample("rag_query"), sample("rag_result")
SECONDS = 0.5
LATE = 2.0  # s; what a busy machine adds, and far below what any wait inside has for itself

Call = Callable[[Bus], Awaitable[Any]]
FIRST: dict[str, tuple[Call, type[Exception]]] = {
    "enqueue": (lambda bus: bus.enqueue(AGENT_TASKS, TASK, timeout=SECONDS), NotStored),
    "run": (lambda bus: bus.run(AGENT_TASKS, TASK, timeout=SECONDS), NotStored),
    "stored publish": (
        lambda bus: bus.publish(LLMOPS_OPERATIONS, sample("llm_operation"), timeout=SECONDS), NotStored,
    ),
    "request": (lambda bus: bus.request(RAG_QUERIES, QUERY, timeout=SECONDS), DeadlineExceeded),
    "dead letters": (lambda bus: bus.dead_letters(AGENT_TASKS, timeout=SECONDS), DeadlineExceeded),
    "replay": (lambda bus: bus.replay(AGENT_TASKS, timeout=SECONDS), DeadlineExceeded),
    "backlog": (lambda bus: bus.backlog(AGENT_TASKS, timeout=SECONDS), DeadlineExceeded),
}  # fmt: skip


@pytest.fixture
async def own() -> AsyncIterator[Server]:
    """A server that the test may harm."""
    async with Server() as server:
        yield server


@pytest.fixture
async def bus(own: Server, telemetry: Telemetry) -> AsyncIterator[Bus]:
    """A bus whose connection has sent nothing yet."""
    async with await own.connect("acme") as connection, Bus(connection, "acme", telemetry) as bus:
        yield bus


async def ends_in_time(work: Awaitable[Any], error: type[Exception], seconds: float = SECONDS) -> Exception:
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(error) as raised:
        await work
    assert loop.time() - started < seconds + LATE
    return raised.value


async def answer(_: Message) -> dict[str, Any]:
    return RESULT


# --- a server that stands still ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "error"), FIRST.values(), ids=list(FIRST))
async def test_what_is_made_at_first_use_counts(own: Server, bus: Bus, call: Call, error: type[Exception]) -> None:
    async with frozen(own):
        await ends_in_time(call(bus), error)


@pytest.mark.parametrize("duplicate", [False, True])
async def test_looking_a_result_up_counts(own: Server, bus: Bus, duplicate: bool) -> None:
    job = await bus.enqueue(AGENT_TASKS, TASK, message_id="one")
    if duplicate:
        job = await bus.enqueue(AGENT_TASKS, TASK, message_id="one")
    async with frozen(own):
        await ends_in_time(job.result(timeout=2.5), DeadlineExceeded, 2.5)
    async with await bus.work(AGENT_TASKS, lambda _: sample("agent_result")):
        assert (await job.result(10)).data == sample("agent_result")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda bus: bus.request(RAG_QUERIES, QUERY, timeout=SECONDS), DeadlineExceeded),
        (lambda bus: bus.publish(RAG_STATUS, sample("rag_status"), timeout=SECONDS), DeadlineExceeded),
        (lambda bus: bus.enqueue(AGENT_TASKS, TASK, timeout=SECONDS), NotStored),
        (lambda bus: bus.run(AGENT_TASKS, TASK, timeout=SECONDS), NotStored),
        (lambda bus: at_once(*(bus.enqueue(AGENT_TASKS, TASK, timeout=SECONDS) for _ in range(40))), NotStored),
    ],
    ids=["request", "publish", "enqueue", "run", "many"],
)
async def test_waiting_for_room_counts(own: Server, bus: Bus, call: Call, error: type[Exception]) -> None:
    with pytest.raises(NoResponders):
        await bus.request(RAG_QUERIES, QUERY)  # opens the inbox
    await bus.enqueue(AGENT_TASKS, TASK)
    async with frozen(own):
        filling = await fill(bus.connection)
        await ends_in_time(call(bus), error)
    await asyncio.gather(*filling)
    assert bus.connection.counters.disconnects == 0
    await bus.enqueue(AGENT_TASKS, TASK, timeout=20)


async def fill(connection: Connection) -> list[asyncio.Task[None]]:
    """Publish until nothing more is taken: the socket is full, and so is the buffer before it."""
    sending: list[asyncio.Task[None]] = []

    def is_full() -> bool:
        sending.append(asyncio.ensure_future(connection.publish("test.fill", b"x" * 900_000)))
        return connection.client._pending_data_size > PENDING

    await eventually(is_full)
    return sending


async def at_once(*calls: Awaitable[Any]) -> None:
    await asyncio.gather(*calls)


async def test_a_silent_server_is_noticed(own: Server, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when much is unsent, which nats-py would wait to get rid of."""
    assert module._PING * 4 <= 10
    monkeypatch.setattr(module, "_PING", 0.2)
    async with await own.connect("acme") as connection:
        async with frozen(own):
            filling = await fill(connection)
            await connection.wait_disconnected(5.0)
            with pytest.raises(Disconnected, match="nothing was sent"):
                await connection.request("test.silent", b"x", timeout=0.2)
        assert any(await asyncio.gather(*filling, return_exceptions=True))
        await connection.wait_connected(10.0)
        await connection.flush()


async def test_a_server_that_sends_a_lot_is_not_taken_for_silent(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its PONG is behind all that."""
    monkeypatch.setattr(module, "_PING", 0.05)
    async with await own.connect("acme") as connection:
        heard = 0

        def hear(_: Any) -> None:
            nonlocal heard
            heard += 1
            connection.client._pings_outstanding += heard % 2  # as if no PONG had come for this long

        await connection.subscribe("test.much", hear)
        for _ in range(100):
            await connection.publish("test.much", b"x" * 1000)
            await asyncio.sleep(0.01)
        await eventually(lambda: heard == 100)
        assert connection.counters.disconnects == 0


# --- a server that is away for a moment -------------------------------------------------------------------------


async def test_what_cannot_be_sent_yet_waits_and_is_sent_once(own: Server, bus: Bus) -> None:
    async with await own.connect("acme") as other, Bus(other, "acme", bus.telemetry) as worker:
        seen: list[str] = []

        async def note(message: Message) -> dict[str, Any]:
            seen.append(message.data["query_id"])
            return RESULT

        await worker.serve(RAG_QUERIES, note)
        heard: list[Message] = []
        await worker.subscribe(RAG_STATUS, heard.append)
        store = await bus.store("things")
        revision = await store.put("a", b"1")
        own.crash()
        await bus.connection.wait_disconnected(5.0)
        answers = await asyncio.gather(
            bus.request(RAG_QUERIES, QUERY | {"query_id": "q1"}, timeout=20),
            bus.request(RAG_QUERIES, QUERY | {"query_id": "q2"}, timeout=20),
            store.get("a"),
            store.put("b", b"2"),
            store.keys(),
            bus.backlog(AGENT_TASKS),
            bus.store("others"),
            bus.put_object("o", b"x"),
            bus.enqueue(AGENT_TASKS, TASK, timeout=20),
        )
    assert answers[0].data == answers[1].data == RESULT
    assert sorted(seen) == ["q1", "q2"]
    assert answers[2] is not None
    assert answers[2].value == b"1"
    assert answers[3] == revision + 1
    assert bus.connection.counters.reconnects == 1


async def test_an_answer_waits_for_the_connection_too(own: Server, bus: Bus) -> None:
    """The caller sits elsewhere; only the connection of who answers breaks."""
    async with await own.connect("acme") as other, Bus(other, "acme", bus.telemetry) as worker:

        async def cut(_: Message) -> dict[str, Any]:
            other.client.abort()
            await other.wait_disconnected(5.0)
            return RESULT

        await worker.serve(RAG_QUERIES, cut)
        assert (await bus.request(RAG_QUERIES, QUERY, timeout=10)).data == RESULT


async def test_a_server_that_stays_away_costs_the_deadline(own: Server, bus: Bus) -> None:
    store = await bus.store("things")
    await own.halt()
    await bus.connection.wait_disconnected(5.0)
    for call in (
        bus.request(RAG_QUERIES, QUERY, timeout=SECONDS),
        bus.publish(RAG_STATUS, sample("rag_status"), timeout=SECONDS),
    ):
        assert "nothing was sent" in str(await ends_in_time(call, Disconnected))
    await ends_in_time(bus.enqueue(AGENT_TASKS, TASK, timeout=SECONDS), NotStored)
    await ends_in_time(store.get("a"), Disconnected, 5.0)
    bus.connection.patient = False  # its user stops: nothing waits any more
    await ends_in_time(store.get("a"), Disconnected, 0.0)
    await ends_in_time(bus.request(RAG_QUERIES, QUERY, timeout=10), Disconnected, 0.0)


async def test_a_watcher_goes_on_where_it_was_soon_after_a_crash(own: Server, bus: Bus) -> None:
    store = await bus.store("things")
    await store.put("before", b"1")
    seen: list[tuple[str, bytes | None]] = []

    async def watch() -> None:
        async for entry in store.watch():
            seen.append((entry.key, entry.value))

    watching = asyncio.ensure_future(watch())
    await eventually(lambda: seen == [("before", b"1")])
    own.crash()
    await bus.connection.wait_disconnected(5.0)
    await store.put("after", b"2")
    await eventually(lambda: ("after", b"2") in seen, 8.0)
    assert seen == [("before", b"1"), ("after", b"2")]
    watching.cancel()


# --- a cluster without a quorum ---------------------------------------------------------------------------------


async def test_without_a_quorum_every_call_ends_in_time_and_says_why(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with Cluster(tenants=("acme",)) as cluster, await cluster.servers[0].connect("acme") as connection:
        bus = Bus(connection, "acme", telemetry)
        job = await bus.enqueue(AGENT_TASKS, TASK, timeout=20)
        await cluster.kill_node(1)
        await cluster.kill_node(2)
        for name, (call, error) in FIRST.items():
            if name not in ("request", "backlog"):  # a server that led before still tells what it knows
                raised = await ends_in_time(call(bus), error)
                assert "covers the subject" not in str(raised)
        await ends_in_time(job.result(timeout=2.5), DeadlineExceeded, 2.5)
        with pytest.raises((JobError, NoResponders)):  # a row first used
            await bus.publish(LLMOPS_OPERATIONS, sample("llm_operation"), timeout=SECONDS)
        await asyncio.wait_for(bus.close(), 15)


async def test_who_serves_in_a_cluster_may_come_to_another_server(telemetry: Telemetry) -> None:
    """A caller whose own connection is whole sees no error while they are on their way."""
    async with (
        Cluster(tenants=("acme",)) as cluster,
        await cluster.servers[0].connect("acme") as here,
        await cluster.connect("acme") as there,
    ):
        caller, worker = Bus(here, "acme", telemetry), Bus(there, "acme", telemetry)
        await worker.serve(RAG_QUERIES, answer)
        await eventually(lambda: served(caller))
        there.client.abort()  # as when its server is lost
        await there.wait_disconnected(5.0)
        for _ in range(50):
            assert (await caller.request(RAG_QUERIES, QUERY, timeout=10)).data == RESULT
        await worker.close()
        for _ in range(2):
            with pytest.raises(NoResponders):
                await caller.request(RAG_QUERIES, QUERY, timeout=10)
        assert not caller._served


async def served(bus: Bus) -> bool:
    try:
        await bus.request(RAG_QUERIES, QUERY, timeout=5)
    except NoResponders:
        return False
    return True
