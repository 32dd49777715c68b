"""Workers: what runs handlers, how many at once, and how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import nats.errors
from nats.aio.subscription import Subscription

from kit.catalogue import Operation
from kit.cells import remember, started_earlier
from kit.errors import Disconnected

if TYPE_CHECKING:
    from kit.nats.connection import Connection

T = TypeVar("T")
_log = logging.getLogger("kit.nats")
_LAST_WORDS = 1.0  # s; for what was cancelled to say so


class Tasks(Generic[T]):
    """One task for each item, at most ``limit`` at once; the rest waits in order, the least ``rank`` first.

    Each task gets its own copy of the context in which this was made: what one handler sets, no other sees.
    """

    def __init__(
        self, run: Callable[[T], Awaitable[None]], limit: int, *, rank: Callable[[T], int] | None = None
    ) -> None:
        self.limit = limit
        self.waiting: deque[T] = deque()
        self.running = 0
        self._run, self._rank = run, rank
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return self.running + len(self.waiting)

    def put(self, item: T) -> None:
        """Start the item, or let it wait for its turn."""
        if self.running < self.limit:
            self._start(item)
        else:
            self.waiting.append(item)

    async def end(self, timeout: float) -> bool:
        """Wait until nothing is left; cancel what is left after ``timeout`` seconds, and say whether nothing was."""
        deadline = self._loop.time() + timeout
        while self._tasks:  # a task that ends may start one that waited
            left = deadline - self._loop.time()
            if left <= 0:
                break
            await asyncio.wait(tuple(self._tasks), timeout=left)
        if not self._tasks:
            return True
        self.waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(tuple(self._tasks), timeout=_LAST_WORDS)
        return False

    def _next(self) -> T:
        if self._rank is None:
            return self.waiting.popleft()
        first = min(self.waiting, key=self._rank)
        self.waiting.remove(first)
        return first

    def _start(self, item: T) -> None:
        self.running += 1
        task = self._loop.create_task(self._one(item), context=self._context.copy())
        self._tasks.add(task)

    async def _one(self, item: T) -> None:
        try:
            await self._run(item)
        except Exception:  # noqa: BLE001 - logged; the worker lives on
            _log.exception("a message was given up")
        finally:
            self.running -= 1
            if self.waiting and self.running < self.limit:
                self._start(self._next())
            task = asyncio.current_task()
            if task is not None:
                self._tasks.discard(task)


class Worker(ABC):
    """Something that handles messages until it is stopped; ``async with`` stops it too.

    Attributes:
        operation: what it handles.
        subject: where from.
        handled: messages whose handler has ended, well or not.
    """

    def __init__(self, operation: Operation, subject: str) -> None:
        self.operation = operation
        self.subject = subject
        self.handled = 0
        self._stopping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "working" if self._stopping is None else "stopped"
        return f"<{type(self).__name__} {self.operation.name} {self.subject} {state}, {self.handled} handled>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def begin(self, handler: object) -> None:
        """Start; a user's handler replaces the worker that the same notebook cell started in an earlier run."""
        if not str(getattr(handler, "__module__", None)).startswith("kit."):
            for earlier in started_earlier(Worker):  # type: ignore[type-abstract]
                await earlier.stop()
            remember(self)
        await self.start()

    @abstractmethod
    async def start(self) -> None:
        """Start; on return the server knows it."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Messages that are here and not done yet."""

    async def stop(self, timeout: float = 10.0) -> None:
        """Take nothing new, let what is under way finish within ``timeout`` seconds, then cancel it.

        A second call waits for the first.
        """
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(timeout))
        await asyncio.shield(self._stopping)

    @abstractmethod
    async def _stop(self, timeout: float) -> None: ...


def cancelled_from_outside() -> bool:
    """Say whether the CancelledError at hand came from outside (a stop), and not from the handler's own doing."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_cancellation(error: BaseException) -> bool:
    """Return whether an error cancels the current task, rather than coming from foreign code in it.

    Other errors, even ``SystemExit`` and ``KeyboardInterrupt``, stay within that call: they would end the event loop.
    """
    return isinstance(error, GeneratorExit) or (isinstance(error, asyncio.CancelledError) and cancelled_from_outside())


async def drain(subscription: Subscription, connection: Connection, timeout: float) -> None:
    """Unsubscribe so that nothing on its way is lost: what the server had sent already is still taken."""
    client = connection.client
    if not client.is_connected or client.is_draining:
        return
    try:
        await asyncio.wait_for(subscription.drain(), timeout)  # type: ignore[no-untyped-call]
    except (TimeoutError, Disconnected, nats.errors.Error) as error:
        _log.warning("left %s without unsubscribing: %s", subscription.subject, error)
