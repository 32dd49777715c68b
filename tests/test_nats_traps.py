"""What bare nats-py does to the unwary, and what the bus does instead.

Those of the connection itself (flush, oversize, buffers) are in ``test_nats_connection``; here is what stands on it.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import nats
import nats.errors
import pytest
from job_worker import QUICK
from nats.js import api
from samples import eventually, sample

from kit import codec
from kit.catalogue import AGENT_TASKS, LLMOPS_OPERATIONS, RAG_QUERIES, RAG_STATUS
from kit.errors import BusError, ForeignLoopError, JobDead, NotStored, PayloadTooLarge
from kit.nats import Bus, Message, Server, connect

TASK = sample("agent_task")
RESULT = sample("agent_result")


@pytest.fixture
async def raw(tenant_bus: Bus, server: Server) -> AsyncIterator[nats.NATS]:
    """A bare client in the same account."""
    who = server.credentials(tenant_bus.tenant_id)
    client = await nats.connect(server.url, user=who.user, password=who.password)
    yield client
    await client.close()


async def done(_: Message) -> dict[str, Any]:
    return RESULT


async def fail(_: Message) -> dict[str, Any]:
    raise RuntimeError("not this time")


# --- a subscription is not active when subscribe() returns ------------------------------------------------------


async def test_who_subscribed_hears_what_another_connection_sends_next(tenant_bus: Bus, raw: nats.NATS) -> None:
    subject, payload = (
        RAG_STATUS.subject(tenant_bus.tenant_id),
        codec.encode("rag_status", sample("rag_status", tenant_id=tenant_bus.tenant_id)),
    )
    for _ in range(20):
        heard = asyncio.Event()

        async def hear(_: Message, heard: asyncio.Event = heard) -> None:
            heard.set()

        async with await tenant_bus.subscribe(RAG_STATUS, hear):
            await raw.publish(subject, payload)
            await asyncio.wait_for(heard.wait(), 2)


async def test_a_durable_subscriber_has_its_place_when_subscribe_returns(tenant_bus: Bus, raw: nats.NATS) -> None:
    heard: list[str] = []

    async def hear(message: Message) -> None:
        heard.append(message.data["operation_id"])

    async with await tenant_bus.subscribe(LLMOPS_OPERATIONS, hear, durable="log"):
        payload = codec.encode(
            "llm_operation", sample("llm_operation", tenant_id=tenant_bus.tenant_id, operation_id="at once")
        )
        await raw.jetstream().publish(LLMOPS_OPERATIONS.subject(tenant_bus.tenant_id), payload)
        await eventually(lambda: heard == ["at once"])


# --- a message too large closes the connection for good ---------------------------------------------------------


async def test_headers_count_too_and_the_connection_lives(tenant_bus: Bus) -> None:
    data = sample("agent_task", prompt="")
    room = tenant_bus.connection.max_payload - len(codec.encode("agent_task", data))
    fitting = data | {"prompt": "x" * room}  # the body alone; with headers it is too much
    with pytest.raises(PayloadTooLarge) as raised:
        await tenant_bus.enqueue(AGENT_TASKS, fitting)
    assert raised.value.size > raised.value.limit
    async with await tenant_bus.work(AGENT_TASKS, done):
        assert (await tenant_bus.run(AGENT_TASKS, TASK, timeout=5)).data == RESULT
    assert tenant_bus.connection.counters.disconnects == 0


# --- a publish into a dead connection seems to succeed ----------------------------------------------------------


async def test_nothing_is_stored_while_disconnected_and_it_is_said(telemetry: Any) -> None:
    async with Server(tenants=("acme",)) as server:
        who = server.credentials("acme")
        connection = await connect(server.url, tenant_id="acme", user=who.user, password=who.password)
        bus = Bus(connection, "acme", telemetry)
        await bus.enqueue(AGENT_TASKS, TASK)
        await bus.publish(LLMOPS_OPERATIONS, sample("llm_operation"))
        await server.halt()
        await connection.wait_disconnected(5)
        with pytest.raises(NotStored) as raised:
            await bus.enqueue(AGENT_TASKS, TASK, message_id="kept", timeout=0.2)
        assert "down" in str(raised.value)
        with pytest.raises(NotStored):
            await bus.publish(LLMOPS_OPERATIONS, sample("llm_operation"), timeout=0.2)
        await server.start()
        await connection.wait_connected(10)
        job = await bus.enqueue(AGENT_TASKS, TASK, message_id="kept")
        assert not job.duplicate
        await connection.close()


async def test_what_breaks_in_between_is_tried_again_under_the_same_id(telemetry: Any) -> None:
    async with Server(tenants=("acme",)) as server:
        who = server.credentials("acme")
        connection = await connect(server.url, tenant_id="acme", user=who.user, password=who.password)
        bus = Bus(connection, "acme", telemetry)
        await bus.enqueue(AGENT_TASKS, TASK)
        await server.halt()
        await connection.wait_disconnected(5)
        storing = asyncio.ensure_future(bus.enqueue(AGENT_TASKS, TASK, timeout=10.0))
        await asyncio.sleep(0.05)
        await server.start()
        await storing
        info = await connection.jetstream().stream_info(AGENT_TASKS.stream or "")
        assert info.state.messages == 2
        await connection.close()


# --- a retry after a timeout stores a second copy ---------------------------------------------------------------


async def test_bare_a_retry_stores_twice_and_the_bus_once(tenant_bus: Bus, raw: nats.NATS) -> None:
    await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id="one")
    subject, payload = AGENT_TASKS.subject(tenant_bus.tenant_id), codec.encode("agent_task", TASK)
    await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id="one")
    info = await raw.jetstream().stream_info(AGENT_TASKS.stream or "")
    assert info.state.messages == 1
    for _ in range(2):
        await raw.jetstream().publish(subject, payload)
    info = await raw.jetstream().stream_info(AGENT_TASKS.stream or "")
    assert info.state.messages == 3


# --- publish_async leaks a permit with every error --------------------------------------------------------------


async def test_failures_use_nothing_up(tenant_bus: Bus) -> None:
    await tenant_bus.enqueue(AGENT_TASKS, TASK)
    js = tenant_bus.connection.jetstream()
    config = (await js.stream_info(AGENT_TASKS.stream or "")).config
    config.max_msgs, config.discard = 1, api.DiscardPolicy.NEW
    await js.update_stream(config)

    async def failures() -> int:
        attempts = (tenant_bus.enqueue(AGENT_TASKS, TASK, timeout=0.05) for _ in range(500))
        return sum(isinstance(end, NotStored) for end in await asyncio.gather(*attempts, return_exceptions=True))

    assert await failures() == 500
    await asyncio.sleep(0)  # the loop itself still holds what it woke this task with
    gc.collect()
    assert len(tenant_bus._desk._waiting) <= 1
    assert len(tenant_bus.connection._listeners) == 0
    config.max_msgs = -1
    await js.update_stream(config)
    await asyncio.gather(*(tenant_bus.enqueue(AGENT_TASKS, TASK) for _ in range(50)))


# --- nak() without delay burns every delivery in milliseconds ---------------------------------------------------


async def test_no_attempt_follows_at_once(tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(QUICK, policy=replace(QUICK.policy, backoff=()))
    client = tenant_bus.connection.client
    send, naks = client.publish, []

    async def publish(subject: str, payload: bytes = b"", *rest: Any, **more: Any) -> None:
        if payload.startswith(b"-NAK"):
            naks.append(codec.loads(payload[5:])["delay"])
        await send(subject, payload, *rest, **more)

    monkeypatch.setattr(client, "publish", publish)
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with await tenant_bus.work(row, fail):
        with pytest.raises(JobDead):
            await tenant_bus.run(row, TASK, timeout=5)
    assert loop.time() - started > 0.2
    assert len(naks) == 2
    assert min(naks) >= 100_000_000  # ns


# --- after max_deliver the poison stays in the stream, and only an advisory tells -------------------------------


async def test_bare_poison_stays(raw: nats.NATS) -> None:
    js = raw.jetstream()
    await js.add_stream(name="BARE", subjects=["bare"], retention=api.RetentionPolicy.WORK_QUEUE)
    subscription = await js.pull_subscribe("bare", durable="w", config=api.ConsumerConfig(max_deliver=2))
    await js.publish("bare", b"poison")
    for _ in range(2):
        await (await subscription.fetch(1, timeout=1))[0].nak()
    with pytest.raises(nats.errors.TimeoutError):
        await subscription.fetch(1, timeout=0.2)
    assert (await js.stream_info("BARE")).state.messages == 1


async def test_the_bus_puts_poison_aside(tenant_bus: Bus, raw: nats.NATS) -> None:
    async with await tenant_bus.work(QUICK, fail):
        with pytest.raises(JobDead):
            await tenant_bus.run(QUICK, TASK, timeout=5)
        await raw.jetstream().publish(QUICK.subject(tenant_bus.tenant_id), b"no envelope")
        letters = await eventually(lambda: _letters(tenant_bus, 2))
    assert [letter.reason for letter in letters] == ["attempts_exhausted", "contract_violation"]
    assert (await raw.jetstream().stream_info(QUICK.stream or "")).state.messages == 0


async def _letters(bus: Bus, count: int) -> list[Any]:
    letters = await bus.dead_letters(QUICK)
    return letters if len(letters) == count else []


async def test_a_dead_letter_that_cannot_be_stored_leaves_the_job_where_it_is(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kit.nats.dead._SECONDS", 0.1)
    monkeypatch.setattr("kit.nats.working._BURY_AGAIN", 0.2)
    row = replace(QUICK, policy=replace(QUICK.policy, max_attempts=1))
    async with await tenant_bus.work(row, fail) as worker:
        js = tenant_bus.connection.jetstream()
        config = (await js.stream_info("KIT_DEAD")).config
        config.max_msgs, config.discard = 1, api.DiscardPolicy.NEW
        await js.update_stream(config)
        await tenant_bus.enqueue(row, TASK, message_id="unburied")
        await eventually(lambda: worker.handled >= 1)
        assert (await js.stream_info(row.stream or "")).state.messages == 1
        config.max_msgs = -1
        await js.update_stream(config)
        letters = await eventually(lambda: _letters(tenant_bus, 1), 10)
    assert letters[0].message_id == "unburied"
    assert (await js.stream_info(row.stream or "")).state.messages == 0


# --- a late acknowledgement of an expired worker is accepted ----------------------------------------------------


async def test_bare_a_late_acknowledgement_takes_the_job_from_its_new_worker(raw: nats.NATS) -> None:
    js = raw.jetstream()
    await js.add_stream(name="BARE", subjects=["bare"], retention=api.RetentionPolicy.WORK_QUEUE)
    subscription = await js.pull_subscribe("bare", durable="w", config=api.ConsumerConfig(ack_wait=0.2))
    await js.publish("bare", b"job")
    late = (await subscription.fetch(1, timeout=1))[0]
    await asyncio.sleep(0.3)
    await subscription.fetch(1, timeout=1)  # another worker has it now
    await late.ack_sync()
    assert (await js.stream_info("BARE")).state.messages == 0


async def test_the_bus_acknowledges_late_only_with_a_result_that_counts(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats are lost on the way, so the job is given away while its first worker is still at it."""
    client = tenant_bus.connection.client
    send = client.publish

    async def publish(subject: str, payload: bytes = b"", *rest: Any, **more: Any) -> None:
        if payload != b"+WPI":
            await send(subject, payload, *rest, **more)

    monkeypatch.setattr(client, "publish", publish)
    ended: list[int] = []

    async def slow_then_quick(message: Message) -> dict[str, Any]:
        if message.attempt == 1:
            await asyncio.sleep(1.0)
        ended.append(message.attempt)
        return RESULT | {"output": {"attempt": message.attempt}}

    async with (
        await tenant_bus.work(QUICK, slow_then_quick) as one,
        await tenant_bus.work(QUICK, slow_then_quick) as other,
    ):
        result = await tenant_bus.run(QUICK, TASK, message_id="contested", timeout=5)
        assert result.data["output"] == {"attempt": 2}
        await eventually(lambda: ended == [2, 1] and one.in_flight == other.in_flight == 0)
        await tenant_bus.connection.flush()
        again = await tenant_bus.enqueue(QUICK, TASK, message_id="contested")
        assert (await again.result(timeout=5)).data["output"] == {"attempt": 2}
    assert await tenant_bus.dead_letters(QUICK) == []


