"""Conditions on documents and their metadata, built of typed parts: nothing that a user types becomes query language.

    field("section") == "general"
    (field("year") >= 2020) & field("tags").contains("asyncio") & ~field("draft").is_true()
    document("general/what-is-python") | field("language").any_of("en", "de")

A condition travels as plain data (``as_data``), is read back and checked at the worker (``from_data``), and becomes SQL
only there (``to_sql``): fixed templates around literals that are quoted in one place, as LanceDB takes no parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from kit.components.rag.errors import FilterRefused

Scalar: TypeAlias = str | int | float | bool

COLUMNS = ("document_id", "chunk_id", "title", "source", "heading")  # columns of the index: text, always there
COMPARISONS = {"eq": "=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
MAX_NODES = 200  # of one filter; a longer one is a mistake or an attack
FACETS, LABELS = "facets", "labels"
_PREFIXES = {bool: "b", int: "n", float: "n", str: "s"}
_READERS = {"b": "json_get_bool", "n": "json_get_float", "s": "json_get_string"}


@dataclass(frozen=True)
class Condition:
    """Something that a passage meets or not; combine with ``&``, ``|`` and ``~``."""

    def __and__(self, other: Condition) -> Condition:
        return Compound("and", (self, other))

    def __or__(self, other: Condition) -> Condition:
        return Compound("or", (self, other))

    def __invert__(self) -> Condition:
        return Compound("not", (self,))

    def __bool__(self) -> bool:
        raise FilterRefused("combine conditions with & | ~, not with and, or, not, nor in an if")


@dataclass(frozen=True)
class Comparison(Condition):
    """A field held against a value: one of ``COMPARISONS``, ``in`` (a tuple of values), or ``contains`` (a list)."""

    operator: str
    name: str
    value: Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class Compound(Condition):
    """Conditions that must both be met (``and``), of which one must be (``or``), or that must not be met (``not``).

    A document without the field that a condition looks at does not meet it, so its ``not`` lets it pass.
    """

    operator: str
    parts: tuple[Condition, ...]


class Field:
    """A named field of the metadata, or a column of the index; compare it to make a condition."""

    __hash__ = None  # type: ignore[assignment]  # == makes a condition

    def __init__(self, name: str) -> None:
        self._name = _checked_name(name)

    def __eq__(self, value: Scalar) -> Condition:  # type: ignore[override]
        return Comparison("eq", self._name, _checked(self._name, value))

    def __ne__(self, value: Scalar) -> Condition:  # type: ignore[override]
        return ~Comparison("eq", self._name, _checked(self._name, value))

    def __lt__(self, value: Scalar) -> Condition:
        return Comparison("lt", self._name, _ordered(self._name, value))

    def __le__(self, value: Scalar) -> Condition:
        return Comparison("le", self._name, _ordered(self._name, value))

    def __gt__(self, value: Scalar) -> Condition:
        return Comparison("gt", self._name, _ordered(self._name, value))

    def __ge__(self, value: Scalar) -> Condition:
        return Comparison("ge", self._name, _ordered(self._name, value))

    def any_of(self, *values: Scalar) -> Condition:
        """Return the condition that the field has one of these values."""
        return Comparison("in", self._name, _alike(self._name, values))

    def contains(self, value: Scalar) -> Condition:
        """Return the condition that the field is a list with this value in it."""
        return Comparison("contains", self._name, _checked(self._name, value))

    def is_true(self) -> Condition:
        """Return the condition that the field is true."""
        return Comparison("eq", self._name, True)


def field(name: str) -> Field:
    """Return a field to build conditions on: a key of the metadata, or one of ``COLUMNS``."""
    return Field(name)


def document(*document_ids: str) -> Condition:
    """Return the condition that a passage is of one of these documents."""
    return Comparison("in", "document_id", _alike("document_id", document_ids))


def as_data(condition: Condition) -> dict[str, Any]:
    """Return a condition as plain data, for a message."""
    if isinstance(condition, Compound):
        return {"op": condition.operator, "of": [as_data(part) for part in condition.parts]}
    assert isinstance(condition, Comparison)
    value = list(condition.value) if isinstance(condition.value, tuple) else condition.value
    return {"op": condition.operator, "field": condition.name, "value": value}


def from_data(data: Mapping[str, Any] | Sequence[Any] | None) -> Condition | None:
    """Read a condition back from plain data; a list of conditions means all of them; nothing means no filter.

    Raises:
        FilterRefused: it is not what ``as_data`` makes.
    """
    if data is None or len(data) == 0:
        return None
    budget = [MAX_NODES]
    if isinstance(data, Mapping):
        return _parsed(data, budget)
    condition, *others = (_parsed(item, budget) for item in data)
    for other in others:
        condition = condition & other
    return condition


def to_sql(condition: Condition) -> str:
    """Return a condition in LanceDB's filter language."""
    if isinstance(condition, Compound):
        parts = [to_sql(part) for part in condition.parts]
        if condition.operator == "not":
            return f"(NOT coalesce({parts[0]}, false))"
        return f"({f' {condition.operator.upper()} '.join(parts)})"
    assert isinstance(condition, Comparison)
    name, value = condition.name, condition.value
    if isinstance(value, tuple):
        return f"({_column(name, type(value[0]))} IN ({', '.join(literal(item) for item in value)}))"
    if condition.operator == "contains":
        return f"array_has({LABELS}, {literal(label(name, value))})"
    return f"({_column(name, type(value))} {COMPARISONS[condition.operator]} {literal(value)})"


