"""The bus carries events and requests: checked, answered or refused, in time, with one span per side per hop."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import nats
import pytest
from samples import eventually, sample

from kit import codec
from kit.catalogue import (
    AGENT_MESSAGE,
    AGENT_TASKS,
    API_QUERIES,
    EVENTS_INTERRUPTED,
    GATEWAY_HEALTH,
    LLMOPS_OPERATIONS,
    MESSAGES_REFUSED,
    PROMPT_CONTEXT,
    RAG_QUERIES,
    RAG_STATUS,
)
from kit.errors import (
    BusError,
    ComponentError,
    ConfigurationError,
    ContractViolation,
    DeadlineExceeded,
    Disconnected,
    ForeignLoopError,
    NoResponders,
    PayloadTooLarge,
    RemoteError,
)
from kit.nats import Bus, Message, Server, Worker

QUERY = sample("rag_query")
RESULT = sample("rag_result")


class Heard:
    """A handler that keeps what it gets."""

    def __init__(self, answer: dict[str, Any] | None = None) -> None:
        self.messages: list[Message] = []
        self.answer = answer
        self._news = asyncio.Event()

    async def __call__(self, message: Message) -> dict[str, Any] | None:
        self.messages.append(message)
        self._news.set()
        return self.answer

    async def until(self, count: int, seconds: float = 5.0) -> list[Message]:
        async with asyncio.timeout(seconds):
            while len(self.messages) < count:
                self._news.clear()
                await self._news.wait()
        return self.messages


async def answer(_: Message) -> dict[str, Any]:
    return RESULT


@pytest.fixture
async def raw(server: Server) -> AsyncIterator[nats.NATS]:
    """A client of tenant acme that knows nothing of the kit."""
    who = server.credentials("acme")
    client = await nats.connect(server.url, user=who.user, password=who.password)
    yield client
    await client.close()


# --- requests ---------------------------------------------------------------------------------------------------


async def test_a_request_is_answered_with_a_checked_message(bus: Bus) -> None:
    heard = Heard(RESULT)
    async with await bus.serve(RAG_QUERIES, heard):
        answered = await bus.request(RAG_QUERIES, QUERY)
    assert (answered.data, answered.message_type, answered.operation) == (RESULT, "rag_result", RAG_QUERIES)
    (got,) = heard.messages
    assert (got.data, got.message_type, got.schema_version) == (QUERY, "rag_query", codec.latest("rag_query"))
    assert (got.tenant_id, got.subject, got.attempt) == ("acme", "ai.rag.queries.acme", 1)


async def test_an_older_version_is_migrated_to_the_latest(bus: Bus, raw: nats.NATS) -> None:
    row = replace(API_QUERIES, message_type="llm_request", result_type="llm_response")
    old = codec.migrate(codec.Envelope("llm_request", "1.2", sample("llm_request")), "1.0").data
    heard = Heard(sample("llm_response"))
    async with await bus.serve(row, heard):
        await raw.request(row.subject("acme"), codec.encode("llm_request", old, "1.0"), timeout=2)
    assert heard.messages[0].schema_version == "1.2"
    assert heard.messages[0].data["messages"]


async def test_a_worker_is_active_when_serve_returns(bus: Bus, raw: nats.NATS) -> None:
    for _ in range(20):
        async with await bus.serve(RAG_QUERIES, answer):
            reply = await raw.request("ai.rag.queries.acme", codec.encode("rag_query", QUERY), timeout=2)
            assert codec.decode(reply.data).message_type == "rag_result"


async def test_nobody_serves(bus: Bus) -> None:
    with pytest.raises(NoResponders, match=r"nobody serves ai\.api\.queries\.acme"):
        await bus.request(API_QUERIES, sample("api_query"))


async def test_no_answer_within_the_deadline(bus: Bus) -> None:
    async def never(_: Message) -> dict[str, Any]:
        await asyncio.sleep(60)
        return RESULT

    worker = await bus.serve(RAG_QUERIES, never)
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.1 s"):
        await bus.request(RAG_QUERIES, QUERY, timeout=0.1)
    assert loop.time() - started < 1.0
    await worker.stop(timeout=0.0)


class Refused(ComponentError):
    retryable = False
    retry_after = 3.0


@pytest.mark.parametrize(
    ("error", "retryable"), [(ValueError("no such index"), True), (Refused("over the budget"), False)]
)
async def test_a_handlers_error_is_raised_at_the_caller(bus: Bus, error: Exception, retryable: bool) -> None:
    async def fail(_: Message) -> dict[str, Any]:
        raise error

    async with await bus.serve(RAG_QUERIES, fail):
        with pytest.raises(RemoteError) as raised:
            await bus.request(RAG_QUERIES, QUERY)
    told = raised.value
    assert (told.error_type, told.detail, told.retryable) == (type(error).__name__, str(error), retryable)


async def test_a_handler_that_cancels_itself_has_failed(bus: Bus) -> None:
    async def cancel(_: Message) -> dict[str, Any]:
        raise asyncio.CancelledError

    async with await bus.serve(RAG_QUERIES, cancel):
        for _ in range(3):
            with pytest.raises(RemoteError, match="CancelledError"):
                await bus.request(RAG_QUERIES, QUERY)


async def test_a_handler_that_breaks_the_contract_is_told(bus: Bus) -> None:
    for wrong in ({"query_id": "q"}, None):
        async with await bus.serve(RAG_QUERIES, Heard(wrong)):
            with pytest.raises(RemoteError) as raised:
                await bus.request(RAG_QUERIES, QUERY)
        assert raised.value.error_type == "ContractViolation"
        assert raised.value.retryable is False


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\x00 no envelope",
        codec.encode("rag_query", QUERY)[:-10],
        b'{"schema_version":"1.0","message_type":"rag_query","data":{"query_id":7}}',
        b'{"schema_version":"9.0","message_type":"rag_query","data":{}}',
        b'{"schema_version":"1.0","message_type":"no_such","data":{}}',
        codec.encode("rag_result", RESULT),
    ],
    ids=["empty", "bytes", "cut", "violation", "newer-major", "unknown-type", "other-type"],
)
async def test_what_cannot_be_read_is_refused_and_the_worker_lives(
    bus: Bus, raw: nats.NATS, payload: bytes, telemetry: Any
) -> None:
    heard = Heard(RESULT)
    async with await bus.serve(RAG_QUERIES, heard):
        reply = await raw.request("ai.rag.queries.acme", payload, timeout=2)
        told = codec.decode(reply.data)
        assert told.message_type == "error"
        assert told.data["retryable"] is False
        assert heard.messages == []
        assert (await bus.request(RAG_QUERIES, QUERY)).data == RESULT
    assert telemetry.recorder.total(MESSAGES_REFUSED.name, operation="RAG_QUERIES") == 1


async def test_an_undecodable_answer_is_an_error_at_the_caller(bus: Bus, raw: nats.NATS) -> None:
    async def nonsense(message: Any) -> None:
        await message.respond(b"\x01")

    await raw.subscribe("ai.rag.queries.acme", cb=nonsense)
    await raw.flush()
    await raw.flush()
    with pytest.raises(codec.CodecError):
        await bus.request(RAG_QUERIES, QUERY)


async def test_data_that_break_the_contract_are_not_sent(bus: Bus) -> None:
    heard = Heard(RESULT)
    async with await bus.serve(RAG_QUERIES, heard):
        with pytest.raises(ContractViolation) as raised:
            await bus.request(RAG_QUERIES, {"query_id": 7})
        assert raised.value.path is not None
    assert heard.messages == []


async def test_too_large_either_way(bus: Bus) -> None:
    large = "x" * bus.connection.max_payload
    async with await bus.serve(RAG_QUERIES, Heard(RESULT | {"answer": large})):
        with pytest.raises(PayloadTooLarge):
            await bus.request(RAG_QUERIES, QUERY | {"query": large})
        with pytest.raises(RemoteError) as raised:
            await bus.request(RAG_QUERIES, QUERY)
        assert raised.value.error_type == "PayloadTooLarge"
        assert bus.connection.client.is_connected


async def test_concurrency_is_bounded_and_all_are_answered(bus: Bus) -> None:
    running = most = 0

    async def count(_: Message) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return RESULT

    async with await bus.serve(RAG_QUERIES, count, concurrency=4) as worker:
        answers = await asyncio.gather(*(bus.request(RAG_QUERIES, QUERY) for _ in range(40)))
        assert worker.handled == 40
    assert most == 4
    assert all(answered.data == RESULT for answered in answers)


async def test_more_than_the_backlog_is_refused_at_once(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.nats.bus._BACKLOG", 2)
    gate = asyncio.Event()

    async def wait(_: Message) -> dict[str, Any]:
        await gate.wait()
        return RESULT

    async with await bus.serve(RAG_QUERIES, wait, concurrency=1):
        asked = [asyncio.ensure_future(bus.request(RAG_QUERIES, QUERY)) for _ in range(5)]
        done, _ = await asyncio.wait(asked, timeout=2, return_when=asyncio.FIRST_COMPLETED)
        error = next(iter(done)).exception()
        assert isinstance(error, RemoteError)
        assert (error.error_type, error.retryable) == ("Overloaded", True)
        gate.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(result, Message) for result in results) == 3


async def test_stop_lets_what_is_under_way_finish(bus: Bus) -> None:
    async def slowly(_: Message) -> dict[str, Any]:
        await asyncio.sleep(0.2)
        return RESULT

    worker = await bus.serve(RAG_QUERIES, slowly, concurrency=2)
    asked = [asyncio.ensure_future(bus.request(RAG_QUERIES, QUERY)) for _ in range(6)]
    await asyncio.sleep(0.05)
    assert worker.in_flight == 6
    await asyncio.gather(worker.stop(timeout=5.0), worker.stop())
    assert [answered.data for answered in await asyncio.gather(*asked)] == [RESULT] * 6
    with pytest.raises(NoResponders):
        await bus.request(RAG_QUERIES, QUERY)


async def test_stop_is_bounded_and_tells_the_callers(bus: Bus) -> None:
    async def never(_: Message) -> dict[str, Any]:
        await asyncio.sleep(60)
        return RESULT

    worker = await bus.serve(RAG_QUERIES, never, concurrency=1)
    asked = asyncio.ensure_future(bus.request(RAG_QUERIES, QUERY, timeout=10.0))
    await asyncio.sleep(0.05)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await worker.stop(timeout=0.1)
    assert loop.time() - started < 1.0
    with pytest.raises(RemoteError) as raised:
        await asked
    assert (raised.value.error_type, raised.value.retryable) == ("WorkerStopped", True)


async def test_workers_share_the_requests(bus: Bus) -> None:
    one, other = Heard(RESULT), Heard(RESULT)
    async with await bus.serve(RAG_QUERIES, one), await bus.serve(RAG_QUERIES, other):
        await asyncio.gather(*(bus.request(RAG_QUERIES, QUERY) for _ in range(60)))
    assert len(one.messages) + len(other.messages) == 60
    assert one.messages
    assert other.messages


async def test_what_one_handler_sets_in_its_context_no_other_sees(bus: Bus) -> None:
    user = contextvars.ContextVar("user", default="nobody")
    user.set("whoever serves")
    seen = []

    async def handler(message: Message) -> dict[str, Any]:
        seen.append(user.get())
        user.set(message.data["query_id"])
        return RESULT

    async with await bus.serve(RAG_QUERIES, handler, concurrency=1):
        for _ in range(3):
            await bus.request(RAG_QUERIES, QUERY)
    assert seen == ["whoever serves"] * 3


# --- events -----------------------------------------------------------------------------------------------------


async def test_an_event_reaches_everybody_who_listens(bus: Bus) -> None:
    status = sample("rag_status")
    one, other = Heard(), Heard()
    async with await bus.subscribe(RAG_STATUS, one), await bus.subscribe(RAG_STATUS, other):
        await bus.publish(RAG_STATUS, status)
        assert [(await heard.until(1))[0].data for heard in (one, other)] == [status, status]


async def test_a_queue_group_shares_events(bus: Bus) -> None:
    both = Heard()
    async with await bus.subscribe(RAG_STATUS, both, queue="log"), await bus.subscribe(RAG_STATUS, both, queue="log"):
        for _ in range(10):
            await bus.publish(RAG_STATUS, sample("rag_status"))
        await both.until(10)
        await bus.connection.flush()
    assert len(both.messages) == 10


async def test_events_are_heard_in_order(bus: Bus) -> None:
    seen: list[int] = []

    async def unevenly(message: Message) -> None:
        number = message.data["progress"]
        await asyncio.sleep(0.001 if number % 2 else 0)
        seen.append(number)

    async with await bus.subscribe(RAG_STATUS, unevenly):
        for number in range(20):
            await bus.publish(RAG_STATUS, sample("rag_status", progress=number / 100))
        await bus.connection.flush()
    assert seen == [number / 100 for number in range(20)]


async def test_nobody_receives_what_is_meant_for_another(bus: Bus) -> None:
    message = sample("agent_message")
    one, two, everybody = Heard(), Heard(), Heard()
    async with (
        await bus.subscribe(AGENT_MESSAGE, one, to="agent-1"),
        await bus.subscribe(AGENT_MESSAGE, two, to="agent-2"),
        await bus.subscribe(AGENT_MESSAGE, everybody),
    ):
        await bus.publish(AGENT_MESSAGE, message, to="agent-2")
        await bus.publish(AGENT_MESSAGE, message)
        assert [got.subject for got in await two.until(1)] == ["ai.agent.message.acme.agent-2"]
        assert [got.subject for got in await everybody.until(1)] == ["ai.agent.message.acme"]
        await bus.connection.flush()
    assert one.messages == []


async def test_a_handler_that_fails_on_one_event_hears_the_next(bus: Bus, telemetry: Any) -> None:
    heard = Heard()

    async def first_fails(message: Message) -> None:
        await heard(message)
        if len(heard.messages) == 1:
            raise RuntimeError("not this one")

    async with await bus.subscribe(GATEWAY_HEALTH, first_fails):
        await bus.publish(GATEWAY_HEALTH, sample("provider_health"))
        await bus.publish(GATEWAY_HEALTH, sample("provider_health"))
        await heard.until(2)
    spans = telemetry.recorder.spans()
    handled = spans[spans["name"] == GATEWAY_HEALTH.handle_span.name]
    assert list(handled["status"]) == ["error", "unset"]


async def test_stored_events_are_replayed_to_who_comes_late(tenant_bus: Bus) -> None:
    bus = tenant_bus
    for number in range(5):
        await bus.publish(
            LLMOPS_OPERATIONS, sample("llm_operation", tenant_id=tenant_bus.tenant_id, operation_id=f"op-{number}")
        )
    late, live = Heard(), Heard()
    async with await bus.subscribe(LLMOPS_OPERATIONS, late, replay=True), await bus.subscribe(LLMOPS_OPERATIONS, live):
        await bus.publish(
            LLMOPS_OPERATIONS, sample("llm_operation", tenant_id=tenant_bus.tenant_id, operation_id="op-5")
        )
        names = [message.data["operation_id"] for message in await late.until(6)]
        assert names == [f"op-{number}" for number in range(6)]
        assert [message.data["operation_id"] for message in await live.until(1)] == ["op-5"]


async def test_a_replay_goes_on_where_its_consumer_was_lost(tenant_bus: Bus) -> None:
    bus = tenant_bus
    for number in range(3):
        await bus.publish(
            LLMOPS_OPERATIONS, sample("llm_operation", tenant_id=tenant_bus.tenant_id, operation_id=f"op-{number}")
        )
    heard = Heard()
    async with await bus.subscribe(LLMOPS_OPERATIONS, heard, replay=True):
        await heard.until(3)
        js = bus.connection.jetstream()
        (consumer,) = await js.consumers_info("AI_LLMOPS_OPERATIONS")
        await js.delete_consumer("AI_LLMOPS_OPERATIONS", consumer.name)
        await bus.publish(
            LLMOPS_OPERATIONS, sample("llm_operation", tenant_id=tenant_bus.tenant_id, operation_id="op-3")
        )
        names = [message.data["operation_id"] for message in await heard.until(4)]
    assert names == [f"op-{number}" for number in range(4)]


async def test_a_durable_subscriber_misses_nothing_while_away(tenant_bus: Bus) -> None:
    bus = tenant_bus

    async def tell(name: str) -> None:
        await bus.publish(LLMOPS_OPERATIONS, sample("llm_operation", tenant_id=tenant_bus.tenant_id, operation_id=name))

    await tell("before")
    heard = Heard()
    worker = await bus.subscribe(LLMOPS_OPERATIONS, heard, durable="log")
    await tell("first")
    await heard.until(1)
    await worker.stop()
    await tell("away")
    again = Heard()
    async with await bus.subscribe(LLMOPS_OPERATIONS, again, durable="log"):
        await tell("back")
        names = [message.data["operation_id"] for message in await again.until(2)]
    assert [message.data["operation_id"] for message in heard.messages] == ["first"]
    assert names == ["away", "back"]


async def test_a_stored_event_is_stored_once_for_its_id(tenant_bus: Bus) -> None:
    for _ in range(3):
        await tenant_bus.publish(
            LLMOPS_OPERATIONS, sample("llm_operation", tenant_id=tenant_bus.tenant_id), message_id="op-1"
        )
    info = await tenant_bus.connection.jetstream().stream_info("AI_LLMOPS_OPERATIONS")
    assert info.state.messages == 1


async def test_a_durable_subscriber_that_fails_hears_the_event_again(tenant_bus: Bus) -> None:
    row = replace(LLMOPS_OPERATIONS, policy=replace(LLMOPS_OPERATIONS.policy, backoff=(0.1,), max_attempts=3))
    attempts: list[int] = []

    async def stubborn(message: Message) -> None:
        attempts.append(message.attempt)
        raise RuntimeError("never")

    async with await tenant_bus.subscribe(row, stubborn, durable="log"):
        await tenant_bus.publish(row, sample("llm_operation", tenant_id=tenant_bus.tenant_id))
        letters = await eventually(lambda: tenant_bus.dead_letters(row))
    assert attempts == [1, 2, 3]
    assert letters[0].error_type == "RuntimeError"
    # It stays for the others, and for whoever replays.
    info = await tenant_bus.connection.jetstream().stream_info("AI_LLMOPS_OPERATIONS")
    assert info.state.messages == 1


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda bus: bus.publish(AGENT_TASKS, {}), "enqueue"),
        (lambda bus: bus.publish(RAG_QUERIES, {}), "request and serve"),
        (lambda bus: bus.request(AGENT_TASKS, {}), "enqueue"),
        (lambda bus: bus.request(RAG_STATUS, {}), "publish and subscribe"),
        (lambda bus: bus.enqueue(RAG_QUERIES, {}), "request and serve"),
        (lambda bus: bus.run(RAG_STATUS, {}), "publish and subscribe"),
        (lambda bus: bus.serve(AGENT_TASKS, answer), "work"),
        (lambda bus: bus.work(RAG_QUERIES, answer), "request and serve"),
        (lambda bus: bus.subscribe(RAG_QUERIES, answer), "request and serve"),
        (lambda bus: bus.replay(RAG_QUERIES), "request and serve"),
        (lambda bus: bus.dead_letters(RAG_QUERIES), "not stored"),
        (lambda bus: bus.subscribe(RAG_STATUS, answer, durable="log"), "not stored"),
        (lambda bus: bus.subscribe(RAG_STATUS, answer, replay=True), "not stored"),
        (lambda bus: bus.publish(RAG_STATUS, {}, to="agent-1"), "no single receiver"),
        (lambda bus: bus.publish(AGENT_MESSAGE, {}, to="Agent 1"), "refused"),
        (lambda bus: bus.publish(AGENT_MESSAGE, {}, to="a.>"), "refused"),
        (lambda bus: bus.serve(RAG_QUERIES, answer, concurrency=0), "at least 1"),
        (lambda bus: bus.subscribe(LLMOPS_OPERATIONS, answer, durable="my log"), "refused"),
        (lambda bus: bus.enqueue(AGENT_TASKS, sample("agent_task"), message_id="a b"), "refused"),
        (lambda bus: bus.store("no/bucket"), "refused"),
    ],
)
async def test_wrong_use_says_what_would_be_right(bus: Bus, call: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await call(bus)


async def test_a_stream_of_an_event_is_refused(bus: Bus) -> None:
    with pytest.raises(ConfigurationError, match="publish and subscribe"):
        async for _ in bus.stream(RAG_STATUS, {}):
            pass


def test_the_tenants_id_is_checked(bus: Bus, telemetry: Any) -> None:
    for wrong in ("Acme", "a.b", ">", "", "-a", "x" * 64):
        with pytest.raises(ConfigurationError):
            Bus(bus.connection, wrong, telemetry)


async def test_another_event_loop_is_an_error_at_once(bus: Bus) -> None:
    def elsewhere() -> None:
        asyncio.run(bus.request(RAG_QUERIES, QUERY))

    with pytest.raises(ForeignLoopError, match="another event loop"):
        await asyncio.to_thread(elsewhere)


async def test_a_closed_bus_says_so(bus: Bus) -> None:
    worker = await bus.serve(RAG_QUERIES, answer)
    await bus.close()
    assert "stopped" in repr(worker)
    with pytest.raises(BusError, match="closed"):
        await bus.request(RAG_QUERIES, QUERY)
    await bus.close()


async def test_a_dead_connection_raises(server: Server, telemetry: Any) -> None:
    async with Server(tenants=("acme",)) as mortal:
        who = mortal.credentials("acme")
        from kit.nats import connect

        connection = await connect(mortal.url, tenant_id="acme", user=who.user, password=who.password)
        bus = Bus(connection, "acme", telemetry)
        await mortal.stop()
        await connection.wait_disconnected(5)
        for call in (
            bus.publish(RAG_STATUS, sample("rag_status"), timeout=0.2),
            bus.request(RAG_QUERIES, QUERY, timeout=0.2),
            bus.serve(RAG_QUERIES, answer),
        ):
            with pytest.raises(Disconnected):
                await asyncio.wait_for(call, 3)
        await connection.close()


async def test_after_a_break_it_is_said_that_events_may_have_been_missed(
    tenant_bus: Bus, telemetry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def hear(_: Message) -> None:
        return None

    async def cut() -> None:
        connection = tenant_bus.connection
        connection.client.abort()
        await connection.wait_disconnected(5)
        await connection.wait_connected(5)
        await connection.flush()

    def counted() -> float:
        return float(telemetry.recorder.total(EVENTS_INTERRUPTED.name, operation=RAG_STATUS.name))

    def warnings() -> list[str]:
        return [record.message for record in caplog.records if "may have been missed" in record.message]

    await tenant_bus.serve(RAG_QUERIES, answer)
    await tenant_bus.subscribe(LLMOPS_OPERATIONS, hear, durable="log")  # what is stored is not missed
    first = await tenant_bus.subscribe(RAG_STATUS, hear)
    await tenant_bus.subscribe(RAG_STATUS, hear, queue="some")
    await cut()
    await eventually(lambda: counted() == 2)
    subject = RAG_STATUS.subject(tenant_bus.tenant_id)
    assert warnings() == [f"events may have been missed while the connection was down: {subject}"]
    await first.stop()
    await cut()
    await eventually(lambda: counted() == 3)
    await tenant_bus.close()
    await cut()
    assert len(warnings()) == 2


# --- tenants ----------------------------------------------------------------------------------------------------


async def test_the_server_keeps_tenants_apart(bus: Bus, other_bus: Bus, server: Server) -> None:
    """A client of globex cannot ask acme's workers; listening to everything, it hears nothing; it sees no stream."""
    who = server.credentials("globex")
    spy = await nats.connect(server.url, user=who.user, password=who.password)
    heard: list[str] = []

    async def listen(message: Any) -> None:
        heard.append(message.subject)

    async with await bus.serve(RAG_QUERIES, answer), await bus.subscribe(RAG_STATUS, Heard()):
        with pytest.raises(nats.errors.NoRespondersError):
            await spy.request("ai.rag.queries.acme", codec.encode("rag_query", QUERY), timeout=2)
        with pytest.raises(NoResponders):
            await other_bus.request(RAG_QUERIES, {**QUERY, "tenant_id": "globex"})
        await spy.subscribe(">", cb=listen)
        await spy.rtt()
        await spy.rtt()
        await bus.request(RAG_QUERIES, QUERY)
        await bus.publish(RAG_STATUS, sample("rag_status"))
        await bus.enqueue(AGENT_TASKS, sample("agent_task"))
    await spy.rtt()
    assert heard == []
    assert [info.config.description for info in await spy.jetstream().streams_info()] == ["account of tenant globex"]
    await spy.close()


