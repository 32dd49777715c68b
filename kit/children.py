"""Python child processes that take requests and answer in lines of JSON, and are killed when they are late.

Code that may loop for ever, allocate gigabytes or hold the GIL runs there, where it can be stopped.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import kit

# The variables that a child inherits: what Python and numeric libraries need, no credentials.
PREFIXES = ("PATH", "HOME", "LANG", "LC_", "LD_LIBRARY", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "SYSTEMROOT", "TMP")

Progress = Callable[[dict[str, Any]], Awaitable[None]]


class ChildEnded(Exception):
    """The process ended before it answered.

    Attributes:
        code: its exit code.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"the process ended with exit code {code}")


class Child:
    """A process that answers one request at a time; it starts when first needed and stays up.

    Args:
        arguments: the interpreter's arguments.
        line: bytes of the longest line that it may answer.
    """

    def __init__(self, *arguments: str, line: int = 2**22) -> None:
        self._arguments, self._line = arguments, line
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def ask(
        self, request: dict[str, Any], progress: Progress | None = None, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """Return the answer: a line with ``result`` or ``error``.

        Args:
            progress: is awaited with each line before it.
            timeout: seconds after which the process is ended; None: never.

        Raises:
            TimeoutError: it took longer.
            ChildEnded: the process died of it.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(timeout):
                    return await self._exchange(request, progress)
            except (TimeoutError, asyncio.CancelledError):
                await self.close()
                raise

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _exchange(self, request: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        while line := await process.stdout.readline():
            told: dict[str, Any] = json.loads(line)
            if "result" in told or "error" in told:
                return told
            if progress is not None:
                await progress(told)
        self._process = None
        raise ChildEnded(await process.wait())

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            home = str(Path(kit.__file__).parent.parent)
            paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
            kept = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={"OMP_WAIT_POLICY": "PASSIVE"} | kept | {"PYTHONPATH": paths},  # idle threads sleep, not spin
                limit=self._line,
                start_new_session=True,
            )
        return self._process
