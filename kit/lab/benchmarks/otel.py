"""OTEL's workloads: the same real operations with telemetry off and on, by one switch, in turns."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from kit.catalogue import API_QUERIES
from kit.codec import loads
from kit.lab.bench import SPECIFICATION, Comparison, Ratio, Verdict, compare_async, median_interval
from kit.lab.benchmarks.codec import agent_message
from kit.lab.benchmarks.variables import telemetry_variables
from kit.lab.project import project_root
from kit.nats.bus import Bus
from kit.nats.server import Server
from kit.otel import Operation, Telemetry, start_telemetry
from kit.otel.logs import Log
from kit.otel.operation import Plan, Untold

if TYPE_CHECKING:
    import pandas as pd

OFF, METRICS, TRACED, LOGGED = "off", "metrics", "metrics, traces", "metrics, traces, a log line"
STEPS = {
    "metrics collection overhead": (METRICS, OFF),
    "tracing overhead": (TRACED, METRICS),
    "logging overhead": (LOGGED, TRACED),
}
"""Which two settings of the switch the specification's target is the difference of."""

WALL = "the first, by the clock on the wall"
"""What the shares are of: how long an operation takes under the first setting, in the same rounds."""

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


class Switch(Telemetry):
    """A telemetry that is another one from one call to the next, so that off and on share all but this.

    Components that were started with it follow the switch, and so do their loggers.
    """

    def __init__(self, settings: Mapping[str, Telemetry]) -> None:
        self.settings = dict(settings)
        self.loggers = {name: telemetry.logger("benchmark") for name, telemetry in settings.items()}
        self.lines = 0  # that components wrote
        self.use(OFF)

    def use(self, setting: str) -> None:
        """Be this one from now on."""
        self.setting, self._now, self.log = setting, self.settings[setting], self.loggers[setting]

    def logger(self, name: str) -> Log:
        """Return a logger that writes what the present setting lets it write."""
        return Following(self, {setting: telemetry.logger(name) for setting, telemetry in self.settings.items()})

    def for_tenant(self, tenant_id: str | None) -> Telemetry:
        """Return this: there is one tenant here."""
        return self

    def operation(self, row: Any, attributes: Any = None, **options: Any) -> Operation:
        """Return what the present setting makes of an operation."""
        return self._now.operation(row, attributes, **options)

    def annotate(self, attributes: Any) -> None:
        """Pass on."""
        self._now.annotate(attributes)

    def count(self, metric: Any, value: int | float = 1, **labels: Any) -> None:
        """Pass on."""
        self._now.count(metric, value, **labels)

    def record(self, metric: Any, value: int | float, **labels: Any) -> None:
        """Pass on."""
        self._now.record(metric, value, **labels)

    @contextmanager
    def counting(self, setting: str) -> Iterator[Tally]:
        """Be this one, with every call counted, within the block."""
        self.use(setting)
        self._now = tally = Tally(self._now)
        try:
            yield tally
        finally:
            self.use(setting)


class MetricsAlone(Telemetry):
    """A telemetry that counts and times operations, with neither spans nor a trace's context to pass on.

    The kit has no such setting: it is here to tell what metrics cost from what tracing costs.
    """

    def operation(self, row: Any, attributes: Any = None, **options: Any) -> Operation:
        """Return what counts and times an operation."""
        plan = self._plans.get(row.name)
        if plan is None:
            plan = self._plans[row.name] = Plan(row, self._core.tracing, self._shard, self.tenant_id)
        return Timed(plan, None, **options)


class Timed(Untold):
    """An operation without a span, which ends as one with a span does for its metrics."""

    __slots__ = ()

    def __enter__(self) -> Self:
        super().__enter__()
        self._started = perf_counter()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        seconds = perf_counter() - self._started
        if error is not None:
            self._record(error)
        if error is None and self._labels is None:
            self._plan.success(seconds)
        else:
            self._plan.measure(seconds, self._outcome())
        super().__exit__(kind, error, trace)


class Following(Log):
    """A logger that is another one from one call to the next, as its switch is."""

    __slots__ = ("_logs", "_switch")

    def __init__(self, switch: Switch, logs: Mapping[str, Log]) -> None:
        self._switch, self._logs = switch, logs
        self._level = logging.DEBUG  # the present logger has a level of its own

    def _emit(self, level: int, message: str, args: tuple[object, ...], attributes: dict[str, Any]) -> None:
        log = self._logs[self._switch.setting]
        if level >= log._level:
            self._switch.lines += 1
            log._emit(level, message, args, attributes)