# --- what is recorded -------------------------------------------------------------------------------------------


async def test_one_span_on_either_side_of_the_hop(bus: Bus, telemetry: Any) -> None:
    async with await bus.serve(RAG_QUERIES, answer):
        await bus.request(RAG_QUERIES, QUERY)
    spans = telemetry.recorder.spans().set_index("name")
    assert list(spans.index) == [RAG_QUERIES.send_span.name, RAG_QUERIES.handle_span.name]
    sent, handled = spans.loc[RAG_QUERIES.send_span.name], spans.loc[RAG_QUERIES.handle_span.name]
    assert handled["trace_id"] == sent["trace_id"]
    assert handled["parent_id"] == sent["span_id"]
    assert (sent["kind"], handled["kind"]) == ("client", "server")
    for span, name, kind in ((sent, "request", "send"), (handled, "process", "process")):
        attributes = span["attributes"]
        assert attributes["messaging.system"] == "nats"
        assert attributes["messaging.operation.name"] == name
        assert attributes["messaging.operation.type"] == kind
        assert attributes["messaging.destination.name"] == "ai.rag.queries.acme"
        assert attributes["messaging.message.body.size"] == len(codec.encode("rag_query", QUERY))
        assert attributes["tenant.id"] == "acme"
    assert handled["attributes"]["messaging.consumer.group.name"] == RAG_QUERIES.queue


