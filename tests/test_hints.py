"""Slips on the way from the specification get an error that says what to do instead."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from kit import codec
from kit.catalogue import OPERATIONS, suggest_operation
from kit.errors import ConfigurationError, ContractViolation
from kit.nats import Bus

MESSAGE = {
    "message_id": "m-1", "source_agent_id": "ada", "target_agent_id": "bob", "content": "hello",
    "message_type": "note", "timestamp": codec.now(),
}  # fmt: skip


@pytest.mark.parametrize(
    "timestamp",
    [
        datetime(2026, 1, 31, 12).isoformat(),
        datetime(2026, 1, 31, 12, 0, 0, 5).isoformat(),
        str(datetime(2026, 1, 31, 12)),
        str(datetime(2026, 1, 31, 12, tzinfo=UTC)),
        datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=2))).isoformat(),
        "2026-01-31",
        "yesterday",
        "",
        datetime(2026, 1, 31, 12),
        date(2026, 1, 31),
    ],
)
def test_a_time_that_is_not_utc_is_told_what_makes_one(timestamp: Any) -> None:
    with pytest.raises(ContractViolation, match=r"/data/timestamp: .*kit\.codec\.now\(\)"):
        codec.encode("agent_message", {**MESSAGE, "timestamp": timestamp})


@pytest.mark.parametrize("more", [{}, {"zz": 1}, {"aa": 1}])
def test_a_version_in_the_data_is_told_where_it_belongs(more: dict[str, Any]) -> None:
    with pytest.raises(ContractViolation, match=r"/data/schema_version: .*in the envelope: encode"):
        codec.encode("agent_message", {**MESSAGE, "schema_version": "1.0", **more})


def test_another_unknown_field_is_told_nothing_of_envelopes() -> None:
    with pytest.raises(ContractViolation, match=r"/data/metadatas: the field is not in the schema$"):
        codec.encode("agent_message", {**MESSAGE, "metadatas": {}})


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_a_subject_or_a_name_leads_to_its_row(row: Any) -> None:
    expected = f"use kit.catalogue.{row.name}"
    for text in (row.name, row.name.lower(), row.prefix, f"{row.prefix}.acme", row.prefix.removeprefix("ai.")):
        assert suggest_operation(text) == expected


@pytest.mark.parametrize("verb", ["publish", "request", "enqueue", "run"])
@pytest.mark.parametrize("given", ["rag.queries", "ai.rag.queries.acme", "RAG_QUERY"])
async def test_a_text_where_a_row_is_meant_is_told_which(tenant_bus: Bus, verb: str, given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is not an operation: use kit\.catalogue\.RAG_QUERIES"):
        await getattr(tenant_bus, verb)(given, {})


@pytest.mark.parametrize("verb", ["subscribe", "serve", "work"])
async def test_a_text_where_a_row_is_meant_is_told_which_to_listeners_too(tenant_bus: Bus, verb: str) -> None:
    with pytest.raises(ConfigurationError, match=r"use kit\.catalogue\.AGENT_TASKS"):
        await getattr(tenant_bus, verb)("agent.tasks", asyncio.sleep)


async def test_so_are_dead_letters_backlogs_and_streams(tenant_bus: Bus) -> None:
    given: Any = "ai.rag.ingest"
    for call in (tenant_bus.dead_letters, tenant_bus.backlog, tenant_bus.replay):
        with pytest.raises(ConfigurationError, match=r"use kit\.catalogue\.RAG_INGEST"):
            await call(given)


async def test_what_is_no_text_is_told_where_rows_are(tenant_bus: Bus) -> None:
    given: Any = {"subject": "x"}
    with pytest.raises(ConfigurationError, match=r"use a row of kit\.catalogue"):
        await tenant_bus.request(given, {})
