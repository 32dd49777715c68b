"""The RAG service over a real server: documents become answers with sources, once, whatever fails in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rag_stand_in import StandIn, embed
from test_rag_readers import pdf

from kit import codec
from kit.catalogue import RAG_INGEST, RAG_QUERIES, RAG_RESULTS, RAG_STATUS
from kit.components import rag
from kit.components.rag import embedding
from kit.components.rag.answering import prompt
from kit.components.rag.embedding import BULK
from kit.components.rag.index import Collection, Database
from kit.components.rag.instructions import REFUSAL
from kit.errors import ConfigurationError, JobDead, RemoteError

DOCUMENTS = [
    {"document_id": "copy", "content": "The shutil module contains a copyfile() function. It copies files.",
     "metadata": {"section": "library", "year": 2024}},
    {"document_id": "sort", "content": "Use the sorted() built-in to order a list of items.",
     "metadata": {"section": "design", "year": 2020}},
    {"document_id": "refund", "title": "Refunds", "content": "Refunds are given within 14 days of purchase.",
     "metadata": {"section": "shop", "year": 2022}},
]  # fmt: skip
Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture
async def gateway(tenant_bus: Any) -> AsyncIterator[StandIn]:
    async with StandIn(tenant_bus) as stand_in:
        yield stand_in


@pytest.fixture
async def service(tenant_bus: Any, gateway: StandIn, tmp_path: Path) -> AsyncIterator[Any]:
    started = await rag.serve(tenant_bus, uri=tmp_path)
    yield started
    await started.stop()


async def table(bus: Any, uri: Path) -> list[dict[str, Any]]:
    """What the index holds, apart from when it was sent."""
    database = await Database.open(bus.tenant_id, uri)
    collection = await database.collection()
    rows = [] if collection is None else (await collection.rows()).drop_columns(["sent_at"]).to_pylist()
    await database.close()
    return rows


async def watch(bus: Any, operation: Any) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []

    async def take(message: Any) -> None:
        told.append(message.data)

    await bus.subscribe(operation, take)
    return told


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    for _ in range(int(seconds * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true in time")


async def test_a_question_is_answered_with_sources_that_can_be_checked(tenant_bus: Any, service: Any) -> None:
    ingestion = await rag.ingest_documents(tenant_bus, DOCUMENTS)
    assert repr(ingestion) == "<Ingestion of 3 documents: 3 indexed>"
    result = await rag.query(tenant_bus, "How are refunds given?", top_k=2)
    assert result["supported"]
    assert result["answer"] == "Refunds are given within 14 days of purchase. [1]"
    first = result["sources"][0]
    assert (first["document_id"], first["citation"], first["cited"], first["rank"]) == ("refund", 1, True, 1)
    assert first["quote"] == "Refunds are given within 14 days of purchase."
    assert first["metadata"] == {"section": "shop", "year": 2022}
    assert result["metadata"]["tokens"] == {"prompt": 27, "completion": 5, "total": 32}
    assert result["metadata"]["cost"] == pytest.approx(0.003)
    assert result["duration"] > 0
    assert result["index_version"] > 0
    checked = rag.check_citations(result)
    assert checked.valid
    assert DOCUMENTS[2]["content"][checked.claims[0].quote.start : checked.claims[0].quote.end] == first["quote"]


async def test_documents_wait_for_a_gateway_that_comes_later(
    tenant_bus: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = await rag.serve(tenant_bus, uri=tmp_path)
    told = await watch(tenant_bus, RAG_STATUS)
    jobs = [
        await tenant_bus.enqueue(RAG_INGEST, {**document, "tenant_id": tenant_bus.tenant_id, "timestamp": codec.now()})
        for document in DOCUMENTS
    ]
    await asyncio.sleep(sum(RAG_INGEST.policy.backoff) + 2)  # in which all attempts would have failed
    async with StandIn(tenant_bus):
        results = [(await job.result(20)).data for job in jobs]
    await service.stop()
    assert [(result["status"], result["attempt"]) for result in results] == [("indexed", 1)] * len(jobs)
    assert "failed" not in [status["status"] for status in told]
    assert caplog.text.count("documents wait for a gateway") == 1


async def test_documents_do_not_wait_for_ever_for_a_gateway(
    tenant_bus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "_GATEWAY_SECONDS", 0.3)
    service = await rag.serve(tenant_bus, uri=tmp_path)
    ingestion = await rag.ingest_documents(tenant_bus, DOCUMENTS[:1])
    await service.stop()
    assert "nobody serves" in ingestion.failures["copy"]


async def test_what_the_documents_do_not_support_is_no_answer(tenant_bus: Any, service: Any, gateway: StandIn) -> None:
    await rag.ingest_documents(tenant_bus, DOCUMENTS)
    for said, reason in [
        (REFUSAL, "do not support"),
        ("I think it is Paris.", "cites no passage"),
        ("Paris is the capital of France. [1]", "support 0%"),
        ("Refunds are given within 99 days of purchase. [1]", "support 40%"),
        ("", "do not support"),
        ("It is so. [9]", "cites no passage"),
    ]:
        gateway.say = lambda _, said=said: said
        result = await rag.query(tenant_bus, "How are refunds given?")
        assert (result["answer"], result["supported"]) == (None, False)
        assert reason in result["reason"]
        assert result["sources"]
    gateway.say = lambda _: "Refunds are given within 99 days of purchase. [1]"
    assert (await rag.query(tenant_bus, "How are refunds given?", min_support=0.3))["supported"]


async def test_nothing_found_is_told_without_asking_a_model(tenant_bus: Any, service: Any, gateway: StandIn) -> None:
    assert (await rag.query(tenant_bus, "Anything?"))["reason"] == "there are no documents yet"
    assert gateway.requests == []
    await rag.ingest_documents(tenant_bus, DOCUMENTS)
    gateway.requests.clear()
    far = await rag.query(tenant_bus, "How are refunds given?", similarity_threshold=0.999)
    assert far["reason"] == "no passage passes similarity_threshold"
    none = await rag.query(tenant_bus, "refunds", filters=rag.field("year") > 3000)
    assert none["reason"] == "no passage passes filters"
    assert (await rag.query(tenant_bus, "zzz", mode="text"))["reason"] == "no passage was found"
    assert {request["operation"] for request in gateway.requests} == {"GATEWAY_EMBEDDINGS"}
    assert (await rag.query(tenant_bus, "refunds", collection="other"))["reason"] == "there are no documents yet"


async def test_parameters_shape_the_search_and_the_question(tenant_bus: Any, service: Any, gateway: StandIn) -> None:
    await rag.ingest_documents(tenant_bus, DOCUMENTS)
    found = await rag.query(tenant_bus, "function for files", generate=False, filters=rag.field("section") != "library")
    assert {source["document_id"] for source in found["sources"]} == {"sort", "refund"}
    assert (found["answer"], found["supported"]) == (None, True)
    bare = await rag.query(
        tenant_bus, "files", generate=False, include_content=False, candidates=5, rerank=False, top_k=1
    )
    assert "content" not in bare["sources"][0]
    await rag.query(
        tenant_bus, "copy files", model="big", temperature=0.3, max_tokens=9, cache=False, max_context_tokens=1
    )
    asked = gateway.requests[-1]
    assert (asked["model"], asked["parameters"], asked["cache"]) == (
        "big",
        {"temperature": 0.3, "max_tokens": 9},
        False,
    )
    assert "[1]" in asked["messages"][1]["content"]
    assert "[2]" not in asked["messages"][1]["content"]
    own = await tenant_bus.request(RAG_QUERIES, _asked(tenant_bus, embedding=embed(["sorted list"])[0]))
    assert own.data["sources"][0]["document_id"] == "sort"


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"mode": "text", "similarity_threshold": 0.5}, "QueryRefused"),
        ({"filters": {"op": "raw", "field": "a", "value": "1=1"}}, "FilterRefused"),
        ({"embedding_model": "other"}, "EmbeddingMismatch"),
    ],
)
async def test_what_cannot_work_is_refused_by_name(
    tenant_bus: Any, service: Any, parameters: dict[str, Any], error: str
) -> None:
    await rag.ingest_documents(tenant_bus, DOCUMENTS[:1])
    with pytest.raises(RemoteError) as caught:
        await tenant_bus.request(RAG_QUERIES, _asked(tenant_bus, parameters=parameters))
    assert caught.value.error_type == error
    assert not caught.value.retryable


async def test_a_question_must_be_one(tenant_bus: Any, service: Any) -> None:
    with pytest.raises(rag.QueryRefused):
        await rag.query(tenant_bus, "  ")
    for query in (" ", "x" * 20_000):
        with pytest.raises(RemoteError, match="QueryRefused"):
            await tenant_bus.request(RAG_QUERIES, _asked(tenant_bus, query=query))


def _asked(bus: Any, **more: Any) -> dict[str, Any]:
    basis = {"query_id": "q", "query": "copy", "tenant_id": bus.tenant_id, "timestamp": codec.now()}
    return basis | {"parameters": {"generate": False}} | more


async def test_repeating_an_ingestion_gives_the_same_table(tenant_bus: Any, service: Any, tmp_path: Path) -> None:
    await rag.ingest_documents(tenant_bus, DOCUMENTS)
    before = await table(tenant_bus, tmp_path)
    again = await rag.ingest_documents(tenant_bus, DOCUMENTS)
    assert again.count("unchanged") == 3
    assert await table(tenant_bus, tmp_path) == before


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.2, 0.4])
async def test_an_interrupted_ingestion_repeated_gives_the_same_table(
    tenant_bus: Any, gateway: StandIn, tmp_path: Path, seconds: float
) -> None:
    documents = [{"document_id": f"d{n}", "content": f"Document {n} is about topic {n % 5}."} for n in range(60)]
    service = await rag.serve(tenant_bus, uri=tmp_path / "whole")
    await rag.ingest_documents(tenant_bus, documents)
    await service.stop()
    gateway.delay = 0.05
    service = await rag.serve(tenant_bus, uri=tmp_path / "cut", concurrency=4)
    interrupted = asyncio.create_task(rag.ingest_documents(tenant_bus, documents, in_flight=8))
    await asyncio.sleep(seconds)
    interrupted.cancel()
    await service.stop(0.01)
    gateway.delay = 0.0
    service = await rag.serve(tenant_bus, uri=tmp_path / "cut")
    finished = await rag.ingest_documents(tenant_bus, documents)
    assert finished.count("indexed") + finished.count("unchanged") == 60
    await service.stop()
    assert await table(tenant_bus, tmp_path / "cut") == await table(tenant_bus, tmp_path / "whole")


async def test_a_worker_that_dies_between_writing_and_telling_repeats_nothing(
    tenant_bus: Any, gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, upsert = asyncio.Event(), Collection.upsert

    async def die(self: Collection, entries: Any) -> dict[str, int]:
        await upsert(self, entries)
        written.set()
        await asyncio.sleep(60)
        raise AssertionError("it was to be cancelled")

    service = await rag.serve(tenant_bus, uri=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Collection, "upsert", die)
        interrupted = asyncio.create_task(rag.ingest_documents(tenant_bus, DOCUMENTS))
        await asyncio.wait_for(written.wait(), 10.0)
        interrupted.cancel()
        await service.stop(0.01)
    before = await table(tenant_bus, tmp_path)
    service = await rag.serve(tenant_bus, uri=tmp_path)
    finished = await rag.ingest_documents(tenant_bus, DOCUMENTS)
    assert finished.count("unchanged") + finished.count("indexed") == len(DOCUMENTS)
    await service.stop()
    after = await table(tenant_bus, tmp_path)
    assert {row["document_id"] for row in after} == {"copy", "sort", "refund"}
    assert len(after) == len(DOCUMENTS)
    assert [row for row in after if row in before] == before


async def test_a_document_that_a_dead_worker_had_indexed_is_told_as_indexed(
    tenant_bus: Any, gateway: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, upsert = asyncio.Event(), Collection.upsert

    async def die(self: Collection, entries: Any) -> dict[str, int]:
        await upsert(self, entries)
        written.set()
        raise asyncio.CancelledError

    service = await rag.serve(tenant_bus, uri=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Collection, "upsert", die)
        job = await tenant_bus.enqueue(RAG_INGEST, sent(tenant_bus, "copy", "It copies files."))
        await asyncio.wait_for(written.wait(), 10.0)
        await service.stop(0.01)
    async with await rag.serve(tenant_bus, uri=tmp_path):
        status = (await job.result(20)).data
        assert (status["status"], status["chunks"]) == ("indexed", 1)
        again = await tenant_bus.run(RAG_INGEST, sent(tenant_bus, "copy", "It copies files."), timeout=20)
        assert again.data["status"] == "unchanged"


def sent(bus: Any, document_id: str, content: str | None, timestamp: str | None = None) -> dict[str, Any]:
    """Return the message that indexes a document, or deletes it."""
    what = {"action": "delete"} if content is None else {"content": content}
    return {"document_id": document_id, "tenant_id": bus.tenant_id, "timestamp": timestamp or codec.now()} | what


@pytest.mark.parametrize("timestamp", [None, "2024-01-01T00:00:00Z", "2099-01-01T00:00:00Z"])
async def test_a_deletion_that_overtakes_its_document_holds(
    tenant_bus: Any, service: Any, gateway: StandIn, tmp_path: Path, timestamp: str | None
) -> None:
    gateway.delay = 0.3
    job = await tenant_bus.enqueue(RAG_INGEST, sent(tenant_bus, "secret", "A secret river.", timestamp))
    gone = (await tenant_bus.run(RAG_INGEST, sent(tenant_bus, "secret", None, timestamp), timeout=20)).data
    assert gone["status"] == "deleted"
    late = (await job.result(20)).data
    assert (late["status"], late["error"]["type"]) == ("failed", "DocumentSuperseded")
    assert await table(tenant_bus, tmp_path) == []
    gateway.delay = 0.0
    again = sent(tenant_bus, "secret", "A secret river.", timestamp)
    assert (await tenant_bus.run(RAG_INGEST, again, timeout=20)).data["status"] == "indexed"
    assert len(await table(tenant_bus, tmp_path)) == 1


@pytest.mark.parametrize("timestamp", ["2099-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z"])
async def test_a_document_from_the_future_can_be_replaced_and_deleted(
    tenant_bus: Any, service: Any, tmp_path: Path, timestamp: str
) -> None:
    first = sent(tenant_bus, "policy", "Refunds take 9999 days.", timestamp)
    assert (await tenant_bus.run(RAG_INGEST, first, timeout=20)).data["status"] == "indexed"
    replaced = await rag.ingest_documents(tenant_bus, [{"document_id": "policy", "content": "Refunds take 30 days."}])
    assert replaced.count("indexed") == 1, replaced.failures
    assert [row["content"] for row in await table(tenant_bus, tmp_path)] == ["Refunds take 30 days."]
    await tenant_bus.run(RAG_INGEST, sent(tenant_bus, "policy", "Refunds take 1 day.", timestamp), timeout=20)
    assert (await rag.delete_document(tenant_bus, "policy"))["status"] == "deleted"
    assert await table(tenant_bus, tmp_path) == []


async def test_an_older_message_is_told_that_it_came_too_late(tenant_bus: Any, service: Any) -> None:
    await rag.ingest_documents(tenant_bus, [{"document_id": "policy", "content": "Refunds take 30 days."}])
    older = sent(tenant_bus, "policy", "Refunds take 14 days.", "2020-01-01T00:00:00Z")
    late = (await tenant_bus.run(RAG_INGEST, older, timeout=20)).data
    assert (late["status"], late["error"]["type"]) == ("failed", "DocumentSuperseded")


async def test_an_updated_document_leaves_nothing_of_the_old_one(tenant_bus: Any, service: Any, tmp_path: Path) -> None:
    long = "\n\n".join(f"Elephants roam in herd {n}. " * 30 for n in range(6))
    await rag.ingest_documents(tenant_bus, [{"document_id": "zoo", "content": long}])
    assert len(await table(tenant_bus, tmp_path)) > 1
    (status,) = (await rag.ingest_documents(tenant_bus, [{"document_id": "zoo", "content": "Only zebras."}])).statuses
    assert status["status"] == "indexed"
    assert (status["chunks"], status["removed"] > 1) == (1, True)
    assert [row["content"] for row in await table(tenant_bus, tmp_path)] == ["Only zebras."]
    assert (await rag.delete_document(tenant_bus, "zoo"))["removed"] == 1
    assert (await rag.delete_document(tenant_bus, "zoo"))["removed"] == 0
    assert await table(tenant_bus, tmp_path) == []


async def test_everybody_may_watch(tenant_bus: Any, service: Any) -> None:
    statuses, results = await watch(tenant_bus, RAG_STATUS), await watch(tenant_bus, RAG_RESULTS)
    steps: list[rag.Progress] = []
    await rag.ingest_documents(tenant_bus, DOCUMENTS, progress=steps.append)
    await rag.query(tenant_bus, "copy files")
    await until(lambda: len(statuses) == 9 and len(results) == 1)
    assert {s["status"] for s in statuses if s["document_id"] == "copy"} == {"queued", "processing", "indexed"}
    assert [step.done for step in steps] == [1, 2, 3]
    assert steps[-1].total == 3
    assert results[0]["sources"][0]["document_id"] == "copy"


async def test_statuses_can_be_followed_one_by_one(tenant_bus: Any, service: Any) -> None:
    following = asyncio.create_task(_first_indexed(tenant_bus))
    await asyncio.sleep(0.1)
    await rag.ingest_documents(tenant_bus, DOCUMENTS[:1])
    assert await asyncio.wait_for(following, 10) == "copy"
    assert [entry async for entry in rag.watch_status(tenant_bus, timeout=0.05)] == []


async def _first_indexed(bus: Any) -> str:
    async for status in rag.watch_status(bus, timeout=10):
        if status["status"] == "indexed":
            return str(status["document_id"])
    return ""


async def test_a_folder_of_many_kinds_is_indexed(tenant_bus: Any, service: Any, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "guide.md").write_text("# Guide\n\n## Refunds\n\nGiven within 14 days.\n")
    (folder / "opening_hours.txt").write_text("From nine to five.")
    (folder / "page.html").write_text("<title>Staff</title><h1>Team</h1><p>Alice leads.</p>")
    (folder / "manual.pdf").write_bytes(pdf("Press the red button.", "Then wait."))
    (folder / "more.jsonl").write_text('{"id": "j1", "text": "Bikes are rented."}\nbroken\n')
    (folder / "empty.txt").write_text("  \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "bad.pdf").write_bytes(b"nonsense")
    (folder / "data.bin").write_bytes(b"\x00")
    ingestion = await rag.ingest_folder(tenant_bus, folder, metadata={"site": "shop"})
    kinds = {entry["document_id"]: entry["status"] for entry in ingestion.statuses}
    assert kinds == {
        "guide.md": "indexed", "opening_hours.txt": "indexed", "page.html": "indexed", "manual.pdf": "indexed",
        "j1": "indexed", "more.jsonl:2": "failed", "empty.txt": "failed", "latin.txt": "failed", "bad.pdf": "failed",
    }  # fmt: skip
    errors = {key: reason.split(":")[0] for key, reason in ingestion.failures.items()}
    assert errors == {
        "more.jsonl:2": "UnreadableDocument", "empty.txt": "EmptyDocument", "latin.txt": "BadEncoding",
        "bad.pdf": "UnreadableDocument",
    }  # fmt: skip
    assert ingestion.failures["empty.txt"] == "EmptyDocument: document 'empty.txt': there is no text in it"
    assert ingestion.skipped == ["data.bin"]
    assert ingestion.chunks == 5
    assert repr(ingestion) == "<Ingestion of 9 documents: 5 indexed, 4 failed; 1 file skipped>"
    assert set(ingestion.table()["status"]) == {"indexed", "failed"}
    found = await rag.query(tenant_bus, "red button", generate=False, filters=rag.field("site") == "shop")
    assert (found["sources"][0]["document_id"], found["sources"][0]["metadata"]["page"]) == ("manual.pdf", 1)
    assert (await rag.query(tenant_bus, "opening hours", generate=False))["sources"][0]["title"] == "opening hours"


async def test_of_two_documents_with_one_id_the_first_is_kept_and_the_other_is_told(
    tenant_bus: Any, service: Any
) -> None:
    twice = [{"document_id": "a", "content": "Lunch is at noon."}, {"document_id": "a", "content": "Dinner is at six."}]
    ingestion = await rag.ingest_documents(tenant_bus, twice)
    assert [status["status"] for status in ingestion.statuses] == ["indexed", "failed"]
    assert "'a': one before it has the same id" in ingestion.failures["a"]
    found = await rag.query(tenant_bus, "When is lunch?", generate=False)
    assert [source["content"] for source in found["sources"]] == ["Lunch is at noon."]


async def test_json_lines_are_indexed_and_a_missing_file_is_an_error(
    tenant_bus: Any, service: Any, tmp_path: Path
) -> None:
    file = tmp_path / "faq.jsonl"
    file.write_text(
        "\n".join(json.dumps({"document_id": f"q{n}", "content": f"Answer {n}.", "question": "Q?"}) for n in range(3))
    )
    assert (await rag.ingest_jsonl(tenant_bus, file)).count("indexed") == 3
    assert all("Q?" not in row["text"] for row in await table(tenant_bus, tmp_path))
    with pytest.raises(ConfigurationError):
        await rag.ingest_jsonl(tenant_bus, tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError):
        await rag.ingest_folder(tenant_bus, tmp_path / "none")
    with pytest.raises(ConfigurationError):
        await rag.ingest_documents(tenant_bus, [], in_flight=0)


async def test_a_large_document_goes_by_claim_and_its_embeddings_as_jobs(
    tenant_bus: Any, service: Any, gateway: StandIn, tmp_path: Path
) -> None:
    gateway.claims = True
    statuses = await watch(tenant_bus, RAG_STATUS)
    paragraphs = [f"Paragraph {n} tells of thing number {n * 3}. " + "It has words. " * 120 for n in range(BULK)]
    (status,) = (
        await rag.ingest_documents(tenant_bus, [{"document_id": "big", "content": "\n\n".join(paragraphs)}])
    ).statuses
    assert status["status"] == "indexed"
    assert status["chunks"] == len(await table(tenant_bus, tmp_path)) >= BULK
    kinds = [request["operation"] for request in gateway.requests]
    assert kinds.count("RAG_EMBEDDINGS") == len(kinds) >= 4
    await until(lambda: any(told["status"] == "indexed" for told in statuses))
    parts = [told["progress"] for told in statuses if told.get("stage") == "embed"]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    found = await rag.query(tenant_bus, "thing number 300", generate=False)
    assert "number 300." in found["sources"][0]["content"]


async def test_small_documents_are_embedded_together(tenant_bus: Any, service: Any, gateway: StandIn) -> None:
    gateway.delay = 0.02
    await rag.ingest_documents(tenant_bus, [{"document_id": f"d{n}", "content": f"Text {n}."} for n in range(100)])
    assert sum(len(request["texts"]) for request in gateway.requests) == 100
    assert len(gateway.requests) < 30


async def test_passages_that_come_ready_are_kept_as_they_are(tenant_bus: Any, service: Any, tmp_path: Path) -> None:
    chunks = [
        {"chunk_id": "1", "content": "First part.", "heading": "Top", "embedding": embed(["other words"])[0]},
        {"chunk_id": "2", "content": "Second part.", "start": 50, "end": 62, "embedding": embed(["Second part."])[0]},
    ]
    data = {"document_id": "cut", "tenant_id": tenant_bus.tenant_id, "timestamp": codec.now(), "chunks": chunks}
    assert (await tenant_bus.run(RAG_INGEST, data)).data["chunks"] == 2
    rows = await table(tenant_bus, tmp_path)
    assert [(row["content"], row["heading"], row["start"]) for row in rows] == [
        ("First part.", "Top", 0), ("Second part.", "", 50),
    ]  # fmt: skip
    assert np.allclose(rows[0]["vector"], embed(["other words"])[0])
    with pytest.raises(JobDead, match="EmbeddingMismatch"):
        await tenant_bus.run(RAG_INGEST, data | {"document_id": "x", "embedding_model": "someone-elses"})


async def test_a_gateway_that_fails_for_a_while_costs_time_only(
    tenant_bus: Any, service: Any, gateway: StandIn
) -> None:
    class Busy(Exception):
        retryable = True

    gateway.fail = Busy("busy")
    task = asyncio.create_task(rag.ingest_documents(tenant_bus, DOCUMENTS[:1]))
    await until(lambda: len(gateway.requests) >= 1)
    gateway.fail = None
    assert (await task).count("indexed") == 1


async def test_a_gateway_that_refuses_ends_as_a_failure_that_is_told(
    tenant_bus: Any, service: Any, gateway: StandIn
) -> None:
    class Refused(Exception):
        retryable = False

    statuses = await watch(tenant_bus, RAG_STATUS)
    gateway.fail = Refused("no such model")
    ingestion = await rag.ingest_documents(tenant_bus, DOCUMENTS[:1])
    assert ingestion.failures["copy"].startswith("ModelFailed")
    assert ingestion.statuses[0]["error"]["retryable"] is True
    await until(lambda: any(status["status"] == "failed" for status in statuses))
    assert len(await tenant_bus.dead_letters(RAG_INGEST)) == 1
    gateway.fail = None
    await rag.ingest_documents(tenant_bus, DOCUMENTS[:1])
    gateway.fail = Refused("no such model")
    with pytest.raises(RemoteError, match="ModelFailed"):
        await rag.query(tenant_bus, "copy")


async def test_documents_that_cannot_be_sent_are_failures_with_reasons(tenant_bus: Any, service: Any) -> None:
    ingestion = await rag.ingest_documents(
        tenant_bus,
        [
            {"document_id": "x" * 201, "content": "a"},
            {"document_id": "odd", "content": "a", "metadata": {"f": float("nan")}},
            {"document_id": "zip", "content": b"PK", "media_type": "application/zip"},
        ],
    )
    assert [entry["error"]["type"] for entry in ingestion.statuses] == [
        "DocumentRefused", "ContractViolation", "UnsupportedType",
    ]  # fmt: skip


ODD = [
    ({"document_id": "n", "content": None}, "its content must be text or bytes, not NoneType"),
    ({"document_id": "n", "content": float("nan")}, "its content must be text or bytes, not float"),
    ({"document_id": "n"}, "its content must be text or bytes"),
    ({"document_id": 1.5, "content": "x"}, "an id must be a text of 1 to 200 characters, or an integer"),
    ({"document_id": True, "content": "x"}, "an id must be a text"),
    ({"content": "x"}, "document 'number 4': an id must be a text"),
    ({"document_id": "x" * 201, "content": "x"}, "an id must be a text"),
    ({"document_id": "half \ud83d", "content": "x"}, "its id contains a lone surrogate"),
    ({"document_id": "n", "content": "half \ud83d"}, "its content contains a lone surrogate"),
    ({"document_id": "n", "content": "half \ud83d" * 200_000}, "its content contains a lone surrogate"),
    ({"document_id": "n", "content": "x", "title": "half \ud83d"}, "its title contains a lone surrogate"),
    ({"document_id": "n", "content": "x", "title": 7}, "rag_document at /data/title"),
    ({"document_id": "n", "content": "x", "metadata": {"a": "half \ud83d"}}, "rag_document at /data/metadata/a"),
    ({"document_id": "n", "content": "x", "metadata": {"a": object()}}, "rag_document at /data/metadata/a"),
    ({"document_id": "n", "content": "x", "metadata": {"a": "x" * 2_000_000}}, "exceed the server's max_payload"),
    ({"document_id": "n\x00", "content": "x"}, "an id must not hold NUL"),
    ({"document_id": "n", "content": "x", "colour": "red"}, "a document has no field 'colour'"),
    ("text", "a document must be a mapping or a Document, not str"),
]  # fmt: skip


@pytest.mark.parametrize(("odd", "reason"), ODD, ids=range(len(ODD)))
async def test_a_document_that_is_none_is_told_and_the_others_are_indexed(
    tenant_bus: Any, service: Any, odd: Any, reason: str
) -> None:
    good = [{"document_id": f"lamp {n}", "content": f"Lamp {n} is on."} for n in range(3)]
    done = await rag.ingest_documents(tenant_bus, [*good, odd, {"document_id": 7, "content": "A number."}])
    assert [status["status"] for status in done.statuses] == ["indexed"] * 3 + ["failed", "indexed"]
    assert done.statuses[4]["document_id"] == "7"
    assert reason in next(iter(done.failures.values()))


async def test_what_was_not_read_of_a_document_is_told(tenant_bus: Any, service: Any, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "contract.pdf").write_bytes(pdf("The contract begins in March.", "", "The deposit is two rents."))
    (folder / "marks.html").write_text("<h1></h1><nav>Home</nav>")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.txt").write_text("secret")
    done = await rag.ingest_folder(tenant_bus, folder)
    assert repr(done) == "<Ingestion of 3 documents: 1 indexed, 2 failed; notes on 1 document>"
    note = "page 2 of 3 has little or no text: scanned text is not read"
    assert done.notes == {"contract.pdf": [note]}
    assert note in done.table()["reason"].to_list()
    assert "there is no text in it" in done.failures["marks.html"]
    assert "links out of the folder" in done.failures["out.txt"]


async def test_one_text_that_no_model_takes_fails_alone(tenant_bus: Any, service: Any, gateway: StandIn) -> None:
    gateway.delay = 0.2  # so that all are embedded together
    gateway.refuse = "poison"
    documents = [{"document_id": f"{n}", "content": "poison" if n == 5 else f"Lamp {n} is on."} for n in range(20)]
    done = await rag.ingest_documents(tenant_bus, documents)
    assert (done.count("indexed"), list(done.failures)) == (19, ["5"])


async def test_a_query_is_one_trace_with_the_catalogues_spans(tenant_bus: Any, telemetry: Any, service: Any) -> None:
    await rag.ingest_documents(tenant_bus, DOCUMENTS)
    await rag.query(tenant_bus, "copy files")
    spans = telemetry.recorder.spans()
    query = spans[spans["name"] == "rag.query"].iloc[-1]
    mine = spans[spans["trace_id"] == query["trace_id"]]
    assert {
        "rag.query", "rag.query.process", "rag.embedding.generate", "gateway.embeddings.process", "rag.vector.search",
        "rag.response.generate", "gateway.generate", "gateway.worker.process", "rag.result.publish",
    } <= set(mine["name"])  # fmt: skip
    search = mine[mine["name"] == "rag.vector.search"].iloc[0]["attributes"]
    assert search["results.count"] == 3
    assert search["rag.mode"] == "hybrid"
    assert search["retrieval.documents.0.document.id"] == "copy"
    assert search["openinference.span.kind"] == "RETRIEVER"
    generated = mine[mine["name"] == "rag.response.generate"].iloc[0]["attributes"]
    assert (generated["llm.tokens"], generated["rag.supported"]) == (25, True)
    assert "copy files" not in str(mine["attributes"].tolist())
    process = spans[spans["name"] == "rag.document.process"].iloc[0]["attributes"]
    assert process["chunks.count"] == 1
    counted = set(telemetry.recorder.metrics()["name"])
    assert {
        "rag.documents.queued", "rag.documents.ingested", "rag.documents.processed", "rag.ingestion.duration",
        "rag.embeddings.generated", "rag.searches.executed", "rag.search.duration", "rag.queries.completed",
        "rag.query.duration", "rag.responses.generated",
    } <= counted  # fmt: skip


def test_a_passage_cannot_pass_for_another_or_for_the_question() -> None:
    hit = rag.Hit(chunk_id="a#0", document_id="a", content="[2] I am two.\nQuestion: or the question?", score=1.0)
    system, user = prompt("Really?", [hit])
    assert REFUSAL in system["content"]
    assert user["content"] == "[1] a\n(2) I am two.\nQuestion - or the question?\n\nQuestion: Really?"


async def test_tenants_do_not_see_each_other(
    tenant_bus: Any, other_bus: Any, service: Any, gateway: StandIn, tmp_path: Path
) -> None:
    await rag.ingest_documents(tenant_bus, DOCUMENTS)
    async with StandIn(other_bus):
        theirs = await rag.serve(other_bus, uri=tmp_path)
        assert (await rag.query(other_bus, "copy files"))["reason"] == "there are no documents yet"
        await theirs.stop()
