"""A worker in a process of its own, to be killed: ``python -m kit.lab.drills.worker LEDGER LEASE WHAT [SECONDS]``.

``steady`` takes its time on the loop, ``plain`` is a plain function that blocks its thread; ``listen`` hears events and
is blocked before it hears the first; any other word is a component (``rag``, ``mlops``), whose rows get the lease.
The server and the credentials are those of the environment.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from kit.catalogue import AGENT_MESSAGE, MLOPS_TRAINING, RAG_INGEST
from kit.lab.drills.ledger import Ledger
from kit.lab.drills.load import RESULT, shortened, with_lease, working
from kit.lab.session import attach
from kit.nats import Message


async def main(ledger: Ledger, lease: float, what: str, seconds: float) -> None:
    """Work until killed."""

    def plain(message: Message) -> dict[str, Any]:
        time.sleep(seconds)
        ledger.note("effect", message.message_id, message.attempt)
        return RESULT

    async def hear(message: Message) -> None:
        ledger.note("delivered", message.data["content"][:8])

    async with attach(service_name="drill-worker") as lab:
        if what in ("steady", "plain"):
            handler = plain if what == "plain" else working(ledger, seconds)
            await lab.bus.work(with_lease(lease), handler, concurrency=4)
        elif what == "listen":
            await lab.bus.subscribe(AGENT_MESSAGE, hear)
        else:
            await lab.serve(what)
        sys.stdout.write("works\n")
        sys.stdout.flush()
        if what == "listen":
            time.sleep(seconds)  # noqa: ASYNC251 - blocked on purpose
        while True:
            await asyncio.sleep(0.2)
            if what == "listen":
                ledger.note("missed", detail=missed(lab))


def missed(lab: Any) -> int:
    """Return what this process counted: events that it refused, and breaks in which some may have been missed."""
    names = ("kit.messages.refused", "kit.events.interrupted")
    return sum(int(lab.telemetry.recorder.total(name)) for name in names)


if __name__ == "__main__":
    folder, lease, what, *rest = sys.argv[1:]
    with (
        Ledger(Path(folder)) as book,
        shortened(float(lease), RAG_INGEST),
        shortened(float(lease), MLOPS_TRAINING),
    ):
        asyncio.run(main(book, float(lease), what, float(rest[0]) if rest else 0.0))
