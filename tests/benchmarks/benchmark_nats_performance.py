"""The specification's messaging benchmarks and the peers: ``pytest tests/benchmarks/benchmark_*.py --benchmark-only``.

The same code as notebook 32, which adds the curves. What is set beside something takes turns with it, every answer is
checked, and each contender's samples are a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import nats
import numpy as np
import pytest
from rows import show

from kit.lab.bench import Comparison
from kit.lab.benchmarks.nats import (
    ALONE,
    BARE,
    BARE_RESULTS,
    CODEC,
    FASTSTREAM,
    FASTSTREAM_RESULTS,
    LAYERS,
    RAW,
    SAMPLED,
    STORED,
    TOGETHER,
    Messaging,
)
from kit.lab.benchmarks.nats_goals import decidable
from kit.lab.benchmarks.nats_peers import installed
from kit.lab.targets import SPECIFICATION, Verdicts

AGENTS, RAG_QUEUE, GATEWAY = SPECIFICATION[:3]
JOBS = 64  # at once, and requests in flight
PEERS = (FASTSTREAM,) if installed("faststream") else ()
REQUESTS = (BARE, RAW, *LAYERS, *PEERS)
WITH_RESULTS = (FASTSTREAM, FASTSTREAM_RESULTS) if PEERS else ()


class Running:
    """The contenders, in an event loop of their own."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._opening = Messaging.open(nats.connect)
        self.messaging: Messaging = runner.run(self._opening.__aenter__())
        self.results: dict[str, Comparison] = {}

    def __call__(self, work: Callable[[], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            return await work()

        return self._runner.run(run())

    def close(self) -> None:
        self._runner.run(self._opening.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with asyncio.Runner() as runner:
        started = Running(runner)
        yield started
        started.close()


def p95(benchmark: Any) -> float:
    return float(np.percentile(benchmark.stats.stats.data, 95))


def benchmark_agent_messaging_latency(benchmark: Any, running: Running) -> None:
    got = benchmark.pedantic(running, args=(running.messaging.agent_message,), rounds=300, warmup_rounds=30)
    assert got["target_agent_id"] == "writer"
    assert AGENTS.verdict(p95(benchmark)).met


def benchmark_rag_queue_throughput(benchmark: Any, running: Running) -> None:
    done = benchmark.pedantic(running, args=(lambda: running.messaging.rag_queue(JOBS),), rounds=10, warmup_rounds=2)
    assert done == JOBS
    assert RAG_QUEUE.verdict(JOBS / benchmark.stats.stats.mean).met


def benchmark_gateway_queuing_performance(benchmark: Any, running: Running) -> None:
    def settle() -> tuple[tuple[Any, ...], dict[str, Any]]:
        running(running.messaging.settle)
        return (running.messaging.queued_request,), {}

    settle()
    got = benchmark.pedantic(running, setup=settle, rounds=200)
    assert got["messages"]
    limit = running(lambda: running.messaging.queuing(rounds=4, samples=20)).percentile(RAW, 95)
    verdict = decidable(GATEWAY.verdict(p95(benchmark), limit=limit))
    benchmark.extra_info.update({"p95_s": verdict.measured, "limit_s": limit, "state": verdict.state})
    Verdicts([verdict]).require()


def compared(running: Running, what: str) -> Comparison:
    """Return a comparison by its contenders' rows, measured once, when the first of them is asked for."""
    if what not in running.results:
        messaging = running.messaging
        measures: dict[str, Callable[[], Awaitable[Comparison]]] = {
            "request_reply": lambda: messaging.request_reply(rounds=12, samples=25),
            "throughput": lambda: messaging.throughput(JOBS, rounds=12),
            "jobs": lambda: messaging.jobs(rounds=12, jobs=JOBS),
        }
        running.results[what] = running(measures[what])
    return running.results[what]


@pytest.mark.parametrize("name", REQUESTS)
def benchmark_request_reply(benchmark: Any, running: Running, name: str) -> None:
    """Each layer of the kit, the limit and the peers, one request at a time."""
    show(benchmark, compared(running, "request_reply"), name)


@pytest.mark.parametrize("name", REQUESTS)
def benchmark_throughput(benchmark: Any, running: Running, name: str) -> None:
    """The same with 64 requests in flight: a row's time is that of all of them."""
    show(benchmark, compared(running, "throughput"), name)


@pytest.mark.parametrize("name", [BARE, TOGETHER, STORED, BARE_RESULTS, ALONE, CODEC, SAMPLED, *WITH_RESULTS])
def benchmark_jobs(benchmark: Any, running: Running, name: str) -> None:
    """64 jobs at once, by the kit, the limit and the peers: a row's time is that of all of them."""
    show(benchmark, compared(running, "jobs"), name)
