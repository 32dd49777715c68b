"""Training jobs, deploy events and predictions over the bus: once each, and no request is dropped in a switch."""

from __future__ import annotations

import asyncio
import pickle
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from canaries import NAME, SENTENCE, Kept, log_lines

from kit import codec
from kit.catalogue import (
    MLOPS_DEPLOY,
    MLOPS_DEPLOY_PUBLISH,
    MLOPS_DEPLOY_RECEIVE,
    MLOPS_DEPLOYMENTS,
    MLOPS_MODEL_SCORE,
    MLOPS_PREDICTION,
    MLOPS_PREDICTION_DURATION,
    MLOPS_PREDICTION_REQUEST,
    MLOPS_PREDICTIONS_MADE,
    MLOPS_TRAINING,
    MLOPS_TRAINING_DURATION,
    MLOPS_TRAINING_JOB,
    MLOPS_TRAINING_JOBS,
    MLOPS_TRAINING_SUBMIT,
)
from kit.components import mlops
from kit.components.mlops import ArtefactRefused, Deployments, Registry, TrainingRefused, UnknownModel
from kit.components.mlops import registry as registries
from kit.components.mlops.models import load_dataset
from kit.components.mlops.predictor import PredictionWorker
from kit.components.mlops.process import Trainer
from kit.components.mlops.training import train
from kit.errors import JobDead, RemoteError

TIMEOUT = 60.0  # s; importing scikit-learn and MLflow takes seconds on a busy machine


@pytest.fixture(scope="module")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry's folder whose tables are made, which takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    assert Registry("template", folder).versions().empty
    return folder / "template"


@pytest.fixture
def registry(tenant_bus: Any, empty_registry: Path, tmp_path: Path) -> Registry:
    shutil.copytree(empty_registry, tmp_path / tenant_bus.tenant_id)
    return Registry(tenant_bus.tenant_id, tmp_path)


