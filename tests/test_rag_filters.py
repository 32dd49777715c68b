"""Conditions are built of typed parts, travel as data, and cannot smuggle query language."""

from __future__ import annotations

from typing import Any

import pytest

from kit.components.rag import FilterRefused, document, field
from kit.components.rag.filters import as_data, facets_of, from_data, labels_of, literal, to_sql


def test_a_condition_survives_its_journey() -> None:
    condition = (field("section") == "general") & (field("year") >= 2020) | ~field("tags").contains("x")
    condition = (
        condition & document("a", "b") & field("draft").is_true() & (field("n") != 3) & field("n").any_of(1, 2.5)
    )
    assert from_data(as_data(condition)) == condition


def test_each_comparison_becomes_its_sql() -> None:
    assert to_sql(field("title") == "A") == "(title = 'A')"
    assert to_sql(field("s") < "m") == "(json_get_string(facets, 's:s') < 'm')"
    assert to_sql(field("n") <= 3) == "(json_get_float(facets, 'n:n') <= 3)"
    assert to_sql(field("n") > 1.5) == "(json_get_float(facets, 'n:n') > 1.5)"
    assert to_sql(field("ok").is_true()) == "(json_get_bool(facets, 'b:ok') = true)"
    assert to_sql(field("t").contains(2)) == "array_has(labels, 'n:t=2.0')"
    assert to_sql(~(field("a") == False)) == "(NOT coalesce((json_get_bool(facets, 'b:a') = false), false))"  # noqa: E712
    assert to_sql(document("a") | document("b")) == "((document_id IN ('a')) OR (document_id IN ('b')))"


@pytest.mark.parametrize("evil", ["'; DROP TABLE x --", "' OR '1'='1", "\\' OR 1=1", "a''b", "%_", "\n'"])
def test_quotes_stay_inside_their_literal(evil: str) -> None:
    sql = to_sql(field("title") == evil)
    assert sql == "(title = '" + evil.replace("'", "''") + "')"
    assert to_sql(field(evil.strip()) == "x").count("facets") == 1


def test_a_list_of_conditions_means_all_of_them() -> None:
    one, two = field("a") == 1, field("b") == 2
    assert from_data([as_data(one), as_data(two)]) == (one & two)
    assert from_data(None) is None
    assert from_data([]) is None
    assert from_data({}) is None


@pytest.mark.parametrize(
    "data",
    [
        {"op": "eq", "field": "a"},
        {"op": "raw", "field": "a", "value": "1=1"},
        {"op": "eq", "field": "a", "value": None},
        {"op": "eq", "field": "a", "value": {"x": 1}},
        {"op": "eq", "field": "a", "value": "x\x00"},
        {"op": "eq", "field": 3, "value": 1},
        {"op": "eq", "field": "", "value": 1},
        {"op": "eq", "field": "a\n", "value": 1},
        {"op": "eq", "field": "title", "value": 1},
        {"op": "lt", "field": "a", "value": True},
        {"op": "lt", "field": "a", "value": float("inf")},
        {"op": "in", "field": "a", "value": []},
        {"op": "in", "field": "a", "value": "abc"},
        {"op": "in", "field": "a", "value": [1, "x"]},
        {"op": "and", "of": [{"op": "eq", "field": "a", "value": 1}]},
        {"op": "not", "of": [], "extra": 1},
        {"op": "eq", "field": "a", "value": 1, "sql": "1=1"},
        ["title = 'x'"],
    ],
)
def test_anything_else_is_refused(data: Any) -> None:
    with pytest.raises(FilterRefused):
        from_data(data)


def test_a_filter_has_an_end() -> None:
    deep: dict[str, Any] = {"op": "eq", "field": "a", "value": 1}
    for _ in range(60):
        deep = {"op": "not", "of": [deep]}
    with pytest.raises(FilterRefused, match="deep"):
        from_data(deep)
    with pytest.raises(FilterRefused):
        from_data([as_data(field("a") == 1)] * 300)


def test_and_or_not_are_refused_with_advice() -> None:
    with pytest.raises(FilterRefused, match="&"):
        _ = (field("a") == 1) and (field("b") == 2)


def test_metadata_is_kept_by_type() -> None:
    metadata = {
        "s": "x",
        "n": 3,
        "f": 1.5,
        "b": True,
        "l": ["p", 2, {"no": 1}],
        "d": {"no": 1},
        "x": None,
        "i": float("nan"),
    }
    assert facets_of(metadata) == {"s:s": "x", "n:n": 3, "n:f": 1.5, "b:b": True}
    assert labels_of(metadata) == ["n:l=2.0", "s:l=p"]
    assert literal(True) == "true"
    assert literal(-0.5) == "-0.5"
