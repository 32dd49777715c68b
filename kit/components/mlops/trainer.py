"""Training jobs: trained in a process of their own, registered once, followed from anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import MLOPS_MODEL_SCORE, MLOPS_TRAINING
from kit.components.mlops.deployment import Deployments
from kit.components.mlops.errors import MLOpsError, TrainingRefused
from kit.components.mlops.models import MEASURED, METRICS, better, parquet_of
from kit.components.mlops.process import MEMORY, TIMEOUT, Trainer
from kit.components.mlops.registry import Registry, Version
from kit.otel import semconv

if TYPE_CHECKING:
    import pandas as pd

    from kit.nats import Bus, Job, Message, Store

BUCKET = "mlops-training"  # how far each job has come
REMEMBERED = 7 * 86400.0  # seconds
OBJECTS = "mlops-data"


async def submit(
    bus: Bus,
    model_type: str,
    training_data: str | pd.DataFrame,
    parameters: Mapping[str, Any] | None = None,
    *,
    model_name: str | None = None,
    job_id: str | None = None,
    **fields: Any,
) -> Job:
    """Enqueue a training job; ``await job.result()`` is its ``ml_training_result``.

    Args:
        training_data: the name of a data set that scikit-learn ships, or a DataFrame, which is sent along.
        model_name: in the registry; None: named after data and model type.
        job_id: also the message's id: the same id trains once.
        fields: further fields of the ``ml_training_job``: ``target``, ``features``, ``seed``, ``test_size``,
            ``metrics``, ``promote`` (``never``, ``always``, ``if_better``), ``promote_metric``, ``timeout`` …

    Raises:
        TrainingRefused: a column of the DataFrame holds values of several types.
    """
    job_id = job_id or f"job-{secrets.token_hex(8)}"
    data: dict[str, Any] = {
        "job_id": job_id,
        "model_type": model_type,
        "training_data": training_data if isinstance(training_data, str) else "sent along",
        "parameters": dict(parameters or {}),
        "tenant_id": bus.tenant_id,
        "timestamp": codec.now(),
    }
    if not isinstance(training_data, str):
        content = await asyncio.to_thread(parquet_of, training_data)
        data["claim"] = await bus.put_object(f"{_key(job_id)}.parquet", content, bucket=OBJECTS)
    if model_name is not None:
        data["model_name"] = model_name
    return await bus.enqueue(MLOPS_TRAINING, data | fields, message_id=_key(job_id))


async def status(bus: Bus, job_id: str) -> dict[str, Any] | None:
    """Return how far a job has come, an ``ml_training_result``; None when no worker has begun it."""
    store = await bus.store(BUCKET, ttl=REMEMBERED)
    entry = await store.get(_key(job_id))
    return None if entry is None or entry.value is None else codec.loads(entry.value)


async def follow(bus: Bus, job_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yield each step of a job as it comes, ``ml_training_result``s of status running, and at last how it ended."""
    store = await bus.store(BUCKET, ttl=REMEMBERED)
    async for entry in store.watch(_key(job_id)):
        if entry.value is None:
            continue
        step = codec.loads(entry.value)
        yield step
        if step["status"] != "running":
            return


class TrainingWorker:
    """Handles MLOPS_TRAINING.

    Args:
        worker_id: what results name as the process that trained.
        timeout: seconds that a job may take; one may ask for less; memory: bytes that it may take.
    """

    def __init__(
        self, bus: Bus, registry: Registry, deployments: Deployments, worker_id: str, *, timeout: float = TIMEOUT,
        memory: int = MEMORY,
    ) -> None:  # fmt: skip
        self._bus, self._registry, self._deployments = bus, registry, deployments
        self._worker_id = worker_id
        self._trainer = Trainer(timeout=timeout, memory=memory)
        self._store: Store
        self._log = bus.telemetry.logger("kit.mlops")

    async def open(self) -> None:
        """Open the store of progress."""
        self._store = await self._bus.store(BUCKET, ttl=REMEMBERED)

    async def close(self) -> None:
        """End the training process."""
        await self._trainer.close()

    async def train(self, message: Message) -> dict[str, Any]:
        """Train, register and, where the job says so, promote; a job that was registered before is only answered.

        Raises:
            TrainingRefused: the job cannot be done as asked.
            TrainingLimit: it took more time or memory than it may.
            TrainingFailed: the training process died.
        """
        job = message.data
        attempt = _Attempt(self, job, message.message_id or _key(job["job_id"]), message.attempt)
        self._bus.telemetry.annotate(
            {
                semconv.MODEL_NAME: attempt.model_name,
                semconv.MODEL_TYPE: job["model_type"],
                semconv.TRAINING_DATA: job["training_data"],
            }
        )
        try:
            version = await asyncio.to_thread(self._registry.registered, attempt.model_name, attempt.key)
            if version is None:
                version = await attempt.run()
            return await attempt.finish(version)
        except MLOpsError as error:
            failed = {"type": type(error).__name__, "message": str(error), "retryable": error.retryable}
            await attempt.tell({"status": "error", "error": failed})
            raise


