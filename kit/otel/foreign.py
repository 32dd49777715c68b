"""Other libraries' telemetry, when OpenTelemetry's global providers are asked for: theirs goes where the kit's goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from opentelemetry import metrics as metrics_api
from opentelemetry import trace as trace_api
from opentelemetry._logs import set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, ScopeMetrics
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from kit.otel.pipeline import LogTaker, Pipeline, SpanTaker
    from kit.otel.points import Foreign

DELTA: dict[type, AggregationTemporality] = dict.fromkeys(
    (Counter, Histogram, ObservableCounter), AggregationTemporality.DELTA
)


class _Spans(SpanProcessor):
    def __init__(self, takers: Sequence[SpanTaker]) -> None:
        self._takers = tuple(takers)

    def on_end(self, span: ReadableSpan) -> None:
        """Pass a sampled span on."""
        if span.context is not None and span.context.trace_flags.sampled:
            for take in self._takers:
                take(span)


class _Logs(LogRecordProcessor):
    def __init__(self, takers: Sequence[LogTaker]) -> None:
        self._takers = tuple(takers)

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Pass a record on."""
        assert log_record.resource is not None
        record = ReadableLogRecord(
            log_record.log_record, log_record.resource, log_record.instrumentation_scope, log_record.limits
        )
        for take in self._takers:
            take(record)

    def shutdown(self) -> None:
        """Do nothing: the pipeline ends with its Telemetry."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Do nothing: ``Telemetry.force_flush`` does it, within its deadline."""
        return True


def set_global_providers(resource: Resource, pipeline: Pipeline) -> None:
    """Make OpenTelemetry's global providers feed this pipeline; they can be set once in a process."""
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(_Spans(pipeline.span_takers))
    trace_api.set_tracer_provider(tracers)
    loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
    loggers.add_log_record_processor(_Logs(pipeline.log_takers))
    set_logger_provider(loggers)
    readers = [InMemoryMetricReader(DELTA if reader.delta else None) for reader in pipeline.readers]
    metrics_api.set_meter_provider(MeterProvider(readers, resource, shutdown_on_exit=False))
    for own, sdk in zip(pipeline.readers, readers, strict=True):
        own.foreign = _scopes(sdk)


def _scopes(reader: InMemoryMetricReader) -> Foreign:
    def read() -> list[ScopeMetrics]:
        data = reader.get_metrics_data()
        return [] if data is None else [scope for resource in data.resource_metrics for scope in resource.scope_metrics]

    return read
