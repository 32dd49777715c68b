"""Ways out of the process: one bounded worker per signal and exporter, whose end is bounded too.

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


def after_fork(method: Callable[[], None]) -> None:
    """Call a bound method in every forked child, for as long as its object lives."""
    if hasattr(os, "register_at_fork"):
        reference = weakref.WeakMethod(method)

        def call() -> None:
            if (alive := reference()) is not None:
                alive()

        os.register_at_fork(after_in_child=call)


class Worker:
    """A daemon thread that exports when its interval has passed, when it is woken and when it is asked to.

    The thread starts with the first need of it, so that telemetry without a way out has none.

    Args:
        signal: ``traces``, ``metrics`` or ``logs``.
        interval: seconds between two exports.
        shut: closes the exporter, cutting off a call in flight.

    Attributes:
        exported: items that the endpoint took.
        dropped: items that no endpoint took.
    """

    def __init__(self, signal: str, *, interval: float, shut: Callable[[], None]) -> None:
        self.signal = signal
        self.exported = 0
        self.dropped = 0
        self._interval = interval
        self._shut = shut
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        """Set up the state of the thread: at first, and in a forked child, which has no thread of its parent."""
        self._lock = threading.Lock()
        self._finished = threading.Condition(self._lock)
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._asked = 0
        self._answered = 0
        self._succeeded = True
        self._closing = False
        self._gone = False

    def _work(self) -> bool:
        """Export what there is; say whether the endpoint took all of it."""
        raise NotImplementedError

    def _left(self) -> int:
        """Return how many items are not exported when time has run out, and forget them; the lock is held."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the thread, unless it runs or the worker was stopped."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name=f"kit-otel-{self.signal}", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        # Instrumented HTTP and gRPC clients must not trace the export of traces.
        context_api.attach(context_api.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        closing = False
        while not closing:
            self._wake.wait(self._interval)
            self._wake.clear()
            with self._lock:
                goal, closing = self._asked, self._closing
            succeeded = self._work()
            with self._lock:
                self._answered, self._succeeded = goal, succeeded
                self._finished.notify_all()

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
            remaining = max(0.0, deadline - time.monotonic())
            self._finished.wait_for(lambda: self._gone or self._answered >= goal, remaining)
            return self._answered >= goal and self._succeeded

    def stop(self) -> None:
        """Begin the last export; what is handed over from now on is dropped."""
        with self._lock:
            self._closing = True
            self._wake.set()

    def close(self, deadline: float) -> None:
        """Wait for the last export until ``deadline``, then cut the connection and count the rest as dropped."""
        thread = self._thread
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            if self._gone:
                return
            self._gone = True
            self.dropped += self._left()
            self._finished.notify_all()
        self._shut()

    def _count(self, items: int, taken: bool) -> None:
        with self._lock:
            if self._gone:
                return  # counted as dropped already, whatever became of the call that was cut off
            if taken:
                self.exported += items
            else:
                self.dropped += items


class Queue(Worker, Generic[T]):
    """A bounded queue of finished items before one exporter.

    Args:
        export: takes a batch, says whether the endpoint took it.
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
        self._export = export
        self._size = size
        self._batch = min(batch, size)
        super().__init__(signal, interval=interval, shut=shut)

    def _begin(self) -> None:
        super()._begin()
        self._items: deque[T] = deque()  # a forked child does not send what its parent recorded
        self._in_flight = 0

    def put(self, item: T) -> None:
        """Hand over an item: never waits for an endpoint, never raises."""
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
        due = len(self._items)
        while due > 0:
            with self._lock:
                if self._gone:
                    return False
                batch = [self._items.popleft() for _ in range(min(self._batch, due))]
                self._in_flight = len(batch)
            taken = _attempt(self._export, batch)
            self._count(len(batch), taken)
            self._in_flight = 0
            due -= len(batch)
            succeeded = succeeded and taken
        return succeeded

    def _left(self) -> int:
        left = self._in_flight + len(self._items)
        self._items.clear()
        return left


class Ticker(Worker, Generic[T]):
    """Reads the metrics at an interval and exports the reading.

    Args:
        read: returns a reading and the number of its points.
        export: takes a reading, says whether the endpoint took it.
    """

    def __init__(
        self,
        read: Callable[[], tuple[T, int]],
        export: Callable[[T], bool],
        shut: Callable[[], None],
        *,
        interval: float,
    ) -> None:
        self._read = read
        self._export = export
        super().__init__("metrics", interval=interval, shut=shut)
        self.start()

    def _begin(self) -> None:
        super()._begin()
        self._in_flight = 0

    def _work(self) -> bool:
        reading, points = self._read()
        if points == 0:
            return True
        self._in_flight = points
        taken = _attempt(self._export, reading)
        self._count(points, taken)
        self._in_flight = 0
        return taken

    def _left(self) -> int:
        return self._in_flight


def _attempt(export: Callable[[T], bool], what: T) -> bool:
    try:
        return export(what)
    except Exception:
        logger.warning("an exporter raised", exc_info=True)
        return False
