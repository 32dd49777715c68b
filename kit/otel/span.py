"""A span that costs the work as little as it can, and turns into the SDK's form when someone reads it.

The SDK's span takes about 30 µs: it asks a sampler object, builds bounded containers, takes locks and copies itself at
its end, all while the work waits. This one notes what happened; limits and the SDK's ``ReadableSpan`` are applied in
the exporting thread, or when the recorder is looked at. What leaves the process is the same (a test compares them).
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from time import perf_counter_ns, time_ns
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from opentelemetry import trace as trace_api
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from kit.otel import semconv
from kit.otel.export import after_fork
from kit.otel.propagation import RANDOM, Carried
from kit.otel.values import PLAIN, safe_text, sendable

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from kit.otel.sampling import Sampling

Words: TypeAlias = Callable[[BaseException], str]

_WORDS: ContextVar[Words | None] = ContextVar("words", default=None)
_UNSET = Status(StatusCode.UNSET)
_FLAGS = tuple(TraceFlags(flags) for flags in range(4))


class LiveSpan(trace_api.Span):
    """A recording span; made by ``Tracing.start``."""

    __slots__ = (
        "_attributes",
        "_began",
        "_context",
        "_ended",
        "_events",
        "_kind",
        "_links",
        "_name",
        "_parent",
        "_readable",
        "_started",
        "_status",
        "_tracing",
    )

    def __init__(
        self,
        tracing: Tracing,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        links: Sequence[Link],
    ) -> None:
        self._tracing = tracing
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._attributes = attributes
        limits = tracing.limits
        self._links = BoundedList.from_seq(limits.max_links, links) if links else ()
        self._events: Sequence[Event] = ()
        self._status = _UNSET
        self._ended: int | None = None
        self._readable: ReadableSpan | None = None
        self._started = time_ns()
        self._began = perf_counter_ns()

    def get_span_context(self) -> SpanContext:
        """Return trace id, span id and flags."""
        return self._context

    @property
    def name(self) -> str:
        """The span's name."""
        return self._name

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes set so far."""
        return MappingProxyType(self._attributes)

    @property
    def tracing(self) -> Tracing:
        """What started this span."""
        return self._tracing

    def is_recording(self) -> bool:
        """Say whether the span has not ended yet."""
        return self._ended is None

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute; of no effect when the span has ended."""
        if self._ended is None and value is not None:
            self._attributes[key] = value if type(value) in PLAIN else sendable(value)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event; of no effect when the span has ended."""
        if self._ended is None:
            limits = self._tracing.limits
            kept = sendable(attributes or {})
            bounded = BoundedAttributes(limits.max_event_attributes, kept, True, limits.max_attribute_length)
            if not isinstance(self._events, BoundedList):
                self._events = BoundedList(limits.max_events)
            self._events.append(Event(name, bounded, timestamp))

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Add a link; of no effect when the span has ended."""
        if self._ended is None:
            if not isinstance(self._links, BoundedList):
                self._links = BoundedList(self._tracing.limits.max_links)
            self._links.append(Link(context, dict(attributes) if attributes else None))

    def update_name(self, name: str) -> None:
        """Rename the span."""
        if self._ended is None:
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status; OK is final, and UNSET changes nothing."""
        if self._ended is not None or self._status.status_code is StatusCode.OK:
            return
        given = status if isinstance(status, Status) else Status(status, description)
        new = Status(given.status_code, sendable(given.description))
        if new.status_code is not StatusCode.UNSET:
            self._status = new

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add the standard event of an exception."""
        self.add_event(semconv.EXCEPTION, {**exception_attributes(exception), **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """End the span and hand it over; a second call does nothing."""
        if self._ended is None:
            # The clock of the wall may be set meanwhile; a duration is always that of the steady clock.
            self._ended = self._started + perf_counter_ns() - self._began if end_time is None else end_time
            for take in self._tracing.takers:
                take(self)

    def readable(self) -> ReadableSpan:
        """Return the finished span in the SDK's form, within the limits of the OTEL_* variables."""
        if self._readable is None:
            tracing, limits = self._tracing, self._tracing.limits
            self._readable = ReadableSpan(
                name=sendable(self._name),
                context=self._context,
                parent=self._parent,
                resource=tracing.resource,
                attributes=BoundedAttributes(
                    limits.max_span_attributes, sendable(self._attributes), True, limits.max_span_attribute_length
                ),
                events=self._events,
                links=self._links,
                kind=self._kind,
                status=self._status,
                start_time=self._started,
                end_time=self._ended,
                instrumentation_scope=tracing.scope,
            )
        return self._readable


class Tracing:
    """Starts spans: samples them, gives them ids, and knows who takes them when they end."""

    def __init__(
        self,
        resource: Resource,
        sampling: Sampling,
        takers: Sequence[Callable[[LiveSpan], None]],
        scope: InstrumentationScope,
    ) -> None:
        self.resource = resource
        self.scope = scope
        self.limits = SpanLimits()
        self.takers = tuple(takers)
        self._sampling = sampling
        # Not the shared generator: a notebook that seeds it would give two processes the same ids.
        self._random = random.Random()
        after_fork(self._reseed)

    def _reseed(self) -> None:
        self._random.seed()

    def start(
        self,
        name: str,
        above: trace_api.Span,
        kind: SpanKind,
        common: Mapping[str, Any],
        attributes: Mapping[str, Any] | None,
        links: Sequence[Link] = (),
    ) -> trace_api.Span:
        """Start a span below another, or a trace below an invalid one; an unsampled one records nothing.

        Returns ``above`` when that stays the current one: nobody records it, so nothing below it is told apart.
        ``attributes`` come on top of the ``common`` ones.
        """
        if type(above) is Carried and not above.sampled and self._sampling.leaves_unsampled:
            return above
        parent: SpanContext | None = above.get_span_context()
        draw = self._random.getrandbits
        if parent is None or not parent.is_valid:
            parent = None
            trace_id, flags, state = draw(128) or 1, RANDOM, None
            sampled = self._sampling.decide(None, trace_id)
            if not sampled:
                return Carried(f"00-{trace_id:032x}-{draw(64) or 1:016x}-02", remote=False)
        else:
            trace_id, flags, state = parent.trace_id, parent.trace_flags & RANDOM, parent.trace_state
            sampled = self._sampling.decide(parent.trace_flags & 0x01, trace_id)
            if not sampled and not parent.trace_flags & 0x01:
                return above
        own = SpanContext(trace_id, draw(64) or 1, False, _FLAGS[flags | sampled], state)
        if not sampled:
            return NonRecordingSpan(own)
        merged = {**common, **attributes} if attributes else dict(common)
        for value in merged.values():
            if type(value) not in PLAIN:
                merged = {key: sendable(value) for key, value in merged.items() if value is not None}
                break
        return LiveSpan(self, name, own, parent, kind, merged, links)


def readable(span: LiveSpan | ReadableSpan) -> ReadableSpan:
    """Return a finished span in the SDK's form."""
    return span.readable() if isinstance(span, LiveSpan) else span


def word_errors(words: Words) -> None:
    """Have this task, and those it starts, tell exceptions in the words of a function, not in their own.

    Whoever handles a message knows its content, and so what an exception that passes by may not say.
    """
    _WORDS.set(words)


def exception_attributes(error: BaseException) -> dict[str, str]:
    """Return the standard attributes of an exception, in the words of ``word_errors``."""
    module, name = type(error).__module__, type(error).__qualname__
    words = _WORDS.get()
    try:
        stack = traceback.format_exception(error) if words is None else traceback.format_tb(error.__traceback__)
    except Exception as fault:  # noqa: BLE001 - foreign code, and chains as deep as the stack
        stack = [f"<no stack trace: {type(fault).__name__}>"]
    return {
        semconv.EXCEPTION_TYPE: name if module == "builtins" else f"{module}.{name}",
        semconv.EXCEPTION_MESSAGE: safe_text(error, words or str),
        semconv.EXCEPTION_STACKTRACE: "".join(stack),
    }
