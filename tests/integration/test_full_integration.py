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
    AGENT_LLM_CALL,
    AGENT_MEMORY_RETRIEVE,
    AGENT_MEMORY_STORE,
    AGENT_MEMORY_UPDATE,
    AGENT_TASK_EXECUTE,
    AGENT_TASK_SUBMIT,
    API_QUERY_PROCESS,
    GATEWAY_GENERATE,
    GATEWAY_PROVIDER_CALL,
    GATEWAY_REQUESTS,
    GATEWAY_WORKER_PROCESS,
    LLMOPS_OPERATION_LOG,
    OPERATIONS,
    PROMPT_CONTEXT_BUILD,
    PROMPT_CONTEXT_REQUEST,
    PROMPT_TEMPLATE_RENDER,
    RAG_QUERY,
    RAG_QUERY_PROCESS,
    RAG_VECTOR_SEARCH,
    USE_CASE_DOCUMENT_QA,
)
from kit.components import agents, document_qa, gateway, llmops, prompts, rag
from kit.components.gateway import ProviderFailed
from kit.nats import Bus
from kit.nats.server import Server

DOCUMENTS = [
    {"document_id": "copy", "content": "The shutil module contains a copyfile() function. It copies files."},
    {"document_id": "refund", "title": "Refunds", "content": "Refunds are given within 14 days of purchase."},
]
TEN_STEPS = (
    USE_CASE_DOCUMENT_QA,  # 1: the user's query
    API_QUERY_PROCESS, AGENT_TASK_SUBMIT, AGENT_TASK_EXECUTE, AGENT_MEMORY_RETRIEVE,  # 2: the agent receives it
    RAG_QUERY,  # 3: the agent sends it on
    RAG_QUERY_PROCESS,  # 4: RAG consumes it
    RAG_VECTOR_SEARCH,  # 5: … and retrieves passages; 6 and 7: they are the reply that rag.query ends with
    PROMPT_CONTEXT_REQUEST, PROMPT_CONTEXT_BUILD, PROMPT_TEMPLATE_RENDER,
    AGENT_LLM_CALL, GATEWAY_GENERATE, GATEWAY_WORKER_PROCESS, GATEWAY_PROVIDER_CALL,  # 8: the agent calls the gateway
    LLMOPS_OPERATION_LOG,
    AGENT_MEMORY_UPDATE, AGENT_MEMORY_STORE,  # 9 and 10: the answer is remembered and returned
)  # fmt: skip


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


async def test_end_to_end_use_case_with_an_agent(tenant_bus: Bus, telemetry: Any, tmp_path: Path) -> None:
    """The specification's flow of ten steps: an agent orchestrates retrieval, prompt, model and memory in one trace."""
    folder = tmp_path / "llmops"
    async with (
        await gateway.serve(tenant_bus),
        await rag.serve(tenant_bus, uri=tmp_path / "rag"),
        await llmops.serve(tenant_bus, uri=folder),
        await prompts.serve(tenant_bus),
        await agents.serve(tenant_bus, uri=tmp_path / "agents"),
        await document_qa.serve(tenant_bus),
        prompts.PromptStore(tenant_bus) as store,
    ):
        await rag.ingest_documents(tenant_bus, DOCUMENTS)
        for template in (
            "An older wording.\n{{ memories }}{{ context }}\n\nQuestion: {{ question }}",
            document_qa.TEMPLATE,
        ):
            await store.create(document_qa.TEMPLATE_ID, template, document_qa.VARIABLES, label=prompts.PRODUCTION)
        telemetry.recorder.clear()
        answer = await document_qa.ask(
            tenant_bus, "How are refunds given?", user_id="u", session_id="s", mode="agent", timeout=60.0
        )
        assert answer["answer"] == "Refunds are given within 14 days of purchase. [1]"
        assert (answer["mode"], answer["agent_id"], answer["sources"][0]["document_id"]) == (
            "agent",
            "worker",
            "refund",
        )
        assert rag.check_citations(answer).valid

        async def traced() -> set[str]:  # what is told after the answer belongs to the trace, too
            frame = telemetry.recorder.spans()
            asked = frame[frame["name"] == USE_CASE_DOCUMENT_QA.name].iloc[0]
            names = set(frame[frame["trace_id"] == asked["trace_id"]]["name"])
            return names if {AGENT_MEMORY_STORE.name, LLMOPS_OPERATION_LOG.name} <= names else set()

        assert {row.name for row in TEN_STEPS} <= await eventually(traced, 15.0)
        assert telemetry.recorder.trace(name=USE_CASE_DOCUMENT_QA.name).connected
        # The effects: the exchange is remembered, the call is logged under the version of the prompt that it used.
        memories = agents.Agent(tenant_bus, "worker").memories
        (kept,) = await eventually(memories.all, 15.0)
        assert [kept.memory_id] == answer["memory_ids"]
        assert (kept.memory_type, kept.user_id, kept.session_id) == ("episode", "u", "s")
        assert "14 days" in str(kept)

        async def logged() -> list[dict[str, Any]]:
            frame = await llmops.operations(tenant_bus, uri=folder)
            return frame[frame["agent_id"] == "worker"].query("operation_type == 'completion'").to_dict("records")

        (call,) = await eventually(logged, 15.0)
        assert (call["prompt_version"], call["user_id"], call["session_id"]) == ("document_qa@2", "u", "s")
        assert call["tokens_total"] > 0
        assert call["trace_id"] == telemetry.recorder.trace(name=USE_CASE_DOCUMENT_QA.name).trace_id


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
