"""What happened in this process, to be looked at in a notebook and asserted in a test.

Finished spans, metrics and logs as DataFrames, a trace as a tree, and a waterfall of it. Memory is bounded: the oldest
spans and logs are forgotten first, and how many were is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kit.otel.span import readable

if TYPE_CHECKING:
    import pandas as pd
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan

    from kit.otel.metrics import Reading
    from kit.otel.span import LiveSpan

MOST_SPANS = 50_000
MOST_LOGS = 50_000


class Recorder:
    """Finished spans, metrics and logs of one Telemetry."""

    def __init__(self, read: Callable[[], Reading], *, spans: int = MOST_SPANS, logs: int = MOST_LOGS) -> None:
        self._read = read
        self._spans: deque[LiveSpan | ReadableSpan] = deque(maxlen=spans)
        self._logs: deque[ReadableLogRecord] = deque(maxlen=logs)
        self.keep_span = self._spans.append
        self.keep_log = self._logs.append

    @property
    def finished(self) -> list[ReadableSpan]:
        """The SDK's own finished spans, in the order in which they ended."""
        return [readable(span) for span in list(self._spans)]

    def clear(self) -> None:
        """Forget spans and logs; metrics are totals and stay."""
        self._spans.clear()
        self._logs.clear()

    def spans(self) -> pd.DataFrame:
        """Return the finished spans, one a row, in the order in which they started."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for span in sorted(self.finished, key=lambda span: span.start_time or 0):
            start, end = span.start_time or 0, span.end_time or 0
            rows.append(
                {
                    "name": span.name,
                    "kind": span.kind.name.lower(),
                    "status": span.status.status_code.name.lower(),
                    "duration_ms": (end - start) / 1e6,
                    "trace_id": f"{span.context.trace_id:032x}",
                    "span_id": f"{span.context.span_id:016x}",
                    "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
                    "start_ns": start,
                    "attributes": dict(span.attributes or {}),
                    "events": [event.name for event in span.events],
                }
            )
        return pd.DataFrame(rows, columns=list(rows[0]) if rows else ["name"])

    def metrics(self) -> pd.DataFrame:
        """Return the totals, one series a row."""
        import pandas as pd

        reading = self._read()
        rows: list[dict[str, Any]] = []
        for series, value in reading.counters.items():
            rows.append({"name": series.metric.name, "labels": dict(series.labels), "count": value, "sum": value})
        for series, cell in reading.histograms.items():
            rows.append(
                {"name": series.metric.name, "labels": dict(series.labels), "count": cell.count, "sum": cell.total}
            )
        return pd.DataFrame(rows, columns=["name", "labels", "count", "sum"]).sort_values("name", ignore_index=True)

    def logs(self) -> pd.DataFrame:
        """Return the log records, one a row."""
        import pandas as pd

        rows = [
            {
                "severity": log.log_record.severity_text,
                "logger": log.instrumentation_scope.name if log.instrumentation_scope else "",
                "body": log.log_record.body,
                "trace_id": f"{log.log_record.trace_id:032x}",
                "span_id": f"{log.log_record.span_id:016x}",
                "attributes": dict(log.log_record.attributes or {}),
            }
            for log in self._logs
        ]
        columns = ["severity", "logger", "body", "trace_id", "span_id", "attributes"]
        return pd.DataFrame(rows, columns=columns)