async def test_an_error_is_on_both_spans(bus: Bus, telemetry: Any) -> None:
    async def fail(_: Message) -> dict[str, Any]:
        raise LookupError("no index")

    async with await bus.serve(RAG_QUERIES, fail):
        with pytest.raises(RemoteError):
            await bus.request(RAG_QUERIES, QUERY)
    spans = telemetry.recorder.spans().set_index("name")
    assert spans.loc[RAG_QUERIES.send_span.name, "attributes"]["error.type"] == "RemoteError"
    assert spans.loc[RAG_QUERIES.handle_span.name, "attributes"]["error.type"] == "LookupError"


@pytest.mark.parametrize(
    "detail",
    [
        "{query}",
        "bad words in {query!r}",
        "cannot find 'canary'",
        "token CANARY-7f3a9 is unknown",
        "prompt: {query} (cut)",
    ],
)
async def test_no_content_leaves_with_an_error(bus: Bus, telemetry: Any, detail: str) -> None:
    query = "tell me of the yellow canary and CANARY-7f3a9 in our cage"

    async def fail(message: Message) -> dict[str, Any]:
        raise ValueError(detail.format(query=message.data["query"]))

    async with await bus.serve(RAG_QUERIES, fail):
        with pytest.raises(RemoteError) as raised:
            await bus.request(RAG_QUERIES, QUERY | {"query": query})
    told = str(raised.value) + telemetry.recorder.spans().to_json(date_format="iso")
    told += telemetry.recorder.logs().to_json(date_format="iso")
    assert "ValueError" in told
    for piece in ("CANARY-7f3a9", "yellow canary", "'canary'"):
        assert piece not in told


