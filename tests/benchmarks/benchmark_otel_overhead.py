"""The specification's OTEL benchmarks, of the operations that notebook 33 measures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kit.lab.bench import Verdict, Verdicts
from kit.lab.benchmarks import otel

ROUNDS = {otel.GATEWAY: 400, otel.QUERY: 150}


@pytest.fixture(scope="module")
def rows() -> list[Verdict]:
    """The verdicts on each operation, as notebook 33 comes by them."""

    async def measure() -> list[Verdict]:
        place = await otel.Workplace.open()
        rows: list[Verdict] = []
        for name, rounds in ROUNDS.items():
            whole = await place.compare(name, rounds=rounds)
            line = await place.compare(name, rounds=2 * rounds, settings=otel.LINE)
            rows += otel.overheads(otel.deciding(whole, line), name)
        await place.close()
        return rows

    return asyncio.run(measure())


def _measure(benchmark: Any, rows: list[Verdict], name: str) -> None:
    """Tell what a signal adds to each operation, and fail when it is too much beyond doubt."""
    mine = [row for row in rows if row.target.name.startswith(name)]
    benchmark.extra_info.update({row.target.name: row.cells()["measured"] for row in mine})
    assert len(mine) == 2
    benchmark.pedantic(Verdicts(mine).require, rounds=1)


def benchmark_tracing_overhead(benchmark: Any, rows: list[Verdict]) -> None:
    """Tracing adds less than 5 %."""
    _measure(benchmark, rows, "tracing overhead")


def benchmark_metrics_collection_overhead(benchmark: Any, rows: list[Verdict]) -> None:
    """Metrics add less than 2 %."""
    _measure(benchmark, rows, "metrics collection overhead")


def benchmark_logging_overhead(benchmark: Any, rows: list[Verdict]) -> None:
    """A log line adds less than 1 %."""
    _measure(benchmark, rows, "logging overhead")
