"""One telemetry that is another from one call to the next: off, metrics alone, with traces, with a log line."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Self

from kit.lab.benchmarks.variables import telemetry_variables
from kit.otel import Operation, Telemetry, start_telemetry
from kit.otel.logs import Log
from kit.otel.operation import Plan, Untold

OFF, METRICS, TRACED, LOGGED = "off", "metrics", "metrics, traces", "metrics, traces, a log line"
"""The settings, each with what the one before has and one signal more."""


def all_settings() -> dict[str, Telemetry]:
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
