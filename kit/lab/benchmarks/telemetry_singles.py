"""One span, one increment, one log line: the kit's, the bare SDK's, and OpenTelemetry's interface without an SDK.

Each sample is proved by what was recorded: as many spans, increments or lines as there were calls, and not one more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from kit.catalogue import GATEWAY_CACHE_HITS, RAG_VECTOR_SEARCH
from kit.lab.bench import Comparison, Target, Verdict
from kit.lab.benchmarks.contest import Contender, Contest
from kit.lab.benchmarks.otel import Workplace
from kit.lab.benchmarks.telemetry_switch import LOGGED

KIT, SDK, NONE = "kit", "bare SDK", "no SDK"
INNER = 50  # calls in a sample
_FIVE: dict[str, Any] = {
    "rag.top_k": 5, "results.count": 3, "rag.query.id": "q", "rag.query.length": 19, "rag.mode": "hybrid",
}  # fmt: skip


class Seen:
    """A processor of the SDK that counts what it is handed: the least that one can do with a span or a line."""

    def __init__(self) -> None:
        self.number = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Nothing to do: a span counts when it ends."""

    def _on_ending(self, span: Any) -> None:
        """Nothing to do."""

    def on_end(self, span: Any) -> None:
        """Count a span."""
        self.number += 1

    def on_emit(self, log_record: Any) -> None:
        """Count a line."""
        self.number += 1

    def shutdown(self) -> None:
        """Nothing is open."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing waits."""
        return True


def spans(place: Workplace, inner: int = INNER) -> Contest:
    """Return a span with five attributes, opened and ended; the kit's counts and times the operation, too."""
    kit, trace = place.switch.settings[LOGGED], import_module("opentelemetry.trace")
    recorder, seen = kit.recorder, Seen()
    provider = import_module("opentelemetry.sdk.trace").TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(seen)
    sdk, nothing, name = provider.get_tracer("bare"), trace.NoOpTracer(), RAG_VECTOR_SEARCH.name

    def recorded() -> int:
        number = len(recorder.finished)
        recorder.clear()
        return number

    recorder.clear()
    return _contest(
        "otel_span", inner,
        _contender(lambda: _open(kit.operation(RAG_VECTOR_SEARCH, _FIVE)), lambda: recorded() == inner),
        _contender(
            lambda: _open(sdk.start_as_current_span(name, attributes=_FIVE)), _grows(lambda: seen.number, inner)
        ),
        _contender(lambda: _open(nothing.start_as_current_span(name, attributes=_FIVE)), lambda: True),
    )  # fmt: skip


def increments(place: Workplace, inner: int = INNER) -> Contest:
    """Return a counter that goes up by one."""
    kit, metrics = place.switch.settings[LOGGED], import_module("opentelemetry.metrics")
    sdk = import_module("opentelemetry.sdk.metrics")
    reader = import_module("opentelemetry.sdk.metrics.export").InMemoryMetricReader()
    counter = sdk.MeterProvider([reader], shutdown_on_exit=False).get_meter("bare").create_counter("hits")
    nothing = metrics.NoOpMeter("none").create_counter("hits")

    def told() -> int:
        data = reader.get_metrics_data()
        return int(data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0].value) if data else 0

    def total() -> int:
        return int(kit.recorder.total(GATEWAY_CACHE_HITS.name))

    return _contest(
        "otel_increment", inner,
        _contender(lambda: kit.count(GATEWAY_CACHE_HITS), _grows(total, inner)),
        _contender(lambda: counter.add(1), _grows(told, inner)),
        _contender(lambda: nothing.add(1), lambda: True),
    )  # fmt: skip


def lines(place: Workplace, inner: int = INNER) -> Contest:
    """Return a log line with one attribute; without an SDK, the standard library's at a level that is off."""
    log, recorder, seen = place.switch.loggers[LOGGED], place.switch.settings[LOGGED].recorder, Seen()
    logs = import_module("opentelemetry._logs")
    provider = import_module("opentelemetry.sdk._logs").LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(seen)
    sdk, record, info = provider.get_logger("bare"), logs.LogRecord, logs.SeverityNumber.INFO
    silent = logging.Logger("silent", logging.CRITICAL)

    def recorded() -> int:
        number = len(recorder.logs())
        recorder.clear()
        return number

    recorder.clear()
    size = {"size": 3}
    return _contest(
        "otel_log_line", inner,
        _contender(lambda: log.info("answered", size=3), lambda: recorded() == inner),
        _contender(
            lambda: sdk.emit(record(severity_number=info, body="answered", attributes=size)),
            _grows(lambda: seen.number, inner),
        ),
        _contender(lambda: silent.info("answered", extra=size), lambda: True),
    )  # fmt: skip


def goals(results: Mapping[str, Comparison]) -> Iterator[Verdict]:
    """Yield the verdicts on what was measured one by one, by its name, beside the bare SDK."""
    for name, result in results.items():
        ratio = result.ratio(KIT, to=SDK)
        target = Target(f"one {name}", 1.0, unit="×", metric=f"p50 against {SDK}", goal=True)
        yield target.verdict(ratio.value, ratio=ratio, interval=ratio, limit=result.ratio(NONE, to=SDK).value)


def _open(opened: Any) -> None:
    with opened:
        pass


def _grows(total: Callable[[], int], inner: int) -> Callable[[], bool]:
    """Return what says whether a total has grown by the calls of a sample since it was asked last."""
    before = total()

    def check() -> bool:
        nonlocal before
        before, grown = (now := total()), now - before
        return grown == inner

    return check


def _contender(call: Callable[[], Any], recorded: Callable[[], bool]) -> Contender:
    return Contender(call=call, check=lambda answer: answer is None and recorded(), contract=False)


def _contest(name: str, inner: int, kit: Contender, sdk: Contender, none: Contender) -> Contest:
    return Contest(name=name, contenders={KIT: kit, SDK: sdk, NONE: none}, inner=inner)
