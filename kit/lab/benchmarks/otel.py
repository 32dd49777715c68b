"""OTEL's workloads: the same real operations with telemetry off and on, by one switch, in turns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Self

from kit.catalogue import API_QUERIES
from kit.codec import loads
from kit.lab.bench import SPECIFICATION, Comparison, Ratio, Target, Verdict, compare_async
from kit.lab.benchmarks.codec import agent_message
from kit.lab.benchmarks.variables import telemetry_variables
from kit.lab.project import project_root
from kit.nats.bus import Bus
from kit.nats.server import Server
from kit.otel import Operation, Telemetry, start_telemetry

OFF, METRICS, TRACED, LOGGED = "off", "metrics", "metrics, traces", "metrics, traces, a log line"
STEPS = {
    "metrics collection overhead": (METRICS, OFF),
    "tracing overhead": (TRACED, METRICS),
    "logging overhead": (LOGGED, TRACED),
}
"""Which two settings of the switch the specification's target is the difference of."""

# A request whose handler does nothing: what a component adds to it is not there.
ECHO = replace(API_QUERIES, message_type="agent_message", result_type="agent_message")
QUESTION = "Why are there separate tuple and list data types?"
_PROMPT = "[1] Copying\nThe shutil module contains a copyfile() function.\n\nQuestion: How do I copy a file?"


class Switch(Telemetry):
    """A telemetry that is another one from one call to the next, so that off and on share all but this.

    Components that were started with it follow the switch; the loggers are bound once, as loggers are.
    """

    def __init__(self, settings: Mapping[str, Telemetry]) -> None:
        self.settings = dict(settings)
        self.loggers = {name: telemetry.logger("benchmark") for name, telemetry in settings.items()}
        self.use(OFF)

    def use(self, setting: str) -> None:
        """Be this one from now on."""
        self._now, self.log = self.settings[setting], self.loggers[setting]

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


class Workplace:
    """A server, a gateway and a RAG worker with documents, and an echo, whose telemetry is one switch.

    Attributes:
        operations: what is measured, by name.
    """

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "gateway request": self._generate,
            "RAG query": self._query,
            "bare request/reply": self._echo,
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
        await self._stack.enter_async_context(await gateway.serve(self.bus))
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

    async def compare(self, operation: str, *, rounds: int, samples: int) -> Comparison:
        """Measure an operation under each setting of the switch, in turns; every answer must be the same.

        Raises:
            ReportError: an answer is another one than without telemetry.
        """
        expected = await self._under(OFF, operation)
        contenders = {setting: partial(self._under, setting, operation) for setting in self.switch.settings}
        name = f"telemetry, {operation.replace('/', ' and ')}"  # a file's, too
        return await compare_async(
            contenders,
            name=name,
            check=expected.__eq__,
            rounds=rounds,
            samples=samples,
        )

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
        METRICS: ({"OTEL_TRACES_SAMPLER": "always_off"}, "OFF"),
        TRACED: ({"OTEL_TRACES_SAMPLER": "always_on"}, "OFF"),
        LOGGED: ({"OTEL_TRACES_SAMPLER": "always_on"}, "INFO"),
    }
    found = {}
    for name, (values, level) in variables.items():
        with telemetry_variables(values):
            found[name] = start_telemetry("benchmark", tenant_id="acme", log_level=level, capture_logging=False)
    return found


def overheads(result: Comparison, operation: str) -> Iterator[Verdict]:
    """Yield what each signal adds to an operation, in per cent of its time without telemetry."""
    for target in SPECIFICATION:
        if target.name in STEPS:
            on, before = STEPS[target.name]
            share = 100 * result.difference(on, to=before).value / result.percentile(OFF)
            ratio = result.ratio(on, to=before)
            # Where the interval holds the target, the noise decides: a miss is shown, and stops nothing.
            undecided = ratio.low <= 1 + target.bound / 100
            name = f"{target.name}: {operation}"
            named = Target(name, target.bound, unit="%", metric=target.metric, goal=undecided)
            yield named.verdict(share, ratio=ratio)


def surely_missed(rows: Sequence[Verdict]) -> list[Verdict]:
    """Return the targets that are missed by more than the noise: even the interval's lower end is above."""
    return [row for row in rows if row.ratio is not None and row.ratio.low > 1 + row.target.bound / 100]


def added(result: Comparison) -> dict[str, Ratio]:
    """Return the seconds that each signal adds to an operation."""
    return {name: result.difference(on, to=before) for name, (on, before) in STEPS.items()}
