"""The gateway stands up to an OpenAI-compatible provider that misbehaves: retries, fallbacks, budgets, one flight."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from misbehaving_provider import ANSWER, MisbehavingProvider
from test_gateway import at_work, second_bus, spans_of, total, until, watched, whole

from kit.catalogue import GATEWAY_COST_ALERTS, GATEWAY_HEALTH, LLMOPS_OPERATIONS
from kit.components import gateway
from kit.errors import DeadlineExceeded
from kit.nats.bus import Bus
from kit.nats.server import Server

PER_TOKEN = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.002}
COST = 11 * 0.001 + 7 * 0.002  # of one answer of the misbehaving provider


@pytest.fixture
async def provider() -> AsyncIterator[MisbehavingProvider]:
    async with MisbehavingProvider() as running:
        yield running


def models(provider: MisbehavingProvider, *names: str, **more: Any) -> dict[str, Any]:
    return {name: provider.deployment(name, **more) for name in names}


async def test_any_model_by_name_is_called_and_its_cost_told(
    tenant_bus: Bus, provider: MisbehavingProvider, telemetry: Any
) -> None:
    deployments = {"mine": provider.deployment("ok", **PER_TOKEN), "unpriced": provider.deployment("ok")}
    async with at_work(tenant_bus, models=deployments):
        response = await gateway.generate(tenant_bus, prompt="hello", model="mine", max_tokens=50, temperature=0.2)
        unpriced = await gateway.generate(tenant_bus, prompt="hello", model="unpriced")
    assert response["response"] == ANSWER
    assert response["tokens"] == {"prompt": 11, "completion": 7, "total": 18}
    assert response["cost"] == pytest.approx(COST)
    assert (response["provider"], response["price_source"]) == ("openai", "gateway settings")
    assert (unpriced["cost"], unpriced["price_source"]) == (None, "no price known")
    body = provider.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("ok", 50, 0.2)
    assert total(telemetry, "gateway.cost") == pytest.approx(COST)
    assert spans_of(telemetry, "gateway.provider.call")[0]["attributes"]["cost.usd"] == pytest.approx(COST)


async def test_the_price_list_of_litellm_prices_a_known_model(tenant_bus: Bus, provider: MisbehavingProvider) -> None:
    known = {"model": "openai/gpt-4o-mini", "api_base": provider.url, "api_key": "no-secret"}
    async with at_work(tenant_bus, models={"gpt": known}):
        response = await gateway.generate(tenant_bus, prompt="hello", model="gpt")
    assert response["cost"] == pytest.approx(11 * 0.15e-6 + 7 * 0.6e-6)
    assert response["price_source"].startswith("litellm 1.")


@pytest.mark.parametrize("model", ["fail-500x1", "fail-503x1", "limited-1x1"])
async def test_a_transient_failure_is_retried(tenant_bus: Bus, provider: MisbehavingProvider, model: str) -> None:
    started = time.monotonic()
    async with at_work(tenant_bus, models=models(provider, model)):
        response = await gateway.generate(tenant_bus, prompt="hello", model=model)
        seconds = time.monotonic() - started
    assert response["response"] == ANSWER
    assert (provider.calls[model], response["attempts"]) == (2, 2)
    if model.startswith("limited"):
        assert seconds >= 1.0, "Retry-After was not honoured"


async def test_a_second_answer_is_not_asked_for_when_nobody_waits_for_it(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    async with at_work(tenant_bus, models=models(provider, "ok", "slow-0.6"), cache_ttl=0):
        await gateway.generate(tenant_bus, prompt="hello", model="ok")  # LiteLLM imports what it needs
        check = {"level": "json_schema", "schema": {"type": "integer"}, "retries": 10}
        with pytest.raises((gateway.GatewayError, DeadlineExceeded)):
            await gateway.generate(tenant_bus, prompt="hello", model="slow-0.6", validation=check, timeout=3.0)
        await until(lambda: provider.active == 0)
    assert 1 <= provider.calls["slow-0.6"] <= 5


@pytest.mark.parametrize("status", [400, 401, 402, 404])
async def test_what_a_retry_cannot_mend_is_called_once(
    tenant_bus: Bus, provider: MisbehavingProvider, status: int
) -> None:
    model = f"fail-{status}"
    async with at_work(tenant_bus, models=models(provider, model)):
        with pytest.raises(gateway.ProviderFailed) as failed:
            await gateway.generate(tenant_bus, prompt="hello secret-canary", model=model)
    assert failed.value.status_code == status
    assert "secret-canary" not in str(failed.value)
    assert provider.calls[model] == 1


async def test_a_caller_is_told_when_a_provider_wants_to_be_asked_again(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    async with at_work(tenant_bus, models=models(provider, "limited-9"), retries=0):
        with pytest.raises(gateway.ProviderFailed) as failed:
            await gateway.generate(tenant_bus, prompt="hello", model="limited-9", timeout=3.0)
    assert (failed.value.status_code, failed.value.retry_after) == (429, 9.0)


@pytest.mark.parametrize("model", ["limited-1x2", "dated-2x2"])
async def test_what_a_provider_asks_to_wait_is_waited_before_every_retry(
    tenant_bus: Bus, provider: MisbehavingProvider, model: str
) -> None:
    """Whether it says so in seconds or by an HTTP date."""
    async with at_work(tenant_bus, models=models(provider, model), retries=2):
        response = await gateway.generate(tenant_bus, prompt="hello", model=model)
    assert (response["response"], response["attempts"]) == (ANSWER, 3)
    times = provider.times[model]
    assert len(times) == 3
    if model.startswith("dated"):
        assert times[2] >= provider.retry_at
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert all(1.0 <= pause < 4.0 for pause in pauses), pauses


@pytest.mark.parametrize("model", ["limited-9", "dated-9"])
async def test_a_provider_that_asks_to_wait_for_too_long_is_not_waited_for(
    tenant_bus: Bus, provider: MisbehavingProvider, model: str
) -> None:
    started = time.monotonic()
    async with at_work(tenant_bus, models=models(provider, model, "ok")):
        with pytest.raises(gateway.ProviderFailed) as failed:
            await gateway.generate(tenant_bus, prompt="hello", model=model, timeout=5.0)
        assert (failed.value.status_code, failed.value.retry_after) == (429, pytest.approx(8.5, abs=1.0))
        fallen = await gateway.generate(tenant_bus, prompt="hello", model=model, timeout=5.0, fallbacks=["ok"])
    assert (fallen["model"], provider.calls[model]) == ("ok", 2)
    assert time.monotonic() - started < 5


async def test_a_provider_that_fails_for_good_fails_its_request_and_is_logged(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    operations = await watched(tenant_bus, LLMOPS_OPERATIONS)
    async with at_work(tenant_bus, models=models(provider, "malformed", "cut"), retries=0):
        asked = [
            gateway.generate(tenant_bus, prompt="hello", model=model, timeout=20) for model in ("malformed", "cut")
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} == {gateway.ProviderFailed}
        await until(lambda: len(operations) >= 2)
    assert {row["status"] for row in operations} == {"error"}
    assert all(row["error_type"] for row in operations)


async def test_a_provider_that_hangs_costs_no_more_than_the_requests_timeout(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    started = time.monotonic()
    async with at_work(tenant_bus, models=models(provider, "hang"), retries=5, timeout=30):
        with pytest.raises(gateway.ProviderFailed, match="408"):
            await gateway.generate(tenant_bus, prompt="hello", model="hang", timeout=1.0)
    assert time.monotonic() - started < 3


async def test_a_fallback_answers_and_says_so(tenant_bus: Bus, provider: MisbehavingProvider) -> None:
    health = await watched(tenant_bus, GATEWAY_HEALTH)
    deployments = models(provider, "fail-402", "fail-500", "ok")
    settings = {"models": deployments, "retries": 1, "fallbacks": {"fail-500": ["ok"]}}
    async with at_work(tenant_bus, **settings):
        paid = await gateway.generate(tenant_bus, prompt="hello", model="fail-402", fallbacks=["kit/extractive"])
        assert (paid["model"], paid["requested_model"]) == ("kit/extractive", "fail-402")
        assert provider.calls["fail-402"] == 1
        response = await gateway.generate(tenant_bus, prompt="hello", model="fail-500")
        assert (response["model"], response["requested_model"], response["response"]) == ("ok", "fail-500", ANSWER)
        assert not (await gateway.generate(tenant_bus, prompt="hello", model="fail-500"))["cached"]
        failures = provider.calls["fail-500"]
        await gateway.generate(tenant_bus, prompt="hello again", model="fail-500")
        await until(lambda: any(row["model"] == "fail-500" and row["status"] == "unhealthy" for row in health))
        assert provider.calls["fail-500"] - failures <= 2
        table = await gateway.provider_health(tenant_bus)
    assert set(table["model"]) >= {"fail-500", "ok", "fail-402"}
    broken = table[table["model"] == "fail-500"].iloc[0]
    assert (broken["status"], broken["provider"], broken["error_rate"]) == ("unhealthy", "openai", 1.0)


async def test_a_hundred_identical_requests_at_once_cost_one_call(
    server: Server, tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    settings = {"models": models(provider, "slow-0.3"), "concurrency": 64}
    async with second_bus(server, tenant_bus) as other, at_work(tenant_bus, **settings), at_work(other, **settings):
        asked = [gateway.generate(tenant_bus, prompt="hello", model="slow-0.3") for _ in range(100)]
        answers = await asyncio.gather(*asked)
    assert provider.calls["slow-0.3"] == 1
    assert sum(not answer["cached"] for answer in answers) == 1
    assert len({answer["request_id"] for answer in answers}) == 100


async def test_identical_requests_that_fail_fail_together(tenant_bus: Bus, provider: MisbehavingProvider) -> None:
    async with at_work(tenant_bus, models=models(provider, "fail-402")):
        asked = [gateway.generate(tenant_bus, prompt="hello", model="fail-402") for _ in range(10)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(answer) for answer in answers} == {gateway.ProviderFailed}
    assert provider.calls["fail-402"] < 10


# --- budgets ----------------------------------------------------------------------------------------------------


async def test_a_budget_is_reserved_settled_and_refused_with_limit_and_reset(
    server: Server, tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    alerts = await watched(tenant_bus, GATEWAY_COST_ALERTS)
    settings = {
        "models": models(provider, "slow-1", "fail-402", **PER_TOKEN),
        "budget": {"limit": 0.3, "period": "day", "near": 0.5},
        "cache_ttl": 0,
    }
    async with second_bus(server, tenant_bus) as other, at_work(tenant_bus, **settings), at_work(other, **settings):
        asked = [gateway.generate(tenant_bus, prompt=f"hello {i}", model="slow-1", max_tokens=40) for i in range(12)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, gateway.BudgetExceeded)]
        # What is reserved at once, about 0.09 each, bounds what is let through; what it cost, 0.025 each, is settled.
        assert len(answers) - len(refused) == 3
        assert (refused[0].limit, refused[0].currency, refused[0].period) == (0.3, "USD", "day")
        assert refused[0].reset_at is not None
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT00:00:00Z", refused[0].reset_at)
        assert refused[0].reset_at in str(refused[0])
        left = datetime.fromisoformat(refused[0].reset_at) - datetime.now(UTC)
        assert refused[0].retry_after == pytest.approx(left.total_seconds(), abs=30)
        for _ in range(4):
            with pytest.raises(gateway.ProviderFailed):
                await gateway.generate(tenant_bus, prompt="hello", model="fail-402", max_tokens=40)
        await gateway.generate(tenant_bus, prompt="once more", model="slow-1", max_tokens=40)
        purse = await purse_of(tenant_bus, gateway.Budget(limit=0.3))
        await until(lambda: len(alerts) >= len(refused) + 1)
    assert purse["spent"] == pytest.approx(4 * COST)
    assert purse["reserved"] == 0
    reasons = [alert["reason"] for alert in alerts]
    assert (reasons.count("budget_near"), reasons.count("budget_exceeded")) == (1, len(refused))
    assert {alert["price_source"] for alert in alerts} == {"gateway settings"}


async def purse_of(bus: Bus, budget: Any) -> dict[str, Any]:
    from kit.components.gateway.budget import Purse

    return await (await Purse.open(bus, budget)).state()


async def test_a_request_may_bound_its_own_cost(tenant_bus: Bus, provider: MisbehavingProvider) -> None:
    async with at_work(tenant_bus, models=models(provider, "ok", **PER_TOKEN)):
        with pytest.raises(gateway.BudgetExceeded, match="per request"):
            await gateway.generate(tenant_bus, prompt="hello", model="ok", max_tokens=1000, max_cost=0.5)
        assert (await gateway.generate(tenant_bus, prompt="hello", model="ok", max_tokens=10, max_cost=0.5))["cost"]
    assert provider.calls["ok"] == 1


async def test_a_budget_leaves_free_models_alone_and_counts_embeddings(
    tenant_bus: Bus, provider: MisbehavingProvider
) -> None:
    budget = gateway.Budget(limit=0.01, period="hour")
    async with at_work(tenant_bus, models=models(provider, "ok", **PER_TOKEN), budget=budget):
        assert await gateway.generate(tenant_bus, prompt="hello")
        vectors = await gateway.embed(tenant_bus, ["a", "bcd"], model="ok")
        assert vectors[:, 0].tolist() == [1.0, 3.0]
        with pytest.raises(gateway.BudgetExceeded):
            await gateway.embed(tenant_bus, ["x" * 100], model="ok")
    assert (await purse_of(tenant_bus, budget))["spent"] == pytest.approx(6 * 0.001)


# --- streams ----------------------------------------------------------------------------------------------------


async def test_a_stream_is_relayed_as_it_comes(tenant_bus: Bus, provider: MisbehavingProvider) -> None:
    async with at_work(tenant_bus, models=models(provider, "ok", **PER_TOKEN)):
        messages = [m async for m in gateway.stream_messages(tenant_bus, prompt="hello", model="ok")]
    assert "".join(m.data.get("text", "") for m in messages[:-1]) == ANSWER
    assert len(messages) > 6
    assert messages[-1].data["cost"] == pytest.approx(COST)
    assert messages[-1].data["tokens"]["total"] == 18


async def test_a_stream_ends_with_its_reader(tenant_bus: Bus, provider: MisbehavingProvider) -> None:
    async with at_work(tenant_bus, models=models(provider, "drip-0.02")) as service:
        pieces = gateway.stream(tenant_bus, prompt="hello", model="drip-0.02")
        async for _ in pieces:
            break
        await pieces.aclose()  # type: ignore[attr-defined]
        await until(lambda: provider.left == 1 and provider.active == 0)
        await until(lambda: service.workers[1].in_flight == 0)


async def test_a_stream_that_breaks_off_says_so(tenant_bus: Bus, provider: MisbehavingProvider) -> None:
    seen: list[str] = []

    async def read() -> None:
        async for piece in gateway.stream(tenant_bus, prompt="hello", model="cut"):
            seen.append(piece)

    async with at_work(tenant_bus, models=models(provider, "cut"), retries=0):
        with pytest.raises(gateway.ProviderFailed):
            await read()
    assert "".join(seen) == "The misbehaving provider "
    assert provider.calls["cut"] == 1


async def test_a_stream_that_cannot_begin_is_tried_again(tenant_bus: Bus, provider: MisbehavingProvider) -> None:
    async with at_work(tenant_bus, models=models(provider, "fail-500x1")):
        assert await whole(gateway.stream(tenant_bus, prompt="hello", model="fail-500x1")) == ANSWER
    assert provider.calls["fail-500x1"] == 2
