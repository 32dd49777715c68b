"""Every message type has a closed, described schema with fixtures; released schemas never change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from kit import catalogue, codec
from kit.codec import contracts, released, tensors

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "schemas"
FIXTURES = ROOT / "data" / "contracts"
VERSIONS = [(name, version) for name in codec.message_types() for version in codec.versions(name)]
UTC = {"type": "string", "format": "date-time", "pattern": "(Z|\\+00:00)$"}


def files(kind: str) -> list[Any]:
    found = sorted(FIXTURES.glob(f"*/*/{kind}/*"))
    return [pytest.param(file, id="/".join(file.parts[-4:])) for file in found]


def nodes(schema: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema within a schema, with the name of its property."""
    if isinstance(schema, dict):
        yield name, schema
        for key in ("properties", "$defs"):
            for child_name, child in schema.get(key, {}).items():
                yield from nodes(child, child_name)
        for key in ("items", "additionalProperties"):
            yield from nodes(schema.get(key), name)


def wire(file: Path) -> bytes:
    raw = file.read_bytes()
    return raw if file.suffix == ".bin" else json.dumps(json.loads(raw)).encode()


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return bool(np.array_equal(left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def test_every_message_type_of_the_catalogue_has_a_schema_and_no_other() -> None:
    assert codec.message_types() == catalogue.MESSAGE_TYPES
    assert sorted(path.name for path in SCHEMAS.iterdir() if path.is_dir()) == list(catalogue.MESSAGE_TYPES)


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_a_schema_is_valid_closed_and_described(name: str, version: str) -> None:
    schema = json.loads((SCHEMAS / name / f"{version}.json").read_text())
    jsonschema_rs.meta.validate(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:kit:schema:{name}:{version}"
    assert schema["additionalProperties"] is False
    for child_name, node in nodes(schema):
        if "properties" in node:
            assert "additionalProperties" in node, child_name
            for field, child in node["properties"].items():
                assert child.get("description", "").endswith((".", "…")), f"{child_name}/{field} is not described"
        if node.get("type") in ("number", "integer"):
            assert {"minimum", "maximum"} <= set(node), f"{child_name} has no bounds"
        if child_name in ("timestamp", "expires_at", "reset_at", "failed_at"):
            assert node.items() >= UTC.items(), child_name
        if child_name in ("tenant_id", "agent_id", "source_agent_id", "target_agent_id"):
            assert node["pattern"] == f"^{catalogue._ID.pattern}$"


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_every_version_has_fixtures(name: str, version: str) -> None:
    valid = {file.stem for file in (FIXTURES / name / version / "valid").iterdir()}
    assert {"minimal", "full"} <= valid
    assert len(list((FIXTURES / name / version / "invalid").iterdir())) >= 3


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_the_minimal_fixture_is_minimal_and_the_full_one_full(name: str, version: str) -> None:
    folder = FIXTURES / name / version / "valid"
    schema = contracts.registry().schema(name, version)
    minimal = json.loads((folder / "minimal.json").read_bytes())["data"]
    full = json.loads(next(folder.glob("full.*")).read_bytes().split(b"\0")[0])["data"]
    assert set(minimal) - set(schema["required"]) <= {"content", "prompt", "error"}  # one of several is needed
    assert set(schema["properties"]) - set(full) <= {"prompt"}  # which excludes messages


@pytest.mark.parametrize("file", files("valid"))
def test_a_valid_fixture_makes_an_exact_round_trip(file: Path) -> None:
    envelope = codec.decode(wire(file))
    assert (envelope.message_type, envelope.schema_version) == (file.parts[-4], file.parts[-3])
    for _ in range(2):  # by the long way, then by the fast one
        again = codec.decode(codec.encode(envelope.message_type, envelope.data, envelope.schema_version))
        assert equal(again.data, envelope.data)
    if file.suffix == ".bin":
        assert codec.encode(envelope.message_type, envelope.data, envelope.schema_version) == wire(file)


@pytest.mark.parametrize("file", files("invalid"))
def test_an_invalid_fixture_is_refused_at_the_path_it_names(file: Path) -> None:
    fixture = json.loads(file.read_bytes())
    with pytest.raises(codec.ContractViolation) as caught:
        codec.decode(json.dumps(fixture["envelope"]).encode())
    assert caught.value.path == fixture["path"]
    assert caught.value.message_type == file.parts[-4]
    with pytest.raises(codec.ContractViolation):
        codec.encode(file.parts[-4], fixture["envelope"]["data"], file.parts[-3])


def test_released_schemas_are_unchanged() -> None:
    assert codec.check_released() == ()


def test_a_change_of_a_released_schema_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "schemas"
    shutil.copytree(SCHEMAS, folder)
    assert codec.check_released(folder) == ()
    file = folder / "error" / "1.0.json"
    file.write_text(file.read_text().replace("retryable", "retriable"))
    (folder / "llm_chunk" / "1.0.json").unlink()
    shutil.copy(file, folder / "error" / "1.1.json")
    told = codec.check_released(folder)
    assert [sentence.split(":")[0] for sentence in told] == [
        "error/1.0.json was changed",
        "llm_chunk/1.0.json was removed",
        "error/1.1.json is not released yet",
    ]
    assert codec.release(folder) == ("error/1.1.json",)
    assert len(codec.check_released(folder)) == 2


def test_the_first_release_starts_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "1.0.json").write_text('{"type": "object"}')
    assert codec.release(tmp_path) == ("thing/1.0.json",)
    assert (tmp_path / released.LEDGER).is_file()
    assert codec.check_released(tmp_path) == ()


def test_every_tensor_of_a_schema_is_found() -> None:
    found = {
        name: contract.tensors
        for name, version in VERSIONS
        if (contract := contracts.registry().contract(name, version)).tensors
    }
    assert found == {
        "embedding_response": {("embeddings",): 2},
        "memory_item": {("embedding",): 1},
        "rag_document": {("chunks", "*", "embedding"): 1},
        "rag_query": {("embedding",): 1},
    }
    with pytest.raises(ValueError, match="float32"):
        tensors.find({"properties": {"x": {tensors.KEYWORD: {"dtype": "float64", "rank": 1}}}})


def test_schemas_are_found_in_a_checkout_and_missed_with_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert contracts.schemas_folder() == SCHEMAS
    monkeypatch.setattr(contracts, "schemas_folder", lambda: ROOT / "nowhere")
    with pytest.raises(codec.CodecError, match="install the kit again"):
        contracts.registry.__wrapped__()
