"""Embeddings: a batch now (REQUEST), or many in bulk (JOB); float32 all the way, by claim when too large."""

from __future__ import annotations

import asyncio
import hashlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.catalogue import (
    GATEWAY_COST,
    GATEWAY_PROVIDER_CALLS,
    GATEWAY_RATE_LIMIT_VIOLATIONS,
    GATEWAY_TOKENS_USED,
)
from kit.otel import semconv
from kit.otel.genai import gen_ai_attributes

from .errors import ProviderFailed, RateLimited, RequestRefused
from .litellm_calls import refuse_steering
from .prices import CURRENCY
from .responses import operation_of, tokens_of
from .worker import Parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kit.nats.bus import Bus
    from kit.nats.message import Message

_FILL = 0.8  # share of max_payload that embeddings may take before they go by claim
_MOST_TEXTS = 100_000


class Embedder:
    """Answers ``embedding_request`` data with ``embedding_response`` data."""

    def __init__(self, parts: Parts, bus: Bus) -> None:
        self._parts, self._bus = parts, bus
        self._telemetry = parts.telemetry
        self._serial = 0

    async def handle(self, message: Message) -> dict[str, Any]:
        """Answer a request for embeddings now.

        Raises:
            GatewayError: it was refused, or its provider failed.
        """
        return await self.embed(message.data)

    async def handle_bulk(self, message: Message) -> dict[str, Any]:
        """Do a job of bulk embeddings, and tell everybody who watches.

        Raises:
            GatewayError: it was refused, or its provider failed.
        """
        response = await self.embed(message.data)
        self._parts.events.embeddings(response)
        return response

    async def embed(self, request: dict[str, Any]) -> dict[str, Any]:
        """Embed the texts of one request, in their order."""
        started = time.perf_counter()
        texts, model = request["texts"], request["model"]
        if model == "default":
            model = self._parts.settings.embedding_model
        if len(texts) > _MOST_TEXTS:
            raise RequestRefused(f"{len(texts):,} texts are too many for one request: send at most {_MOST_TEXTS:,}")
        await self._admit(request, model)
        vectors, told = await self._call(request, model, texts)
        if request.get("normalize"):
            vectors = _normalised(vectors)
        echo: dict[str, Any] = {name: request[name] for name in ("document_id", "chunk_ids") if name in request}
        return {
            "request_id": request["request_id"], "tenant_id": request["tenant_id"], "model": model,
            "dimension": vectors.shape[1], "count": len(vectors), "timestamp": codec.now(), "status": "success",
            "duration": time.perf_counter() - started, **told, **echo, **await self._carried(vectors),
        }  # fmt: skip

    async def _admit(self, request: dict[str, Any], model: str) -> None:
        """Take one request from the model's own allowance; what "*" allows is for chat."""
        limit = self._parts.settings.rate_limits.get(model)
        if limit is None:
            return
        try:
            await self._parts.limiter.take(model, limit)
        except RateLimited as error:
            self._telemetry.count(GATEWAY_RATE_LIMIT_VIOLATIONS, model=model)
            self._parts.events.violated(error, limit, request)
            raise

    async def _call(
        self, request: dict[str, Any], model: str, texts: list[str]
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Call the provider: its span is the request's own, its metrics and its line in the log are like any call's."""
        parts = self._parts
        provider = parts.providers.provider_of(model)
        about = gen_ai_attributes("embeddings", model=model, provider=provider, input_messages=_shown(texts))
        self._telemetry.annotate({**about, semconv.REQUEST_ID: request["request_id"], semconv.EMBEDDING_MODEL: model})
        reserved = await self._reserve(request, model, texts)
        started = time.perf_counter()
        cost = 0.0
        try:
            response = await parts.providers.embed(
                model, texts, self._timeout(request), self._parameters(request), request.get("timeout")
            )
            vectors = _vectors(response, len(texts), model)
            told = self._succeeded(request, model, provider, response, vectors, started)
            cost = told["cost"] or 0.0
        except ProviderFailed as error:
            self._failed(request, model, provider, error, started)
            raise
        finally:
            if reserved is not None and parts.purse is not None:
                await asyncio.shield(parts.purse.settle(reserved, cost))
        return vectors, told

    def _succeeded(
        self, request: dict[str, Any], model: str, provider: str, response: Any, vectors: NDArray[np.float32],
        started: float,
    ) -> dict[str, Any]:  # fmt: skip
        """Tell span, metrics, log and health of a call; return what its response says of tokens and cost."""
        tokens = tokens_of(response.usage)
        price = self._parts.prices.paid(model, response, tokens["prompt"], 0)
        self._telemetry.count(GATEWAY_PROVIDER_CALLS, 1, status="success", provider=provider, model=model)
        self._telemetry.record(GATEWAY_TOKENS_USED, tokens["total"], provider=provider, model=model)
        if price.amount is not None:
            self._telemetry.record(GATEWAY_COST, price.amount, provider=provider, model=model)
        dimension = vectors.shape[1]
        attributes = gen_ai_attributes(
            "embeddings", model=model, input_tokens=tokens["prompt"], dimension=dimension, cost_usd=price.amount
        )
        self._telemetry.annotate({**attributes, semconv.EMBEDDING_DIMENSION: dimension})
        self._note(provider, model, time.perf_counter() - started)
        self._log(
            request, model=model, provider=provider, tokens=tokens, cost=price.amount, started=started,
            status="success", price_source=price.source, attempts=1,
        )  # fmt: skip
        return {
            "tokens": tokens, "cost": price.amount, "currency": CURRENCY, "price_source": price.source,
            "provider": provider,
        }  # fmt: skip

    def _failed(
        self, request: dict[str, Any], model: str, provider: str, error: ProviderFailed, started: float
    ) -> None:
        """Tell metrics, log and health of a call that failed."""
        kind = type(error).__name__
        self._telemetry.count(
            GATEWAY_PROVIDER_CALLS, 1, status="error", error_type=kind, provider=provider, model=model
        )
        self._note(provider, model, time.perf_counter() - started, error)
        nothing = {"prompt": 0, "completion": 0, "total": 0}
        self._log(
            request, model=model, provider=provider, tokens=nothing, cost=0.0, started=started, status="error",
            error_type=error.kind, status_code=error.status_code,
        )  # fmt: skip

    async def _reserve(self, request: dict[str, Any], model: str, texts: list[str]) -> str | None:
        """Set aside what the call may cost, when there is a budget."""
        if self._parts.purse is None:
            return None
        estimated = self._parts.prices.of(model, sum(map(len, texts)) // 3 + 1, 0).amount or 0.0
        if not estimated:
            return None
        self._serial += 1
        name = f"{request['request_id']}.{self._parts.worker_id}.e{self._serial}"
        alert = await self._parts.purse.reserve(name, estimated)
        if alert is not None:
            self._parts.events.alert(alert, {**request, "model": model})
        return name

    def _parameters(self, request: dict[str, Any]) -> dict[str, Any]:
        parameters = dict(request.get("parameters") or {})
        refuse_steering(parameters)
        if "dimensions" in request:
            parameters["dimensions"] = request["dimensions"]
        return parameters

    def _timeout(self, request: dict[str, Any]) -> float:
        return min(float(request.get("timeout") or self._parts.settings.timeout), self._parts.settings.timeout)

    def _note(self, provider: str, model: str, seconds: float, error: ProviderFailed | None = None) -> None:
        event = self._parts.health.note(provider, model, seconds, error)
        if event is not None:
            self._parts.events.health(event)

    def _log(self, request: dict[str, Any], *, cost: float | None, started: float, **more: Any) -> None:
        self._serial += 1
        worker_id = self._parts.worker_id
        self._parts.events.operation(
            partial(
                operation_of, request, operation_id=f"{request['request_id'][:120]}.{worker_id}.e{self._serial}",
                operation_type="embedding", timestamp=codec.now(), worker_id=worker_id, trace_id="",
                cost=cost, currency=CURRENCY, latency_ms=(time.perf_counter() - started) * 1e3, **more,
            )
        )  # fmt: skip

    async def _carried(self, vectors: NDArray[np.float32]) -> dict[str, Any]:
        """The embeddings themselves, or a claim for them when no message could hold them."""
        if vectors.nbytes <= _FILL * self._bus.connection.max_payload:
            return {"embeddings": vectors}
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        name = f"embeddings-{hashlib.sha256(data).hexdigest()[:32]}"
        return {"claim": await self._bus.put_object(name, data)}


def _vectors(response: Any, expected: int, model: str) -> NDArray[np.float32]:
    """Return a provider's embeddings in the order of the texts, float32 (n, dim)."""
    rows = sorted(response.data, key=lambda row: row["index"])
    if len(rows) != expected:
        raise ProviderFailed(model, kind="MissingEmbeddings", status_code=None, retryable=True)
    return np.asarray([row["embedding"] for row in rows], np.float32).reshape(expected, -1)


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0), np.float32)


def _shown(texts: list[str]) -> str:
    return "\n".join(texts[:16])
