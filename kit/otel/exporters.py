"""Exporters as the standard OTEL_* variables ask for them; imported only when there is one to make.

Source: OpenTelemetry's specification of environment variables. Two points where the kit decides:
without OTEL_*_EXPORTER, OTLP is used only when an endpoint is named (a notebook needs no collector), and without
OTEL_EXPORTER_OTLP_PROTOCOL, port 4318 means http/protobuf and anything else grpc.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from kit.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

Signal = Literal["traces", "metrics", "logs"]
SIGNALS: tuple[Signal, ...] = ("traces", "metrics", "logs")
GRPC = "grpc"
HTTP = "http/protobuf"
_NAMES = ("none", "otlp", "console")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where telemetry goes when arguments say so; None leaves it to the variables."""

    endpoint: str | None = None
    protocol: str | None = None
    headers: Mapping[str, str] | None = None

    def exporters(self, signal: Signal) -> list[str]:
        """Return the names of a signal's exporters.

        Raises:
            ConfigurationError: a name other than none, otlp and console.
        """
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        asked = os.environ.get(variable, "").strip().lower()
        if not asked:
            return ["otlp"] if self.endpoint or _variable(signal, "ENDPOINT") else []
        names = [name.strip() for name in asked.split(",") if name.strip()]
        for name in names:
            if name not in _NAMES:
                raise ConfigurationError(f"{variable}={asked!r}: {name!r} is not one of {', '.join(_NAMES)}")
        return [name for name in names if name != "none"]

    def speaks(self, signal: Signal) -> str:
        """Return the OTLP protocol of a signal.

        Raises:
            ConfigurationError: a protocol other than grpc and http/protobuf.
        """
        protocol = self.protocol or _variable(signal, "PROTOCOL")
        if not protocol:
            endpoint = self.endpoint or _variable(signal, "ENDPOINT") or ""
            return HTTP if urlsplit(endpoint).port == 4318 else GRPC
        if protocol not in (GRPC, HTTP):
            raise ConfigurationError(f"OTLP protocol {protocol!r} is not one of {GRPC}, {HTTP}")
        return protocol

    def arguments(self, signal: Signal) -> dict[str, Any]:
        """Return the arguments of a signal's OTLP exporter; what is missing it reads from the variables itself."""
        arguments: dict[str, Any] = {}
        if self.endpoint is not None:
            base = self.endpoint.rstrip("/")
            arguments["endpoint"] = f"{base}/v1/{signal}" if self.speaks(signal) == HTTP else base
        if self.headers is not None:
            arguments["headers"] = dict(self.headers)
        return arguments


def _variable(signal: Signal, name: str) -> str | None:
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", "").strip()
    return own or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip() or None


def milliseconds(variable: str, default: float) -> float:
    """Return a duration variable in seconds.

    Raises:
        ConfigurationError: its value is not a positive number of milliseconds.
    """
    value = os.environ.get(variable, "").strip()
    try:
        parsed = float(value) if value else default
    except ValueError:
        parsed = 0.0
    if parsed <= 0:
        raise ConfigurationError(f"{variable}={value!r} is not a positive number of milliseconds")
    return parsed / 1000.0


def number(variable: str, default: int) -> int:
    """Return a size variable.

    Raises:
        ConfigurationError: its value is not a positive integer.
    """
    value = os.environ.get(variable, "").strip()
    if value and not (value.isdecimal() and int(value) > 0):
        raise ConfigurationError(f"{variable}={value!r} is not a positive integer")
    return int(value) if value else default


def span_exporters(target: Target) -> list[SpanExporter]:
    """Return the exporters of spans."""
    exporters: list[SpanExporter] = []
    for name in target.exporters("traces"):
        if name == "console":
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            exporters.append(ConsoleSpanExporter(out=sys.stdout))
        elif target.speaks("traces") == HTTP:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpanExporter

            exporters.append(HttpSpanExporter(**target.arguments("traces")))
        else:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpanExporter

            exporters.append(GrpcSpanExporter(**target.arguments("traces")))
    return exporters


def metric_exporters(target: Target) -> list[MetricExporter]:
    """Return the exporters of metrics."""
    exporters: list[MetricExporter] = []
    for name in target.exporters("metrics"):
        if name == "console":
            from opentelemetry.sdk.metrics.export import ConsoleMetricExporter

            exporters.append(ConsoleMetricExporter(out=sys.stdout))
        elif target.speaks("metrics") == HTTP:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetricExporter

            exporters.append(HttpMetricExporter(**target.arguments("metrics")))
        else:
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetricExporter

            exporters.append(GrpcMetricExporter(**target.arguments("metrics")))
    return exporters


def log_exporters(target: Target) -> list[LogRecordExporter]:
    """Return the exporters of logs."""
    exporters: list[LogRecordExporter] = []
    for name in target.exporters("logs"):
        if name == "console":
            from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter

            exporters.append(ConsoleLogRecordExporter(out=sys.stdout))
        elif target.speaks("logs") == HTTP:
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter

            exporters.append(HttpLogExporter(**target.arguments("logs")))
        else:
            from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter

            exporters.append(GrpcLogExporter(**target.arguments("logs")))
    return exporters
