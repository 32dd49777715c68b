"""Who leaves is noticed, whatever is waited for; what a provider did until then is logged and paid."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from misbehaving_provider import ANSWER, MisbehavingProvider
from samples import eventually, sample
from test_gateway import at_work, second_bus, spans_of, total, until, watched, whole

from kit import codec
from kit.catalogue import GATEWAY_REQUESTS, LLMOPS_OPERATIONS, RAG_QUERIES
from kit.components import gateway
from kit.nats.bus import Bus
from kit.nats.message import Message
from kit.nats.server import Server

PER_TOKEN = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.002}
BUDGET = gateway.Budget(limit=5.0)
QUERY, RESULT = sample("rag_query"), sample("rag_result")


@pytest.fixture
async def provider() -> AsyncIterator[MisbehavingProvider]:
    async with MisbehavingProvider() as running:
        yield running


async def leave_after(seconds: float, stream: Any) -> None:
    """Read a stream for some seconds, and leave it."""
    try:
        async with asyncio.timeout(seconds):
            async for _ in stream:
                pass
    except TimeoutError:
        await stream.aclose()


# --- on the bus -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [0, 1])
async def test_a_handler_that_says_nothing_is_cancelled_soon_after_its_caller_left(bus: Bus, pieces: int) -> None:
    ended: list[float] = []

    async def stall(message: Message) -> dict[str, Any]:
        for number in range(pieces):
            await message.emit(sample("llm_chunk", index=number))
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(time.monotonic())
        return RESULT

    async with await bus.serve(RAG_QUERIES, stall) as worker:
        await leave_after(0.2, bus.stream(RAG_QUERIES, QUERY))
        left = time.monotonic()
        await until(lambda: ended and worker.in_flight == 0)
    assert ended[0] - left < 2.0


async def test_a_caller_who_stays_is_not_disturbed_while_its_handler_says_nothing(bus: Bus) -> None:
    async def slowly(message: Message) -> dict[str, Any]:
        await asyncio.sleep(2.2)
        await message.emit(sample("llm_chunk", index=0))
        return RESULT

    async with await bus.serve(RAG_QUERIES, slowly):
        got = [message.message_type async for message in bus.stream(RAG_QUERIES, QUERY)]
    assert got == ["llm_chunk", "rag_result"]
    assert not bus.connection._listeners, "somebody still asks after a caller"


async def test_a_caller_whose_server_went_away_and_came_back_has_not_left(telemetry: Any) -> None:
    request = sample("llm_request", stream=True)
    cancelled: list[bool] = []

    async def slowly(message: Message) -> dict[str, Any]:
        try:
            await asyncio.sleep(5.0)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        await message.emit(sample("llm_chunk", index=0))
        return sample("llm_response")

    async with (
        Server(tenants=("acme",)) as own,
        await own.connect("acme") as here,
        await own.connect("acme") as there,
        Bus(here, "acme", telemetry) as caller,
        Bus(there, "acme", telemetry) as worker,
        await worker.work(GATEWAY_REQUESTS, slowly),
    ):
        reading = asyncio.ensure_future(_types(caller.stream(GATEWAY_REQUESTS, request, timeout=20.0)))
        await asyncio.sleep(0.5)
        await own.halt(kill=True)
        await own.start()
        assert await reading == ["llm_chunk", "llm_response"]
    assert not cancelled


async def _types(stream: AsyncIterator[Message]) -> list[str]:
    return [message.message_type async for message in stream]


# --- at the gateway ---------------------------------------------------------------------------------------------


def settings(provider: MisbehavingProvider, *names: str) -> dict[str, Any]:
    """Models that cost, under a budget."""
    models = {name: provider.deployment(name, **PER_TOKEN) for name in names}
    return {"models": models, "budget": BUDGET, "retries": 0}


async def spent(bus: Bus) -> float:
    """What the budget says was spent, once nothing is reserved any more."""
    from kit.components.gateway.budget import Purse

    purse = await Purse.open(bus, BUDGET)

    async def settled() -> bool:
        return not (await purse.state())["reserved"]

    await eventually(settled)
    return float((await purse.state())["spent"])


async def check_estimated(bus: Bus, operation: dict[str, Any], *, words: bool) -> None:
    """What was logged of a call that was given up is what the budget was charged."""
    codec.validate("llm_operation", operation)
    tokens = operation["tokens"]
    assert 0 < tokens["prompt"] < 10
    assert (tokens["completion"] > 0) is words
    assert operation["cost"] == pytest.approx(0.001 * tokens["prompt"] + 0.002 * tokens["completion"])
    assert operation["price_source"] == "gateway settings; tokens estimated"
    assert await spent(bus) == pytest.approx(operation["cost"])


@pytest.mark.parametrize("model", ["hang", "stall"])
async def test_a_provider_that_stalls_is_left_soon_after_the_caller_left_and_paid_for_what_it_did(
    tenant_bus: Bus, provider: MisbehavingProvider, telemetry: Any, model: str
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, model)) as service:
        await leave_after(0.3, gateway.stream(tenant_bus, prompt="Say something.", model=model))
        left = time.monotonic()
        await until(lambda: provider.left == 1 and service.workers[1].in_flight == 0)
        assert time.monotonic() - left < 2.0
        await until(lambda: operations)
        await check_estimated(tenant_bus, operations[0], words=model == "stall")
    assert len(operations) == 1
    assert (operations[0]["status"], operations[0]["error_type"]) == ("error", "CancelledError")
    assert (operations[0]["streamed"], operations[0]["model"]) == (True, model)
    (call,) = spans_of(telemetry, "gateway.provider.call")
    assert call["attributes"]["tokens.total"] == operations[0]["tokens"]["total"]
    assert total(telemetry, "gateway.cost") == pytest.approx(operations[0]["cost"])


async def test_a_stream_that_its_reader_leaves_is_logged_and_paid_as_far_as_it_came(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, "drip-0.02")):
        await leave_after(0.5, gateway.stream(tenant_bus, prompt="Say something.", model="drip-0.02"))
        await until(lambda: operations)
        await check_estimated(tenant_bus, operations[0], words=True)
    assert operations[0]["tokens"]["completion"] < 140


async def test_a_stream_that_breaks_off_and_one_that_takes_too_long_are_paid_as_far_as_they_came(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, "cut", "stall", "hang")):
        for model, words in (("cut", True), ("stall", True), ("hang", False)):
            before = await spent(tenant_bus)
            with pytest.raises(gateway.ProviderFailed):
                await whole(gateway.stream(tenant_bus, prompt="Say something.", model=model, timeout=1.0))
            await until(lambda: operations)
            operation = operations.pop()
            assert (operation["tokens"]["prompt"] > 0, operation["tokens"]["completion"] > 0) == (True, words)
            assert await spent(tenant_bus) - before == pytest.approx(operation["cost"])


async def test_a_call_in_process_that_is_cancelled_is_logged_and_paid(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    asked = {"request_id": "r1", "prompt": "Say something.", "model": "hang", "tenant_id": tenant_bus.tenant_id}
    async with gateway.in_process(tenant_bus, gateway.Settings(**settings(provider, "hang"))) as ours:
        answering = asyncio.ensure_future(ours.respond(asked))
        await until(lambda: provider.active == 1)
        answering.cancel()
        await asyncio.wait((answering,))
        assert answering.cancelled()
        await until(lambda: operations and provider.active == 0)
    await check_estimated(tenant_bus, operations[0], words=False)


async def test_what_a_stopped_worker_had_begun_is_logged_and_paid(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, "hang")) as service:
        asked = [
            asyncio.ensure_future(gateway.generate(tenant_bus, prompt="Say something.", model="hang")),
            asyncio.ensure_future(gateway.embed(tenant_bus, ["Say something."], model="hang")),
        ]
        await until(lambda: provider.active == 2)
        await service.stop(timeout=0.1)
        await until(lambda: len(operations) == 2)
    assert {row["operation_type"] for row in operations} == {"completion", "embedding"}
    assert {row["error_type"] for row in operations} == {"CancelledError"}
    assert await spent(tenant_bus) == pytest.approx(sum(row["cost"] for row in operations))
    assert all(row["cost"] > 0 for row in operations)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


# --- streams that are shared ------------------------------------------------------------------------------------


async def read(bus: Bus, model: str, *, after: float = 0.0) -> tuple[list[str], dict[str, Any]]:
    """Return the pieces of a stream's text, and its response."""
    await asyncio.sleep(after)
    messages = [message.data async for message in gateway.stream_messages(bus, prompt="hello", model=model)]
    *pieces, response = messages
    assert {piece["request_id"] for piece in pieces} == {response["request_id"]}
    assert [piece["index"] for piece in pieces] == list(range(len(pieces)))
    assert pieces[-1]["final"]
    return [piece.get("text", "") for piece in pieces[:-1]], {**response, "told": pieces[-1]["cost"]}


