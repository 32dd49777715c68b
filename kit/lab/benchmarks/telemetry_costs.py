"""What one call of telemetry costs under each setting; with the calls counted, what an operation pays for each signal.

It is the second estimate, which the noise of a long operation does not touch. It knows the calls that are counted;
what else telemetry may change in an operation, only the first estimate sees.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from kit.catalogue import GATEWAY_CACHE_HITS, GATEWAY_TOKENS_USED, RAG_VECTOR_SEARCH
from kit.lab.bench import Comparison, Ratio, compare
from kit.lab.benchmarks.otel import BARE, LOGGED, STEPS, TRACED, Workplace
from kit.otel import Telemetry

STDLIB = "stdlib, level off"
ATTRIBUTES: dict[str, str | int] = {
    "rag.top_k": 5,
    "results.count": 3,
    "rag.query.id": "q",
    "rag.query.length": 19,
    "rag.mode": "hybrid",
}
_LATER: dict[str, int] = {"cache.hit": False, "documents.used": 4}
_PAYS = {
    "metrics collection overhead": ("operation", "count", "record"),
    "tracing overhead": ("operation",),
    "logging overhead": ("log line",),
}  # which calls a signal makes dearer; the first one is what a bare request makes too


def unit_costs(place: Workplace, *, rounds: int, samples: int = 5, inner: int = 50) -> dict[str, Comparison]:
    """Return what one call takes under each setting, by the kind of call that ``Workplace.calls`` counts."""
    settings = place.switch.settings
    kinds = {"operation": _operation, "count": _count, "record": _record}
    shape: dict[str, Any] = {"rounds": rounds, "samples": samples, "inner": inner}
    found = {
        kind: compare({name: make(one) for name, one in settings.items()}, name=f"one {kind}", check=_silent, **shape)
        for kind, make in kinds.items()
    }
    loggers: dict[str, Callable[[], object]] = {
        name: _line(log.info) for name, log in place.switch.loggers.items() if name in (TRACED, LOGGED)
    }
    quiet = logging.Logger("quiet", logging.CRITICAL + 1)
    loggers[STDLIB] = lambda: quiet.info("answered %s", "a query", extra={"size": 3})
    found["log line"] = compare(loggers, name="one log line", check=_silent, **shape)
    return found


async def count_all(place: Workplace, results: Mapping[str, Comparison], *, rounds: int) -> dict[str, dict[str, Ratio]]:
    """Return the seconds that each signal adds to each operation, by its calls; a bare request has to be among them."""
    calls = {operation: await place.calls(operation) for operation in results}
    costs = unit_costs(place, rounds=rounds)
    return {operation: counted(calls[operation], costs, results[BARE], calls[BARE]) for operation in results}


def counted(
    calls: Mapping[str, float], costs: Mapping[str, Comparison], bare: Comparison, bare_calls: Mapping[str, float]
) -> dict[str, Ratio]:
    """Return the seconds that each signal adds to an operation: its calls, times what one call adds.

    An operation and a log line are taken at what they add to a bare request, where caches are as cold and the trace's
    context travels: several times what a loop of them shows, and more than a span that sends nothing costs. So this is
    what an operation pays at most.

    Args:
        calls: of the operation, by kind, as ``Workplace.calls`` counts them.
        costs: of one call in a loop.
        bare, bare_calls: a bare request under each setting, and its calls.
    """
    found = {}
    for signal, (on, before) in STEPS.items():
        kind, *others = _PAYS[signal]
        parts = [(calls[kind] / bare_calls[kind], bare.difference(on, to=before))]
        parts += [(calls.get(other, 0.0), costs[other].difference(on, to=before)) for other in others]
        low, value, high = (
            sum(number * getattr(cost, end) for number, cost in parts) for end in ("low", "value", "high")
        )
        found[signal] = Ratio(value=value, low=low, high=high)
    return found


def _operation(telemetry: Telemetry) -> Callable[[], object]:
    """A span with the attributes of a search, annotated and passed on; its counter and its duration."""

    def call() -> None:
        with telemetry.operation(RAG_VECTOR_SEARCH, ATTRIBUTES) as opened:
            opened.headers()
            telemetry.annotate(_LATER)

    return call


def _count(telemetry: Telemetry) -> Callable[[], object]:
    return lambda: telemetry.count(GATEWAY_CACHE_HITS)


def _record(telemetry: Telemetry) -> Callable[[], object]:
    return lambda: telemetry.record(GATEWAY_TOKENS_USED, 250)


def _line(info: Callable[..., None]) -> Callable[[], object]:
    return lambda: info("answered %s", "a query", size=3)


def _silent(answer: object) -> bool:
    return answer is None
