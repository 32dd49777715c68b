"""Trace context travels in headers only: as the W3C and the SDK's propagators have it, and as few headers as can be."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage
from opentelemetry import trace as trace_api
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.span import TraceState

from kit.catalogue import RAG_DOCUMENT_INGEST, RAG_DOCUMENT_PROCESS, RAG_QUERY, RAG_QUERY_PROCESS, RAG_VECTOR_SEARCH
from kit.otel import extract, inject, start_telemetry

SDK = TraceContextTextMapPropagator()
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"

_hex = st.text("0123456789abcdef", min_size=1, max_size=34)
_near = st.builds(
    lambda v, t, s, f, rest: f"{v}-{t}-{s}-{f}{rest}",
    st.sampled_from(["00", "01", "ff", "cc", "0", "xx"]),
    st.one_of(st.just(TRACE), st.just("0" * 32), st.just(TRACE.upper()), _hex),
    st.one_of(st.just(SPAN), st.just("0" * 16), _hex),
    st.sampled_from(["00", "01", "02", "03", "ff", "1", "zz"]),
    st.sampled_from(["", " ", "\t", "-", "-more", "more", "\n"]),
)
_states = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.lists(st.sampled_from(["a=1", "b=2", "a=3", "vendor@x=y", "bad", "=", "k=v v", ""]), max_size=4).map(",".join),
    st.just(",".join(f"key{i}=value" for i in range(60))),
)


@example(parent=GOOD + "more", state=None)
@example(parent=GOOD + "\n", state=None)
@settings(deadline=None)
@given(parent=st.one_of(_near, st.text(max_size=80)), state=_states)
def test_extract_is_equal_to_the_sdk_on_whatever_comes(parent: str, state: str | None) -> None:
    headers = {"traceparent": parent} | ({} if state is None else {"tracestate": state})
    ours = trace_api.get_current_span(extract(headers)).get_span_context()
    theirs = trace_api.get_current_span(SDK.extract(headers)).get_span_context()
    assert ours == theirs
    assert ours.is_remote == theirs.is_remote


@settings(deadline=None)
@given(
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    flags=st.integers(0, 3),
    state=st.sampled_from([[], [("a", "1")], [("a", "1"), ("b", "2")]]),
)
def test_inject_is_equal_to_the_sdk(trace_id: int, span_id: int, flags: int, state: list[tuple[str, str]]) -> None:
    span_context = SpanContext(trace_id, span_id, False, TraceFlags(flags), TraceState(state))
    context = trace_api.set_span_in_context(NonRecordingSpan(span_context), Context())
    theirs: dict[str, str] = {}
    SDK.inject(theirs, context)
    assert inject(None, context) == theirs
    back = trace_api.get_current_span(extract(theirs)).get_span_context()
    assert (back.trace_id, back.span_id, back.trace_flags) == (trace_id, span_id, flags)


@pytest.mark.parametrize("headers", [None, {}, {"other": "x"}, {"traceparent": ""}, {"traceparent": "x" * 600}])
def test_headers_without_context_have_none(headers: dict[str, str] | None) -> None:
    assert extract(headers) is None


def test_nothing_is_injected_outside_an_operation() -> None:
    assert inject() is None
    given_headers = {"Nats-Msg-Id": "1"}
    assert inject(given_headers) is given_headers
    assert given_headers == {"Nats-Msg-Id": "1"}


def test_one_header_goes_with_a_message() -> None:
    telemetry = start_telemetry("test", capture_logging=False)
    with telemetry.operation(RAG_QUERY):
        assert list(inject() or {}) == ["traceparent"]
        assert list(inject({"Nats-Msg-Id": "1"}) or {}) == ["Nats-Msg-Id", "traceparent"]


def test_names_are_matched_without_regard_to_case() -> None:
    context = extract({"Traceparent": GOOD, "TraceState": "a=1", "BAGGAGE": "k=v"})
    span_context = trace_api.get_current_span(context).get_span_context()
    assert f"{span_context.trace_id:032x}" == TRACE
    assert span_context.trace_state.to_header() == "a=1"
    assert baggage.get_all(context) == {"k": "v"}


def test_a_tracestate_that_is_too_long_is_left_out() -> None:
    context = extract({"traceparent": GOOD, "tracestate": "a=" + "x" * 600})
    assert not trace_api.get_current_span(context).get_span_context().trace_state


def test_baggage_travels_when_there_is_some() -> None:
    telemetry = start_telemetry("test", capture_logging=False)
    with telemetry.operation(RAG_QUERY):
        context = baggage.set_baggage("plan", "gold & blue")
        headers = inject(None, context)
    assert headers is not None
    theirs: dict[str, str] = {}
    W3CBaggagePropagator().inject(theirs, context)
    assert headers["baggage"] == theirs["baggage"]
    assert baggage.get_all(extract(headers)) == {"plan": "gold & blue"}
    assert baggage.get_all(extract({"baggage": "k=v"})) == {"k": "v"}


def test_three_hops_are_one_trace_across_three_services() -> None:
    """Each service records for itself, and only headers pass between them."""
    client, worker, gateway = (start_telemetry(name, capture_logging=False) for name in ("client", "rag", "gateway"))

    def third(headers: dict[str, str] | None) -> None:
        with gateway.operation(RAG_QUERY_PROCESS, kind="server", parent=extract(headers)):
            pass

    def second(headers: dict[str, str] | None) -> None:
        with worker.operation(RAG_QUERY_PROCESS, kind="server", parent=extract(headers)):  # noqa: SIM117
            with worker.operation(RAG_VECTOR_SEARCH, kind="client"):
                third(inject())

    with client.operation(RAG_QUERY, kind="client") as operation:
        second(inject())
    spans = [*client.recorder.finished, *worker.recorder.finished, *gateway.recorder.finished]
    assert {f"{span.context.trace_id:032x}" for span in spans} == {operation.trace_id}
    by_id = {span.context.span_id: span for span in spans}
    chain, span = [], gateway.recorder.finished[0]
    while span is not None:
        chain.append((str(span.resource.attributes["service.name"]), span.name))
        span = by_id[span.parent.span_id] if span.parent else None  # type: ignore[assignment]
    assert chain == [
        ("gateway", "rag.query.process"),
        ("rag", "rag.vector.search"),
        ("rag", "rag.query.process"),
        ("client", "rag.query"),
    ]
    assert [
        span.parent.is_remote for span in (*worker.recorder.finished, *gateway.recorder.finished) if span.parent
    ] == [
        False,
        True,
        True,
    ]


def test_every_attempt_of_a_job_is_a_child_of_what_enqueued_it() -> None:
    telemetry = start_telemetry("test", capture_logging=False)
    with telemetry.operation(RAG_DOCUMENT_INGEST, kind="producer"):
        headers = inject()
    for attempt in (1, 2):
        attributes = {"message.attempt": attempt}
        with telemetry.operation(RAG_DOCUMENT_PROCESS, attributes, kind="consumer", parent=extract(headers)):
            pass
    trace = telemetry.recorder.trace()
    assert trace.connected
    assert trace.text(attributes=("message.attempt",)).splitlines() == [
        "rag.document.ingest",
        "├─ rag.document.process [message.attempt=1]",
        "└─ rag.document.process [message.attempt=2]",
    ]
