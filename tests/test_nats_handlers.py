"""Handlers: plain functions run on threads and stop no heartbeat; one that stops the event loop is named."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from typing import Any

import pytest
from job_worker import QUICK
from samples import eventually, sample

from kit.catalogue import AGENT_MESSAGE, GATEWAY_EMBEDDINGS
from kit.errors import JobDead
from kit.nats import Bus, Message
from kit.otel import inject

TASK, RESULT = sample("agent_task"), sample("agent_result")


class Plain:
    """A handler that is an object, and blocks."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.done: list[str | None] = []
        self.threads: set[str] = set()
        self.contexts: list[str | None] = []
        self.most = self._now = 0
        self._lock = threading.Lock()

    def __call__(self, message: Message) -> dict[str, Any]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.threads.add(threading.current_thread().name)
        self.contexts.append((inject() or {}).get("traceparent"))
        time.sleep(self.seconds)
        with self._lock:
            self._now -= 1
        self.done.append(message.message_id)
        return RESULT


async def test_a_plain_function_that_blocks_stops_no_heartbeat(tenant_bus: Bus, telemetry: Any) -> None:
    handler = Plain(2 * QUICK.policy.ack_wait)
    async with await tenant_bus.work(QUICK, handler, concurrency=3), await tenant_bus.work(QUICK, handler):
        jobs = [await tenant_bus.enqueue(QUICK, TASK) for _ in range(6)]
        for job in jobs:
            assert (await job.result(timeout=15)).data == RESULT
    assert sorted(map(str, handler.done)) == sorted(job.message_id for job in jobs)
    assert threading.main_thread().name not in handler.threads
    assert 2 <= handler.most <= 4
    spans = telemetry.recorder.spans()
    handled = spans[spans["name"] == QUICK.handle_span.name]
    assert sorted(context.split("-")[2] for context in map(str, handler.contexts)) == sorted(handled["span_id"])


async def test_plain_functions_of_every_kind(tenant_bus: Bus) -> None:
    heard: list[str] = []

    def answer(message: Message, *, more: int) -> dict[str, Any]:
        assert threading.current_thread() is not threading.main_thread()
        return sample("embedding_response")

    async def coroutine(_: Message) -> dict[str, Any]:
        assert threading.current_thread() is threading.main_thread()
        return RESULT

    request = sample("embedding_request", tenant_id=tenant_bus.tenant_id)
    async with (
        await tenant_bus.serve(GATEWAY_EMBEDDINGS, functools.partial(answer, more=1)),
        await tenant_bus.work(QUICK, lambda message: coroutine(message)),
        await tenant_bus.subscribe(AGENT_MESSAGE, lambda message: heard.append(message.data["content"])),
    ):
        assert (await tenant_bus.request(GATEWAY_EMBEDDINGS, request)).data == sample("embedding_response")
        assert (await tenant_bus.run(QUICK, TASK, timeout=5)).data == RESULT
        for number in range(20):
            await tenant_bus.publish(AGENT_MESSAGE, sample("agent_message", content=str(number)))
        await eventually(lambda: len(heard) == 20)
    assert heard == [str(number) for number in range(20)]


@pytest.mark.parametrize("error", [StopIteration(), SystemExit(2), KeyError("x"), asyncio.CancelledError()], ids=repr)
async def test_whatever_a_plain_function_raises_ends_its_message(tenant_bus: Bus, error: BaseException) -> None:
    def fail(message: Message) -> dict[str, Any]:
        if message.message_id == "bad":
            raise error
        return RESULT

    async with await tenant_bus.work(QUICK, fail):
        with pytest.raises(JobDead):
            await tenant_bus.run(QUICK, TASK, message_id="bad", timeout=10)
        assert (await tenant_bus.run(QUICK, TASK, timeout=5)).data == RESULT


async def test_a_handler_that_stops_the_event_loop_is_named(tenant_bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    async def hog(_: Message) -> dict[str, Any]:
        time.sleep(QUICK.policy.ack_wait)  # noqa: ASYNC251 - that is what is tried
        return RESULT

    async with await tenant_bus.work(QUICK, hog):
        await tenant_bus.enqueue(QUICK, TASK)
        await eventually(lambda: [r for r in caplog.records if "loop was blocked" in r.message and "hog" in r.message])
    assert all(record.levelno == logging.WARNING for record in caplog.records if "loop was blocked" in record.message)
