"""A tenant's models in an MLflow registry: runs, artefacts, versions, the champion.

Blocking throughout: the service calls it from a thread. MLflow is imported when first used (3 s), its own telemetry
off. The default registry is a SQLite file; MLFLOW_TRACKING_URI names any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.catalogue import check_id
from kit.components.mlops.errors import ArtefactRefused, TrainingRefused, UnknownModel
from kit.components.mlops.models import TRUSTED
from kit.components.mlops.training import FORMAT, MODEL_FILE

if TYPE_CHECKING:
    import pandas as pd

CHAMPION = "champion"
SCHEMA_FILE = "input_schema.json"
TAG = "kit."  # what all tags of the kit begin with
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version of a model.

    Attributes:
        columns: what it takes, as ``training.input_schema`` wrote it.
        sha256: of the model file; nothing else is loaded.
    """

    model_name: str
    version: str
    run_id: str
    model_type: str
    task: str
    classes: list[Any]
    columns: list[dict[str, Any]]
    metrics: dict[str, float]
    parameters: dict[str, Any]
    sha256: str
    size: int
    uri: str
    result: dict[str, Any]

    @property
    def artifact(self) -> dict[str, Any]:
        """The model file, as it travels."""
        return {"uri": self.uri, "size": self.size, "sha256": self.sha256, "format": FORMAT}


