"""What happened in this process, to be looked at in a notebook and asserted in a test.

Finished spans, metrics and logs as DataFrames, a trace as a tree, and a waterfall of it. Memory is bounded: the oldest
spans and logs are forgotten first, and how many were is known.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kit.otel import semconv
from kit.otel.logs import readable_log
from kit.otel.span import readable
from kit.otel.trace import Trace

if TYPE_CHECKING:
    import pandas as pd
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan

    from kit.otel.logs import LiveLog
    from kit.otel.metrics import HistogramCell, Reading, Series
    from kit.otel.span import LiveSpan
    from kit.otel.waterfall import Waterfall

MOST_SPANS = 50_000
MOST_LOGS = 50_000

_SPAN_COLUMNS = (
    "name", "component", "kind", "status", "error_type", "start", "duration_ms", "trace_id", "span_id", "parent_id",
    "attributes", "events",
)  # fmt: skip
_METRIC_COLUMNS = ("name", "kind", "unit", "labels", "count", "sum", "mean", "p50", "p95", "min", "max")
_LOG_COLUMNS = ("time", "severity", "logger", "body", "trace_id", "span_id", "attributes")


class Recorder:
    """Finished spans, metrics and logs of one Telemetry.

    Args:
        read: returns the totals of the metrics.
        spans: most spans to keep; ``logs`` likewise.
    """

    def __init__(self, read: Callable[[], Reading], *, spans: int = MOST_SPANS, logs: int = MOST_LOGS) -> None:
        self._read = read
        self._spans: deque[LiveSpan | ReadableSpan] = deque(maxlen=spans)
        self._logs: deque[LiveLog | ReadableLogRecord] = deque(maxlen=logs)
        self._spans_seen = 0
        self._logs_seen = 0
        self._lock = threading.Lock()

    def keep_span(self, span: LiveSpan | ReadableSpan) -> None:
        """Keep a finished span."""
        with self._lock:
            self._spans.append(span)
            self._spans_seen += 1

    def keep_log(self, record: LiveLog | ReadableLogRecord) -> None:
        """Keep a log record."""
        with self._lock:
            self._logs.append(record)
            self._logs_seen += 1

    @property
    def forgotten(self) -> dict[str, int]:
        """How many spans and logs were forgotten because there were too many, by signal."""
        return {"traces": self._spans_seen - len(self._spans), "logs": self._logs_seen - len(self._logs)}

    @property
    def finished(self) -> list[ReadableSpan]:
        """The finished spans in the SDK's own form, in the order in which they ended."""
        return [readable(span) for span in list(self._spans)]

    def clear(self) -> None:
        """Forget spans and logs; metrics are totals, and stay."""
        with self._lock:
            self._spans.clear()
            self._logs.clear()
            self._spans_seen = self._logs_seen = 0

    def spans(self, name: str | None = None) -> pd.DataFrame:
        """Return the finished spans, one a row, in the order in which they started; of one name, if it is given."""
        rows = (_span_row(span) for span in self.finished if name is None or span.name == name)
        return _frame(rows, _SPAN_COLUMNS, "start")

    def metrics(self, name: str | None = None) -> pd.DataFrame:
        """Return the totals, one series a row; of one name, if it is given.

        A counter has its ``sum``. A histogram has ``count``, ``sum``, ``mean``, ``min``, ``max``, and ``p50`` and
        ``p95`` as far as its buckets tell: to be read as "about", never as a benchmark.
        """
        reading = self._read()
        rows = [_counter_row(series, value) for series, value in reading.counters.items()]
        rows += [_histogram_row(series, cell) for series, cell in reading.histograms.items()]
        rows = [row for row in rows if name is None or row["name"] == name]
        rows.sort(key=lambda row: (row["name"], str(row["labels"])))
        return _frame(rows, _METRIC_COLUMNS)

    def logs(self) -> pd.DataFrame:
        """Return the log records, one a row, in the order in which they were made."""
        return _frame((_log_row(readable_log(record)) for record in list(self._logs)), _LOG_COLUMNS, "time")

    def total(self, name: str, **labels: Any) -> int | float:
        """Return the sum of a counter, or the count of a histogram, over the series that have these labels."""
        reading = self._read()
        wanted = set(labels.items())
        counters = [v for series, v in reading.counters.items() if _fits(series, name, wanted)]
        histograms = [cell.count for series, cell in reading.histograms.items() if _fits(series, name, wanted)]
        return sum(counters) + sum(histograms)

    def trace_ids(self) -> list[str]:
        """Return the ids of the recorded traces, in the order in which their first span started."""
        spans = sorted(self.finished, key=lambda span: span.start_time or 0)
        return list(dict.fromkeys(f"{span.context.trace_id:032x}" for span in spans if span.context is not None))

    def trace(self, trace_id: str | None = None, *, name: str | None = None) -> Trace:
        """Return a trace as a tree: the one of this id, else the last one that started, or that has a span so named.

        Raises:
            LookupError: no span of such a trace was recorded.
        """
        spans = self.finished
        if trace_id is None:
            trace_id = self._last(spans, name)
        number = int(trace_id, 16)
        found = [span for span in spans if span.context is not None and span.context.trace_id == number]
        if not found:
            raise LookupError(f"no span of trace {trace_id} was recorded")
        return Trace(found)

    def waterfall(self, trace_id: str | None = None, *, name: str | None = None, title: str | None = None) -> Waterfall:
        """Return a trace as a picture, chosen as ``trace`` does.

        Raises:
            LookupError: no span of such a trace was recorded.
        """
        return self.trace(trace_id, name=name).waterfall(title)

    @staticmethod
    def _last(spans: list[ReadableSpan], name: str | None) -> str:
        starts: dict[int, int] = {}
        named: set[int] = set()
        for span in spans:
            if span.context is not None:
                number, start = span.context.trace_id, span.start_time or 0
                starts[number] = min(start, starts.get(number, start))
                if name is None or span.name == name:
                    named.add(number)
        if not named:
            raise LookupError("no span was recorded" if name is None else f"no span named {name!r} was recorded")
        return f"{max(named, key=lambda number: starts[number]):032x}"


