"""MLOps: training jobs, a registry with a champion, deploy events, predictions.

await lab.serve("mlops", model_store="models")
job = await mlops.submit(bus, "random_forest", "wine", {"n_estimators": 50}, promote="if_better")
async for step in mlops.follow(bus, job_id): ...                        # progress and metrics, as they come
answer = await mlops.predict(bus, "wine-random_forest", rows)           # by the champion; the answer names its version
await mlops.promote(bus, "wine-random_forest", "2", registry=registry)  # workers follow; mlops.rollback undoes it
"""

from kit.components.mlops.deployment import Deployments
from kit.components.mlops.errors import (
    ArtefactRefused,
    InputRefused,
    MLOpsError,
    TrainingFailed,
    TrainingLimit,
    TrainingRefused,
    UnknownModel,
)
from kit.components.mlops.predictor import predict
from kit.components.mlops.registry import Registry, Version
from kit.components.mlops.service import promote, retire, rollback, serve
from kit.components.mlops.trainer import follow, status, submit

__all__ = [
    "ArtefactRefused",
    "Deployments",
    "InputRefused",
    "MLOpsError",
    "Registry",
    "TrainingFailed",
    "TrainingLimit",
    "TrainingRefused",
    "UnknownModel",
    "Version",
    "follow",
    "predict",
    "promote",
    "retire",
    "rollback",
    "serve",
    "status",
    "submit",
]
