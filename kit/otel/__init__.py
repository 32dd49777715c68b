"""Observed: traces, metrics and logs, their propagation through headers, and what was recorded.

The only room that imports ``opentelemetry``.
"""

from kit.otel.bootstrap import Telemetry, start_telemetry
from kit.otel.operation import Operation
from kit.otel.propagation import extract, inject
from kit.otel.recorder import Recorder

__all__ = ["Operation", "Recorder", "Telemetry", "extract", "inject", "start_telemetry"]
