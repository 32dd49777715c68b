"""What telemetry costs, beside the bare SDK in the same run: ratios that hold on any machine, by a wide margin.

The figures themselves are measured by the benchmarks; here only a loss of their order of magnitude is caught.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler

from kit.catalogue import GATEWAY_CACHE_HITS, RAG_QUERY
from kit.otel import start_telemetry

ATTRIBUTES = {
    "messaging.system": "nats",
    "messaging.destination.name": "ai.rag.queries.acme",
    "messaging.operation.name": "request",
    "messaging.message.body.size": 300,
}
ALL_ATTRIBUTES = {**ATTRIBUTES, "tenant.id": "acme", "openinference.span.kind": "CHAIN"}


class _Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def _seconds(work: Callable[[], object], times: int = 300) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def _ratio(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 25) -> float:
    """The median of interleaved rounds."""
    return statistics.median(_seconds(ours) / _seconds(theirs) for _ in range(rounds))


def _bare(sampler: Sampler | None = None) -> tuple[TracerProvider, Callable[[], None]]:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Nowhere()))
    tracer = provider.get_tracer("bare")

    def work() -> None:
        with tracer.start_as_current_span("rag.query", attributes=ALL_ATTRIBUTES):
            pass

    return provider, work


@pytest.mark.parametrize(("sampler", "limit"), [("parentbased_always_on", 1.0), ("parentbased_always_off", 1.0)])
def test_an_operation_with_its_metrics_costs_less_than_a_bare_span(
    monkeypatch: pytest.MonkeyPatch, sampler: str, limit: float
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    telemetry = start_telemetry("x", tenant_id="acme", capture_logging=False)
    provider, bare = _bare(ParentBased(ALWAYS_OFF) if sampler.endswith("off") else None)

    def ours() -> None:
        with telemetry.operation(RAG_QUERY, ATTRIBUTES, kind="client"):
            pass

    assert _ratio(ours, bare) <= limit
    provider.shutdown()


def test_a_counter_costs_a_fraction_of_the_sdks() -> None:
    telemetry = start_telemetry("x", capture_logging=False)
    meter = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False).get_meter("bare")
    counter, bound = meter.create_counter("bare"), telemetry.counter(GATEWAY_CACHE_HITS, status="success")
    labels = {"status": "success"}
    assert _ratio(lambda: telemetry.count(GATEWAY_CACHE_HITS, status="success"), lambda: counter.add(1, labels)) < 0.33
    assert _ratio(bound.add, lambda: counter.add(1, labels)) < 0.2


def test_a_disabled_log_call_costs_a_fraction_of_an_enabled_one() -> None:
    log = start_telemetry("x", capture_logging=False).logger("x")
    assert _ratio(lambda: log.debug("part %d", 1), lambda: log.info("part %d", 1)) < 0.1