class Registry:
    """One tenant's part of an MLflow registry.

    Args:
        store: folder of the default registry, which keeps a SQLite file and the artefacts of each tenant.
        tracking_uri: MLflow's; None: MLFLOW_TRACKING_URI, else the SQLite file.
    """

    def __init__(self, tenant_id: str, store: str | Path | None = None, tracking_uri: str | None = None) -> None:
        self.tenant_id = check_id(tenant_id)
        self.folder = Path(store or Path(".kit", "mlflow"), tenant_id).absolute()
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or self._default()
        self._mlflow: Any = None
        self._opening = threading.Lock()

    def _default(self) -> str:
        return f"sqlite:///{self.folder / 'registry.db'}"

    @property
    def client(self) -> Any:
        """MLflow's client; the first use creates a default registry's tables."""
        with self._opening:
            if self._mlflow is None:
                self._mlflow = _connect(self.tracking_uri, self.folder)
        return self._mlflow

    def full_name(self, model_name: str) -> str:
        """Return the name in the registry, which begins with the tenant's: a shared one keeps tenants apart.

        Raises:
            TrainingRefused: a name that is none.
        """
        if not _NAME.fullmatch(model_name):
            raise TrainingRefused(f"{model_name!r} names no model: 1 to 100 letters, digits, '_' and '-'")
        return f"{self.tenant_id}.{model_name}"

    def start_run(self, job: Mapping[str, Any], model_name: str, key: str) -> str:
        """Return the id of the run of a job, the one begun by an earlier attempt if there is one.

        Args:
            key: the job's message id: one run, and one version, for each.
        """
        experiment = self._experiment(str(job.get("experiment") or self.tenant_id))
        found = self.client.search_runs([experiment], filter_string=f"tags.`{TAG}key` = '{_digest(key)}'")
        if found:
            return str(found[0].info.run_id)
        tags = {str(name): str(value) for name, value in (job.get("tags") or {}).items()}
        tags |= {f"{TAG}key": _digest(key), f"{TAG}job_id": job["job_id"], f"{TAG}tenant_id": self.tenant_id}
        run = self.client.create_run(experiment, tags=tags, run_name=f"{model_name} {job['job_id']}"[:200])
        parameters = {"model_type": job["model_type"], "training_data": job["training_data"]} | job["parameters"]
        for name, value in parameters.items():
            self.client.log_param(run.info.run_id, str(name), value)
        return str(run.info.run_id)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of one step of a run."""
        for name, value in metrics.items():
            self.client.log_metric(run_id, name, value, step=step)

    def end_run(self, run_id: str, *, failed: bool = False) -> None:
        """Mark a run as finished, or failed."""
        self.client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def registered(self, model_name: str, key: str) -> Version | None:
        """Return the version that a job's earlier delivery registered, or None."""
        name = self.full_name(model_name)
        found = self.client.search_model_versions(f"name = '{name}' and tags.`{TAG}key` = '{_digest(key)}'")
        return self._version(model_name, min(found, key=lambda one: int(one.version))) if found else None

    def register(self, model_name: str, run_id: str, key: str, job: Mapping[str, Any], told: Mapping[str, Any],
                 folder: Path) -> Version:  # fmt: skip
        """Log the artefact, register a version of it, and finish the run; once for each ``key``."""
        if earlier := self.registered(model_name, key):
            return earlier
        name = self.full_name(model_name)
        (folder / SCHEMA_FILE).write_text(json.dumps(told["schema"], indent=1))
        for file in (MODEL_FILE, SCHEMA_FILE):
            self.client.log_artifact(run_id, str(folder / file))
        self._ensure(name)
        document = {
            "model_type": job["model_type"], "task": told["task"], "classes": told["classes"],
            "columns": told["schema"], "metrics": told["metrics"], "parameters": job["parameters"],
            "sha256": told["sha256"], "size": told["size"], "rows": told["rows"], "features": told["features"],
        }  # fmt: skip
        uri = f"{self.client.get_run(run_id).info.artifact_uri}/{MODEL_FILE}"
        tags = {"key": _digest(key), "sha256": told["sha256"], "document": json.dumps(document)}
        version = self.client.create_model_version(
            name, source=uri, run_id=run_id, tags={f"{TAG}{tag}": value for tag, value in tags.items()}
        )
        self.end_run(run_id)
        first = self.registered(model_name, key)
        if first is None or first.version == str(version.version):
            return self._version(model_name, self.client.get_model_version(name, version.version))
        self.client.delete_model_version(name, version.version)  # another delivery registered at the same moment
        return first

    def version(self, model_name: str, version: str) -> Version:
        """Return a version.

        Raises:
            UnknownModel: there is none.
        """
        found = self._found(model_name, version=version)
        return self._version(model_name, found)

    def champion(self, model_name: str) -> Version | None:
        """Return the version that the champion alias names, or None."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version_by_alias(self.full_name(model_name), CHAMPION)
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return None
            raise
        return self._version(model_name, found)

    def set_champion(self, model_name: str, version: str | None) -> bool:
        """Point the champion alias at a version, or take it away; return False when somebody else just did."""
        from mlflow.exceptions import MlflowException

        try:
            if version is None:
                self.client.delete_registered_model_alias(self.full_name(model_name), CHAMPION)
            else:
                self.client.set_registered_model_alias(self.full_name(model_name), CHAMPION, version)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":  # what MLflow makes of two inserts of one alias
                raise
            return False
        return True

    def versions(self, model_name: str | None = None) -> pd.DataFrame:
        """Return the tenant's versions, the newest first: model, version, champion, metrics, parameters, hash."""
        import pandas as pd

        rows = []
        for model in self._models():
            short = model.name.removeprefix(f"{self.tenant_id}.")
            if model_name not in (None, short):
                continue
            champion = model.aliases.get(CHAMPION)
            for found in self.client.search_model_versions(f"name = '{model.name}'"):
                one = self._version(short, found)
                rows.append(
                    {"model_name": short, "version": one.version, "champion": str(champion) == one.version}
                    | {"model_type": one.model_type} | one.metrics | {"sha256": one.sha256, "run_id": one.run_id}
                )  # fmt: skip
        rows.sort(key=lambda row: (row["model_name"], -int(row["version"])))
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=_LISTED)

    def _models(self) -> Iterator[Any]:
        """Yield the tenant's registered models; to LIKE, ``_`` is any character, and the case does not matter."""
        token, own = None, f"{self.tenant_id}."
        while token != "":
            page = self.client.search_registered_models(filter_string=f"name LIKE '{own}%'", page_token=token)
            yield from (model for model in page if model.name.startswith(own))
            token = page.token or ""

    def load(self, version: Version) -> Any:
        """Return the fitted model of a version, once its file's hash and the types in it are what they should be.

        Raises:
            ArtefactRefused: another hash than was registered, or a type that is not on the list.
        """
        import skops.io

        with tempfile.TemporaryDirectory() as folder:
            path = Path(self.client.download_artifacts(version.run_id, MODEL_FILE, folder))
            content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != version.sha256:
            raise ArtefactRefused(
                version.model_name, version.version, f"its file has SHA-256 {found}, not {version.sha256}"
            )
        types = skops.io.get_untrusted_types(data=content)
        if foreign := sorted(set(types) - set(TRUSTED)):
            raise ArtefactRefused(
                version.model_name, version.version, f"nobody trusts {', '.join(foreign)}", types=foreign
            )
        return skops.io.loads(content, trusted=types)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        full = f"kit/{self.tenant_id}" if name == self.tenant_id else f"kit/{self.tenant_id}/{name}"
        found = self.client.get_experiment_by_name(full)
        if found is not None:
            return str(found.experiment_id)
        location = (self.folder / "artefacts").as_uri() if self.tracking_uri == self._default() else None
        try:
            return str(self.client.create_experiment(full, artifact_location=location))
        except MlflowException:
            found = self.client.get_experiment_by_name(full)  # another worker was faster
            if found is None:
                raise
            return str(found.experiment_id)

    def _ensure(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _found(self, model_name: str, *, version: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version(self.full_name(model_name), version)
        except MlflowException as error:
            if error.error_code in _ABSENT:
                raise UnknownModel(model_name, version=version) from None
            raise

    def _version(self, model_name: str, found: Any) -> Version:
        document = json.loads(found.tags[f"{TAG}document"])
        return Version(
            model_name=model_name, version=str(found.version), run_id=found.run_id, uri=found.source,
            **{key: document[key] for key in _DESCRIBED}, result=document,
        )  # fmt: skip


_LISTED = ["model_name", "version", "champion", "model_type", "sha256", "run_id"]  # of versions, beside their metrics
_DESCRIBED = ("model_type", "task", "classes", "columns", "metrics", "parameters", "sha256", "size")
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the second: an alias, or a version that is no number


def _digest(value: str) -> str:
    """Return a job's key in a form that needs no quoting in MLflow's filters."""
    return hashlib.sha256(value.encode()).hexdigest()


def _connect(uri: str, folder: Path) -> Any:
    """Return MLflow's client, with its telemetry, progress bars, links and migration logs off."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    if uri.startswith("sqlite:"):
        from kit.nats.config import private_folder

        private_folder(folder)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
