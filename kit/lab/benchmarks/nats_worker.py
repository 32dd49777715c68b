"""A worker in a process of its own: ``python -m kit.lab.benchmarks.nats_worker TENANT SECONDS``.

It works on the gateway's requests, one at a time, until nothing more can come from its standard input. A job of the
model ``computes`` keeps the processor busy for so many seconds, any other waits as long.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from kit.catalogue import GATEWAY_REQUESTS
from kit.lab.benchmarks.nats import response
from kit.nats import Bus, Message, connect
from kit.otel import start_telemetry


async def main(tenant: str, seconds: float) -> None:
    """Work until the standard input ends."""

    async def handle(message: Message) -> dict[str, Any]:
        if message.data["model"] == "computes":
            until = time.thread_time() + seconds
            while time.thread_time() < until:
                sum(range(1000))
        else:
            await asyncio.sleep(seconds)
        return response(message.data)

    telemetry = start_telemetry("worker", tenant_id=tenant, record=False, capture_logging=False)
    async with (
        await connect(tenant_id=tenant) as connection,
        Bus(connection, tenant, telemetry) as bus,
        await bus.work(GATEWAY_REQUESTS, handle),
    ):
        sys.stdout.write("works\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    telemetry.shutdown(1.0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
