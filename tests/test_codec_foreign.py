"""A schema that somebody else wrote is judged within bounds: nothing is fetched, and no check takes long."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from kit.codec import CodecError, ForeignSchema


def nest(levels: int, keyword: str = "anyOf") -> dict[str, Any]:
    """A schema of a line for each level that takes 4 to the power of the levels to judge."""
    below = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 4} for i in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**below, f"d{levels}": {"type": "integer"}}}


def inline(levels: int) -> dict[str, Any]:
    return {"anyOf": [inline(levels - 1)] * 4} if levels else {"type": "integer"}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def steps(number: int) -> dict[str, Any]:
    """A schema in which each definition refers to the next two: what it costs takes long to work out."""
    following = {
        f"d{i}": {"$ref": f"#/$defs/d{i + 1}", "not": {"$ref": f"#/$defs/d{i + 2}"}, "allOf": [True] * 8}
        for i in range(number)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**following, f"d{number}": True, f"d{number + 1}": True}}


TREE = {
    "type": "object",
    "properties": {"children": {"type": "array", "items": {"$ref": "#"}}, "n": {"type": "integer"}},
}


@pytest.mark.parametrize(
    ("schema", "value", "path", "rule"),
    [
        ({"type": "object", "required": ["a"]}, {}, (), "required"),
        ({"properties": {"a": {"items": {"type": "integer"}}}}, {"a": [1, "x"]}, ("a", 1), "type"),
        ({"$defs": {"n": {"minimum": 3}}, "properties": {"a": {"$ref": "#/$defs/n"}}}, {"a": 1}, ("a",), "minimum"),
        ({"$id": "https://example.org/x", "$schema": "https://example.org/y", "type": "integer"}, "x", (), "type"),
        (TREE, {"children": [{"children": [{"n": "x"}]}]}, ("children", 0, "children", 0, "n"), "type"),
        ({"pattern": "^[a-z]+$"}, "A", (), "pattern"),
        ({"properties": {"pattern": {"type": "null"}, "$ref": True}}, {"pattern": 1}, ("pattern",), "type"),
    ],
)  # fmt: skip
def test_a_fault_is_told_by_path_and_rule(schema: Any, value: Any, path: tuple[Any, ...], rule: str) -> None:
    fault = ForeignSchema(schema).fault(value)
    assert fault is not None
    assert (fault.path, fault.rule) == (path, rule)
    assert ForeignSchema({}).fault(value) is None


def test_a_path_is_told_as_far_as_the_schema_names_it() -> None:
    schema = {"properties": {"known": {"additionalProperties": {"type": "integer"}}}}
    fault = ForeignSchema(schema).fault({"known": {"a secret": "x"}})
    assert fault is not None
    assert (fault.path, fault.declared) == (("known", "a secret"), ("known",))
    assert "a secret" not in fault.reason


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/x.json"}, {"anyOf": [{"$ref": "file:///etc/passwd"}]}, {"$ref": "other.json#/a"},
        {"$ref": "#/$defs/none"}, {"$ref": "#anchor"}, {"properties": {"a": {"$id": "http://127.0.0.1:9/"}}},
        {"$defs": {"a": {"$dynamicAnchor": "x"}}}, {"$dynamicRef": "http://127.0.0.1:9/x.json#a"},
        deep(70), {"enum": list(range(6000))}, inline(7),
    ],
    ids=str,
)  # fmt: skip
def test_what_refers_outside_or_is_too_large_is_refused(schema: Any) -> None:
    with pytest.raises(CodecError):
        ForeignSchema(schema)


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"pattern": "("}, {"pattern": "(?=a)b"}, {"pattern": r"(a)\1"}]
)
def test_what_is_no_schema_is_refused_when_compiled(schema: Any) -> None:
    with pytest.raises(CodecError, match="not a usable JSON Schema"):
        ForeignSchema(schema).compile()


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        *((nest(levels, keyword), "x") for levels in (6, 12, 30, 200) for keyword in ("anyOf", "oneOf", "allOf")),
        ({"items": {"$ref": "#/$defs/d0"}, "$defs": nest(6)["$defs"]}, list("x" * 5000)),
        ({"pattern": "^(a+)+c$"}, "a" * 40_000), ({"pattern": "[01]*1[01]{500}2"}, "01" * 25_000),
        ({"items": {"enum": [f"x{i}" for i in range(4000)]}}, ["y"] * 20_000),
        ({"anyOf": [{"items": {"enum": [f"x{i}" for i in range(500)]}}]}, ["y"] * 5000),
        ({"anyOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}, [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]),
        (steps(330), "x"), (steps(330), [[["x"]]]),
        ({"$ref": "#"}, 1), ({"allOf": [{"$ref": "#"}]}, 1), ({"uniqueItems": True}, [{"a": i} for i in range(5000)]),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_no_check_takes_long(schema: Any, value: Any) -> None:
    began = time.thread_time()
    with contextlib.suppress(CodecError):  # it would take too long, or its pattern is too large
        ForeignSchema(schema).fault(value)
    assert time.thread_time() - began < 1.5


@pytest.mark.parametrize("schema", [{}, TREE, {"enum": [1, "a"]}, {"contains": {"type": "null"}}], ids=str)
@pytest.mark.parametrize("levels", [255, 400, 900])
def test_what_is_nested_too_deep_is_refused_by_name(schema: Any, levels: int) -> None:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    with pytest.raises(CodecError, match="nested deeper than 254 levels"):
        ForeignSchema(schema).fault(value)
