"""From what was recorded to who takes it: the recorder, and one bounded worker per signal and exporter."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from kit.otel import exporters
from kit.otel.export import Queue, Ticker, Worker
from kit.otel.logs import readable_log
from kit.otel.span import LiveSpan, readable

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from kit.otel.exporters import Target
    from kit.otel.logs import LiveLog
    from kit.otel.metrics import Reading
    from kit.otel.points import Reader
    from kit.otel.recorder import Recorder

# Items kept while the endpoint is slow. The standard's 2,048 are full in 20 ms of a tight loop, since a span of the kit
# takes less time to make than to export.
QUEUE_SIZE = 16_384

SpanTaker: TypeAlias = "Callable[[LiveSpan | ReadableSpan], None]"
LogTaker: TypeAlias = "Callable[[LiveLog | ReadableLogRecord], None]"


class Pipeline:
    """Everything that takes spans, metrics and logs of one Telemetry.

    Attributes:
        workers: the ways out of the process; none without an exporter.
        span_takers: each is handed every finished span; none of them waits or raises.
        log_takers: each is handed every log record.
        readers: read the metrics, one for each exporter of them.
    """

    def __init__(
        self,
        resource: Resource,
        scope: InstrumentationScope,
        read: Callable[[], Reading],
        recorder: Recorder | None,
        target: Target,
    ) -> None:
        self.span_takers: list[SpanTaker] = []
        self.log_takers: list[LogTaker] = []
        self.readers: list[Reader] = []
        self.workers: list[Worker] = []
        if recorder is not None:
            self.span_takers.append(recorder.keep_span)
            self.log_takers.append(recorder.keep_log)
        for spans in map(_span_queue, exporters.span_exporters(target)):
            self.workers.append(spans)
            self.span_takers.append(spans.put)
        for logs in map(_log_queue, exporters.log_exporters(target)):
            self.workers.append(logs)
            self.log_takers.append(logs.put)
        for exporter in exporters.metric_exporters(target):
            from kit.otel.points import Reader, wants_delta  # the SDK's metrics take a seventh of the import's time

            reader = Reader(read, resource, scope, delta=wants_delta())
            self.readers.append(reader)
            self.workers.append(_ticker(exporter, reader))

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

    def stop(self) -> None:
        """Begin the last exports."""
        for worker in self.workers:
            worker.stop()

    def close(self, deadline: float) -> None:
        """Wait for the last exports until ``deadline`` (monotonic clock), then cut every connection."""
        for worker in self.workers:
            worker.close(deadline)


def _span_queue(exporter: SpanExporter) -> Queue[LiveSpan | ReadableSpan]:
    def export(batch: Sequence[LiveSpan | ReadableSpan]) -> bool:
        return exporter.export([readable(span) for span in batch]).name == "SUCCESS"

    return Queue(
        "traces",
        export,
        exporter.shutdown,
        size=exporters.number("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SIZE),
        batch=exporters.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512),
        interval=exporters.milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000),
    )


def _log_queue(exporter: LogRecordExporter) -> Queue[LiveLog | ReadableLogRecord]:
    def export(batch: Sequence[LiveLog | ReadableLogRecord]) -> bool:
        return exporter.export([readable_log(record) for record in batch]).name == "SUCCESS"

    return Queue(
        "logs",
        export,
        exporter.shutdown,
        size=exporters.number("OTEL_BLRP_MAX_QUEUE_SIZE", QUEUE_SIZE),
        batch=exporters.number("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", 512),
        interval=exporters.milliseconds("OTEL_BLRP_SCHEDULE_DELAY", 1000),
    )


def _ticker(exporter: MetricExporter, reader: Reader) -> Ticker[MetricsData]:
    def export(data: MetricsData) -> bool:
        if exporter.export(data).name != "SUCCESS":
            return False
        reader.taken()
        return True

    interval = exporters.milliseconds("OTEL_METRIC_EXPORT_INTERVAL", 60000)
    return Ticker(reader.read, export, exporter.shutdown, interval=interval)
