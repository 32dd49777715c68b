"""Single flight: identical requests under way at the same time are asked of the provider once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from kit.errors import BusError, Conflict

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.store import Store

    from .peers import Peers

BUCKET = "gateway-flights"
_FIRST_LOOK = 0.01  # s; before a follower of another worker's flight looks for its result
_LONGEST_LOOK = 0.2

Answer = dict[str, Any]
logger = logging.getLogger(__name__)


class _Flight:
    """A request under way; its end is None when who flew it left."""

    __slots__ = ("end", "riders")

    def __init__(self, end: asyncio.Future[Answer | None]) -> None:
        self.end = end
        self.riders = 0


class Flights:
    """Requests under way, by cache key: in this worker by a table, across workers by a lock in a store.

    The lock costs a round trip, so it is taken only while other workers are alive. It is taken over from a worker that
    has died, and expires with the call's timeout in any case.
    """

    def __init__(self, store: Store, peers: Peers) -> None:
        self._store, self._peers = store, peers
        self._flying: dict[str, _Flight] = {}

    @classmethod
    async def open(cls, bus: Bus, peers: Peers) -> Flights:
        """Open the tenant's store of flights."""
        return cls(await bus.store(BUCKET, 600.0), peers)

    async def share(
        self,
        key: str,
        fly: Callable[[], Awaitable[Answer]],
        landed: Callable[[], Awaitable[Answer | None]],
        timeout: float,
    ) -> tuple[Answer, bool]:
        """Return the answer of ``fly`` and whether somebody else had asked for it.

        Who comes first flies, and the others ride along; when the first one leaves, the next one flies anew.

        Args:
            key: cache key of the request.
            fly: asks the provider and stores the answer.
            landed: looks for the answer that another worker has stored.
            timeout: seconds after which another worker's flight is taken for lost.
        """
        while (flight := self._flying.get(key)) is not None:
            flight.riders += 1
            answer = await asyncio.shield(flight.end)
            if answer is not None:
                return answer, True
        flight = self._flying[key] = _Flight(asyncio.get_running_loop().create_future())
        try:
            answer, elsewhere = await self._fly(key, fly, landed, timeout)
            flight.end.set_result(answer)
            return answer, elsewhere
        except asyncio.CancelledError:
            flight.end.set_result(None)
            raise
        except Exception as error:
            if flight.riders:
                flight.end.set_exception(error)
            raise
        finally:
            del self._flying[key]

    async def _fly(
        self,
        key: str,
        fly: Callable[[], Awaitable[Answer]],
        landed: Callable[[], Awaitable[Answer | None]],
        timeout: float,
    ) -> tuple[Answer, bool]:
        """Return the answer, and whether another worker had asked for it."""
        if self._peers.alone:
            return await fly(), False
        look = _FIRST_LOOK
        while not await self._locked(key, timeout):
            await asyncio.sleep(look)
            look = min(look * 1.5, _LONGEST_LOOK)
            answer = await landed()
            if answer is not None:
                return answer, True
        try:
            answer = await landed()  # between the last look and the lock
            return (answer, True) if answer is not None else (await fly(), False)
        finally:
            await self._unlock(key)

    async def _locked(self, key: str, timeout: float) -> bool:
        """Take the lock of a flight, if nobody has it or who has it is dead."""
        me, ttl = self._peers.worker_id.encode(), timeout + 2.0
        try:
            await self._store.create(key, me, ttl=ttl)
            return True
        except Conflict:
            held = await self._store.get(key)
        except BusError as error:
            logger.warning("a flight goes on without its lock: %s", error)
            return True
        if held is None or held.value is None or self._peers.alive(held.value.decode()):
            return False
        try:
            await self._store.update(key, me, held.revision, ttl=ttl)
            return True
        except Conflict:
            return False  # another follower was quicker

    async def _unlock(self, key: str) -> None:
        try:
            await asyncio.shield(self._store.delete(key))
        except BusError:
            return  # it expires by itself
