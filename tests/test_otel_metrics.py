"""Totals are exact whoever counts, their number is bounded, and an exporter gets the points that the SDK would make."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricsData
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from kit.catalogue import (
    GATEWAY_CACHE_HITS,
    GATEWAY_COST,
    GATEWAY_TOKENS_USED,
    METRICS,
    RAG_SEARCH_DURATION,
    Instrument,
    Metric,
)
from kit.errors import ConfigurationError
from kit.otel import Telemetry, start_telemetry
from kit.otel.metrics import MOST_SERIES, MOST_TENANTS, HistogramCell, Series, Store, bounds
from kit.otel.points import Reader


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    started = start_telemetry("test", capture_logging=False)
    yield started
    started.shutdown()


def _row(telemetry: Telemetry, name: str) -> dict[str, object]:
    (row,) = telemetry.recorder.metrics(name).to_dict("records")
    return row


def test_totals_are_exact_under_threads(telemetry: Telemetry) -> None:
    hits = telemetry.counter(GATEWAY_CACHE_HITS)

    def work() -> None:
        for _ in range(5_000):
            telemetry.count(GATEWAY_CACHE_HITS)
            hits.add()
            telemetry.record(GATEWAY_TOKENS_USED, 3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):  # reading meanwhile loses nothing, and never goes back
        now = telemetry.recorder.total("gateway.cache.hits")
        assert now >= seen
        seen = int(now)
        time.sleep(0.001)
    assert telemetry.recorder.total("gateway.cache.hits") == 40_000
    row = _row(telemetry, "gateway.tokens.used")
    assert (row["count"], row["sum"]) == (20_000, 60_000)


async def test_totals_are_exact_under_asyncio_and_its_worker_threads(telemetry: Telemetry) -> None:
    async def work() -> None:
        for _ in range(100):
            telemetry.count(GATEWAY_CACHE_HITS, model="m")
            await asyncio.sleep(0)
        await asyncio.to_thread(telemetry.count, GATEWAY_CACHE_HITS, 2, model="m")

    await asyncio.gather(*(work() for _ in range(50)))
    assert telemetry.recorder.total("gateway.cache.hits", model="m") == 50 * 102


def test_what_an_ended_thread_counted_is_kept(telemetry: Telemetry) -> None:
    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: telemetry.count(GATEWAY_CACHE_HITS), range(10)))
            list(pool.map(lambda value: telemetry.record(GATEWAY_TOKENS_USED, value), range(10)))
        telemetry.recorder.metrics()  # folds the cells of the threads that have ended
    assert telemetry.recorder.total("gateway.cache.hits") == 200
    assert _row(telemetry, "gateway.tokens.used")["sum"] == 20 * 45
    assert len(telemetry._shard._cells) <= 2


def test_the_order_of_labels_makes_no_difference(telemetry: Telemetry) -> None:
    telemetry.count(GATEWAY_CACHE_HITS, model="m", provider="p")
    telemetry.count(GATEWAY_CACHE_HITS, provider="p", model="m")
    telemetry.count(GATEWAY_CACHE_HITS, 3, model="m", provider="q")
    frame = telemetry.recorder.metrics("gateway.cache.hits")
    assert sorted(frame["sum"]) == [2, 3]


@pytest.mark.parametrize("label", ["request_id", "agent.id", "id", "uuid"])
def test_an_id_never_labels_a_metric(telemetry: Telemetry, label: str) -> None:
    with pytest.raises(ConfigurationError, match="an id never labels"):
        telemetry.count(GATEWAY_CACHE_HITS, 1, **{label: "x"})
    with pytest.raises(ConfigurationError, match="an id never labels"):
        telemetry.counter(GATEWAY_CACHE_HITS, **{label: "x"})
    with pytest.raises(ConfigurationError, match="an id never labels"):
        telemetry.record(GATEWAY_TOKENS_USED, 1, **{label: "x"})
    assert telemetry.recorder.metrics().empty


def test_tenants_beyond_the_cap_share_a_label(telemetry: Telemetry) -> None:
    for number in range(MOST_TENANTS + 20):
        telemetry.count(GATEWAY_CACHE_HITS, tenant_id=f"t{number}")
    for number in range(5):
        telemetry.for_tenant(f"late-{number}").count(GATEWAY_CACHE_HITS)
    assert telemetry.recorder.total("gateway.cache.hits", **{"tenant.id": "other"}) == 25
    assert telemetry.recorder.total("gateway.cache.hits") == MOST_TENANTS + 25
    assert len(telemetry.recorder.metrics()) == MOST_TENANTS + 1


def test_label_sets_beyond_the_cap_share_a_point(telemetry: Telemetry) -> None:
    for number in range(MOST_SERIES + 50):
        telemetry.count(GATEWAY_CACHE_HITS, model=f"m{number}")
        telemetry.record(GATEWAY_COST, 0.1, model=f"m{number}")
    assert telemetry.recorder.total("gateway.cache.hits", **{"otel.metric.overflow": True}) == 50
    assert telemetry.recorder.total("gateway.cost", **{"otel.metric.overflow": True}) == 50
    assert telemetry.recorder.total("gateway.cache.hits") == MOST_SERIES + 50


def test_what_is_not_finite_spoils_no_sum(telemetry: Telemetry) -> None:
    for value in (1.0, float("nan"), float("inf"), float("-inf"), 2.0):
        telemetry.record(RAG_SEARCH_DURATION, value)
    row = _row(telemetry, "rag.search.duration")
    assert (row["count"], row["sum"], row["min"], row["max"]) == (2, 3.0, 1.0, 2.0)


def test_quantiles_are_exact_to_their_bucket() -> None:
    cell = HistogramCell(Series(RAG_SEARCH_DURATION, ()))
    assert cell.quantile(0.5) == float("-inf")
    values = sorted(random.Random(1).lognormvariate(-5, 1) for _ in range(5000))
    for value in values:
        cell.add(value)
    for share in (0.5, 0.95, 0.99):
        exact, about = values[int(share * len(values))], cell.quantile(share)
        edges = [0.0, *cell.bounds, float("inf")]
        bucket = next(number for number, edge in enumerate(edges) if exact <= edge)
        assert edges[bucket - 1] * 0.9 <= about <= edges[bucket] * 1.1
    assert cell.quantile(1.0) == pytest.approx(values[-1])


@pytest.mark.parametrize(
    "metric", [row for row in METRICS if row.instrument is Instrument.HISTOGRAM], ids=lambda m: m.name
)
def test_every_histogram_of_the_catalogue_has_bounds_in_order(metric: Metric) -> None:
    assert list(bounds(metric)) == sorted(set(bounds(metric)))


def _kits(store: Store, *, delta: bool = False) -> Reader:
    return Reader(store.read, Resource({}), InstrumentationScope("kit"), delta=delta)


def _points(data: MetricsData) -> dict[tuple[str, frozenset[tuple[str, object]]], dict[str, object]]:
    """Everything about every point but its two times."""
    found = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            key = (metric.name, frozenset((point.attributes or {}).items()))
            facts = {name: value for name, value in vars(point).items() if "time" not in name}
            facts["attributes"] = dict(point.attributes or {})
            facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
            found[key] = facts | {
                "unit": metric.unit,
                "description": metric.description,
                "temporality": metric.data.aggregation_temporality,
                "monotonic": getattr(metric.data, "is_monotonic", None),
            }
    return found


def test_points_are_those_of_the_sdks_own_instruments() -> None:
    store = Store()
    shard = store.shard(None)
    reader = InMemoryMetricReader()
    views = [
        View(
            instrument_name="rag.search.duration",
            aggregation=ExplicitBucketHistogramAggregation(bounds(RAG_SEARCH_DURATION)),
        )
    ]
    meter = MeterProvider([reader], shutdown_on_exit=False, views=views).get_meter("kit")

    def observe(options: CallbackOptions) -> list[Observation]:
        return [Observation(7, {"status": "success"}), Observation(2, {"status": "error"})]

    row = GATEWAY_CACHE_HITS
    meter.create_observable_counter(row.name, [observe], row.unit, row.purpose)
    row = RAG_SEARCH_DURATION
    histogram = meter.create_histogram(row.name, row.unit, row.purpose)
    shard.counter(GATEWAY_CACHE_HITS, {"status": "success"}).value += 7
    shard.counter(GATEWAY_CACHE_HITS, {"status": "error"}).value += 2
    for value in (0.0, 0.0001, 0.00011, 0.3, 60.0, 61.0, 1e9):
        histogram.record(value, {"status": "success"})
        shard.histogram(RAG_SEARCH_DURATION, {"status": "success"}).add(value)
    ours, count = _kits(store).read()
    theirs = reader.get_metrics_data()
    assert theirs is not None
    assert _points(ours) == _points(theirs)
    assert count == 3


def test_delta_tells_only_what_changed_and_loses_nothing_when_an_export_fails() -> None:
    store = Store()
    shard = store.shard(None)
    reader = _kits(store, delta=True)
    shard.counter(GATEWAY_CACHE_HITS, {}).value += 5
    shard.histogram(RAG_SEARCH_DURATION, {}).add(0.2)
    first, count = reader.read()
    assert count == 2
    point = first.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
    assert point.start_time_unix_nano == store.start_ns
    reader.taken()
    assert reader.read()[1] == 0
    shard.counter(GATEWAY_CACHE_HITS, {}).value += 2
    reader.read()  # this export fails: taken() is not called
    shard.counter(GATEWAY_CACHE_HITS, {}).value += 1
    shard.histogram(RAG_SEARCH_DURATION, {}).add(0.4)
    data, _ = reader.read()
    sums, histograms = data.resource_metrics[0].scope_metrics[0].metrics
    assert sums.data.data_points[0].value == 3  # type: ignore[union-attr]
    assert sums.data.data_points[0].start_time_unix_nano == point.time_unix_nano
    assert sums.data.aggregation_temporality is AggregationTemporality.DELTA  # type: ignore[union-attr]
    changed = histograms.data.data_points[0]
    assert (changed.count, changed.sum) == (1, pytest.approx(0.4))  # type: ignore[union-attr]
