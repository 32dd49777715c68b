"""Rate limits per tenant and model that hold over all workers: a window of times, changed by compare and swap."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from typing import TYPE_CHECKING

from kit import codec
from kit.errors import Conflict, KitError

from .errors import RateLimited

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.store import Store

    from .settings import RateLimit

BUCKET = "gateway-limits"


class Limiter:
    """Lets ``requests`` through in any window of ``window`` seconds, and says when the next one would be.

    The store keeps the times of what was let through: exact, where a token bucket lets through twice its rate at times.
    Requests of one worker that come together are decided in one round trip.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, list[asyncio.Future[float]]] = {}
        self._deciding: dict[str, asyncio.Task[None]] = {}

    @classmethod
    async def open(cls, bus: Bus) -> Limiter:
        """Open the tenant's store of limits."""
        return cls(await bus.store(BUCKET, 7 * 86400.0))

    async def take(self, model: str, limit: RateLimit) -> None:
        """Take one request from a model's allowance.

        Raises:
            RateLimited: it is used up; with the seconds until the next request would be let through.
        """
        decided: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(model, []).append(decided)
        if model not in self._deciding:
            self._deciding[model] = asyncio.create_task(self._decide(model, limit))
        retry_after = await decided
        if retry_after > 0:
            error = RateLimited(model, limit=limit.requests, window=limit.window, retry_after=retry_after)
            error.retryable = limit.wait
            raise error

    async def _decide(self, model: str, limit: RateLimit) -> None:
        """Decide on everything that waits, until nothing does."""
        try:
            while batch := self._waiting.pop(model, None):
                try:
                    verdicts = await self._let_through(model, limit, len(batch))
                except KitError as error:
                    for decided in batch:
                        if not decided.done():
                            decided.set_exception(error)
                    continue
                for decided, retry_after in zip(batch, verdicts, strict=True):
                    if not decided.done():
                        decided.set_result(retry_after)
        finally:
            self._deciding.pop(model, None)

    async def _let_through(self, model: str, limit: RateLimit, wanted: int) -> list[float]:
        """Return for each wanted request 0, or the seconds to wait."""
        key = hashlib.sha256(model.encode()).hexdigest()[:32]
        tries = 0
        while True:
            entry = await self._store.get(key)
            now = time.time()
            kept = codec.loads(entry.value) if entry is not None and entry.value else []
            times = sorted(t for t in kept if now - limit.window < t <= now + 1.0)
            free = max(limit.requests - len(times), 0)
            granted = min(free, wanted)
            verdicts = [0.0] * granted
            if granted:
                times += [now] * granted
            for late in range(wanted - granted):
                # The n-th one refused must wait for the n-th oldest to leave the window.
                verdicts.append(max(times[min(late, len(times) - 1)] + limit.window - now, 0.001))
            if not granted:
                return verdicts
            try:
                value = codec.dumps(times)
                if entry is None:
                    await self._store.create(key, value)
                else:
                    await self._store.update(key, value, entry.revision)
            except Conflict:
                tries += 1
                await asyncio.sleep(random.uniform(0, min(0.002 * 2**tries, 0.1)))
                continue
            return verdicts
