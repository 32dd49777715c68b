"""One request through the gateway: cache, flight, provider, check; each with its span."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from kit.catalogue import GATEWAY_CACHE_CHECK, GATEWAY_CACHE_HITS, GATEWAY_CACHE_MISSES, GATEWAY_VALIDATE
from kit.otel import semconv

from .cache import Cache, cache_key, remembered, stored_key
from .calls import Caller
from .errors import RequestExpired, ResponseInvalid, as_data
from .flight import Emit, Landed
from .parameters import check_request
from .parts import Parts
from .relay import emit_known
from .responses import wrap
from .validation import check_response, check_schema

if TYPE_CHECKING:
    from kit.nats.message import Message

_ON_THE_WAY = 0.2  # s; an answer, or the failure, shall reach its caller before the caller stops waiting


class Gateway:
    """Answers ``llm_request`` data with ``llm_response`` data; what it does not know of is where they come from."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings, self._telemetry = parts.settings, parts.telemetry
        self._caller = Caller(parts)

    # --- the queue's side ---------------------------------------------------------------------------------------

    async def handle(self, message: Message) -> dict[str, Any]:
        """Answer one job, and tell everybody who watches.

        Raises:
            GatewayError: there will be no answer, or not now.
        """
        request = {**message.data, "delivery": message.attempt}
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
        return await self._answer(request, None)

    async def stream(self, request: dict[str, Any], emit: Emit) -> dict[str, Any]:
        """Answer one request piece by piece; the response at the end is the whole answer.

        Identical streams at once are one call of the provider: in this worker each gets all the pieces, in another one
        the answer when it is whole. When the last caller leaves, the provider's stream is closed.

        Raises:
            GatewayError: it was refused, or failed; a stream that broke off is not begun again.
        """
        return await self._answer(request, emit)

    async def _answer(self, request: dict[str, Any], emit: Emit | None) -> dict[str, Any]:
        started = time.perf_counter()
        self._prepare(request)
        cache = self._parts.cache
        if cache is None or request.get("cache") is False:
            answer = await self._ask(request, emit)
            return wrap(request, answer, seconds=time.perf_counter() - started, cached=False)
        key = cache_key(request["tenant_id"], request)
        where = stored_key(key, request["model"], request.get("prompt_version"))
        known = await self._look_up(cache, key, where, request["model"])
        landed = Landed(answer=known, shared=True) if known else await self._fly(cache, key, where, request, emit)
        answer = remembered(landed.answer) if landed.shared else landed.answer
        if emit is not None and not landed.sent:
            await emit_known(request, answer, emit)
        return wrap(request, answer, seconds=time.perf_counter() - started, cached=landed.shared)

    async def _fly(self, cache: Cache, key: str, where: str, request: dict[str, Any], emit: Emit | None) -> Landed:
        """Ask the provider once for all who ask the same now; streams by themselves, for they cannot begin anew."""

        async def ride(piece: dict[str, Any], shared: bool) -> None:
            assert emit is not None
            more = {"cached": True, **({"cost": 0.0} if "cost" in piece else {})} if shared else {}
            await emit({**piece, "request_id": request["request_id"], **more})

        return await self._parts.flights.share(
            key if emit is None else f"{key}-stream",
            lambda tell: self._ask(request, None if emit is None else tell, where),
            lambda: cache.get(where, sure=True),
            self._caller.patience(request),
            None if emit is None else ride,
        )

    def _prepare(self, request: dict[str, Any]) -> None:
        """Name the model, refuse what cannot work, and say on the span what is asked."""
        if request["model"] == "default":
            request["model"] = self._settings.model
        check_request(request)
        check_schema(request)
        for model in (request["model"], *(request.get("fallbacks") or ())):
            self._parts.providers.admit(model)
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

    async def _ask(self, request: dict[str, Any], emit: Emit | None, where: str | None = None) -> dict[str, Any]:
        """Ask the provider, check what it says, and remember it; what was streamed cannot be asked for again."""
        cache, meter = self._parts.cache, self._caller.meter(request)
        epoch = cache.epoch if cache is not None else 0
        attempts = 1 + ((request.get("validation") or {}).get("retries", 0) if emit is None else 0)
        now = asyncio.get_running_loop().time
        ends = now() + self._caller.patience(request)
        with meter.once():
            for attempt in range(1, attempts + 1):
                answer = await self._caller.call(request, meter, emit)
                verdict = await self._validate(request, answer)
                if verdict.passed:
                    break
                request = {**request, "timeout": ends - now()}  # nobody waits longer for a second answer than for one
                if attempt == attempts or request["timeout"] <= 0:
                    raise ResponseInvalid(verdict.level, detail=verdict.detail or "", attempts=attempt)
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

    async def _validate(self, request: dict[str, Any], answer: dict[str, Any]) -> Any:
        with self._telemetry.operation(GATEWAY_VALIDATE) as op:
            verdict = await check_response(request, answer)
            op.label("level", verdict.level)
            op.label("passed", verdict.passed)
            if op.recording:
                op.set(semconv.VALIDATION_LEVEL, verdict.level)
                op.set(semconv.VALIDATION_PASSED, verdict.passed)
        return verdict


def _failed(request: dict[str, Any], error: Exception) -> dict[str, Any]:
    """The ``llm_response`` that tells watchers of a request without an answer."""
    answer = {
        "response": None, "tokens": {"prompt": 0, "completion": 0, "total": 0}, "cost": 0.0, "model": request["model"],
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
