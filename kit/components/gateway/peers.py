"""Who else works for this tenant: a worker that is alone need not ask a store what it knows by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from kit.errors import BusError

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.store import Store

BUCKET = "gateway-workers"
_TTL = 9.0  # s; after which a worker that says nothing is taken for gone
_BEAT = 3.0
_SETTLE = 0.1  # s; for the others to hear of a new worker before it takes its first request

logger = logging.getLogger(__name__)


class Peers:
    """The gateway workers of one tenant that are alive now, as far as this one has heard."""

    def __init__(self, store: Store, worker_id: str) -> None:
        self._store = store
        self.worker_id = worker_id
        self._heard: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def join(cls, bus: Bus, worker_id: str) -> Peers:
        """Tell the others of this worker, and learn of them."""
        peers = cls(await bus.store(BUCKET, _TTL), worker_id)
        await peers._store.put(worker_id, b"{}")
        now = time.monotonic()
        peers._heard = {key: now for key in await peers._store.keys() if key != worker_id}
        peers._tasks = [asyncio.create_task(peers._listen()), asyncio.create_task(peers._beat())]
        await asyncio.sleep(_SETTLE)
        return peers

    async def leave(self) -> None:
        """Tell the others that this worker is gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._store.delete(self.worker_id)
        except BusError as error:
            logger.info("the others will notice by themselves that this worker is gone: %s", error)

    @property
    def alone(self) -> bool:
        """Whether no other worker was heard of lately."""
        if not self._heard:
            return True
        horizon = time.monotonic() - _TTL
        return all(heard < horizon for heard in self._heard.values())

    def alive(self, worker_id: str) -> bool:
        """Whether a worker was heard of lately, or is this one."""
        heard = self._heard.get(worker_id)
        return worker_id == self.worker_id or (heard is not None and heard >= time.monotonic() - _TTL)

    async def seen(self, worker_id: str) -> bool:
        """Say whether a worker is alive by asking the store itself: after a crash of the server nobody is heard of.

        Raises:
            BusError: the store did not answer.
        """
        return self.alive(worker_id) or await self._store.get(worker_id) is not None

    async def _listen(self) -> None:
        async for entry in self._store.watch():
            if entry.key == self.worker_id:
                continue
            if entry.value == b"{}":
                self._heard[entry.key] = time.monotonic()
            else:
                self._heard.pop(entry.key, None)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT)
            try:
                await self._store.put(self.worker_id, b"{}")
            except BusError as error:
                logger.info("the other workers were not told of this one: %s", error)