class _Attempt:
    """One delivery of one job."""

    def __init__(self, worker: TrainingWorker, job: dict[str, Any], key: str, number: int) -> None:
        self.worker, self.job, self.key, self.number = worker, job, key, number
        named = job.get("model_name") or f"{job['training_data'].removeprefix('sklearn:')}-{job['model_type']}"
        self.model_name = named.replace(" ", "-")
        self.started = time.monotonic()
        self.run_id: str | None = None
        self.step = 0

    async def run(self) -> Version:
        """Train in the process and register what came of it."""
        worker, job = self.worker, self.job
        registry = worker._registry
        registry.full_name(self.model_name)  # refuses a name before the work, not after it
        self.run_id = await asyncio.to_thread(registry.start_run, job, self.model_name, self.key)
        worker._bus.telemetry.annotate({semconv.TRAINING_RUN_ID: self.run_id})
        with tempfile.TemporaryDirectory(prefix="kit-training-") as made:
            folder = Path(made)
            content = await self._content(folder)
            try:
                told = await worker._trainer.train(
                    job, folder, self.progress, content=content, timeout=job.get("timeout")
                )
            except MLOpsError:
                await asyncio.to_thread(registry.end_run, self.run_id, failed=True)
                raise
            await asyncio.to_thread(registry.log_metrics, self.run_id, told["metrics"], self.step)
            version = await asyncio.to_thread(
                registry.register, self.model_name, self.run_id, self.key, job, told, folder
            )
        for name, value in version.metrics.items():
            worker._bus.telemetry.record(MLOPS_MODEL_SCORE, value, score=name, model_type=job["model_type"])
        return version

    async def progress(self, step: dict[str, Any]) -> None:
        """Tell a step: to whoever follows the job, to the span, to the run."""
        self.step += 1
        metrics = step.get("metrics", {})
        await self.tell({"status": "running"} | step)
        self.worker._bus.telemetry.event(
            step["stage"],
            {semconv.TRAINING_PROGRESS: step["progress"]} | metrics,
        )
        if metrics and self.run_id is not None:
            await asyncio.to_thread(self.worker._registry.log_metrics, self.run_id, metrics, self.step)

    async def finish(self, version: Version) -> dict[str, Any]:
        """Promote where the job says so, and answer."""
        champion = await self._promoted(version)
        answer = self._result(
            {
                "status": "success",
                "progress": 1.0,
                "version": version.version,
                "run_id": version.run_id,
                "metrics": version.metrics,
                "parameters": version.parameters,
                "artifact": version.artifact,
                "champion": champion,
                "rows": version.result["rows"],
                "features": version.result["features"],
                "classes": version.classes,
            }
        )
        self.worker._bus.telemetry.annotate(
            {semconv.MODEL_VERSION: version.version, semconv.TRAINING_ROWS: version.result["rows"]}
        )
        await self.tell(answer)
        return answer

    async def tell(self, step: dict[str, Any]) -> None:
        """Write how far the job has come."""
        told = step if "job_id" in step else self._result(step)
        codec.validate(str(MLOPS_TRAINING.result_type), told)
        await self.worker._store.put(_key(self.job["job_id"]), codec.dumps(told))

    def _result(self, more: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "job_id": self.job["job_id"],
            "tenant_id": self.job["tenant_id"],
            "timestamp": codec.now(),
            "model_name": self.model_name[:200],
            "model_type": self.job["model_type"],
            "duration": time.monotonic() - self.started,
            "attempt": self.number,
            "worker_id": self.worker._worker_id,
        } | dict(more)

    async def _content(self, folder: Path) -> Path | None:
        """Return the file with the data that the job sent along."""
        if "claim" not in self.job:
            return None
        path = folder / "data"
        path.write_bytes(await self.worker._bus.get_object(self.job["claim"]))
        return path

    async def _promoted(self, version: Version) -> bool:
        """Return whether the version became champion, as the job wanted it."""
        wanted = self.job.get("promote", "never")
        champion = await self.worker._deployments.champion(self.model_name)
        if champion == version.version or wanted == "never":
            return champion == version.version
        if wanted == "if_better" and champion is not None:
            metric = self.job.get("promote_metric") or MEASURED[version.task][0]
            if metric not in METRICS or metric not in version.metrics:
                raise TrainingRefused(f"{metric!r} was not measured: it cannot decide which version is better")
            rival = await asyncio.to_thread(self.worker._registry.version, self.model_name, champion)
            with contextlib.suppress(KeyError):  # a champion that this was not measured of keeps its place
                if better(metric, version.metrics[metric], rival.metrics[metric]):
                    await self.worker._deployments.promote(self.model_name, version.version, reason=f"better {metric}")
                    return True
            return False
        await self.worker._deployments.promote(self.model_name, version.version, reason=f"promote: {wanted}")
        return True


def _key(job_id: str) -> str:
    """Return a job's id in a form that may be a key and a message id."""
    return f"job-{hashlib.sha256(job_id.encode()).hexdigest()[:40]}"
