"""The specification's OTEL benchmarks, of the operations that notebook 33 measures, and what stands beside them there.

A row is one setting's samples, processor time; what each signal adds, in per cent of the operation, goes with the saved
file. A target that is missed beyond doubt fails its rows.
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import pytest
from rows import show

from kit.lab.bench import Comparison, Verdicts
from kit.lab.benchmarks import otel, telemetry_peers, telemetry_singles
from kit.lab.benchmarks.telemetry_switch import OFF

ROUNDS = {otel.GATEWAY: 400, otel.QUERY: 150, otel.BARE: 400}
SINGLES = {"span": telemetry_singles.spans, "increment": telemetry_singles.increments, "line": telemetry_singles.lines}


@cache
def _measured() -> dict[str, Comparison]:
    """Everything, on one workplace: operations under each setting, those of the log line, peers, and single calls."""

    async def measure() -> dict[str, Comparison]:
        place = await otel.Workplace.open()
        found: dict[str, Comparison] = {}
        for name, rounds in ROUNDS.items():
            found[name] = await place.compare(name, rounds=rounds)
            found[f"{name}, line"] = await place.compare(name, rounds=2 * rounds, settings=otel.LINE)
        found["peers"] = await telemetry_peers.compare_peers(place, rounds=40, block=8)
        found |= {name: make(place).run(rounds=10, samples=10) for name, make in SINGLES.items()}
        await place.close()
        return found

    return asyncio.run(measure())


def _signal(benchmark: Any, operation: str, name: str) -> None:
    """Show an operation with a signal on; fail when its target, where it has one, is missed beyond doubt."""
    whole, line = _measured()[operation], _measured()[f"{operation}, line"]
    deciding = otel.deciding(whole, line)
    show(benchmark, deciding[name], otel.STEPS[name][0])
    if operation != otel.BARE:
        verdicts = Verdicts(row for row in otel.overheads(deciding, operation) if row.target.name.startswith(name))
        benchmark.extra_info["overhead"] = verdicts[0].cells()["measured"]
        verdicts.require()


@pytest.mark.parametrize("operation", ROUNDS)
def benchmark_off(benchmark: Any, operation: str) -> None:
    """An operation without telemetry."""
    show(benchmark, _measured()[operation], OFF)


@pytest.mark.parametrize("operation", ROUNDS)
def benchmark_metrics_collection_overhead(benchmark: Any, operation: str) -> None:
    """An operation with metrics, which add less than 2 %."""
    _signal(benchmark, operation, "metrics collection overhead")


@pytest.mark.parametrize("operation", ROUNDS)
def benchmark_tracing_overhead(benchmark: Any, operation: str) -> None:
    """An operation with metrics and traces, which add less than 5 %."""
    _signal(benchmark, operation, "tracing overhead")


@pytest.mark.parametrize("operation", ROUNDS)
def benchmark_logging_overhead(benchmark: Any, operation: str) -> None:
    """An operation with a log line on top, which adds less than 1 %."""
    _signal(benchmark, operation, "logging overhead")


@pytest.mark.parametrize("name", [*telemetry_peers.ADDED["kit"], telemetry_peers.BARE, telemetry_peers.BARE_TOLD])
def benchmark_middleware(benchmark: Any, name: str) -> None:
    """A request and its reply, by the kit and by FastStream, without telemetry and with it."""
    if name not in _measured()["peers"].samples:
        pytest.skip("FastStream is not installed")
    show(benchmark, _measured()["peers"], name)


@pytest.mark.parametrize("name", [telemetry_singles.KIT, telemetry_singles.SDK, telemetry_singles.NONE])
@pytest.mark.parametrize("single", SINGLES)
def benchmark_single(benchmark: Any, single: str, name: str) -> None:
    """One span, one increment, one log line: the kit's, the bare SDK's, and without an SDK."""
    show(benchmark, _measured()[single], name)
