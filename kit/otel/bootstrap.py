"""Telemetry from its start to its end: no provider is global unless asked for, and every end has a deadline."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import get_current_span

from kit.catalogue import TELEMETRY_DROPPED, Span
from kit.otel import semconv
from kit.otel.exporters import SIGNALS, Target
from kit.otel.logs import Handler, LiveLog, Log, level_number
from kit.otel.metrics import Counter, Idle, Label, Reading, Series, Store
from kit.otel.operation import Kind, Operation, Plan, Untold, Value
from kit.otel.pipeline import Pipeline
from kit.otel.recorder import Recorder
from kit.otel.sampling import sampling_from_environment
from kit.otel.span import Tracing

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from kit.catalogue import Metric

EXIT_SECONDS = 2.0  # for the last exports at the interpreter's exit, which has to be over within 3
_NOTHING = Span(name="disabled", component="", purpose="what disabled telemetry opens instead")

logger = logging.getLogger(__name__)


class Telemetry:
    """Traces, metrics and logs of one service; made by ``start_telemetry``.

    Attributes:
        tenant_id: what ``tenant.id`` says on spans and metrics, unless an operation says otherwise.
        enabled: False when OTEL_SDK_DISABLED is true; then everything costs next to nothing.
    """

    enabled = True

    def __init__(self, core: Core, tenant_id: str | None) -> None:
        self._core = core
        self._shard = core.store.shard(tenant_id)
        self._mine = self._shard.mine
        self._plans: dict[str, Plan] = {}
        self.tenant_id = tenant_id

    @property
    def recorder(self) -> Recorder:
        """What happened in this process; empty unless ``record`` was asked for."""
        return self._core.recorder

    @property
    def dropped(self) -> dict[str, int]:
        """How many items no endpoint took, by signal: traces, metrics, logs."""
        return self._core.pipeline.dropped()

    @property
    def exported(self) -> dict[str, int]:
        """How many items an endpoint took, by signal."""
        return self._core.pipeline.exported()

    def for_tenant(self, tenant_id: str | None) -> Telemetry:
        """Return the same telemetry under another tenant's name; always the same object for the same tenant."""
        return self._core.view(tenant_id)

    def operation(
        self,
        row: Span,
        attributes: Mapping[str, Value] | None = None,
        *,
        kind: Kind = "internal",
        parent: Context | None = None,
        links: Sequence[Context] | None = None,
        labels: Mapping[str, Label] | None = None,
    ) -> Operation:
        """Return a context manager that records one operation of a catalogue row.

        Args:
            row: names the span, its counter and its duration.
            attributes: of the span; ``tenant.id`` and ``openinference.span.kind`` are there already.
            kind: the side of a hop; ``server`` and ``consumer`` start a new trace when there is no parent.
            parent: what ``extract`` returned; None continues the current operation.
            links: contexts that are related, but not the parent.
            labels: of the counter and the duration, beside ``status`` and ``error_type``; never an id.
        """
        plan = self._plans.get(row.name)
        if plan is None:
            plan = self._plans[row.name] = Plan(row, self._core.tracing, self._shard, self.tenant_id)
        return Operation(plan, attributes, kind, parent, links, labels)

    def annotate(self, attributes: Mapping[str, Value]) -> None:
        """Set attributes of the span that is current here: how a handler adds to the one that the bus opened for it."""
        get_current_span().set_attributes(attributes)

    def event(self, name: str, attributes: Mapping[str, Value] | None = None) -> None:
        """Add an event to the span that is current here."""
        get_current_span().add_event(name, attributes)

    def count(self, metric: Metric, value: int | float = 1, **labels: Label) -> None:
        """Add to a counter.

        Raises:
            ConfigurationError: a label is an id; ids belong on spans.
        """
        try:
            key: object = metric.name  # what key_of does, without the call
            for name in labels:
                key = (key, name, labels[name])
            self._mine.counters[key].value += value
        except Exception:  # noqa: BLE001 - new, or a label that can be no key
            self._shard.counter(metric, labels).value += value

    def counter(self, metric: Metric, **labels: Label) -> Counter:
        """Return a counter with its labels, for a loop in which looking them up costs too much.

        Raises:
            ConfigurationError: a label is an id; ids belong on spans.
        """
        return Counter(self._shard, metric, labels)

    def record(self, metric: Metric, value: int | float, **labels: Label) -> None:
        """Record a value of a histogram, in the metric's unit.

        Raises:
            ConfigurationError: a label is an id; ids belong on spans.
        """
        try:
            key: object = metric.name  # what key_of does, without the call
            for name in labels:
                key = (key, name, labels[name])
            self._mine.histograms[key].add(value)
        except Exception:  # noqa: BLE001 - new, or a label that can be no key
            self._shard.histogram(metric, labels).add(value)

    def logger(self, name: str) -> Log:
        """Return a cheap logger; its records carry the current operation's trace and span id."""
        return self._core.logger(name)

    def force_flush(self, timeout: float = 5.0) -> bool:
        """Export what was recorded; return within ``timeout`` seconds, True when the endpoints took all of it."""
        return self._core.pipeline.flush(timeout)

    def shutdown(self, timeout: float = 3.0) -> None:
        """Export what is left and end every thread; return within ``timeout`` seconds. A second call does nothing."""
        self._core.shutdown(timeout)