def _parsed(data: Any, budget: list[int], depth: int = 0) -> Condition:
    budget[0] -= 1
    if budget[0] < 0 or depth > 50:
        raise FilterRefused(f"more than {MAX_NODES} conditions, or more than 50 deep")
    if not isinstance(data, Mapping):
        raise FilterRefused(f"a condition is an object, not {type(data).__name__}")
    operator = data.get("op")
    if operator in ("and", "or", "not"):
        parts, needed = data.get("of"), 1 if operator == "not" else 2
        if set(data) != {"op", "of"} or not isinstance(parts, list) or len(parts) != needed:
            raise FilterRefused(f"{operator!r} needs {needed} condition(s) in 'of'")
        return Compound(operator, tuple(_parsed(part, budget, depth + 1) for part in parts))
    if set(data) != {"op", "field", "value"} or not isinstance(data["field"], str):
        raise FilterRefused("a comparison has 'op', 'field' and 'value'")
    return _comparison(str(operator), _checked_name(data["field"]), data["value"])


def _comparison(operator: str, name: str, value: Any) -> Condition:
    if operator == "in":
        if not isinstance(value, list):
            raise FilterRefused("'in' needs a list", field=name)
        return Comparison("in", name, _alike(name, value))
    if operator not in COMPARISONS and operator != "contains":
        raise FilterRefused(f"no operator {operator!r}", field=name)
    ordered = operator in ("lt", "le", "gt", "ge")
    return Comparison(operator, name, _ordered(name, value) if ordered else _checked(name, value))


def literal(value: Scalar) -> str:
    """Return a value as an SQL literal: the only place where one is written."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if "\x00" in value:
            raise FilterRefused("a text must not hold NUL")
        return "'" + value.replace("'", "''") + "'"
    if not math.isfinite(value):
        raise FilterRefused(f"{value} is no number to compare with")
    return repr(float(value)) if isinstance(value, float) else str(int(value))


def of_documents(document_ids: Iterable[str]) -> str:
    """Return the SQL of the condition that a passage is of one of these documents, however many."""
    return f"(document_id IN ({', '.join(literal(name) for name in document_ids)}))"


def facets_of(metadata: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the scalars of a metadata object under keys that tell their type, so that a filter never meets another."""
    return {
        f"{_PREFIXES[type(value)]}:{key}": value
        for key, value in metadata.items()
        if type(value) in _PREFIXES and not (isinstance(value, float) and not math.isfinite(value))
    }


def labels_of(metadata: Mapping[str, Any]) -> list[str]:
    """Return a label for each value in the lists of a metadata object."""
    return sorted(
        {
            label(key, value)
            for key, values in metadata.items()
            if isinstance(values, list)
            for value in values
            if type(value) in _PREFIXES
        }
    )


def label(key: str, value: Scalar) -> str:
    """Return what stands for one value in a list of the metadata."""
    shown = str(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
    return f"{_PREFIXES[type(value)]}:{key}={shown}"


def _column(name: str, kind: type) -> str:
    if name in COLUMNS:
        if kind is not str:
            raise FilterRefused("it is text: compare it with text", field=name)
        return name
    prefix = _PREFIXES[kind]
    return f"{_READERS[prefix]}({FACETS}, {literal(f'{prefix}:{name}')})"


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable():
        raise FilterRefused("a field's name is 1 to 200 printable characters")
    return name


def _checked(name: str, value: Any) -> Scalar:
    if type(value) not in _PREFIXES:
        raise FilterRefused(f"{type(value).__name__} is no text, number or truth value", field=name)
    literal(value)
    if name in COLUMNS and not isinstance(value, str):
        raise FilterRefused("it is text: compare it with text", field=name)
    return value  # type: ignore[no-any-return]


def _ordered(name: str, value: Any) -> Scalar:
    if isinstance(value, bool):
        raise FilterRefused("truth values have no order", field=name)
    return _checked(name, value)


def _alike(name: str, values: Sequence[Any]) -> tuple[Scalar, ...]:
    checked = tuple(_checked(name, value) for value in values)
    if not checked or len(checked) > 1000 or len({_PREFIXES[type(value)] for value in checked}) != 1:
        raise FilterRefused("one to 1000 values of one type are needed", field=name)
    return checked
