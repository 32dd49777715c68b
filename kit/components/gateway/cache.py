"""Remembered responses: one JetStream key-value store per tenant, which all its gateway workers share."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.errors import BusError

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.store import Store

BUCKET = "gateway-cache"
# What does not change the answer, or belongs to this one request.
_NOT_IN_KEY_TEXT = """
request_id timestamp cache stream timeout priority user_id agent_id session_id task_id component metadata
max_cost currency fallbacks delivery
"""
_NOT_IN_KEY = frozenset(_NOT_IN_KEY_TEXT.split())
_ANSWER = (
    "response", "tool_calls", "tokens", "model", "finish_reason", "provider", "price_source", "currency",
    "reasoning_content", "refusal", "validation", "requested_model", "provider_response_id",
)  # fmt: skip
_MOST_KNOWN = 200_000
_AT_ONCE = 256
_AFTER = 0.001  # s; the answer goes first
_LONGEST = 30 * 86400.0  # s; of the bucket, whatever its workers' own ttl

logger = logging.getLogger(__name__)


def cache_key(tenant_id: str, data: dict[str, Any]) -> str:
    """Return the key of a request: SHA-256 over tenant, model, messages, every parameter, tools and prompt version."""
    asked = {name: value for name, value in data.items() if name not in _NOT_IN_KEY}
    asked["tenant_id"] = tenant_id
    if "prompt" in asked:
        asked["messages"] = [{"role": "user", "content": asked.pop("prompt")}]
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _mark(text: str | None) -> str:
    """A short token for the model or prompt version in a stored key, so that all of one can be found and forgotten."""
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else "-"


def stored_key(key: str, model: str, prompt_version: str | None) -> str:
    """Return where in the store a response lies."""
    return f"{_mark(model)}.{_mark(prompt_version)}.{key}"


def remembered(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what of an answer is kept for others: what was said, not what saying it took."""
    return {name: answer[name] for name in _ANSWER if name in answer}


class Cache:
    """Responses by request, as data: whoever is answered from it gets them wrapped anew.

    Which keys exist is known here from watching the store, so that a miss costs no round trip. A response that another
    worker stored a moment ago may therefore be missed; it is never wrong.
    """

    def __init__(self, store: Store, ttl: float) -> None:
        self._store = store
        self._ttl = ttl
        self._known: set[str] | None = None
        self._fresh: dict[str, dict[str, Any]] = {}  # on their way into the store
        self._storing: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._epoch = 0

    @classmethod
    async def open(cls, bus: Bus, ttl: float) -> Cache:
        """Open the tenant's cache, in which responses live ``ttl`` seconds, and begin to watch it."""
        cache = cls(await open_cache_store(bus), ttl)
        cache._known = set(await cache._store.keys())
        cache._watching = asyncio.create_task(cache._watch())
        return cache

    async def close(self) -> None:
        """Stop watching; what is on its way into the store still gets there."""
        await asyncio.gather(*self._storing, return_exceptions=True)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    @property
    def epoch(self) -> int:
        """Grows with every invalidation: what was asked before one must not be stored after it."""
        return self._epoch

    async def get(self, where: str, *, sure: bool = False) -> dict[str, Any] | None:
        """Return a remembered answer, or None.

        Args:
            where: ``stored_key`` of the request.
            sure: look into the store even if this worker has not seen the key yet.
        """
        fresh = self._fresh.get(where)
        if fresh is not None:
            return fresh
        if not sure and self._known is not None and where not in self._known:
            return None
        try:
            entry = await self._store.get(where)
        except BusError as error:
            logger.warning("the cache was not asked: %s", error)
            return None
        if entry is None or entry.value is None:
            if self._known is not None:
                self._known.discard(where)
            return None
        kept = codec.loads(entry.value)
        if time.time() - kept["stored_at"] > self._ttl:
            return None
        answer: dict[str, Any] = kept["answer"]
        return answer

    def put(self, where: str, response: dict[str, Any], epoch: int) -> asyncio.Task[None]:
        """Remember a response, unless the cache was invalidated since its request began.

        Here it is known at once; the task returned ends when every worker can find it.
        """
        if epoch == self._epoch:
            self._fresh[where] = remembered(response)
        task = asyncio.create_task(self._keep(where, epoch))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)
        return task

    async def _keep(self, where: str, epoch: int) -> None:
        await asyncio.sleep(_AFTER)
        answer = self._fresh.get(where)
        if answer is None:
            return
        try:
            await self._store.put(where, codec.dumps({"stored_at": time.time(), "answer": answer}), ttl=self._ttl)
            if epoch != self._epoch:  # invalidated while it was being stored
                await self._store.delete(where)
            elif self._known is not None:
                self._known.add(where)
        except BusError as error:
            logger.warning("a response was not remembered: %s", error)
        finally:
            self._fresh.pop(where, None)

    def forget(self, data: dict[str, Any]) -> None:
        """Forget in this worker what an invalidation names; at once, before the store is cleared."""
        self._epoch += 1
        for where in [where for where in self._fresh if _matches(where, data)]:
            del self._fresh[where]
        if self._known is not None:
            self._known -= {where for where in self._known if _matches(where, data)}

    async def clear(self, data: dict[str, Any]) -> None:
        """Delete from the store what an invalidation names."""
        await delete_keys(self._store, await doomed_keys(self._store, data))

    async def _watch(self) -> None:
        async for entry in self._store.watch(values=False):
            if self._known is None:
                continue
            if entry.value is None:
                self._known.discard(entry.key)
            elif len(self._known) < _MOST_KNOWN:
                self._known.add(entry.key)
            else:
                self._known = None  # too many to keep track of: from now on every look-up asks the store


async def open_cache_store(bus: Bus) -> Store:
    """Open the store in which a tenant's responses are remembered."""
    return await bus.store(BUCKET, _LONGEST)


async def doomed_keys(store: Store, data: dict[str, Any]) -> list[str]:
    """Return the stored keys that an invalidation names."""
    prefix = f"{_mark(data['model'])}." if data["scope"] == "model" and data.get("model") else ""
    return [where for where in await store.keys(prefix) if _matches(where, data)]


async def delete_keys(store: Store, keys: list[str]) -> None:
    """Delete stored responses; what is gone already stays so."""
    for begin in range(0, len(keys), _AT_ONCE):
        await asyncio.gather(*(store.delete(where) for where in keys[begin : begin + _AT_ONCE]))


def _matches(where: str, data: dict[str, Any]) -> bool:
    model, prompt, key = where.split(".")
    scope = data["scope"]
    if scope == "all":
        return True
    if scope == "model":
        return model == _mark(data.get("model"))
    if scope == "prompt":
        return prompt == _mark(data.get("prompt_version"))
    return key in data.get("keys", ())
