"""What components do is traced from end to end, counted and timed, whichever hop it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rag_stand_in import StandIn
from samples import sample

from kit.catalogue import (
    AGENT_LLM_CALL,
    AGENT_MEMORY_RETRIEVE,
    AGENT_MEMORY_STORE,
    AGENT_MEMORY_UPDATE,
    AGENT_RESULTS,
    AGENT_SESSION_CREATE,
    AGENT_TASK_DURATION,
    AGENT_TASK_EXECUTE,
    AGENT_TASK_SUBMIT,
    AGENT_TASKS,
    AGENT_TASKS_EXECUTED,
    AGENT_TASKS_PUBLISHED,
    AGENT_TOOL_EXECUTE,
    AGENT_TOOL_RUN,
    API_QUERIES,
    API_QUERY_PROCESS,
    GATEWAY_CACHE_CHECK,
    GATEWAY_CACHE_HITS,
    GATEWAY_CACHE_MISSES,
    GATEWAY_GENERATE,
    GATEWAY_PROVIDER_CALL,
    GATEWAY_RATE_LIMIT_CHECK,
    GATEWAY_TOKENS_USED,
    GATEWAY_VALIDATE,
    GATEWAY_WORKER_PROCESS,
    RAG_DOCUMENTS_INGESTED,
    RAG_DOCUMENTS_PROCESSED,
    RAG_DOCUMENTS_QUEUED,
    RAG_EMBEDDINGS_GENERATED,
    RAG_INGESTION_DURATION,
    RAG_QUERIES,
    RAG_QUERIES_COMPLETED,
    RAG_QUERIES_EXECUTED,
    RAG_QUERIES_QUEUED,
    RAG_QUERY_DURATION,
    RAG_RESPONSES_GENERATED,
    RAG_SEARCH_DURATION,
    RAG_SEARCHES_EXECUTED,
    USE_CASE_DOCUMENT_QA,
)
from kit.components import agents, gateway, rag
from kit.components.agents import Agent, AgentManager, TaskFailed
from kit.errors import RemoteError
from kit.nats import Bus, Message

QUESTION = "[1] Copying\nThe shutil module contains a copyfile() function.\n\nQuestion: How do I copy a file?"


def spans(telemetry: Any, *rows: Any) -> list[dict[str, Any]]:
    """The one span of each row, in that order."""
    frame = telemetry.recorder.spans()
    found = []
    for row in rows:
        (span,) = frame[frame["name"] == row.name].to_dict("records")
        found.append(span)
    return found


async def test_otel_gateway_tracing(tenant_bus: Bus, telemetry: Any) -> None:
    async with await gateway.serve(tenant_bus):
        await gateway.generate(tenant_bus, prompt=QUESTION)
        steps = (GATEWAY_CACHE_CHECK, GATEWAY_RATE_LIMIT_CHECK, GATEWAY_PROVIDER_CALL, GATEWAY_VALIDATE)
        asked, worked, *below = spans(telemetry, GATEWAY_GENERATE, GATEWAY_WORKER_PROCESS, *steps)
        assert worked["parent_id"] == asked["span_id"]
        assert {span["parent_id"] for span in below} == {worked["span_id"]}
        assert len({span["trace_id"] for span in (asked, worked, *below)}) == 1
        call = below[2]["attributes"]
        assert (call["gen_ai.request.model"], call["openinference.span.kind"]) == ("kit/extractive", "LLM")
        assert call["gen_ai.usage.input_tokens"] > 0
        assert asked["attributes"]["messaging.system"] == "nats"
        telemetry.recorder.clear()
        await gateway.generate(tenant_bus, prompt=QUESTION)
    (worked,) = spans(telemetry, GATEWAY_WORKER_PROCESS)
    assert worked["attributes"]["cache.hit"] is True
    assert GATEWAY_PROVIDER_CALL.name not in set(telemetry.recorder.spans()["name"])
    total = telemetry.recorder.total
    assert (total(GATEWAY_CACHE_MISSES.name), total(GATEWAY_CACHE_HITS.name), total(GATEWAY_TOKENS_USED.name)) == (
        1,
        1,
        1,
    )


async def test_otel_rag_metrics(tenant_bus: Bus, telemetry: Any, tmp_path: Path) -> None:
    documents = [{"document_id": f"d{n}", "content": f"Refunds are given within {n} days."} for n in range(3)]
    async with StandIn(tenant_bus), await rag.serve(tenant_bus, uri=tmp_path):
        await rag.ingest_documents(tenant_bus, documents)
        for _ in range(2):
            await rag.query(tenant_bus, "How are refunds given?")
        with pytest.raises(RemoteError):
            await rag.query(tenant_bus, "How?", embedding_model="another")
    total = telemetry.recorder.total
    assert total(RAG_DOCUMENTS_QUEUED.name, status="success") == 3
    assert total(RAG_DOCUMENTS_PROCESSED.name, status="success") == 3
    assert total(RAG_DOCUMENTS_INGESTED.name, status="indexed") == 3
    assert total(RAG_INGESTION_DURATION.name) == 3
    assert total(RAG_QUERIES_EXECUTED.name, status="success") == 2
    assert total(RAG_QUERIES_EXECUTED.name, status="error") == 1
    assert total(RAG_QUERIES_COMPLETED.name, error_type="EmbeddingMismatch") == 1
    assert total(RAG_SEARCHES_EXECUTED.name, status="success") == total(RAG_RESPONSES_GENERATED.name) == 2
    assert total(RAG_QUERY_DURATION.name) == 3
    assert total(RAG_SEARCH_DURATION.name) >= 2
    assert total(RAG_EMBEDDINGS_GENERATED.name) >= 3
    assert total(RAG_QUERIES_QUEUED.name) == 3
    labels = [set(row) for row in telemetry.recorder.metrics()["labels"]]
    assert not any(label.endswith(("_id", ".id")) and label != "tenant.id" for row in labels for label in row)


async def test_otel_agent_tracing(tenant_bus: Bus, telemetry: Any, tmp_path: Path) -> None:
    ada = Agent(tenant_bus, "ada", uri=tmp_path, strict_tools=True)

    @ada.task("brief")
    async def brief(agent: Agent, task: dict[str, Any]) -> str:
        """The specification's task: memory, tool, model, memory."""
        await agent.recall("copying")
        words = await agent.call_tool("count_words", text=task["prompt"])
        answer = await agent.perform(task, task["prompt"])
        await agent.remember(f"Answered {words} words about copying.", "episode", wait=20.0)
        return str(answer)

    async with await gateway.serve(tenant_bus), await agents.serve(tenant_bus, agents=[ada], uri=tmp_path):
        manager = AgentManager(tenant_bus)
        done = await manager.submit_task(QUESTION, task_type="brief", session_id="s")
        assert "copyfile()" in str(await done.result(60.0))
        refused = await manager.submit_task(task_type="unheard-of")
        with pytest.raises(TaskFailed, match="TaskRefused"):
            await refused.result(20.0)
    trace = telemetry.recorder.trace(name=AGENT_MEMORY_UPDATE.name)
    assert trace.connected
    assert trace.root.name == AGENT_TASK_SUBMIT.name
    frame = telemetry.recorder.spans()
    mine = frame[frame["trace_id"] == trace.trace_id]
    one = {name: rows.iloc[0] for name, rows in mine.groupby("name")}
    executed = one[AGENT_TASK_EXECUTE.name]
    steps = (AGENT_MEMORY_RETRIEVE, AGENT_TOOL_EXECUTE, AGENT_LLM_CALL, AGENT_MEMORY_UPDATE, AGENT_SESSION_CREATE)
    for row in (*steps, AGENT_RESULTS.send_span):
        assert one[row.name]["parent_id"] == executed["span_id"], row.name
    for below, above in (
        (AGENT_TOOL_RUN, AGENT_TOOL_EXECUTE), (GATEWAY_GENERATE, AGENT_LLM_CALL),
        (GATEWAY_WORKER_PROCESS, GATEWAY_GENERATE), (AGENT_MEMORY_STORE, AGENT_MEMORY_UPDATE),
    ):  # fmt: skip
        assert one[below.name]["parent_id"] == one[above.name]["span_id"], below.name
    said = executed["attributes"]
    assert (said["agent.id"], said["task.type"], said["task.id"]) == ("ada", "brief", done.task_id)
    assert (said["openinference.span.kind"], said["session.id"]) == ("AGENT", "s")
    assert one[AGENT_LLM_CALL.name]["attributes"]["llm.tokens"] > 0
    failed = telemetry.recorder.spans(AGENT_TASK_EXECUTE.name).iloc[-1]
    assert (failed["status"], failed["error_type"]) == ("error", "TaskRefused")
    total = telemetry.recorder.total
    assert total(AGENT_TASKS_PUBLISHED.name) == 2
    assert total(AGENT_TASKS_EXECUTED.name, status="success") == 1
    assert total(AGENT_TASKS_EXECUTED.name, status="error", error_type="TaskRefused") == 1
    assert total(AGENT_TASK_DURATION.name) == 2


