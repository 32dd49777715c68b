"""No call of a provider passes by the rate limit or the budget: not a retry, nor a fallback, nor a second try."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from misbehaving_provider import ANSWER, MisbehavingProvider
from test_gateway import QUESTION, at_work, total, until, watched, whole

from kit.catalogue import GATEWAY_COST_ALERTS, GATEWAY_RATE_LIMIT, LLMOPS_OPERATIONS
from kit.components import gateway
from kit.nats.bus import Bus

PER_TOKEN = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.002}
FREE = dict.fromkeys(PER_TOKEN, 0.0)
COST = 11 * 0.001 + 7 * 0.002  # of one answer of the misbehaving provider
BUDGET = gateway.Budget(limit=0.1, period="day")


def call(name: str, **arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


@pytest.fixture
async def provider() -> AsyncIterator[MisbehavingProvider]:
    async with MisbehavingProvider() as running:
        yield running


async def purse_of(bus: Bus) -> dict[str, Any]:
    from kit.components.gateway.budget import Purse

    return await (await Purse.open(bus, BUDGET)).state()


# --- fallbacks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_paid_fallback_of_a_free_model_is_reserved_and_settled(
    tenant_bus: Bus, provider: MisbehavingProvider, streamed: bool
) -> None:
    deployments = {"free": provider.deployment("fail-402", **FREE), "paid": provider.deployment("ok", **PER_TOKEN)}
    alerts = await watched(tenant_bus, GATEWAY_COST_ALERTS)

    async def ask(**options: Any) -> str:
        if streamed:
            return await whole(gateway.stream(tenant_bus, prompt="hello", model="free", **options))
        answer = await gateway.generate(tenant_bus, prompt="hello", model="free", **options)
        return str(answer["response"])

    settings = {"models": deployments, "fallbacks": {"free": ["paid"]}, "budget": BUDGET, "cache_ttl": 0}
    async with at_work(tenant_bus, **settings):
        for _ in range(3):
            assert await ask(max_tokens=5) == ANSWER
        with pytest.raises(gateway.BudgetExceeded, match=r"has 0\.025 USD left, 0\.029 USD would be needed"):
            await ask(max_tokens=10)
        with pytest.raises(gateway.BudgetExceeded, match="per request"):
            await ask(max_tokens=1, max_cost=0.01)
        await until(lambda: sum(alert["reason"] == "budget_exceeded" for alert in alerts) == 2)
    assert provider.calls["ok"] == 3
    purse = await purse_of(tenant_bus)
    assert (purse["spent"], purse["reserved"]) == (pytest.approx(3 * COST), 0)
    assert {alert["model"] for alert in alerts} == {"paid"}


async def test_a_fallback_that_is_too_dear_gives_way_to_one_that_is_not(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    deployments = {
        "away": provider.deployment("fail-500", **FREE), "dear": provider.deployment("ok", **PER_TOKEN),
        "unpriced": provider.deployment("ok"),
    }  # fmt: skip
    settings = {"models": deployments, "fallbacks": {"away": ["dear", "unpriced", "kit/extractive"]}, "retries": 1}
    async with at_work(tenant_bus, **settings, budget=BUDGET):
        answer = await gateway.generate(tenant_bus, prompt=QUESTION, model="away", max_tokens=500)
    assert (answer["model"], answer["requested_model"], answer["attempts"]) == ("kit/extractive", "away", 3)
    assert provider.calls == {"fail-500": 2}


async def test_a_call_that_was_let_through_after_all_fails_for_its_own_reason(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    deployments = {
        "away": provider.deployment("fail-500", **FREE), "dear": provider.deployment("ok", **PER_TOKEN),
        "broken": provider.deployment("cut", **FREE),
    }  # fmt: skip
    settings = {"models": deployments, "fallbacks": {"away": ["dear", "broken"]}, "retries": 0, "budget": BUDGET}
    async with at_work(tenant_bus, **settings):
        with pytest.raises(gateway.ProviderFailed):
            await whole(gateway.stream(tenant_bus, prompt="hello", model="away", max_tokens=500))
    assert provider.calls == {"fail-500": 1, "cut": 1}


async def test_a_fallback_that_is_taken_for_a_model_that_cools_down_is_paid_too(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    deployments = {"away": provider.deployment("fail-500", **FREE), "dear": provider.deployment("ok", **PER_TOKEN)}
    settings = {"models": deployments, "fallbacks": {"away": ["dear"]}, "retries": 0, "budget": BUDGET, "cache_ttl": 0}
    async with at_work(tenant_bus, **settings):
        asked = {"prompt": "hello", "model": "away"}
        answers = [await gateway.generate(tenant_bus, **asked, max_tokens=1) for _ in range(3)]
        assert provider.calls["fail-500"] == 3
        assert {answer["model"] for answer in answers} == {"dear"}
        with pytest.raises(gateway.BudgetExceeded):
            await gateway.generate(tenant_bus, **asked, max_tokens=10)
    assert provider.calls == {"fail-500": 3, "ok": 3}
    assert (await purse_of(tenant_bus))["spent"] == pytest.approx(3 * COST)


# --- prices that nobody knows -----------------------------------------------------------------------------------


async def test_a_model_without_a_price_is_refused_where_money_is_bounded(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    deployments = {"unpriced": provider.deployment("ok"), "free": provider.deployment("ok", **FREE)}
    async with at_work(tenant_bus, models=deployments, cache_ttl=0):
        asked = {"prompt": "hello", "model": "unpriced"}
        assert (await gateway.generate(tenant_bus, **asked))["cost"] is None
        with pytest.raises(gateway.PriceUnknown) as refused:
            await gateway.generate(tenant_bus, **asked, max_cost=5.0)
        assert refused.value.model == "unpriced"
    async with at_work(tenant_bus, models=deployments, budget=BUDGET, cache_ttl=0):
        with pytest.raises(gateway.PriceUnknown, match=r"for the model unpriced, .*input_cost_per_token"):
            await gateway.generate(tenant_bus, **asked)
        with pytest.raises(gateway.PriceUnknown):
            await whole(gateway.stream(tenant_bus, **asked))
        with pytest.raises(gateway.PriceUnknown):
            await gateway.embed(tenant_bus, ["a"], model="unpriced")
        assert (await gateway.generate(tenant_bus, prompt="hello", model="free"))["cost"] == 0.0
        assert (await gateway.generate(tenant_bus, prompt=QUESTION))["cost"] == 0.0
        assert (await gateway.embed(tenant_bus, ["a"])).shape == (1, 256)
    assert provider.calls["ok"] == 2


@pytest.mark.parametrize("asked", [{"max_tokens": 60}, {"max_completion_tokens": 60}, {"max_tokens": 20, "n": 3}])
async def test_what_is_reserved_is_the_most_that_the_request_allows(
    tenant_bus: Bus, provider: MisbehavingProvider, asked: dict[str, Any]
) -> None:
    deployments = {
        "ok": provider.deployment("ok", **PER_TOKEN),
        "short": provider.deployment("ok", **PER_TOKEN, **asked),
    }
    async with at_work(tenant_bus, models=deployments, budget=BUDGET):
        for model, options in (("ok", asked), ("short", {})):
            with pytest.raises(gateway.BudgetExceeded, match=r"0\.129 USD would be needed"):
                await gateway.generate(tenant_bus, prompt="hello", model=model, **options)
    assert not provider.calls


LONG = "word " * 100


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": [{"role": "assistant", "content": "a", "reasoning_content": LONG}]},
        {"messages": [{"role": "assistant", "content": "a", "refusal": LONG}]},
        {"messages": [{"role": "user", "name": LONG[:190], "content": "a"} for _ in range(3)]},
        {"messages": [{"role": "assistant", "tool_calls": [call("look_up", text=LONG)]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]},
        {"prompt": "a", "tools": [{"type": "function", "function": {"name": "look_up", "description": LONG}}]},
        {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "a", "description": LONG}}},
    ],
    ids=lambda asked: str(asked)[:60],
)
async def test_all_that_a_model_reads_is_reserved(
    tenant_bus: Bus, provider: MisbehavingProvider, asked: dict[str, Any]
) -> None:
    deployments = {"ok": provider.deployment("ok", **PER_TOKEN)}
    async with at_work(tenant_bus, models=deployments, budget=BUDGET):
        with pytest.raises(gateway.BudgetExceeded):
            await gateway.generate(tenant_bus, model="ok", max_tokens=1, **asked)
    assert not provider.calls


# --- every call that happens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["direct", "retry", "fallback"])
async def test_every_call_takes_its_allowance(
    tenant_bus: Bus, provider: MisbehavingProvider, telemetry: Any, first: str
) -> None:
    """The third call is one too many, whatever the first two were for."""
    model = {"direct": "ok", "retry": "fail-500x1", "fallback": "fail-402"}[first]
    deployments = {"asked": provider.deployment(model), "other": provider.deployment("ok")}
    settings = {"models": deployments, "fallbacks": {"asked": ["other"]}, "retries": 1, "cache_ttl": 0}
    limits = {"other" if first == "fallback" else "asked": gateway.RateLimit(requests=2)}
    violations = await watched(tenant_bus, GATEWAY_RATE_LIMIT)
    async with at_work(tenant_bus, **settings, rate_limits=limits):
        for _ in range(1 if first == "retry" else 2):
            assert (await gateway.generate(tenant_bus, prompt="hello", model="asked"))["response"] == ANSWER
        with pytest.raises(gateway.RateLimited, match="2 requests in 60 s"):
            await gateway.generate(tenant_bus, prompt="hello", model="asked")
        await until(lambda: violations)
    limited = "other" if first == "fallback" else "asked"
    assert violations[0]["model"] == limited
    assert provider.calls == {"direct": {"ok": 2}, "retry": {model: 2}, "fallback": {model: 3, "ok": 2}}[first]
    made = sum(provider.calls.values())
    assert total(telemetry, "gateway.rate-limit.checks") == made + 1


async def test_a_second_try_after_a_failed_check_is_a_call_like_any_other(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    deployments = {"ok": provider.deployment("ok", **PER_TOKEN)}
    check = {"level": "format", "max_length": 5, "retries": 3}
    settings = {"models": deployments, "cache_ttl": 0}
    async with at_work(tenant_bus, **settings, rate_limits={"*": {"requests": 2}}):
        with pytest.raises(gateway.RateLimited):
            await gateway.generate(tenant_bus, prompt="hello", model="ok", validation=check)
    assert provider.calls["ok"] == 2
    async with at_work(tenant_bus, **settings, budget=BUDGET):
        with pytest.raises(gateway.BudgetExceeded):
            await gateway.generate(tenant_bus, prompt="hello", model="ok", validation=check, max_tokens=10)
        assert provider.calls["ok"] == 2 + 3  # 0.025 spent by each, 0.029 reserved for the fourth
        assert (await purse_of(tenant_bus))["spent"] == pytest.approx(3 * COST)
        with pytest.raises(gateway.BudgetExceeded, match="per request"):
            await gateway.generate(
                tenant_bus, prompt="hello", model="ok", validation=check, max_tokens=1, max_cost=1.2 * COST
            )
        assert provider.calls["ok"] == 2 + 3 + 1
        assert (await purse_of(tenant_bus))["reserved"] == 0


async def test_a_retried_embedding_takes_an_allowance_for_each_call(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    deployments = {"flaky": provider.deployment("fail-500x1", **PER_TOKEN)}
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    settings = {"models": deployments, "rate_limits": {"flaky": gateway.RateLimit(requests=3)}, "budget": BUDGET}
    async with at_work(tenant_bus, **settings):
        for _ in range(2):
            assert (await gateway.embed(tenant_bus, ["abc"], model="flaky")).shape == (1, 4)
        with pytest.raises(gateway.RateLimited):
            await gateway.embed(tenant_bus, ["abc"], model="flaky")
        await until(lambda: len(operations) == 2)
    assert [row["attempts"] for row in operations] == [2, 1]
    assert provider.calls["fail-500x1"] == 3
    assert (await purse_of(tenant_bus))["spent"] == pytest.approx(2 * 3 * 0.001)


# --- tenants ----------------------------------------------------------------------------------------------------


async def test_what_one_tenant_used_up_another_still_has(
    bus: Bus, other_bus: Bus, provider: MisbehavingProvider
) -> None:
    deployments = {"ok": provider.deployment("ok", **PER_TOKEN), "few": provider.deployment("ok", **FREE)}
    settings = {
        "models": deployments, "budget": {"limit": 0.03}, "rate_limits": {"few": gateway.RateLimit(requests=1)},
        "cache_ttl": 0,
    }  # fmt: skip
    paid, limited = {"model": "ok", "max_tokens": 5}, {"model": "few"}
    async with at_work(bus, **settings), at_work(other_bus, **settings):
        for asked, refusal in ((paid, gateway.BudgetExceeded), (limited, gateway.RateLimited)):
            await gateway.generate(bus, prompt="hello", **asked)  # type: ignore[arg-type]
            refused = await asyncio.gather(
                *(gateway.generate(bus, prompt="hello", **asked) for _ in range(3)),  # type: ignore[arg-type]
                return_exceptions=True,
            )
            assert {type(one) for one in refused} == {refusal}
            answer = await gateway.generate(other_bus, prompt="hello", **asked)  # type: ignore[arg-type]
            assert answer["response"] == ANSWER
    assert provider.calls["ok"] == 4
    for tenant in (bus, other_bus):
        assert (await purse_of(tenant))["spent"] == pytest.approx(COST)
