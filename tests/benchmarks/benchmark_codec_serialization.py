"""The specification's CODEC benchmarks, and the peers beside the kit, of the workloads that notebook 31 measures.

Contenders take turns, in interleaved rounds with every answer checked; a row here is one contender's samples of them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jsonschema_rs
import orjson
import pytest
from rows import show

from kit.lab.bench import SPECIFICATION, Comparison
from kit.lab.benchmarks import codec
from kit.lab.benchmarks.contest import KIT

TARGETS = {target.name: target for target in SPECIFICATION}
CONTESTS = {
    contest.name: contest
    for contest in (
        codec.writing(codec.agent_message(), orjson, jsonschema_rs),
        codec.reading(codec.agent_message(), orjson, jsonschema_rs),
        codec.document_writing(codec.rag_document(), orjson),
        codec.document_reading(codec.rag_document(), orjson),
    )
}


@cache
def _measured(contest: str) -> Comparison:
    return CONTESTS[contest].run(rounds=20, samples=10)


def _measure(benchmark: Any, name: str) -> None:
    """Show the kit's samples, and require the 95th percentile that is specified."""
    result = codec.specification(orjson, jsonschema_rs)[name].run(rounds=20, samples=50)
    show(benchmark, result, KIT)
    p95 = result.percentile(KIT, 95)
    benchmark.extra_info["p95_s"] = p95
    assert TARGETS[name].verdict(p95).met


def benchmark_agent_message_serialization(benchmark: Any) -> None:
    """An agent's message is written and read within 1 ms."""
    _measure(benchmark, codec.SERIALIZATION)


def benchmark_rag_payload_encoding(benchmark: Any) -> None:
    """A document of 20 embeddings of 1536 floats is written within 2 ms."""
    _measure(benchmark, codec.PAYLOAD)


def benchmark_schema_validation_latency(benchmark: Any) -> None:
    """A message is checked within 0.5 ms."""
    _measure(benchmark, codec.VALIDATION)


@pytest.mark.parametrize(
    ("contest", "name"),
    [
        pytest.param(contest, name, id=f"{contest}: {name}")
        for contest, found in CONTESTS.items()
        for name in found.contenders
    ],
)
def benchmark_contender(benchmark: Any, contest: str, name: str) -> None:
    """The limit, by hand, the kit and the peers; each kind of work is a group of its own."""
    show(benchmark, _measured(contest), name)