# --- another event loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", ["publish", "request", "enqueue", "work", "serve", "store", "dead_letters", "get_object"]
)
async def test_a_foreign_loop_is_refused_at_once(tenant_bus: Bus, verb: str) -> None:
    calls: dict[str, Any] = {
        "publish": lambda: tenant_bus.publish(RAG_STATUS, sample("rag_status", tenant_id=tenant_bus.tenant_id)),
        "request": lambda: tenant_bus.request(RAG_QUERIES, sample("rag_query", tenant_id=tenant_bus.tenant_id)),
        "enqueue": lambda: tenant_bus.enqueue(AGENT_TASKS, TASK),
        "work": lambda: tenant_bus.work(AGENT_TASKS, done),
        "serve": lambda: tenant_bus.serve(RAG_QUERIES, done),
        "store": lambda: tenant_bus.store("things"),
        "dead_letters": lambda: tenant_bus.dead_letters(AGENT_TASKS),
        "get_object": lambda: tenant_bus.get_object({}),
    }
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(ForeignLoopError):
        await asyncio.to_thread(lambda: asyncio.run(calls[verb]()))
    assert loop.time() - started < 1.0


# --- a handler's task is cancelled or its worker closed: nothing hangs ------------------------------------------


async def test_a_caller_that_is_cancelled_leaves_nothing_behind(tenant_bus: Bus) -> None:
    async def never(_: Message) -> dict[str, Any]:
        await asyncio.sleep(60)
        return sample("rag_result")

    worker = await tenant_bus.serve(RAG_QUERIES, never)
    asking = asyncio.ensure_future(
        tenant_bus.request(RAG_QUERIES, sample("rag_query", tenant_id=tenant_bus.tenant_id), timeout=60)
    )
    await eventually(lambda: worker.in_flight == 1)
    asking.cancel()
    await asyncio.wait({asking})
    assert len(tenant_bus.connection._listeners) == 0
    await worker.stop(timeout=0.0)


async def test_closing_the_bus_ends_all_that_it_began(tenant_bus: Bus) -> None:
    await tenant_bus.dead_letters(QUICK)  # nats-py begins its own
    before = asyncio.all_tasks()
    await tenant_bus.work(QUICK, done, concurrency=4)
    await tenant_bus.serve(RAG_QUERIES, done)
    await tenant_bus.run(QUICK, TASK, timeout=5)
    await tenant_bus.close()
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()
    with pytest.raises(BusError):
        await tenant_bus.enqueue(QUICK, TASK)
