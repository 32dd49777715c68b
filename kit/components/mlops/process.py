"""The training process, seen from the worker: started when first needed, kept warm, ended when it is late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kit.children import Child, ChildEnded, Progress
from kit.components.mlops.errors import TrainingFailed, TrainingLimit, TrainingRefused

TIMEOUT = 60.0  # s; for one job
MEMORY = 2 * 2**30  # bytes; of the process


class Trainer:
    """Runs training jobs one at a time in a separate process, with limits on time and memory.

    Args:
        timeout: seconds that a job may take at most; memory: bytes that the process may take.
    """

    def __init__(self, *, timeout: float = TIMEOUT, memory: int = MEMORY) -> None:
        self._timeout, self._memory = timeout, memory
        self._child = Child("-m", "kit.components.mlops.training", str(memory))

    async def train(
        self,
        job: dict[str, Any],
        folder: Path,
        progress: Progress,
        *,
        content: Path | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Train a job; its files are in ``folder`` afterwards.

        Args:
            progress: is awaited with each step that the process tells.
            timeout: seconds after which the process is ended, if those are less than any job may take.

        Raises:
            TrainingRefused: the job cannot be done as asked.
            TrainingLimit: it took more time or memory than it may.
            TrainingFailed: the process died.
        """
        timeout = min(timeout or self._timeout, self._timeout)
        request = {"job": job, "folder": str(folder), "content": str(content) if content else None}
        try:
            told = await self._child.ask(request, progress, timeout=timeout)
        except TimeoutError:
            raise TrainingLimit(
                f"training was stopped after {timeout:g} s; its worker allows {self._timeout:g} s (training_timeout)"
            ) from None
        except ChildEnded as error:
            raise TrainingFailed(f"the training process ended with exit code {error.code}") from error
        if told.get("error") == TrainingLimit.__name__:
            await self.close()  # it may not give its memory back
            raise TrainingLimit(
                f"training needed more than the {self._memory:,} bytes that its worker allows (training_memory)"
            )
        if "error" in told:
            raise TrainingRefused(told["detail"])
        result: dict[str, Any] = told["result"]
        return result

    async def close(self) -> None:
        """End the process."""
        await self._child.close()
