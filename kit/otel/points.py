"""A reading of the metrics in the SDK's form, which every exporter takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from kit import catalogue
    from kit.otel.metrics import Reading

SCOPE = InstrumentationScope("kit")


def metrics_data(reading: Reading, resource: Resource) -> tuple[MetricsData, int]:
    """Return a reading as cumulative data of the SDK, and how many points it has."""
    sums: dict[catalogue.Metric, list[NumberDataPoint]] = {}
    for series, value in reading.counters.items():
        sums.setdefault(series.metric, []).append(
            NumberDataPoint(dict(series.labels), reading.start_ns, reading.time_ns, value)
        )
    histograms: dict[catalogue.Metric, list[HistogramDataPoint]] = {}
    for series, cell in reading.histograms.items():
        histograms.setdefault(series.metric, []).append(
            HistogramDataPoint(
                dict(series.labels),
                reading.start_ns,
                reading.time_ns,
                cell.count,
                cell.total,
                cell.counts,
                cell.bounds,
                cell.low,
                cell.high,
            )
        )
    kind = AggregationTemporality.CUMULATIVE
    metrics = [
        *(Metric(row.name, row.purpose, row.unit, Sum(points, kind, True)) for row, points in sums.items()),
        *(Metric(row.name, row.purpose, row.unit, Histogram(points, kind)) for row, points in histograms.items()),
    ]
    scope = ScopeMetrics(SCOPE, metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], resource.schema_url)]), len(reading.counters) + len(
        reading.histograms
    )
