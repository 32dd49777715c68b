"""One request through the gateway: cache, rate limit, budget, provider, check; each with its span."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import (
    GATEWAY_CACHE_CHECK,
    GATEWAY_CACHE_HITS,
    GATEWAY_CACHE_MISSES,
    GATEWAY_COST,
    GATEWAY_PROVIDER_CALL,
    GATEWAY_RATE_LIMIT_CHECK,
    GATEWAY_RATE_LIMIT_VIOLATIONS,
    GATEWAY_TOKENS_USED,
    GATEWAY_VALIDATE,
)
from kit.otel import semconv
from kit.otel.genai import gen_ai_attributes

from .budget import Purse
from .cache import Cache, cache_key, stored_key
from .errors import BudgetExceeded, ProviderFailed, RateLimited, RequestExpired, ResponseInvalid, as_data
from .events import Events
from .flight import Flights
from .health import Health
from .limits import Limiter
from .litellm_calls import Call, Outcome, Providers, provider_parameters
from .peers import Peers
from .prices import CURRENCY, Price, Prices
from .relay import Emit, Relay, emit_known
from .responses import answer_of, operation_of, tokens_of, wrap
from .settings import Settings
from .validation import check_request, check_response

if TYPE_CHECKING:
    from kit.nats.message import Message
    from kit.otel import Operation, Telemetry

_ON_THE_WAY = 0.2  # s; an answer, or the failure, shall reach its caller before the caller stops waiting


@dataclass(kw_only=True, slots=True)
class Parts:
    """What a gateway is put together from; all of one tenant."""

    settings: Settings
    telemetry: Telemetry
    providers: Providers
    prices: Prices
    limiter: Limiter
    health: Health
    events: Events
    flights: Flights
    peers: Peers
    worker_id: str
    cache: Cache | None = None
    purse: Purse | None = None


class Gateway:
    """Answers ``llm_request`` data with ``llm_response`` data; what it does not know of is where they come from."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings, self._telemetry = parts.settings, parts.telemetry
        self._serial = 0

    # --- the queue's side ---------------------------------------------------------------------------------------

    async def handle(self, message: Message) -> dict[str, Any]:
        """Answer one job, and tell everybody who watches.

        Raises:
            GatewayError: there will be no answer, or not now.
        """
        request = dict(message.data)
        queued = max(time.time() - _seconds(request["timestamp"]), 0.0)
        try:
            timeout = request.get("timeout") or None
            if timeout is not None:
                if queued >= timeout:
                    raise RequestExpired(seconds=timeout)
                request["timeout"] = max(timeout - queued - min(_ON_THE_WAY, timeout / 10), 0.01)
            streaming = message.streaming
            response = await (self.stream(request, message.emit) if streaming else self.respond(request))
        except Exception as error:
            self._parts.events.response(_failed(request, error))
            if _in_vain(message.data, error):
                error.retryable = False  # type: ignore[attr-defined]  # the queue would bring it back too late
            raise
        response["queued"] = queued
        self._parts.events.response(response)
        return response

    # --- in process ---------------------------------------------------------------------------------------------

    async def respond(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request: from the cache, from a flight under way, or from its provider.

        Raises:
            GatewayError: it was refused, or failed.
        """
        started = time.perf_counter()
        self._prepare(request)
        parts, cache = self._parts, self._parts.cache
        if cache is None or request.get("cache") is False:
            answer = await self._ask(request)
            return wrap(request, answer, seconds=time.perf_counter() - started, cached=False)
        key = cache_key(request["tenant_id"], request)
        where = stored_key(key, request["model"], request.get("prompt_version"))
        answer_or_none = await self._look_up(cache, key, where, request["model"])
        if answer_or_none is not None:
            return wrap(request, answer_or_none, seconds=time.perf_counter() - started, cached=True)
        answer, shared = await parts.flights.share(
            key,
            lambda: self._ask(request, where),
            lambda: cache.get(where, sure=True),
            self._timeout(request) * (1 + self._settings.retries),
        )
        return wrap(request, answer, seconds=time.perf_counter() - started, cached=shared)

    def _prepare(self, request: dict[str, Any]) -> None:
        """Name the model, refuse what cannot work, and say on the span what is asked."""
        if request["model"] == "default":
            request["model"] = self._settings.model
        check_request(request)
        length = len(request.get("prompt") or "") or sum(len(str(m.get("content") or "")) for m in request["messages"])
        self._telemetry.annotate(
            {
                semconv.REQUEST_ID: request["request_id"],
                semconv.MODEL: request["model"],
                semconv.GATEWAY_MODEL: request["model"],
                semconv.GATEWAY_TENANT_ID: request["tenant_id"],
                semconv.GATEWAY_PROMPT_LENGTH: length,
            }
        )

    async def _look_up(self, cache: Cache, key: str, where: str, model: str) -> dict[str, Any] | None:
        with self._telemetry.operation(GATEWAY_CACHE_CHECK, {semconv.CACHE_KEY: key}) as op:
            answer = await cache.get(where)
            op.set(semconv.CACHE_HIT, answer is not None)
        self._telemetry.annotate({semconv.CACHE_HIT: answer is not None})
        self._telemetry.count(GATEWAY_CACHE_MISSES if answer is None else GATEWAY_CACHE_HITS, model=model)
        return answer

    async def _ask(self, request: dict[str, Any], where: str | None = None) -> dict[str, Any]:
        """Ask the provider, check what it says, and remember it."""
        cache = self._parts.cache
        epoch = cache.epoch if cache is not None else 0
        await self._admit(request)
        attempts = 1 + (request.get("validation") or {}).get("retries", 0)
        for attempt in range(1, attempts + 1):
            answer = await self._paid_call(request)
            verdict = await self._validate(request, answer)
            if verdict.passed:
                break
            if attempt == attempts:
                raise ResponseInvalid(verdict.level, detail=verdict.detail or "", attempts=attempts)
        answer["validation"] = verdict.as_data()
        await self._remember(where, answer, epoch)
        return answer

    async def _remember(self, where: str | None, answer: dict[str, Any], epoch: int) -> None:
        """Put an answer into the cache, unless a fallback gave it: the model that was asked for may be back soon."""
        cache = self._parts.cache
        if cache is None or where is None or answer.get("requested_model") is not None:
            return
        stored = cache.put(where, answer, epoch)
        if not self._parts.peers.alone:
            await asyncio.shield(stored)  # before the flight's lock opens, so that its followers find it

    async def _admit(self, request: dict[str, Any]) -> None:
        """Take one request from the tenant's allowance of the model."""
        model = request["model"]
        limit = self._settings.rate_limit(model)
        with self._telemetry.operation(GATEWAY_RATE_LIMIT_CHECK, {semconv.MODEL: model}) as op:
            try:
                if limit is not None:
                    await self._parts.limiter.take(model, limit)
                op.set(semconv.RATE_LIMIT_ALLOWED, True)
            except RateLimited as error:
                op.set(semconv.RATE_LIMIT_ALLOWED, False)
                self._telemetry.count(GATEWAY_RATE_LIMIT_VIOLATIONS, model=model)
                assert limit is not None
                self._parts.events.violated(error, limit, request)
                raise

    # --- money --------------------------------------------------------------------------------------------------

    async def _paid_call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Call the provider within the tenant's budget: reserved before, settled after, given back when it fails."""
        reserved = await self._reserve(request)
        cost = 0.0
        try:
            answer = await self._call(request)
            cost = answer["cost"] or 0.0
            return answer
        finally:
            await self._settle(reserved, cost)

    async def _reserve(self, request: dict[str, Any]) -> str | None:
        """Set aside what the request may cost; None when it costs nothing or there is no budget."""
        purse, prices, most = self._parts.purse, self._parts.prices, request.get("max_cost")
        if purse is None and most is None:
            return None
        estimated = prices.estimate(request["model"], request)
        try:
            if most is not None and estimated > most:
                raise BudgetExceeded(
                    limit=most, spent=0.0, estimated=estimated, currency=CURRENCY, period="request", reset_at=None
                )
            if purse is None or not estimated:
                return None
            self._serial += 1
            name = f"{request['request_id']}.{self._parts.worker_id}.{self._serial}"
            alert = await purse.reserve(name, estimated)
        except BudgetExceeded as error:
            self._parts.events.refused(error, request, prices.source(request["model"]))
            raise
        if alert is not None:
            self._parts.events.alert({**alert, "price_source": prices.source(request["model"])}, request)
        return name

    async def _settle(self, reserved: str | None, cost: float) -> None:
        if reserved is not None and self._parts.purse is not None:
            await asyncio.shield(self._parts.purse.settle(reserved, cost))

    # --- the provider -------------------------------------------------------------------------------------------

    async def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make one call to the provider, with its span, its metrics and its line in the log."""
        call = self._call_of(request)
        with self._span(request, call) as op:
            started = time.perf_counter()
            try:
                outcome = await self._within(request, self._parts.providers.complete(call))
            except ProviderFailed as error:
                self._failed_call(request, call, error, time.perf_counter() - started, op)
                raise
            answer = answer_of(outcome.response)
            self._succeeded_call(request, call, outcome, answer, time.perf_counter() - started, op)
        return answer

    def _call_of(self, request: dict[str, Any]) -> Call:
        """What to ask of the provider; a model that is down gives way to its fallback at once."""
        model = request["model"]
        fallbacks = tuple(request.get("fallbacks") or self._settings.fallbacks.get(model) or ())
        if fallbacks and self._parts.health.cooling(model):
            model, *rest = [*(name for name in fallbacks if not self._parts.health.cooling(name)), *fallbacks]
            fallbacks = tuple(name for name in rest if name != model)
        return Call(
            model=model,
            messages=request.get("messages") or [{"role": "user", "content": request["prompt"]}],
            parameters=provider_parameters(request),
            timeout=self._timeout(request),
            retries=0 if self._settings.deployment(model)["model"].startswith("kit/") else self._settings.retries,
            fallbacks=fallbacks,
        )

    def _timeout(self, request: dict[str, Any]) -> float:
        return min(float(request.get("timeout") or self._settings.timeout), self._settings.timeout)

    async def _within(self, request: dict[str, Any], call: Awaitable[Any]) -> Any:
        """Bound a call with all its retries by what the request, or the gateway, waits."""
        seconds = request.get("timeout") or self._settings.timeout * (1 + self._settings.retries)
        try:
            async with asyncio.timeout(seconds):
                return await call
        except TimeoutError:
            raise ProviderFailed(request["model"], kind="Timeout", status_code=408, retryable=False) from None

    def _span(self, request: dict[str, Any], call: Call) -> Operation:
        provider = self._parts.providers.provider_of(call.model)
        attributes = gen_ai_attributes(
            "chat", model=call.model, provider=provider, parameters=request.get("parameters"),
            conversation_id=request.get("session_id"), input_messages=call.messages,
        )  # fmt: skip
        attributes[semconv.PROVIDER], attributes[semconv.MODEL] = provider, call.model
        return self._telemetry.operation(
            GATEWAY_PROVIDER_CALL, attributes, kind="client", labels={"provider": provider, "model": call.model}
        )

    def _succeeded_call(
        self, request: dict[str, Any], call: Call, outcome: Outcome, answer: dict[str, Any], seconds: float,
        op: Operation, **more: Any,
    ) -> None:  # fmt: skip
        """Complete an answer with what it cost, and tell spans, metrics, the log and the health of it."""
        parts, tokens = self._parts, answer["tokens"]
        provider = parts.providers.provider_of(outcome.model)
        price = parts.prices.paid(outcome.model, outcome.response, tokens["prompt"], tokens["completion"])
        answer.update(
            model=outcome.model, provider=provider, cost=price.amount, currency=CURRENCY, price_source=price.source,
            attempts=outcome.attempts,
        )  # fmt: skip
        if outcome.model != request["model"]:
            answer["requested_model"] = request["model"]
        if op.recording:
            op.span.set_attributes(self._answer_attributes(answer, price))
        labels = {"model": outcome.model, "provider": provider}
        self._telemetry.record(GATEWAY_TOKENS_USED, tokens["total"], **labels)
        if price.amount is not None:
            self._telemetry.record(GATEWAY_COST, price.amount, **labels)
        failed_before = outcome.attempts - 1 if outcome.model == call.model else 0
        self._note(provider, outcome.model, seconds, failed_before=failed_before)
        if outcome.model != call.model:
            lost = ProviderFailed(call.model, kind="FellBack", status_code=None, retryable=True)
            self._note(parts.providers.provider_of(call.model), call.model, seconds, lost)
        self._log(
            request, model=outcome.model, provider=provider, tokens=tokens, cost=price.amount, seconds=seconds, op=op,
            status="success", price_source=price.source, attempts=outcome.attempts,
            requested_model=answer.get("requested_model"), finish_reason=answer["finish_reason"], **more,
        )  # fmt: skip

    def _failed_call(
        self, request: dict[str, Any], call: Call, error: ProviderFailed, seconds: float, op: Operation
    ) -> None:
        provider = self._parts.providers.provider_of(call.model)
        self._note(provider, call.model, seconds, error)
        nothing = {"prompt": 0, "completion": 0, "total": 0}
        self._log(
            request, model=call.model, provider=provider, tokens=nothing, cost=0.0, seconds=seconds, op=op,
            status="error", error_type=error.kind or type(error).__name__, status_code=error.status_code,
            price_source=self._parts.prices.source(call.model),
        )  # fmt: skip

    def _answer_attributes(self, answer: dict[str, Any], price: Price) -> dict[str, Any]:
        tokens = answer["tokens"]
        said = [{"role": "assistant", "content": answer["response"], "tool_calls": answer.get("tool_calls")}]
        attributes = gen_ai_attributes(
            response_id=answer.get("provider_response_id"), response_model=answer["model"],
            finish_reasons=[answer["finish_reason"]], input_tokens=tokens["prompt"],
            output_tokens=tokens["completion"], cache_read_tokens=tokens.get("cached"),
            reasoning_tokens=tokens.get("reasoning"), cost_usd=price.amount, output_messages=said,
        )  # fmt: skip
        attributes[semconv.TOKENS_PROMPT] = tokens["prompt"]
        attributes[semconv.TOKENS_COMPLETION] = tokens["completion"]
        attributes[semconv.TOKENS_TOTAL] = tokens["total"]
        if price.amount is not None:
            attributes[semconv.COST_USD] = price.amount
        return attributes

    def _note(
        self, provider: str, model: str, seconds: float, error: ProviderFailed | None = None, failed_before: int = 0
    ) -> None:
        event = self._parts.health.note(provider, model, seconds, error, failed_before=failed_before)
        if event is not None:
            self._parts.events.health(event)

    def _log(self, request: dict[str, Any], *, cost: float | None, seconds: float, op: Operation, **more: Any) -> None:
        self._serial += 1
        worker_id = self._parts.worker_id
        self._parts.events.operation(
            partial(
                operation_of, request, operation_id=f"{request['request_id'][:120]}.{worker_id}.{self._serial}",
                operation_type="completion", timestamp=codec.now(), worker_id=worker_id, trace_id=op.trace_id,
                latency_ms=seconds * 1e3, cost=cost, currency=CURRENCY, **more,
            )
        )  # fmt: skip

    async def _validate(self, request: dict[str, Any], answer: dict[str, Any]) -> Any:
        with self._telemetry.operation(GATEWAY_VALIDATE) as op:
            verdict = await check_response(request, answer)
            op.label("level", verdict.level)
            op.label("passed", verdict.passed)
            if op.recording:
                op.set(semconv.VALIDATION_LEVEL, verdict.level)
                op.set(semconv.VALIDATION_PASSED, verdict.passed)
        return verdict

    # --- piece by piece -----------------------------------------------------------------------------------------

    async def stream(self, request: dict[str, Any], emit: Emit) -> dict[str, Any]:
        """Answer one request piece by piece; the response at the end is the whole answer.

        When the caller leaves, the provider's stream is closed and this is cancelled.

        Raises:
            GatewayError: it was refused, or failed; a stream that broke off is not begun again.
        """
        started = time.perf_counter()
        self._prepare(request)
        cache = self._parts.cache if request.get("cache") is not False else None
        where = None
        epoch = cache.epoch if cache is not None else 0
        if cache is not None:
            key = cache_key(request["tenant_id"], request)
            where = stored_key(key, request["model"], request.get("prompt_version"))
            known = await self._look_up(cache, key, where, request["model"])
            if known is not None:
                await emit_known(request, known, emit)
                return wrap(request, known, seconds=time.perf_counter() - started, cached=True)
        await self._admit(request)
        reserved = await self._reserve(request)
        cost = 0.0
        try:
            answer = await self._stream_call(request, emit)
            cost = answer["cost"] or 0.0
        finally:
            await self._settle(reserved, cost)
        verdict = await self._validate(request, answer)
        if not verdict.passed:
            raise ResponseInvalid(verdict.level, detail=verdict.detail or "")
        answer["validation"] = verdict.as_data()
        await self._remember(where, answer, epoch)
        return wrap(request, answer, seconds=time.perf_counter() - started, cached=False)

    async def _stream_call(self, request: dict[str, Any], emit: Emit) -> dict[str, Any]:
        """Call the provider for a stream and pass its pieces on as they come."""
        call = self._call_of(request)
        call.parameters.update(stream=True, stream_options={"include_usage": True})
        with self._span(request, call) as op:
            started = time.perf_counter()
            relay = Relay(request, emit, self._parts.providers)
            try:
                outcome = await self._within(request, relay.run(call))
            except ProviderFailed as error:
                self._failed_call(request, call, error, time.perf_counter() - started, op)
                await relay.end(error=as_data(error))
                raise
            answer = answer_of(outcome.response)
            answer.update(streamed=True, chunks=relay.sent)
            first = None if relay.first is None else relay.first - started
            if first is not None:
                answer["time_to_first_token"] = first
                op.set(semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first)
            self._succeeded_call(
                request, call, outcome, answer, time.perf_counter() - started, op, streamed=True,
                time_to_first_token_ms=None if first is None else first * 1e3,
            )  # fmt: skip
        await relay.end(
            finish_reason=answer["finish_reason"], model=answer["model"], tokens=answer["tokens"], cost=answer["cost"],
            currency=CURRENCY,
        )  # fmt: skip
        return answer


def _failed(request: dict[str, Any], error: Exception) -> dict[str, Any]:
    """The ``llm_response`` that tells watchers of a request without an answer."""
    answer = {
        "response": None, "tokens": tokens_of(None), "cost": 0.0, "model": request["model"],
        "finish_reason": "error",
    }  # fmt: skip
    return {**wrap(request, answer, seconds=0.0, cached=False), "status": "error", "error": as_data(error)}


def _in_vain(request: dict[str, Any], error: Exception) -> bool:
    """Whether nobody waits any more by the time at which a request may be tried again."""
    after, timeout = getattr(error, "retry_after", None), request.get("timeout")
    if after is None or not timeout:
        return False
    return bool(time.time() + after > _seconds(request["timestamp"]) + timeout)


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()
