"""One ``with`` for what would be written out by hand each time.

``telemetry.operation(row, {...})`` opens the row's span, counts its counter with ``status`` and ``error_type``, records
its duration, records an exception, and puts the former context back in any case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextvars import Token
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from kit.otel import propagation, semconv
from kit.otel.metrics import key_of
from kit.otel.span import exception_attributes

if TYPE_CHECKING:
    from kit.catalogue import Span
    from kit.otel.metrics import CounterCell, HistogramCell, Label, Shard
    from kit.otel.span import Tracing

Value: TypeAlias = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
Kind: TypeAlias = Literal["internal", "client", "server", "producer", "consumer"]

# The labels that the specification puts on the counters of operations, and their values.
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

logger = logging.getLogger(__name__)


class Plan:
    """What every operation of one span row has in common, worked out once."""

    __slots__ = ("attributes", "counter", "counter_key", "duration", "duration_key", "name", "shard", "tracing")

    def __init__(self, row: Span, tracing: Tracing, shard: Shard, tenant_id: str | None) -> None:
        self.name = row.name
        self.counter = row.counter
        self.duration = row.duration
        self.tracing = tracing
        self.shard = shard
        self.attributes: dict[str, Value] = {semconv.OPENINFERENCE_SPAN_KIND: row.kind}
        if tenant_id is not None:
            self.attributes[semconv.TENANT_ID] = tenant_id
        self.counter_key = None if row.counter is None else key_of(row.counter, {STATUS: SUCCESS})
        self.duration_key = None if row.duration is None else key_of(row.duration, {STATUS: SUCCESS})

    def success(self, seconds: float) -> None:
        """Measure an operation that went well and has no labels of its own: the common case, by two look-ups."""
        mine = self.shard.mine
        counter: CounterCell | None = None
        duration: HistogramCell | None = None
        try:
            if self.counter_key is not None:
                counter = mine.counters[self.counter_key]
            if self.duration_key is not None:
                duration = mine.histograms[self.duration_key]
        except KeyError:
            self.measure(seconds, {STATUS: SUCCESS})  # the first time in this thread
            return
        if counter is not None:
            counter.value += 1
        if duration is not None:
            duration.add(seconds)

    def measure(self, seconds: float, labels: dict[str, Label]) -> None:
        """Count the operation and record its duration."""
        if self.counter is not None:
            self.shard.counter(self.counter, labels).value += 1
        if self.duration is not None:
            self.shard.histogram(self.duration, labels).add(seconds)


class Operation:
    """An operation under way: a span that is current, and the labels of the metrics that will end with it.

    Attributes:
        span: OpenTelemetry's span, for what this class has no word for.
    """

    __slots__ = (
        "_attributes",
        "_context",
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

    _context: Context
    _token: Token[Context]
    _started: float

    def __init__(
        self,
        plan: Plan,
        attributes: Mapping[str, Value] | None = None,
        kind: Kind = "internal",
        parent: Context | None = None,
        links: Sequence[Context] | None = None,
        labels: Mapping[str, Label] | None = None,
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
        plan, parent, kind = self._plan, self._parent, self._kind
        if parent is None:
            # What is served or consumed came from elsewhere: never a child of whatever subscribed to it.
            parent = _ROOT if kind == "server" or kind == "consumer" else context_api.get_current()
        links = _linked(self._links) if self._links else ()
        above = trace_api.get_current_span(parent)
        span = plan.tracing.start(plan.name, above, _KINDS[kind], plan.attributes, self._attributes, links)
        context = parent if span is above else trace_api.set_span_in_context(span, parent)
        self.span = span
        self._context = context
        self._token = context_api.attach(context)
        self._started = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = perf_counter() - self._started
        try:
            if error is not None:
                self._record(error)
            if self._error is None and self._labels is None:
                self._plan.success(seconds)
            else:
                self._plan.measure(seconds, self._outcome())
        finally:
            self.span.end()
            token = self._token
            try:
                token.var.reset(token)
            except ValueError:
                # Left in another task than entered in (a generator that was closed): that context ends with its task.
                logger.debug("%s was left in another context than it was entered in", self._plan.name)

    def set(self, key: str, value: Value) -> None:
        """Set an attribute of the span."""
        self.span.set_attribute(key, value)

    def update(self, attributes: Mapping[str, Value]) -> None:
        """Set several attributes of the span."""
        self.span.set_attributes(attributes)

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

    def fail_by(self, error: BaseException) -> None:
        """Mark the operation as failed by an exception."""
        told = exception_attributes(error)
        self.fail(type(error).__name__, f"{type(error).__name__}: {told[semconv.EXCEPTION_MESSAGE]}")
        self.event(semconv.EXCEPTION, told)

    def headers(self, headers: dict[str, str] | None = None) -> dict[str, str] | None:
        """Return headers that make whoever reads them a child of this operation; None when there is nothing to tell."""
        return propagation.inject(headers, self._context)

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
            self.fail(name, CANCELLED)
            self._error = CANCELLED
        else:
            self.fail_by(error)

    def _outcome(self) -> dict[str, Label]:
        labels: dict[str, Label]
        if self._error is None or self._error == CANCELLED:
            labels = {STATUS: self._error or SUCCESS}
        else:
            labels = {STATUS: ERROR, ERROR_TYPE: self._error}
        return labels if self._labels is None else labels | self._labels


class Untold(Operation):
    """An operation of disabled telemetry: the sender's context still passes through, nothing else happens."""

    __slots__ = ()

    def __enter__(self) -> Self:
        if self._parent is not None:
            self._token = context_api.attach(self._parent)
        self._context = context_api.get_current()
        self.span = trace_api.get_current_span()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._parent is not None:
            self._token.var.reset(self._token)


def _linked(contexts: Sequence[Context]) -> list[Link]:
    return [Link(trace_api.get_current_span(context).get_span_context()) for context in contexts]
