"""Ways out of the process: one bounded worker per signal, whose end is bounded too.

The SDK's own batch processors cannot be used here: with a dead or hanging endpoint their ``force_flush(2000)`` took
35 to 50 seconds, their ``shutdown()`` 30, and what they drop is only logged. A worker of this module never makes its
caller wait, ends within the deadline it is given, and counts every item that no endpoint took.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from opentelemetry import context as context_api
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Worker:
    """A daemon thread that exports when its interval has passed, when it is woken and when it is asked to flush.

    The thread starts with the first need of it, so that telemetry without a way out has none.

    Attributes:
        signal: ``traces``, ``metrics`` or ``logs``.
        exported: items that the endpoint took.
        dropped: items that no endpoint took.
    """

    def __init__(self, signal: str, *, interval: float, shut: Callable[[], None]) -> None:
        self.signal = signal
        self.exported = 0
        self.dropped = 0
        self._interval = interval
        self._shut = shut
        self._start_afresh()
        if hasattr(os, "register_at_fork"):
            reinit = weakref.WeakMethod(self._start_afresh)
            os.register_at_fork(after_in_child=lambda: (method := reinit()) and method())

    def _start_afresh(self) -> None:
        """Set up the state of the thread: at first, and in a forked child, which has no thread of its parent."""
        self._lock = threading.Lock()
        self._finished = threading.Condition(self._lock)
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked = 0
        self._answered = 0
        self._succeeded = True
        self._closing = False
        self._abandoned = False

    def _work(self) -> bool:
        """Export what there is; say whether the endpoint took all of it."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """Count as dropped whatever was not exported when time ran out."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread, unless it runs or the worker was closed."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name=f"kit-otel-{self.signal}", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        context_api.attach(context_api.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        while True:
            self._wake.wait(self._interval)
            self._wake.clear()
            with self._lock:
                goal, closing = self._asked, self._closing
            succeeded = self._work()
            with self._lock:
                self._answered, self._succeeded = goal, succeeded
                self._finished.notify_all()
            if closing:
                return

    def ask(self) -> None:
        """Ask for an export of what was recorded before this call; ``wait`` waits for it."""
        self.start()
        with self._lock:
            self._asked += 1
            self._wake.set()

    def wait(self, deadline: float) -> bool:
        """Wait for what was asked for, until ``deadline`` (monotonic clock); True when the endpoint took all."""
        with self._lock:
            goal = self._asked
            done = self._finished.wait_for(lambda: self._answered >= goal, max(0.0, deadline - time.monotonic()))
            return done and self._succeeded

    def stop(self) -> None:
        """Begin the last export; what is handed over from now on is dropped."""
        with self._lock:
            self._closing = True
            self._wake.set()

    def close(self, deadline: float) -> None:
        """Wait for the last export until ``deadline``, then cut the connection and count the rest as dropped."""
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._abandoned = True
        self._abandon()
        self._shut()

    def _count(self, taken: int, lost: int) -> None:
        with self._lock:
            if not self._abandoned:
                self.exported += taken
                self.dropped += lost


class Queue(Worker, Generic[T]):
    """A bounded queue of finished items before one exporter.

    Args:
        export: takes a batch, says whether the endpoint took it.
        shut: closes the exporter, cutting off a call in flight.
        size: items kept while the endpoint is slow; one more is dropped, and counted.
        batch: most items in one call.
        interval: seconds between two calls while fewer than ``batch`` items wait.
    """

    def __init__(
        self,
        signal: str,
        export: Callable[[Sequence[T]], bool],
        shut: Callable[[], None],
        *,
        size: int,
        batch: int,
        interval: float,
    ) -> None:
        self._items: deque[T] = deque()
        self._in_flight = 0
        self._export = export
        self._size = size
        self._batch = min(batch, size)
        super().__init__(signal, interval=interval, shut=shut)

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._items.clear()  # a forked child does not send what its parent recorded
        self._in_flight = 0

    def put(self, item: T) -> None:
        """Hand over an item: never waits, never raises."""
        waiting = len(self._items)
        if waiting >= self._size or self._closing:
            with self._lock:
                self.dropped += 1
            return
        self._items.append(item)
        if self._thread is None:
            self.start()
        elif waiting >= self._batch and not self._wake.is_set():
            self._wake.set()

    def _work(self) -> bool:
        succeeded = True
        for _ in range(0, len(self._items), self._batch):
            with self._lock:
                if self._abandoned:
                    return False
                batch = [self._items.popleft() for _ in range(min(self._batch, len(self._items)))]
                self._in_flight = len(batch)
            taken = _attempt(self._export, batch)
            self._count(len(batch) if taken else 0, 0 if taken else len(batch))
            self._in_flight = 0
            succeeded = succeeded and taken
        return succeeded

    def _abandon(self) -> None:
        with self._lock:
            self.dropped += self._in_flight + len(self._items)
            self._items.clear()


class Ticker(Worker):
    """Collects and exports the state of the metrics at an interval.

    Args:
        collect: exports one reading; returns how many points the endpoint took, and how many it did not.
    """

    def __init__(self, collect: Callable[[], tuple[int, int]], shut: Callable[[], None], *, interval: float) -> None:
        self._collect = collect
        super().__init__("metrics", interval=interval, shut=shut)

    def _work(self) -> bool:
        try:
            taken, lost = self._collect()
        except Exception:
            logger.debug("reading or exporting the metrics failed", exc_info=True)
            taken, lost = 0, 1
        self._count(taken, lost)
        return not lost

    def _abandon(self) -> None:
        with self._lock:
            if self._answered < self._asked or (self._thread is not None and self._thread.is_alive()):
                self.dropped += 1


def _attempt(export: Callable[[Sequence[T]], bool], batch: Sequence[T]) -> bool:
    try:
        return export(batch)
    except Exception:
        logger.debug("an exporter raised", exc_info=True)
        return False
