"""Jobs on a cluster: three servers keep them, and the loss of one loses nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from job_worker import QUICK
from samples import eventually, sample

from kit.catalogue import LLMOPS_OPERATIONS
from kit.nats import Bus, Message, connect
from kit.nats.cluster import Cluster

TASK = sample("agent_task")
RESULT = sample("agent_result")


async def test_the_loss_of_a_server_loses_no_job(telemetry: Any) -> None:
    done: list[str | None] = []

    async def work(message: Message) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        done.append(message.message_id)
        return RESULT

    async with Cluster(size=3, tenants=("acme",)) as cluster:
        who = cluster.credentials("acme")
        async with (
            await connect(cluster.url, tenant_id="acme", user=who.user, password=who.password) as connection,
            await connect(cluster.url, tenant_id="acme", user=who.user, password=who.password) as elsewhere,
            Bus(connection, "acme", telemetry) as bus,
            Bus(elsewhere, "acme", telemetry) as other,
        ):
            jobs = [await bus.enqueue(QUICK, TASK, message_id=f"job-{number}") for number in range(10)]
            await bus.publish(LLMOPS_OPERATIONS, sample("llm_operation"))
            store = await bus.store("things")
            await store.put("a", b"before")
            infos = await connection.jetstream().streams_info()
            assert {info.config.num_replicas for info in infos} == {3}
            async with await other.work(QUICK, work, concurrency=2):
                await eventually(lambda: len(done) > 3, 20)
                port = connection.client.connected_url.port if connection.client.connected_url else 0
                lost = next(n for n, server in enumerate(cluster.servers) if server.url.endswith(f":{port}"))
                await cluster.kill_node(lost)
                await connection.wait_connected(20)
                jobs.append(await bus.enqueue(QUICK, TASK, message_id="job-10", timeout=20.0))
                results = await asyncio.gather(*(job.result(timeout=40) for job in jobs))
            assert [result.data for result in results] == [RESULT] * 11
            assert {job.message_id for job in jobs} == set(done)
            entry = await store.get("a")
            assert entry is not None
            assert entry.value == b"before"
            await asyncio.wait_for(bus.publish(LLMOPS_OPERATIONS, sample("llm_operation"), timeout=10.0), 15)
