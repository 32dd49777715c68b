"""Rows to predict for, checked by pandera against the columns that the model learned from.

What is checked is the long form, a row for each value: pandera's cost grows with the columns of its schema (20 ms for
64 of them), and long there are three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from kit.components.mlops.errors import InputRefused

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 100_000

Fault: TypeAlias = tuple[str, str, int | None]  # column, what it broke, row

_UNKNOWN = "is not one of the model's"
_MISSING = "is missing"
_BROKEN = {"number": "is not a finite number", "integer": "is not a whole number", "boolean": "is not true or false"}


class InputSchema:
    """What a model takes: every column, no other, each a finite number of its kind.

    Args:
        columns: as ``training.input_schema`` wrote them.
    """

    def __init__(self, model_name: str, columns: Sequence[Mapping[str, Any]]) -> None:
        self.model_name = model_name
        self.kinds = {str(column["name"]): str(column["kind"]) for column in columns}
        self._schema = self._checks()

    @property
    def names(self) -> list[str]:
        """The columns, in the model's order."""
        return list(self.kinds)

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
        long = self._long(rows)
        try:
            self._schema.validate(long, lazy=True)
        except pandera.errors.SchemaErrors as errors:
            raise InputRefused(self.model_name, self._faults(long, errors.failure_cases)) from None
        return pd.DataFrame(rows, columns=self.names).astype(float)

    def _checks(self) -> Any:
        import pandera.pandas as pandera

        fits = pandera.Check(self._fits, name="kind", ignore_na=False)
        return pandera.DataFrameSchema(
            {
                "row": pandera.Column(int),
                "column": pandera.Column(object, pandera.Check.isin(self.names, error=_UNKNOWN)),
                "value": pandera.Column(object, nullable=False),
            },
            checks=fits,
            strict=True,
        )

    def _fits(self, long: pd.DataFrame) -> pd.Series:
        """Return, for each value, whether it is of its column's kind; what is missing or unknown is told otherwise."""
        import pandas as pd

        fits = [
            value is None or value != value or name not in self.kinds or _IS[self.kinds[name]](value)
            for name, value in zip(long["column"], long["value"], strict=True)
        ]
        return pd.Series(fits, index=long.index)

    def _long(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        import pandas as pd

        cells = [
            (number, name, row.get(name))
            for number, row in enumerate(rows)
            for name in (*self.kinds, *(name for name in row if name not in self.kinds))
        ]
        return pd.DataFrame(
            {
                "row": [number for number, _, _ in cells],
                "column": pd.Series([name for _, name, _ in cells], dtype=object),
                "value": pd.Series([value for _, _, value in cells], dtype=object),
            }
        )

    def _named(self, row: Any, number: int, columns: Sequence[str]) -> Mapping[str, Any]:
        if isinstance(row, Mapping):
            return row
        if len(row) != len(columns):
            raise InputRefused(self.model_name, [("(all)", f"are {len(columns)}, the row has {len(row)}", number)])
        return dict(zip(columns, row, strict=True))

    def _faults(self, long: pd.DataFrame, cases: pd.DataFrame) -> list[Fault]:
        """Return what each column broke, with the first row that did."""
        found: dict[tuple[str, str], int] = {}
        for index, check in zip(cases["index"], cases["check"], strict=True):
            if index is None or index != index:
                continue  # a check that failed as a whole
            name, row = str(long.at[int(index), "column"]), int(long.at[int(index), "row"])
            broke = (
                _UNKNOWN
                if name not in self.kinds
                else _MISSING
                if check == "not_nullable"
                else _BROKEN[self.kinds[name]]
            )
            found[name, broke] = min(row, found.get((name, broke), row))
        if not found:
            return [("(all)", "do not fit", None)]
        return sorted(((name, broke, row) for (name, broke), row in found.items()), key=lambda fault: fault[2] or 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_integer(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer()


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


_IS = {"number": _is_number, "integer": _is_integer, "boolean": _is_boolean}
