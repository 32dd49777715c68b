"""Rows to predict for, checked by pandera against the columns that the model learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from kit.components.mlops.errors import InputRefused

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 100_000

Fault: TypeAlias = tuple[str, str, int | None]  # column, what it broke, row


class InputSchema:
    """What a model takes: every column, no other, each a finite number of its kind.

    Args:
        columns: as ``training.input_schema`` wrote them.
    """

    def __init__(self, model_name: str, columns: Sequence[Mapping[str, Any]]) -> None:
        import pandera.pandas as pandera

        self.model_name = model_name
        self.names = [str(column["name"]) for column in columns]
        self._schema = pandera.DataFrameSchema(
            {str(column["name"]): _column(str(column["kind"])) for column in columns}, strict=True
        )

    def frame(self, instances: Sequence[Any], columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the rows as a DataFrame in the model's order of columns.

        Args:
            instances: mappings by column, or sequences in the order of ``columns`` (default: the model's own).

        Raises:
            InputRefused: a column is missing, unknown, or holds something else than finite numbers of its kind.
        """
        import pandas as pd
        import pandera.errors

        if len(instances) > MOST_ROWS:
            raise InputRefused(self.model_name, [("(all)", f"more than {MOST_ROWS:,} rows at once", None)])
        rows = [self._named(row, number, columns or self.names) for number, row in enumerate(instances)]
        given = dict.fromkeys(name for row in rows for name in row)
        frame = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in given})
        faults: list[Fault] = [(name, "is missing", None) for name in self.names if name not in frame]
        try:
            self._schema.validate(frame, lazy=True)
        except pandera.errors.SchemaErrors as errors:
            faults += _faults(errors.failure_cases, set(self.names))
        if faults:
            raise InputRefused(self.model_name, faults)
        return frame[self.names].astype(float)

    def _named(self, row: Any, number: int, columns: Sequence[str]) -> Mapping[str, Any]:
        if isinstance(row, Mapping):
            return row
        if len(row) != len(columns):
            raise InputRefused(self.model_name, [("(all)", f"are {len(columns)}, the row has {len(row)}", number)])
        return dict(zip(columns, row, strict=True))


def _column(kind: str) -> Any:
    import pandera.pandas as pandera

    check = pandera.Check(_IS[kind], element_wise=True, name=kind, error=_BROKEN[kind])
    return pandera.Column(object, check, nullable=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_integer(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer()


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


_BROKEN = {"number": "is not a finite number", "integer": "is not a whole number", "boolean": "is not true or false"}
_IS = {"number": _is_number, "integer": _is_integer, "boolean": _is_boolean}


def _faults(cases: pd.DataFrame, known: set[str]) -> list[Fault]:
    """Return (column, what it broke, row) of each case, but for missing columns."""
    faults: list[Fault] = []
    for case in cases.itertuples():
        if case.check == "column_in_dataframe":
            continue
        if case.check == "column_in_schema":
            faults.append((str(case.failure_case), "is not one of the model's", None))
        elif str(case.column) in known:
            row = None if case.index is None or case.index != case.index else int(case.index)
            faults.append((str(case.column), "is missing" if case.check == "not_nullable" else str(case.check), row))
    return sorted(dict.fromkeys(faults), key=lambda fault: (fault[2] is not None, fault[2] or 0))
