"""What training, the registry and prediction refuse.

ComponentError
└── MLOpsError
    ├── TrainingRefused      a job that cannot be trained as asked: data, model type, parameter or metric
    ├── TrainingFailed       a training process that failed
    │   └── TrainingLimit    … that took more time or memory than it may
    ├── UnknownModel         no such model, version or champion in the registry
    ├── ArtefactRefused      a model file that is not what was registered, or holds types that nobody trusts
    └── InputRefused         rows to predict for that break the model's input schema; names the column

Their messages tell names, which are no content: what a job calls its data, model and columns is how its sender finds
the fault. Values, labels and what stands in a file are content, and in no message.
"""

from __future__ import annotations

from collections.abc import Sequence

from kit.errors import ComponentError


class MLOpsError(ComponentError):
    """Training, registering or predicting failed."""

    retryable = False
    content_free = True  # messages are made of names, types and sizes only


class TrainingRefused(MLOpsError):
    """A training job cannot be done as asked; the same job would be refused again."""


class TrainingFailed(MLOpsError):
    """A training process failed; the same job may succeed later."""

    retryable = True


class TrainingLimit(TrainingFailed):
    """Training took more time or memory than it may; the same job would do so again."""

    retryable = False


class UnknownModel(MLOpsError):
    """The registry has no such model, version or champion."""

    def __init__(self, model_name: str, *, version: str | None = None, alias: str | None = None) -> None:
        self.model_name, self.version, self.alias = model_name, version, alias
        which = f"version {version}" if version else alias or "version"
        super().__init__(f"model {model_name!r} has no {which}")


class ArtefactRefused(MLOpsError):
    """A model file is not what was registered, or holds types that nobody trusts."""

    def __init__(self, model_name: str, version: str, reason: str, *, types: Sequence[str] = ()) -> None:
        self.model_name, self.version, self.types = model_name, version, tuple(types)
        super().__init__(f"model {model_name!r} version {version} is not loaded: {reason}")


class InputRefused(MLOpsError):
    """Rows to predict for break the model's input schema.

    Attributes:
        column: the first column that broke its check.
        columns: every column that did.
        check: what the first one broke, e.g. ``missing``.
    """

    def __init__(self, model_name: str, faults: Sequence[tuple[str, str, int | None]]) -> None:
        self.model_name = model_name
        self.column, self.check, self.row = faults[0]
        self.columns = tuple(dict.fromkeys(column for column, _, _ in faults))
        told = [
            f"column {column!r} {check}{f' (row {row})' if row is not None else ''}" for column, check, row in faults
        ]
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        super().__init__(f"input of model {model_name!r} is refused: {'; '.join(told[:5])}{more}")
