"""No subject, key, name or header of whatever length takes a connection off the server.

nats-server closes a connection for good when a control line exceeds 4,096 bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest
from job_worker import QUICK
from samples import eventually, sample

from kit import codec
from kit.catalogue import AGENT_TASKS, RAG_QUERIES, RAG_STATUS
from kit.components.gateway.client import provider_health
from kit.components.gateway.events import Events
from kit.errors import ConfigurationError
from kit.nats import Bus, Message, Server
from kit.nats.connection import Connection
from kit.nats.ids import is_inbox

LONG = 5000
CLAIM = {"bucket": "objects", "size": 1, "sha256": "-"}
REPLIES = [
    "x" * LONG,
    "x" * 4070,
    "x" * 1000,
    "é" * 2040,
    "a." * 2000 + "a",
    "$JS.API.STREAM.DELETE.X",
    "a..b",
    "a\x01b",
    "",
]


async def ignore(*_: Any) -> None:
    return None


SENDERS: dict[str, Callable[[Bus, str], Awaitable[Any]]] = {
    "publish": lambda bus, name: bus.connection.publish(name, b"x"),
    "headers": lambda bus, name: bus.connection.publish(name, b"x", headers={"A": "1"}),
    "reply": lambda bus, name: bus.connection.publish("a", b"x", reply=name),
    "confirm": lambda bus, name: bus.connection.publish(name, b"x", confirm=2.0),
    "request": lambda bus, name: bus.connection.request(name, b"x", timeout=2.0),
    "subscribe": lambda bus, name: bus.connection.subscribe(name, ignore),
    "queue": lambda bus, name: bus.connection.subscribe("a", ignore, queue=name),
    "bus queue": lambda bus, name: bus.subscribe(RAG_STATUS, ignore, queue=name),
    "message id": lambda bus, name: bus.enqueue(AGENT_TASKS, sample("agent_task"), message_id=name),
    "jetstream": lambda bus, name: bus.connection.jetstream().publish(name, b"x"),
    "get": lambda bus, name: got(bus, name),
    "put object": lambda bus, name: bus.put_object(name, b"x"),
    "get object": lambda bus, name: bus.get_object(CLAIM | {"name": name}),
    "delete object": lambda bus, name: bus.delete_object(CLAIM | {"name": name}),
}


async def got(bus: Bus, key: str) -> None:
    await (await bus.store("things")).get(key)


@pytest.fixture
async def raw(tenant_bus: Bus, server: Server) -> AsyncIterator[nats.NATS]:
    """A bare client in the same account."""
    who = server.credentials(tenant_bus.tenant_id)
    client = await nats.connect(server.url, user=who.user, password=who.password)
    yield client
    await client.close()


async def lives(connection: Connection) -> None:
    await connection.flush()
    assert (connection.state, connection.counters.disconnects) == ("connected", 0)


@pytest.mark.parametrize("name", ["k" * LONG, "k." * LONG + "k", "é" * 2100, "\U0001f600" * 1100, "\ud800"],
                         ids=["letters", "tokens", "accents", "emoji", "surrogate"])  # fmt: skip
@pytest.mark.parametrize("send", SENDERS.values(), ids=list(SENDERS))
async def test_what_is_too_long_is_refused_by_name(
    tenant_bus: Bus, send: Callable[[Bus, str], Awaitable[Any]], name: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        await send(tenant_bus, name)
    assert len(str(raised.value)) < 16 * LONG
    await lives(tenant_bus.connection)


@pytest.mark.parametrize("headers", [None, {"A": "1" * 1000}], ids=["bare", "headers"])
@pytest.mark.parametrize("reply", [0, 2000])
async def test_the_longest_subject_that_is_sent_is_one_that_the_server_takes(
    tenant_bus: Bus, reply: int, headers: dict[str, str] | None
) -> None:
    sent = 0
    for length in range(4000 - reply, 4110 - reply):
        try:
            await tenant_bus.connection.publish("s" * length, b"x" * 90_000, reply="r" * reply, headers=headers)
            sent += 1
        except ConfigurationError:
            break
    assert sent > 50
    await lives(tenant_bus.connection)
    with pytest.raises(ConfigurationError):
        await tenant_bus.connection.publish("s" * (4097 - reply), b"", reply="r" * reply, headers=headers)


@pytest.mark.parametrize("value", ["x" * 16_385, "x" * 900_000, "\ud800"], ids=["long", "huge", "surrogate"])
async def test_a_header_that_cannot_be_sent_is_refused_by_name(tenant_bus: Bus, value: str) -> None:
    with pytest.raises(ConfigurationError, match="X-Mine"):
        await tenant_bus.connection.publish("a", b"x", headers={"X-Mine": value})
    await tenant_bus.connection.publish("a", b"x", headers={"X-Mine": "x" * 16_384})
    await lives(tenant_bus.connection)


@pytest.mark.parametrize("reply", REPLIES)
def test_what_is_no_inbox_is_none(reply: str) -> None:
    assert not is_inbox(reply)


@pytest.mark.parametrize("name", ["_INBOX.abc.1", "results.caller-1.x=/y", "a" * 255])
def test_an_inbox_is_one(name: str) -> None:
    assert is_inbox(name)


@pytest.mark.parametrize("header", ["Kit-Reply", "Kit-Chunks"])
@pytest.mark.parametrize("reply", [reply for reply in REPLIES if reply.isprintable()][:6])
async def test_a_job_with_a_foreign_reply_is_done_once_and_its_worker_lives(
    tenant_bus: Bus, raw: nats.NATS, header: str, reply: str
) -> None:
    seen: list[str | None] = []

    async def do(message: Message) -> dict[str, Any]:
        seen.append(message.message_id)
        await message.emit(sample("llm_chunk"))
        return sample("agent_result")

    async with await tenant_bus.work(QUICK, do):
        body = codec.encode(QUICK.message_type, sample(QUICK.message_type))
        headers = {header: reply, "Nats-Msg-Id": "m1"}
        await raw.jetstream().publish(QUICK.subject(tenant_bus.tenant_id), body, headers=headers)
        await eventually(lambda: seen)
        await eventually(lambda: backlog_is_empty(tenant_bus))
        await lives(tenant_bus.connection)
    assert seen == ["m1"]


async def backlog_is_empty(bus: Bus) -> bool:
    return not sum((await bus.backlog(QUICK)).values())


@pytest.mark.parametrize("length", [256, 1000, 4050, 4060])
async def test_a_request_with_a_foreign_reply_harms_nobody(tenant_bus: Bus, raw: nats.NATS, length: int) -> None:
    async def answer(_: Message) -> dict[str, Any]:
        return sample("rag_result")

    async with await tenant_bus.serve(RAG_QUERIES, answer) as worker:
        body = codec.encode("rag_query", sample("rag_query", tenant_id=tenant_bus.tenant_id))
        subject = RAG_QUERIES.subject(tenant_bus.tenant_id)
        await raw.publish(subject, body, reply="r" * (length - len(subject)))
        await raw.flush()
        await eventually(lambda: worker.handled == 1)
        assert (
            await tenant_bus.request(RAG_QUERIES, sample("rag_query", tenant_id=tenant_bus.tenant_id), timeout=5)
        ).data == sample("rag_result")
        await lives(tenant_bus.connection)


@pytest.mark.parametrize("model", ["\x01" * 200, "\U0001f600" * 200, "é\x01" * 100, "\x01" * 99 + "/" + "\x01" * 100])
async def test_the_health_of_a_model_of_any_name_is_kept(tenant_bus: Bus, model: str) -> None:
    events = Events(tenant_bus, "worker-1", 1.0)
    health = sample("provider_health", model=model, provider=model, worker_id="worker-1")
    await asyncio.wait_for(events._health(health), 5)
    frame = await provider_health(tenant_bus)
    assert list(frame["model"]) == [model]
    await lives(tenant_bus.connection)


async def test_a_claim_makes_no_bucket(tenant_bus: Bus) -> None:
    from kit.errors import BusError

    claim = CLAIM | {"name": "a", "bucket": "nobody-made-it"}
    with pytest.raises(BusError, match="is not in nobody-made-it"):
        await tenant_bus.get_object(claim)
    await tenant_bus.delete_object(claim)
    assert "OBJ_nobody-made-it" not in [
        info.config.name for info in await tenant_bus.connection.jetstream().streams_info()
    ]
