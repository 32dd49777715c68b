"""Gateway: one way to every model, with a queue, a cache, limits, budgets and checks; the engine is LiteLLM.

``serve`` is the worker; ``generate``, ``stream``, ``embed`` and the rest are what callers use, over the bus alone.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from kit.catalogue import GATEWAY_CACHE_INVALIDATE, GATEWAY_EMBEDDINGS, GATEWAY_REQUESTS, RAG_EMBEDDINGS
from kit.components import Service
from kit.threads import on_own_thread

from .budget import Purse, spend
from .cache import Cache
from .client import (
    embed,
    embed_bulk,
    generate,
    invalidate,
    provider_health,
    stream,
    stream_messages,
    vectors_of,
)
from .embeddings import Embedder
from .errors import (
    BudgetExceeded,
    GatewayError,
    PriceUnknown,
    ProviderFailed,
    RateLimited,
    RequestExpired,
    RequestRefused,
    ResponseInvalid,
)
from .events import Events
from .flight import Flights
from .health import Health
from .limits import Limiter
from .litellm_calls import Providers, litellm_module, load_client
from .models.static import static_embeddings
from .parts import Parts
from .peers import Peers
from .prices import Prices
from .settings import DEFAULT_EMBEDDING_MODEL, DEFAULT_MODEL, Budget, RateLimit, Settings, budget_of, rate_limit_of
from .till import Till
from .worker import Gateway

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.message import Message

__all__ = [
    "DEFAULT_EMBEDDING_MODEL",
    "DEFAULT_MODEL",
    "Budget",
    "BudgetExceeded",
    "Gateway",
    "GatewayError",
    "PriceUnknown",
    "ProviderFailed",
    "RateLimit",
    "RateLimited",
    "RequestExpired",
    "RequestRefused",
    "ResponseInvalid",
    "Settings",
    "embed",
    "embed_bulk",
    "generate",
    "in_process",
    "invalidate",
    "provider_health",
    "serve",
    "spend",
    "stream",
    "stream_messages",
    "vectors_of",
]

_LAST_EVENTS = 5.0  # s; for what is still to be told when a worker stops


async def serve(
    bus: Bus,
    *,
    model: str = DEFAULT_MODEL,
    embedding_model: str = DEFAULT_EMBEDDING_MODEL,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    providers: Sequence[str] | None = None,
    fallbacks: Mapping[str, Sequence[str]] | None = None,
    timeout: float = 60.0,
    retries: int = 2,
    cooldown: float = 10.0,
    cache_ttl: float = 3600.0,
    rate_limits: Mapping[str, RateLimit | Mapping[str, Any]] | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    concurrency: int = 32,
    health_interval: float = 30.0,
    log_interval: float = 0.02,
) -> Service:
    """Start a gateway worker for the bus's tenant; any number may work at once, in any number of processes.

    Args:
        bus: of the tenant.
        model: what answers when a request names the model "default".
        embedding_model: what embeds when a request names the model "default".
        models: LiteLLM settings (``model``, ``api_base``, ``api_key``, prices) by the name that requests use.
        providers: providers whose models a request may name besides ``models``, e.g. ``["openai", "bedrock"]``; None
            means every well-known one whose key (``OPENAI_API_KEY``, …) the environment has.
        fallbacks: models to try when one fails, by its name.
        timeout: seconds for one call of a provider.
        retries: further calls of a model after a transient failure; the queue adds none.
        cooldown: seconds for which a model that keeps failing is passed over when it has a fallback.
        cache_ttl: seconds for which a response is remembered; 0 turns the cache off.
        rate_limits: of calls, by model name, "*" for all others; a ``RateLimit`` or its fields.
        budget: of this tenant; a ``Budget`` or its fields. Models without a known price are refused then.
        concurrency: requests worked on at once.
        health_interval: seconds between two reports of a provider's health while it is used.
        log_interval: seconds for which a provider's call waits for others, to be logged with them.

    Raises:
        ConfigurationError: a setting that cannot work.
    """
    settings = Settings(
        model=model, embedding_model=embedding_model, models=models or {}, providers=providers,
        fallbacks=fallbacks or {}, timeout=timeout, retries=retries, cooldown=cooldown, cache_ttl=cache_ttl,
        budget=budget_of(budget),
        rate_limits={name: rate_limit_of(limit) for name, limit in (rate_limits or {}).items()},
        concurrency=concurrency, health_interval=health_interval, log_interval=log_interval,
    )  # fmt: skip
    parts = await _assemble(bus, settings)
    gateway, embedder = Gateway(parts), Embedder(parts, bus)

    async def forget(message: Message) -> None:
        if parts.cache is not None:
            parts.cache.forget(message.data)
            await parts.cache.clear(message.data)

    workers = [
        await bus.subscribe(GATEWAY_CACHE_INVALIDATE, forget),
        await bus.work(GATEWAY_REQUESTS, gateway.handle, concurrency=settings.concurrency),
        await bus.serve(GATEWAY_EMBEDDINGS, embedder.handle, concurrency=settings.concurrency),
        await bus.work(RAG_EMBEDDINGS, embedder.handle_bulk, concurrency=2),
    ]

    return Service(workers, partial(_close, parts))


@asynccontextmanager
async def in_process(bus: Bus, settings: Settings | None = None) -> AsyncIterator[Gateway]:
    """Put a gateway together without its queue: ``gateway.respond(request)`` answers ``llm_request`` data at once.

    For measuring what the gateway itself costs; everybody else goes over the bus.
    """
    parts = await _assemble(bus, settings or Settings())
    try:
        yield Gateway(parts)
    finally:
        await _close(parts)


async def _close(parts: Parts) -> None:
    """Tell what is still to be told, and give back what was used."""
    await parts.till.close(_LAST_EVENTS)
    if parts.looking is not None:
        parts.looking.cancel()
    if parts.cache is not None:
        await parts.cache.close()
    await parts.peers.leave()


async def _assemble(bus: Bus, settings: Settings) -> Parts:
    """Load LiteLLM and the offline models, open what the workers of a tenant share, and put a gateway together."""
    worker_id = f"gateway-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    litellm, _ = await asyncio.gather(litellm_module(), asyncio.to_thread(static_embeddings))
    if settings.models:
        await on_own_thread(load_client, name="kit-litellm")
    peers, limiter = await asyncio.gather(Peers.join(bus, worker_id), Limiter.open(bus))
    prices, events = Prices(settings, litellm), Events(bus, worker_id, settings.log_interval)
    till = Till(
        telemetry=bus.telemetry, prices=prices, limiter=limiter, events=events, worker_id=worker_id,
        purse=await Purse.open(bus, settings.budget) if settings.budget is not None else None,
    )  # fmt: skip
    purse = till.purse
    return Parts(
        settings=settings,
        telemetry=bus.telemetry,
        providers=Providers(settings, litellm),
        prices=prices,
        till=till,
        health=Health(cooldown=settings.cooldown, interval=settings.health_interval, worker_id=worker_id),
        events=events,
        flights=await Flights.open(bus, peers),
        peers=peers,
        worker_id=worker_id,
        looking=None if purse is None else asyncio.create_task(purse.look_after(peers.seen, till.log)),
        max_payload=lambda: bus.connection.max_payload,
        cache=await Cache.open(bus, settings.cache_ttl) if settings.cache_ttl else None,
    )
