"""Processes for tests: ``kit worker``, and scripts; none is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from samples import eventually

from kit.nats.server import Server

STARTED = 90.0  # s; a gateway imports LiteLLM, and the machine may be busy


@asynccontextmanager
async def scripts(name: str, *arguments: Sequence[str], **options: Any) -> AsyncIterator[list[Process]]:
    """Run a script that lies beside the tests, once with each of these arguments; whoever runs at the end is killed."""
    script = str(Path(__file__).with_name(name))
    started = [await asyncio.create_subprocess_exec(sys.executable, script, *each, **options) for each in arguments]
    try:
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


class Workers:
    """``kit worker`` processes of a tenant, each serving one component."""

    def __init__(self, environment: dict[str, str], folder: Path, tenant_id: str = "acme") -> None:
        self._environment, self._folder, self._tenant_id = environment, folder, tenant_id
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *settings: str, beside: tuple[str, ...] = ()) -> None:
        """Start a worker, with other components beside its own; it is not ready yet."""
        chosen = [part for setting in settings for part in ("--setting", setting)]
        with self._said(name).open("wb") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "kit", "worker", name, *beside, "--tenant", self._tenant_id, *chosen],
                stdout=output, stderr=subprocess.STDOUT, cwd=self._folder, env={**os.environ, **self._environment},
            )  # fmt: skip

    async def ready(self) -> None:
        """Wait until all are serving."""
        for name, process in self.processes.items():

            def serving(name: str = name, process: subprocess.Popen[bytes] = process) -> bool:
                assert process.poll() is None, self.said(name)
                return "Ctrl-C drains" in self.said(name)

            await eventually(serving, STARTED)

    def said(self, name: str) -> str:
        """Return what a worker has printed so far."""
        return self._said(name).read_text()

    def tell_to_end(self, name: str) -> None:
        """Send SIGTERM."""
        self.processes[name].send_signal(signal.SIGTERM)

    async def end(self, name: str) -> tuple[int, str]:
        """Wait for a worker that was told to end; return its exit code and what it printed."""
        return await asyncio.to_thread(self.processes[name].wait, 30.0), self.said(name)

    def kill(self) -> None:
        """Leave nobody behind."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def _said(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def access(server: Server, folder: Path, tenant_id: str = "acme") -> dict[str, str]:
    """The environment of whoever works or asks at a server."""
    who = server.credentials(tenant_id)
    return {
        "NATS_URL": server.url, "NATS_USER": who.user, "NATS_PASSWORD": who.password,
        "KIT_LANCEDB_URI": str(folder / "lancedb"),
    }  # fmt: skip
