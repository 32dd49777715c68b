"""Jobs are done once and never lost: retried, buried with their evidence, sent again; workers may die at any point."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest
from job_worker import QUICK
from nats.js import api
from samples import eventually, sample
from worker_processes import scripts

from kit import codec
from kit.catalogue import (
    AGENT_TASKS,
    GATEWAY_REQUESTS,
    JOBS_DEAD,
    JOBS_DEDUPLICATED,
    JOBS_RETRIED,
    OPERATIONS,
    RAG_INGEST,
    JobPolicy,
    Mode,
)
from kit.errors import ComponentError, ConfigurationError, DeadlineExceeded, JobDead, NotStored
from kit.nats import Bus, Message, Server, connect
from kit.nats.layout import NORMAL
from kit.nats.results import Recent

TASK = sample("agent_task")
RESULT = sample("agent_result")


class Effects:
    """A handler that counts what it did, by job."""

    def __init__(self, *, fail: int = 0, error: Exception | None = None, seconds: float = 0.0) -> None:
        self.done: list[str | None] = []
        self.attempts: list[int] = []
        self.began: list[float] = []
        self._fail, self._error, self._seconds = fail, error or RuntimeError("not yet"), seconds

    async def __call__(self, message: Message) -> dict[str, Any]:
        self.attempts.append(message.attempt)
        self.began.append(asyncio.get_running_loop().time())
        if message.attempt <= self._fail:
            raise self._error
        await asyncio.sleep(self._seconds)
        self.done.append(message.message_id)
        return RESULT


class Never(ComponentError):
    retryable = False


# --- the plain way ----------------------------------------------------------------------------------------------


async def test_a_job_is_done_and_its_result_comes_back(tenant_bus: Bus) -> None:
    effects = Effects()
    async with await tenant_bus.work(AGENT_TASKS, effects):
        job = await tenant_bus.enqueue(AGENT_TASKS, TASK)
        result = await job.result(timeout=5)
    assert (result.data, result.message_type, result.message_id) == (RESULT, "agent_result", job.message_id)
    assert effects.done == [job.message_id]
    assert job.done
    assert "done" in repr(job)


async def test_a_job_waits_for_a_worker(tenant_bus: Bus) -> None:
    job = await tenant_bus.enqueue(AGENT_TASKS, TASK)
    with pytest.raises(DeadlineExceeded):
        await job.result(timeout=0.05)
    async with await tenant_bus.work(AGENT_TASKS, Effects()):
        assert (await job.result(timeout=5)).data == RESULT


async def test_a_result_that_came_before_waiting_is_there(tenant_bus: Bus) -> None:
    async with await tenant_bus.work(AGENT_TASKS, Effects()):
        job = await tenant_bus.enqueue(AGENT_TASKS, TASK)
        await eventually(lambda: job.done)
        assert (await job.result(timeout=0)).data == RESULT
        assert (await job.result(timeout=0)).data == RESULT


async def test_nobody_has_to_wait(tenant_bus: Bus) -> None:
    effects = Effects()
    async with await tenant_bus.work(AGENT_TASKS, effects, concurrency=4) as worker:
        for _ in range(20):
            await tenant_bus.enqueue(AGENT_TASKS, TASK)
        gc.collect()
        await eventually(lambda: worker.handled == 20)
    assert len(set(effects.done)) == 20


async def test_many_that_begin_at_once_share_one_subscription(tenant_bus: Bus) -> None:
    before = len(tenant_bus.connection.client._subs)
    await asyncio.gather(*(tenant_bus.enqueue(AGENT_TASKS, TASK) for _ in range(20)))
    await asyncio.gather(*(tenant_bus.dead_letters(AGENT_TASKS) for _ in range(5)))
    # Results, advisories, and nats-py's own two inboxes.
    assert len(tenant_bus.connection.client._subs) - before <= 4


async def test_a_result_missed_while_disconnected_is_looked_up(tenant_bus: Bus, server: Server) -> None:
    who = server.credentials(tenant_bus.tenant_id)
    async with await connect(server.url, user=who.user, password=who.password) as connection:
        caller = Bus(connection, tenant_bus.tenant_id, tenant_bus.telemetry)
        job = await caller.enqueue(AGENT_TASKS, TASK)
        caller._desk._waiting.clear()  # as if its subscription had been down when the result came
        async with await tenant_bus.work(AGENT_TASKS, Effects()):
            assert (await job.result(timeout=6)).data == RESULT


async def test_run_waits_within_one_span(tenant_bus: Bus, telemetry: Any) -> None:
    async with await tenant_bus.work(AGENT_TASKS, Effects(seconds=0.05)):
        result = await tenant_bus.run(AGENT_TASKS, TASK, timeout=5)
    assert result.data == RESULT
    spans = telemetry.recorder.spans().set_index("name")
    sent, handled = spans.loc[AGENT_TASKS.send_span.name], spans.loc[AGENT_TASKS.handle_span.name]
    assert (sent["kind"], handled["kind"]) == ("client", "consumer")
    assert handled["parent_id"] == sent["span_id"]
    assert sent["duration_ms"] > handled["duration_ms"] >= 50
    assert handled["attributes"]["messaging.message.id"] == sent["attributes"]["messaging.message.id"]


async def test_enqueue_produces_and_work_consumes(tenant_bus: Bus, telemetry: Any) -> None:
    async with await tenant_bus.work(AGENT_TASKS, Effects()):
        job = await tenant_bus.enqueue(AGENT_TASKS, TASK)
        await job.result(timeout=5)
    spans = telemetry.recorder.spans().set_index("name")
    sent, handled = spans.loc[AGENT_TASKS.send_span.name], spans.loc[AGENT_TASKS.handle_span.name]
    assert (sent["kind"], handled["kind"]) == ("producer", "consumer")
    assert handled["trace_id"] == sent["trace_id"]
    assert sent["attributes"]["messaging.message.id"] == job.message_id
    assert handled["attributes"]["messaging.consumer.group.name"] == AGENT_TASKS.queue


async def test_a_handler_may_have_nothing_to_say(tenant_bus: Bus) -> None:
    async def silent(_: Message) -> None:
        return None

    async with await tenant_bus.work(AGENT_TASKS, silent):
        assert (await tenant_bus.run(AGENT_TASKS, TASK, timeout=5)).data == {}


async def test_every_job_of_the_catalogue_has_a_queue(tenant_bus: Bus) -> None:
    for row in OPERATIONS:
        if row.mode is Mode.JOB:
            async with await tenant_bus.work(row, lambda message: None):  # type: ignore[arg-type, return-value]
                pass
    names = {info.config.name for info in await tenant_bus.connection.jetstream().streams_info()}
    assert {row.stream for row in OPERATIONS if row.mode is Mode.JOB} <= names
    # A stream that covered a request's subject would answer the caller.
    subjects = [s for info in await tenant_bus.connection.jetstream().streams_info() for s in info.config.subjects]
    for row in OPERATIONS:
        if row.mode is Mode.REQUEST:
            assert not [subject for subject in subjects if subject.startswith(row.prefix + ".")]


async def test_concurrency_is_bounded(tenant_bus: Bus) -> None:
    running = most = 0

    async def count(_: Message) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return RESULT

    async with await tenant_bus.work(AGENT_TASKS, count, concurrency=3):
        jobs = [await tenant_bus.enqueue(AGENT_TASKS, TASK) for _ in range(30)]
        await asyncio.gather(*(job.result(timeout=5) for job in jobs))
    assert most == 3


async def test_urgent_jobs_overtake_others(tenant_bus: Bus) -> None:
    order: list[str | None] = []

    async def note(message: Message) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        order.append(message.message_id)
        return RESULT

    jobs = [
        await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id=f"{priority}-{number}", priority=priority)
        for number in range(4)
        for priority in (1, 5, 9)
    ]
    async with await tenant_bus.work(AGENT_TASKS, note, concurrency=1):
        await asyncio.gather(*(job.result(timeout=10) for job in jobs))
    assert order.index("9-3") < order.index("5-3") < order.index("1-3")
    assert [name for name in order if name and name.startswith("9")] == [f"9-{number}" for number in range(4)]


async def test_an_urgent_job_that_dies_is_sent_again_as_urgent(tenant_bus: Bus) -> None:
    async with await tenant_bus.work(QUICK, Effects(fail=99, error=Never("never"))):
        job = await tenant_bus.enqueue(QUICK, TASK, priority=8)
        with pytest.raises(JobDead):
            await job.result(timeout=5)
    (letter,) = await tenant_bus.dead_letters(QUICK)
    assert letter.subject == f"ai.agent.tasks.{tenant_bus.tenant_id}.high"
    effects = Effects()
    async with await tenant_bus.work(QUICK, effects):
        assert await tenant_bus.replay(QUICK) == 1
        await eventually(lambda: len(effects.done) == 1)


async def test_priorities_are_checked(tenant_bus: Bus) -> None:
    with pytest.raises(ConfigurationError, match="0 \\(least urgent\\) to 9"):
        await tenant_bus.enqueue(AGENT_TASKS, TASK, priority=10)
    with pytest.raises(ConfigurationError, match="knows no priorities"):
        await tenant_bus.enqueue(RAG_INGEST, sample("rag_document", tenant_id=tenant_bus.tenant_id), priority=9)
    await tenant_bus.enqueue(RAG_INGEST, sample("rag_document", tenant_id=tenant_bus.tenant_id), priority=5)


# --- failing ----------------------------------------------------------------------------------------------------


async def test_a_failed_attempt_is_made_again_after_a_while(tenant_bus: Bus, telemetry: Any) -> None:
    row = replace(QUICK, policy=replace(QUICK.policy, backoff=(0.15, 0.3), max_attempts=4))
    effects = Effects(fail=2)
    async with await tenant_bus.work(row, effects):
        assert (await tenant_bus.run(row, TASK, timeout=5)).data == RESULT
    assert effects.attempts == [1, 2, 3]
    assert effects.began[1] - effects.began[0] >= 0.14
    assert effects.began[2] - effects.began[1] >= 0.29
    assert telemetry.recorder.total(JOBS_RETRIED.name, error_type="RuntimeError") == 2
    handled = telemetry.recorder.spans(row.handle_span.name)
    assert list(handled["status"]) == ["error", "error", "unset"]
    assert handled["trace_id"].nunique() == 1


async def test_a_job_that_always_fails_is_kept_with_its_evidence(tenant_bus: Bus, telemetry: Any) -> None:
    effects = Effects(fail=99, error=LookupError("no index of this name"))
    async with await tenant_bus.work(QUICK, effects):
        with pytest.raises(JobDead) as raised:
            await tenant_bus.run(QUICK, TASK, message_id="doomed", timeout=5)
    dead = raised.value
    assert (dead.message_id, dead.attempts, dead.error_type) == ("doomed", 3, "LookupError")
    assert dead.detail == "no index of this name"
    (letter,) = await tenant_bus.dead_letters(QUICK)
    assert (letter.message_id, letter.attempts, letter.error_type) == ("doomed", 3, "LookupError")
    assert (letter.detail, letter.reason) == ("no index of this name", "attempts_exhausted")
    assert letter.payload == codec.encode("agent_task", TASK)
    assert letter.data == TASK
    assert "traceparent" in letter.headers
    assert letter.first_seen < letter.failed_at
    assert "doomed" in repr(letter)
    assert telemetry.recorder.total(JOBS_DEAD.name, error_type="LookupError") == 1
    info = await tenant_bus.connection.jetstream().stream_info(QUICK.stream or "")
    assert info.state.messages == 0


async def test_what_cannot_succeed_later_is_not_tried_again(tenant_bus: Bus) -> None:
    effects = Effects(fail=99, error=Never("no such model"))
    async with await tenant_bus.work(QUICK, effects):
        with pytest.raises(JobDead, match="no such model"):
            await tenant_bus.run(QUICK, TASK, timeout=5)
    assert effects.attempts == [1]
    (letter,) = await tenant_bus.dead_letters(QUICK)
    assert letter.reason == "not_retryable"


async def test_a_result_too_large_ends_as_an_error(tenant_bus: Bus) -> None:
    large = RESULT | {"output": {"text": "x" * tenant_bus.connection.max_payload}}

    async def exaggerate(_: Message) -> dict[str, Any]:
        return large

    async with await tenant_bus.work(QUICK, exaggerate):
        with pytest.raises(JobDead) as raised:
            await tenant_bus.run(QUICK, TASK, timeout=5)
    assert raised.value.error_type == "PayloadTooLarge"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x00not an envelope", "contract_violation"),
        (b"", "contract_violation"),
        (b'{"schema_version":"1.0","message_type":"agent_task","data":{"task_id":7}}', "contract_violation"),
        (b'{"schema_version":"7.0","message_type":"agent_task","data":{}}', "unknown_contract"),
        (b'{"schema_version":"1.0","message_type":"no_such_type","data":{}}', "unknown_contract"),
    ],
)
async def test_poison_is_put_aside_at_once(tenant_bus: Bus, payload: bytes, reason: str) -> None:
    effects = Effects()
    async with await tenant_bus.work(QUICK, effects):
        await tenant_bus.connection.jetstream().publish(QUICK.subject(tenant_bus.tenant_id), payload)
        letters = await eventually(lambda: tenant_bus.dead_letters(QUICK))
        assert (await tenant_bus.run(QUICK, TASK, timeout=5)).data == RESULT
    assert [(letter.reason, letter.attempts, letter.payload) for letter in letters] == [(reason, 1, payload)]
    assert letters[0].data is None
    assert letters[0].message_id == f"{QUICK.stream}-1"
    assert effects.attempts == [1]


async def test_dead_letters_are_sent_again(tenant_bus: Bus) -> None:
    async with await tenant_bus.work(QUICK, Effects(fail=99, error=Never("not today"))):
        jobs = [await tenant_bus.enqueue(QUICK, TASK, message_id=f"job/{number}") for number in range(3)]
        for job in jobs:
            with pytest.raises(JobDead):
                await job.result(timeout=5)
    assert [letter.message_id for letter in await tenant_bus.dead_letters(QUICK)] == ["job/0", "job/1", "job/2"]
    effects = Effects()
    async with await tenant_bus.work(QUICK, effects):
        assert await tenant_bus.replay(QUICK, ids=["job/1", "no such job"]) == 1
        await eventually(lambda: effects.done == ["job/1"])
        assert [letter.message_id for letter in await tenant_bus.dead_letters(QUICK)] == ["job/0", "job/2"]
        again = await tenant_bus.enqueue(QUICK, TASK, message_id="job/1")
        assert (await again.result(timeout=5)).data == RESULT
        assert await tenant_bus.replay(QUICK) == 2
        await eventually(lambda: sorted(map(str, effects.done)) == ["job/0", "job/1", "job/2"])
    assert await tenant_bus.dead_letters(QUICK) == []
    assert await tenant_bus.replay(QUICK) == 0


async def test_a_replayed_job_that_fails_again_is_a_dead_letter_again(tenant_bus: Bus) -> None:
    async with await tenant_bus.work(QUICK, Effects(fail=99, error=Never("never"))):
        await tenant_bus.enqueue(QUICK, TASK, message_id="doomed")
        await eventually(lambda: tenant_bus.dead_letters(QUICK))
        for _ in range(2):
            assert await tenant_bus.replay(QUICK) == 1
            letters = await eventually(lambda: tenant_bus.dead_letters(QUICK))
            assert [letter.message_id for letter in letters] == ["doomed"]


async def test_a_dead_job_tells_who_enqueues_it_again(tenant_bus: Bus) -> None:
    async with await tenant_bus.work(QUICK, Effects(fail=99, error=Never("never"))):
        await tenant_bus.enqueue(QUICK, TASK, message_id="doomed")
        await eventually(lambda: tenant_bus.dead_letters(QUICK))
        again = await tenant_bus.enqueue(QUICK, TASK, message_id="doomed")
        assert again.duplicate
        with pytest.raises(JobDead, match="never"):
            await again.result(timeout=5)


async def test_the_largest_payload_still_becomes_a_dead_letter(tenant_bus: Bus) -> None:
    payload = b"x" * tenant_bus.connection.max_payload
    async with await tenant_bus.work(QUICK, Effects()):
        await tenant_bus.connection.jetstream().publish(QUICK.subject(tenant_bus.tenant_id), payload)
        (letter,) = await eventually(lambda: tenant_bus.dead_letters(QUICK))
    assert letter.payload == payload


async def test_evidence_has_no_content(tenant_bus: Bus) -> None:
    task = TASK | {"parameters": {"secret": "CANARY-4711"}}

    async def leak(message: Message) -> dict[str, Any]:
        raise Never(f"cannot use {message.data['parameters']}")

    async with await tenant_bus.work(QUICK, leak):
        with pytest.raises(JobDead) as raised:
            await tenant_bus.run(QUICK, task, timeout=5)
    kept = await tenant_bus.connection.jetstream().get_last_msg("KIT_DEAD", f"kit.dead.{QUICK.stream}.*")
    assert b"CANARY" not in (kept.data or b"")
    assert "CANARY" not in str(raised.value)
    letter = codec.decode(kept.data or b"")
    assert letter.message_type == "dead_letter"


# --- once -------------------------------------------------------------------------------------------------------


async def test_the_same_id_is_the_same_job(tenant_bus: Bus) -> None:
    effects = Effects()
    jobs = [await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id="order-66") for _ in range(3)]
    assert [job.duplicate for job in jobs] == [False, True, True]
    async with await tenant_bus.work(AGENT_TASKS, effects):
        results = await asyncio.gather(*(job.result(timeout=5) for job in jobs))
        late = await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id="order-66")
        results.append(await late.result(timeout=5))
    assert [result.data for result in results] == [RESULT] * 4
    assert effects.done == ["order-66"]


async def test_another_caller_gets_the_same_result(tenant_bus: Bus, server: Server) -> None:
    who = server.credentials(tenant_bus.tenant_id)
    effects = Effects(seconds=0.2)
    async with (
        await connect(server.url, user=who.user, password=who.password) as connection,
        await tenant_bus.work(AGENT_TASKS, effects),
    ):
        other = Bus(connection, tenant_bus.tenant_id, tenant_bus.telemetry)
        first = await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id="shared")
        second = await other.enqueue(AGENT_TASKS, TASK, message_id="shared")
        assert (await second.result(timeout=5)).data == RESULT
        assert (await first.result(timeout=5)).data == RESULT
    assert effects.done == ["shared"]


async def test_an_id_is_remembered_beyond_the_queues_window(tenant_bus: Bus, telemetry: Any) -> None:
    effects = Effects()
    async with await tenant_bus.work(AGENT_TASKS, effects):
        await tenant_bus.run(AGENT_TASKS, TASK, message_id="old", timeout=5)
        js = tenant_bus.connection.jetstream()
        config = (await js.stream_info(AGENT_TASKS.stream or "")).config
        config.duplicate_window = 0.1
        await js.update_stream(config)
        await asyncio.sleep(0.3)
        job = await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id="old")
        assert not job.duplicate
        assert (await job.result(timeout=5)).data == RESULT
    assert effects.done == ["old"]
    assert telemetry.recorder.total(JOBS_DEDUPLICATED.name) == 1


async def test_a_large_result_is_not_kept_for_long_and_repeats_no_effect(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kit.nats.results._LARGE_SECONDS", 1.0)
    large = RESULT | {"output": {"text": "x" * 20_000}}
    effects = Effects()

    async def exaggerate(message: Message) -> dict[str, Any]:
        await effects(message)
        return large

    row = replace(QUICK, policy=replace(QUICK.policy, ack_wait=0.2))
    async with await tenant_bus.work(row, exaggerate):
        assert (await tenant_bus.run(row, TASK, message_id="large", timeout=5)).data == large
        again = await tenant_bus.enqueue(row, TASK, message_id="large")
        assert (await again.result(timeout=5)).data == large
        await asyncio.sleep(1.5)
        late = await tenant_bus.enqueue(row, TASK, message_id="large")
        with pytest.raises(JobDead, match="ResultForgotten"):
            await late.result(timeout=5)
    assert effects.done == ["large"]


async def test_a_result_that_is_not_remembered_is_not_waited_for(tenant_bus: Bus) -> None:
    effects = Effects()
    async with await tenant_bus.work(AGENT_TASKS, effects):
        await tenant_bus.run(AGENT_TASKS, TASK, message_id="forgotten", timeout=5)
        await tenant_bus.connection.jetstream().purge_stream(f"{AGENT_TASKS.stream}_RESULTS")
        again = await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id="forgotten")
        with pytest.raises(JobDead, match="not remembered any more"):
            await again.result(timeout=5)
    assert effects.done == ["forgotten"]


async def test_who_enqueues_while_a_dead_letter_is_sent_again_waits_for_it(tenant_bus: Bus) -> None:
    async with await tenant_bus.work(QUICK, Effects(fail=99, error=Never("not today"))):
        with pytest.raises(JobDead):
            await tenant_bus.run(QUICK, TASK, message_id="phoenix", timeout=5)
    await tenant_bus.replay(QUICK)
    again = await tenant_bus.enqueue(QUICK, TASK, message_id="phoenix")
    with pytest.raises(DeadlineExceeded):
        await again.result(timeout=0.3)
    async with await tenant_bus.work(QUICK, Effects()):
        assert (await again.result(timeout=5)).data == RESULT


async def test_a_lost_acknowledgement_repeats_no_effect(
    tenant_bus: Bus, telemetry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = tenant_bus.connection.client
    send, lost = client.publish, []

    async def publish(subject: str, payload: bytes = b"", *rest: Any, **more: Any) -> None:
        if payload == b"+ACK" and not lost:
            lost.append(subject)
            return
        await send(subject, payload, *rest, **more)

    monkeypatch.setattr(client, "publish", publish)
    effects = Effects()
    async with await tenant_bus.work(QUICK, effects) as worker:
        assert (await tenant_bus.run(QUICK, TASK, timeout=5)).data == RESULT
        await eventually(lambda: worker.handled == 2)
    assert len(effects.done) == 1
    assert telemetry.recorder.total(JOBS_DEDUPLICATED.name) == 1
    info = await tenant_bus.connection.jetstream().stream_info(QUICK.stream or "")
    assert info.state.messages == 0


async def test_a_heartbeat_keeps_a_long_job(tenant_bus: Bus) -> None:
    effects = Effects(seconds=1.5)
    async with await tenant_bus.work(QUICK, effects), await tenant_bus.work(QUICK, effects):
        assert (await tenant_bus.run(QUICK, TASK, timeout=5)).data == RESULT
    assert effects.attempts == [1]


async def test_a_lost_acknowledgement_of_the_queue_stores_nothing_twice(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tenant_bus.enqueue(AGENT_TASKS, TASK)
    request, calls = tenant_bus.connection.request, 0

    async def forgetful(subject: str, payload: bytes, **more: Any) -> Any:
        nonlocal calls
        answer = await request(subject, payload, **more)
        if subject.startswith(AGENT_TASKS.prefix):
            calls += 1
            if calls == 1:
                raise DeadlineExceeded(subject, seconds=0.0)
        return answer

    monkeypatch.setattr(tenant_bus.connection, "request", forgetful)
    job = await tenant_bus.enqueue(AGENT_TASKS, TASK)
    assert (calls, job.duplicate) == (2, True)
    info = await tenant_bus.connection.jetstream().stream_info(AGENT_TASKS.stream or "")
    assert info.state.messages == 2


async def test_what_is_not_acknowledged_is_an_error_in_time(tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    await tenant_bus.enqueue(AGENT_TASKS, TASK)
    request = tenant_bus.connection.request

    async def deaf(subject: str, payload: bytes, *, timeout: float, **more: Any) -> Any:
        if subject.startswith(AGENT_TASKS.prefix):
            await asyncio.sleep(timeout)
            raise DeadlineExceeded(subject, seconds=timeout)
        return await request(subject, payload, timeout=timeout, **more)

    monkeypatch.setattr(tenant_bus.connection, "request", deaf)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(NotStored) as raised:
        await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id="again", timeout=0.3)
    assert 0.25 < loop.time() - started < 1.5
    assert raised.value.message_id == "again"


async def test_a_queue_that_vanished_is_made_by_who_enqueues(tenant_bus: Bus) -> None:
    await tenant_bus.enqueue(AGENT_TASKS, TASK)
    js = tenant_bus.connection.jetstream()
    await js.delete_stream(AGENT_TASKS.stream or "")
    await tenant_bus.enqueue(AGENT_TASKS, TASK)
    assert (await js.stream_info(AGENT_TASKS.stream or "")).state.messages == 1


async def test_a_queue_set_up_by_an_operator_is_left_as_it_is(tenant_bus: Bus) -> None:
    js = tenant_bus.connection.jetstream()
    await js.add_stream(
        name=AGENT_TASKS.stream,
        subjects=["ai.agent.tasks.*"],
        retention=api.RetentionPolicy.WORK_QUEUE,
        max_bytes=10_000_000,
    )
    results = f"{AGENT_TASKS.stream}_RESULTS"
    await js.add_stream(name=results, subjects=["kit.results.AI_AGENT_TASKS.*.*"], allow_direct=True)
    async with await tenant_bus.work(AGENT_TASKS, Effects()):
        await tenant_bus.run(AGENT_TASKS, TASK, timeout=5, priority=9)
    config = (await js.stream_info(AGENT_TASKS.stream or "")).config
    assert config.max_bytes == 10_000_000
    assert set(config.subjects or ()) == {"ai.agent.tasks.*", "ai.agent.tasks.*.*", "ai.agent.tasks.*.*.*"}


async def test_a_full_queue_says_so(tenant_bus: Bus) -> None:
    await tenant_bus.enqueue(AGENT_TASKS, TASK)
    js = tenant_bus.connection.jetstream()
    config = (await js.stream_info(AGENT_TASKS.stream or "")).config
    config.max_msgs, config.discard = 1, api.DiscardPolicy.NEW
    await js.update_stream(config)
    with pytest.raises(NotStored, match="maximum messages exceeded"):
        await tenant_bus.enqueue(AGENT_TASKS, TASK, timeout=0.3)


# --- stopping, breaking, dying ----------------------------------------------------------------------------------


async def test_stop_lets_jobs_finish(tenant_bus: Bus) -> None:
    effects = Effects(seconds=0.2)
    worker = await tenant_bus.work(AGENT_TASKS, effects, concurrency=2)
    jobs = [await tenant_bus.enqueue(AGENT_TASKS, TASK) for _ in range(6)]
    await eventually(lambda: len(effects.began) == 2)
    await worker.stop(timeout=5)
    done = len(effects.done)
    assert 2 <= done < 6
    assert worker.in_flight == 0
    async with await tenant_bus.work(AGENT_TASKS, effects, concurrency=6):
        await asyncio.gather(*(job.result(timeout=5) for job in jobs))
    assert len(effects.done) == len(set(effects.done)) == 6


async def test_what_stop_cancels_goes_back_to_the_queue(tenant_bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    forever = Effects(seconds=60)
    worker = await tenant_bus.work(AGENT_TASKS, forever)
    job = await tenant_bus.enqueue(AGENT_TASKS, TASK)
    await eventually(lambda: forever.began)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await worker.stop(timeout=0.1)
    assert loop.time() - started < 1.5
    assert [job.message_id in record.getMessage() for record in caplog.records] == [True]  # that it is paid for twice
    effects = Effects()
    async with await tenant_bus.work(AGENT_TASKS, effects):
        assert (await job.result(timeout=3)).data == RESULT
    assert effects.attempts == [2]


async def drained(bus: Bus, times: int, handler: Effects) -> None:
    """Stop a worker in the middle of its job, several times."""
    for _ in range(times):
        begun = len(handler.began)
        worker = await bus.work(QUICK, handler)
        await eventually(lambda begun=begun: len(handler.began) > begun, 10)  # type: ignore[misc]
        await worker.stop(timeout=0.01)


async def test_what_is_handed_back_spends_no_attempt(tenant_bus: Bus) -> None:
    most = QUICK.policy.max_attempts
    job = await tenant_bus.enqueue(QUICK, TASK, message_id="long")
    await drained(tenant_bus, 2 * most + 1, Effects(seconds=60))
    again = await tenant_bus.enqueue(QUICK, TASK, message_id="long")
    assert again.duplicate
    effects = Effects(seconds=0.1)
    async with await tenant_bus.work(QUICK, effects):
        assert (await job.result(timeout=10)).data == RESULT
        assert (await again.result(timeout=10)).data == RESULT
    assert effects.attempts == [2 * most + 2]
    assert await tenant_bus.dead_letters(QUICK) == []
    assert await tenant_bus.backlog(QUICK) == {}


@pytest.mark.parametrize("times", [1, 3, 5])
async def test_a_job_that_was_handed_back_has_all_its_attempts(tenant_bus: Bus, times: int) -> None:
    most = QUICK.policy.max_attempts
    job = await tenant_bus.enqueue(QUICK, TASK)
    await drained(tenant_bus, times, Effects(seconds=60))
    effects = Effects(fail=99)
    async with await tenant_bus.work(QUICK, effects):
        with pytest.raises(JobDead, match="RuntimeError"):
            await job.result(timeout=10)
        assert effects.attempts == [times + number for number in range(1, most + 1)]
        assert await tenant_bus.replay(QUICK) == 1
        await eventually(lambda: len(effects.attempts) == 2 * most, 10)
        assert effects.attempts[most:] == list(range(1, most + 1))


async def test_a_server_that_says_nothing_does_not_keep_a_worker_from_stopping(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await tenant_bus.work(AGENT_TASKS, Effects())

    async def silent(timeout: float = 5.0) -> None:
        raise DeadlineExceeded("the server", seconds=timeout)

    monkeypatch.setattr(tenant_bus.connection, "flush", silent)
    await worker.stop(timeout=1)
    assert "without unsubscribing" in caplog.text


async def test_a_job_outlives_its_server(telemetry: Any, tmp_path: Path) -> None:
    async with Server(store=tmp_path, tenants=("acme",)) as server:
        who = server.credentials("acme")
        async with await connect(server.url, tenant_id="acme", user=who.user, password=who.password) as connection:
            bus = Bus(connection, "acme", telemetry)
            effects = Effects(seconds=0.05)
            worker = await bus.work(QUICK, effects)
            jobs = [await bus.enqueue(QUICK, TASK) for _ in range(10)]
            await jobs[1].result(timeout=5)
            server.crash()
            results = await asyncio.gather(*(job.result(timeout=15) for job in jobs))
            assert [result.data for result in results] == [RESULT] * 10
            assert sorted(map(str, effects.done)) == sorted(job.message_id for job in jobs)
            await worker.stop()
            await bus.close()


@asynccontextmanager
async def workers(
    bus: Bus, server: Server, ledger: Path, *behaviours: str
) -> AsyncIterator[tuple[list[asyncio.subprocess.Process], Callable[[str], list[str]]]]:
    """Run workers in processes of their own; yield them, and how to read what they noted."""
    who = server.credentials(bus.tenant_id)

    def noted(what: str) -> list[str]:
        lines = ledger.read_text().splitlines() if ledger.exists() else []
        return [line.split()[1] for line in lines if line.startswith(what + " ")]

    ready = len(noted("ready"))
    arguments = [(server.url, who.user, who.password, bus.tenant_id, str(ledger), each) for each in behaviours]
    async with scripts("job_worker.py", *arguments) as processes:
        await eventually(lambda: len(noted("ready")) == ready + len(behaviours), 20)
        yield processes, noted


async def test_a_worker_killed_in_the_middle_loses_no_job_and_repeats_no_effect(
    tenant_bus: Bus, server: Server, tmp_path: Path
) -> None:
    async with workers(tenant_bus, server, tmp_path / "ledger", "steady", "steady") as (processes, noted):
        jobs = [await tenant_bus.enqueue(QUICK, TASK, message_id=f"job-{number}") for number in range(60)]
        await eventually(lambda: len(noted("effect")) > 10)
        processes[0].kill()
        results = await asyncio.gather(*(job.result(timeout=15) for job in jobs))
    assert len(results) == 60
    assert sorted(noted("effect")) == sorted(job.message_id for job in jobs)
    assert await tenant_bus.dead_letters(QUICK) == []


async def test_a_worker_killed_before_its_acknowledgement_repeats_no_effect(
    tenant_bus: Bus, server: Server, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    job = await tenant_bus.enqueue(QUICK, TASK, message_id="half-done")
    async with workers(tenant_bus, server, ledger, "die-before-ack") as (processes, noted):
        await asyncio.wait_for(processes[0].wait(), 10)
    assert (await job.result(timeout=5)).data["output"] == {"by": "die-before-ack"}
    async with workers(tenant_bus, server, ledger, "steady") as (_, noted):
        info = tenant_bus.connection.jetstream().stream_info

        async def emptied() -> bool:
            return (await info(QUICK.stream or "")).state.messages == 0

        await eventually(emptied)
    assert noted("effect") == ["half-done"]


async def test_a_job_that_kills_every_worker_becomes_a_dead_letter(
    tenant_bus: Bus, server: Server, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    job = await tenant_bus.enqueue(QUICK, TASK, message_id="killer")
    for _ in range(QUICK.policy.max_attempts):
        async with workers(tenant_bus, server, ledger, "die") as (processes, noted):
            await asyncio.wait_for(processes[0].wait(), 10)
    assert noted("began") == ["killer"] * 3
    with pytest.raises(JobDead) as raised:
        await job.result(timeout=8)
    assert (raised.value.error_type, raised.value.attempts) == ("WorkerLost", 3)
    (letter,) = await tenant_bus.dead_letters(QUICK)
    assert (letter.message_id, letter.error_type, letter.attempts) == ("killer", "WorkerLost", 3)
    assert letter.data == TASK
    effects = Effects()
    async with await tenant_bus.work(QUICK, effects):
        assert await tenant_bus.replay(QUICK) == 1
        await eventually(lambda: effects.done == ["killer"])


async def test_a_worker_that_lost_its_lease_does_not_answer_twice(
    tenant_bus: Bus, server: Server, tmp_path: Path
) -> None:
    """The first worker blocks its loop past ack_wait, the second takes over: one result, the late one is dropped."""
    job = await tenant_bus.enqueue(QUICK, TASK, message_id="contested")
    async with workers(tenant_bus, server, tmp_path / "ledger", "block") as (_, noted):
        await eventually(lambda: noted("began") == ["contested"], 10)
        quick = Effects()
        async with await tenant_bus.work(QUICK, quick):
            assert (await job.result(timeout=5)).data == RESULT
            await eventually(lambda: noted("effect") == ["contested"])
            await asyncio.sleep(0.2)
            again = await tenant_bus.enqueue(QUICK, TASK, message_id="contested")
            assert (await again.result(timeout=5)).data == RESULT
    assert quick.attempts == [2]
    assert await tenant_bus.dead_letters(QUICK) == []


async def test_a_result_is_told_once_the_connection_is_back(telemetry: Any) -> None:
    """The server is away when the handler ends; back again, it delivers the job anew: that is the same job still."""
    halted = asyncio.Event()
    done: list[int] = []

    async def work(message: Message) -> dict[str, Any]:
        await halted.wait()
        done.append(message.attempt)
        return RESULT

    async with Server(tenants=("acme",)) as server:
        who = server.credentials("acme")
        connection = await connect(server.url, tenant_id="acme", user=who.user, password=who.password)
        bus = Bus(connection, "acme", telemetry)
        row = replace(QUICK, policy=replace(QUICK.policy, ack_wait=2.0))
        async with await bus.work(row, work) as worker:
            job = await bus.enqueue(row, TASK)
            await eventually(lambda: worker.in_flight == 1)
            await server.halt()
            await connection.wait_disconnected(5)
            halted.set()
            await eventually(lambda: done == [1])
            await server.start()
            assert (await job.result(timeout=10)).data == RESULT
            await eventually(lambda: worker.in_flight == 0, 10)
            assert (await connection.jetstream().stream_info(row.stream or "")).state.messages == 0
        assert done == [1]
        await connection.close()


async def test_a_worker_keeps_its_results_by_time() -> None:
    recent = Recent(0.2)
    for number in range(3000):
        recent.put(f"job-{number}", b"x", connected=True)
    assert recent.get("job-0") == b"x"
    await asyncio.sleep(0.25)
    recent.put("while-away", b"y", connected=False)
    assert recent.get("job-0") == b"x"  # what a server that is away may have lost is not forgotten meanwhile
    recent.renew()
    recent.put("back", b"z", connected=True)
    assert recent.get("job-0") == b"x"
    await asyncio.sleep(0.25)
    recent.put("later", b"w", connected=True)
    assert [recent.get(name) for name in ("job-0", "job-2999", "while-away", "back")] == [None] * 4
    assert recent.get("later") == b"w"


async def test_a_worker_bounds_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.nats.results._RECENT_TOTAL", 100_000)
    recent = Recent(60.0)
    recent.put("large", b"x" * 70_000, connected=True)
    for number in range(1000):
        recent.put(f"job-{number}", b"x" * 1000, connected=False)
    assert recent.get("large") is None
    assert recent.get("job-999") is not None
    assert 50 < len(recent) <= 100


async def test_jobs_that_are_done_leave_a_queue_that_delivers_them_no_more(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tenant_bus.enqueue(QUICK, TASK, message_id="done")
    await tenant_bus._results.remember(QUICK, "done", None, codec.encode("agent_result", RESULT))
    recent = Recent(60.0)
    for message_id in ("done-here", "unknown", "above"):
        await tenant_bus.enqueue(QUICK, TASK, message_id=message_id)
    recent.put("done-here", b"", connected=True)
    streams = tenant_bus._streams
    await streams.job_consumer(QUICK, tenant_bus.tenant_id, NORMAL, None)

    async def seen_settled(_: Any, operation: Any) -> list[api.ConsumerInfo]:
        info = await streams.context.consumer_info(operation.stream, operation.queue)
        info.ack_floor = api.SequenceInfo(consumer_seq=3, stream_seq=3)  # as a server's crash leaves it
        return [info]

    monkeypatch.setattr("kit.nats.queues._consumers", seen_settled)
    assert not await tenant_bus._results.clear(QUICK, 4, recent)
    assert [await _id_at(tenant_bus, place) for place in range(1, 5)] == [None, None, "unknown", "above"]
    assert await tenant_bus._results.clear(QUICK, 3, recent)
    monkeypatch.undo()
    effects = Effects()
    async with await tenant_bus.work(QUICK, effects):
        await eventually(lambda: sorted(map(str, effects.done)) == ["above", "unknown"])


async def _id_at(bus: Bus, place: int) -> str | None:
    kept = await bus._streams.at(QUICK.stream or "", place)
    return None if kept is None else kept.headers["Nats-Msg-Id"]


async def test_a_worker_that_is_cut_off_stops_working(telemetry: Any) -> None:
    """Once the lease has run out another worker has the job: what this one still did would be done twice."""
    cancelled = asyncio.Event()

    async def long(_: Message) -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return RESULT

    async with Server(tenants=("acme",)) as server:
        who = server.credentials("acme")
        connection = await connect(server.url, tenant_id="acme", user=who.user, password=who.password)
        bus = Bus(connection, "acme", telemetry)
        worker = await bus.work(QUICK, long)
        await bus.enqueue(QUICK, TASK)
        await eventually(lambda: worker.in_flight == 1)
        await server.stop()
        await asyncio.wait_for(cancelled.wait(), 5)
        await worker.stop(timeout=0.1)
        await connection.close()


# --- streamed answers of jobs -----------------------------------------------------------------------------------


async def test_a_jobs_answer_comes_piece_by_piece(tenant_bus: Bus) -> None:
    async def speak(message: Message) -> dict[str, Any]:
        for number in range(3):
            await message.emit(sample("llm_chunk", index=number))
        return sample("llm_response")

    async with await tenant_bus.work(GATEWAY_REQUESTS, speak):
        got = [
            message
            async for message in tenant_bus.stream(
                GATEWAY_REQUESTS, sample("llm_request", tenant_id=tenant_bus.tenant_id)
            )
        ]
    assert [message.message_type for message in got] == ["llm_chunk"] * 3 + ["llm_response"]


async def test_a_caller_that_left_leaves_no_dead_letter(tenant_bus: Bus) -> None:
    async def speak(message: Message) -> dict[str, Any]:
        for number in range(10_000):
            await message.emit(sample("llm_chunk", index=number))
            await asyncio.sleep(0.005)
        return sample("llm_response")

    async with await tenant_bus.work(GATEWAY_REQUESTS, speak) as worker:
        stream = tenant_bus.stream(GATEWAY_REQUESTS, sample("llm_request", tenant_id=tenant_bus.tenant_id))
        await anext(stream)
        await stream.aclose()
        await eventually(lambda: worker.handled == 1)
        info = await tenant_bus.connection.jetstream().stream_info(GATEWAY_REQUESTS.stream or "")
        assert info.state.messages == 0
    assert await tenant_bus.dead_letters(GATEWAY_REQUESTS) == []


async def test_a_streamed_job_that_dies(tenant_bus: Bus) -> None:
    row = replace(GATEWAY_REQUESTS, policy=JobPolicy(max_attempts=1))

    async def fail(_: Message) -> dict[str, Any]:
        raise RuntimeError("no model")

    async with await tenant_bus.work(row, fail):
        with pytest.raises(JobDead, match="no model"):
            await anext(tenant_bus.stream(row, sample("llm_request", tenant_id=tenant_bus.tenant_id), timeout=5))


# --- others on the same server ----------------------------------------------------------------------------------


async def test_a_client_that_knows_nothing_of_the_kit_can_enqueue(tenant_bus: Bus, server: Server) -> None:
    who = server.credentials(tenant_bus.tenant_id)
    raw = await nats.connect(server.url, user=who.user, password=who.password)
    inbox = raw.new_inbox()
    answers = await raw.subscribe(inbox)
    effects = Effects()
    async with await tenant_bus.work(AGENT_TASKS, effects):
        payload, subject = codec.encode("agent_task", TASK), AGENT_TASKS.subject(tenant_bus.tenant_id)
        await raw.jetstream().publish(subject, payload)
        await raw.jetstream().publish(subject, payload, headers={"Nats-Msg-Id": "mine", "Kit-Reply": inbox})
        answer = await answers.next_msg(timeout=5)
    assert codec.decode(answer.data).data == RESULT
    assert effects.done == [f"{AGENT_TASKS.stream}-1", "mine"]
    await raw.close()


@pytest.mark.parametrize("reply", ["$JS.API.STREAM.DELETE.AI_AGENT_TASKS", "a b", ">", "kit.*", "", "a..b"])
async def test_a_reply_subject_that_cannot_be_one_is_passed_over(tenant_bus: Bus, reply: str) -> None:
    effects = Effects()
    async with await tenant_bus.work(AGENT_TASKS, effects) as worker:
        payload, subject = codec.encode("agent_task", TASK), AGENT_TASKS.subject(tenant_bus.tenant_id)
        headers = {"Nats-Msg-Id": "mine", "Kit-Reply": reply, "Kit-Chunks": reply}
        await tenant_bus.connection.jetstream().publish(subject, payload, headers=headers)
        await eventually(lambda: worker.handled == 1 and worker.in_flight == 0)
        assert (await (await tenant_bus.enqueue(AGENT_TASKS, TASK, message_id="mine")).result(timeout=5)).data == RESULT
    assert effects.done == ["mine"]


async def test_a_plain_function_may_handle_jobs(tenant_bus: Bus) -> None:
    async with await tenant_bus.work(AGENT_TASKS, lambda message: RESULT):
        assert (await tenant_bus.run(AGENT_TASKS, TASK, timeout=5)).data == RESULT


async def test_a_queue_that_was_deleted_is_made_again(tenant_bus: Bus) -> None:
    effects = Effects()
    async with await tenant_bus.work(QUICK, effects):
        await tenant_bus.run(QUICK, TASK, timeout=5)
        js = tenant_bus.connection.jetstream()
        await js.delete_stream(QUICK.stream or "")
        await js.delete_stream(f"{QUICK.stream}_RESULTS")

        async def made() -> bool:
            names = [info.config.name for info in await js.streams_info()]
            return QUICK.stream in names and f"{QUICK.stream}_RESULTS" in names

        await eventually(made)
        assert (await tenant_bus.run(QUICK, TASK, timeout=5)).data == RESULT


# --- for one receiver -------------------------------------------------------------------------------------------


async def test_jobs_for_one_receiver_wait_for_it_and_are_counted(tenant_bus: Bus) -> None:
    common, special = Effects(), Effects()
    jobs = [await tenant_bus.enqueue(AGENT_TASKS, TASK, to="bob", priority=priority) for priority in (1, 5, 9)]
    jobs.append(await tenant_bus.enqueue(AGENT_TASKS, TASK))
    assert await tenant_bus.backlog(AGENT_TASKS) == {"bob": 3, None: 1}
    async with await tenant_bus.work(AGENT_TASKS, common, concurrency=8):
        await jobs[3].result(timeout=5)
        assert await tenant_bus.backlog(AGENT_TASKS) == {"bob": 3}
        async with await tenant_bus.work(AGENT_TASKS, special, concurrency=8, receivers=["bob", "eve"]):
            await asyncio.gather(*(job.result(timeout=5) for job in jobs))
            assert (await tenant_bus.run(AGENT_TASKS, TASK, to="eve", timeout=5)).data == RESULT
    assert (len(common.done), len(special.done)) == (1, 4)
    assert await tenant_bus.backlog(RAG_INGEST) == {}


async def test_a_job_for_a_receiver_that_fails_is_replayed_to_that_receiver(tenant_bus: Bus) -> None:
    async with await tenant_bus.work(QUICK, Effects(fail=100, error=Never()), receivers=["bob"]):
        with pytest.raises(JobDead):
            await tenant_bus.run(QUICK, TASK, to="bob", priority=9, timeout=10)
    assert await tenant_bus.replay(QUICK) == 1
    assert await tenant_bus.backlog(QUICK) == {"bob": 1}
    effects = Effects()
    async with await tenant_bus.work(QUICK, effects, receivers=["bob"]):
        await eventually(lambda: len(effects.done) == 1)


async def test_only_an_addressed_row_has_jobs_for_one_receiver(tenant_bus: Bus) -> None:
    for wrong in (
        tenant_bus.enqueue(RAG_INGEST, sample("rag_document", tenant_id=tenant_bus.tenant_id), to="bob"),
        tenant_bus.work(RAG_INGEST, Effects(), receivers=["bob"]),
        tenant_bus.enqueue(AGENT_TASKS, TASK, to="low"),
        tenant_bus.work(AGENT_TASKS, Effects(), receivers=["Not An Id"]),
    ):
        with pytest.raises(ConfigurationError):
            await wrong


async def test_a_worker_that_is_busy_leaves_a_receivers_job_to_one_that_is_not(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kit.nats.pulling._EXPIRES", 0.5)  # s; what was asked for while there was nothing to do
    monkeypatch.setattr("kit.nats.pulling._HEARTBEAT", 0.2)
    busy, idle = Effects(seconds=3.0), Effects()
    async with await tenant_bus.work(AGENT_TASKS, busy, receivers=["bob"]) as working:
        common = await tenant_bus.enqueue(AGENT_TASKS, TASK)
        await eventually(lambda: working.in_flight)
        await asyncio.sleep(1.0)
        async with await tenant_bus.work(AGENT_TASKS, idle, receivers=["bob"]):
            await tenant_bus.run(AGENT_TASKS, TASK, to="bob", timeout=1.5)
        await common.result(timeout=10)
    assert (len(busy.done), len(idle.done)) == (1, 1)
