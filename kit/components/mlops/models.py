"""What can be trained, on what, and how it is measured: scikit-learn behind names that a message may carry.

Imports scikit-learn when first used. Nothing here knows the bus: the training process runs it.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit.components.mlops.errors import TrainingRefused

if TYPE_CHECKING:
    import pandas as pd

CLASSIFICATION, REGRESSION = "classification", "regression"
DATASETS = {
    "breast_cancer": CLASSIFICATION, "diabetes": REGRESSION, "digits": CLASSIFICATION, "iris": CLASSIFICATION,
    "wine": CLASSIFICATION,
}  # fmt: skip
_WRITTEN = (
    (r"True|False", bool), (r"-?(?:0|[1-9]\d{0,17})", int),
    (r"-?(?:0|[1-9]\d{0,14})(?:\.\d+)?(?:[eE][+-]?\d+)?", float),
)  # fmt: skip
FEW = 20  # distinct integers in a target up to which it is a class, not a quantity

# model_type -> task -> (module, class, parameters that the kit sets unless the job does)
MODELS: dict[str, dict[str, tuple[str, str, dict[str, Any]]]] = {
    "logistic_regression": {CLASSIFICATION: ("sklearn.linear_model", "LogisticRegression", {"max_iter": 1000})},
    "linear_regression": {REGRESSION: ("sklearn.linear_model", "LinearRegression", {})},
    "ridge": {
        CLASSIFICATION: ("sklearn.linear_model", "RidgeClassifier", {}),
        REGRESSION: ("sklearn.linear_model", "Ridge", {}),
    },
    "decision_tree": {
        CLASSIFICATION: ("sklearn.tree", "DecisionTreeClassifier", {}),
        REGRESSION: ("sklearn.tree", "DecisionTreeRegressor", {}),
    },
    "random_forest": {
        CLASSIFICATION: ("sklearn.ensemble", "RandomForestClassifier", {}),
        REGRESSION: ("sklearn.ensemble", "RandomForestRegressor", {}),
    },
    "gradient_boosting": {
        CLASSIFICATION: ("sklearn.ensemble", "HistGradientBoostingClassifier", {}),
        REGRESSION: ("sklearn.ensemble", "HistGradientBoostingRegressor", {}),
    },
    "knn": {
        CLASSIFICATION: ("sklearn.neighbors", "KNeighborsClassifier", {}),
        REGRESSION: ("sklearn.neighbors", "KNeighborsRegressor", {}),
    },
    "svm": {CLASSIFICATION: ("sklearn.svm", "SVC", {}), REGRESSION: ("sklearn.svm", "SVR", {})},
    "mlp": {
        CLASSIFICATION: ("sklearn.neural_network", "MLPClassifier", {"max_iter": 500}),
        REGRESSION: ("sklearn.neural_network", "MLPRegressor", {"max_iter": 500}),
    },
}
KEPT = ("n_jobs", "random_state", "verbose", "warm_start")  # parameters that are the trainer's, not the job's

# What skops itself does not trust, and the models above need: scikit-learn's own compiled and private parts.
# Source: skops.io.get_untrusted_types of each model above, scikit-learn 1.9, skops 0.16.
TRUSTED = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.metrics._dist_metrics.ManhattanDistance64",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
)

# metric -> (scorer of scikit-learn, sign that undoes its "greater is better", whether greater is better)
METRICS: dict[str, tuple[str, float, bool]] = {
    "accuracy": ("accuracy", 1.0, True),
    "balanced_accuracy": ("balanced_accuracy", 1.0, True),
    "f1_macro": ("f1_macro", 1.0, True),
    "precision_macro": ("precision_macro", 1.0, True),
    "recall_macro": ("recall_macro", 1.0, True),
    "log_loss": ("neg_log_loss", -1.0, False),
    "roc_auc": ("roc_auc_ovr", 1.0, True),
    "r2": ("r2", 1.0, True),
    "mae": ("neg_mean_absolute_error", -1.0, False),
    "rmse": ("neg_root_mean_squared_error", -1.0, False),
}
MEASURED = {CLASSIFICATION: ("accuracy", "f1_macro"), REGRESSION: ("r2", "mae", "rmse")}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Features and target, of a task that follows from the target."""

    name: str
    task: str
    features: pd.DataFrame
    target: pd.Series


def load_dataset(
    name: str, *, content: bytes | None = None, target: str | None = None, features: Sequence[str] | None = None
) -> Dataset:
    """Load a data set by the name under which scikit-learn ships it, or from the CSV or Parquet sent along.

    Values stay what they are: text, numbers, booleans, missing. A CSV does not say which: there a label is a number or
    a boolean if all of them are written as one, and ``01`` is text; only what is empty is missing.

    Args:
        name: breast_cancer, diabetes, digits, iris or wine, also as ``sklearn:wine``; with ``content``, any name.
        content: a file with a header and a column ``target``.
        features: the columns to learn from; None: all others.

    Raises:
        TrainingRefused: no such data, no such column, or nothing to learn from.
    """
    import pandas as pd

    known = name.removeprefix("sklearn:")
    if content is not None:
        target = target or "target"
        frame = _read(name, content, target)
        if target not in frame:
            raise TrainingRefused(f"{name!r} has no column {target!r} to predict")
        labels = frame.pop(target)
        task = CLASSIFICATION if _is_class(labels) else REGRESSION
    elif known in DATASETS:
        import sklearn.datasets

        frame, labels = getattr(sklearn.datasets, f"load_{known}")(return_X_y=True, as_frame=True)
        labels, task = _named(known, labels), DATASETS[known]
    else:
        raise TrainingRefused(
            f"no training data are called {name!r}: choose from {', '.join(DATASETS)}, or send a file"
        )
    if features:
        if missing := [column for column in features if column not in frame]:
            raise TrainingRefused(f"{name!r} has no columns {missing}")
        frame = frame[list(features)]
    if frame.empty or frame.isna().any(axis=None) or labels.isna().any():
        raise TrainingRefused(f"{name!r} has no rows or no columns, or values are missing in it")
    labels = pd.Series(labels.tolist(), index=labels.index, name=labels.name)  # Python's own types, whatever it was
    if odd := {type(value).__name__ for value in labels.unique().tolist()} - {"str", "int", "float", "bool"}:
        raise TrainingRefused(f"{target or 'target'!r} of {name!r} cannot be a label: {', '.join(sorted(odd))}")
    if strings := [column for column in frame if frame[column].dtype.kind not in "iufb"]:
        raise TrainingRefused(f"columns {strings} of {name!r} are not numbers")
    return Dataset(name=known, task=task, features=frame, target=labels)


