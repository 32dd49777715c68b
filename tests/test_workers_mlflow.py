"""``kit worker llmops mlops`` as a process of its own, its models in an MLflow server that it reaches over HTTP."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from samples import eventually, sample
from worker_processes import Workers, access

from kit import codec
from kit.catalogue import LLMOPS_COST_ALERTS, LLMOPS_OPERATIONS
from kit.components import llmops, mlops
from kit.components.mlops import Registry
from kit.errors import RemoteError
from kit.nats import Bus, connect
from kit.nats.server import Server
from kit.otel import start_telemetry

WINES = [
    {"alcohol": 14.2, "flavanoids": 3.1, "hue": 1.04},
    {"alcohol": 12.4, "flavanoids": 0.6, "hue": 0.59},
]
TIMEOUT = 120.0  # s; the worker and its training process load scikit-learn, and the machine may be busy


@dataclass
class Seen:
    """What a run over several processes left behind.

    Attributes:
        totals: of LLMOps' report.
        alerts: that were heard, by reason.
        trained: results of two jobs.
        aliases: the champion's version as the MLflow server tells it: after each job, and after the roll-back.
        predicted: answers after each job, and after the roll-back.
        refused: the error's type, of rows that do not fit.
        artefacts: files that the server keeps, by name.
        end: exit code of the worker, and what it printed.
    """

    totals: dict[str, Any] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)
    trained: list[dict[str, Any]] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    predicted: list[dict[str, Any]] = field(default_factory=list)
    refused: str = ""
    artefacts: list[str] = field(default_factory=list)
    end: tuple[int, str] = (-1, "")


@contextmanager
def _mlflow(folder: Path) -> Iterator[str]:
    """Run ``mlflow server`` and yield its address; it answers some seconds later."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artefacts",
    ]  # fmt: skip
    # Its jobs would have it load LiteLLM, which takes seconds.
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=output, stderr=subprocess.STDOUT, cwd=folder, env={**os.environ, **quiet},
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20.0)


async def _champion(url: str) -> str:
    """Ask the MLflow server itself."""
    query = "api/2.0/mlflow/registered-models/alias?name=acme.wine&alias=champion"

    def ask() -> bytes:
        with urllib.request.urlopen(f"{url}/{query}", timeout=10.0) as answer:  # on loopback
            found: bytes = answer.read()
            return found

    return str(json.loads(await asyncio.to_thread(ask))["model_version"]["version"])


async def _operate(bus: Bus, seen: Seen) -> None:
    """Log operations, hear of their cost, ask for a report."""

    async def hear(message: Any) -> None:
        seen.alerts.append(message.data["reason"])

    async with await bus.subscribe(LLMOPS_COST_ALERTS, hear):
        for number in range(3):
            told = sample("llm_operation", operation_id=f"op-{number}", timestamp=codec.now(), cost=0.5, currency="USD")
            await bus.publish(LLMOPS_OPERATIONS, told)

        async def logged() -> bool:
            seen.totals = (await llmops.report(bus, ["model"])).totals
            return bool(seen.totals["operations"] == 3 and seen.alerts)

        await eventually(logged, TIMEOUT)


async def _model(bus: Bus, url: str, seen: Seen) -> None:
    """Train twice, predict, go back."""

    async def deployed(version: str) -> None:
        async def followed() -> bool:
            answer = await mlops.predict(bus, "wine", WINES, timeout=TIMEOUT)
            seen.predicted = [*seen.predicted[:count], answer]
            return bool(answer["version"] == version)

        count = len(seen.predicted)
        await eventually(followed, TIMEOUT)
        seen.aliases.append(await _champion(url))

    for regularisation in (1.0, 0.5):
        job = await mlops.submit(
            bus, "logistic_regression", "wine", {"C": regularisation}, model_name="wine", promote="always",
            features=list(WINES[0]),
        )  # fmt: skip
        seen.trained.append((await job.result(timeout=TIMEOUT)).data)
        await deployed(seen.trained[-1]["version"])
    with pytest.raises(RemoteError) as refused:
        await mlops.predict(bus, "wine", [{"alcohol": "strong"}])
    seen.refused = refused.value.error_type
    await mlops.rollback(bus, "wine", registry=await asyncio.to_thread(Registry, "acme", None, url))
    await deployed("1")


async def _scenario(server: Server, folder: Path) -> Seen:
    seen, who = Seen(), server.credentials("acme")
    with _mlflow(folder) as url:
        workers = Workers(access(server, folder) | {"MLFLOW_TRACKING_URI": url}, folder)
        try:
            workers.start("llmops", "thresholds=[1.2]", beside=("mlops",))  # it waits for the MLflow server
            await asyncio.to_thread(importlib.import_module, "mlflow.tracking")
            telemetry = start_telemetry("caller")
            async with (
                await connect(server.url, tenant_id="acme", user=who.user, password=who.password) as connection,
                Bus(connection, "acme", telemetry) as bus,
            ):
                await workers.ready()
                await _operate(bus, seen)
                await _model(bus, url, seen)
            await asyncio.to_thread(telemetry.shutdown, 3.0)
            workers.tell_to_end("llmops")
            seen.end = await workers.end("llmops")
        finally:
            workers.kill()
    seen.artefacts = sorted(path.name for path in (folder / "artefacts").rglob("*") if path.is_file())
    assert not (folder / ".kit" / "mlflow").exists(), "a server was named: nothing belongs into the default registry"
    return seen


@pytest.fixture(scope="module")
def seen(server: Server) -> Iterator[Seen]:
    """One run of an MLflow server, a worker and a caller, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        yield asyncio.run(_scenario(server, Path(folder)))


def test_operations_are_logged_watched_and_reported_by_a_process_of_its_own(seen: Seen) -> None:
    assert (seen.totals["operations"], seen.totals["cost"]) == (3, pytest.approx(1.5))
    assert seen.alerts == ["threshold_crossed"]


def test_models_are_trained_and_registered_at_the_server(seen: Seen) -> None:
    assert [(one["status"], one["version"], one["champion"]) for one in seen.trained] == [
        ("success", "1", True), ("success", "2", True),
    ]  # fmt: skip
    assert seen.artefacts == ["input_schema.json"] * 2 + ["model.skops"] * 2
    assert all(one["artifact"]["uri"].startswith("mlflow-artifacts:") for one in seen.trained)


def test_the_champion_is_the_servers_alias_and_predictions_follow_it(seen: Seen) -> None:
    assert seen.aliases == [answer["version"] for answer in seen.predicted] == ["1", "2", "1"]
    assert {tuple(answer["predictions"]) for answer in seen.predicted} == {("class_0", "class_2")}
    assert seen.refused == "InputRefused"


def test_the_worker_ends_in_order_after_sigterm(seen: Seen) -> None:
    code, said = seen.end
    assert code == 0, said
    assert said.endswith("stopped\n")
    assert "Traceback" not in said
    assert "View run" not in said  # MLflow would show a link to each
