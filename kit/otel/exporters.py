"""Exporters as the standard OTEL_* variables ask for them; imported only when there is one to make.

What a variable says and nobody understands is told and ignored, as the standard asks. In two points it leaves the
choice, and the kit decides: without OTEL_*_EXPORTER, OTLP is used only when an endpoint is named (a notebook needs no
collector); without OTEL_EXPORTER_OTLP_PROTOCOL, port 4318 means http/protobuf and any other grpc.

Source: OpenTelemetry's specification of environment variables.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import requests
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

Signal = Literal["traces", "metrics", "logs"]
SIGNALS: tuple[Signal, ...] = ("traces", "metrics", "logs")
GRPC = "grpc"
HTTP = "http/protobuf"
_HTTP_PORT = 4318
_NAMES = ("none", "otlp", "console")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where telemetry goes when arguments say so; None leaves it to the variables, ``off`` sends it nowhere."""

    endpoint: str | None = None
    protocol: str | None = None
    headers: Mapping[str, str] | None = None
    off: bool = False

    def exporters(self, signal: Signal) -> list[str]:
        """Return the names of a signal's exporters: ``otlp``, ``console``, both or none."""
        if self.off:
            return []
        variable = f"OTEL_{signal.upper()}_EXPORTER"
        asked = os.environ.get(variable, "").strip().lower()
        if not asked:
            return ["otlp"] if self.endpoint or setting(signal, "ENDPOINT") else []
        names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
        for name in names:
            if name not in _NAMES:
                logger.warning("%s: %r is none of %s and is left out", variable, name, ", ".join(_NAMES))
        return [name for name in names if name in _NAMES and name != "none"]

    def speaks(self, signal: Signal) -> str:
        """Return the OTLP protocol of a signal."""
        protocol = self.protocol or setting(signal, "PROTOCOL")
        if protocol in (GRPC, HTTP):
            return protocol
        endpoint = self.endpoint or setting(signal, "ENDPOINT") or ""
        chosen = HTTP if _port(endpoint) == _HTTP_PORT else GRPC
        if protocol:
            logger.warning("OTLP protocol %r is neither %s nor %s; %s is spoken instead", protocol, GRPC, HTTP, chosen)
        return chosen

    def arguments(self, signal: Signal) -> dict[str, Any]:
        """Return the arguments of a signal's OTLP exporter; what is missing it reads from the variables itself."""
        _say_only_failures()
        http = self.speaks(signal) == HTTP
        arguments: dict[str, Any] = {}
        if http and setting(signal, "CERTIFICATE"):
            arguments["session"] = _session()
        if self.endpoint is not None:
            base = self.endpoint.rstrip("/")
            arguments["endpoint"] = f"{base}/v1/{signal}" if http else base
        if self.headers is not None:
            arguments["headers"] = {name.lower(): value for name, value in self.headers.items()}  # gRPC wants it so
        return arguments


def setting(signal: Signal, name: str) -> str | None:
    """Return a signal's own OTEL_EXPORTER_OTLP_* variable, or the one for all signals."""
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", "").strip()
    return own or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip() or None


def _say_only_failures() -> None:
    """The exporters warn of each retry of each batch; a user who set the level of their logger is not overruled."""
    theirs = logging.getLogger("opentelemetry.exporter")
    if theirs.level == logging.NOTSET:
        theirs.setLevel(logging.ERROR)


def _session() -> requests.Session:
    """A session that trusts what OTEL_EXPORTER_OTLP_CERTIFICATE says, even where REQUESTS_CA_BUNDLE is set.

    By itself requests lets that variable win over the session's own certificate.
    Source: https://github.com/psf/requests/issues/3829
    """
    import requests

    class Session(requests.Session):
        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            told = self.verify if verify is None and self.verify is not True else verify
            return super().merge_environment_settings(url, proxies, stream, told, cert)

    return Session()


def _port(endpoint: str) -> int | None:
    try:
        return urlsplit(endpoint if "//" in endpoint else f"//{endpoint}").port
    except ValueError:
        return None


def milliseconds(variable: str, default: int) -> float:
    """Return a duration variable in seconds; ``default`` is in milliseconds."""
    return number(variable, default) / 1000.0


def number(variable: str, default: int) -> int:
    """Return a variable that is a positive integer."""
    value = os.environ.get(variable, "").strip()
    if value.isdecimal() and int(value) > 0:
        return int(value)
    if value:
        logger.warning("%s=%r is not a positive integer; %d is used instead", variable, value, default)
    return default


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
