"""Comparisons as rows of pytest-benchmark: what was measured in interleaved rounds, with every answer checked."""

from __future__ import annotations

from typing import Any

from kit.lab.bench import Comparison


def show(benchmark: Any, result: Comparison, name: str) -> None:
    """Give a row of pytest-benchmark one contender's samples, in the group of its comparison.

    The row runs nothing of its own: pytest-benchmark would take one contender after the other, and a neighbour's load
    on the machine would fall on one of them. Its ratio to the comparison's first goes with the saved file.
    """
    benchmark.group = result.name
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.stats.stats.data[:] = result.seconds(name).tolist()
    benchmark.extra_info["ratio"] = f"{result.ratio(name)} to {result.baseline}"
    benchmark.extra_info["calls_in_a_sample"] = result.inner
