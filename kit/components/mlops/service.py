"""The MLOps service: training workers and prediction workers over one registry."""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.catalogue import MLOPS_DEPLOY, MLOPS_PREDICTIONS, MLOPS_TRAINING
from kit.components import Service
from kit.components.mlops.deployment import Deployments
from kit.components.mlops.predictor import PredictionWorker
from kit.components.mlops.process import MEMORY, TIMEOUT
from kit.components.mlops.registry import Registry
from kit.components.mlops.trainer import TrainingWorker

if TYPE_CHECKING:
    from kit.nats import Bus


async def serve(
    bus: Bus,
    *,
    model_store: str | Path | None = None,
    tracking_uri: str | None = None,
    training: bool = True,
    predictions: bool = True,
    prediction_concurrency: int = 16,
    training_timeout: float = TIMEOUT,
    training_memory: int = MEMORY,
) -> Service:
    """Serve MLOPS_TRAINING and MLOPS_PREDICTIONS, and follow MLOPS_DEPLOY.

    Args:
        model_store: folder of the default registry; None: ``.kit/mlflow``.
        tracking_uri: another MLflow registry; None: MLFLOW_TRACKING_URI, else the default one.
        training: whether this process trains, one job at a time.
        predictions: whether this process predicts.
        prediction_concurrency: prediction requests at once.
        training_timeout: seconds that one training may take, whatever its job asks for.
        training_memory: bytes that the training process may take (on Linux).
    """
    registry = Registry(bus.tenant_id, model_store, tracking_uri)
    deployments = Deployments(bus, registry)
    worker_id = f"mlops-{os.getpid()}-{secrets.token_hex(2)}"
    trainer = TrainingWorker(bus, registry, deployments, worker_id, timeout=training_timeout, memory=training_memory)
    predictor = PredictionWorker(bus, registry, deployments, worker_id)
    await asyncio.to_thread(_load, registry)  # seconds that no first request should wait
    workers = []
    if predictions:
        workers.append(await bus.subscribe(MLOPS_DEPLOY, predictor.follow))
        workers.append(await bus.serve(MLOPS_PREDICTIONS, predictor.predict, concurrency=prediction_concurrency))
    if training:
        await trainer.open()
        workers.append(await bus.work(MLOPS_TRAINING, trainer.train))

    async def end() -> None:
        await predictor.close()
        await trainer.close()

    return Service(workers, end)


def _load(registry: Registry) -> None:
    """Load what predicting and registering need, and open the registry."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, of a bar that nobody draws
    for name in ("pandera.pandas", "skops.io"):
        importlib.import_module(name)
    registry.versions("")


async def promote(
    bus: Bus, model_name: str, version: str, *, registry: Registry | None = None, **told: Any
) -> dict[str, Any]:
    """Make a version champion; every prediction worker follows. Return the ``ml_deployment``.

    Args:
        registry: where the model is; None: the default one (``MLFLOW_TRACKING_URI``, else ``.kit/mlflow``).
        told: ``reason`` and ``deployed_by``.

    Raises:
        UnknownModel: there is no such version.
    """
    return await Deployments(bus, registry or Registry(bus.tenant_id)).promote(model_name, version, **told)


async def rollback(bus: Bus, model_name: str, *, registry: Registry | None = None, **told: Any) -> dict[str, Any]:
    """Make the champion before this one champion again; every prediction worker follows. Return the ``ml_deployment``.

    Raises:
        UnknownModel: there was none before.
    """
    return await Deployments(bus, registry or Registry(bus.tenant_id)).rollback(model_name, **told)


async def retire(bus: Bus, model_name: str, *, registry: Registry | None = None, **told: Any) -> dict[str, Any]:
    """Leave a model without a champion; every prediction worker forgets it. Return the ``ml_deployment``.

    Raises:
        UnknownModel: it has none.
    """
    return await Deployments(bus, registry or Registry(bus.tenant_id)).retire(model_name, **told)
