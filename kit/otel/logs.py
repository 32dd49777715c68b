"""Logs: a cheap logger of the kit's own, and the standard library's records beside it.

Either way a record that is made inside an operation carries its trace and span id.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LogRecordLimits, ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from kit.errors import ConfigurationError
from kit.otel import semconv
from kit.otel.span import LiveSpan, Tracing, exception_attributes

Sink = Callable[[ReadableLogRecord], None]

_NO_CONTEXT = Context()
_OWN = ("opentelemetry.", "kit.otel", "grpc.", "urllib3.")  # what the exporters themselves log
_OFF = logging.CRITICAL + 1
_SEVERITIES: dict[int, tuple[str, SeverityNumber]] = {
    logging.DEBUG: ("DEBUG", SeverityNumber.DEBUG),
    logging.INFO: ("INFO", SeverityNumber.INFO),
    logging.WARNING: ("WARN", SeverityNumber.WARN),
    logging.ERROR: ("ERROR", SeverityNumber.ERROR),
    logging.CRITICAL: ("FATAL", SeverityNumber.FATAL),
}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Log:
    """A logger of one Telemetry: ``log.info("indexed %d chunks", n, document="faq")``.

    Arguments are merged into the message only when the level is enabled; keywords become attributes.
    """

    __slots__ = ("_level", "_limits", "_resource", "_scope", "_sink", "name")

    def __init__(self, name: str, resource: Resource, sink: Sink, level: int) -> None:
        self.name = name
        self._scope = InstrumentationScope(name)
        self._resource = resource
        self._sink = sink
        self._level = level
        self._limits = LogRecordLimits()

    def set_level(self, level: int | str) -> None:
        """Record from this level on: a number or a name of the standard library's ``logging``."""
        self._level = level_number(level)

    def debug(self, message: str, *args: object, **attributes: Any) -> None:
        """Log what only the developer of this part wants to know."""
        if self._level <= logging.DEBUG:
            self._emit(logging.DEBUG, message, args, attributes)

    def info(self, message: str, *args: object, **attributes: Any) -> None:
        """Log what happened as it should."""
        if self._level <= logging.INFO:
            self._emit(logging.INFO, message, args, attributes)

    def warning(self, message: str, *args: object, **attributes: Any) -> None:
        """Log what somebody should look at some time."""
        if self._level <= logging.WARNING:
            self._emit(logging.WARNING, message, args, attributes)

    def error(self, message: str, *args: object, error: BaseException | None = None, **attributes: Any) -> None:
        """Log what failed, with the exception when there is one."""
        if self._level <= logging.ERROR:
            self._emit(
                logging.ERROR, message, args, attributes if error is None else attributes | exception_attributes(error)
            )

    def _emit(self, level: int, message: str, args: tuple[object, ...], attributes: Mapping[str, Any]) -> None:
        text, severity = _SEVERITIES[level]
        now = time.time_ns()
        record = LogRecord(
            timestamp=now,
            observed_timestamp=now,
            context=context_api.get_current(),
            severity_text=text,
            severity_number=severity,
            body=_merged(message, args),
            attributes=_bounded(attributes, self._limits),
        )
        record.context = _NO_CONTEXT  # the ids are taken; the rest would be kept alive by whoever keeps the record
        self._sink(ReadableLogRecord(record, self._resource, self._scope))


class Handler(logging.Handler):
    """Hands the standard library's records to the same sink.

    Records of the exporters themselves are left out: telemetry about failing telemetry would never end.
    """

    def __init__(self, resource: Resource, sink: Sink, level: int, tracing: Tracing) -> None:
        super().__init__(level)
        self._tracing = tracing
        self._resource = resource
        self._sink = sink
        self._limits = LogRecordLimits()
        self._scopes: dict[str, InstrumentationScope] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Translate a record and pass it on."""
        if not record.name.startswith(_OWN) and not self._belongs_elsewhere():
            self._translate(record)
        self._last_resort(record)

    def _belongs_elsewhere(self) -> bool:
        """Whether this happens in an operation of another Telemetry, which will record it."""
        span = trace_api.get_current_span()
        return isinstance(span, LiveSpan) and span.tracing is not self._tracing

    def _translate(self, record: logging.LogRecord) -> None:
        scope = self._scopes.setdefault(record.name, InstrumentationScope(record.name))
        text, severity = severity_of(record.levelno)
        translated = LogRecord(
            timestamp=int(record.created * 1e9),
            observed_timestamp=time.time_ns(),
            context=context_api.get_current(),
            severity_text=text,
            severity_number=severity,
            body=_merged(record.msg, record.args) if isinstance(record.msg, str) else str(record.msg),
            attributes=_bounded(_attributes(record), self._limits),
        )
        translated.context = _NO_CONTEXT
        self._sink(ReadableLogRecord(translated, self._resource, scope))

    def _last_resort(self, record: logging.LogRecord) -> None:
        """Print what ``logging`` would print if no handler were configured: ours must not silence a warning."""
        root, resort = logging.getLogger(), logging.lastResort
        alone = root.handlers[:1] == [self] and all(isinstance(handler, Handler) for handler in root.handlers)
        if alone and resort is not None and record.levelno >= resort.level:
            resort.handle(record)


def _merged(message: str, args: Any) -> str:
    """Merge as ``logging`` does; arguments that do not fit must not stop what logs them."""
    try:
        return message % args if args else message
    except (TypeError, ValueError, KeyError):
        return f"{message} {args!r}"


def _bounded(attributes: Mapping[str, Any], limits: LogRecordLimits) -> BoundedAttributes:
    return BoundedAttributes(limits.max_log_record_attributes, attributes, True, limits.max_log_record_attribute_length)


def _attributes(record: logging.LogRecord) -> dict[str, Any]:
    attributes = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    attributes[semconv.CODE_FILE_PATH] = record.pathname
    attributes[semconv.CODE_FUNCTION_NAME] = record.funcName
    attributes[semconv.CODE_LINE_NUMBER] = record.lineno
    if record.exc_info is not None and record.exc_info[1] is not None:
        attributes.update(exception_attributes(record.exc_info[1]))
    return attributes


def severity_of(level: int) -> tuple[str, SeverityNumber]:
    """Return OpenTelemetry's severity for a level of the standard library."""
    standard = max((known for known in _SEVERITIES if known <= level), default=logging.DEBUG)
    return _SEVERITIES[standard]


def level_number(level: int | str) -> int:
    """Return a level's number by its number or name; ``"OFF"`` is above all.

    Raises:
        ConfigurationError: no level has this name.
    """
    if isinstance(level, int):
        return level
    known = {**logging.getLevelNamesMapping(), "OFF": _OFF}
    if level.upper() not in known:
        raise ConfigurationError(f"log level {level!r} is none of {', '.join(known)}")
    return known[level.upper()]
