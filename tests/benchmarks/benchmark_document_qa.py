"""The document question, the tenant's search and the gateway, of the workloads that notebook 34 measures.

Contenders take turns, in interleaved rounds with every answer checked; a row here is one contender's samples of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import pytest

from kit.lab.bench import Comparison
from kit.lab.benchmarks import document_qa, document_search

ROWS = 10_000


async def _questions() -> Comparison:
    place = document_qa.Workplace()
    try:
        return await place.questions(20)
    finally:
        await place.close()


async def _search() -> Comparison:
    tables = document_search.Tables()
    try:
        return await tables.by_vector(ROWS, rounds=10, samples=5)
    finally:
        await tables.close()


async def _hybrid() -> Comparison:
    tables = document_search.Tables()
    try:
        return await tables.hybrid(ROWS, rounds=10, samples=3)
    finally:
        await tables.close()


async def _gateway() -> Comparison:
    place = document_qa.Workplace()
    try:
        return await place.gateway(rounds=10, samples=10)
    finally:
        await place.close()


CONTENDERS: dict[Callable[[], Awaitable[Comparison]], tuple[str, ...]] = {
    _questions: ("kit",),
    _search: (document_search.VECTOR, document_search.LANCEDB, document_search.NUMPY),
    _hybrid: (document_search.HYBRID, document_search.LANCEDB_HYBRID),
    _gateway: (
        document_qa.GATEWAY, document_qa.RECORDED, document_qa.DIRECT, document_qa.OPENAI,
    ),
}  # fmt: skip


@cache
def _measured(measure: Callable[[], Any]) -> Comparison:
    result: Comparison = asyncio.run(measure())
    return result


@pytest.mark.parametrize(
    ("measure", "name"),
    [pytest.param(measure, name, id=name) for measure, names in CONTENDERS.items() for name in names],
)
def benchmark_contender(benchmark: Any, measure: Callable[[], Any], name: str) -> None:
    """One contender's samples; its ratio to the first of its group goes with the saved file."""
    result = _measured(measure)
    benchmark.group = result.name
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.stats.stats.data[:] = result.seconds(name).tolist()
    benchmark.extra_info["ratio"] = f"{result.ratio(name)} to {result.baseline}"