class Tally(Telemetry):
    """A telemetry that counts how often it is called, and passes on.

    Attributes:
        calls: by the method's name.
    """

    def __init__(self, counted: Telemetry) -> None:
        self._counted = counted
        self.calls: Counter[str] = Counter()

    def operation(self, row: Any, attributes: Any = None, **options: Any) -> Operation:
        """Count, and pass on."""
        self.calls["operation"] += 1
        return self._counted.operation(row, attributes, **options)

    def annotate(self, attributes: Any) -> None:
        """Count, and pass on."""
        self.calls["annotate"] += 1
        self._counted.annotate(attributes)

    def count(self, metric: Any, value: int | float = 1, **labels: Any) -> None:
        """Count, and pass on."""
        self.calls["count"] += 1
        self._counted.count(metric, value, **labels)

    def record(self, metric: Any, value: int | float, **labels: Any) -> None:
        """Count, and pass on."""
        self.calls["record"] += 1
        self._counted.record(metric, value, **labels)


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
        self.switch = Switch(settings := _settings())
        for telemetry in settings.values():
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
        on a machine moves slowly: neighbours in time are alike. The contender ``WALL`` is the second clock: what the
        first setting took from asking to having the answer, by the clock on the wall, in the same rounds.

        Args:
            settings: of the switch; all by default.

        Raises:
            ReportError: an answer is another one than without telemetry.
        """
        first, *_ = names = tuple(settings or self.switch.settings)
        walls: dict[str, list[int]] = {name: [] for name in names}
        expected = await self._turn(OFF, operation, [])
        result = await compare_async(
            {name: partial(self._turn, name, operation, walls[name]) for name in names},
            name=file_name(operation, settings), check=expected.__eq__, rounds=rounds, samples=1, clock="cpu",
            garbage="rounds",
        )  # fmt: skip
        return replace(result, samples=result.samples | {WALL: np.reshape(walls[first][-rounds:], (rounds, 1))})

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


def _settings() -> dict[str, Telemetry]:
    """Return four telemetries; what records keeps it in memory, as in a notebook."""
    variables: dict[str, tuple[dict[str, str], str]] = {
        OFF: ({"OTEL_SDK_DISABLED": "true"}, "OFF"),
        METRICS: ({}, "OFF"),
        TRACED: ({"OTEL_TRACES_SAMPLER": "always_on"}, "OFF"),
        LOGGED: ({"OTEL_TRACES_SAMPLER": "always_on"}, "INFO"),
    }
    found = {}
    for name, (values, level) in variables.items():
        with telemetry_variables(values):
            found[name] = start_telemetry("benchmark", tenant_id="acme", log_level=level, capture_logging=False)
    return found | {METRICS: MetricsAlone(found[METRICS]._core, "acme")}


def file_name(operation: str, settings: Sequence[str] = ()) -> str:
    """Return the name under which the samples of an operation are kept, under all settings or under these."""
    name = f"otel_{operation.lower().replace(' ', '_').replace('/', '_')}"
    return f"{name}_line" if settings else name


def deciding(whole: Comparison, line: Comparison) -> dict[str, Comparison]:
    """Return which comparison decides on each signal: that of all settings, and that of ``LINE`` for logging."""
    return {signal: line if (before, on) == LINE else whole for signal, (on, before) in STEPS.items()}


def overheads(results: Mapping[str, Comparison], operation: str) -> Iterator[Verdict]:
    """Yield the verdict on each signal: the processor time that it adds, in per cent of the operation's time.

    The comparison off and on decides, by its interval: a target that lies within it is undecided.

    Args:
        results: the comparison that decides, by signal.
    """
    for target in SPECIFICATION:
        if target.name in STEPS:
            on, before = STEPS[target.name]
            result = results[target.name]
            of = share(result, target.name)
            named = replace(target, name=f"{target.name}: {operation}")
            yield named.verdict(of.value, interval=of, ratio=result.ratio(on, to=before))


def added(result: Comparison) -> dict[str, Ratio]:
    """Return the seconds that each signal adds to an operation."""
    return {name: result.difference(on, to=before) for name, (on, before) in STEPS.items()}


def share(result: Comparison, signal: str) -> Ratio:
    """Return what a signal adds, in per cent of the operation's time on the wall under the first setting.

    Both are of the same round, and each round gives one share; so the interval has the noise of both in it.
    """
    on, before = (result.samples[name] for name in STEPS[signal])
    return median_interval(np.ravel(100 * (on - before) / result.samples[WALL]))


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
            of = share(result, name)
            rows[operation, name.removesuffix(" overhead")] = {
                PAIRED: _microseconds(result.difference(on, to=before)),
                "share of its time": f"{of.value:.2f} % [{of.low:.2f} %, {of.high:.2f} %]",
                CALLS: _microseconds(counted[operation][name]),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["operation", "signal"])


def _microseconds(cost: Ratio) -> str:
    return f"{cost.value * 1e6:.1f} µs [{cost.low * 1e6:.1f} µs, {cost.high * 1e6:.1f} µs]"
