"""One handler, run on one message: read, handled, answered, recorded. The same for requests, events and jobs."""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg

from kit.catalogue import MESSAGES_REFUSED, Mode
from kit.errors import BusError, PayloadTooLarge
from kit.nats.faults import Fault, told
from kit.nats.message import Handler, Message
from kit.nats.results import RESULT_HEADERS
from kit.nats.route import Route
from kit.nats.streaming import CallerGone, chunks_for
from kit.nats.worker import cancelled_from_outside
from kit.otel import Operation as Recorded
from kit.otel import extract, semconv, word_errors
from kit.threads import on_own_thread

if TYPE_CHECKING:
    from kit.nats.bus import Bus
    from kit.otel.operation import Kind


_SMALL = 4096  # bytes; no server takes less, so an answer up to here need not be measured


class Overloaded(BusError):
    """More messages wait for this worker than it takes; the same one may succeed later."""

    retryable = True

    def __init__(self, subject: str, *, waiting: int) -> None:
        self.subject, self.waiting = subject, waiting
        super().__init__(f"{waiting:,} messages wait on {subject} already")


class WorkerStopped(BusError):
    """The worker was stopped before it had answered; the same message may succeed elsewhere."""

    retryable = True

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"the worker on {subject} was stopped before it had answered")


class Handling:
    """A handler and all that its messages have in common."""

    __slots__ = ("_attributes", "_bus", "_handler", "_is_async", "_kind", "_row", "name", "route")

    def __init__(self, bus: Bus, route: Route, handler: Handler, *, kind: Kind, group: str | None) -> None:
        self.route = route
        self._bus, self._handler, self._kind = bus, handler, kind
        function = handler.func if isinstance(handler, partial) else handler
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        self._row = route.operation.handle_span
        self._attributes: dict[str, Any] = dict(route.handle_attributes)
        if group is not None:
            self._attributes[semconv.MESSAGING_CONSUMER_GROUP_NAME] = group

    def operation(self, message: Msg) -> Recorded:
        """Return the operation that this message's handling is: a child of the one that sent it."""
        headers = message.headers
        return self._bus.telemetry.operation(
            self._row, self._attributes, kind=self._kind, parent=extract(headers) if headers else None
        )

    async def run(
        self,
        message: Msg,
        recorded: Recorded,
        *,
        message_id: str | None = None,
        attempt: int = 1,
        handed_back: int = 0,
        stored_ns: int | None = None,
    ) -> bytes | Fault:
        """Return the answer, or the fault in its place.

        Raises:
            CancelledError: the worker is being stopped.
        """
        route, headers = self.route, message.headers
        envelope = None
        chunks = chunks_for(self._bus, headers) if headers else None
        if recorded.recording:
            recorded.set(semconv.MESSAGING_MESSAGE_BODY_SIZE, len(message.data))
            if message_id is not None:
                recorded.set(semconv.MESSAGING_MESSAGE_ID, message_id)
        error: BaseException
        try:
            envelope = route.read(message.data)
            word_errors(partial(told, data=envelope.data))
            handed = route.message(
                envelope, message_id=message_id, attempt=attempt, handed_back=handed_back, chunks=chunks,
                stored_ns=stored_ns,
            )  # fmt: skip
            answer = await self._handle(handed)
            return self._fitting(route.encode_result(answer))
        except asyncio.CancelledError as cancelled:
            if chunks is not None and chunks.gone:
                chunks.survive()
                error = CallerGone(chunks.subject)
            elif cancelled_from_outside():
                raise
            else:
                error = cancelled
        except GeneratorExit:  # the loop is closed
            raise
        except BaseException as failed:  # noqa: BLE001 - the bus boundary: whatever it is, SystemExit too, it is told
            error = failed
        finally:
            if chunks is not None:
                chunks.close()
        if envelope is None:
            self.count_refused(error)
        fault = Fault(error, None if envelope is None else envelope.data, refused=envelope is None)
        fault.record(recorded)
        return fault

    async def _handle(self, handed: Message) -> dict[str, Any] | None:
        """Return the handler's answer; a plain function may block, so it runs on a thread."""
        call = partial(self._handler, handed)
        answer = call() if self._is_async else await on_own_thread(call, name=self.name)
        return answer if answer is None or isinstance(answer, dict) else await answer

    def count_refused(self, error: BaseException) -> None:
        """Count a message that no handler got to see."""
        self._bus.telemetry.count(
            MESSAGES_REFUSED, operation=self.route.operation.name, error_type=type(error).__name__
        )

    def _fitting(self, answer: bytes) -> bytes:
        size = len(answer) + (RESULT_HEADERS if self.route.operation.mode is Mode.JOB else 0)
        if size > _SMALL and size > (limit := self._bus.connection.max_payload):
            raise PayloadTooLarge(f"the answer on {self.route.subject}", size=size, limit=limit)
        return answer
