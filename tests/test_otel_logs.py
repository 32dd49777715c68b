"""A log record says in which operation it was made, whoever logged it, and logging stays as the user set it up."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kit.catalogue import RAG_QUERY
from kit.errors import ConfigurationError
from kit.otel import Telemetry, start_telemetry
from kit.otel.logs import Handler, readable_log


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    started = start_telemetry("test", tenant_id="acme")
    yield started
    started.shutdown()


def _rows(telemetry: Telemetry) -> list[dict[str, Any]]:
    return telemetry.recorder.logs().to_dict("records")


def test_a_record_carries_the_operation_it_was_made_in(telemetry: Telemetry) -> None:
    log = telemetry.logger("kit.rag")
    log.info("outside")
    with telemetry.operation(RAG_QUERY) as operation:
        log.info("found %d of %s", 3, "many", index="faq")
    outside, inside = _rows(telemetry)
    assert telemetry.recorder.logs()[["trace_id", "span_id"]].isna().all(axis=1).tolist() == [True, False]
    assert outside["body"] == "outside"
    assert inside["trace_id"] == operation.trace_id
    assert inside["span_id"] == f"{operation.span.get_span_context().span_id:016x}"
    assert (inside["body"], inside["severity"], inside["logger"]) == ("found 3 of many", "INFO", "kit.rag")
    assert inside["attributes"] == {"index": "faq"}


def test_levels_are_respected(telemetry: Telemetry) -> None:
    log = telemetry.logger("kit.rag")
    log.debug("not recorded")
    log.warning("careful")
    log.error("broken", error=ValueError("why"), part="index")
    log.set_level("DEBUG")
    log.debug("recorded")
    log.set_level("OFF")
    log.error("not recorded")
    warning, error, debug = _rows(telemetry)
    assert [row["severity"] for row in (warning, error, debug)] == ["WARN", "ERROR", "DEBUG"]
    assert error["attributes"]["exception.type"] == "ValueError"
    assert error["attributes"]["exception.message"] == "why"
    assert error["attributes"]["part"] == "index"


def test_a_level_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="LOUD"):
        start_telemetry("test", log_level="LOUD")


def test_arguments_that_do_not_fit_stop_nobody(telemetry: Telemetry) -> None:
    telemetry.logger("x").info("%d items", "three")
    telemetry.logger("x").info("%(name)s", "no mapping", odd=object())
    handler = next(handler for handler in logging.getLogger().handlers if isinstance(handler, Handler))
    handler.handle(logging.LogRecord("theirs", logging.ERROR, "", 1, "%d items", ("three",), None))
    assert [row["body"] for row in _rows(telemetry)][::2] == ["%d items ('three',)"] * 2


def test_the_standard_librarys_records_are_taken_too(telemetry: Telemetry) -> None:
    theirs = logging.getLogger("some.library")
    with telemetry.operation(RAG_QUERY) as operation:
        theirs.warning("slow: %.1f s", 2.5, extra={"host": "a"})
        try:
            raise KeyError("missing")
        except KeyError:
            theirs.exception("failed")
        theirs.info("below the root's level")
    theirs.critical({"not": "text"})
    slow, failed, structured = _rows(telemetry)
    assert (slow["logger"], slow["severity"], slow["body"]) == ("some.library", "WARN", "slow: 2.5 s")
    assert slow["trace_id"] == failed["trace_id"] == operation.trace_id
    assert slow["attributes"]["host"] == "a"
    assert slow["attributes"]["code.function.name"] == "test_the_standard_librarys_records_are_taken_too"
    assert failed["attributes"]["exception.type"] == "KeyError"
    assert (structured["severity"], structured["body"]) == ("FATAL", "{'not': 'text'}")


def test_what_the_exporters_log_is_not_exported(telemetry: Telemetry) -> None:
    for name in ("opentelemetry.exporter.otlp", "kit.otel.export", "urllib3.connectionpool"):
        logging.getLogger(name).error("cannot export")
    assert _rows(telemetry) == []


def test_each_telemetry_takes_what_happens_in_its_own_operations(telemetry: Telemetry) -> None:
    other = start_telemetry("other")
    theirs = logging.getLogger("some.library")
    with telemetry.operation(RAG_QUERY):
        theirs.warning("here")
    with other.operation(RAG_QUERY):
        theirs.warning("there")
    theirs.warning("nowhere")
    other.shutdown()
    assert [row["body"] for row in _rows(telemetry)] == ["here", "nowhere"]
    assert [row["body"] for row in _rows(other)] == ["there", "nowhere"]


def test_logging_is_left_as_it_was() -> None:
    before = list(logging.getLogger().handlers)
    telemetry = start_telemetry("test")
    assert len(logging.getLogger().handlers) == len(before) + 1
    telemetry.shutdown()
    assert logging.getLogger().handlers == before
    silent = start_telemetry("test", record=False)
    assert logging.getLogger().handlers == before
    silent.logger("x").error("goes nowhere")
    silent.shutdown()


def test_a_warning_is_still_printed_where_nobody_configured_logging() -> None:
    """A handler on the root logger would otherwise silence the standard library's last resort."""
    code = (
        "import logging; from kit.otel import start_telemetry; t = start_telemetry('x'); u = start_telemetry('y')\n"
        "logging.getLogger('lib').warning('look here'); logging.getLogger('lib').info('not here')\n"
        "logging.getLogger('opentelemetry.sdk').warning('and here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines() == ["look here", "and here"]


def test_what_a_record_keeps_alive_is_small(telemetry: Telemetry) -> None:
    with telemetry.operation(RAG_QUERY):
        telemetry.logger("x").info("y")
    (record,) = telemetry.recorder._logs
    assert readable_log(record).log_record.context == {}


def test_a_record_is_of_the_moment_it_was_made_in_however_late_it_is_read(telemetry: Telemetry) -> None:
    parts, log = ["a"], telemetry.logger("x")
    log.info("outside")
    with telemetry.operation(RAG_QUERY) as operation:
        log.info("%s", parts, parts=parts, nothing=object())
    parts.append("b")
    with telemetry.operation(RAG_QUERY):
        logs, (_, inside) = telemetry.recorder.logs(), _rows(telemetry)
    assert logs[["trace_id", "span_id"]].isna().all(axis=1).tolist() == [True, False]
    assert (inside["trace_id"], inside["body"]) == (operation.trace_id, "['a']")
    assert inside["attributes"]["parts"] == ("a",)