async def test_otel_trace_propagation(tenant_bus: Bus, telemetry: Any) -> None:
    headers: list[dict[str, str]] = []

    async def note(message: Any) -> None:
        headers.append(dict(message.headers or {}))

    async def route(message: Message) -> dict[str, Any]:  # hop 1: a request, whose handler asks on
        await tenant_bus.request(RAG_QUERIES, sample("rag_query", tenant_id=tenant_bus.tenant_id))
        return sample("api_answer")

    async def answer(message: Message) -> dict[str, Any]:  # hop 2: a request, whose handler enqueues
        await tenant_bus.run(AGENT_TASKS, sample("agent_task"))
        return sample("rag_result")

    attempts: list[int] = []

    async def work(message: Message) -> dict[str, Any]:  # hop 3: a job that is retried
        attempts.append(message.attempt)
        if message.attempt == 1:
            raise ConnectionError
        return sample("agent_result")

    await tenant_bus.connection.subscribe("ai.>", note)
    await tenant_bus.serve(API_QUERIES, route)
    await tenant_bus.serve(RAG_QUERIES, answer)
    await tenant_bus.work(AGENT_TASKS, work)
    await tenant_bus.request(API_QUERIES, sample("api_query", tenant_id=tenant_bus.tenant_id))
    assert attempts == [1, 2]
    frame = telemetry.recorder.spans()
    asked, routed, answered, submitted = spans(
        telemetry, USE_CASE_DOCUMENT_QA, API_QUERY_PROCESS, RAG_QUERIES.handle_span, AGENT_TASK_SUBMIT
    )
    tries = frame[frame["name"] == AGENT_TASK_EXECUTE.name]
    assert set(frame["trace_id"]) == {asked["trace_id"]}
    assert routed["parent_id"] == asked["span_id"]
    assert answered["trace_id"] == asked["trace_id"]
    assert list(tries["parent_id"]) == [submitted["span_id"]] * 2
    assert list(tries["status"] == "error") == [True, False]
    assert len(headers) == 3
    assert all(sent["traceparent"].split("-")[1] == asked["trace_id"] for sent in headers)
