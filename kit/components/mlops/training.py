"""Training itself: cross-validation, a held-out score, a skops file, and the schema of what the model takes.

Runs in a process of its own (``python -m kit.components.mlops.training``), which tells its progress line by line:
the event loop of the worker stays free, and a job that takes too long can be ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.components.mlops.errors import MLOpsError, TrainingLimit, TrainingRefused
from kit.components.mlops.models import CLASSIFICATION, Dataset, build, load_dataset, scorers

if TYPE_CHECKING:
    import pandas as pd

FOLDS = 5
TEST_SIZE = 0.25
MODEL_FILE = "model.skops"
FORMAT = "skops"

_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_VALUES = re.compile(r" Got | got | are: ")  # what scikit-learn begins with when it quotes values and labels

Tell = Callable[[dict[str, Any]], None]


def train(job: Mapping[str, Any], folder: Path, tell: Tell, content: bytes | None = None) -> dict[str, Any]:
    """Train a model, write it to ``folder`` and return what the registry keeps of it.

    Args:
        job: an ``ml_training_job``.
        tell: is told ``{"progress", "stage", "metrics"}`` along the way.
        content: the file that the job sent along.

    Raises:
        TrainingRefused: the job cannot be done as asked.
    """
    started = time.monotonic()
    seed = int(job.get("seed", 0))
    tell({"progress": 0.0, "stage": "load"})
    data = load_dataset(job["training_data"], content=content, target=job.get("target"), features=job.get("features"))
    model = build(job["model_type"], data.task, job["parameters"], seed)
    measures = scorers(data.task, job.get("metrics"))
    learn, test = _split(data, float(job.get("test_size") or TEST_SIZE), seed)
    metrics: dict[str, float] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. that it did not converge: the scores say so
            metrics |= _cross_validate(model, learn, measures, seed, tell)
            tell({"progress": 0.8, "stage": "fit", "metrics": metrics})
            model.fit(learn.features, learn.target)
            metrics |= {name: measure(model, test.features, test.target) for name, measure in measures.items()}
    except (ValueError, TypeError, AttributeError) as error:
        names = {*model[-1].get_params(), *map(str, data.features.columns)}
        raise TrainingRefused(f"{job['model_type']} on {data.name}: {_plain(error, names)}") from None
    tell({"progress": 0.95, "stage": "save", "metrics": metrics})
    written = save(model, folder / MODEL_FILE)
    return written | {
        "metrics": metrics,
        "task": data.task,
        "rows": len(learn.features),
        "features": list(map(str, data.features.columns)),
        "classes": [_plain_value(value) for value in model.classes_] if data.task == CLASSIFICATION else [],
        "schema": input_schema(learn.features),
        "duration": time.monotonic() - started,
    }


def save(model: Any, path: Path) -> dict[str, Any]:
    """Write a fitted model with skops and return its file's name, size and SHA-256."""
    import skops.io

    skops.io.dump(model, path)
    content = path.read_bytes()
    return {"file": path.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "format": FORMAT}


def input_schema(features: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the columns that a model takes: name, kind of number, and the range it has learned from."""
    return [
        {
            "name": str(name),
            "kind": {"i": "integer", "u": "integer", "b": "boolean"}.get(column.dtype.kind, "number"),
            "low": float(column.min()),
            "high": float(column.max()),
        }
        for name, column in features.items()
    ]


def _split(data: Dataset, test_size: float, seed: int) -> tuple[Dataset, Dataset]:
    from sklearn.model_selection import train_test_split

    labels = data.target if data.task == CLASSIFICATION else None
    try:
        parts = train_test_split(data.features, data.target, test_size=test_size, random_state=seed, stratify=labels)
    except ValueError as error:
        raise TrainingRefused(f"{data.name} cannot be split: {_plain(error)}") from None
    learned, tested, learned_target, tested_target = parts
    common = {"name": data.name, "task": data.task}
    return (
        Dataset(features=learned, target=learned_target, **common),
        Dataset(features=tested, target=tested_target, **common),
    )


def _cross_validate(
    model: Any, data: Dataset, measures: Mapping[str, Callable[[Any, Any, Any], float]], seed: int, tell: Tell
) -> dict[str, float]:
    """Return the mean of each metric over the folds, telling each fold's as it comes."""
    from sklearn.base import clone
    from sklearn.model_selection import KFold, StratifiedKFold

    kind = StratifiedKFold if data.task == CLASSIFICATION else KFold
    totals = dict.fromkeys(measures, 0.0)
    folds = kind(FOLDS, shuffle=True, random_state=seed).split(data.features, data.target)
    for number, (learn, test) in enumerate(folds, start=1):
        fitted = clone(model).fit(data.features.iloc[learn], data.target.iloc[learn])
        found = {
            name: measure(fitted, data.features.iloc[test], data.target.iloc[test])
            for name, measure in measures.items()
        }
        for name, value in found.items():
            totals[name] += value / FOLDS
        tell({"progress": 0.1 + 0.7 * number / FOLDS, "stage": f"fold {number} of {FOLDS}", "metrics": found})
    return {f"cv_{name}": value for name, value in totals.items()}


def _plain(error: Exception, names: Set[str] = frozenset()) -> str:
    """Return scikit-learn's message as far as it tells shapes, its own words and these names; no values or labels."""
    said = _VALUES.split(str(error).splitlines()[0])[0] if str(error) else ""
    if type(error).__name__ != "InvalidParameterError":  # which lists what it takes before it quotes what it got
        said = _QUOTED.sub(lambda quoted: quoted[0] if (quoted[1] or quoted[2]) in names else "'…'", said)
    return f"{type(error).__name__}: {said[:300]}"


def _plain_value(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


@contextlib.contextmanager
def _only_lines() -> Iterator[Tell]:
    """Yield a function that writes a line to what was standard output, which then leads to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def tell(line: dict[str, Any]) -> None:
            out.write(json.dumps(line) + "\n")
            out.flush()

        yield tell


def _end_with_owner(owner: int) -> None:
    """End this process when its owner died in the middle of a job, which could go on for hours."""
    while os.getppid() == owner:
        time.sleep(0.5)
    os._exit(1)


def answer(requests: Iterable[str], tell: Tell) -> None:
    """Train each job that comes as a line of JSON, and tell its steps and its result, or why it was refused."""
    for line in requests:
        request = json.loads(line)
        content = Path(request["content"]).read_bytes() if request.get("content") else None
        try:
            tell({"result": train(request["job"], Path(request["folder"]), tell, content)})
        except MemoryError:
            tell({"error": TrainingLimit.__name__, "detail": "memory"})
        except MLOpsError as error:
            tell({"error": type(error).__name__, "detail": str(error)})


def main() -> None:
    """Answer standard input until it ends, within the bytes of memory that the command line says."""
    with contextlib.suppress(ImportError):  # where the system has no such limits
        import resource

        limit = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    threading.Thread(target=_end_with_owner, args=(os.getppid(),), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted notebook cell is its owner's business
    with _only_lines() as tell:
        answer(sys.stdin, tell)


if __name__ == "__main__":
    main()
