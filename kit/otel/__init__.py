"""Observed: traces, metrics and logs, their propagation through headers, and what was recorded.

The only room that imports ``opentelemetry``.
"""

from kit.otel.bootstrap import Telemetry, start_telemetry
from kit.otel.genai import captures_content, gen_ai_attributes
from kit.otel.operation import Operation
from kit.otel.propagation import extract, inject
from kit.otel.recorder import Recorder
from kit.otel.span import word_errors

__all__ = [
    "Operation",
    "Recorder",
    "Telemetry",
    "captures_content",
    "extract",
    "gen_ai_attributes",
    "inject",
    "start_telemetry",
    "word_errors",
]
