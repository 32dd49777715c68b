"""An agent orchestrates an answer: memory, passages, the stored prompt, the gateway, and LLMOps, in one trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kit.components import agents, document_qa, gateway, llmops, prompts, rag
from kit.errors import RemoteError

DOCUMENTS = [
    {"document_id": "policy", "title": "Refunds", "content": "Refunds are given within 14 days of purchase."},
    {"document_id": "copy", "title": "Refunds", "content": "Refunds are given within 14 days of purchase."},
    {"document_id": "hours", "title": "Opening hours", "content": "The shop opens at nine in the morning."},
]
QUESTION = "Within how many days are refunds given?"


@pytest.fixture
async def services(tenant_bus: Any, tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    started = {
        "gateway": await gateway.serve(tenant_bus),
        "rag": await rag.serve(tenant_bus, uri=tmp_path / "rag"),
        "prompts": await prompts.serve(tenant_bus),
        "llmops": await llmops.serve(tenant_bus),
        "agents": await agents.serve(tenant_bus, uri=tmp_path / "agents"),
        "document_qa": await document_qa.serve(tenant_bus),
    }
    await rag.ingest_documents(tenant_bus, DOCUMENTS)
    yield started
    for service in reversed(started.values()):
        await service.stop()


@pytest.fixture
async def template(tenant_bus: Any) -> AsyncIterator[prompts.PromptStore]:
    async with prompts.PromptStore(tenant_bus) as store:
        await store.create(
            document_qa.TEMPLATE_ID, document_qa.TEMPLATE, document_qa.VARIABLES, label=prompts.PRODUCTION
        )
        yield store


async def ask(bus: Any, question: str = QUESTION, **options: Any) -> dict[str, Any]:
    return await document_qa.ask(bus, question, mode="agent", timeout=15.0, **options)


async def test_the_whole_flow_is_one_trace(tenant_bus: Any, services: Any, template: Any, telemetry: Any) -> None:
    answer = await ask(tenant_bus, user_id="user-1", session_id="s")
    assert (answer["supported"], answer["mode"], answer["agent_id"]) == (True, "agent", "worker")
    assert "14 days" in answer["answer"]
    cited = [source["document_id"] for source in answer["sources"] if source["cited"]]
    assert cited
    assert set(cited) <= {"policy", "copy"}
    assert rag.check_citations(answer).valid
    assert [step["name"] for step in answer["steps"]] == [
        "AGENT_TASKS", "agent.memory.retrieve", "RAG_QUERIES", "PROMPT_CONTEXT", "GATEWAY_REQUESTS", "AGENT_MEMORY",
    ]  # fmt: skip
    assert answer["metadata"]["tokens"]["total"] > 0
    assert answer["metadata"]["cost"] is not None
    recorder = telemetry.recorder
    for _ in range(50):  # what is told after the answer belongs to the trace, too
        spans = recorder.spans()
        root = spans[spans["name"] == "use_case.document_qa"].iloc[0]
        mine = spans[spans["trace_id"] == root["trace_id"]]
        if {"agent.memory.store", "llmops.operation.log"} <= set(mine["name"]):
            break
        await asyncio.sleep(0.1)
    assert {
        "use_case.document_qa", "api.query.process", "agent.task.submit", "agent.task.execute",
        "agent.memory.retrieve", "rag.query", "rag.query.process", "rag.vector.search", "prompt.context.request",
        "prompt.context.build", "prompt.template.render", "agent.llm.call", "gateway.generate",
        "gateway.worker.process", "agent.memory.update", "agent.memory.store", "llmops.operation.log",
    } <= set(mine["name"])  # fmt: skip
    assert recorder.trace(name="use_case.document_qa").connected
    assert "rag.response.generate" not in set(mine["name"])
    assert "refunds" not in str(mine["attributes"].tolist()).lower()
    logged = (await llmops.report(tenant_bus, ["agent"])).frame
    assert "worker" in set(logged["agent"])


async def test_an_exchange_is_remembered_for_who_had_it_and_for_nobody_else(
    tenant_bus: Any, services: Any, template: Any
) -> None:
    first = await ask(tenant_bus, user_id="ada")
    (memory_id,) = first["memory_ids"]
    memories = agents.Agent(tenant_bus, "worker").memories
    for _ in range(50):
        if kept := await memories.all():
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.3)  # its vector comes a moment after its document
    assert (kept[0].memory_id, kept[0].memory_type, kept[0].user_id) == (memory_id, "episode", "ada")
    assert QUESTION in str(kept[0])
    assert "[1]" not in str(kept[0])
    again = await ask(tenant_bus, user_id="ada")
    assert memory_id in again["memory_ids"]
    assert again["supported"]
    assert memory_id not in (await ask(tenant_bus, user_id="bob"))["memory_ids"]
    assert (await ask(tenant_bus))["memory_ids"] == []


async def test_it_says_so_when_the_documents_do_not_support_an_answer(
    tenant_bus: Any, services: Any, template: Any
) -> None:
    answer = await ask(tenant_bus, "Which planet is the largest?")
    assert (answer["answer"], answer["supported"]) == (None, False)
    assert answer["reason"] == "the documents do not support an answer"
    elsewhere = await ask(tenant_bus, collection="other")
    assert (elsewhere["answer"], elsewhere["reason"]) == (None, "there are no documents yet")
    assert "GATEWAY_REQUESTS" not in [step["name"] for step in elsewhere["steps"]]


async def test_passages_that_repeat_others_are_left_out_and_the_rest_keeps_its_numbers(
    tenant_bus: Any, services: Any, template: Any
) -> None:
    answer = await ask(tenant_bus, "When does the shop open?", top_k=3)
    assert [source["citation"] for source in answer["sources"]] == [1, 2, 3]
    assert [source["document_id"] for source in answer["sources"] if source["cited"]] == ["hours"]
    assert rag.check_citations(answer).valid


async def test_what_is_missing_is_named(tenant_bus: Any, services: Any) -> None:
    with pytest.raises(RemoteError, match="agents failed with StepFailed: prompts failed with UnknownTemplate"):
        await ask(tenant_bus)
    await services["prompts"].stop()
    with pytest.raises(RemoteError, match="prompts failed with NoResponders"):
        await ask(tenant_bus)
    await services["rag"].stop()
    with pytest.raises(RemoteError, match="rag failed with NoResponders"):
        await ask(tenant_bus)
    await services["agents"].stop()
    with pytest.raises(RemoteError, match="agents failed with DeadlineExceeded"):
        await document_qa.ask(tenant_bus, QUESTION, mode="agent", timeout=1.0)