def parquet_of(frame: pd.DataFrame) -> bytes:
    """Return a DataFrame as Parquet, in which each value keeps its type.

    Raises:
        TrainingRefused: a column holds values of several types.
    """
    import pyarrow as pa

    try:
        content: bytes = frame.rename(columns=str).to_parquet(None, index=False, engine="pyarrow")
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
        found = re.search(r"column (.+) with type", str(error))
        which = f"column {found[1]!r} is" if found else "the columns are"
        raise TrainingRefused(f"{which} not sent: each column needs a unique name and values of one type") from None
    return content


def _read(name: str, content: bytes, target: str) -> pd.DataFrame:
    import pandas as pd

    try:
        if content[:4] == b"PAR1":
            return pd.read_parquet(io.BytesIO(content))
        frame = pd.read_csv(io.BytesIO(content), dtype={target: str}, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as error:
        raise TrainingRefused(f"{name!r} is neither CSV nor Parquet: {type(error).__name__}") from None
    if target in frame:
        frame[target] = _typed(frame[target])
    return frame


def _typed(written: pd.Series) -> pd.Series:
    """Return a CSV's labels as what all of them are written as."""
    given = written.dropna()
    for pattern, kind in _WRITTEN:
        if given.str.fullmatch(pattern).all():
            return written.map({"True": True, "False": False}) if kind is bool else written.dropna().astype(kind)
    return written


def _is_class(labels: pd.Series) -> bool:
    return labels.dtype.kind not in "iuf" or (labels.dtype.kind in "iu" and labels.nunique() <= FEW)


def _named(known: str, labels: pd.Series) -> pd.Series:
    """Give the classes of a data set their names, where it has names for them."""
    import sklearn.datasets

    if DATASETS[known] == REGRESSION or known == "digits":
        return labels
    names = [str(name) for name in getattr(sklearn.datasets, f"load_{known}")().target_names]
    return labels.map(dict(enumerate(names)))


def build(model_type: str, task: str, parameters: Mapping[str, Any], seed: int) -> Any:
    """Return an unfitted pipeline: standard scaling, then the model with its parameters.

    Raises:
        TrainingRefused: no such model for this task, or a parameter that it does not have or that is the trainer's.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if model_type not in MODELS:
        raise TrainingRefused(f"no model type {model_type!r}: choose from {', '.join(MODELS)}")
    if task not in MODELS[model_type]:
        raise TrainingRefused(f"{model_type} is not for {task}: choose from {', '.join(_for_task(task))}")
    module, name, preset = MODELS[model_type][task]
    kind = getattr(importlib.import_module(module), name)
    known = kind().get_params()
    if unknown := sorted(parameter for parameter in parameters if parameter not in known or parameter in KEPT):
        takes = ", ".join(parameter for parameter in known if parameter not in KEPT)
        raise TrainingRefused(f"{model_type} has no parameter {unknown[0]!r} to set: it takes {takes}")
    settings = preset | dict(parameters)
    if "random_state" in known:
        settings["random_state"] = seed
    return make_pipeline(StandardScaler(), kind(**settings))


def _for_task(task: str) -> list[str]:
    return [model_type for model_type, tasks in MODELS.items() if task in tasks]


def scorers(task: str, wanted: Sequence[str] | None) -> dict[str, Callable[[Any, Any, Any], float]]:
    """Return a function ``(model, features, target) -> value`` for each metric.

    Raises:
        TrainingRefused: a metric nobody knows, or one for another task.
    """
    from sklearn.metrics import get_scorer

    chosen = tuple(wanted or MEASURED[task])
    regression = {"r2", "mae", "rmse"}
    for name in chosen:
        if name not in METRICS or (name in regression) != (task == REGRESSION):
            known = [metric for metric in METRICS if (metric in regression) == (task == REGRESSION)]
            raise TrainingRefused(f"no metric {name!r} for {task}: choose from {', '.join(known)}")

    def measure(name: str) -> Callable[[Any, Any, Any], float]:
        scorer, sign, _ = METRICS[name]
        return lambda model, features, target: sign * float(get_scorer(scorer)(model, features, target))

    return {name: measure(name) for name in chosen}


def better(metric: str, one: float, other: float) -> bool:
    """Return whether ``one`` is better than ``other`` by this metric."""
    return one > other if METRICS[metric][2] else one < other
