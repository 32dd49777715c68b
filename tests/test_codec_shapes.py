"""A shape is the fast way through a contract; what it cannot express goes the long way, with the same result."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from kit.codec import ContractViolation, decode, encode, envelope
from kit.codec.contracts import Registry, registry
from kit.codec.shapes import UNSURE, compile_reader, compile_writer, never

TEXT = {"type": "string"}


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


@pytest.mark.parametrize(
    "schema",
    [
        closed(a={"type": "string", "pattern": "x"}),
        closed(a={"type": "string", "pattern": "^(a|b)$"}),
        closed(a={"type": "string", "format": "email"}),
        closed(a={"type": "string", "format": "date-time"}),
        closed(a={"type": "number"}),
        closed(a={"type": "number", "minimum": 0, "maximum": 2**53 + 1}),
        closed(a={"type": "integer", "minimum": 0.5}),
        closed(a={"type": "integer", "multipleOf": 2}),
        closed(a={"enum": ["a"]}),
        closed(a={"type": "integer", "enum": [1]}),
        closed(a={"type": "string", "enum": ["a"], "minLength": 2}),
        closed(a={"const": "a"}),
        closed(a={"type": "object", "additionalProperties": False}),
        closed(a={"type": "object", "properties": {"b": TEXT}, "additionalProperties": TEXT}),
        closed(a={"type": "object", "patternProperties": {}}),
        closed(a={"type": "array", "prefixItems": [TEXT]}),
        closed(a={"not": {}}),
        closed(a=False),
        closed("b", a=TEXT),
        closed(**{"no identifier": TEXT}),
        {**closed(a=TEXT), "anyOf": [{"type": "object"}]},
        {**closed(a=TEXT), "anyOf": [{}]},
        {**closed(a=TEXT), "anyOf": [{"required": ["a"], "properties": {"a": {"const": 1}}}]},
        {**closed(a=TEXT), "oneOf": [{"required": ["a"], "properties": {"a": TEXT}}]},
        closed(a={"$ref": "#/$defs/nowhere"}),
        closed(a={"$ref": "other.json"}),
        closed(a={"$ref": "#/$defs/b", "minLength": 1}) | {"$defs": {"b": TEXT}},
        closed(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"$ref": "#/$defs/a"}}},
        closed(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
    ],
)
def test_a_schema_that_a_shape_cannot_express_has_none(schema: dict[str, Any]) -> None:
    assert never in (compile_reader(schema, b""), compile_writer(schema, b""))


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A message type whose schema has no shape, in a registry of its own."""
    name = f"thing_{uuid.uuid4().hex}"
    schema = closed(
        "code",
        code={"type": "string", "pattern": "^(ab)+$"},
        never=False,
        numbers={"type": "array", "items": {"type": "number"}},
    )
    (tmp_path / name).mkdir()
    (tmp_path / name / "1.0.json").write_text(json.dumps(schema))
    other = Registry(tmp_path)
    monkeypatch.setattr(envelope, "registry", lambda: other)
    return name


def test_a_contract_without_a_shape_goes_the_long_way(things: str) -> None:
    data = {"code": "abab", "numbers": [1, 2.5, 1e300]}
    payload = encode(things, data)
    assert decode(payload).data == data
    for changed, path in (
        ({"code": "aba"}, "/data/code"),
        ({"never": 1}, "/data/never"),
        ({"numbers": [1, float("nan")]}, "/data/numbers/1"),
        ({"numbers": (1,)}, "/data/numbers"),
        ({"surprise": 1}, "/data/surprise"),
    ):
        with pytest.raises(ContractViolation) as caught:
            encode(things, {**data, **changed})
        assert caught.value.path == path


def test_the_validator_itself_says_where_a_python_type_is_none_of_json() -> None:
    contract = registry().contract("tool_result", "1.0")
    data = {"request_id": "r", "tool_name": uuid.UUID(int=1), "status": "success", "timestamp": "2025-06-01T12:00:00Z"}
    with pytest.raises(ContractViolation, match="UUID") as caught:
        contract.check(data)
    assert caught.value.path == "/data/tool_name"


def test_a_shape_is_sure_only_of_what_this_kit_writes() -> None:
    schema = closed(
        "a", a={"type": "integer", "minimum": 0, "maximum": 9}, b={"type": ["string", "null"], "pattern": "^[a-z]+$"}
    )
    read, write = compile_reader(schema, b'{"data":'), compile_writer(schema, b'{"data":')
    assert read(b'{"data":{"a":1,"b":"x"}}') == {"a": 1, "b": "x"}
    assert read(b'{"data":{"a":1,"b":null}}') == {"a": 1, "b": None}
    assert write({"b": "x", "a": 1}) == b'{"data":{"b":"x","a":1}}'
    for text in (b'{"data": {"a":1}}', b'{"data":{"a":1,"a":1}}', b'{"data":{"a":1,"c":1}}'):
        assert read(text) is None
    assert read(b'{"data":{"a":1,"b":"X"}}') is None
    assert write({"a": 1, "b": "X"}) is None
    for text in (
        b'{"data":{"a":1.0}}', b'{"data":{"a":10}}', b'{"data":{}}', b'{"data":{"a":1}} x', b'{"data":{"a":1},"x":1}'
    ):  # fmt: skip
        with pytest.raises(UNSURE):
            read(text)


def test_ids_are_remembered_only_so_far() -> None:
    schema = closed("a", a={"type": "string", "pattern": "^[a-z0-9]+$"})
    write = compile_writer(schema, b'{"data":')
    for number in range(5000):
        assert write({"a": f"x{number}"}) is not None
    assert write({"a": "x" * 100}) is not None
    remembered = next(v for k, v in write.__globals__.items() if k.startswith("seen"))  # type: ignore[attr-defined]
    assert len(remembered) <= 4096


def test_an_open_object_is_held_to_its_named_fields() -> None:
    inner = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "additionalProperties": True,
    }
    schema = closed("m", m=inner)
    read, write = compile_reader(schema, b'{"data":'), compile_writer(schema, b'{"data":')
    data = {"m": {"n": 1, "other": [1, {"x": 2.5}]}}
    assert read(b'{"data":' + json.dumps(data, separators=(",", ":")).encode() + b"}") == data
    assert write(data) is not None
    assert write({"m": {"other": (1,)}}) is None
    for wrong in ({"m": {"n": "x"}}, {"m": {"n": 10}}):
        with pytest.raises(UNSURE):
            write(wrong)
