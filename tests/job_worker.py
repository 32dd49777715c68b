"""A worker in a process of its own, to be killed: ``python job_worker.py URL USER PASSWORD TENANT LEDGER BEHAVIOUR``.

Each line of the ledger is ``<what> <message id> <attempt>``, written before whatever kills the process next.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from typing import Any

from samples import sample

from kit.catalogue import AGENT_TASKS, JobPolicy
from kit.nats import Bus, Message, connect
from kit.otel import start_telemetry

QUICK = replace(AGENT_TASKS, policy=JobPolicy(ack_wait=0.6, max_attempts=3, backoff=(0.05,), result_ttl=60.0))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, user: str, password: str, tenant: str, ledger: str, behaviour: str) -> None:
    book = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what: str, message: Message) -> None:
        os.write(book, f"{what} {message.message_id} {message.attempt}\n".encode())

    async def work(message: Message) -> dict[str, Any]:
        note("began", message)
        if behaviour == "die":
            _die()
        if behaviour == "block":
            time.sleep(3.0)  # noqa: ASYNC251 - the loop is blocked on purpose
        if behaviour == "steady":
            await asyncio.sleep(0.02)
        note("effect", message)
        return sample("agent_result", output={"by": behaviour})

    async with await connect(url, tenant_id=tenant, user=user, password=password) as connection:
        if behaviour == "die-before-ack":
            send = connection.client.publish

            async def publish(subject: str, payload: bytes = b"", *rest: Any, **more: Any) -> None:
                if payload == b"+ACK":
                    await connection.flush()
                    _die()
                await send(subject, payload, *rest, **more)

            connection.client.publish = publish  # type: ignore[method-assign]
        async with Bus(connection, tenant, start_telemetry("worker")) as bus:
            os.write(book, b"ready - 0\n")  # before the first job, which may kill
            await bus.work(QUICK, work)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