async def test_headers_are_few(bus: Bus, raw: nats.NATS) -> None:
    heard: list[Any] = []

    async def listen(message: Any) -> None:
        heard.append(message)

    await raw.subscribe("ai.>", cb=listen)
    await raw.flush()
    await raw.flush()
    async with await bus.serve(RAG_QUERIES, answer):
        await bus.request(RAG_QUERIES, QUERY)
        await bus.publish(RAG_STATUS, sample("rag_status"))
    await raw.flush()
    assert [list(message.headers) for message in heard] == [["traceparent"], ["traceparent"]]
    assert all(codec.decode(message.data) for message in heard)


# --- answers piece by piece -------------------------------------------------------------------------------------


def piece(number: int) -> dict[str, Any]:
    return sample("llm_chunk", index=number, text=f"word {number} ")


async def test_a_streamed_answer_comes_piece_by_piece(bus: Bus, telemetry: Any) -> None:
    async def speak(message: Message) -> dict[str, Any]:
        assert message.streaming
        for number in range(5):
            await message.emit(piece(number))
        return RESULT

    async with await bus.serve(RAG_QUERIES, speak):
        got = [message async for message in bus.stream(RAG_QUERIES, QUERY)]
    assert [message.message_type for message in got] == ["llm_chunk"] * 5 + ["rag_result"]
    assert [message.data["index"] for message in got[:-1]] == list(range(5))
    assert got[-1].data == RESULT
    spans = telemetry.recorder.spans()
    assert sorted(spans["name"]) == sorted([RAG_QUERIES.send_span.name, RAG_QUERIES.handle_span.name])


