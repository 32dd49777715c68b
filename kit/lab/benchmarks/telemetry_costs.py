"""What one call of telemetry costs under each setting; with the calls counted, what an operation pays for each signal.

It is the second estimate, which the noise of a long operation does not touch. It knows the calls that are counted, at
what each costs in a bare request. What else telemetry changes in an operation, only the first estimate sees: larger
headers, more for the garbage collector to keep, caches that what comes next finds colder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kit.catalogue import GATEWAY_CACHE_HITS, GATEWAY_TOKENS_USED
from kit.lab.bench import Comparison, Ratio, compare
from kit.lab.benchmarks.otel import BARE, STEPS, Workplace
from kit.otel import Telemetry

_PAYS = {
    "metrics collection overhead": ("operation", "count", "record"),
    "tracing overhead": ("operation",),
    "logging overhead": ("log line",),
}  # which calls a signal makes dearer; the first one is what a bare request makes too
_CALLS: dict[str, Callable[[Telemetry], Callable[[], object]]] = {
    "count": lambda telemetry: lambda: telemetry.count(GATEWAY_CACHE_HITS),
    "record": lambda telemetry: lambda: telemetry.record(GATEWAY_TOKENS_USED, 250),
}
KINDS = tuple(_CALLS)
"""Kinds of calls that a bare request does not make, so that a loop has to tell what one costs."""


async def unit_cost(place: Workplace, kind: str, *, rounds: int, samples: int = 5, inner: int = 50) -> Comparison:
    """Return what one call of a kind takes under each setting."""
    return compare(
        {name: _CALLS[kind](one) for name, one in place.switch.settings.items()},
        name=f"otel_one_{kind}", check=lambda answer: answer is None, rounds=rounds, samples=samples, inner=inner,
    )  # fmt: skip


def count_all(
    calls: Mapping[str, Mapping[str, float]], costs: Mapping[str, Comparison], bare: Comparison
) -> dict[str, dict[str, Ratio]]:
    """Return the seconds that each signal adds to each operation, by its calls.

    Args:
        calls: as ``Workplace.calls`` counts them.
        costs: of one call, by ``KINDS``.
        bare: a bare request under each setting.
    """
    return {operation: counted(made, costs, bare, calls[BARE]) for operation, made in calls.items()}


def counted(
    calls: Mapping[str, float], costs: Mapping[str, Comparison], bare: Comparison, bare_calls: Mapping[str, float]
) -> dict[str, Ratio]:
    """Return the seconds that each signal adds to an operation: its calls, times what one call adds.

    An operation and a log line are taken at what they add to a bare request, where the trace's context travels: several
    times what a loop of them shows. It is no bound: a span that stays inside and sends nothing costs less, one that
    carries more attributes or finds colder caches costs more.

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
