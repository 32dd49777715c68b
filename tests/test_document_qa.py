"""Document Q&A answers from a tenant's documents end to end, in one trace, and says why when it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rag_stand_in import StandIn

from kit import codec
from kit.catalogue import API_QUERIES
from kit.components import document_qa, gateway, rag
from kit.errors import NoResponders, RemoteError

POLICY = {"document_id": "policy", "title": "Refunds", "content": "Refunds are given within 14 days of purchase."}


@pytest.fixture
async def stand_in(tenant_bus: Any) -> AsyncIterator[StandIn]:
    async with StandIn(tenant_bus) as started:
        yield started


@pytest.fixture
async def services(tenant_bus: Any, stand_in: StandIn, tmp_path: Path) -> AsyncIterator[list[Any]]:
    started = [await rag.serve(tenant_bus, uri=tmp_path), await document_qa.serve(tenant_bus)]
    await rag.ingest_documents(tenant_bus, [POLICY])
    yield started
    for service in started:
        await service.stop()


async def test_an_answer_comes_with_its_sources(tenant_bus: Any, services: Any) -> None:
    answer = await document_qa.ask(tenant_bus, "How are refunds given?", user_id="user-1", session_id="s")
    assert answer["answer"] == "Refunds are given within 14 days of purchase. [1]"
    assert (answer["supported"], answer["mode"], answer["status"]) == (True, "rag", "success")
    assert answer["sources"][0]["document_id"] == "policy"
    assert (answer["user_id"], answer["session_id"]) == ("user-1", "s")
    assert answer["metadata"]["tokens"]["total"] == 32
    assert answer["steps"][0]["name"] == "RAG_QUERIES"
    assert answer["duration"] > 0
    assert rag.check_citations(answer).valid


async def test_it_says_so_when_the_documents_do_not_support_an_answer(tenant_bus: Any, services: Any) -> None:
    answer = await document_qa.ask(tenant_bus, "Who won the cup?")
    assert (answer["answer"], answer["supported"]) == (None, False)
    assert answer["reason"] == "the documents do not support an answer"
    elsewhere = await document_qa.ask(tenant_bus, "How are refunds given?", collection="other")
    assert elsewhere["reason"] == "there are no documents yet"


async def test_parameters_reach_the_search_and_the_model(tenant_bus: Any, services: Any, stand_in: StandIn) -> None:
    far = await document_qa.ask(tenant_bus, "How are refunds given?", similarity_threshold=0.999)
    assert "similarity_threshold" in far["reason"]
    await document_qa.ask(tenant_bus, "How are refunds given?", user_id="u", model="big", top_k=1)
    assert (stand_in.requests[-1]["model"], stand_in.requests[-1]["user_id"]) == ("big", "u")


async def test_the_model_alone_supports_nothing(tenant_bus: Any, services: Any, stand_in: StandIn) -> None:
    stand_in.say = lambda messages: f"You said: {messages[-1]['content']}"
    answer = await document_qa.ask(tenant_bus, "Hello", mode="llm")
    assert (answer["answer"], answer["supported"], answer["sources"]) == ("You said: Hello", False, [])
    assert "no documents" in answer["reason"]


async def test_what_cannot_be_asked_is_refused(tenant_bus: Any, services: Any) -> None:
    with pytest.raises(document_qa.QuestionRefused):
        await document_qa.ask(tenant_bus, "  ")
    blank = {"query_id": "q", "query": " ", "tenant_id": tenant_bus.tenant_id, "timestamp": codec.now()}
    with pytest.raises(RemoteError, match="no question"):
        await tenant_bus.request(API_QUERIES, blank)


async def test_a_component_that_fails_or_is_missing_is_named(tenant_bus: Any, services: Any, stand_in: StandIn) -> None:
    class Refused(Exception):
        retryable = False

    stand_in.fail = Refused("no")
    with pytest.raises(RemoteError, match="rag failed with ModelFailed") as caught:
        await document_qa.ask(tenant_bus, "How are refunds given?")
    assert caught.value.error_type == "QuestionFailed"

    def broken(_: Any) -> str:
        raise Refused("no")

    stand_in.say = broken
    with pytest.raises(RemoteError, match="gateway failed with"):
        await document_qa.ask(tenant_bus, "Hello", mode="llm")
    await services[0].stop()
    with pytest.raises(RemoteError, match="rag failed with NoResponders"):
        await document_qa.ask(tenant_bus, "How are refunds given?")
    await services[1].stop()
    with pytest.raises(NoResponders):
        await document_qa.ask(tenant_bus, "How are refunds given?")


async def test_the_whole_way_is_one_trace(tenant_bus: Any, telemetry: Any, tmp_path: Path) -> None:
    async with (
        await gateway.serve(tenant_bus),
        await rag.serve(tenant_bus, uri=tmp_path),
        await document_qa.serve(tenant_bus),
    ):
        await rag.ingest_documents(tenant_bus, [POLICY])
        answer = await document_qa.ask(tenant_bus, "Within how many days are refunds given?", user_id="user-1")
        unknown = await document_qa.ask(tenant_bus, "Which planet is the largest?")
        await asyncio.sleep(0.1)
    assert answer["supported"]
    assert "14 days" in answer["answer"]
    assert rag.check_citations(answer).valid
    assert (unknown["answer"], unknown["supported"]) == (None, False)
    spans = telemetry.recorder.spans()
    root = spans[spans["name"] == "use_case.document_qa"].iloc[0]
    mine = spans[spans["trace_id"] == root["trace_id"]]
    assert {
        "use_case.document_qa", "api.query.process", "rag.query", "rag.query.process", "rag.embedding.generate",
        "gateway.embeddings.process", "rag.vector.search", "rag.response.generate", "gateway.generate",
        "gateway.worker.process",
    } <= set(mine["name"])  # fmt: skip
    process = mine[mine["name"] == "api.query.process"].iloc[0]["attributes"]
    assert process["user.id"] == "user-1"
    assert process["response.received"]
    assert process["response.tokens"] == answer["metadata"]["tokens"]["total"]
    assert "refunds given" not in str(mine["attributes"].tolist())
    counted = telemetry.recorder.metrics()
    assert "api.queries.answered" in set(counted["name"])
