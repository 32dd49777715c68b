"""The kit's span leaves the process exactly as the SDK's would, sampled and limited by the same variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import _get_from_env_or_default
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from kit.otel.propagation import Carried, inject
from kit.otel.sampling import Sampling, sampling_from_environment
from kit.otel.span import LiveSpan, Tracing

RESOURCE = Resource({"service.name": "test"})
PARENT = SpanContext(0xAF, 0xB7, True, TraceFlags(0x03))
OTHER = SpanContext(0xCF, 0xD7, True, TraceFlags(0x01))
ATTRIBUTES: dict[str, Any] = {
    "text": "ä" * 300,
    "flag": True,
    "whole": 2**40,
    "part": 0.5,
    "many": ["a", "b"],
    "numbers": (1, 2, 3),
}


class _Keep(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def _ours(kept: list[LiveSpan]) -> Tracing:
    return Tracing(RESOURCE, sampling_from_environment(), [kept.append], InstrumentationScope("kit", ""))


def _use(span: Any) -> None:
    for key, value in ATTRIBUTES.items():
        span.set_attribute(key, value)
    span.set_attributes({f"extra{number}": number for number in range(10)})
    for number in range(5):
        span.add_event(f"event{number}", {"text": "b" * 200, **{f"e{i}": i for i in range(6)}}, timestamp=1000 + number)
    span.add_link(PARENT, {"why": "related"})
    span.set_status(StatusCode.ERROR, "first")
    span.set_status(Status(StatusCode.ERROR, "second"))
    span.set_status(StatusCode.UNSET)
    span.update_name("renamed")
    span.end(end_time=5_000)
    span.set_attribute("late", 1)
    span.add_event("late")
    span.update_name("late")
    span.set_status(StatusCode.OK)
    span.end(end_time=9_000)


def _encoded(span: ReadableSpan) -> Any:
    message = encode_spans([span])
    sent = message.resource_spans[0].scope_spans[0].spans[0]
    sent.span_id = b""
    sent.start_time_unix_nano = 0
    return message


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "4", "OTEL_SPAN_EVENT_COUNT_LIMIT": "2"},
        {
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "50",
            "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "3",
            "OTEL_SPAN_LINK_COUNT_LIMIT": "1",
        },
    ],
    ids=["default", "counts", "lengths"],
)
def test_it_is_sent_as_the_sdks_span_is(monkeypatch: pytest.MonkeyPatch, limits: dict[str, str]) -> None:
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    parent = set_span_in_context(NonRecordingSpan(PARENT))
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    keep = _Keep()
    provider.add_span_processor(keep)
    links = [Link(OTHER), Link(PARENT)]
    theirs = provider.get_tracer("kit").start_span("name", parent, SpanKind.CLIENT, {"start": "x"}, links)
    _use(theirs)
    kept: list[LiveSpan] = []
    ours = _ours(kept).start(
        "name", NonRecordingSpan(PARENT), SpanKind.CLIENT, {}, {"start": "x"}, [Link(OTHER), Link(PARENT)]
    )
    _use(ours)
    expected, got = _encoded(keep.spans[0]), _encoded(kept[0].readable())
    assert got == expected
    assert kept[0].readable() is kept[0].readable()


def test_a_span_begins_and_ends_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[LiveSpan] = []
    span = _ours(kept).start("name", INVALID_SPAN, SpanKind.INTERNAL, {}, None)
    assert isinstance(span, LiveSpan)
    monkeypatch.setattr("kit.otel.span.time_ns", lambda: 0)  # a clock that was set back changes no duration
    span.end()
    done = kept[0].readable()
    assert done.start_time is not None
    assert done.end_time is not None
    assert 0 <= done.end_time - done.start_time < 10e9


def test_values_are_copied_and_numpys_become_pythons() -> None:
    kept: list[LiveSpan] = []
    names = ["a"]
    given: dict[str, Any] = {
        "names": names,
        "none": None,
        "np": np.float32(0.5),
        "array": np.arange(3),
        "n": np.int64(3),
    }
    span = _ours(kept).start("name", INVALID_SPAN, SpanKind.INTERNAL, {"common": 1}, given)
    assert isinstance(span, LiveSpan)
    names.append("b")
    given["late"] = 1
    span.set_attribute("none", None)
    span.set_attribute("scalar", np.int32(7))
    expected = {"common": 1, "names": ("a",), "np": 0.5, "array": (0, 1, 2), "n": 3, "scalar": 7}
    assert dict(span.attributes) == expected
    span.end()
    assert dict(kept[0].readable().attributes or {}) == expected


@pytest.mark.parametrize(
    "name",
    [
        "",
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
        "PARENTBASED_TRACEIDRATIO",
        "unknown",
    ],
)
@pytest.mark.parametrize("argument", [None, "0.25", "0", "1", "nonsense"])
def test_samplers_decide_as_the_sdks_do(monkeypatch: pytest.MonkeyPatch, name: str, argument: str | None) -> None:
    if name:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    if argument is not None:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    theirs, ours = _get_from_env_or_default(), sampling_from_environment()
    for number in range(200):
        trace_id = (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 + 1) % 2**128
        for flags in (None, 0, 1):
            context = SpanContext(trace_id, 1, bool(number % 2), TraceFlags(flags or 0))
            parent = set_span_in_context(INVALID_SPAN if flags is None else NonRecordingSpan(context))
            expected = theirs.should_sample(parent, trace_id, "x").decision.is_sampled()
            assert bool(ours.decide(flags, trace_id)) is expected


@pytest.mark.parametrize("name", ["always_off", "parentbased_always_off", "always_on", "traceidratio"])
def test_what_came_as_text_is_sampled_as_what_came_taken_apart(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    tracing = _ours([])
    for flags in range(4):
        for trace_id in (1, 2**64 - 1):
            text = Carried(f"00-{trace_id:032x}-{7:016x}-{flags:02x}", remote=True)
            apart = NonRecordingSpan(SpanContext(trace_id, 7, True, TraceFlags(flags)))
            assert text.get_span_context() == apart.get_span_context()
            one, other = (tracing.start("name", above, SpanKind.SERVER, {}, None) for above in (text, apart))
            assert (one is text) is (other is apart)
            assert one.is_recording() is other.is_recording()
            mine, same = one.get_span_context(), other.get_span_context()
            assert (mine.trace_id, mine.trace_flags, mine.is_remote) == (
                same.trace_id,
                same.trace_flags,
                same.is_remote,
            )


def test_a_trace_that_nobody_records_has_an_id_to_pass_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    span = _ours([]).start("name", INVALID_SPAN, SpanKind.CLIENT, {}, None)
    context = span.get_span_context()
    assert context.is_valid
    assert not context.is_remote
    assert not context.trace_flags.sampled
    headers = inject(None, set_span_in_context(span, Context()))
    assert headers == {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-02"}


def test_a_ratio_out_of_range_is_told_and_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "7")
    assert sampling_from_environment() == Sampling(parent_based=False)
    assert "not a number from 0 to 1" in caplog.text
