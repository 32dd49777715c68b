"""OTEL's workloads: the same real operations with telemetry off and on, by one switch, in turns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kit.catalogue import API_QUERIES
from kit.codec import loads
from kit.lab.bench import SPECIFICATION, Comparison, Ratio, Verdict, compare_async, median_interval
from kit.lab.benchmarks.codec import agent_message
from kit.lab.benchmarks.telemetry_switch import LOGGED, METRICS, OFF, TRACED, Switch, all_settings
from kit.lab.project import project_root
from kit.lab.quantities import quantity
from kit.lab.targets import OVERALL
from kit.nats.bus import Bus
from kit.nats.server import Server

if TYPE_CHECKING:
    import pandas as pd

STEPS = {
    "metrics collection overhead": (METRICS, OFF),
    "tracing overhead": (TRACED, METRICS),
    "logging overhead": (LOGGED, TRACED),
}
"""Which two settings of the switch the specification's target is the difference of."""

EVERYTHING = (LOGGED, OFF)
"""The two settings that all signals together are the difference of."""

LINE = (TRACED, LOGGED)
"""The settings that tell what a log line costs, which is the least and takes the most rounds."""

GATEWAY, QUERY, BARE = "gateway request", "RAG query", "bare request/reply"
RESTS = {GATEWAY: 0.003, QUERY: 0.003, BARE: 0.0}
"""Seconds after an operation until all that it left to the background, as its events, is done."""

PAIRED, CALLS = "off and on", "calls × cost"
"""The two ways to tell what a signal costs, as tables name them."""

# A request whose handler does nothing: what a component adds to it is not there.
ECHO = replace(API_QUERIES, message_type="agent_message", result_type="agent_message")
QUESTION = "Why are there separate tuple and list data types?"
_PROMPT = "[1] Copying\nThe shutil module contains a copyfile() function.\n\nQuestion: How do I copy a file?"


class Workplace:
    """A server, a gateway and a RAG worker with documents, and an echo, whose telemetry is one switch.

    Attributes:
        operations: what is measured, by name.
    """

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.operations: dict[str, Callable[[], Awaitable[Any]]] = {
            GATEWAY: self._generate,
            QUERY: self._query,
            BARE: self._echo,
        }

    @classmethod
    async def open(cls, documents: int = 20) -> Self:
        """Start everything; ``close`` ends it."""
        async with AsyncExitStack() as stack:
            place = cls(stack)
            await place._start(documents)
            place._stack = stack.pop_all()
        return place

    async def close(self) -> None:
        """End everything."""
        await self._stack.aclose()

    async def _start(self, documents: int) -> None:
        from kit.components import gateway, rag
        from kit.nats.connection import connect

        self.server = await self._stack.enter_async_context(Server(tenants=("acme",)))
        self.switch = Switch(made := all_settings())
        for telemetry in made.values():
            self._stack.callback(telemetry.shutdown, 1.0)
        login = self.server.credentials("acme")
        connection = await connect(self.server.url, tenant_id="acme", credentials=login)
        self._stack.push_async_callback(connection.close)
        self.bus = await self._stack.enter_async_context(Bus(connection, "acme", self.switch))
        await self._stack.enter_async_context(await gateway.serve(self.bus, log_interval=0.0))
        store = self.server.store / "lancedb"
        await self._stack.enter_async_context(await rag.serve(self.bus, uri=store))
        lines = (project_root() / "data" / "python_faq.jsonl").read_text().splitlines()[:documents]
        told = [loads(line.encode()) for line in lines]
        kept = [{key: line[key] for key in ("document_id", "content")} for line in told]
        await rag.ingest_documents(self.bus, kept)
        await self.bus.serve(ECHO, _back)

    async def _generate(self) -> Any:
        from kit.components import gateway

        return (await gateway.generate(self.bus, prompt=_PROMPT, cache=False))["response"]

    async def _query(self) -> Any:
        from kit.components import rag

        return (await rag.query(self.bus, QUESTION, top_k=4))["sources"]

    async def _echo(self) -> Any:
        return (await self.bus.request(ECHO, agent_message())).data

    async def compare(self, operation: str, *, rounds: int, settings: Sequence[str] = ()) -> Comparison:
        """Measure an operation under each setting of the switch, in turns: processor time of one, all threads.

        Everything but the NATS server runs in this process. What an operation leaves to the background, as its events,
        is done within its turn, which rests until then. The settings change with each operation, since what else moves
        on a machine moves slowly: neighbours in time are alike. The contenders of ``wall_of`` are the second clock:
        what each setting took from asking to having the answer, by the clock on the wall, in the same rounds.

        Args:
            settings: of the switch; all by default.

        Raises:
            ReportError: an answer is another one than without telemetry.
        """
        walls: dict[str, list[int]] = {name: [] for name in settings or self.switch.settings}
        expected = await self._turn(OFF, operation, [])
        result = await compare_async(
            {name: partial(self._turn, name, operation, taken) for name, taken in walls.items()},
            name=file_name(operation, settings), check=expected.__eq__, rounds=rounds, samples=1, clock="cpu",
            garbage="rounds",
        )  # fmt: skip
        second = {wall_of(name): np.reshape(taken[-rounds:], (rounds, 1)) for name, taken in walls.items()}
        return replace(result, samples=result.samples | second)

    async def _turn(self, setting: str, operation: str, walls: list[int]) -> Any:
        began = perf_counter_ns()
        answer = await self._under(setting, operation)
        walls.append(perf_counter_ns() - began)
        if RESTS[operation]:
            await asyncio.sleep(RESTS[operation])
        return answer

    async def calls(self, *, times: int = 10) -> dict[str, dict[str, float]]:
        """Return how often each operation calls telemetry, by kind of call: ``operation``, ``count``, ``log line``, …

        One log line is this benchmark's own, which it writes as an application would; the components' come on top.
        """
        return {operation: await self._calls(operation, times) for operation in self.operations}

    async def _calls(self, operation: str, times: int) -> dict[str, float]:
        with self.switch.counting(LOGGED) as tally:
            self.switch.lines = 0
            for _ in range(times):
                await self.operations[operation]()
            await asyncio.sleep(0.1)  # for what is told in the background
        return {name: number / times for name, number in tally.calls.items()} | {
            "log line": 1.0 + self.switch.lines / times
        }

    async def _under(self, setting: str, operation: str) -> Any:
        self.switch.use(setting)
        answer = await self.operations[operation]()
        self.switch.log.info("answered %s", operation, size=len(answer))
        return answer


