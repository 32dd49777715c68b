"""The training process, seen from the worker: started when first needed, kept warm, ended when it is late."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import kit
from kit.components.mlops.errors import TrainingFailed, TrainingRefused

LINE = 2**22  # bytes of one line that it may tell
# What the process may know of its owner's surroundings: what Python and its numerics need, no credentials.
PREFIXES = ("PATH", "HOME", "LANG", "LC_", "LD_LIBRARY", "PYTHON", "OMP_", "OPENBLAS_", "MKL_", "SYSTEMROOT", "TMP")

Progress = Callable[[dict[str, Any]], Awaitable[None]]


class Trainer:
    """Runs training jobs, one at a time, in a process of its own."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def train(
        self,
        job: dict[str, Any],
        folder: Path,
        progress: Progress,
        *,
        content: Path | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Have a job trained; its files are in ``folder`` afterwards.

        Args:
            progress: is awaited with each step that the process tells.
            timeout: seconds after which the process is ended; None: never.

        Raises:
            TrainingRefused: the job cannot be done as asked.
            TrainingFailed: the process died, or was given up.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(timeout):
                    return await self._exchange(job, folder, progress, content)
            except TimeoutError:
                await self.close()
                raise TrainingFailed(f"training was given up after {timeout:g} s") from None
            except asyncio.CancelledError:
                await self.close()
                raise

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()

    async def _exchange(
        self, job: dict[str, Any], folder: Path, progress: Progress, content: Path | None
    ) -> dict[str, Any]:
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"job": job, "folder": str(folder), "content": str(content) if content else None}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        while line := await process.stdout.readline():
            told = json.loads(line)
            if "result" in told:
                result: dict[str, Any] = told["result"]
                return result
            if "error" in told:
                raise TrainingRefused(told["detail"])
            await progress(told)
        code = await process.wait()
        self._process = None
        raise TrainingFailed(f"the training process ended with exit code {code}")

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            home = str(Path(kit.__file__).parent.parent)
            paths = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
            kept = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "kit.components.mlops.training",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={"OMP_WAIT_POLICY": "PASSIVE"} | kept | {"PYTHONPATH": paths},  # idle threads sleep, not spin
                limit=LINE,
                start_new_session=True,
            )
        return self._process
