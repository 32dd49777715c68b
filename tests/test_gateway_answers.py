"""What a provider answers is foreign: malformed, cut, or with a count of tokens that cannot be; never told wrongly."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from misbehaving_provider import ANSWER, MisbehavingProvider
from test_gateway import at_work, until, watched, whole
from test_gateway_money import PER_TOKEN, purse_of

from kit.catalogue import LLMOPS_OPERATIONS
from kit.components import gateway, rag
from kit.components.gateway.usage import asked_of, asked_to_embed, reported
from kit.errors import ConfigurationError
from kit.nats.bus import Bus

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
COST = 11 * 0.001 + 7 * 0.002
LARGE = gateway.Budget(limit=100.0, period="day")


@pytest.fixture
async def provider() -> AsyncIterator[MisbehavingProvider]:
    async with MisbehavingProvider() as running:
        yield running


def chat(content: Any = ANSWER, *, usage: Any = USAGE, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "finish_reason": finish, "message": message}]
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": choices,
        "usage": usage,
    } | more


def calling(name: str) -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": name, "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"index": 0, "finish_reason": "tool_calls", "message": message}


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


def pieces(*texts: Any, finish: Any = "stop", usage: Any = None) -> list[Any]:
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    said: list[Any] = [
        {**head, "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]}
        for text in texts
    ]
    said += [{**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}] if finish else []
    return [*said, *([{**head, "choices": [], "usage": usage}] if usage else []), b"[DONE]"]


def embeddings(*rows: Any, usage: Any = USAGE, **more: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return {"object": "list", "model": "m", "data": data, "usage": usage} | more


def settings(provider: MisbehavingProvider, answer: Any, **more: Any) -> dict[str, Any]:
    provider.answers["odd"] = answer
    models = {"odd": provider.deployment("odd", **PER_TOKEN), "ok": provider.deployment("ok", **PER_TOKEN)}
    return {"models": models, "budget": LARGE, "retries": 0, **more}


# --- malformed --------------------------------------------------------------------------------------------------

MALFORMED = {
    "no choices": chat(choices=[]),
    "choices null": chat(choices=None),
    "choices missing": without(chat(), "choices"),
    "choices of texts": chat(choices=["x"]),
    "message missing": chat(choices=[{"index": 0, "finish_reason": "stop"}]),
    "message null": chat(choices=[{"index": 0, "finish_reason": "stop", "message": None}]),
    "content a number": chat(5),
    "a lone surrogate": chat("half \ud83d of it"),
    "a lone surrogate in an id": chat(id="half \ud83d"),
    "an answer above the limit": chat("x" * 1_100_000),
    "a tool's name that is too long": chat(choices=[calling("f" * 300)]),
    "broken off by the provider": chat(finish="error"),
    "usage a text": chat(usage="plenty"),
    "tokens not a whole number": chat(usage={**USAGE, "completion_tokens": 2.5}),
    "tokens NaN": b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,'
    b'"finish_reason":"stop","message":{"role":"assistant","content":"x"}}],"usage":{"prompt_tokens":NaN}}',
    "no JSON": b"<html>busy</html>",
    "half of it": b'{"id": "c", "choices": [{"mess',
    "nothing": b"",
    "a list": b"[1]",
    "an error with status 200": {"error": {"message": "busy", "code": 500}},
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_answer_is_a_typed_failure_logged_once_and_paid(
    tenant_bus: Bus, provider: MisbehavingProvider, name: str
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, MALFORMED[name])):
        with pytest.raises(gateway.ProviderFailed) as failed:
            await gateway.generate(tenant_bus, prompt="hello", model="odd", timeout=20)
        await until(lambda: operations)
    assert provider.calls["odd"] == 1
    (operation,) = operations
    assert (operation["status"], operation["error_type"]) == ("error", failed.value.kind)
    assert operation["cost"] > 0
    purse = await purse_of(tenant_bus)
    assert (purse["spent"], purse["reserved"]) == (pytest.approx(operation["cost"]), 0)


async def test_usage_that_came_with_an_answer_that_cannot_be_given_is_what_is_paid(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    async with at_work(tenant_bus, **settings(provider, chat(choices=[]))):
        with pytest.raises(gateway.ProviderFailed, match="NoAnswer"):
            await gateway.generate(tenant_bus, prompt="hello there", model="odd")
    assert (await purse_of(tenant_bus))["spent"] == pytest.approx(11 * 0.001 + 7 * 0.002)


@pytest.mark.parametrize("name", ["no choices", "half of it", "a lone surrogate"])
async def test_what_was_worked_on_in_vain_is_logged_and_paid_beside_the_fallback_that_answers(
    tenant_bus: Bus, provider: MisbehavingProvider, name: str
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, MALFORMED[name])):
        answer = await gateway.generate(tenant_bus, prompt="hello", model="odd", fallbacks=["ok"])
        await until(lambda: len(operations) == 2)
    assert (answer["response"], answer["attempts"], answer["model"]) == (ANSWER, 2, "ok")
    assert {row["model"]: row["status"] for row in operations} == {"odd": "error", "ok": "success"}
    purse = await purse_of(tenant_bus)
    assert COST < purse["spent"] == pytest.approx(sum(row["cost"] for row in operations))
    assert purse["reserved"] == 0


@pytest.mark.parametrize(
    "answer",
    [
        embeddings(None, None),
        embeddings([1.0], [1.0, 2.0]),
        embeddings([1.0]),
        embeddings([1.0], [2.0], [3.0]),
        embeddings("AACAPw==", "AACAPw=="),
        embeddings(["1.0"], ["2.0"]),
        embeddings([], []),
        embeddings(1.0, 2.0),
        embeddings([float("nan")], [1.0]),
        embeddings([1e300], [1.0]),
        embeddings([[1.0]], [[1.0]]),
        embeddings(data=None),
        embeddings(data=[{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]),
        without(embeddings(), "data"),
        b"<html>busy</html>",
    ],
    ids=repr,
)
async def test_malformed_embeddings_are_a_typed_failure_logged_once_and_paid(
    tenant_bus: Bus, provider: MisbehavingProvider, answer: Any
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, answer)):
        for ask in (gateway.embed, gateway.embed_bulk):
            with pytest.raises(gateway.ProviderFailed):
                await ask(tenant_bus, ["a", "b"], model="odd", timeout=20)
            await until(lambda: operations)
            assert (operations[0]["status"], operations.pop()["cost"] > 0) == ("error", True)
    assert provider.calls["odd"] == 2


async def test_embeddings_without_index_come_in_the_order_of_the_texts(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    answer = embeddings(data=[{"embedding": [1, 2]}, {"embedding": [3, 4]}])
    async with at_work(tenant_bus, **settings(provider, answer)):
        vectors = await gateway.embed(tenant_bus, ["a", "b"], model="odd")
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 2], [3, 4]]


# --- streams ----------------------------------------------------------------------------------------------------


async def read_into(seen: list[Any], bus: Bus) -> None:
    async for message in gateway.stream_messages(bus, prompt="hello", model="odd"):
        seen.append(message.data)


@pytest.mark.parametrize(
    "events",
    [
        pieces("Well ", "said", finish=None),
        pieces("Well ", "said", finish=None)[:-1],
        pieces("Well ", "said", finish=None, usage=USAGE),
        pieces("Well ", "said", finish="error"),
        [*pieces("Well ", finish=None)[:-1], b"{nonsense"],
        [*pieces("Well ", finish=None)[:-1], {"error": {"message": "busy", "code": 500}}],
        pieces("Well ", "half \ud83d"),
        [b"[DONE]"],
        [],
    ],
    ids=repr,
)
async def test_a_cut_stream_is_never_told_as_complete_nor_remembered(
    tenant_bus: Bus, provider: MisbehavingProvider, events: list[Any]
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, events)):
        for calls in (1, 2):
            seen: list[Any] = []
            with pytest.raises(gateway.ProviderFailed):
                await read_into(seen, tenant_bus)
            assert all("finish_reason" not in piece for piece in seen)
            await until(lambda: len(operations) == calls)  # noqa: B023
            assert provider.calls["odd"] == calls
    assert {row["status"] for row in operations} == {"error"}
    assert 0 < (await purse_of(tenant_bus))["spent"] == pytest.approx(sum(row["cost"] for row in operations))


@pytest.mark.parametrize(
    ("told", "heard"),
    [("length", "length"), ("content_filter", "content_filter"), ("end_turn", "stop"), ("busy", "busy")],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_reason_for_an_end_is_the_providers(
    tenant_bus: Bus, provider: MisbehavingProvider, told: str, heard: str, streamed: bool
) -> None:
    answer = pieces("Well ", "said", finish=told) if streamed else chat(finish=told)
    async with at_work(tenant_bus, **settings(provider, answer)):
        if streamed:
            messages = [m.data async for m in gateway.stream_messages(tenant_bus, prompt="hello", model="odd")]
            assert [data["finish_reason"] for data in messages[-2:]] == [heard, heard]
        else:
            response = await gateway.generate(tenant_bus, prompt="hello", model="odd")
            assert response["finish_reason"] == heard


# --- usage ------------------------------------------------------------------------------------------------------

UNREPORTED = [None, {}, {"total_tokens": 18}, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}]
IMPLAUSIBLE = [
    {**USAGE, "completion_tokens": 10**9},
    {**USAGE, "prompt_tokens": 10**6},
    {**USAGE, "completion_tokens": 10**30},
    {**USAGE, "completion_tokens": 200},
    {**USAGE, "prompt_tokens": -5},
    {**USAGE, "completion_tokens": -7},
    {**USAGE, "prompt_tokens_details": {"cached_tokens": -4}},
    {**USAGE, "prompt_tokens_details": {"cached_tokens": 12}},
    {**USAGE, "prompt_tokens_details": {"audio_tokens": 10**9}},
    {**USAGE, "prompt_tokens_details": {"image_tokens": -4}},
    {**USAGE, "prompt_tokens_details": {"web_search_requests": 10**9}},
    {**USAGE, "cache_creation_input_tokens": 10**9},
    {**USAGE, "cache_creation_input_tokens": -200_000},
    {**USAGE, "completion_tokens_details": {"image_tokens": 10**9}},
    {**USAGE, "completion_tokens_details": {"audio_tokens": -(10**6), "text_tokens": 10**6}},
]


@pytest.mark.parametrize("usage", [*UNREPORTED, *IMPLAUSIBLE], ids=repr)
@pytest.mark.parametrize("streamed", [False, True])
async def test_tokens_that_are_not_reported_or_cannot_be_are_estimated_and_marked(
    tenant_bus: Bus, provider: MisbehavingProvider, caplog: Any, usage: Any, streamed: bool
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    answer = pieces(*ANSWER.split(" "), usage=usage) if streamed else chat(usage=usage)
    asked = {"prompt": "hello", "model": "odd", "max_tokens": 20}
    budget = gateway.Budget(limit=0.2)
    with caplog.at_level(logging.WARNING, "kit.components.gateway"):
        async with at_work(tenant_bus, **settings(provider, answer, budget=budget)):
            if streamed:
                *_, response = [m.data async for m in gateway.stream_messages(tenant_bus, **asked)]
            else:
                response = await gateway.generate(tenant_bus, **asked)
            honest = await gateway.generate(tenant_bus, prompt="hello", model="ok", max_tokens=20)
            await until(lambda: len(operations) == 2)
    assert honest["response"] == ANSWER
    assert response["price_source"].startswith("gateway settings; tokens estimated")
    assert operations[0]["price_source"] == response["price_source"]
    assert operations[0]["tokens"] == response["tokens"]
    assert 0 < response["tokens"]["prompt"] < 10
    assert 0 < response["tokens"]["completion"] < 20
    assert (await purse_of(tenant_bus))["spent"] == pytest.approx(response["cost"] + honest["cost"])
    warned = any("more tokens than a call can use" in record.message for record in caplog.records)
    assert warned == ("implausible" in response["price_source"]) == (usage in IMPLAUSIBLE)


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": -3, "total_tokens": -3}, {"prompt_tokens": 10**7}], ids=repr)
async def test_tokens_of_embeddings_are_estimated_alike(
    tenant_bus: Bus, provider: MisbehavingProvider, usage: Any
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, **settings(provider, embeddings([1.0], [2.0], usage=usage))):
        await gateway.embed(tenant_bus, ["some text", "another one"], model="odd")
        await until(lambda: operations)
    assert "tokens estimated" in operations[0]["price_source"]
    assert 0 < operations[0]["cost"] == pytest.approx(operations[0]["tokens"]["prompt"] * 0.001)
    assert (await purse_of(tenant_bus))["spent"] == pytest.approx(operations[0]["cost"])


def test_what_a_request_does_not_show_may_cost_and_what_it_shows_bounds_the_rest() -> None:
    from types import SimpleNamespace as Usage

    picture = [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {}}]}]
    assert asked_of([{"content": "Where?"}], None, 100).prompt >= 10_000, "a provider's own instructions"
    assert asked_of(picture, None, 100).prompt >= 50_000
    assert asked_of([{"content": "é" * 50_000}], None, 1).prompt >= 100_000
    assert asked_to_embed(["a"]).prompt < 1000
    for name in ("name", "reasoning_content", "refusal", "tool_calls"):
        assert asked_of([{"content": "a", name: "b" * 50_000}], None, 1).prompt >= 50_000
    long = asked_of([{"content": "hello"}], None, 5)
    assert reported(Usage(prompt_tokens=1, completion_tokens=40), long, "a provider that went on all the same")[1] == ""
    assert reported(Usage(prompt_tokens=1, completion_tokens=80), long, "it did not")[1]


# --- prices of one's own ----------------------------------------------------------------------------------------

DETAILED = {
    "prompt_tokens": 10_000, "completion_tokens": 400, "total_tokens": 10_400,
    "prompt_tokens_details": {"cached_tokens": 9000, "audio_tokens": 200},
    "completion_tokens_details": {"reasoning_tokens": 100, "audio_tokens": 50},
}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "cost"),
    [
        ({}, 10_000 * 1e-3 + 400 * 2e-3),
        ({"cache_read_input_token_cost": 1e-4}, 1000 * 1e-3 + 9000 * 1e-4 + 400 * 2e-3),
        ({"cache_read_input_token_cost": 0}, 1000 * 1e-3 + 400 * 2e-3),
        ({"output_cost_per_reasoning_token": 4e-3}, 10_000 * 1e-3 + 300 * 2e-3 + 100 * 4e-3),
        ({"input_cost_per_audio_token": 5e-3}, 9800 * 1e-3 + 200 * 5e-3 + 400 * 2e-3),
        ({"input_cost_per_token_above_9k_tokens": 3e-3}, 10_000 * 3e-3 + 400 * 2e-3),
        ({"output_cost_per_token_above_9k_tokens": 3e-3}, 10_000 * 1e-3 + 400 * 3e-3),
        ({"output_cost_per_token_above_20k_tokens": 3e-3}, 10_000 * 1e-3 + 400 * 2e-3),
    ],
    ids=repr,
)
async def test_every_price_of_ones_own_counts(
    tenant_bus: Bus, provider: MisbehavingProvider, own: dict[str, float], cost: float
) -> None:
    provider.answers["mine"] = chat(usage=DETAILED)
    models = {"mine": provider.deployment("mine", input_cost_per_token=1e-3, output_cost_per_token=2e-3, **own)}
    async with at_work(tenant_bus, models=models, budget=LARGE):
        response = await gateway.generate(tenant_bus, prompt="Where?", model="mine")
    assert response["cost"] == pytest.approx(cost)
    assert (await purse_of(tenant_bus))["spent"] == pytest.approx(cost)


@pytest.mark.parametrize(
    "price",
    [
        {"input_cost_per_token_batches": 1e-3}, {"input_cost_per_token_priority": 1e-3}, {"input_cost_per_request": 1},
        {"input_cost_per_second": 1e-3}, {"input_cost_per_character": 1e-3}, {"tiered_pricing": []},
        {"search_context_cost_per_query": {}}, {"output_cost_per_image": 1}, {"cache_write_input_token_cost": 1e-3},
        {"input_cost_per_token": -1e-3}, {"input_cost_per_token": float("nan")}, {"output_cost_per_token": "free"},
        {"cache_read_input_token_cost": None},
    ],
    ids=repr,
)  # fmt: skip
def test_a_price_that_cannot_be_counted_is_refused_by_its_name(price: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(price))):
        gateway.Settings(models={"mine": {"model": "openai/mine", **price}})


# --- how often --------------------------------------------------------------------------------------------------


async def asked_for(bus: Bus, how: str, model: str, **more: Any) -> Any:
    if how == "bulk":
        return await gateway.embed_bulk(bus, ["hello"], model=model, timeout=more.get("timeout", 20.0))
    if how == "streamed":
        return await whole(gateway.stream(bus, prompt="hello", model=model, **more))
    return await gateway.generate(bus, prompt="hello", model=model, **more)


@pytest.mark.parametrize("model", ["fail-500", "fail-503", "malformed"])
@pytest.mark.parametrize("how", ["whole", "streamed", "bulk"])
async def test_two_retries_are_three_calls_whatever_the_queue_does(
    tenant_bus: Bus, provider: MisbehavingProvider, model: str, how: str
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    provider.answers["malformed"] = [b"{"] if how == "streamed" else b"{"
    models = {model: provider.deployment(model, **PER_TOKEN)}
    async with at_work(tenant_bus, models=models, retries=2, budget=LARGE):
        with pytest.raises(gateway.ProviderFailed) as failed:
            await asked_for(tenant_bus, how, model, timeout=20.0)
        await until(lambda: len(operations) == (3 if model == "malformed" else 1))
        assert provider.calls[model] == 3
    assert failed.value.status_code == {"fail-500": 500, "fail-503": 503}.get(model)
    assert operations[-1]["attempts"] == 3
    paid = [row["cost"] for row in operations]
    assert all(paid) is (model == "malformed"), "what a provider refused costs nothing, what it answered does"
    assert (await purse_of(tenant_bus))["spent"] == pytest.approx(sum(paid))


async def test_what_a_provider_answered_is_told_when_the_time_is_up(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    models = {"fail-500": provider.deployment("fail-500")}
    async with at_work(tenant_bus, models=models, retries=50):
        with pytest.raises(gateway.ProviderFailed) as failed:
            await asked_for(tenant_bus, "whole", "fail-500", timeout=2.0)
    assert failed.value.status_code == 500
    assert provider.calls["fail-500"] > 1


@pytest.mark.parametrize(("delivery", "calls"), [(1, 3), (2, 2), (3, 1), (4, 1)])
async def test_a_job_that_comes_again_has_the_fewer_retries_left(
    tenant_bus: Bus, provider: MisbehavingProvider, delivery: int, calls: int
) -> None:
    settings = gateway.Settings(models={"fail-500": provider.deployment("fail-500")}, retries=2)
    asked = {"request_id": "r", "prompt": "hello", "model": "fail-500", "tenant_id": tenant_bus.tenant_id}
    async with gateway.in_process(tenant_bus, settings) as ours:
        with pytest.raises(gateway.ProviderFailed) as failed:
            await ours.respond({**asked, "delivery": delivery})
    assert provider.calls["fail-500"] == calls
    assert failed.value.retryable is False


@pytest.mark.parametrize("refusal", [400, 500])
async def test_a_text_that_a_provider_refuses_takes_no_other_document_along(
    tenant_bus: Bus, provider: MisbehavingProvider, tmp_path: Any, refusal: int
) -> None:
    def answer(body: dict[str, Any]) -> Any:
        if any("poison" in text for text in body["input"]):
            return refusal
        return embeddings(*([float(len(text)), 1.0, 0.5] for text in body["input"]))

    documents = [{"document_id": f"d{n}", "content": f"Lamp {n} is on. {'poison' * (n == 3)}"} for n in range(7)]
    async with (
        at_work(tenant_bus, **settings(provider, answer)),
        await rag.serve(tenant_bus, uri=tmp_path, embedding_model="odd"),
    ):
        told = await rag.ingest_documents(tenant_bus, documents)
    assert {row["document_id"]: row["status"] for row in told.statuses} == {
        f"d{n}": "failed" if n == 3 else "indexed" for n in range(7)
    }
