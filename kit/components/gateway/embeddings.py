"""Embeddings: a batch now (REQUEST), or many in bulk (JOB); float32 all the way, by claim when too large."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kit import codec
from kit.catalogue import GATEWAY_PROVIDER_CALLS
from kit.errors import KitError
from kit.otel import semconv
from kit.otel.genai import gen_ai_attributes

from .books import Books
from .errors import RequestRefused, unusable
from .parameters import embedding_parameters
from .parts import Parts
from .prices import CURRENCY
from .till import Meter
from .usage import asked_to_embed, size_of

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
        self._books = Books(parts, "embedding")

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
        response = await self.embed({**message.data, "delivery": message.attempt}, once=True)
        self._parts.events.embeddings(response)
        return response

    async def embed(self, request: dict[str, Any], *, once: bool = False) -> dict[str, Any]:
        """Embed one request's texts in order; with ``once``, the queue does not retry after a call was made."""
        started = time.perf_counter()
        texts, model = request["texts"], request["model"]
        if model == "default":
            model = self._parts.settings.embedding_model
        if len(texts) > _MOST_TEXTS:
            raise RequestRefused(f"{len(texts):,} texts are too many for one request: send at most {_MOST_TEXTS:,}")
        self._parts.providers.admit(model)
        meter = self._meter(request, texts)
        with meter.once() if once else nullcontext():
            vectors, told = await self._call(request, model, texts, meter)
        if request.get("normalize"):
            vectors = _normalised(vectors)
        echo: dict[str, Any] = {name: request[name] for name in ("document_id", "chunk_ids") if name in request}
        return {
            "request_id": request["request_id"], "tenant_id": request["tenant_id"], "model": model,
            "dimension": vectors.shape[1], "count": len(vectors), "timestamp": codec.now(), "status": "success",
            "duration": time.perf_counter() - started, **told, **echo, **await self._carried(vectors),
        }  # fmt: skip

    def _meter(self, request: dict[str, Any], texts: list[str]) -> Meter:
        """Open the account of a request; of limits only the model's own holds, what "*" allows is for chat."""
        prices, tokens = self._parts.prices, size_of(texts) // 3 + 1
        return Meter(
            self._parts.till, request, limit=self._parts.settings.rate_limits.get, unlimited_too=False,
            estimate=lambda name: prices.of(name, tokens, 0), line=partial(self._books.line, request),
        )  # fmt: skip

    async def _call(
        self, request: dict[str, Any], model: str, texts: list[str], meter: Meter
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Call the provider: its span is the request's own, its metrics and its line in the log are like any call's."""
        parts = self._parts
        provider, parameters = parts.providers.provider_of(model), embedding_parameters(request)
        seconds = float(request.get("timeout") or parts.settings.timeout * (1 + parts.settings.retries))
        about = gen_ai_attributes("embeddings", model=model, provider=provider, input_messages=_shown(texts))
        self._telemetry.annotate({**about, semconv.REQUEST_ID: request["request_id"], semconv.EMBEDDING_MODEL: model})
        try:
            await meter.enter(model)
            started = time.perf_counter()

            def lost(error: BaseException) -> None:
                self._failed(request, meter, error, time.perf_counter() - started)

            try:
                timeout, read = min(seconds, parts.settings.timeout), partial(_read, len(texts), model)
                work = parts.providers.embed(model, texts, timeout, parameters, meter, read, lost)
                response, vectors = await meter.within(seconds, work)
            except (KitError, asyncio.CancelledError) as error:
                lost(error)
                raise
            return vectors, self._succeeded(request, meter, response, vectors, time.perf_counter() - started)
        finally:
            await meter.settle()

    def _succeeded(
        self, request: dict[str, Any], meter: Meter, response: Any, vectors: NDArray[np.float32], seconds: float
    ) -> dict[str, Any]:
        """Tell span, metrics, log and health of a call; return what its response says of tokens and cost."""
        model, dimension = meter.model, vectors.shape[1]
        provider = self._parts.providers.provider_of(model)
        tokens, price = self._books.used(model, response, asked_to_embed(request["texts"]), "")
        self._telemetry.count(GATEWAY_PROVIDER_CALLS, 1, status="success", provider=provider, model=model)
        self._books.paid(meter, tokens, price)
        attributes = gen_ai_attributes(
            "embeddings", model=model, input_tokens=tokens["prompt"], dimension=dimension, cost_usd=price.amount
        )
        self._telemetry.annotate({**attributes, semconv.EMBEDDING_DIMENSION: dimension})
        self._books.note(model, seconds)
        self._books.log(
            request,
            meter,
            model=model,
            tokens=tokens,
            price=price,
            seconds=seconds,
            status="success",
            attempts=meter.calls,
        )
        return {
            "tokens": tokens, "cost": price.amount, "currency": CURRENCY, "price_source": price.source,
            "provider": provider,
        }  # fmt: skip

    def _failed(self, request: dict[str, Any], meter: Meter, error: BaseException, seconds: float) -> None:
        """Tell metrics, log and health of a call without an answer."""
        cancelled, model = isinstance(error, asyncio.CancelledError), meter.model
        self._telemetry.count(
            GATEWAY_PROVIDER_CALLS, 1, status="cancelled" if cancelled else "error", error_type=type(error).__name__,
            provider=self._parts.providers.provider_of(model), model=model,
        )  # fmt: skip
        self._books.lost(request, meter, model, error, asked=asked_to_embed(request["texts"]), seconds=seconds)

    async def _carried(self, vectors: NDArray[np.float32]) -> dict[str, Any]:
        """The embeddings themselves, or a claim for them when no message could hold them."""
        if vectors.nbytes <= _FILL * self._bus.connection.max_payload:
            return {"embeddings": vectors}
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        name = f"embeddings-{hashlib.sha256(data).hexdigest()[:32]}"
        return {"claim": await self._bus.put_object(name, data)}


def _read(expected: int, model: str, response: Any) -> tuple[Any, NDArray[np.float32]]:
    """Return a provider's response, and its embeddings in the order of the texts, float32 (n, dim).

    Raises:
        ProviderFailed: they are missing, too few, or of different lengths.
    """
    try:
        rows = list(response.data)
        if any(row["index"] is not None for row in rows):
            rows.sort(key=lambda row: int(row["index"]))
            if [int(row["index"]) for row in rows] != list(range(len(rows))):
                raise ValueError("each text must have one embedding")
        given = np.asarray([row["embedding"] for row in rows])
        if given.dtype.kind not in "fiu" or given.shape != (expected, given.size // expected) or not given.size:
            raise ValueError("an embedding must be a list of numbers")
        with np.errstate(over="ignore"):
            vectors = given.astype(np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError("an embedding must be finite")
    except (LookupError, TypeError, ValueError, AttributeError):
        raise unusable(model, "MalformedEmbeddings", retryable=True, answer=response) from None
    return response, vectors


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0), np.float32)


def _shown(texts: list[str]) -> str:
    return "\n".join(texts[:16])
