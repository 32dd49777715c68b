"""The specification's CODEC benchmarks, and the peers beside the kit, of the workloads that notebook 31 measures."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import numpy as np
import orjson
import pytest

from kit.lab.bench import SPECIFICATION
from kit.lab.benchmarks import codec
from kit.lab.benchmarks.contest import KIT, Contest

TARGETS = {target.name: target for target in SPECIFICATION}
CONTESTS = (
    codec.writing(codec.agent_message(), orjson, jsonschema_rs),
    codec.reading(codec.agent_message(), orjson, jsonschema_rs),
    codec.document_writing(codec.rag_document(), orjson),
    codec.document_reading(codec.rag_document(), orjson),
)


def _measure(benchmark: Any, name: str, rounds: int) -> None:
    """Call the kit's contender, check what it answers, and require the 95th percentile that is specified."""
    kit = codec.specification(orjson, jsonschema_rs)[name].contenders[KIT]
    answer = benchmark.pedantic(kit.call, rounds=rounds, iterations=1, warmup_rounds=rounds // 10)
    assert kit.check(answer)
    p95 = float(np.percentile(benchmark.stats.stats.data, 95))
    benchmark.extra_info["p95_s"] = p95
    assert TARGETS[name].verdict(p95).met


def benchmark_agent_message_serialization(benchmark: Any) -> None:
    """An agent's message is written and read within 1 ms."""
    _measure(benchmark, codec.SERIALIZATION, 2000)


def benchmark_rag_payload_encoding(benchmark: Any) -> None:
    """A document of 20 embeddings of 1536 floats is written within 2 ms."""
    _measure(benchmark, codec.PAYLOAD, 500)


def benchmark_schema_validation_latency(benchmark: Any) -> None:
    """A message is checked within 0.5 ms."""
    _measure(benchmark, codec.VALIDATION, 2000)


@pytest.mark.parametrize(
    ("contest", "name"),
    [pytest.param(contest, name, id=f"{contest.name}: {name}") for contest in CONTESTS for name in contest.contenders],
)
def benchmark_contender(benchmark: Any, contest: Contest, name: str) -> None:
    """The limit, by hand, the kit and the peers; each kind of work is a group of its own."""
    contender = contest.contenders[name]
    benchmark.group = contest.name
    answer = benchmark.pedantic(contender.call, rounds=100, iterations=contest.inner, warmup_rounds=5)
    assert contender.check(answer)
