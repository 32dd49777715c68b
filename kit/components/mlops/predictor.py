"""Predictions: the champion in memory, replaced between two requests when a deploy event names another one."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from kit import codec
from kit.catalogue import MLOPS_PREDICTIONS
from kit.components.mlops.deployment import Deployments
from kit.components.mlops.errors import UnknownModel
from kit.components.mlops.inputs import InputSchema
from kit.components.mlops.models import CLASSIFICATION
from kit.components.mlops.registry import CHAMPION, Registry, Version
from kit.otel import semconv

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from kit.nats import Bus, Message

LOADED = 8  # models kept in memory beside the champions
MAX_AGE = 30.0  # seconds
TIMEOUT = 10.0  # seconds a caller waits for predictions


async def predict(
    bus: Bus,
    model_name: str,
    instances: Sequence[Any] | pd.DataFrame,
    *,
    timeout: float = TIMEOUT,
    **fields: Any,
) -> dict[str, Any]:
    """Ask for predictions, of one row or of many; return the ``ml_prediction``.

    Args:
        instances: a DataFrame, or rows: mappings by column, or sequences in the model's order of columns.
        fields: further fields of the ``ml_prediction_request``: ``version``, ``columns``, ``probabilities`` …

    Raises:
        RemoteError: of type InputRefused, which names the column, or UnknownModel.
    """
    rows = instances if isinstance(instances, Sequence) else instances.to_dict("records")
    data = {
        "request_id": secrets.token_hex(8),
        "model_name": model_name,
        "instances": [dict(row) if isinstance(row, Mapping) else list(row) for row in rows],
        "tenant_id": bus.tenant_id,
        "timestamp": codec.now(),
    }
    return (await bus.request(MLOPS_PREDICTIONS, data | fields, timeout=timeout)).data


@dataclass(frozen=True, kw_only=True)
class _Served:
    """A version in memory, ready to predict."""

    version: Version
    model: Any
    schema: InputSchema
    revision: int

    def predict(self, data: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None, float]:
        """Return predictions, probabilities where asked for, and the seconds of inference alone."""
        frame = self.schema.frame(data["instances"], data.get("columns"))
        started = time.perf_counter()
        predictions = self.model.predict(frame)
        wanted = data.get("probabilities") and hasattr(self.model, "predict_proba")
        probabilities = self.model.predict_proba(frame) if wanted else None
        return predictions, probabilities, time.perf_counter() - started


class PredictionWorker:
    """Handles MLOPS_PREDICTIONS and follows MLOPS_DEPLOY.

    Args:
        worker_id: what answers name as the process that predicted.
        max_age: seconds after which it looks, in the background, whether it missed an event.
    """

    def __init__(
        self, bus: Bus, registry: Registry, deployments: Deployments, worker_id: str, *, max_age: float = MAX_AGE
    ) -> None:
        self._max_age = max_age
        self._looked: dict[str, float] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._telemetry, self._registry, self._deployments = bus.telemetry, registry, deployments
        self._worker_id = worker_id
        self._champions: dict[str, _Served] = {}
        self._loaded: OrderedDict[tuple[str, str], _Served] = OrderedDict()
        self._loading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # while somebody holds one
        self._log = bus.telemetry.logger("kit.mlops")

    async def predict(self, message: Message) -> dict[str, Any]:
        """Predict with the champion, or with the version that the request names.

        Raises:
            InputRefused: the rows break the model's input schema; it names the column.
            UnknownModel: no such model, version or champion.
            ArtefactRefused: the model's file is not what was registered.
        """
        started, data = time.perf_counter(), message.data
        served = await self._served(data["model_name"], data.get("version"), data.get("alias", CHAMPION))
        version = served.version
        self._telemetry.annotate(
            {
                semconv.MODEL_NAME: version.model_name,
                semconv.MODEL_TYPE: version.model_type,
                semconv.MODEL_VERSION: version.version,
                semconv.PREDICTION_ROWS: len(data["instances"]),
            }
        )
        predictions, probabilities, seconds = await asyncio.to_thread(served.predict, data)
        answer: dict[str, Any] = {
            "request_id": data["request_id"],
            "model_name": version.model_name,
            "version": version.version,
            "run_id": version.run_id,
            "model_type": version.model_type,
            "predictions": predictions.tolist(),
            "timestamp": codec.now(),
            "tenant_id": data["tenant_id"],
            "worker_id": self._worker_id,
            "latency_ms": seconds * 1000.0,
        }
        if "version" not in data:
            answer["alias"] = CHAMPION
        if probabilities is not None:
            answer["probabilities"] = probabilities.tolist()
        if version.task == CLASSIFICATION:
            answer["classes"] = version.classes
        return answer | {"duration": time.perf_counter() - started}

    async def follow(self, message: Message) -> None:
        """Load the version that a deploy event names, then put it in the champion's place.

        Requests under way end with the version they began with; none waits for the load.
        """
        event = message.data
        name, revision = event["model_name"], event.get("revision", 0)
        self._telemetry.annotate(
            {
                semconv.MODEL_NAME: name,
                semconv.MODEL_VERSION: event["version"],
                semconv.DEPLOYMENT_REVISION: revision,
            }
        )
        await self._take(name, None if event["action"] == "retire" else event["version"], revision)

    async def close(self) -> None:
        """Look for missed events no more."""
        for task in list(self._looking.values()):
            task.cancel()

    async def _take(self, model_name: str, version: str | None, revision: int) -> None:
        """Put a newer champion in the place of the one in memory; where none is, the first request loads it."""
        known = self._champions.get(model_name)
        if known is None or revision <= known.revision:
            return
        if version is None:
            self._champions.pop(model_name, None)
            return
        loaded = await self._load(model_name, version, revision)
        known = self._champions.get(model_name)
        if known is None or revision > known.revision:
            self._champions[model_name] = loaded

    def _look(self, model_name: str) -> None:
        """See in the background whether an event was missed, now and then."""
        now = time.monotonic()
        if now - self._looked.get(model_name, 0.0) <= self._max_age or model_name in self._looking:
            return
        self._looked[model_name] = now
        task = self._looking[model_name] = asyncio.ensure_future(self._catch_up(model_name))
        task.add_done_callback(lambda done: self._caught_up(model_name, done))

    async def _catch_up(self, model_name: str) -> None:
        state = await self._deployments.state(model_name)
        await self._take(model_name, state["version"], state["revision"])

    def _caught_up(self, model_name: str, task: asyncio.Task[None]) -> None:
        self._looking.pop(model_name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.warning("model %s is served as it is: %s", model_name, type(error).__name__)

    async def _served(self, model_name: str, version: str | None, alias: str) -> _Served:
        if version is not None:
            return await self._load(model_name, version, 0)
        if alias != CHAMPION:
            raise UnknownModel(model_name, alias=alias)
        served = self._champions.get(model_name)
        if served is None:
            return await self._first(model_name)
        self._look(model_name)
        return served

    async def _first(self, model_name: str) -> _Served:
        """Load the champion for the first request."""
        async with self._loading.setdefault(model_name, asyncio.Lock()):
            while (served := self._champions.get(model_name)) is None:
                state = await self._deployments.state(model_name)
                if state["version"] is None:
                    raise UnknownModel(model_name, alias=CHAMPION)
                loaded = await self._load(model_name, state["version"], state["revision"])
                if (await self._deployments.state(model_name))["revision"] == state["revision"]:
                    self._looked[model_name] = time.monotonic()
                    self._champions[model_name] = loaded  # events from now on find it here
        return served

    async def _load(self, model_name: str, version: str, revision: int) -> _Served:
        key = (model_name, version)
        served = self._loaded.get(key)
        if served is None:
            served = await asyncio.to_thread(self._read, model_name, version, revision)
            self._loaded[key] = served
            while len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
        if served.revision != revision and revision:
            served = _Served(version=served.version, model=served.model, schema=served.schema, revision=revision)
        self._loaded.move_to_end(key)
        return served

    def _read(self, model_name: str, version: str, revision: int) -> _Served:
        found = self._registry.version(model_name, version)
        model = self._registry.load(found)
        return _Served(version=found, model=model, schema=InputSchema(model_name, found.columns), revision=revision)
