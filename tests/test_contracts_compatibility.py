"""The compatibility check finds what would break a reader, and lets pass what would not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.codec import Compatibility, Incompatibility, UnknownContract, check_compatibility
from kit.codec.compatibility import breaks, declared
from kit.codec.contracts import registry
from kit.errors import ConfigurationError

BASE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 10},
        "kind": {"type": "string", "enum": ["a", "b"]},
        "code": {"type": "string", "pattern": "^[a-z]+$"},
        "time": {"type": "string", "format": "date-time"},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "note": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "free": {"type": "object", "additionalProperties": True},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "inner": {"$ref": "#/$defs/inner"},
        "vector": {"type": "object", "x-kit-tensor": {"dtype": "float32", "rank": 1}},
        "fixed": {"const": "x"},
    },
    "required": ["id", "kind"],
    "additionalProperties": False,
    "anyOf": [{"required": ["note"]}, {"required": ["tags"]}],
    "$defs": {
        "inner": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "string"}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
Change = Callable[[dict[str, Any]], Any]


def prop(name: str, **changed: Any) -> Change:
    return lambda schema: schema["properties"][name].update(changed)


def add(name: str, child: dict[str, Any]) -> Change:
    return lambda schema: schema["properties"].update({name: child})


def store(folder: Path, *schemas: dict[str, Any], majors: tuple[int, ...] = (1,)) -> Path:
    """A folder in which `thing` has these versions: 1.0, 1.1, … (and likewise in further majors)."""
    (folder / "thing").mkdir()
    for major in majors:
        for minor, schema in enumerate(schemas):
            (folder / "thing" / f"{major}.{minor}.json").write_text(json.dumps(schema))
    return folder


def changed(*changes: Change) -> dict[str, Any]:
    schema = copy.deepcopy(BASE)
    for change in changes:
        change(schema)
    return schema


# What a new version does, and who can then no longer read whom: B a new reader old data, F an old reader new data.
BREAKS: list[tuple[str, Change, str, str]] = [
    ("removes a field", lambda s: s["properties"].pop("count"), "B", "/count"),
    ("removes a required field", lambda s: (s["properties"].pop("id"), s["required"].remove("id")), "BF", "/id"),
    ("requires an old field", lambda s: s["required"].append("count"), "B", "/count"),
    ("requires a new field", lambda s: (add("new", {"type": "string"})(s), s["required"].append("new")), "B", "/new"),
    ("no longer requires a field", lambda s: s["required"].remove("kind"), "F", "/kind"),
    ("narrows a type", prop("note", type="string"), "B", "/note"),
    ("widens a type", prop("code", type=["string", "null"]), "F", "/code"),
    ("changes a type", prop("count", type="string"), "BF", "/count"),
    ("narrows number to integer", prop("share", type="integer"), "B", "/share"),
    ("widens integer to number", prop("count", type="number"), "F", "/count"),
    ("narrows an enum", prop("kind", enum=["a"]), "B", "/kind"),
    ("widens an enum", prop("kind", enum=["a", "b", "c"]), "F", "/kind"),
    ("lists values", prop("code", enum=["a"]), "B", "/code"),
    ("no longer lists values", lambda s: s["properties"]["kind"].pop("enum"), "F", "/kind"),
    ("changes a const", prop("fixed", const="y"), "BF", "/fixed"),
    ("raises a minimum", prop("count", minimum=1), "B", "/count"),
    ("lowers a minimum", prop("count", minimum=-1), "F", "/count"),
    ("lowers a maximum", prop("count", maximum=8), "B", "/count"),
    ("drops a maximum", lambda s: s["properties"]["count"].pop("maximum"), "F", "/count"),
    ("lengthens a text's minimum", prop("id", minLength=2), "B", "/id"),
    ("sets a length where there was none", prop("note", maxLength=3), "B", "/note"),
    ("shortens an array", prop("tags", maxItems=4), "B", "/tags"),
    ("asks for more items", prop("tags", minItems=1), "B", "/tags"),
    ("changes the items", prop("tags", items={"type": "integer"}), "BF", "/tags/*"),
    ("sets a pattern", prop("id", pattern="^x"), "B", "/id"),
    ("changes a pattern", prop("code", pattern="^[a-f]+$"), "BF", "/code"),
    ("sets a format", prop("code", format="date-time"), "B", "/code"),
    ("drops a format", lambda s: s["properties"]["time"].pop("format"), "F", "/time"),
    ("closes a free map", prop("free", additionalProperties=False), "B", "/free"),
    ("types a free map", prop("free", additionalProperties={"type": "string"}), "B", "/free/*"),
    ("narrows a map", prop("map", additionalProperties={"type": "integer", "minimum": 0}), "B", "/map/*"),
    ("requires in a reference", lambda s: s["$defs"]["inner"]["required"].append("y"), "B", "/inner/y"),
    ("removes in a reference", lambda s: s["$defs"]["inner"]["properties"].pop("y"), "B", "/inner/y"),
    ("turns a reference into text", lambda s: s["properties"].update(inner={"type": "string"}), "BF", "/inner"),
    ("changes a tensor's rank", prop("vector", **{"x-kit-tensor": {"dtype": "float32", "rank": 2}}), "BF", "/vector"),
    ("makes a tensor of an object", prop("free", **{"x-kit-tensor": {"dtype": "float32", "rank": 1}}), "BF", "/free"),
    ("makes an object of a tensor", lambda s: s["properties"]["vector"].pop("x-kit-tensor"), "BF", "/vector"),
    ("drops an alternative", lambda s: s.update(anyOf=[{"required": ["note"]}]), "B", ""),
    ("adds an alternative", lambda s: s["anyOf"].append({"required": ["map"]}), "F", ""),
    ("asks for alternatives", lambda s: s.update(oneOf=[{"required": ["count"]}, {"required": ["share"]}]), "B", ""),
    ("uses a keyword nobody here understands", prop("tags", uniqueItems=True), "B", "/tags"),
    ("takes a value nobody may write", lambda s: s["properties"].update(note=False), "B", "/note"),
]


@pytest.mark.parametrize(("change", "who", "path"), [pytest.param(*row[1:], id=row[0]) for row in BREAKS])
def test_a_breaking_change_is_found_by_its_path(change: Change, who: str, path: str, tmp_path: Path) -> None:
    folder = store(tmp_path, BASE, changed(change))
    backward = check_compatibility("thing", "BACKWARD", folder=folder)
    forward = check_compatibility("thing", "FORWARD", folder=folder)
    assert (bool(backward), bool(forward)) == ("B" in who, "F" in who)
    assert path in {found.path for found in (*backward, *forward)}
    assert all((found.reader, found.writer) == ("1.1", "1.0") for found in backward)
    assert all((found.reader, found.writer) == ("1.0", "1.1") for found in forward)
    assert len(check_compatibility("thing", "FULL", folder=folder)) == len(backward) + len(forward)
    assert check_compatibility("thing", "NONE", folder=folder) == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: None,
        add("new", {"type": "string"}),
        add("new", {"$ref": "#/$defs/inner"}),
        prop("id", description="Other words.", title="x", examples=["a"], default="a"),
        lambda s: s["$defs"]["inner"]["properties"].update(z={"type": "null"}),
        lambda s: s["properties"]["inner"].update(description="Other words."),
        lambda s: s["required"].reverse(),
        lambda s: s.update({"$id": "urn:other"}),
    ],
)
def test_a_harmless_change_passes(change: Change, tmp_path: Path) -> None:
    assert check_compatibility(folder=store(tmp_path, BASE, changed(change))) == ()


def test_transitive_looks_at_every_pair_and_the_others_at_neighbours(tmp_path: Path) -> None:
    without = changed(lambda s: s["properties"].pop("count"))
    otherwise = changed(lambda s: s["properties"].update(count={"type": "string"}))
    folder = store(tmp_path, BASE, without, otherwise)
    neighbours = {(f.reader, f.writer) for f in check_compatibility("thing", "FORWARD", folder=folder)}
    every = {(f.reader, f.writer) for f in check_compatibility("thing", "FORWARD_TRANSITIVE", folder=folder)}
    assert neighbours == set()
    assert every == {("1.0", "1.2")}
    assert check_compatibility("thing", folder=folder) == check_compatibility("thing", "FULL_TRANSITIVE", folder=folder)


def test_another_major_may_change_anything(tmp_path: Path) -> None:
    folder = store(tmp_path, BASE)
    (folder / "thing" / "2.0.json").write_text(json.dumps({"type": "object", "additionalProperties": False}))
    assert check_compatibility(folder=folder) == ()


def test_the_kits_contracts_keep_what_they_declare() -> None:
    assert check_compatibility() == ()
    assert {name for name in registry().message_types() if declared(name) != Compatibility.FULL_TRANSITIVE} == {
        "llm_request"
    }


def test_the_exception_is_a_real_one() -> None:
    found = check_compatibility("llm_request", "FULL_TRANSITIVE")
    assert {(f.reader, f.writer) for f in found} == {("1.0", "1.1"), ("1.0", "1.2")}
    assert any(f.path == "/prompt" and f.fixture is None for f in found)
    assert any(f.fixture == "llm_request/1.1/valid/full.json" for f in found)


def test_a_candidate_is_judged_before_it_is_stored() -> None:
    schema = copy.deepcopy(dict(registry().schema("agent_message", "1.0")))
    schema["properties"]["mood"] = {"type": "string"}
    assert check_compatibility("agent_message", candidate=schema) == ()
    del schema["properties"]["metadata"]
    found = check_compatibility("agent_message", candidate=schema)
    assert {(f.reader, f.writer, f.path) for f in found if f.fixture is None} == {("1.1", "1.0", "/metadata")}
    assert "agent_message/1.0/valid/full.json" in {f.fixture for f in found}


def test_a_fixture_shows_what_a_schema_comparison_would_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.codec import migrations

    monkeypatch.delitem(migrations.STEPS, ("llm_request", "1.0", "1.1"))
    found = check_compatibility("llm_request")
    assert {f.reason for f in found} == {"no step leads from 1.0 to 1.1"}
    monkeypatch.setitem(migrations.STEPS, ("llm_request", "1.0", "1.1"), lambda data: {**data, "surprise": 1})
    assert {f.path for f in check_compatibility("llm_request")} == {"/data/surprise"}


def test_an_unknown_mode_or_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="SIDEWAYS"):
        check_compatibility("agent_message", "SIDEWAYS")
    with pytest.raises(UnknownContract):
        check_compatibility("nobody")


def test_an_incompatibility_reads_as_a_sentence() -> None:
    found = Incompatibility(
        message_type="thing", reader="1.0", writer="1.1", path="/a", reason="gone", fixture="f.json"
    )
    assert str(found) == "thing: 1.0 cannot read 1.1 at /a: gone (f.json)"


@pytest.mark.parametrize(
    ("reader", "writer", "count"),
    [
        (True, {"type": "string"}, 0),
        ({}, True, 0),
        ({"type": "string"}, False, 0),
        (False, {"type": "string"}, 1),
        ({"type": "string"}, {}, 6),
        ({"type": "string"}, {"const": 3}, 1),
        ({"type": "integer"}, {"enum": [1, 2, "x"]}, 1),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, {"type": "object"}, 6),
        ({"type": "object", "minProperties": 0}, {"type": "object"}, 0),
    ],
)
def test_inclusion_of_simple_schemas(reader: Any, writer: Any, count: int) -> None:
    assert len(breaks(reader=reader, writer=writer)) == count


def test_a_schema_that_refers_to_itself_ends() -> None:
    schema = {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    assert "too deep" in breaks(reader=schema, writer=schema)[0][1]
