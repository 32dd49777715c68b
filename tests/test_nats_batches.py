"""Jobs that are enqueued at once are stored together: all of them, each once, whatever comes between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from samples import sample

from kit.catalogue import AGENT_TASKS, RAG_INGEST
from kit.errors import DeadlineExceeded, NotStored
from kit.nats import Bus, Message, Server, connect
from kit.nats.batches import _FEW, _MOST, Batches
from kit.nats.jobs import Job
from kit.nats.streams import Stored

TASK, RESULT = sample("agent_task"), sample("agent_result")
MANY = 200


async def _enqueue(bus: Bus, count: int) -> list[Job]:
    return list(await asyncio.gather(*(bus.enqueue(AGENT_TASKS, TASK) for _ in range(count))))


async def _kept(bus: Bus, job: Job) -> Stored:
    kept = await bus._streams.at("AI_AGENT_TASKS", job.sequence)
    assert kept is not None
    return kept


def _batches(kept: list[Stored]) -> list[str]:
    return [message.headers["Nats-Batch-Id"] for message in kept if "Nats-Batch-Id" in message.headers]


class Done:
    """A handler that notes what it did."""

    def __init__(self) -> None:
        self.ids: list[str | None] = []

    async def __call__(self, message: Message) -> dict[str, Any]:
        self.ids.append(message.message_id)
        return RESULT


async def test_many_at_once_are_few_batches_and_each_knows_its_place(tenant_bus: Bus) -> None:
    jobs = [*await _enqueue(tenant_bus, 1), *await _enqueue(tenant_bus, MANY)]  # the first makes the stream
    kept = [await _kept(tenant_bus, job) for job in jobs]
    assert [message.headers["Nats-Msg-Id"] for message in kept] == [job.message_id for job in jobs]
    batched = _batches(kept)
    assert len(batched) > MANY - _FEW
    assert len(set(batched)) < MANY / _FEW
    assert not any(job.duplicate for job in jobs)
    done = Done()
    async with await tenant_bus.work(AGENT_TASKS, done, concurrency=16):
        for job in jobs:
            await job.result(timeout=20)
    assert sorted(map(str, done.ids)) == sorted(job.message_id for job in jobs)


async def test_a_job_that_comes_alone_goes_alone_and_so_do_few(tenant_bus: Bus) -> None:
    alone = [await tenant_bus.enqueue(AGENT_TASKS, TASK) for _ in range(3)]
    few = await _enqueue(tenant_bus, _FEW)
    assert not _batches([await _kept(tenant_bus, job) for job in alone + few])


async def test_large_jobs_go_alone(tenant_bus: Bus) -> None:
    wide = TASK | {"parameters": {"text": "x" * 20_000}}
    jobs = await asyncio.gather(*(tenant_bus.enqueue(AGENT_TASKS, wide) for _ in range(50)))
    assert not _batches([await _kept(tenant_bus, job) for job in jobs])


async def test_one_that_is_there_already_is_told_so_and_spoils_nothing(tenant_bus: Bus) -> None:
    given = [tenant_bus.enqueue(AGENT_TASKS, TASK, message_id=f"given-{number}") for number in range(MANY)]
    first = await asyncio.gather(*given)
    assert _batches([await _kept(tenant_bus, job) for job in first])
    names = [f"given-{number % 120 + 100}" for number in range(MANY)]  # some are there, some are new, some come twice
    second = await asyncio.gather(*(tenant_bus.enqueue(AGENT_TASKS, TASK, message_id=name) for name in names))
    assert [job.message_id for job in second] == names
    assert len({job.sequence for job in (*first, *second)}) == MANY + 20
    assert sum(not job.duplicate for job in second) == 20
    third = await _enqueue(tenant_bus, MANY)
    assert _batches([await _kept(tenant_bus, job) for job in third]), "what was spoilt once is not given up"


async def test_more_than_a_batch_takes_are_several(tenant_bus: Bus) -> None:
    jobs = await _enqueue(tenant_bus, 3 * _MOST)
    kept = [await _kept(tenant_bus, job) for job in jobs]
    sizes = [_batches(kept).count(batch) for batch in set(_batches(kept))]
    assert max(sizes) <= _MOST
    assert sum(sizes) > 2 * _MOST
    assert len({job.sequence for job in jobs}) == 3 * _MOST


async def test_where_batches_are_not_allowed_each_is_stored_by_itself(tenant_bus: Bus) -> None:
    await tenant_bus.enqueue(AGENT_TASKS, TASK)
    config = (await tenant_bus._streams.context.stream_info("AI_AGENT_TASKS")).config
    config.allow_atomic = False
    await tenant_bus._streams.context.update_stream(config)
    jobs = await _enqueue(tenant_bus, MANY)
    assert len({job.sequence for job in jobs}) == MANY
    assert not _batches([await _kept(tenant_bus, job) for job in jobs])


async def test_a_batch_without_an_answer_is_stored_one_by_one_and_once(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst of both: it was stored, and its acknowledgement was lost."""
    stored = Batches._stored

    async def unheard(*given: Any) -> int | None:
        await stored(*given)
        raise DeadlineExceeded("the stream", seconds=0.1)

    monkeypatch.setattr(Batches, "_stored", unheard)
    jobs = await _enqueue(tenant_bus, MANY)
    assert len({job.sequence for job in jobs}) == MANY
    assert sum(job.duplicate for job in jobs) > MANY / 2
    done = Done()
    async with await tenant_bus.work(AGENT_TASKS, done, concurrency=16):
        for job in jobs:
            await job.result(timeout=20)
    assert len(done.ids) == len(set(done.ids)) == MANY


