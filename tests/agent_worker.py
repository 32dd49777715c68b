"""A task worker in a process of its own, to be killed: ``python agent_worker.py URL USER PASSWORD TENANT``."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from kit.catalogue import AGENT_TASKS, JobPolicy
from kit.components.agents import Agent
from kit.components.agents.engine import agno_classes
from kit.components.agents.tasks import TaskWorker
from kit.nats import Bus, connect
from kit.otel import start_telemetry

QUICK = replace(AGENT_TASKS, policy=JobPolicy(ack_wait=5.0, max_attempts=4, backoff=(0.05,)))


async def main(url: str, user: str, password: str, tenant: str) -> None:
    async with (
        await connect(url, tenant_id=tenant, user=user, password=password) as connection,
        Bus(connection, tenant, start_telemetry("worker")) as bus,
    ):
        await agno_classes()
        async with Agent(bus, "worker", tools=["note", "gate"], interval=0.2) as agent:
            await bus.work(QUICK, TaskWorker(bus, {"worker": agent}).handle)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