async def test_identical_streams_at_once_cost_one_call_and_who_comes_late_gets_everything(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    model = "drip-0.01"
    async with at_work(tenant_bus, **settings(provider, model), concurrency=64):
        began = time.monotonic()
        read_at_once = await asyncio.gather(*(read(tenant_bus, model, after=0.02 * i) for i in range(40)))
        assert time.monotonic() - began < 5
    assert provider.calls[model] == 1
    texts, responses = [pieces for pieces, _ in read_at_once], [response for _, response in read_at_once]
    assert all(pieces == texts[0] for pieces in texts)
    assert len(texts[0]) > 100
    assert {response["response"] for response in responses} == {ANSWER * 20} == {"".join(texts[0])}
    assert len({response["request_id"] for response in responses}) == 40
    assert [response["cached"] for response in responses].count(False) == 1
    assert sorted({response["cost"] == response["told"] for response in responses}) == [True]
    assert sum(response["cost"] for response in responses) == pytest.approx(await spent(tenant_bus))


async def test_a_stream_that_another_worker_reads_already_is_waited_for(
    server: Server, tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    model = "drip-0.005"
    mine = {**settings(provider, model), "concurrency": 64}
    async with second_bus(server, tenant_bus) as other, at_work(tenant_bus, **mine), at_work(other, **mine):
        answers = await asyncio.gather(*(read(tenant_bus, model) for _ in range(40)))
    assert provider.calls[model] == 1
    assert {"".join(pieces) for pieces, _ in answers} == {ANSWER * 20}
    assert [response["cached"] for _, response in answers].count(False) == 1


async def test_a_shared_stream_ends_with_its_last_reader_not_with_its_first(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    model, operations = "drip-0.02", await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, model)) as service:
        first = leave_after(0.3, gateway.stream(tenant_bus, prompt="hello", model=model))
        (pieces, response), _ = await asyncio.gather(read(tenant_bus, model, after=0.1), first)
        assert "".join(pieces) == ANSWER * 20
        assert (response["cached"], response["cost"], provider.left) == (True, 0.0, 0)
        await until(lambda: operations)
        assert [row["status"] for row in operations] == ["success"]
        leaving = (leave_after(0.2, gateway.stream(tenant_bus, prompt="bye", model=model)) for _ in range(3))
        await asyncio.gather(*leaving)
        await until(lambda: provider.left == 1 and service.workers[1].in_flight == 0)
    assert provider.calls[model] == 2


async def test_streams_that_fail_fail_together(tenant_bus: Bus, provider: MisbehavingProvider) -> None:
    async with at_work(tenant_bus, **settings(provider, "cut")):
        asked = [whole(gateway.stream(tenant_bus, prompt="hello", model="cut")) for _ in range(5)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(answer) for answer in answers} == {gateway.ProviderFailed}
    assert provider.calls["cut"] == 1
