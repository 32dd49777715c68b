"""An account is one tenant's: the first claims it, others are refused by name; data of another tenant do not travel."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import nats
import pytest
from samples import eventually, sample

import kit
from kit import codec
from kit.catalogue import LLMOPS_OPERATIONS, RAG_EMBEDDINGS, RAG_INGEST, RAG_QUERIES, RAG_STATUS
from kit.errors import AccountTaken, CodecError, ConfigurationError, ConnectError, ForeignTenant, JobDead, RemoteError
from kit.nats.bus import Bus
from kit.nats.child import find_binary
from kit.nats.config import Limits
from kit.nats.connection import connect
from kit.nats.server import Server


@pytest.fixture
def shared(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A plain nats-server with JetStream and one account for everybody."""
    ports = tmp_path / "ports"
    ports.mkdir()
    arguments = ["-js", "-a", "127.0.0.1", "-p", "-1", "-sd", str(tmp_path / "store"), "--ports_file_dir", str(ports)]
    process = subprocess.Popen([str(find_binary()), *arguments], stderr=subprocess.DEVNULL)
    try:
        while not (found := list(ports.glob("*.ports"))) or '"nats"' not in found[0].read_text():
            assert process.poll() is None
        url = str(codec.loads(found[0].read_bytes())["nats"][0])
        monkeypatch.setenv("NATS_URL", url)
        yield url
    finally:
        process.kill()
        process.wait()


# --- the account ------------------------------------------------------------------------------------------------


async def test_the_first_tenant_claims_the_account_and_others_are_refused_by_name(shared: str) -> None:
    async with kit.start("acme") as lab:
        await (await lab.bus.store("notes")).put("key", b"acme's")
        for enter in (
            lambda: kit.start("globex"),
            lambda: kit.start("globex", elsewhere=True),
            lambda: lab.tenant("globex"),
            lambda: connect(shared, tenant_id="globex"),
        ):
            with pytest.raises(AccountTaken, match="belongs to tenant 'acme': tenant 'globex' needs") as caught:
                await enter()
            assert (caught.value.owner, caught.value.tenant_id) == ("acme", "globex")
        with pytest.raises(ConfigurationError, match="belongs to tenant 'acme'"):
            Bus(lab.bus.connection, "globex", lab.telemetry)
    with pytest.raises(AccountTaken):  # also when acme is away
        await kit.start("globex")
    async with kit.start("acme") as lab:
        entry = await (await lab.bus.store("notes")).get("key")
        assert entry is not None
        assert entry.value == b"acme's"


@pytest.mark.parametrize(
    "command",
    [
        ["worker", "prompts", "--tenant", "globex"],
        ["dead-letters", "RAG_INGEST", "--tenant", "globex"],
        ["ask", "What is this?", "--tenant", "globex"],
    ],
)
async def test_every_command_is_refused_the_account_of_another_tenant(shared: str, command: list[str]) -> None:
    async with await connect(shared, tenant_id="acme"):
        pass
    ended = await asyncio.to_thread(
        partial(subprocess.run, capture_output=True, text=True, timeout=60, check=False),
        [sys.executable, "-m", "kit", *command],
        env={**os.environ, "NATS_URL": shared},
    )
    assert ended.returncode == 1
    assert f"kit {command[0]}: this account belongs to tenant 'acme'" in ended.stderr


async def test_of_many_that_come_at_once_one_claims_the_account(shared: str) -> None:
    tenants = [f"tenant-{number}" for number in range(8)] * 2
    made = await asyncio.gather(*(connect(shared, tenant_id=tenant) for tenant in tenants), return_exceptions=True)
    got = {tenant for tenant, one in zip(tenants, made, strict=True) if not isinstance(one, BaseException)}
    assert len(got) == 1
    for one in made:
        if isinstance(one, BaseException):
            assert isinstance(one, AccountTaken)
            assert {one.owner} == got
        else:
            await one.close()


async def test_the_credentials_of_another_tenants_account_are_refused(server: Server) -> None:
    async with await server.connect("acme"):
        pass
    with pytest.raises(AccountTaken, match="belongs to tenant 'acme'"):
        await connect(server.url, tenant_id="globex", credentials=server.credentials("acme"))


# --- the data ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def raw(server: Server) -> AsyncIterator[nats.NATS]:
    """Another program in acme's account."""
    who = server.credentials("acme")
    client = await nats.connect(server.url, user=who.user, password=who.password)
    yield client
    await client.close()


