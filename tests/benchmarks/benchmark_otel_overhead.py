"""The specification's OTEL benchmarks, of the operations that notebook 33 measures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kit.lab.bench import Comparison
from kit.lab.benchmarks import otel

OPERATIONS = ("gateway request", "RAG query")


@pytest.fixture(scope="module")
def results() -> dict[str, Comparison]:
    """Each operation under each setting, in turns."""

    async def measure() -> dict[str, Comparison]:
        place = await otel.Workplace.open()
        found = {name: await place.compare(name, rounds=20, samples=3) for name in OPERATIONS}
        await place.close()
        return found

    return asyncio.run(measure())


def _measure(benchmark: Any, results: dict[str, Comparison], name: str) -> None:
    """Tell what a signal adds to each operation, and fail when it is too much by more than the noise."""
    rows = [row for at in OPERATIONS for row in otel.overheads(results[at], at) if row.target.name.startswith(name)]
    benchmark.extra_info.update({row.target.name: f"{row.measured:.2f} %" for row in rows})
    benchmark.pedantic(lambda: otel.surely_missed(rows), rounds=1)
    assert not otel.surely_missed(rows)


def benchmark_tracing_overhead(benchmark: Any, results: dict[str, Comparison]) -> None:
    """Tracing adds less than 5 %."""
    _measure(benchmark, results, "tracing overhead")


def benchmark_metrics_collection_overhead(benchmark: Any, results: dict[str, Comparison]) -> None:
    """Metrics add less than 2 %."""
    _measure(benchmark, results, "metrics collection overhead")


def benchmark_logging_overhead(benchmark: Any, results: dict[str, Comparison]) -> None:
    """A log line adds less than 1 %."""
    _measure(benchmark, results, "logging overhead")