async def _back(message: Any) -> Any:
    return message.data


def file_name(operation: str, settings: Sequence[str] = ()) -> str:
    """Return the name under which the samples of an operation are kept, under all settings or under these."""
    name = f"otel_{operation.lower().replace(' ', '_').replace('/', '_')}"
    return f"{name}_line" if settings else name


def wall_of(setting: str) -> str:
    """Return the name of the contender that is a setting by the clock on the wall."""
    return f"{setting}, wall clock"


def clocks(result: Comparison) -> pd.DataFrame:
    """Return what an operation takes under each setting, by both clocks, and the ratios to the first, by rounds."""
    import pandas as pd

    rows, first = {}, result.baseline
    for name in result.samples:
        if (wall := wall_of(name)) in result.samples:
            rows[name] = {
                "p50": quantity(result.percentile(name), "s"),
                "p95": quantity(result.percentile(name, 95), "s"),
                "ratio": "1" if name == first else str(result.ratio(name, to=first)),
                "p50, wall": quantity(result.percentile(wall), "s"),
                "ratio, wall": "1" if name == first else str(result.ratio(wall, to=wall_of(first))),
                "samples": str(result.samples[name].size),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("processor time, and wall")


def deciding(whole: Comparison, line: Comparison) -> dict[str, Comparison]:
    """Return which comparison decides on each signal: that of all settings, and that of ``LINE`` for logging."""
    return {signal: line if (before, on) == LINE else whole for signal, (on, before) in STEPS.items()}


def overheads(results: Mapping[str, Comparison], operation: str) -> Iterator[Verdict]:
    """Yield the verdict on each signal, and on all together: the processor time added, in per cent of the operation's.

    The comparison off and on decides, by its interval: a target that lies within it is undecided.

    Args:
        results: the comparison that decides, by signal.
    """
    whole = results["tracing overhead"]
    for target in (*SPECIFICATION, OVERALL):
        if target.component == "OTEL":
            pair, result = STEPS.get(target.name, EVERYTHING), results.get(target.name, whole)
            of = share(result, pair)
            named = replace(target, name=f"{target.name}: {operation}")
            yield named.verdict(of.value, interval=of, ratio=result.ratio(pair[0], to=pair[1]))


def added(result: Comparison) -> dict[str, Ratio]:
    """Return the seconds that each signal adds to an operation."""
    return {name: result.difference(on, to=before) for name, (on, before) in STEPS.items()}


def share(result: Comparison, pair: tuple[str, str]) -> Ratio:
    """Return what one setting adds to another, in per cent of the operation's time on the wall under the first of all.

    Both are of the same round, and each round gives one share; so the interval has the noise of both in it.
    """
    on, before = (result.samples[name] for name in pair)
    return median_interval(np.ravel(100 * (on - before) / result.samples[wall_of(result.baseline)]))


def estimates(
    results: Mapping[str, Mapping[str, Comparison]], counted: Mapping[str, Mapping[str, Ratio]]
) -> pd.DataFrame:
    """Return what each signal adds to each operation, by both methods, with the intervals; and the first's share.

    Args:
        results: the comparison that decides, by operation and signal.
        counted: seconds, likewise.
    """
    import pandas as pd

    rows = {}
    for operation, decided in results.items():
        for name, result in decided.items():
            on, before = STEPS[name]
            of = share(result, STEPS[name])
            rows[operation, name.removesuffix(" overhead")] = {
                PAIRED: _microseconds(result.difference(on, to=before)),
                "share of its time": f"{of.value:.2f} % [{of.low:.2f} %, {of.high:.2f} %]",
                CALLS: _microseconds(counted[operation][name]),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["operation", "signal"])


def _microseconds(cost: Ratio) -> str:
    return f"{cost.value * 1e6:.1f} µs [{cost.low * 1e6:.1f} µs, {cost.high * 1e6:.1f} µs]"
