"""The other end of ``kit.lab.report.execute``: processes that execute notebooks, fed one notebook at a time."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kit.errors import ReportError

Event = Callable[[dict[str, Any]], None]
LINE_LIMIT = 4 * 2**20  # bytes of one event; a failing cell's source travels in it


class Executor:
    """One process that executes notebooks.

    Args:
        log: file for what its kernels write past their notebooks.
        variables: environment variables for the kernels, beside those of this process.
    """

    def __init__(self, log: Path, variables: Mapping[str, str]) -> None:
        self._log, self._variables = log, variables
        self._process: asyncio.subprocess.Process | None = None
        self._busy = False

    async def run(self, job: Mapping[str, Any], on_event: Event) -> dict[str, Any]:
        """Execute one notebook and return ``{"seconds": …, "failure": … | None}``.

        A process that dies takes only its own notebook with it: the next one gets a new process.
        """
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        self._busy = True
        async for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "done":
                self._busy = False
                return dict(event)
            on_event(event)
        code = await process.wait()
        self._process = None
        raise ReportError(f"the executing process ended with code {code}: {self._log}")

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "kit.lab.report.execute",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, **self._variables},
                    limit=LINE_LIMIT,
                )
        return self._process

    async def stop(self, grace: float = 5.0) -> None:
        """End the process, within ``grace`` seconds where it is idle, at once in the middle of a notebook.

        Its kernels end with it.
        """
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        if self._busy:
            process.kill()
        try:
            await asyncio.wait_for(process.wait(), grace)
        except TimeoutError:
            process.kill()
            await process.wait()
