"""A request and its reply over NATS with telemetry and without: the kit's, and FastStream's by its middleware."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.lab.bench import Comparison, Target, Verdict, compare_async, median_interval
from kit.lab.benchmarks.codec import agent_message
from kit.lab.benchmarks.contest import NOT_INSTALLED, installed
from kit.lab.benchmarks.otel import ECHO, Workplace
from kit.lab.benchmarks.telemetry_switch import OFF, TRACED

if TYPE_CHECKING:
    import pandas as pd

KIT, KIT_TOLD = "kit, off", "kit, metrics and traces"
BARE, BARE_TOLD = "FastStream", "FastStream, its middleware"
ADDED = {"kit": (KIT_TOLD, KIT), "FastStream's middleware": (BARE_TOLD, BARE)}
"""By whose telemetry: which two contenders its cost is the difference of."""

NAME = "otel_peers"
_SECONDS = 10.0
_SUBJECT = "faststream.seen"


async def compare_peers(place: Workplace, *, rounds: int, block: int) -> Comparison:
    """Measure the same request and reply, processor time of both ends, by the kit and by FastStream where it is.

    FastStream's middleware has a tracer provider that samples everything and hands it to nobody, and a meter provider
    that a reader in memory reads: the least that it can cost. The kit keeps what it records.

    Raises:
        ReportError: an answer is not what was asked.
    """
    data = agent_message()

    async def kit(setting: str) -> Any:
        place.switch.use(setting)
        return (await place.bus.request(ECHO, data, timeout=_SECONDS)).data

    contenders: dict[str, Callable[[], Awaitable[Any]]] = {KIT: partial(kit, OFF), KIT_TOLD: partial(kit, TRACED)}
    async with AsyncExitStack() as stack:
        if installed("faststream.nats.opentelemetry") is not None:
            contenders[BARE] = await _faststream(place, stack, "off", ())
            contenders[BARE_TOLD] = await _faststream(place, stack, "on", (_middleware(),))
        return await compare_async(
            contenders, name=NAME, check=lambda answer: answer == data,
            rounds=rounds, samples=1, inner=block, clock="cpu",
        )  # fmt: skip


def goals(result: Comparison) -> Iterator[Verdict]:
    """Yield the verdict on what telemetry adds to a request, beside FastStream's middleware where that is installed."""
    if BARE_TOLD in result.samples:
        mine, theirs = (np.ravel(result.samples[told] - result.samples[bare]) for told, bare in ADDED.values())
        ratio = median_interval(mine / theirs)
        target = Target(
            "telemetry of a request", 1.0, unit="×", metric="time added, against FastStream's middleware", goal=True
        )
        yield target.verdict(ratio.value, ratio=ratio, interval=ratio)


def table(result: Comparison) -> pd.DataFrame:
    """Return what each one's request takes without telemetry and with it, and what that adds."""
    import pandas as pd

    rows = {}
    for name, (told, bare) in ADDED.items():
        if bare in result.samples:
            cost = result.difference(told, to=bare)
            rows[name] = {
                "without": f"{result.percentile(bare) * 1e6:.0f} µs",
                "with": f"{result.percentile(told) * 1e6:.0f} µs",
                "added": f"{cost.value * 1e6:.1f} µs [{cost.low * 1e6:.1f} µs, {cost.high * 1e6:.1f} µs]",
            }
        else:
            rows[name] = {"without": NOT_INSTALLED, "with": "–", "added": "–"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("telemetry")


async def _faststream(
    place: Workplace, stack: AsyncExitStack, name: str, middlewares: tuple[Any, ...]
) -> Callable[[], Awaitable[Any]]:
    """Start two brokers, one that answers and one that asks, and return what asks."""
    broker_class = import_module("faststream.nats").NatsBroker
    login = place.server.credentials("acme")
    security = import_module("faststream.security").SASLPlaintext(username=login.user, password=login.password)
    asking, answering = (
        broker_class(place.server.url, security=security, logger=None, middlewares=middlewares) for _ in range(2)
    )
    subject = f"{_SUBJECT}.{name}"

    @answering.subscriber(subject)  # type: ignore[untyped-decorator]
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    for broker in (answering, asking):
        await broker.start()
        stack.push_async_callback(broker.stop)

    async def ask() -> Any:
        return await (await asking.request(agent_message(), subject, timeout=_SECONDS)).decode()

    return ask


def _middleware() -> Any:
    trace, metrics = import_module("opentelemetry.sdk.trace"), import_module("opentelemetry.sdk.metrics")
    reader = import_module("opentelemetry.sdk.metrics.export").InMemoryMetricReader()
    return import_module("faststream.nats.opentelemetry").NatsTelemetryMiddleware(
        tracer_provider=trace.TracerProvider(shutdown_on_exit=False),
        meter_provider=metrics.MeterProvider([reader], shutdown_on_exit=False),
    )