@pytest.fixture
async def service(tenant_bus: Any, registry: Registry) -> AsyncIterator[Any]:
    async with await mlops.serve(tenant_bus, model_store=registry.folder.parent) as running:
        yield running


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in a thread: a process of its own takes seconds to start, and is proved by the first test."""

    async def train_near(
        self: Trainer, job: dict[str, Any], folder: Path, progress: Any, *, content: Path | None, timeout: float | None
    ) -> dict[str, Any]:
        steps: list[dict[str, Any]] = []
        data = await asyncio.to_thread(content.read_bytes) if content else None
        told = await asyncio.to_thread(train, job, folder, steps.append, data)
        for step in steps:
            await progress(step)
        return told

    monkeypatch.setattr(Trainer, "train", train_near)


def register(
    registry: Registry, folder: Path, *, key: str = "1", model_type: str = "logistic_regression", **parameters: Any
) -> str:
    """Train in this process and register: what a job does, in a fraction of the time."""
    job = {"job_id": key, "model_type": model_type, "training_data": "wine", "parameters": parameters}
    folder.mkdir(exist_ok=True)
    told = train(job, folder, lambda step: None)
    return registry.register("wine", registry.start_run(job, "wine", key), key, job, told, folder).version


def rows(count: int = 1) -> list[dict[str, Any]]:
    return load_dataset("wine").features.head(count).to_dict("records")


async def test_a_job_is_trained_registered_and_followed(
    tenant_bus: Any, registry: Registry, service: Any, telemetry: Any
) -> None:
    steps: list[dict[str, Any]] = []

    async def watch() -> None:
        async for step in mlops.follow(tenant_bus, "my job"):
            steps.append(step)

    watching = asyncio.ensure_future(watch())
    job = await mlops.submit(
        tenant_bus, "logistic_regression", "wine", {"C": 0.5}, job_id="my job", promote="if_better", seed=3
    )
    result = (await job.result(timeout=TIMEOUT)).data
    await asyncio.wait_for(watching, 10.0)
    assert (result["status"], result["version"], result["champion"]) == ("success", "1", True)
    assert result["metrics"]["accuracy"] > 0.9
    assert result["classes"] == ["class_0", "class_1", "class_2"]
    assert [step["status"] for step in steps[:-1]] == ["running"] * (len(steps) - 1)
    assert steps[-1]["status"] == "success"
    assert any(step.get("stage") == "fold 3 of 5" and "accuracy" in step["metrics"] for step in steps)
    for step in steps:
        codec.validate("ml_training_result", step)
    assert (await mlops.status(tenant_bus, "my job") or {})["version"] == "1"
    assert await mlops.status(tenant_bus, "another") is None
    version = registry.version("wine-logistic_regression", "1")
    run = registry.client.get_run(version.run_id)
    assert run.data.metrics["accuracy"] == result["metrics"]["accuracy"]
    assert run.data.params["C"] == "0.5"
    assert version.sha256 == result["artifact"]["sha256"]
    answer = await mlops.predict(tenant_bus, "wine-logistic_regression", rows(2), timeout=TIMEOUT)
    assert answer["predictions"] == ["class_0", "class_0"]
    names = set(telemetry.recorder.spans()["name"])
    assert {MLOPS_TRAINING_SUBMIT.name, MLOPS_TRAINING_JOB.name} <= names
    total = telemetry.recorder.total
    assert (total(MLOPS_TRAINING_JOBS.name), total(MLOPS_TRAINING_DURATION.name)) == (1, 1)
    assert total(MLOPS_MODEL_SCORE.name, score="accuracy") == 1


async def test_a_job_delivered_again_registers_nothing_again(
    tenant_bus: Any, registry: Registry, near: None, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {
        "job_id": "twice", "model_type": "ridge", "training_data": "wine", "parameters": {}, "model_name": "twice",
        "tenant_id": tenant_bus.tenant_id, "timestamp": codec.now(),
    }  # fmt: skip
    real, calls = Registry.register, []

    def dying(self: Registry, *args: Any) -> Any:
        version = real(self, *args)
        calls.append(version)
        if len(calls) == 1:
            raise OSError("the worker died after it had registered")
        return version

    monkeypatch.setattr(Registry, "register", dying)
    job = await tenant_bus.enqueue(MLOPS_TRAINING, data, message_id="twice-1")
    first = (await job.result(timeout=TIMEOUT)).data
    again = await tenant_bus.enqueue(MLOPS_TRAINING, data, message_id="twice-1")
    assert (await again.result(timeout=TIMEOUT)).data["version"] == first["version"] == "1"
    assert first["attempt"] == 2
    assert len(registry.versions("twice")) == len(calls) == 1


async def test_a_job_that_cannot_be_done_says_why_at_once(tenant_bus: Any, near: None, service: Any) -> None:
    job = await mlops.submit(tenant_bus, "logistic_regression", "wine", {"colour": "red"}, job_id="bad")
    with pytest.raises(JobDead) as dead:
        await job.result(timeout=TIMEOUT)
    assert (dead.value.error_type, dead.value.attempts) == ("TrainingRefused", 1)
    status = await mlops.status(tenant_bus, "bad")
    assert status is not None
    assert (status["status"], status["error"]["type"]) == ("error", "TrainingRefused")
    job = await mlops.submit(tenant_bus, "ridge", "wine", model_name="../etc")
    with pytest.raises(JobDead, match="TrainingRefused"):
        await job.result(timeout=TIMEOUT)


async def test_data_sent_along_and_better_models_only(
    tenant_bus: Any, registry: Registry, near: None, service: Any
) -> None:
    wine = load_dataset("wine")
    frame = wine.features.assign(target=wine.target)

    async def trained(model_type: str, parameters: dict[str, Any], **fields: Any) -> dict[str, Any]:
        job = await mlops.submit(tenant_bus, model_type, frame, parameters, model_name="mine", **fields)
        data: dict[str, Any] = (await job.result(timeout=TIMEOUT)).data
        return data

    good = await trained("logistic_regression", {}, promote="always", features=["alcohol", "flavanoids", "hue"])
    assert good["features"] == ["alcohol", "flavanoids", "hue"]
    poor = await trained("decision_tree", {"max_depth": 1}, promote="if_better", promote_metric="accuracy")
    assert (good["champion"], poor["champion"]) == (True, False)
    kept = await trained("decision_tree", {"max_depth": 1})
    assert not kept["champion"]
    champion = registry.champion("mine")
    assert champion is not None
    assert champion.version == good["version"]


async def test_values_and_labels_are_in_nothing_that_is_told_and_names_are(
    tenant_bus: Any, near: None, service: Any, telemetry: Any
) -> None:
    """The content canary of MLOps: see test_content_canary.py."""
    kept, labels = Kept(), ["Quagga7531", "Zyzzyvaville"] * 20
    table = pd.DataFrame({NAME: range(40), "other": [number % 7 for number in range(40)], "target": labels})

    async def trained(data: pd.DataFrame | str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        job = await mlops.submit(tenant_bus, "logistic_regression", data, parameters, model_name=NAME, promote="always")
        result: dict[str, Any] = (await job.result(timeout=TIMEOUT)).data
        return result

    with log_lines() as lines:
        assert (await trained(table))["classes"] == labels[:2]
        answer = await mlops.predict(tenant_bus, NAME, table.head(1).drop(columns="target"), timeout=TIMEOUT)
        assert answer["predictions"][0] in labels
        for row in ({NAME: SENTENCE, "other": 1}, {NAME: 1, "other": SENTENCE, "more": SENTENCE}, [SENTENCE]):
            with kept.failing():
                await mlops.predict(tenant_bus, NAME, [row])
        for data, parameters in [
            (NAME, {}),  # there are no such data
            (table.assign(target=["Wombat9042", *labels[1:]]), {}),  # a label of one row: it cannot be split
            (table.assign(other=SENTENCE), {}),
            (table, {"solver": "Quagga7531"}),
            (table, {"class_weight": {"Quagga7531": SENTENCE}}),
        ]:
            with kept.failing(JobDead):
                await trained(data, parameters)
        kept.letters = await tenant_bus.dead_letters(MLOPS_TRAINING)
        kept.gather(telemetry, lines)
    assert len(kept.letters) == 5
    for where in ("spans", "metrics", "logs", "log lines", "errors", "dead letters"):
        kept.assert_no_content(where)
    for where in ("spans", "errors", "dead letters"):
        assert NAME in kept.texts[where]
    assert f"no training data are called '{NAME}'" in kept.texts["errors"]


async def test_training_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    trainer = Trainer()
    job = {"model_type": "random_forest", "training_data": "digits", "parameters": {"n_estimators": 100_000}}

    async def ignore(step: dict[str, Any]) -> None:
        return None

    with pytest.raises(mlops.TrainingFailed, match=r"stopped after 0\.3 s"):
        await trainer.train(job, tmp_path, ignore, timeout=0.3)
    process = await trainer._child._started()
    process.kill()
    with pytest.raises(mlops.TrainingFailed, match="ended with exit code"):
        await trainer.train(job, tmp_path, ignore)
    running = asyncio.ensure_future(trainer.train(job, tmp_path, ignore))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await trainer.close()


def test_tenants_of_a_shared_registry_see_their_own_models_alone(tmp_path: Path) -> None:
    shared = f"sqlite:///{tmp_path}/shared.db"
    registries = [Registry(tenant, tmp_path, shared) for tenant in ("abc", "a-c", "abcd", "a_c", "a__", "ab")]
    for known, registry in enumerate(registries):
        assert registry.versions().empty
        if known < 4:
            register(registry, tmp_path / str(known), key=str(known))
    assert [len(registry.versions()) for registry in registries] == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("limits", "width", "says"),
    [({"timeout": 2.0}, 3_000, "stopped after 2 s"), ({"memory": 900 * 2**20}, 30_000, "bytes that its worker")],
)
async def test_a_training_without_end_gives_way_to_the_next(
    tmp_path: Path, limits: dict[str, Any], width: int, says: str
) -> None:
    trainer = Trainer(**limits)
    endless = {"model_type": "mlp", "training_data": "iris", "parameters": {"hidden_layer_sizes": [width, width]}}

    async def ignore(step: dict[str, Any]) -> None:
        return None

    try:
        with pytest.raises(mlops.TrainingLimit, match=says) as ended:
            await trainer.train(endless, tmp_path, ignore, timeout=10**9)
        assert not ended.value.retryable
        trainer._timeout = 60.0  # starting anew takes longer than what is tested here
        quick = {"model_type": "decision_tree", "training_data": "iris", "parameters": {}}
        assert (await trainer.train(quick, tmp_path, ignore))["task"] == "classification"
    finally:
        await trainer.close()


async def test_a_switch_under_load_drops_no_request(
    tenant_bus: Any, registry: Registry, tmp_path: Path, telemetry: Any
) -> None:
    one, two = (register(registry, tmp_path / key, key=key, C=c) for key, c in (("1", 1.0), ("2", 1e-6)))
    deployed: list[dict[str, Any]] = []

    async def watch(message: Any) -> None:
        deployed.append(message.data)

    store = registry.folder.parent
    async with (
        await tenant_bus.subscribe(MLOPS_DEPLOY, watch),
        await mlops.serve(tenant_bus, model_store=store, training=False) as first,
        await mlops.serve(tenant_bus, model_store=store, training=False),
    ):
        await mlops.promote(tenant_bus, "wine", one, registry=registry)
        for _ in range(8):
            await mlops.predict(tenant_bus, "wine", rows(), timeout=TIMEOUT)
        answers: list[tuple[str, str]] = []
        switched = asyncio.Event()

        async def load() -> None:
            while not switched.is_set() or len(answers) < 40:
                answer = await mlops.predict(tenant_bus, "wine", rows(2), timeout=TIMEOUT)
                answers.append((answer["version"], answer["worker_id"]))

        loading = [asyncio.ensure_future(load()) for _ in range(4)]
        await asyncio.sleep(0.1)
        await mlops.promote(tenant_bus, "wine", two, registry=registry, reason="test", deployed_by="ada")
        await asyncio.sleep(0.2)
        await mlops.rollback(tenant_bus, "wine", registry=registry)
        await asyncio.sleep(0.2)
        switched.set()
        await asyncio.gather(*loading)
        assert first.workers[1].operation.name == "MLOPS_PREDICTIONS"
        last = await mlops.predict(tenant_bus, "wine", rows(), timeout=TIMEOUT)
    versions = [version for version, _ in answers]
    assert set(versions) == {one, two}
    assert versions[0] == last["version"] == one
    assert len({worker for _, worker in answers}) == 2
    assert [(event["action"], event["version"], event["revision"]) for event in deployed] == [
        ("deploy", one, 1), ("deploy", two, 2), ("rollback", one, 3),
    ]  # fmt: skip
    assert (deployed[1]["previous_version"], deployed[1]["reason"], deployed[1]["deployed_by"]) == (one, "test", "ada")
    spans = telemetry.recorder.spans()
    expected = {MLOPS_DEPLOY_PUBLISH, MLOPS_DEPLOY_RECEIVE, MLOPS_PREDICTION_REQUEST, MLOPS_PREDICTION}
    assert {span.name for span in expected} <= set(spans["name"])
    total = telemetry.recorder.total
    made = total(MLOPS_PREDICTIONS_MADE.name)
    assert made == total(MLOPS_PREDICTIONS_MADE.name, status="success") == len(answers) + 9
    assert total(MLOPS_PREDICTION_DURATION.name) == made
    assert total(MLOPS_DEPLOYMENTS.name) == 9


async def test_predictions_single_in_batch_and_by_version(tenant_bus: Any, registry: Registry, tmp_path: Path) -> None:
    one = register(registry, tmp_path / "1")
    features = load_dataset("wine").features
    async with await mlops.serve(tenant_bus, model_store=registry.folder.parent, training=False):
        with pytest.raises(RemoteError) as refused:
            await mlops.predict(tenant_bus, "wine", rows(), timeout=TIMEOUT)
        assert refused.value.error_type == "UnknownModel"
        batch = await mlops.predict(tenant_bus, "wine", features, version=one, probabilities=True, timeout=TIMEOUT)
        assert len(batch["predictions"]) == len(batch["probabilities"]) == 178
        assert batch["classes"] == ["class_0", "class_1", "class_2"]
        single = await mlops.predict(tenant_bus, "wine", [features.iloc[0].tolist()], version=one)
        assert single["predictions"] == batch["predictions"][:1]
        assert (single["version"], single["latency_ms"] >= 0) == (one, True)
        for fields in ({"version": "9"}, {"alias": "challenger"}):
            with pytest.raises(RemoteError, match="UnknownModel"):
                await mlops.predict(tenant_bus, "wine", rows(), **fields)


@pytest.mark.parametrize(
    ("change", "column"),
    [({"alcohol": "strong"}, "alcohol"), ({"malic_acid": None}, "malic_acid"), ({"colour": 1.0}, "colour")],
)
async def test_wrong_input_is_a_typed_error_that_names_the_column(
    tenant_bus: Any, registry: Registry, tmp_path: Path, change: dict[str, Any], column: str
) -> None:
    one = register(registry, tmp_path / "1")
    async with await mlops.serve(tenant_bus, model_store=registry.folder.parent, training=False):
        with pytest.raises(RemoteError) as refused:
            await mlops.predict(tenant_bus, "wine", [rows()[0] | change], version=one, timeout=TIMEOUT)
    assert refused.value.error_type == "InputRefused"
    assert f"column '{column}'" in refused.value.detail
    assert "strong" not in refused.value.detail


async def test_champions_move_back_and_retire(tenant_bus: Any, registry: Registry, tmp_path: Path) -> None:
    versions = [register(registry, tmp_path / key, key=key) for key in "123"]
    deployments = Deployments(tenant_bus, registry)
    for version in versions:
        await deployments.promote("wine", version)
    await deployments.rollback("wine")
    moved = await deployments.rollback("wine", reason="worse")
    assert (moved["version"], moved["previous_version"], moved["reason"]) == ("1", "2", "worse")
    codec.validate("ml_deployment", moved)
    champion = registry.champion("wine")
    assert champion is not None
    assert champion.version == "1"
    with pytest.raises(UnknownModel, match="champion before"):
        await deployments.rollback("wine")
    async with await mlops.serve(tenant_bus, model_store=registry.folder.parent, training=False):
        assert (await mlops.predict(tenant_bus, "wine", rows(), timeout=TIMEOUT))["version"] == "1"
        await mlops.retire(tenant_bus, "wine", registry=registry)

        async def refused() -> bool:
            try:
                await mlops.predict(tenant_bus, "wine", rows())
            except RemoteError as error:
                return error.error_type == "UnknownModel"
            return False

        async with asyncio.timeout(10.0):
            while not await refused():  # noqa: ASYNC110 - a worker hears of it in its own time
                await asyncio.sleep(0.02)
    with pytest.raises(UnknownModel):
        await deployments.retire("wine")
    with pytest.raises(UnknownModel):
        await deployments.promote("wine", "9")


async def test_two_who_promote_at_once_are_put_in_order(tenant_bus: Any, registry: Registry, tmp_path: Path) -> None:
    versions = [register(registry, tmp_path / key, key=key) for key in "12"]
    moved = await asyncio.gather(*(mlops.promote(tenant_bus, "wine", v, registry=registry) for v in versions))
    assert sorted(event["revision"] for event in moved) == [1, 2]
    last = max(moved, key=lambda event: event["revision"])
    assert await Deployments(tenant_bus, registry).champion("wine") == last["version"]
    assert last["previous_version"] == min(moved, key=lambda event: event["revision"])["version"]


async def test_a_worker_that_missed_an_event_catches_up(tenant_bus: Any, registry: Registry, tmp_path: Path) -> None:
    one, two = (register(registry, tmp_path / key, key=key) for key in "12")
    registry.set_champion("wine", one)  # by MLflow's own means
    deployments = Deployments(tenant_bus, registry)
    worker = PredictionWorker(tenant_bus, registry, deployments, "w", max_age=0.0)
    message = type("M", (), {})()
    message.data = {"request_id": "r", "model_name": "wine", "instances": rows(), "tenant_id": tenant_bus.tenant_id}
    assert (await worker.predict(message))["version"] == one
    await deployments.promote("wine", two)
    async with asyncio.timeout(10.0):
        while (await worker.predict(message))["version"] != two:  # noqa: ASYNC110 - it catches up in the background
            await asyncio.sleep(0.02)
    registry.folder.rename(registry.folder.with_name("gone"))
    assert (await worker.predict(message))["version"] == two
    await worker.close()


# --- the registry alone -----------------------------------------------------------------------------------------------


@pytest.fixture
def own(empty_registry: Path, tmp_path: Path) -> Registry:
    """A registry that no bus knows."""
    shutil.copytree(empty_registry, tmp_path / "acme")
    return Registry("acme", tmp_path)


def test_a_job_is_registered_once(own: Registry, tmp_path: Path) -> None:
    job = {"job_id": "j", "model_type": "decision_tree", "training_data": "wine", "parameters": {}}
    told = train(job, tmp_path, lambda step: None)
    run_id = own.start_run(job | {"tags": {"team": "a"}}, "wine", "key-'1")
    assert own.start_run(job, "wine", "key-'1") == run_id
    assert own.registered("wine", "key-'1") is None
    own.log_metrics(run_id, {"accuracy": 0.5}, step=1)
    version = own.register("wine", run_id, "key-'1", job, told, tmp_path)
    again = own.register("wine", run_id, "key-'1", job, told, tmp_path)
    assert again == version == own.registered("wine", "key-'1") == own.version("wine", "1")
    assert version.artifact["sha256"] == told["sha256"]
    assert own.client.get_run(run_id).info.status == "FINISHED"
    other = own.start_run(job | {"experiment": "trials"}, "wine", "key-2")
    own.end_run(other, failed=True)
    assert own.client.get_run(other).info.status == "FAILED"


def test_two_deliveries_that_register_at_once_leave_one_version(
    own: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(own, tmp_path / "1")
    real, blind = Registry.registered, [None]
    monkeypatch.setattr(Registry, "registered", lambda self, *key: blind.pop() if blind else real(self, *key))
    assert register(own, tmp_path / "1") == first
    assert list(own.versions("wine")["version"]) == [first]


def test_the_champion_is_an_alias(own: Registry, tmp_path: Path) -> None:
    version = register(own, tmp_path / "1")
    assert own.champion("wine") is None
    assert own.champion("nobody") is None
    assert own.set_champion("wine", version)
    champion = own.champion("wine")
    assert champion is not None
    assert champion.version == version
    versions = own.versions("wine")
    assert list(versions["champion"]) == [True]
    assert versions["accuracy"].iloc[0] == champion.metrics["accuracy"]
    assert own.set_champion("wine", None)
    assert own.champion("wine") is None
    nothing = own.versions("another")
    assert nothing.empty
    assert {"version", "champion"} <= set(nothing)
    assert Registry("globex", tmp_path, own.tracking_uri).versions().empty
    for unknown in ("99", "x"):
        with pytest.raises(UnknownModel, match=f"version {unknown}"):
            own.version("wine", unknown)


def test_a_name_that_is_none_is_refused(own: Registry) -> None:
    for name in ("../wine", "a.b", "", "x" * 101):
        with pytest.raises(TrainingRefused, match="names no model"):
            own.full_name(name)


def test_a_file_that_was_changed_is_not_loaded(own: Registry, tmp_path: Path) -> None:
    version = own.version("wine", register(own, tmp_path / "1"))
    assert own.load(version).predict is not None
    path = Path(version.uri.removeprefix("file://"))
    for content in (path.read_bytes() + b"x", pickle.dumps({"a": "pickle"})):
        path.write_bytes(content)
        with pytest.raises(ArtefactRefused, match="SHA-256"):
            own.load(version)


def test_a_type_that_nobody_trusts_is_not_loaded(
    own: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = own.version("wine", register(own, tmp_path / "1", model_type="decision_tree"))
    assert own.load(version).predict is not None
    monkeypatch.setattr(registries, "TRUSTED", ())
    with pytest.raises(ArtefactRefused, match=r"sklearn\.tree\._tree\.Tree"):
        own.load(version)


def test_another_registry_is_taken_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Registry("acme", tmp_path).tracking_uri == f"sqlite:///{tmp_path}/acme/registry.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert Registry("acme", tmp_path).tracking_uri == "http://127.0.0.1:1"
    assert Registry("acme", tmp_path, "sqlite:///x.db").tracking_uri == "sqlite:///x.db"
