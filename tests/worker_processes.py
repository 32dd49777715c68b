"""``kit worker`` in processes of their own, for tests."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from samples import eventually

from kit.nats.server import Server

STARTED = 90.0  # s; a gateway imports LiteLLM, and the machine may be busy


class Workers:
    """``kit worker`` processes, each serving one component."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment, self._folder = environment, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *settings: str, beside: tuple[str, ...] = ()) -> None:
        """Start a worker, with other components beside its own; it is not ready yet."""
        options = [*beside, *(part for setting in settings for part in ("--setting", setting))]
        with self._said(name).open("wb") as output:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "kit", "worker", name, *options],
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


def access(server: Server, folder: Path) -> dict[str, str]:
    """The environment of whoever works or asks at a server."""
    who = server.credentials("acme")
    return {
        "NATS_URL": server.url, "NATS_USER": who.user, "NATS_PASSWORD": who.password,
        "KIT_LANCEDB_URI": str(folder / "lancedb"),
    }  # fmt: skip
