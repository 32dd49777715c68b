"""Trace context <-> message headers: the W3C names, and as few headers as possible.

One ``traceparent`` (55 characters) goes with a message; ``tracestate`` and ``baggage`` only when there is something in
them, since every header costs the connection. What comes in and is malformed is ignored, as the standard asks.
Nobody asks the span of an unsampled trace for more than its header, so that one stays text until somebody does.

Source: W3C Trace Context, W3C Baggage; equal to the SDK's propagators, with which the tests compare it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from opentelemetry import baggage as baggage_api
from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.span import TraceState

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
BAGGAGE = "baggage"

RANDOM = 0x02  # trace flag of W3C trace context level 2: the trace id was chosen at random

_BAGGAGE = W3CBaggagePropagator()
_FORMAT = re.compile(r"\A[ \t]*+([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:(-.*)|[ \t]*)$")
_LONGEST_BAGGAGE = 8192  # characters. Source: W3C Baggage
_LONGEST_PARENT = 512  # characters; the SDK's limit, and that of tracestate
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_SAMPLED = frozenset("13579bdf")  # last digits of flags with the lowest bit set


class Carried(NonRecordingSpan):
    """A span that is recorded elsewhere or nowhere, known by its ``traceparent``.

    Attributes:
        traceparent: of version 00, valid.
        remote: whether it came from another process.
        state: its ``tracestate``, if any.
    """

    _parsed: SpanContext | None = None

    def __init__(self, traceparent: str, remote: bool, state: TraceState | None = None) -> None:
        self.traceparent = traceparent
        self.remote = remote
        self.state = state

    @property
    def sampled(self) -> bool:
        """Whether it is recorded somewhere."""
        return self.traceparent[-1] in _SAMPLED

    def get_span_context(self) -> SpanContext:
        """Return trace id, span id, flags and state."""
        if self._parsed is None:
            _, trace_id, span_id, flags = self.traceparent.split("-")
            self._parsed = SpanContext(
                int(trace_id, 16), int(span_id, 16), self.remote, TraceFlags(int(flags, 16)), self.state
            )
        return self._parsed

    def __repr__(self) -> str:
        return f"Carried({self.traceparent!r})"


def inject(headers: dict[str, str] | None = None, context: Context | None = None) -> dict[str, str] | None:
    """Return headers that carry the current trace context, or ``headers`` unchanged when there is none.

    A dict that is given is filled and returned; with None a new one is made only when there is something to carry.
    """
    current = context_api.get_current() if context is None else context
    parent, state = _written(trace_api.get_current_span(current))
    if parent:
        headers = {} if headers is None else headers
        headers[TRACEPARENT] = parent
        if state:
            headers[TRACESTATE] = state.to_header()
    if len(current) > 1 and baggage_api.get_all(current):  # one entry is the span
        headers = {} if headers is None else headers
        _BAGGAGE.inject(headers, current)
        if len(headers.get(BAGGAGE, "")) > _LONGEST_BAGGAGE:  # what came in may grow as it is quoted
            del headers[BAGGAGE]
    return headers


def traceparent(span_context: SpanContext) -> str:
    """Return the W3C ``traceparent`` of a span context."""
    return f"00-{span_context.trace_id:032x}-{span_context.span_id:016x}-{span_context.trace_flags:02x}"


def extract(headers: Mapping[str, str] | None) -> Context | None:
    """Return the context of the sender, to be the parent of an operation, or None when the headers carry none.

    Names are matched without regard to case, so that a sender that capitalises them is understood.
    """
    if not headers:
        return None
    parent = headers.get(TRACEPARENT)
    state = headers.get(TRACESTATE)
    baggage = headers.get(BAGGAGE)
    if parent is None:
        folded = {name.lower(): value for name, value in headers.items()}
        parent, state, baggage = folded.get(TRACEPARENT), folded.get(TRACESTATE), folded.get(BAGGAGE)
    span = None if parent is None else _parse(parent, state)
    context = None
    if baggage:
        context = _BAGGAGE.extract({BAGGAGE: baggage}, Context()) or None
    if span is not None:
        context = trace_api.set_span_in_context(span, context or Context())
    return context


def _written(span: trace_api.Span) -> tuple[str, TraceState | None]:
    """Return ``traceparent``, empty when there is no trace, and state of a span."""
    if type(span) is Carried:  # `isinstance` asks the abstract class of all spans, at length
        return span.traceparent, span.state
    span_context = span.get_span_context()
    return (traceparent(span_context) if span_context.is_valid else ""), span_context.trace_state


def _parse(parent: str, state: str | None) -> Carried | None:
    if len(parent) > _LONGEST_PARENT:
        return None
    match = _FORMAT.match(parent)
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN or version == "ff" or (rest and version == "00"):
        return None
    trace_state = None
    if state and len(state) <= _LONGEST_PARENT:
        trace_state = TraceState.from_header([state])
    return Carried(f"00-{trace_id}-{span_id}-{flags}", True, trace_state)
