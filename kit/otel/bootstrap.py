"""Telemetry from its start to its end: nothing here is global, and every end has a deadline."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from opentelemetry import trace as trace_api
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from kit.catalogue import Span
from kit.otel import semconv
from kit.otel.exporters import Target
from kit.otel.logs import Handler, Log, level_number
from kit.otel.metrics import Label, Store
from kit.otel.operation import Kind, Operation, Plan, Untold, Value
from kit.otel.pipeline import ForeignSpans, Pipeline
from kit.otel.recorder import Recorder
from kit.otel.sampling import sampling_from_environment
from kit.otel.span import Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord

    from kit.catalogue import Metric

DISABLED = Span(name="disabled", component="", purpose="nothing is recorded")
EXIT_SECONDS = 2.5  # for the last exports at the interpreter's exit, which has to be over within 3


class Telemetry:
    """Traces, metrics and logs of one service; made by ``start_telemetry``.

    Attributes:
        tenant_id: what ``tenant.id`` says on spans and metrics, unless an operation says otherwise.
        enabled: False when OTEL_SDK_DISABLED is true; then everything costs next to nothing.
    """

    def __init__(self, core: Core, tenant_id: str | None) -> None:
        self._core = core
        self._shard = core.store.shard(tenant_id)
        self._plans: dict[str, Plan] = {}
        self.tenant_id = tenant_id
        self.enabled = core.enabled

    @property
    def recorder(self) -> Recorder:
        """What happened in this process."""
        return self._core.recorder

    @property
    def dropped(self) -> dict[str, int]:
        """How many items no endpoint took, by signal."""
        return self._core.pipeline.dropped()

    def for_tenant(self, tenant_id: str) -> Telemetry:
        """Return the same telemetry under another tenant's name."""
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

    def count(self, metric: Metric, value: int | float = 1, **labels: Label) -> None:
        """Add to a counter."""
        key = (metric.name, *labels.items()) if labels else metric.name
        try:
            self._shard.mine.counters[key].value += value
        except KeyError:
            self._shard.counter(metric, labels).value += value

    def record(self, metric: Metric, value: int | float, **labels: Label) -> None:
        """Record a value of a histogram, in the metric's unit."""
        key = (metric.name, *labels.items()) if labels else metric.name
        try:
            self._shard.mine.histograms[key].add(value)
        except KeyError:
            self._shard.histogram(metric, labels).add(value)

    def logger(self, name: str) -> Log:
        """Return a cheap logger; its records carry the current operation's trace and span id."""
        return self._core.logger(name)

    def force_flush(self, timeout: float = 5.0) -> bool:
        """Export what was recorded; return within ``timeout`` seconds, True when an endpoint took all of it."""
        return self._core.pipeline.flush(timeout)

    def shutdown(self, timeout: float = 3.0) -> None:
        """Export what is left and end every thread; return within ``timeout`` seconds."""
        self._core.shutdown(timeout)


class Disabled(Telemetry):
    """Telemetry under OTEL_SDK_DISABLED: only the sender's context passes through."""

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
        return Untold(self._nothing, parent=parent)

    @cached_property
    def _nothing(self) -> Plan:
        return Plan(DISABLED, self._core.tracing, self._shard, None)

    def count(self, metric: Metric, value: int | float = 1, **labels: Label) -> None:
        """Do nothing."""

    def record(self, metric: Metric, value: int | float, **labels: Label) -> None:
        """Do nothing."""


class Core:
    """What all tenants' views of one Telemetry share."""

    def __init__(self, resource: Resource, target: Target, *, enabled: bool, record: bool, level: int) -> None:
        self.enabled = enabled
        self.resource = resource
        self.store = Store()
        self.recorder = Recorder(self.store.read)
        self.pipeline = Pipeline(resource, self.store, self.recorder if record and enabled else None, target)
        self.tracing = Tracing(resource, sampling_from_environment(), self.pipeline.span_takers)
        self._level = level if enabled and self.pipeline.log_takers else level_number("OFF")
        self._handler: Handler | None = None
        self._views: dict[str | None, Telemetry] = {}
        self._lock = threading.Lock()
        self._ended = False
        atexit.register(self._at_exit)

    def view(self, tenant_id: str | None) -> Telemetry:
        """Return the telemetry of a tenant."""
        with self._lock:
            view = self._views.get(tenant_id)
            if view is None:
                kind = Telemetry if self.enabled else Disabled
                view = self._views[tenant_id] = kind(self, tenant_id)
            return view

    def log(self, record: ReadableLogRecord) -> None:
        """Pass a log record on; this neither waits nor raises."""
        for take in self.pipeline.log_takers:
            take(record)

    def logger(self, name: str) -> Log:
        """Return a logger of this name."""
        return Log(name, self.resource, self.log, self._level)

    def capture_logging(self) -> None:
        """Hand the standard library's records over as well."""
        self._handler = Handler(self.resource, self.log, self._level)
        logging.getLogger().addHandler(self._handler)

    def shutdown(self, timeout: float) -> None:
        """End everything; a second call does nothing."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        self.pipeline.close(timeout)
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        self.shutdown(EXIT_SECONDS)


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
        protocol: ``grpc`` or ``http/protobuf``.
        headers: sent with every export.
        log_level: from which level on logs are recorded.
        capture_logging: take the standard library's log records too.
        set_global: make the tracer provider OpenTelemetry's global one, so that other libraries' spans join in.

    Raises:
        ConfigurationError: an OTEL_* variable that cannot work.
    """
    enabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
    target = Target(endpoint=endpoint, protocol=protocol, headers=headers) if enabled else Target()
    core = Core(_resource(service_name), target, enabled=enabled, record=record, level=level_number(log_level))
    if capture_logging and core.pipeline.log_takers:
        core.capture_logging()
    if set_global and enabled:
        provider = TracerProvider(resource=core.resource, shutdown_on_exit=False)
        provider.add_span_processor(ForeignSpans(core.pipeline.span_takers))
        trace_api.set_tracer_provider(provider)
    return core.view(tenant_id)


def _resource(service_name: str) -> Resource:
    resource = Resource.create()
    if resource.attributes.get(semconv.SERVICE_NAME) in (None, "unknown_service"):
        resource = resource.merge(Resource({semconv.SERVICE_NAME: service_name}))
    return resource
