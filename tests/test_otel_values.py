"""Whatever a program logs, counts or sets: it goes on, what it said arrives in some form, and so does all beside it."""

from __future__ import annotations

import enum
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from kit.catalogue import RAG_DOCUMENTS_QUEUED, RAG_QUERY
from kit.otel import Telemetry, start_telemetry
from kit.otel.logs import Handler
from kit.otel.values import safe_text, sendable

MINE = logging.Logger("mine")  # which is in no hierarchy: pytest listens at all that are


class Mute:
    """An object whose every word is an error."""

    def __init__(self, error: type[Exception] = ValueError) -> None:
        self._error = error

    def __repr__(self) -> str:
        raise self._error

    __str__ = __hash__ = __len__ = __bool__ = __eq__ = __repr__  # type: ignore[assignment]

    @property
    def tolist(self) -> Any:
        """Fail too."""
        raise self._error


class Talker:
    """An object that logs itself when it is asked for its text."""

    def __str__(self) -> str:
        MINE.error("about to tell %s", self)
        return "told"

    __repr__ = __str__


class Colour(str, enum.Enum):  # noqa: UP042 - as people write it
    """A colour."""

    RED = "red"


def within_itself() -> list[Any]:
    own: list[Any] = [1]
    own.append({"own": own})
    return own


def deep(levels: int = 5000) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


VALUES: list[Callable[[], Any]] = [
    Mute, lambda: Mute(RecursionError), lambda: [Mute()], lambda: {"a": Mute()}, lambda: {Mute: 1}, object, Talker,
    within_itself, deep, lambda: "a\ud800b", lambda: ["\udfff"], lambda: {"\ud800": 1}, lambda: 2**70,
    lambda: -(2**63) - 1, lambda: 10**5000, lambda: [2**64], lambda: float("nan"), lambda: None, lambda: Colour.RED,
    lambda: np.float32(1.5),    lambda: np.arange(3), lambda: b"\xff", lambda: MagicMock(),
    lambda: Mock(spec=dict), lambda: Mock(spec=str),
    lambda: {1, 2}, lambda: (1, "a", None), lambda: {"a": {"b": [1]}}, lambda: {1: 2},
]  # fmt: skip


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    started = start_telemetry("test", tenant_id="acme")
    yield started
    started.shutdown()


def bodies(telemetry: Telemetry) -> list[str]:
    """What was logged, which has to be in a form that can be exported."""
    records = [record.readable() for record in list(telemetry.recorder._logs)]
    encode_logs(records)
    return [str(record.log_record.body) for record in records]


