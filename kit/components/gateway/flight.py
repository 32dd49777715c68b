"""Single flight: identical requests under way at the same time are asked of the provider once, streamed or not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from kit.errors import BusError, Conflict

from .errors import ProviderFailed, timed_out

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.nats.store import Store

    from .peers import Peers

BUCKET = "gateway-flights"
_FIRST_LOOK = 0.01  # s; before a follower of another worker's flight looks for its result
_LONGEST_LOOK = 0.2

Answer: TypeAlias = dict[str, Any]
Piece: TypeAlias = dict[str, Any]
Emit: TypeAlias = Callable[[Piece], Awaitable[None]]
Ride: TypeAlias = Callable[[Piece, bool], Awaitable[None]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Landed:
    """The end of a flight for one who asked.

    Attributes:
        answer: what was said.
        shared: whether somebody else had asked for it.
        sent: how many pieces were passed on before the answer was whole.
    """

    answer: Answer
    shared: bool
    sent: int = 0


class _Flight:
    """A request under way, in a task of its own: it goes on while somebody waits, whoever began it."""

    __slots__ = ("_news", "_pieces", "riders", "task")

    def __init__(self, fly: Callable[[Emit], Awaitable[tuple[Answer, bool]]]) -> None:
        self.riders = 0
        self._pieces: list[Piece] = []
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(fly(self._take))
        self.task.add_done_callback(self._done)

    async def _take(self, piece: Piece) -> None:
        self._pieces.append(piece)
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _done(self, task: asyncio.Future[tuple[Answer, bool]]) -> None:
        self._news.set()
        if not task.cancelled():
            task.exception()  # is raised to those who wait; there may be none left

    async def pass_on(self, emit: Emit, sent: list[Piece]) -> None:
        """Pass on every piece, the earlier ones first, until the answer is whole."""
        while len(sent) < len(self._pieces) or not self.task.done():
            if len(sent) == len(self._pieces):
                await self._news.wait()
                continue
            piece = self._pieces[len(sent)]
            sent.append(piece)
            await emit(piece)


class Flights:
    """Requests under way, by cache key: in this worker by a table, across workers by a lock in a store.

    The lock costs a round trip, so it is taken only while other workers are alive. It is taken over from a worker that
    has died, and expires with the call's timeout in any case. Pieces of a streamed answer go to all who ride along in
    the worker that flies; in other workers they wait for the whole of it. What is not stored, as a fallback's answer,
    reaches nobody in other workers: each of them then flies once itself.
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
        fly: Callable[[Emit], Awaitable[Answer]],
        landed: Callable[[], Awaitable[Answer | None]],
        timeout: float,
        ride: Ride | None = None,
    ) -> Landed:
        """Return the answer of ``fly``, which is called once for all who ask at the same time.

        Who comes first begins the flight, and the others ride along; it ends early when the last of them has left.

        Args:
            key: cache key of the request.
            fly: asks the provider and stores the answer; it may tell pieces of it before.
            landed: looks for the answer that another worker has stored.
            timeout: seconds for which this one rides along, on another worker's flight too; who begins a flight bounds
                ``fly`` itself.
            ride: gets each piece, and whether somebody else had asked for it.

        Raises:
            ProviderFailed: as ``fly`` does, or the time is up.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            flight, mine, sent, left = self._flying.get(key), False, list[Piece](), deadline - loop.time()
            if flight is None:
                flight, mine = self._begin(key, fly, landed, left), True
            try:
                async with asyncio.timeout(None if mine else left):
                    answer, elsewhere = await self._ride(key, flight, ride, sent, shared=not mine)
            except TimeoutError:
                if mine:
                    raise
                raise timed_out() from None
            except ProviderFailed as error:
                if mine or sent or error.kind != "Timeout" or loop.time() >= deadline:
                    raise
                continue  # the time of who began it was up, not ours
            return Landed(answer=answer, shared=elsewhere or not mine, sent=len(sent))

    def _begin(
        self,
        key: str,
        fly: Callable[[Emit], Awaitable[Answer]],
        landed: Callable[[], Awaitable[Answer | None]],
        timeout: float,
    ) -> _Flight:
        flight = self._flying[key] = _Flight(lambda emit: self._fly(key, lambda: fly(emit), landed, timeout))
        flight.task.add_done_callback(lambda _: self._leave(key, flight))
        return flight

    def _leave(self, key: str, flight: _Flight) -> None:
        if self._flying.get(key) is flight:
            del self._flying[key]

    async def _ride(
        self, key: str, flight: _Flight, ride: Ride | None, sent: list[Piece], *, shared: bool
    ) -> tuple[Answer, bool]:
        """Wait for the end of a flight; when the last one stops waiting, the flight is broken off."""
        flight.riders += 1
        try:
            if ride is not None:
                await flight.pass_on(lambda piece: ride(piece, shared), sent)
            return await asyncio.shield(flight.task)
        finally:
            flight.riders -= 1
            if not flight.riders and not flight.task.done():
                self._leave(key, flight)
                flight.task.cancel()
                await asyncio.wait((flight.task,))

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
        look, loop = _FIRST_LOOK, asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not await self._locked(key, timeout):
            if loop.time() >= deadline:
                raise timed_out()
            await asyncio.sleep(min(look, max(deadline - loop.time(), 0.0)))
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
