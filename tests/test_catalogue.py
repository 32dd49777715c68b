"""The catalogue is complete, consistent, and every export says what its rows say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from kit import catalogue, codec
from kit.catalogue import METRICS, OPERATIONS, SPANS, Mode, check_id
from kit.errors import ConfigurationError
from kit.lab import asyncapi, catalogue_export, readme, tables

SPECIFIED = {
    "ai.agent": "message tasks results status memory tools tool-results",
    "ai.gateway": "requests responses rate-limit cache.invalidate health cost-alerts embeddings",
    "ai.rag": "ingest status queries results embeddings embedding-results",
    "ai.llmops": "operations cost-alerts reports",
    "ai.mlops": "training predictions deploy",
    "ai.prompt": "templates context",
    "ai.api": "queries",
}


def test_all_29_subjects_of_the_specification_are_there() -> None:
    wanted = {f"{prefix}.{name}" for prefix, names in SPECIFIED.items() for name in names.split()}
    assert len(wanted) == 29
    assert {row.prefix for row in OPERATIONS} == wanted


@pytest.mark.parametrize("rows", [OPERATIONS, SPANS, METRICS], ids=["operations", "spans", "metrics"])
def test_names_are_unique(rows: tuple[Any, ...]) -> None:
    assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_a_row_is_consistent(row: catalogue.Operation) -> None:
    assert getattr(catalogue, row.name) is row
    assert (row.result_type is not None) == (row.mode is not Mode.EVENT)
    assert row.message_type in codec.message_types()
    assert row.result_type is None or row.result_type in codec.message_types()
    assert row.send_span in SPANS
    assert row.handle_span in SPANS
    assert row.send_span is not row.handle_span
    assert row.stream is None or row.mode is not Mode.REQUEST, "a stream's acknowledgement would answer the caller"
    assert row.subject("acme") == f"{row.prefix}.acme"


def test_only_an_addressed_row_has_a_single_receiver() -> None:
    assert catalogue.AGENT_MESSAGE.subject("acme", "agent-2") == "ai.agent.message.acme.agent-2"
    with pytest.raises(ConfigurationError, match="no single receiver"):
        catalogue.RAG_QUERIES.subject("acme", "agent-2")


@pytest.mark.parametrize("value", ["", "A", "a.b", "a b", "-a", "_a", "a*", "a>", "é", "a" * 64, None, 1])
def test_what_cannot_be_one_token_of_a_subject_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="is refused"):
        check_id(value)


@pytest.mark.parametrize("value", ["a", "0", "a-b_c", "a" * 63])
def test_an_id_is_returned_unchanged(value: str) -> None:
    assert check_id(value) == value


def test_every_metric_is_counted_or_timed_somewhere_or_stands_on_its_own() -> None:
    assert all(span.counter in METRICS for span in SPANS if span.counter)
    assert all(span.duration in METRICS for span in SPANS if span.duration)


def test_json_carries_every_row_with_what_is_derived_from_it() -> None:
    body = json.loads(json.dumps(catalogue_export.as_json()))
    assert len(body["operations"]) == 29
    assert len(body["spans"]) == len(SPANS)
    assert len(body["metrics"]) == len(METRICS)
    by_name = {row["name"]: row for row in body["operations"]}
    assert by_name["RAG_INGEST"]["subject"] == "ai.rag.ingest.{tenant_id}"
    assert by_name["RAG_INGEST"]["policy"]["max_attempts"] == 4
    assert by_name["RAG_INGEST"]["stream"] == "AI_RAG_INGEST"
    assert by_name["RAG_QUERIES"]["policy"] is None
    assert by_name["AGENT_MESSAGE"]["address"] == "ai.agent.message.{tenant_id}.{receiver}"


def test_the_terminal_table_has_a_line_a_row_and_marks_what_is_not_served() -> None:
    lines = catalogue_export.as_table(1000).splitlines()
    for row in OPERATIONS:
        (line,) = [line for line in lines if f"{row.prefix}.{{tenant_id}}" in line]
        assert line.strip()[0] == ("●" if row.served else "○")
        assert row.message_type in line
        assert row.purpose in line
    assert max(map(len, catalogue_export.as_table(80).splitlines()[1:])) <= 80


@pytest.mark.parametrize("table", readme.TABLES, ids=lambda table: table.name)
def test_the_readme_holds_its_derived_tables(table: readme.Table) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    assert table.begin in text, f"README.md has no place for the table {table.name}"
    assert table.within(text) == text, f"README.md does not hold what `{table.renewed_by}` makes of {table.name}"


def test_tables_cover_a_component() -> None:
    assert len(tables.operations()) == 29
    assert list(tables.operations("rag").index) == ["RAG_INGEST", "RAG_STATUS", "RAG_QUERIES", "RAG_RESULTS"]
    assert set(tables.spans("agents").index) == {span.name for span in SPANS if span.component == "agent"}
    assert "rag.query.duration" in tables.metrics("rag").index
    assert len(tables.metrics()) == len(METRICS)
    with pytest.raises(ConfigurationError, match="there are agents"):
        tables.operations("nope")


# --- AsyncAPI ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asyncapi.document()))
    return found


@pytest.fixture(scope="module")
def official_schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """AsyncAPI's own JSON Schema, as its authors publish it on npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: the official AsyncAPI schema is published there")
    folder = tmp_path_factory.mktemp("asyncapi")
    command = [npm, "pack", "--silent", "@asyncapi/specs@6.11.1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"npm could not fetch the official schema:\n{done.stderr}"
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        file = archive.extractfile("package/schemas/3.0.0.json")
        assert file is not None
        schema: dict[str, Any] = json.load(file)
    return schema


def test_the_asyncapi_document_is_valid(document: dict[str, Any], official_schema: dict[str, Any]) -> None:
    validator = jsonschema_rs.validator_for(official_schema)
    assert [f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(document)] == []


def test_the_official_schema_would_notice(document: dict[str, Any], official_schema: dict[str, Any]) -> None:
    validator = jsonschema_rs.validator_for(official_schema)
    for spoil in (
        lambda body: body["operations"]["RAG_QUERIES.send"].update(action="shout"),
        lambda body: body["channels"]["RAG_QUERIES"].update(adress="x"),
        lambda body: body["components"]["schemas"]["rag_query-1.0"].update(type="objekt"),
        lambda body: body.pop("info"),
    ):
        spoiled = json.loads(json.dumps(document))
        spoil(spoiled)
        assert not validator.is_valid(spoiled)


def test_every_reference_of_the_asyncapi_document_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in place, reference
            place = place[part]


def test_the_asyncapi_document_has_every_row_on_both_sides(document: dict[str, Any]) -> None:
    assert len(document["operations"]) == 2 * 29
    for row in OPERATIONS:
        channel, handle = document["channels"][row.name], document["operations"][f"{row.name}.handle"]
        assert channel["address"] == f"{row.prefix}.{{tenant_id}}"
        assert set(channel["messages"]) == {
            f"{row.message_type}-{version}" for version in codec.versions(row.message_type)
        }
        assert ("reply" in handle) == (row.result_type is not None)
        assert handle["x-served"] is row.served
        assert ("x-jetstream" in channel) == (row.stream is not None)


def test_a_fixture_is_valid_by_the_asyncapi_document(document: dict[str, Any]) -> None:
    """What a foreign client would check a message with, refuses and accepts what the codec does."""
    schema = {"$ref": "#/components/schemas/rag_query-1.0", "components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema)
    folder = Path(__file__).parent.parent / "data" / "contracts" / "rag_query" / "1.0"
    valid = [json.loads(path.read_text()) for path in sorted((folder / "valid").glob("*.json"))]
    assert valid
    for fixture in valid:
        assert validator.is_valid(fixture.get("data", fixture))
    assert not validator.is_valid({"nothing": "of it"})