@pytest.fixture
def log(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A program's own logger, heard by the kit alone: other handlers raise what we provoke."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # else it is printed
    mine = [one for one in logging.getLogger().handlers if isinstance(one, Handler) and one is telemetry._core._handler]
    monkeypatch.setattr(MINE, "handlers", mine)
    return MINE


@pytest.mark.parametrize("value", VALUES)
def test_what_is_logged_arrives_whatever_is_logged_with_it(
    telemetry: Telemetry, log: logging.Logger, value: Callable[[], Any]
) -> None:
    log.warning("one %s", value())
    log.warning("two", extra={"odd": value(), "even": 2})
    log.warning(value())
    telemetry.logger("mine").warning("three %s", value(), odd=value())
    log.warning("last")
    said = [body for body in bodies(telemetry) if "about to tell" not in body]
    assert [said[0].split()[0], said[1], said[-2].split()[0], said[-1]] == ["one", "two", "three", "last"]
    assert len(said) == 5
    assert telemetry.recorder.logs()["attributes"].iloc[-1]["code.line.number"] > 0


@pytest.mark.parametrize("exc_info", [False, 0, "", (), (None, None, None), "text", 7, ("a", "b"), Mute()])
def test_odd_exceptions_of_a_record_do_not_matter(telemetry: Telemetry, log: logging.Logger, exc_info: Any) -> None:
    record = logging.makeLogRecord({"name": "mine", "levelno": 40, "msg": "it failed", "exc_info": exc_info})
    log.handle(record)
    if exc_info.__class__ is not Mute:
        log.error("again", exc_info=exc_info if not isinstance(exc_info, str | tuple) else False)
    assert bodies(telemetry)[0] == "it failed"


@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("%c", (10**9,)), ("%d", ("x",)), ("%d", (float("inf"),)), ("%s %s", (1,)), ("%s", (1, 2)),
        ("%(a)s", ({"b": 1},)), ("%", (1,)), ("%*d", (10**30, 1)), ("%y", (1,)),
        ("%s", (Mute(OverflowError),)), ("%r", (Mute(LookupError),)),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_told_apart(
    telemetry: Telemetry, log: logging.Logger, message: str, args: Any
) -> None:
    log.warning(message, *args)
    (body,) = bodies(telemetry)
    assert body.startswith(message)


def test_a_record_with_odd_fields_ends_nothing(telemetry: Telemetry, log: logging.Logger) -> None:
    for odd in ({"created": "x"}, {"levelno": "high"}, {"name": 7}, {"pathname": Mute()}, {"args": Mute()}):
        record = logging.makeLogRecord({"name": "mine", "levelno": 40, "msg": "odd", **odd})
        log.handlers[0].emit(record)
    log.warning("last")
    assert bodies(telemetry)[-1] == "last"


def test_a_full_stack_is_the_programs_own_affair(telemetry: Telemetry, log: logging.Logger) -> None:
    caught: list[str] = []

    def down(levels: int) -> None:
        try:
            handler.emit(record)
        except RecursionError:  # pragma: no cover - what must not come
            caught.append("raised")
        if levels:
            down(levels - 1)

    (handler,) = log.handlers
    record = logging.makeLogRecord({"name": "mine", "levelno": 40, "msg": "deep"})
    with pytest.raises(RecursionError):
        down(sys.getrecursionlimit())
    log.warning("last")
    assert bodies(telemetry)[-1] == "last"
    assert len(caught) <= 2  # where even the call of the handler does not fit


@pytest.mark.parametrize("value", VALUES)
def test_a_span_keeps_what_can_be_kept_of_its_attributes(telemetry: Telemetry, value: Callable[[], Any]) -> None:
    with telemetry.operation(RAG_QUERY, {"first": value()}) as operation:
        operation.set("odd", value())
        operation.set("even", 2)
        operation.event("odd", {"odd": value(), "even": 2})
        operation.label("odd", value())
        telemetry.count(RAG_DOCUMENTS_QUEUED, odd=value())
        telemetry.record(RAG_QUERY.duration, 0.1, odd=value())  # type: ignore[arg-type]
        telemetry.counter(RAG_DOCUMENTS_QUEUED, odd=value()).add()
    (span,) = [span.readable() for span in list(telemetry.recorder._spans)]
    encode_spans([span])
    assert span.attributes is not None
    assert (span.attributes["even"], span.events[0].attributes["even"]) == (2, 2)  # type: ignore[index]
    assert telemetry.recorder.total(RAG_DOCUMENTS_QUEUED.name) == 2


@pytest.mark.parametrize(
    "error",
    [
        type("Silent", (Exception,), {"__str__": Mute.__str__, "_error": KeyError})(), ValueError("a\ud800b"),
        OSError(Mute()), ExceptionGroup("many", [ValueError(Mute())]),
        type("Odd", (Exception,), {"__module__": None})(),
    ],
)  # fmt: skip
def test_an_exception_that_cannot_say_what_it_is_is_told_by_its_type(
    telemetry: Telemetry, log: logging.Logger, error: Exception
) -> None:
    with pytest.raises(type(error)), telemetry.operation(RAG_QUERY):
        raise error
    telemetry.logger("mine").error("it failed", error=error)
    log.error("it failed", exc_info=error)
    (span,) = [span.readable() for span in list(telemetry.recorder._spans)]
    encode_spans([span])
    assert type(error).__name__ in str(span.status.description)
    assert bodies(telemetry) == ["it failed", "it failed"]


def test_values_that_are_right_stay_what_they_are() -> None:
    for value in ("ä", 1, 1.5, True, None, b"x", (1, "a"), {"a": (1, {"b": 2})}):
        assert sendable(value) == value
    assert (sendable(Colour.RED), sendable(np.int64(3)), sendable([1, [2]])) == ("red", 3, (1, (2,)))
    assert safe_text(Mute()) == "<Mute without a text: ValueError>"
