"""One ``with`` for what would be written out by hand each time.

``telemetry.operation(row, {...})`` opens the row's span, counts its counter with ``status`` and ``error_type``, records
its duration, records an exception, and puts the former context back in any case.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import Token
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from kit.otel import propagation, semconv

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from kit.catalogue import Span
    from kit.otel.metrics import Shard

Value: TypeAlias = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
Label: TypeAlias = str | bool | int | float
Kind: TypeAlias = Literal["internal", "client", "server", "producer", "consumer"]

STATUS = "status"
ERROR_TYPE = "error_type"
SUCCESS = "success"
ERROR = "error"
CANCELLED = "cancelled"

_KINDS: dict[str, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_LEFT = (asyncio.CancelledError, GeneratorExit)  # the caller went away; nothing failed here
_ROOT = Context()


class Plan:
    """What every operation of one span row has in common, worked out once."""

    __slots__ = ("attributes", "counter_key", "duration_key", "name", "row", "shard", "tracer")

    def __init__(self, row: Span, tracer: Tracer, shard: Shard, tenant_id: str | None) -> None:
        self.row = row
        self.name = row.name
        self.tracer = tracer
        self.shard = shard
        self.attributes: dict[str, Value] = {semconv.OPENINFERENCE_SPAN_KIND: row.kind}
        if tenant_id is not None:
            self.attributes[semconv.TENANT_ID] = tenant_id
        succeeded = (STATUS, SUCCESS)
        self.counter_key = None if row.counter is None else (row.counter.name, succeeded)
        self.duration_key = None if row.duration is None else (row.duration.name, succeeded)


class Operation:
    """An operation under way: a span that is current, and the labels of the metrics that will end with it."""

    __slots__ = (
        "_attributes",
        "_error",
        "_kind",
        "_labels",
        "_links",
        "_parent",
        "_plan",
        "_started",
        "_token",
        "span",
    )

    def __init__(
        self,
        plan: Plan,
        attributes: Mapping[str, Value] | None,
        kind: Kind,
        parent: Context | None,
        links: Sequence[Context] | None,
        labels: Mapping[str, Label] | None,
    ) -> None:
        self._plan = plan
        self._attributes = attributes
        self._kind = kind
        self._parent = parent
        self._links = links
        self._labels = None if labels is None else dict(labels)
        self._error: str | None = None
        self.span: trace_api.Span = trace_api.INVALID_SPAN

    def __enter__(self) -> Self:
        plan, parent = self._plan, self._parent
        if parent is None:
            # What is served or consumed came from elsewhere: never a child of whatever subscribed to it.
            parent = _ROOT if self._kind in ("server", "consumer") else context_api.get_current()
        attributes = {**plan.attributes, **self._attributes} if self._attributes else plan.attributes
        self.span = plan.tracer.start_span(
            plan.name, parent, _KINDS[self._kind], attributes, _linked(self._links) if self._links else None
        )
        self._token: Token[Context] = context_api.attach(trace_api.set_span_in_context(self.span, parent))
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = perf_counter() - self._started
        try:
            if error is not None:
                self._record(error)
            self._measure(seconds)
            self.span.end()
        finally:
            # Left in another task than entered in (a generator that was closed): that context ends with its task.
            with suppress(ValueError):
                self._token.var.reset(self._token)

    def set(self, key: str, value: Value) -> None:
        """Set an attribute of the span."""
        self.span.set_attribute(key, value)

    def label(self, key: str, value: Label) -> None:
        """Add a label to the counter and the duration that end with this operation; never an id."""
        if self._labels is None:
            self._labels = {}
        self._labels[key] = value

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        """Add an event to the span."""
        self.span.add_event(name, attributes)

    def fail(self, error_type: str, description: str | None = None) -> None:
        """Mark the operation as failed without an exception passing through it."""
        self._error = error_type
        self.span.set_attribute(semconv.ERROR_TYPE, error_type)
        self.span.set_status(Status(StatusCode.ERROR, description))

    def headers(self, headers: dict[str, str] | None = None) -> dict[str, str] | None:
        """Return headers that make whoever reads them a child of this operation."""
        return propagation.inject(headers)

    @property
    def trace_id(self) -> str:
        """The trace's id: 32 hexadecimal digits, all 0 when telemetry is disabled."""
        return f"{self.span.get_span_context().trace_id:032x}"

    @property
    def recording(self) -> bool:
        """Whether the span is sampled: costly attributes need not be worked out otherwise."""
        return self.span.is_recording()

    def _record(self, error: BaseException) -> None:
        name = type(error).__name__
        if isinstance(error, _LEFT):
            self._error = CANCELLED
            self.span.set_attribute(semconv.ERROR_TYPE, name)
            self.span.set_status(Status(StatusCode.ERROR, CANCELLED))
            return
        self.fail(name, f"{name}: {error}")
        if self.span.is_recording():
            module = type(error).__module__
            self.span.add_event(
                semconv.EXCEPTION,
                {
                    semconv.EXCEPTION_TYPE: name if module == "builtins" else f"{module}.{type(error).__qualname__}",
                    semconv.EXCEPTION_MESSAGE: str(error),
                    semconv.EXCEPTION_STACKTRACE: "".join(traceback.format_exception(error)),
                },
            )

    def _measure(self, seconds: float) -> None:
        plan = self._plan
        counter, duration = plan.row.counter, plan.row.duration
        if counter is None and duration is None:
            return
        labels = self._outcome()
        if counter is not None:
            plan.shard.counter(counter, labels).value += 1
        if duration is not None:
            plan.shard.histogram(duration, labels).add(seconds)

    def _outcome(self) -> dict[str, Label]:
        labels: dict[str, Label] = {STATUS: SUCCESS}
        if self._error == CANCELLED:
            labels[STATUS] = CANCELLED
        elif self._error is not None:
            labels = {STATUS: ERROR, ERROR_TYPE: self._error}
        if self._labels:
            labels.update(self._labels)
        return labels


def _linked(contexts: Sequence[Context]) -> list[Link]:
    return [Link(trace_api.get_current_span(context).get_span_context()) for context in contexts]
