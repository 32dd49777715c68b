"""Gateway: one way to every model, with a queue, a cache, limits, budgets and checks; the engine is LiteLLM.

``serve`` is the worker; ``generate``, ``stream``, ``embed`` and the rest are what callers use, over the bus alone.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import TYPE_CHECKING, Any

from kit.catalogue import GATEWAY_CACHE_INVALIDATE, GATEWAY_EMBEDDINGS, GATEWAY_REQUESTS, RAG_EMBEDDINGS
from kit.components import Service

from .budget import Purse
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
from .litellm_calls import Providers, litellm_module
from .models.static import static_embeddings
from .peers import Peers
from .prices import Prices
from .settings import DEFAULT_EMBEDDING_MODEL, DEFAULT_MODEL, Budget, RateLimit, Settings
from .worker import Gateway, Parts

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
    "invalidate",
    "provider_health",
    "serve",
    "stream",
    "stream_messages",
    "vectors_of",
]

_LAST_EVENTS = 5.0  # s; for what is still to be told when a worker stops


async def serve(bus: Bus, **settings: Any) -> Service:
    """Start a gateway worker for the bus's tenant; any number may work at once, in any number of processes.

    Args:
        bus: of the tenant.
        settings: the fields of ``Settings``: ``model``, ``models``, ``fallbacks``, ``timeout``, ``retries``,
            ``cache_ttl``, ``rate_limits``, ``budget``, ``concurrency``, …

    Raises:
        ConfigurationError: a setting that cannot work.
        TypeError: a setting that there is not.
    """
    chosen = Settings(**settings)
    worker_id = f"gateway-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    litellm, _ = await asyncio.gather(litellm_module(), asyncio.to_thread(static_embeddings))
    parts = await _assemble(bus, chosen, litellm, worker_id)
    gateway, embedder = Gateway(parts), Embedder(parts, bus)
    warming = asyncio.create_task(parts.providers.warm_up()) if chosen.models or chosen.fallbacks else None

    async def forget(message: Message) -> None:
        if parts.cache is not None:
            parts.cache.forget(message.data)
            await parts.cache.clear(message.data)

    workers = [
        await bus.subscribe(GATEWAY_CACHE_INVALIDATE, forget),
        await bus.work(GATEWAY_REQUESTS, gateway.handle, concurrency=chosen.concurrency),
        await bus.serve(GATEWAY_EMBEDDINGS, embedder.handle, concurrency=chosen.concurrency),
        await bus.work(RAG_EMBEDDINGS, embedder.handle_bulk, concurrency=2),
    ]

    async def end() -> None:
        if warming is not None:
            await asyncio.gather(warming, return_exceptions=True)
        await parts.events.drain(_LAST_EVENTS)
        if parts.cache is not None:
            await parts.cache.close()
        await parts.peers.leave()

    return Service(workers, end)


async def _assemble(bus: Bus, settings: Settings, litellm: Any, worker_id: str) -> Parts:
    """Open what the workers of a tenant share, and put a gateway together."""
    peers, limiter = await asyncio.gather(Peers.join(bus, worker_id), Limiter.open(bus))
    return Parts(
        settings=settings,
        telemetry=bus.telemetry,
        providers=Providers(settings, litellm),
        prices=Prices(settings, litellm),
        limiter=limiter,
        health=Health(cooldown=settings.cooldown, interval=settings.health_interval, worker_id=worker_id),
        events=Events(bus, worker_id),
        flights=await Flights.open(bus, peers),
        peers=peers,
        worker_id=worker_id,
        cache=await Cache.open(bus, settings.cache_ttl) if settings.cache_ttl else None,
        purse=await Purse.open(bus, settings.budget) if settings.budget is not None else None,
    )
