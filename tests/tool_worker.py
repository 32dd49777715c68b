"""A tool executor in a process of its own, to be killed: ``python tool_worker.py URL USER PASSWORD TENANT``."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from kit.catalogue import AGENT_TOOLS, JobPolicy
from kit.components.agents.executor import ToolExecutor
from kit.nats import Bus, connect
from kit.otel import start_telemetry

QUICK_TOOLS = replace(AGENT_TOOLS, policy=JobPolicy(ack_wait=4.0, max_attempts=4, backoff=(0.05,)))


def gate(folder: str) -> int:
    """Note that it has begun, wait until the gate is open, and return the number of the process."""
    with (Path(folder) / "begun").open("a") as begun:
        begun.write(f"{os.getpid()}\n")
    while not (Path(folder) / "open").exists():
        time.sleep(0.01)
    return os.getpid()


async def main(url: str, user: str, password: str, tenant: str) -> None:
    async with (
        await connect(url, tenant_id=tenant, user=user, password=password) as connection,
        Bus(connection, tenant, start_telemetry("tools")) as bus,
    ):
        executor = await ToolExecutor.open(bus, [gate])
        await bus.work(QUICK_TOOLS, executor.handle, concurrency=4)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
