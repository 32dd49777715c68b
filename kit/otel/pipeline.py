"""From what was recorded to who takes it: the recorder, and one bounded worker per signal and exporter."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from kit.otel import exporters
from kit.otel.export import Queue, Ticker, Worker
from kit.otel.points import metrics_data
from kit.otel.recorder import Recorder

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

    from kit.otel.exporters import Target
    from kit.otel.metrics import Store

logger = logging.getLogger(__name__)


class SpanSink(SpanProcessor):
    """Hands each finished span to everyone who takes it."""

    def __init__(self, takers: Sequence[Callable[[ReadableSpan], None]]) -> None:
        self._takers = tuple(takers)

    def on_end(self, span: ReadableSpan) -> None:
        """Pass a sampled span on; this neither waits nor raises."""
        for take in self._takers:
            take(span)


class Pipeline:
    """Everything that takes spans, metrics and logs of one Telemetry.

    Attributes:
        workers: the ways out of the process; none without an exporter.
    """

    def __init__(self, resource: Resource, store: Store, recorder: Recorder | None, target: Target) -> None:
        span_queues = [_span_queue(exporter) for exporter in exporters.span_exporters(target)]
        log_queues = [_log_queue(exporter) for exporter in exporters.log_exporters(target)]
        tickers = [_ticker(exporter, resource, store) for exporter in exporters.metric_exporters(target)]
        self.workers: list[Worker] = [*span_queues, *log_queues, *tickers]
        self.spans = SpanSink([*([recorder.keep_span] if recorder else []), *(queue.put for queue in span_queues)])
        self._log_takers = [*([recorder.keep_log] if recorder else []), *(queue.put for queue in log_queues)]
        for ticker in tickers:
            ticker.start()

    @property
    def takes_logs(self) -> bool:
        """Whether a log record has anywhere to go."""
        return bool(self._log_takers)

    def log(self, record: ReadableLogRecord) -> None:
        """Pass a log record on; this neither waits nor raises."""
        for take in self._log_takers:
            take(record)

    def dropped(self) -> dict[str, int]:
        """Return how many items no endpoint took, by signal."""
        totals = dict.fromkeys(exporters.SIGNALS, 0)
        for worker in self.workers:
            totals[worker.signal] += worker.dropped  # type: ignore[index]
        return {str(signal): total for signal, total in totals.items()}

    def flush(self, timeout: float) -> bool:
        """Export what was recorded; return within ``timeout`` seconds, True when an endpoint took all of it."""
        deadline = time.monotonic() + timeout
        for worker in self.workers:
            worker.ask()
        return all([worker.wait(deadline) for worker in self.workers])

    def close(self, timeout: float) -> None:
        """Export what is left, then cut every connection; return within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.close(deadline)


def _span_queue(exporter: SpanExporter) -> Queue[ReadableSpan]:
    def export(batch: Sequence[ReadableSpan]) -> bool:
        return exporter.export(batch).name == "SUCCESS"

    return Queue(
        "traces",
        export,
        exporter.shutdown,
        size=exporters.number("OTEL_BSP_MAX_QUEUE_SIZE", 2048),
        batch=exporters.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
        interval=exporters.milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000),
    )


def _log_queue(exporter: LogRecordExporter) -> Queue[Any]:
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
