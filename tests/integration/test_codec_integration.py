"""What components send keeps its contract on the wire, and what does not keep it goes no further."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rag_stand_in import StandIn
from samples import eventually, sample

from kit import codec
from kit.catalogue import (
    AGENT_MESSAGE,
    AGENT_RESULTS,
    AGENT_TASKS,
    GATEWAY_EMBEDDINGS,
    GATEWAY_REQUESTS,
    MESSAGES_REFUSED,
    RAG_INGEST,
    RAG_QUERIES,
    JobPolicy,
)
from kit.components import gateway, rag
from kit.components.agents import Agent, AgentManager
from kit.components.agents.tasks import TaskWorker
from kit.errors import ContractViolation, MigrationError, RemoteError
from kit.nats import Bus, Message

OLD = Path(__file__).resolve().parents[2] / "data" / "contracts" / "llm_request" / "1.0" / "valid" / "minimal.json"


async def raw(bus: Bus, subject: str) -> list[bytes]:
    """What a client that knows nothing of the kit sees on a subject."""
    seen: list[bytes] = []

    async def note(message: Any) -> None:
        seen.append(bytes(message.data))

    await bus.connection.subscribe(subject, note)
    return seen


async def test_codec_agent_serialization(tenant_bus: Bus, telemetry: Any) -> None:
    subject = AGENT_MESSAGE.subject(tenant_bus.tenant_id, "bob")
    said, tasks, results = [
        await raw(tenant_bus, one)
        for one in (
            subject, AGENT_TASKS.subject(tenant_bus.tenant_id, "bob"), AGENT_RESULTS.subject(tenant_bus.tenant_id),
        )
    ]  # fmt: skip
    content, depth = 'Grüße, 世界: \u2028 \\ " 🐍', {"depth": {"of": [1, 2.5, None]}}
    async with Agent(tenant_bus, "ada") as ada, Agent(tenant_bus, "bob") as bob:
        message_id = await ada.send("bob", content, kind="greeting", metadata=depth)
        heard = await bob.receive(10.0)
        assert (heard.message_id, str(heard), heard.kind, heard.metadata) == (message_id, content, "greeting", depth)
        document = codec.loads(said[0])
        assert (document["message_type"], document["schema_version"]) == ("agent_message", "1.0")
        assert document["data"].keys() == {
            "message_id", "source_agent_id", "target_agent_id", "content", "message_type", "timestamp", "metadata",
        }  # fmt: skip
        assert codec.encode("agent_message", document["data"]) == said[0]
        # What breaks the contract reaches no agent, whoever sent it.
        broken = codec.dumps({**document, "data": {**document["data"], "content": 7}})
        await tenant_bus.connection.client.publish(subject, broken)
        await eventually(lambda: telemetry.recorder.total(MESSAGES_REFUSED.name) == 1)
        with pytest.raises(TimeoutError):
            await bob.receive(0.1)

        @bob.task("weigh")
        async def weigh(_: Agent, task: dict[str, Any]) -> dict[str, Any]:
            return {"weighed": task["parameters"]}

        await TaskWorker(tenant_bus, {"bob": bob}).start()
        task = await AgentManager(tenant_bus).submit_task(task_type="weigh", parameters=depth, agent_id="bob")
        result = await task.result(10.0)
    assert result.output == {"weighed": depth}
    (asked,) = (codec.decode(payload) for payload in tasks)
    (told,) = (codec.decode(payload) for payload in await eventually(lambda: results))
    assert (asked.message_type, asked.data["parameters"], asked.data["agent_id"]) == ("agent_task", depth, "bob")
    assert {"task_id", "agent_id", "task_type", "parameters", "priority", "timestamp"} <= asked.data.keys()
    assert (told.message_type, told.data["task_id"]) == ("agent_result", task.task_id)
    assert told.data["output"] == result.output


async def test_codec_rag_payload(tenant_bus: Bus, tmp_path: Path) -> None:
    wire = await raw(tenant_bus, RAG_INGEST.subject(tenant_bus.tenant_id))
    answers = await raw(tenant_bus, "_INBOX.>")
    text = "Bicycles are rented by the hour, in the café. " * 3
    document = {"document_id": "rent", "content": text, "metadata": {"year": 2024, "tags": ["a", "b"]}}
    async with StandIn(tenant_bus) as stand_in, await rag.serve(tenant_bus, uri=tmp_path):
        await rag.ingest_documents(tenant_bus, [document])
        vector = np.linspace(-1, 1, 64, dtype=np.float32)
        asked = sample("rag_query", embedding=vector, parameters={"generate": False}, tenant_id=tenant_bus.tenant_id)
        queries = await raw(tenant_bus, RAG_QUERIES.subject(tenant_bus.tenant_id))
        found = (await tenant_bus.request(RAG_QUERIES, asked)).data
        embedded = await gateway.embed(tenant_bus, ["a bicycle"])
        assert any(request["operation"] == GATEWAY_EMBEDDINGS.name for request in stand_in.requests)
    sent = codec.decode(wire[0])
    assert (sent.message_type, sent.data["content"], sent.data["metadata"]) == (
        "rag_document",
        text,
        document["metadata"],
    )
    # Vectors go as raw little-endian float32 after the JSON, and arrive as they were, bit for bit.
    head, _, tail = queries[0].partition(b"\0")
    assert codec.loads(head)["message_type"] == "rag_query"
    assert tail == vector.astype("<f4").tobytes()
    assert codec.decode(queries[0]).data["embedding"].dtype == np.float32
    assert found["sources"][0]["document_id"] == "rent"
    carried = next(codec.decode(answer).data for answer in reversed(answers) if b"embedding_response" in answer[:200])
    assert np.array_equal(carried["embeddings"], embedded)


async def test_codec_schema_validation(tenant_bus: Bus, telemetry: Any) -> None:
    handled: list[Message] = []

    async def answer(message: Message) -> dict[str, Any]:
        handled.append(message)
        return sample("rag_result") | {"nonsense": True}

    async def work(message: Message) -> dict[str, Any]:
        handled.append(message)
        return sample("agent_result")

    await tenant_bus.serve(RAG_QUERIES, answer)
    await tenant_bus.work(AGENT_TASKS, work)
    wire = await raw(tenant_bus, "ai.>")
    for row, fault in [
        (RAG_QUERIES, sample("rag_query", tenant_id=tenant_bus.tenant_id, parameters={"top_k": -1})),
        (RAG_QUERIES, sample("rag_query", tenant_id=tenant_bus.tenant_id) | {"surprise": 1}),
    ]:
        with pytest.raises(ContractViolation) as violated:
            await tenant_bus.request(row, fault)
        assert violated.value.path
    assert wire == []  # a sender's fault never leaves its process
    # Another client sends what it likes: nobody handles it, and it is told with the path of the fault.
    subject = RAG_QUERIES.subject(tenant_bus.tenant_id)
    broken = codec.dumps({"schema_version": "1.0", "message_type": "rag_query", "data": {"query": 7}})
    told = codec.decode((await tenant_bus.connection.request(subject, broken, timeout=5.0)).data)
    assert (told.message_type, told.data["error_type"], told.data["retryable"]) == ("error", "ContractViolation", False)
    job = codec.dumps({"schema_version": "1.0", "message_type": "agent_task", "data": {"task_id": []}})
    valid = await tenant_bus.enqueue(AGENT_TASKS, sample("agent_task"))
    await valid.result(timeout=5.0)
    await tenant_bus.connection.client.jetstream().publish(AGENT_TASKS.subject(tenant_bus.tenant_id), job)
    (letter,) = await eventually(lambda: tenant_bus.dead_letters(AGENT_TASKS))
    assert (letter.reason, letter.error_type, letter.attempts) == ("contract_violation", "ContractViolation", 1)
    assert letter.payload == job
    with pytest.raises(RemoteError, match="ContractViolation"):  # a handler's answer keeps its contract too
        await tenant_bus.request(RAG_QUERIES, sample("rag_query", tenant_id=tenant_bus.tenant_id))
    assert len(handled) == 2
    assert telemetry.recorder.total(MESSAGES_REFUSED.name) == 2


async def test_codec_versioning(tenant_bus: Bus) -> None:
    seen: list[Message] = []
    quick = replace(GATEWAY_REQUESTS, policy=JobPolicy(max_attempts=2, backoff=(0.02,)))

    async def work(message: Message) -> dict[str, Any]:
        seen.append(message)
        return sample("llm_response", request_id=message.data["request_id"])

    await tenant_bus.work(quick, work)
    stream, subject = tenant_bus.connection.client.jetstream(), quick.subject(tenant_bus.tenant_id)
    old = codec.decode(OLD.read_bytes())
    old.data["tenant_id"] = tenant_bus.tenant_id
    await stream.publish(subject, codec.encode("llm_request", old.data, "1.0"))
    await eventually(lambda: len(seen) == 1)
    # A handler sees the latest version, whatever was written.
    assert seen[0].schema_version == "1.2"
    assert codec.migrate(old, "1.2").data == seen[0].data
    assert codec.migrate(codec.migrate(old, "1.2"), "1.0").data == old.data
    newer = codec.loads(codec.encode("llm_request", sample("llm_request", tenant_id=tenant_bus.tenant_id)))
    newer["schema_version"], newer["data"]["added_later"] = "1.9", "kept"
    await stream.publish(subject, codec.dumps(newer))
    await eventually(lambda: len(seen) == 2)
    assert seen[1].data["added_later"] == "kept"
    newer["schema_version"] = "2.0"  # an unknown major is put aside, never read as something else
    await stream.publish(subject, codec.dumps(newer))
    (letter,) = await eventually(lambda: tenant_bus.dead_letters(quick))
    assert (letter.reason, letter.error_type) == ("unknown_contract", "UnknownContract")
    assert letter.payload == codec.dumps(newer)
    assert len(seen) == 2
    with pytest.raises(MigrationError):
        codec.migrate(
            codec.Envelope("llm_request", "1.2", sample("llm_request", tenant_id=tenant_bus.tenant_id, tools=[])), "1.0"
        )
