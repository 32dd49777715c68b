"""A reading of the metrics in the SDK's form, which every exporter takes.

The points are those that the SDK would make of observable counters (a test compares them), and histograms beside
them, for which the SDK has no observable instrument.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

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

from kit.otel.metrics import HistogramCell, Reading

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

    from kit import catalogue
    from kit.otel.metrics import Series

Foreign: TypeAlias = Callable[[], Iterable[ScopeMetrics]]


def wants_delta() -> bool:
    """Say whether OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE asks for changes instead of totals."""
    preference = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").strip().lower()
    return preference in ("delta", "lowmemory")


class Reader:
    """Reads the metrics for one exporter.

    Attributes:
        delta: whether the exporter wants changes instead of totals.
        foreign: yields what other libraries measured with the SDK, when they may.
    """

    def __init__(
        self, read: Callable[[], Reading], resource: Resource, scope: InstrumentationScope, *, delta: bool
    ) -> None:
        self._read = read
        self._resource = resource
        self._scope = scope
        self.delta = delta
        self._last: Reading | None = None
        self._next: Reading | None = None
        self.foreign: Foreign | None = None

    def read(self) -> tuple[MetricsData, int]:
        """Return the metrics, and how many points they have."""
        self._next = now = self._read()
        before = (self._last or Reading(now.start_ns, now.start_ns, {}, {})) if self.delta else None
        metrics = [*_sums(now, before), *_histograms(now, before)]
        scopes = [ScopeMetrics(self._scope, metrics, self._scope.schema_url or "")] if metrics else []
        scopes.extend(self.foreign() if self.foreign is not None else ())
        points = sum(len(metric.data.data_points) for scope in scopes for metric in scope.metrics)
        return MetricsData([ResourceMetrics(self._resource, scopes, self._resource.schema_url)]), points

    def taken(self) -> None:
        """Start the next changes where the last reading ended, now that the endpoint has it."""
        self._last = self._next


def _temporality(before: Reading | None, now: Reading) -> tuple[AggregationTemporality, int]:
    if before is None:
        return AggregationTemporality.CUMULATIVE, now.start_ns
    return AggregationTemporality.DELTA, before.time_ns


def _sums(now: Reading, before: Reading | None) -> list[Metric]:
    temporality, start = _temporality(before, now)
    points: dict[catalogue.Metric, list[NumberDataPoint]] = {}
    for series, value in now.counters.items():
        change = value - before.counters.get(series, 0) if before is not None else value
        if before is None or change:
            point = NumberDataPoint(dict(series.labels), start, now.time_ns, change)
            points.setdefault(series.metric, []).append(point)
    return [Metric(row.name, row.purpose, row.unit, Sum(of, temporality, True)) for row, of in points.items()]


def _histograms(now: Reading, before: Reading | None) -> list[Metric]:
    temporality, start = _temporality(before, now)
    points: dict[catalogue.Metric, list[HistogramDataPoint]] = {}
    for series, cell in now.histograms.items():
        change = cell if before is None else _since(before, series, cell)
        if change.count:
            points.setdefault(series.metric, []).append(
                HistogramDataPoint(
                    dict(series.labels),
                    start,
                    now.time_ns,
                    count=change.count,
                    sum=change.total,
                    bucket_counts=change.counts,
                    explicit_bounds=change.bounds,
                    min=change.low,
                    max=change.high,
                )
            )
    return [Metric(row.name, row.purpose, row.unit, Histogram(of, temporality)) for row, of in points.items()]


def _since(before: Reading, series: Series, cell: HistogramCell) -> HistogramCell:
    """What was recorded since; its extremes are those since the start, which is all that is known."""
    change = HistogramCell(series)
    change.merge(cell)
    if (earlier := before.histograms.get(series)) is not None:
        change.counts = [now - then for now, then in zip(change.counts, earlier.counts, strict=True)]
        change.total -= earlier.total
    return change
