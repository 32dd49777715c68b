"""The document question, the tenant's search and the gateway, of the workloads that notebook 34 measures.

Contenders take turns, in interleaved rounds with every answer checked; a row here is one contender's samples of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import pytest
from rows import show

from kit.lab.bench import Comparison
from kit.lab.benchmarks import document_qa, document_search

ROWS = 10_000


Place = document_qa.Workplace | document_search.Tables
Measure = Callable[[Any], Awaitable[Comparison]]

CONTENDERS: tuple[tuple[type[Place], Measure, tuple[str, ...]], ...] = (
    (document_qa.Workplace, lambda place: place.questions(20), ("kit",)),
    (
        document_search.Tables,
        lambda tables: tables.by_vector(ROWS, rounds=50),
        (document_search.VECTOR, document_search.LANCEDB, document_search.NUMPY),
    ),
    (
        document_search.Tables,
        lambda tables: tables.hybrid(ROWS, rounds=30),
        (document_search.HYBRID, document_search.LANCEDB_HYBRID),
    ),
    (
        document_qa.Workplace,
        lambda place: place.gateway(rounds=10, samples=10),
        (document_qa.GATEWAY, document_qa.RECORDED, document_qa.DIRECT, document_qa.OPENAI),
    ),
)


@cache
def _measured(make: type[Place], measure: Measure) -> Comparison:
    async def run() -> Comparison:
        place = make()
        try:
            return await measure(place)
        finally:
            await place.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("make", "measure", "name"),
    [pytest.param(make, measure, name, id=name) for make, measure, names in CONTENDERS for name in names],
)
def benchmark_contender(benchmark: Any, make: type[Place], measure: Measure, name: str) -> None:
    """One contender's samples."""
    show(benchmark, _measured(make, measure), name)
