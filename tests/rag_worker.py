"""RAG workers that are killed at one point of their writing, each in a process of its own.

``python rag_worker.py URL`` reads lines of ``POINT FOLDER TENANT USER PASSWORD``, forks a worker for each, and tells
how it ended. They are forked from a process that has loaded LanceDB, which takes seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
from lancedb.db import AsyncConnection
from lancedb.table import AsyncTable

from kit.components import rag
from kit.components.rag import index
from kit.nats import Bus, connect
from kit.otel import start_telemetry

assert lancedb.__version__


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(owner: type, name: str, calls: int = 1) -> Callable[[Path], None]:
    """Die as soon as a method has returned for that many times."""

    def arm(folder: Path) -> None:
        method, left = getattr(owner, name), [calls]

        async def last(self: Any, *args: Any, **more: Any) -> Any:
            result = await method(self, *args, **more)
            left[0] -= 1
            if not left[0]:
                _die()
            return result

        setattr(owner, name, last)

    return arm


def _during(owner: type, name: str, part: str) -> Callable[[Path], None]:
    """Die in the middle of a method, as soon as it has put a file into a part of the table's folder."""

    def arm(folder: Path) -> None:
        method = getattr(owner, name)

        async def last(self: Any, *args: Any, **more: Any) -> Any:
            place = folder / f"{index.COLLECTION}.lance" / part
            before = _files(place)
            threading.Thread(target=_watch, args=(place, before), daemon=True).start()
            return await method(self, *args, **more)

        setattr(owner, name, last)

    return arm


def _watch(place: Path, before: set[str]) -> None:
    while _files(place) <= before:
        pass
    _die()


def _files(place: Path) -> set[str]:
    return {entry.name for entry in place.iterdir()} if place.exists() else set()


POINTS: dict[str, Callable[[Path], None]] = {
    "the table is made": _after(AsyncConnection, "create_table"),
    "two of four indices are made": _after(AsyncTable, "create_index", 2),
    "rows are put on disk": _during(index.Collection, "_merge", "data"),
    "rows are committed, not told": _after(index.Collection, "_merge"),
    "indices are rewritten": _during(AsyncTable, "optimize", "_indices"),
}


async def _serve(url: str, folder: Path, tenant_id: str, user: str, password: str) -> None:
    async with (
        await connect(url, tenant_id=tenant_id, user=user, password=password) as connection,
        Bus(connection, tenant_id, start_telemetry("worker")) as bus,
    ):
        await rag.serve(bus, uri=folder, concurrency=8)
        await asyncio.Event().wait()


def _fork(url: str, point: str, folder: Path, tenant_id: str, user: str, password: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    index._IDLE = 0.05
    POINTS[point](folder / tenant_id)
    asyncio.run(_serve(url, folder, tenant_id, user, password))
    os._exit(0)


def main(url: str) -> None:
    for line in sys.stdin:
        point, folder, tenant_id, user, password = line.rstrip("\n").split("\t")
        _, status = os.waitpid(_fork(url, point, Path(folder), tenant_id, user, password), 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
