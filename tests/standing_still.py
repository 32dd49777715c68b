"""A server that stands still: its sockets are open, and nobody answers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kit.nats.server import Server


def stands_still(pid: int) -> bool:
    """Whether every thread has taken its SIGSTOP."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


@asynccontextmanager
async def frozen(server: Server) -> AsyncIterator[None]:
    """The server stands still: its sockets are open, and nobody answers."""
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    while not stands_still(pid):
        time.sleep(0.001)  # noqa: ASYNC251 - at once, before this loop runs anything else
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