async def test_pieces_cost_nothing_when_nobody_asked_for_them(bus: Bus) -> None:
    async def speak(message: Message) -> dict[str, Any]:
        assert not message.streaming
        await message.emit({"not": "even valid"})
        return RESULT

    async with await bus.serve(RAG_QUERIES, speak):
        assert (await bus.request(RAG_QUERIES, QUERY)).data == RESULT


async def test_the_handler_is_cancelled_when_the_caller_leaves(bus: Bus) -> None:
    ended = asyncio.Event()

    async def speak(message: Message) -> dict[str, Any]:
        try:
            for number in range(10_000):
                await message.emit(piece(number))
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            ended.set()
            raise
        return RESULT

    async with await bus.serve(RAG_QUERIES, speak) as worker:
        stream = bus.stream(RAG_QUERIES, QUERY)
        async for message in stream:
            if message.data["index"] == 3:
                break
        await stream.aclose()
        await asyncio.wait_for(ended.wait(), 2)
        await eventually(lambda: worker.in_flight == 0)


async def test_a_streamed_answer_that_fails_or_is_late(bus: Bus) -> None:
    async def speak(message: Message) -> dict[str, Any]:
        await message.emit(piece(0))
        if message.data["query_id"] == "late":
            await asyncio.sleep(60)
        raise ComponentError("the model is gone")

    worker = await bus.serve(RAG_QUERIES, speak)
    stream = bus.stream(RAG_QUERIES, QUERY)
    assert (await anext(stream)).data == piece(0)
    with pytest.raises(RemoteError, match="the model is gone"):
        await anext(stream)
    with pytest.raises(DeadlineExceeded):
        async for _ in bus.stream(RAG_QUERIES, QUERY | {"query_id": "late"}, timeout=0.2):
            pass
    await worker.stop(timeout=0.0)


async def test_a_piece_that_breaks_its_contract_fails_the_handler(bus: Bus) -> None:
    async def speak(message: Message) -> dict[str, Any]:
        await message.emit({"index": "none"})
        return RESULT

    async with await bus.serve(RAG_QUERIES, speak):
        with pytest.raises(RemoteError) as raised:
            async for _ in bus.stream(RAG_QUERIES, QUERY):
                pass
    assert raised.value.error_type == "ContractViolation"


# --- how things look --------------------------------------------------------------------------------------------


async def test_nothing_shows_content_by_itself(bus: Bus) -> None:
    async with await bus.serve(PROMPT_CONTEXT, Heard(sample("prompt_context"))) as worker:
        answered = await bus.request(PROMPT_CONTEXT, sample("prompt_context_request"))
        assert isinstance(worker, Worker)
        assert "PROMPT_CONTEXT" in repr(worker)
    assert repr(answered).startswith("<Message prompt_context 1.0")
    assert "acme" in repr(bus)