class Disabled(Telemetry):
    """Telemetry under OTEL_SDK_DISABLED: only the sender's context passes through."""

    enabled = False

    def __init__(self, core: Core, tenant_id: str | None) -> None:
        super().__init__(core, tenant_id)
        self._nothing = Plan(_NOTHING, core.tracing, self._shard, None)

    def operation(
        self,
        row: Span,
        attributes: Mapping[str, Value] | None = None,
        *,
        kind: Kind = "internal",
        parent: Context | None = None,
        links: Sequence[Context] | None = None,
        labels: Mapping[str, Label] | None = None,
    ) -> Operation:
        """Return a context manager that records nothing."""
        return Untold(self._nothing, None, kind, parent)

    def count(self, metric: Metric, value: int | float = 1, **labels: Label) -> None:
        """Do nothing."""

    def counter(self, metric: Metric, **labels: Label) -> Counter:
        """Return a counter that does nothing."""
        return Idle()

    def record(self, metric: Metric, value: int | float, **labels: Label) -> None:
        """Do nothing."""


class Core:
    """What all tenants' views of one Telemetry share."""

    def __init__(self, resource: Resource, target: Target, *, enabled: bool, record: bool, level: int) -> None:
        scope = InstrumentationScope("kit", version("kit"), semconv.SCHEMA_URL)
        self.resource = resource
        self.store = Store()
        self.recorder = Recorder(self.read)
        self.pipeline = Pipeline(resource, scope, self.read, self.recorder if record and enabled else None, target)
        self.tracing = Tracing(resource, sampling_from_environment(), self.pipeline.span_takers, scope)
        self._enabled = enabled
        self._level = level if self.pipeline.log_takers else level_number("OFF")
        self._handler: Handler | None = None
        self._views: dict[str | None, Telemetry] = {}
        self._lock = threading.Lock()
        _alive.append(self)

    def view(self, tenant_id: str | None) -> Telemetry:
        """Return the telemetry of a tenant."""
        with self._lock:
            view = self._views.get(tenant_id)
            if view is None:
                view = Telemetry(self, tenant_id) if self._enabled else Disabled(self, tenant_id)
                self._views[tenant_id] = view
            return view

    def read(self) -> Reading:
        """Return the totals of all metrics, drops included."""
        reading = self.store.read()
        dropped = self.pipeline.dropped()
        for signal in SIGNALS:
            if dropped[signal]:
                reading.counters[Series(TELEMETRY_DROPPED, (("signal", signal),))] = dropped[signal]
        return reading

    def log(self, record: LiveLog) -> None:
        """Pass a log record on; this neither waits nor raises."""
        for take in self.pipeline.log_takers:
            take(record)

    def logger(self, name: str) -> Log:
        """Return a logger of this name."""
        return Log(name, self.resource, self.log, self._level)

    def capture_logging(self) -> None:
        """Hand the standard library's records over as well."""
        if self.pipeline.log_takers:
            self._handler = Handler(self.resource, self.log, self._level, self.tracing)
            logging.getLogger().addHandler(self._handler)

    def shutdown(self, timeout: float) -> None:
        """End everything; a second call does nothing."""
        deadline = time.monotonic() + timeout
        if self in _alive:
            _alive.remove(self)
            self.pipeline.stop()
            self.end(deadline)

    def end(self, deadline: float) -> None:
        """Wait for the last exports until ``deadline``, and tell once what was lost."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        self.pipeline.close(deadline)
        lost = [f"{count} {signal}" for signal, count in self.pipeline.dropped().items() if count]
        if lost:
            logger.warning("no endpoint took %s", ", ".join(lost))


# What has to end with the interpreter. One exit handler for all: those of the single ones would add their deadlines up.
_alive: list[Core] = []


@atexit.register
def _end_all() -> None:
    deadline = time.monotonic() + EXIT_SECONDS
    for core in _alive:
        core.pipeline.stop()
    while _alive:
        _alive.pop().end(deadline)


def start_telemetry(
    service_name: str = "kit",
    *,
    tenant_id: str | None = None,
    record: bool = True,
    endpoint: str | None = None,
    protocol: str | None = None,
    headers: Mapping[str, str] | None = None,
    log_level: int | str = "INFO",
    capture_logging: bool = True,
    set_global: bool = False,
) -> Telemetry:
    """Start traces, metrics and logs of one service, as the standard OTEL_* variables say.

    Args:
        service_name: ``service.name``, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise.
        tenant_id: ``tenant.id`` of spans and metrics.
        record: keep finished spans and logs in memory, bounded, for ``Telemetry.recorder``.
        endpoint: OTLP endpoint, e.g. ``http://localhost:4317``; None leaves it to OTEL_EXPORTER_OTLP_ENDPOINT, and
            without one nothing leaves the process.
        protocol: ``grpc`` or ``http/protobuf``; None leaves it to OTEL_EXPORTER_OTLP_PROTOCOL.
        headers: sent with every export.
        log_level: from which level on logs are recorded.
        capture_logging: take the standard library's log records too.
        set_global: make OpenTelemetry's global providers feed this one, so that other libraries' telemetry joins in;
            they can be set once in a process.

    Raises:
        ConfigurationError: no level has the name ``log_level``.
    """
    enabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
    target = Target(endpoint=endpoint, protocol=protocol, headers=headers, off=not enabled)
    core = Core(_resource(service_name), target, enabled=enabled, record=record, level=level_number(log_level))
    if capture_logging:
        core.capture_logging()
    if set_global and enabled:
        from kit.otel.foreign import set_global_providers

        set_global_providers(core.resource, core.pipeline)
    return core.view(tenant_id)


def _resource(service_name: str) -> Resource:
    resource = Resource.create()  # reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes.get(semconv.SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        ours = Resource({semconv.SERVICE_VERSION: version("kit")})
        resource = ours.merge(resource).merge(Resource({semconv.SERVICE_NAME: service_name}))
    return resource.merge(Resource({}, semconv.SCHEMA_URL))