async def test_who_leaves_while_waiting_sends_nothing(tenant_bus: Bus) -> None:
    waiting = [asyncio.ensure_future(tenant_bus.enqueue(AGENT_TASKS, TASK)) for _ in range(MANY)]
    await asyncio.sleep(0)
    for task in waiting[_FEW:]:
        task.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    stored = [result for result in results if isinstance(result, Job)]
    state = (await tenant_bus._streams.context.stream_info("AI_AGENT_TASKS")).state
    assert state.messages == len(stored) < MANY
    assert len(await _enqueue(tenant_bus, MANY)) == MANY


async def test_a_server_that_crashes_among_batches_loses_no_job_that_was_stored(telemetry: Any) -> None:
    async with Server(tenants=("acme",)) as server:
        who = server.credentials("acme")
        access: dict[str, Any] = {"tenant_id": "acme", "user": who.user, "password": who.password}
        async with await connect(server.url, **access) as connection, Bus(connection, "acme", telemetry) as bus:
            await bus.enqueue(AGENT_TASKS, TASK)
            first = [asyncio.ensure_future(bus.enqueue(AGENT_TASKS, TASK, timeout=20)) for _ in range(MANY)]
            await asyncio.sleep(0.005)
            server.crash()
            rest = [asyncio.ensure_future(bus.enqueue(AGENT_TASKS, TASK, timeout=20)) for _ in range(MANY)]
            jobs = await asyncio.gather(*first, *rest)
            done = Done()
            async with await bus.work(AGENT_TASKS, done, concurrency=16):
                for job in jobs:
                    await job.result(timeout=20)
            assert {job.message_id for job in jobs} <= set(done.ids)
            assert len(done.ids) == len(set(done.ids))


async def test_a_deadline_holds_while_nobody_answers(tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    await tenant_bus.enqueue(RAG_INGEST, sample("rag_document", tenant_id=tenant_bus.tenant_id))
    await tenant_bus._streams.context.delete_stream("AI_RAG_INGEST")
    monkeypatch.setattr(tenant_bus._streams, "again", lambda operation: asyncio.sleep(60))
    began = asyncio.get_running_loop().time()
    asked = (
        tenant_bus.enqueue(RAG_INGEST, sample("rag_document", tenant_id=tenant_bus.tenant_id), timeout=0.5)
        for _ in range(MANY)
    )
    failed = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(error, NotStored) for error in failed)
    assert asyncio.get_running_loop().time() - began < 2.0