@pytest.mark.parametrize(
    ("verb", "row", "message_type"),
    [
        ("publish", RAG_STATUS, "rag_status"),
        ("publish", LLMOPS_OPERATIONS, "llm_operation"),
        ("request", RAG_QUERIES, "rag_query"),
        ("enqueue", RAG_INGEST, "rag_document"),
        ("run", RAG_EMBEDDINGS, "embedding_request"),
    ],
)
async def test_data_of_another_tenant_are_not_sent(bus: Bus, verb: str, row: Any, message_type: str) -> None:
    with pytest.raises(ForeignTenant, match=f"{message_type} at /tenant_id: tenant_id is not") as caught:
        await getattr(bus, verb)(row, sample(message_type, tenant_id="globex"))
    assert isinstance(caught.value, CodecError)
    for data in ([], None, "text"):
        with pytest.raises(CodecError):
            await getattr(bus, verb)(row, data)


async def test_data_of_another_tenant_are_not_handled(bus: Bus, raw: nats.NATS) -> None:
    handled: list[Any] = []
    foreign = codec.encode("rag_query", sample("rag_query", tenant_id="globex"))

    async def handle(message: Any) -> dict[str, Any]:
        handled.append(message)
        return sample("rag_result")

    async with await bus.serve(RAG_QUERIES, handle):
        answer = codec.decode((await raw.request("ai.rag.queries.acme", foreign, timeout=5)).data)
        assert (answer.message_type, answer.data["error_type"]) == ("error", "ForeignTenant")
    async with await bus.subscribe(RAG_STATUS, handle), await bus.work(RAG_INGEST, handle):
        await raw.publish("ai.rag.status.acme", codec.encode("rag_status", sample("rag_status", tenant_id="globex")))
        foreign = codec.encode("rag_document", sample("rag_document", tenant_id="globex"))
        await raw.jetstream().publish("ai.rag.ingest.acme", foreign)
        (letter,) = await eventually(lambda: bus.dead_letters(RAG_INGEST))
        assert letter.error_type == "ForeignTenant"
    assert handled == []


async def test_an_answer_of_another_tenant_is_refused(bus: Bus) -> None:
    async def handle(message: Any) -> dict[str, Any]:
        kind = "rag_result" if message.message_type == "rag_query" else "embedding_response"
        return sample(kind, tenant_id="globex")

    async with await bus.serve(RAG_QUERIES, handle), await bus.work(RAG_EMBEDDINGS, handle):
        with pytest.raises(RemoteError, match="ForeignTenant"):
            await bus.request(RAG_QUERIES, sample("rag_query"))
        with pytest.raises(JobDead, match="ForeignTenant"):
            await bus.run(RAG_EMBEDDINGS, sample("embedding_request"), timeout=30.0)


# --- what one tenant takes is not another's ---------------------------------------------------------------------


async def test_one_tenant_exhausts_nothing_of_another(telemetry: Any) -> None:
    limits = Limits(max_connections=4, max_file_store=2**30, max_memory_store=2**20, max_streams=6, max_payload=65_536)
    async with Server(tenants=("acme", "globex"), limits=limits) as server, await server.connect("acme") as acme:
        streams = acme.jetstream()
        for options in ({"max_bytes": 10 * 2**30}, {"max_bytes": 2**21, "storage": "memory"}):
            with pytest.raises(nats.js.errors.APIError, match="insufficient"):
                await streams.add_stream(name="FAT", subjects=["fat"], **options)
        await streams.add_stream(name="FAT", subjects=["fat"], max_bytes=2**29)
        for number in range(4):
            await streams.add_stream(name=f"S{number}", subjects=[f"s.{number}"])
        with pytest.raises(nats.js.errors.APIError, match="maximum"):
            await streams.add_stream(name="S4", subjects=["s.4"])
        opened = [await server.connect("acme") for _ in range(3)]
        access = {"credentials": server.credentials("acme"), "connect_timeout": 0.3}
        with pytest.raises(ConnectError, match="this account has no connections left"):
            await connect(server.url, **access)
        async with await server.connect("globex") as globex, Bus(globex, "globex", telemetry) as bus:
            await (await bus.store("notes")).put("key", b"value")
            await bus.put_object("object", b"x" * 1000)
            await bus.enqueue(RAG_INGEST, sample("rag_document", tenant_id="globex"))
            assert (await server.monitor()).server["connections"] == 6
        for connection in opened:
            await connection.close()
        await server.add_tenant("initech")
        async with await server.connect("initech") as initech:
            await initech.jetstream().add_stream(name="FAT", subjects=["fat"], max_bytes=2**29)
