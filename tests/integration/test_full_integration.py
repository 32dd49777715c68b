"""All of it together: a question answered end to end, its messages checked, delivered and observed; and recovery."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from misbehaving_provider import ANSWER, MisbehavingProvider
from samples import eventually

from kit import codec
from kit.catalogue import (
    API_QUERY_PROCESS,
    GATEWAY_GENERATE,
    GATEWAY_PROVIDER_CALL,
    GATEWAY_REQUESTS,
    GATEWAY_WORKER_PROCESS,
    LLMOPS_OPERATION_LOG,
    OPERATIONS,
    RAG_QUERY,
    RAG_QUERY_PROCESS,
    RAG_VECTOR_SEARCH,
    USE_CASE_DOCUMENT_QA,
)
from kit.components import document_qa, gateway, llmops, rag
from kit.components.gateway import ProviderFailed
from kit.nats import Bus
from kit.nats.server import Server

DOCUMENTS = [
    {"document_id": "copy", "content": "The shutil module contains a copyfile() function. It copies files."},
    {"document_id": "refund", "title": "Refunds", "content": "Refunds are given within 14 days of purchase."},
]


async def test_nats_otel_codec_together(tenant_bus: Bus, telemetry: Any, tmp_path: Path) -> None:
    wire: list[Any] = []

    async def note(message: Any) -> None:
        wire.append(message)

    await tenant_bus.connection.subscribe("ai.>", note)
    async with await gateway.serve(tenant_bus), await rag.serve(tenant_bus, uri=tmp_path):
        await rag.ingest_documents(tenant_bus, DOCUMENTS)
        result = await rag.query(tenant_bus, "How are refunds given?")
    assert result["answer"] == "Refunds are given within 14 days of purchase. [1]"
    rows = {row.subject(tenant_bus.tenant_id): row for row in OPERATIONS}
    known = {f"{span['trace_id']}-{span['span_id']}" for span in telemetry.recorder.spans().to_dict("records")}
    await eventually(lambda: {"RAG_QUERIES", "RAG_RESULTS"} <= {rows[message.subject].name for message in wire})
    for message in wire:  # NATS carried it, CODEC can read it, and OTEL knows the span that sent it
        row = rows[message.subject]
        assert codec.decode(message.data).message_type == row.message_type
        _, trace_id, span_id, flags = message.headers["traceparent"].split("-")
        assert f"{trace_id}-{span_id}" in known, row.name
        assert int(flags, 16) & 1


async def test_end_to_end_use_case(tenant_bus: Bus, telemetry: Any, tmp_path: Path) -> None:
    async with (
        await gateway.serve(tenant_bus),
        await rag.serve(tenant_bus, uri=tmp_path / "rag"),
        await llmops.serve(tenant_bus, uri=tmp_path / "llmops"),
        await document_qa.serve(tenant_bus),
    ):
        await rag.ingest_documents(tenant_bus, DOCUMENTS)
        telemetry.recorder.clear()
        answer = await document_qa.ask(tenant_bus, "How are refunds given?", user_id="u", session_id="s")
        assert answer["answer"] == "Refunds are given within 14 days of purchase. [1]"
        assert (answer["supported"], answer["sources"][0]["document_id"]) == (True, "refund")
        assert rag.check_citations(answer).valid
        assert answer["metadata"]["tokens"]["total"] > 0
        unknown = await document_qa.ask(tenant_bus, "Who won the cup in 1954?")
        assert (unknown["answer"], unknown["supported"]) == (None, False)

        async def logged() -> bool:
            return "completion" in set((await llmops.operations(tenant_bus, uri=tmp_path / "llmops"))["operation_type"])

        await eventually(logged, 15.0)
        usage = await llmops.report(tenant_bus, ["model"])
        assert "kit/extractive" in set(usage.frame["model"])
    frame = telemetry.recorder.spans()
    asked = frame[frame["name"] == USE_CASE_DOCUMENT_QA.name].iloc[0]
    trace = frame[frame["trace_id"] == asked["trace_id"]]
    path = (
        API_QUERY_PROCESS, RAG_QUERY, RAG_QUERY_PROCESS, RAG_VECTOR_SEARCH, GATEWAY_GENERATE, GATEWAY_WORKER_PROCESS,
        GATEWAY_PROVIDER_CALL, LLMOPS_OPERATION_LOG,
    )  # fmt: skip
    assert {row.name for row in path} <= set(trace["name"])
    ids = set(trace["span_id"])
    assert [span["name"] for span in trace.to_dict("records") if span["parent_id"] not in ids] == [asked["name"]]


async def test_integration_error_recovery(server: Server, tenant_bus: Bus) -> None:
    async with MisbehavingProvider() as provider:
        models = {name: provider.deployment(name) for name in ("fail-500x1", "fail-402", "fail-500", "ok")}
        settings: dict[str, Any] = {"models": models, "fallbacks": {"fail-500": ["ok"]}, "cache_ttl": 0, "retries": 1}
        service = await gateway.serve(tenant_bus, **settings)
        # The provider recovers; or another takes its place; or it is told which error it was, at once.
        assert (await gateway.generate(tenant_bus, prompt="x", model="fail-500x1"))["response"] == ANSWER
        fallen = await gateway.generate(tenant_bus, prompt="x", model="fail-500")
        assert (fallen["response"], fallen["model"]) == (ANSWER, "ok")
        with pytest.raises(ProviderFailed) as failed:
            await gateway.generate(tenant_bus, prompt="x", model="fail-402")
        assert (failed.value.status_code, failed.value.retryable, provider.calls["fail-402"]) == (402, False, 1)
        (letter,) = await tenant_bus.dead_letters(GATEWAY_REQUESTS)
        # The worker is away: what is asked meanwhile waits for the next one.
        await service.stop()
        waiting = asyncio.create_task(gateway.generate(tenant_bus, prompt="y", model="ok"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        async with await gateway.serve(tenant_bus, **settings):
            assert (await waiting)["response"] == ANSWER
            # The server is killed and comes back: the connection too, and nothing has to be started again.
            disconnects = tenant_bus.connection.counters.disconnects
            server.crash()
            await eventually(lambda: tenant_bus.connection.counters.disconnects > disconnects, 10.0)
            again = await gateway.generate(tenant_bus, prompt="z", model="ok", timeout=30.0)
            assert again["response"] == ANSWER
    assert json.loads(letter.payload)["data"]["model"] == "fail-402"
