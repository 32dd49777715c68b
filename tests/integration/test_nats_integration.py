"""Components reach each other through NATS: messages, queues, load sharing, and errors that are told."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rag_stand_in import StandIn
from samples import sample

from kit.catalogue import AGENT_TASKS, GATEWAY_REQUESTS, JOBS_DEAD, JOBS_RETRIED, RAG_QUERIES, JobPolicy
from kit.components import gateway, rag
from kit.components.agents import Agent
from kit.errors import DeadlineExceeded, JobDead, NoResponders, RemoteError
from kit.nats import Bus, Message, connect
from kit.nats.server import Server

QUESTION = "[1] Copying\nThe shutil module contains a copyfile() function.\n\nQuestion: How do I copy a file?"


async def test_nats_agent_messaging(tenant_bus: Bus, other_bus: Bus) -> None:
    ada, bob, carol = (Agent(tenant_bus, name) for name in ("ada", "bob", "carol"))
    async with await gateway.serve(tenant_bus), ada, bob, carol, Agent(other_bus, "bob") as namesake:
        # Direct: each once, to the one that is meant.
        sent = [await ada.send("bob", f"to bob {number}", kind="note") for number in range(20)]
        heard = [await bob.receive(10.0) for _ in sent]
        assert sorted(message.message_id for message in heard) == sorted(sent)
        assert {(message.source, message.target, message.kind) for message in heard} == {("ada", "bob", "note")}
        # To all: everybody of the tenant but the sender.
        await ada.broadcast("to all")
        assert [str(await agent.receive(10.0)) for agent in (bob, carol)] == ["to all"] * 2
        # Asked and waited for: the answer is thought out by a model, through the gateway.
        reply = await ada.ask("bob", QUESTION, timeout=60.0)
        assert (reply.source, reply.kind) == ("bob", "answer")
        assert "copyfile()" in str(reply)
        assert str(await bob.receive(10.0)) == QUESTION
        for agent in (ada, bob, carol, namesake):  # nobody has heard anything else, least of all another tenant
            with pytest.raises(TimeoutError):
                await agent.receive(0.1)


async def test_nats_rag_queue(tenant_bus: Bus, tmp_path: Path) -> None:
    documents = [{"document_id": f"d{n}", "content": f"Bicycle number {n} is blue."} for n in range(40)]
    async with StandIn(tenant_bus):
        waiting = asyncio.create_task(rag.ingest_documents(tenant_bus, documents))  # nobody works on them yet
        await asyncio.sleep(0.2)
        assert not waiting.done()
        async with await rag.serve(tenant_bus, uri=tmp_path), await rag.serve(tenant_bus, uri=tmp_path):
            ingestion = await asyncio.wait_for(waiting, 30.0)
            assert ingestion.count("indexed") == 40
            found = await rag.query(tenant_bus, "Bicycle number 7", generate=False, top_k=40)
            ids = Counter(source["document_id"] for source in found["sources"])
            assert ids == Counter(document["document_id"] for document in documents)  # each once, two workers or not
        with pytest.raises(NoResponders):
            await rag.query(tenant_bus, "Is anybody there?")


async def test_nats_gateway_queuing(server: Server, tenant_bus: Bus) -> None:
    who = server.credentials(tenant_bus.tenant_id)
    asked = [{"prompt": f"{QUESTION} {n}", "request_id": f"r{n}", "cache": False} for n in range(24)]
    early = asyncio.create_task(gateway.generate(tenant_bus, **asked[0]))
    await asyncio.sleep(0.2)
    assert not early.done()  # the queue keeps it: no worker is there
    async with (
        await connect(server.url, tenant_id=tenant_bus.tenant_id, user=who.user, password=who.password) as connection,
        Bus(connection, tenant_bus.tenant_id, tenant_bus.telemetry) as second,
        await gateway.serve(tenant_bus, concurrency=1) as one,
        await gateway.serve(second, concurrency=1) as two,
    ):
        first = await early
        rest = await asyncio.gather(*(gateway.generate(tenant_bus, **request) for request in asked[1:]))
        again = await gateway.generate(tenant_bus, **asked[0])  # under the id it had: the same request
        handled = [
            sum(worker.handled for worker in service.workers if worker.operation is GATEWAY_REQUESTS)
            for service in (one, two)
        ]
    answers = [first, *rest]
    assert [answer["request_id"] for answer in answers] == [request["request_id"] for request in asked]
    assert min(handled) > 0
    assert again["timestamp"] == first["timestamp"]


async def test_nats_error_handling(tenant_bus: Bus, telemetry: Any) -> None:
    quick = replace(AGENT_TASKS, policy=JobPolicy(ack_wait=1.0, max_attempts=3, backoff=(0.02,)))
    tried: Counter[str] = Counter()

    async def work(message: Message) -> dict[str, Any]:
        tried[message.data["task_id"]] += 1
        if message.data["task_id"] == "hopeless" or tried[message.data["task_id"]] == 1:
            raise ConnectionError("the tool is away")
        return sample("agent_result", task_id=message.data["task_id"])

    async def refuse(message: Message) -> dict[str, Any]:
        if message.data["query_id"] == "slow":
            await asyncio.sleep(0.4)
        raise LookupError("no such collection")

    await tenant_bus.work(quick, work, concurrency=4)
    await tenant_bus.serve(RAG_QUERIES, refuse)
    recovered = await tenant_bus.run(quick, sample("agent_task", task_id="flaky"))
    assert recovered.data["task_id"] == "flaky"
    with pytest.raises(JobDead) as dead:
        await tenant_bus.run(quick, sample("agent_task", task_id="hopeless"), message_id="h")
    assert (dead.value.error_type, dead.value.attempts) == ("ConnectionError", 3)
    (letter,) = await tenant_bus.dead_letters(quick)
    assert (letter.message_id, letter.reason, letter.data["task_id"]) == ("h", "attempts_exhausted", "hopeless")
    with pytest.raises(RemoteError, match="LookupError: no such collection"):
        await tenant_bus.request(RAG_QUERIES, sample("rag_query", tenant_id=tenant_bus.tenant_id))
    with pytest.raises(DeadlineExceeded):
        await tenant_bus.request(
            RAG_QUERIES, sample("rag_query", tenant_id=tenant_bus.tenant_id, query_id="slow"), timeout=0.1
        )
    assert telemetry.recorder.total(JOBS_RETRIED.name) == 3
    assert telemetry.recorder.total(JOBS_DEAD.name) == 1
