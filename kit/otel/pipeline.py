"""From what was recorded to who takes it: the recorder, and one bounded worker per signal and exporter."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from kit.otel import exporters
from kit.otel.export import Queue, Ticker, Worker
from kit.otel.points import metrics_data
from kit.otel.span import LiveSpan, readable

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

    from kit.otel.exporters import Target
    from kit.otel.metrics import Store
    from kit.otel.recorder import Recorder

AnySpan = LiveSpan | ReadableSpan


class Pipeline:
    """Everything that takes spans, metrics and logs of one Telemetry.

    Attributes:
        workers: the ways out of the process; none without an exporter.
        span_takers: each is handed every finished span; none of them waits or raises.
        log_takers: each is handed every log record.
    """

    def __init__(self, resource: Resource, store: Store, recorder: Recorder | None, target: Target) -> None:
        span_queues = [_span_queue(exporter) for exporter in exporters.span_exporters(target)]
        log_queues = [_log_queue(exporter) for exporter in exporters.log_exporters(target)]
        tickers = [_ticker(exporter, resource, store) for exporter in exporters.metric_exporters(target)]
        self.workers: list[Worker] = [*span_queues, *log_queues, *tickers]
        self.span_takers: list[Callable[[AnySpan], None]] = [queue.put for queue in span_queues]
        self.log_takers: list[Callable[[ReadableLogRecord], None]] = [queue.put for queue in log_queues]
        if recorder is not None:
            self.span_takers.insert(0, recorder.keep_span)
            self.log_takers.insert(0, recorder.keep_log)
        for ticker in tickers:
            ticker.start()

    def dropped(self) -> dict[str, int]:
        """Return how many items no endpoint took, by signal."""
        return {signal: sum(w.dropped for w in self.workers if w.signal == signal) for signal in exporters.SIGNALS}

    def exported(self) -> dict[str, int]:
        """Return how many items an endpoint took, by signal."""
        return {signal: sum(w.exported for w in self.workers if w.signal == signal) for signal in exporters.SIGNALS}

    def flush(self, timeout: float) -> bool:
        """Export what was recorded; return within ``timeout`` seconds, True when the endpoints took all of it."""
        deadline = time.monotonic() + timeout
        for worker in self.workers:
            worker.ask()
        answers = [worker.wait(deadline) for worker in self.workers]
        return all(answers)

    def close(self, timeout: float) -> None:
        """Export what is left, then cut every connection; return within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.close(deadline)


class ForeignSpans(SpanProcessor):
    """Hands spans that other libraries make with the SDK's tracer to the same takers."""

    def __init__(self, takers: Sequence[Callable[[AnySpan], None]]) -> None:
        self._takers = tuple(takers)

    def on_end(self, span: ReadableSpan) -> None:
        """Pass a sampled span on."""
        if span.context is not None and span.context.trace_flags.sampled:
            for take in self._takers:
                take(span)


def _span_queue(exporter: SpanExporter) -> Queue[AnySpan]:
    def export(batch: Sequence[AnySpan]) -> bool:
        return exporter.export([readable(span) for span in batch]).name == "SUCCESS"

    return Queue(
        "traces",
        export,
        exporter.shutdown,
        size=exporters.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048),
        batch=exporters.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
        interval=exporters.milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000),
    )


def _log_queue(exporter: LogRecordExporter) -> Queue[ReadableLogRecord]:
    def export(batch: Sequence[ReadableLogRecord]) -> bool:
        return exporter.export(batch).name == "SUCCESS"

    return Queue(
        "logs",
        export,
        exporter.shutdown,
        size=exporters.number("OTEL_BLRP_MAX_QUEUE_SIZE", 2048),
        batch=exporters.number("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", 512),
        interval=exporters.milliseconds("OTEL_BLRP_SCHEDULE_DELAY", 1000),
    )


def _ticker(exporter: MetricExporter, resource: Resource, store: Store) -> Ticker:
    def collect() -> tuple[int, int]:
        data, points = metrics_data(store.read(), resource)
        if not points:
            return 0, 0
        taken = exporter.export(data).name == "SUCCESS"
        return (points, 0) if taken else (0, points)

    return Ticker(collect, exporter.shutdown, interval=exporters.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60000))
