"""The training process, seen from the worker: started when first needed, kept warm, ended when it is late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kit.children import Child, ChildEnded, Progress
from kit.components.mlops.errors import TrainingFailed, TrainingRefused


class Trainer:
    """Runs training jobs, one at a time, in a process of its own."""

    def __init__(self) -> None:
        self._child = Child("-m", "kit.components.mlops.training")

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
        request = {"job": job, "folder": str(folder), "content": str(content) if content else None}
        try:
            told = await self._child.ask(request, progress, timeout=timeout)
        except TimeoutError:
            raise TrainingFailed(f"training was given up after {timeout:g} s") from None
        except ChildEnded as error:
            raise TrainingFailed(f"the training process ended with exit code {error.code}") from error
        if "error" in told:
            raise TrainingRefused(told["detail"])
        result: dict[str, Any] = told["result"]
        return result

    async def close(self) -> None:
        """End the process."""
        await self._child.close()
