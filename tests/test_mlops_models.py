"""Models are trained from real data, hold no type that is not on the list, and are fed only what they take."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kit.components.mlops import InputRefused, TrainingRefused
from kit.components.mlops.inputs import InputSchema
from kit.components.mlops.models import METRICS, MODELS, better, build, load_dataset, parquet_of, scorers
from kit.components.mlops.training import MODEL_FILE, answer, train

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before scikit-learn is loaded: its threads would spin beside others
FAST: dict[str, dict[str, Any]] = {
    "random_forest": {"n_estimators": 5},
    "gradient_boosting": {"max_iter": 3},
    "mlp": {"max_iter": 5},
    "logistic_regression": {"C": 0.5},
}


def job(model_type: str = "logistic_regression", data: str = "wine", **fields: Any) -> dict[str, Any]:
    parameters = FAST.get(model_type, {})
    return {"job_id": "j", "model_type": model_type, "training_data": data, "parameters": parameters} | fields


@pytest.mark.parametrize(
    ("model_type", "data"),
    [(model_type, "wine" if "classification" in tasks else "diabetes") for model_type, tasks in MODELS.items()]
    + [(model_type, "diabetes") for model_type, tasks in MODELS.items() if len(tasks) == 2],
)
def test_every_model_can_be_trained_kept_and_loaded(model_type: str, data: str, tmp_path: Path) -> None:
    import skops.io

    from kit.components.mlops.models import TRUSTED

    steps: list[dict[str, Any]] = []
    told = train(job(model_type, data), tmp_path, steps.append)
    content = (tmp_path / MODEL_FILE).read_bytes()
    types = skops.io.get_untrusted_types(data=content)
    assert set(types) <= set(TRUSTED)
    model = skops.io.loads(content, trusted=types)
    features = load_dataset(data).features
    assert len(model.predict(features)) == len(features)
    assert [step["progress"] for step in steps] == sorted(step["progress"] for step in steps)
    assert steps[-1]["stage"] == "save"
    assert set(told["metrics"]) == {*steps[1]["metrics"], *(f"cv_{name}" for name in steps[1]["metrics"])}


def test_training_is_repeatable(tmp_path: Path) -> None:
    one, other = (train(job("random_forest", seed=7), tmp_path, lambda step: None) for _ in range(2))
    assert one["metrics"] == other["metrics"]
    assert one["metrics"]["accuracy"] > 0.85


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "oracle"}, "no model type 'oracle'"),
        ({"model_type": "linear_regression"}, "not for classification"),
        ({"parameters": {"depth": 3}}, "no parameter 'depth'"),
        ({"parameters": {"n_jobs": 9}}, "no parameter 'n_jobs'"),
        ({"parameters": {"C": -1}}, r"InvalidParameterError: The 'C' parameter .* must be a float"),
        ({"parameters": {"solver": "magic"}}, r"The 'solver' parameter .* must be a str among .*'lbfgs'[^.]*\.$"),
        ({"training_data": "/etc/passwd"}, "no training data are called"),
        ({"metrics": ["r2"]}, "no metric 'r2'"),
        ({"features": ["alcohol", "colour"]}, "no columns"),
        ({"test_size": 0.999}, "cannot be split"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_choice(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainingRefused, match=message):
        train(job(**{"model_type": "logistic_regression"} | fields), tmp_path, lambda step: None)


def test_data_may_be_sent_along() -> None:
    wine = load_dataset("wine")
    frame = wine.features.assign(target=wine.target)
    parquet = io.BytesIO()
    frame.to_parquet(parquet)
    for content in (frame.to_csv(index=False).encode(), parquet.getvalue()):
        data = load_dataset("mine", content=content)
        assert (data.task, len(data.features), data.target.nunique()) == ("classification", 178, 3)
    chosen = load_dataset("mine", content=frame.to_csv(index=False).encode(), target="alcohol", features=["ash", "hue"])
    assert (chosen.task, list(chosen.features.columns)) == ("regression", ["ash", "hue"])
    for wrong in (b"a,b\n1,2", b"target\n1", b"target,a\n1,", b"target,a\n1,x", b"PAR1nothing", b""):
        with pytest.raises(TrainingRefused):
            load_dataset("mine", content=wrong)


LABELS: list[tuple[list[Any], list[Any]]] = [
    (["01", "02", "1"], ["01", "02", "1"]),
    (["1", "2", "3"], ["1", "2", "3"]),
    (["NA", "None", "null"], ["NA", "None", "null"]),
    (["True", "False", ""], ["", "False", "True"]),
    (["1e5", "100000.0", "nan"], ["100000.0", "1e5", "nan"]),
    (["Ä", "ß", "x,y\n"], ["x,y\n", "Ä", "ß"]),
    ([True, False], [False, True]),
    ([3, 1, 2], [1, 2, 3]),
    ([-1, 1], [-1, 1]),
]


@pytest.mark.parametrize("dtype", [None, "object", "category"])
@pytest.mark.parametrize(("labels", "classes"), LABELS)
def test_labels_stay_what_they_are_through_training(
    labels: list[Any], classes: list[Any], dtype: Any, tmp_path: Path
) -> None:
    import pandas as pd

    target = pd.Series(labels * 20, dtype=dtype)
    frame = pd.DataFrame({"a": [float(labels.index(label)) for label in labels * 20], "b": range(len(labels) * 20)})
    (tmp_path / "data").write_bytes(parquet_of(frame.assign(target=target)))
    told: list[dict[str, Any]] = []
    request = {
        "job": job(data="mine", model_type="decision_tree"),
        "folder": str(tmp_path),
        "content": str(tmp_path / "data"),
    }
    answer([json.dumps(request)], lambda line: told.append(json.loads(json.dumps(line))))
    assert told[-1]["result"]["classes"] == classes
    assert [type(value) for value in told[-1]["result"]["classes"]] == [type(value) for value in classes]


@pytest.mark.parametrize(
    ("written", "kind", "classes"),
    [
        ("01 02 10", "classification", {"01", "02", "10"}), ("1 2 10", "classification", {1, 2, 10}),
        ("True False True", "classification", {True, False}), ("true no yes", "classification", {"true", "no", "yes"}),
        ("NA None x", "classification", {"NA", "None", "x"}), ("1.5 2 1e3", "regression", {1.5, 2.0, 1000.0}),
        ("1 2 x", "classification", {"1", "2", "x"}), ("+1 2 3", "classification", {"+1", "2", "3"}),
        ("12345678901234567890 2 3", "classification", {"12345678901234567890", "2", "3"}),
    ],
)  # fmt: skip
def test_a_csv_label_is_what_all_of_them_are_written_as(written: str, kind: str, classes: set[Any]) -> None:
    rows = "\n".join(f"{n},{label}" for n, label in enumerate(written.split()))
    data = load_dataset("mine", content=f"a,target\n{rows}".encode())
    found = set(data.target.tolist())
    assert (data.task, found, {type(value) for value in found}) == (kind, classes, {type(value) for value in classes})


@pytest.mark.parametrize(
    "target", [["a", None, "b"], [1.0, float("nan"), 2.0], [True, None, False], [b"a", b"b", b"c"]]
)
def test_what_is_missing_or_no_label_is_refused(target: list[Any]) -> None:
    import pandas as pd

    with pytest.raises(TrainingRefused, match=r"missing|cannot be a label"):
        load_dataset("mine", content=parquet_of(pd.DataFrame({"a": [1.0, 2.0, 3.0], "target": target})))


def test_a_column_of_several_types_is_refused_before_it_is_sent() -> None:
    import pandas as pd

    with pytest.raises(TrainingRefused, match="column 'target' is not sent") as refused:
        parquet_of(pd.DataFrame({"a": [1, 2, 3], "target": ["secret", 1, None]}))
    assert "secret" not in str(refused.value)
    with pytest.raises(TrainingRefused, match="a unique name"):
        parquet_of(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_metrics_know_which_way_is_better() -> None:
    assert better("accuracy", 0.9, 0.8)
    assert better("rmse", 0.8, 0.9)
    data = load_dataset("diabetes")
    model = build("ridge", data.task, {}, 0).fit(data.features, data.target)
    values = {name: measure(model, data.features, data.target) for name, measure in scorers(data.task, None).items()}
    assert values["rmse"] > values["mae"] > 0
    assert set(values) <= set(METRICS)


def test_the_process_answers_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"nothing")
    requests = [
        {"job": job(), "folder": str(tmp_path)},
        {"job": job(data="mine"), "folder": str(tmp_path), "content": str(tmp_path / "data")},
    ]
    told: list[dict[str, Any]] = []
    answer((json.dumps(request) for request in requests), told.append)
    assert [next(iter(line)) for line in told if "stage" not in line] == ["result", "error"]
    assert told[-1]["error"] == "TrainingRefused"


COLUMNS = [
    {"name": "a", "kind": "number", "low": 0.0, "high": 1.0},
    {"name": "n", "kind": "integer", "low": 0.0, "high": 9.0},
    {"name": "f", "kind": "boolean", "low": 0.0, "high": 1.0},
]
ROW = {"a": 1.5, "n": 2, "f": True}


def test_rows_become_a_frame_in_the_models_order() -> None:
    schema = InputSchema("m", COLUMNS)
    frame = schema.frame([{"f": True, "n": 2, "a": 1}, ROW])
    assert list(frame.columns) == ["a", "n", "f"]
    assert frame.to_numpy().tolist() == [[1.0, 2.0, 1.0], [1.5, 2.0, 1.0]]
    assert schema.frame([[1.5, 2, True]]).equals(schema.frame([ROW]))
    assert schema.frame([[2, True, 1.5]], ["n", "f", "a"]).equals(schema.frame([ROW]))


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        (ROW | {"a": "1.5"}, "a", "column 'a' is not a finite number"),
        (ROW | {"a": float("inf")}, "a", "column 'a' is not a finite number"),
        (ROW | {"a": True}, "a", "column 'a' is not a finite number"),
        (ROW | {"a": None}, "a", "column 'a' is missing"),
        (ROW | {"n": 1.5}, "n", "column 'n' is not a whole number"),
        (ROW | {"f": 1}, "f", "column 'f' is not true or false"),
        ({"a": 1.0, "n": 1}, "f", "column 'f' is missing"),
        (ROW | {"z": 1}, "z", "column 'z' is not one of the model's"),
        ([1.0, 2], "(all)", "the row has 2"),
    ],
)
def test_input_that_does_not_fit_is_refused_by_column(row: Any, column: str, message: str) -> None:
    schema = InputSchema("m", COLUMNS)
    for rows in ([row], [ROW, row]):
        with pytest.raises(InputRefused, match="input of model 'm'") as refused:
            schema.frame(rows)
        assert refused.value.column == column
        assert message in str(refused.value)
    with pytest.raises(InputRefused, match="rows at once"):
        schema.frame([ROW] * 100_001)
