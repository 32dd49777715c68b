"""Logs: a cheap logger of the kit's own, and the standard library's records beside it.

Either way a record that is made inside an operation carries its trace and span id.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

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
from kit.otel.values import PLAIN, safe_text, sendable

_NO_CONTEXT = Context()
_OWN = ("opentelemetry.", "kit.otel", "grpc.", "urllib3.")  # what the exporters themselves log
_OFF = logging.CRITICAL + 1
_NESTED = 2  # nesting of log calls made while formatting an argument
_SEVERITIES: dict[int, tuple[str, SeverityNumber]] = {
    logging.DEBUG: ("DEBUG", SeverityNumber.DEBUG),
    logging.INFO: ("INFO", SeverityNumber.INFO),
    logging.WARNING: ("WARN", SeverityNumber.WARN),
    logging.ERROR: ("ERROR", SeverityNumber.ERROR),
    logging.CRITICAL: ("FATAL", SeverityNumber.FATAL),
}
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Nesting(threading.local):
    """How deeply this thread's logging is nested in formatting its own arguments."""

    depth = 0


_NESTING = _Nesting()


class LiveLog:
    """A log record that costs the work as little as it can, and turns into the SDK's form when someone reads it."""

    __slots__ = ("_attributes", "_body", "_observed", "_readable", "_severity", "_source", "_span", "_time")

    def __init__(
        self,
        source: Source,
        severity: tuple[str, SeverityNumber],
        body: str,
        attributes: dict[str, Any],
        time_ns: int | None = None,
    ) -> None:
        self._source = source
        self._severity = severity
        self._body = body
        self._attributes: Mapping[str, Any] = attributes
        for value in attributes.values():
            if type(value) not in PLAIN:  # its owner may change it later
                self._attributes = source.bounded(attributes)
                break
        self._span = trace_api.get_current_span().get_span_context()
        self._observed = time.time_ns()
        self._time = self._observed if time_ns is None else time_ns
        self._readable: ReadableLogRecord | None = None

    def readable(self) -> ReadableLogRecord:
        """Return the record in the SDK's form, within the limits of the OTEL_* variables."""
        if self._readable is None:
            source, found = self._source, self._attributes
            record = LogRecord(
                timestamp=self._time,
                observed_timestamp=self._observed,
                severity_text=self._severity[0],
                severity_number=self._severity[1],
                body=sendable(self._body),
                attributes=source.bounded(found) if type(found) is dict else found,
            )
            # The constructor would take these from where the record is read.
            record.context = _NO_CONTEXT
            record.trace_id = self._span.trace_id
            record.span_id = self._span.span_id
            record.trace_flags = self._span.trace_flags
            self._readable = ReadableLogRecord(record, source.resource, source.scope)
        return self._readable


def readable_log(record: LiveLog | ReadableLogRecord) -> ReadableLogRecord:
    """Return a log record in the SDK's form."""
    return record.readable() if isinstance(record, LiveLog) else record


Sink = Callable[[LiveLog], None]


class Source:
    """Where log records come from, and what bounds them."""

    __slots__ = ("_limits", "resource", "scope")

    def __init__(self, name: str, resource: Resource) -> None:
        self.resource = resource
        self.scope = InstrumentationScope(name)
        self._limits = LogRecordLimits()

    def bounded(self, attributes: Mapping[str, Any]) -> BoundedAttributes:
        """Return a copy of attributes, within the limits of the OTEL_* variables and without what is no value."""
        most, longest = self._limits.max_log_record_attributes, self._limits.max_log_record_attribute_length
        return BoundedAttributes(most, sendable(attributes), True, longest)


class Log:
    """A logger of one Telemetry: ``log.info("indexed %d chunks", n, document="faq")``.

    Arguments are merged into the message only when the level is enabled; keywords become attributes.
    """

    __slots__ = ("_level", "_sink", "_source", "name")

    def __init__(self, name: str, resource: Resource, sink: Sink, level: int) -> None:
        self.name = name
        self._source = Source(name, resource)
        self._sink = sink
        self._level = level

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

    def _emit(self, level: int, message: str, args: tuple[object, ...], attributes: dict[str, Any]) -> None:
        self._sink(LiveLog(self._source, _SEVERITIES[level], _merged(message, args), attributes))


class Handler(logging.Handler):
    """Hands the standard library's records to the same sink.

    Records of the exporters themselves are left out: telemetry about failing telemetry would never end.
    """

    def __init__(self, resource: Resource, sink: Sink, level: int, tracing: Tracing) -> None:
        super().__init__(level)
        self._tracing = tracing
        self._resource = resource
        self._sink = sink
        self._sources: dict[str, Source] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Translate a record and pass it on."""
        if _NESTING.depth > _NESTED:
            return
        _NESTING.depth += 1
        try:
            if not record.name.startswith(_OWN) and not self._belongs_elsewhere():
                self._translate(record)
            self._last_resort(record)
        except Exception:  # noqa: BLE001 - what the program does shall not end because it is logged
            try:
                self.handleError(record)
            except Exception:  # noqa: BLE001 - as CPython's does where the stack is full: there is no telling it
                return
        finally:
            _NESTING.depth -= 1

    def _belongs_elsewhere(self) -> bool:
        """Whether this happens in an operation of another Telemetry, which will record it."""
        span = trace_api.get_current_span()
        return isinstance(span, LiveSpan) and span.tracing is not self._tracing

    def _translate(self, record: logging.LogRecord) -> None:
        source = self._sources.get(record.name)
        if source is None:
            source = self._sources[record.name] = Source(record.name, self._resource)
        body = _merged(record.msg, record.args) if isinstance(record.msg, str) else safe_text(record.msg)
        made = int(record.created * 1e9)
        self._sink(LiveLog(source, severity_of(record.levelno), body, _attributes(record), made))

    def _last_resort(self, record: logging.LogRecord) -> None:
        """Print what ``logging`` would print if no handler were configured: ours must not silence a warning."""
        root, resort = logging.getLogger(), logging.lastResort
        alone = root.handlers[:1] == [self] and all(isinstance(handler, Handler) for handler in root.handlers)
        if alone and resort is not None and record.levelno >= resort.level:
            resort.handle(record)


def _merged(message: str, args: Any) -> str:
    """Merge as ``logging`` does; arguments that do not fit or cannot be formatted must not raise into the program."""
    if _NESTING.depth > _NESTED:
        return message
    _NESTING.depth += 1
    try:
        return message % args if args else message
    except Exception:  # noqa: BLE001 - foreign code
        if type(args) is not tuple:
            return f"{message} {safe_text(args, repr)}"
        shown = [safe_text(one, repr) for one in args]
        return f"{message} ({', '.join(shown)}{',' * (len(shown) == 1)})"
    finally:
        _NESTING.depth -= 1


def _attributes(record: logging.LogRecord) -> dict[str, Any]:
    attributes = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    attributes[semconv.CODE_FILE_PATH] = record.pathname
    attributes[semconv.CODE_FUNCTION_NAME] = record.funcName
    attributes[semconv.CODE_LINE_NUMBER] = record.lineno
    told: Any = record.exc_info  # False and 0 where a caller says so
    error = told[1] if isinstance(told, tuple) and len(told) == 3 else told
    return attributes | (exception_attributes(error) if isinstance(error, BaseException) else {})


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