def _frame(rows: Iterable[dict[str, Any]], columns: tuple[str, ...], by: str | None = None) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(list(rows), columns=list(columns))
    return frame if by is None else frame.sort_values(by, kind="stable", ignore_index=True)


def _span_row(span: ReadableSpan) -> dict[str, Any]:
    import pandas as pd

    attributes = dict(span.attributes or {})
    start, end = span.start_time or 0, span.end_time or 0
    assert span.context is not None
    return {
        "name": span.name,
        "component": span.name.split(".")[0],
        "kind": span.kind.name.lower(),
        "status": span.status.status_code.name.lower(),
        "error_type": attributes.get(semconv.ERROR_TYPE),
        "start": pd.Timestamp(start, unit="ns", tz="UTC"),
        "duration_ms": (end - start) / 1e6,
        "trace_id": f"{span.context.trace_id:032x}",
        "span_id": f"{span.context.span_id:016x}",
        "parent_id": None if span.parent is None else f"{span.parent.span_id:016x}",
        "attributes": attributes,
        "events": [{"name": event.name, **dict(event.attributes or {})} for event in span.events],
    }


def _counter_row(series: Series, value: int | float) -> dict[str, Any]:
    return {
        "name": series.metric.name,
        "kind": "counter",
        "unit": series.metric.unit,
        "labels": dict(series.labels),
        "sum": value,
    }


def _histogram_row(series: Series, cell: HistogramCell) -> dict[str, Any]:
    return {
        "name": series.metric.name,
        "kind": "histogram",
        "unit": series.metric.unit,
        "labels": dict(series.labels),
        "count": cell.count,
        "sum": cell.total,
        "mean": cell.total / cell.count,
        "p50": cell.quantile(0.5),
        "p95": cell.quantile(0.95),
        "min": cell.low,
        "max": cell.high,
    }


def _log_row(record: ReadableLogRecord) -> dict[str, Any]:
    import pandas as pd

    log = record.log_record
    return {
        "time": pd.Timestamp(log.timestamp or 0, unit="ns", tz="UTC"),
        "severity": log.severity_text,
        "logger": "" if record.instrumentation_scope is None else record.instrumentation_scope.name,
        "body": log.body,
        "trace_id": f"{log.trace_id:032x}" if log.trace_id else None,
        "span_id": f"{log.span_id:016x}" if log.span_id else None,
        "attributes": dict(log.attributes or {}),
    }


def _fits(series: Series, name: str, wanted: set[tuple[str, Any]]) -> bool:
    return series.metric.name == name and wanted <= set(series.labels)
