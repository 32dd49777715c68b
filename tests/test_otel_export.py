"""What was recorded arrives, complete and once, at a real OTLP receiver, as the standard variables say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from otlp_receiver import OtlpReceiver, Protocol, attributes

from kit.catalogue import GATEWAY_CACHE_HITS, GATEWAY_TOKENS_USED, RAG_QUERY, RAG_QUERY_PROCESS, TELEMETRY_DROPPED
from kit.otel import extract, inject, start_telemetry
from kit.otel.export import Queue, Ticker
from kit.otel.exporters import Target, milliseconds, number

PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http/protobuf")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture(params=PROTOCOLS)
def receiver(request: pytest.FixtureRequest) -> Iterator[OtlpReceiver]:
    with OtlpReceiver(request.param) as running:
        yield running


def test_spans_metrics_and_logs_all_arrive_and_are_complete(receiver: OtlpReceiver) -> None:
    telemetry = start_telemetry("rag", tenant_id="acme", endpoint=receiver.endpoint, protocol=receiver.protocol)
    log = telemetry.logger("kit.rag")
    for part in range(300):
        with telemetry.operation(RAG_QUERY, {"part": part}, kind="client"):
            with telemetry.operation(RAG_QUERY_PROCESS, kind="server", parent=extract(inject())) as operation:
                log.info("answering %d", part, part=part)
            if part % 100 == 0:
                operation.fail("late", "of no effect any more")
        telemetry.record(GATEWAY_TOKENS_USED, part, model="m")
    with pytest.raises(ValueError, match="no"), telemetry.operation(RAG_QUERY):
        raise ValueError("no")
    assert telemetry.force_flush(10.0) is True
    assert len(receiver.spans) == 601
    assert len(receiver.logs) == 300
    telemetry.shutdown(10.0)
    assert telemetry.dropped == {"traces": 0, "metrics": 0, "logs": 0}
    assert (telemetry.exported["traces"], telemetry.exported["logs"]) == (601, 300)

    callers = {span.span_id: span for span in receiver.spans if span.name == "rag.query"}
    workers = [span for span in receiver.spans if span.name == "rag.query.process"]
    assert len({span.span_id for span in receiver.spans}) == 601
    assert all(callers[span.parent_span_id].trace_id == span.trace_id for span in workers)
    assert sorted(attributes(s.attributes)["part"] for s in callers.values() if s.status.code != 2) == list(range(300))
    assert {attributes(span.attributes)["tenant.id"] for span in receiver.spans} == {"acme"}
    (failed,) = [span for span in receiver.spans if span.status.code == 2]
    assert [event.name for event in failed.events] == ["exception"]

    metrics = receiver.metrics
    executed = {attributes(p.attributes)["status"]: p.as_int for p in metrics["rag.queries.executed"].sum.data_points}
    assert executed == {"success": 300, "error": 1}
    assert metrics["rag.queries.executed"].sum.is_monotonic
    assert metrics["rag.queries.executed"].unit == "{query}"
    (tokens,) = metrics["gateway.tokens.used"].histogram.data_points
    assert (tokens.count, tokens.sum, tokens.min, tokens.max) == (300, sum(range(300)), 0, 299)
    assert sum(tokens.bucket_counts) == 300
    assert attributes(tokens.attributes) == {"model": "m", "tenant.id": "acme"}

    by_span = {span.span_id: span for span in workers}
    for record in receiver.logs:
        assert by_span[record.span_id].trace_id == record.trace_id
    assert sorted(attributes(record.attributes)["part"] for record in receiver.logs) == list(range(300))
    assert {record.severity_text for record in receiver.logs} == {"INFO"}
    for resource in receiver.resources.values():
        assert resource["service.name"] == "rag"
        assert resource["telemetry.sdk.language"] == "python"


def test_all_is_sent_at_the_exit_of_a_process_that_forgets_to_shut_down(receiver: OtlpReceiver) -> None:
    code = (
        "from kit.otel import start_telemetry; from kit.catalogue import RAG_QUERY\n"
        "t = start_telemetry('forgetful'); log = t.logger('x')\n"
        "for _ in range(50):\n with t.operation(RAG_QUERY): log.info('y')"
    )
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
    environment["OTEL_EXPORTER_OTLP_PROTOCOL"] = receiver.protocol
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (len(receiver.spans), len(receiver.logs)) == (50, 50)
    assert receiver.metrics["rag.queries.executed"].sum.data_points[0].as_int == 50


def test_the_standard_variables_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpReceiver("grpc") as grpc, OtlpReceiver("http/protobuf") as http:
        settings = {
            "OTEL_SERVICE_NAME": "from-env",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test,service.version=1.2",
            "OTEL_EXPORTER_OTLP_ENDPOINT": http.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret,other=a%20b",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": grpc.endpoint,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "api-key=traces",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_METRIC_EXPORT_INTERVAL": "50",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        telemetry = start_telemetry("from-code")
        with telemetry.operation(RAG_QUERY):
            telemetry.logger("x").info("goes nowhere")
        deadline = time.monotonic() + 10
        while (not grpc.spans or not http.metrics) and time.monotonic() < deadline:
            time.sleep(0.02)  # nobody flushes: the intervals do it
        telemetry.shutdown()
    assert [span.name for span in grpc.spans] == ["rag.query"]
    assert "rag.queries.executed" in http.metrics
    assert {path for path, _, _ in grpc.requests} == {"/v1/traces"}
    assert {path for path, _, _ in http.requests} == {"/v1/metrics"}
    resource = grpc.resources["/v1/traces"]
    assert (resource["service.name"], resource["service.version"]) == ("from-env", "1.2")
    assert resource["deployment.environment"] == "test"
    assert grpc.requests[0][2]["api-key"] == "traces"
    assert http.requests[0][2]["api-key"] == "secret"
    assert http.requests[0][2]["other"] == "a b"
    assert http.requests[0][2]["content-encoding"] == "gzip"


def test_headers_and_endpoint_can_be_arguments(receiver: OtlpReceiver) -> None:
    telemetry = start_telemetry(
        "x", endpoint=receiver.endpoint + "/", protocol=receiver.protocol, headers={"Api-Key": "argument"}
    )
    with telemetry.operation(RAG_QUERY):
        pass
    telemetry.shutdown()
    assert {headers["api-key"] for _, _, headers in receiver.requests} == {"argument"}
    resource = receiver.resources["/v1/traces"]
    assert (resource["service.name"], resource["service.version"]) == ("x", version("kit"))


def test_delta_temporality_is_honoured(monkeypatch: pytest.MonkeyPatch, receiver: OtlpReceiver) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    telemetry = start_telemetry("x", endpoint=receiver.endpoint, protocol=receiver.protocol)
    values = []
    for _ in range(3):
        telemetry.count(GATEWAY_CACHE_HITS, 2)
        assert telemetry.force_flush()
        metric = receiver.metrics["gateway.cache.hits"]
        assert metric.sum.aggregation_temporality == 1
        values.append(metric.sum.data_points[0].as_int)
    telemetry.shutdown()
    assert values == [2, 2, 2]


def test_the_console_is_an_exporter_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for signal in ("TRACES", "METRICS", "LOGS"):
        monkeypatch.setenv(f"OTEL_{signal}_EXPORTER", "console")
    telemetry = start_telemetry("x", record=False)
    with telemetry.operation(RAG_QUERY):
        telemetry.logger("x").info("hello console")
    telemetry.shutdown()
    printed = capsys.readouterr().out
    assert '"name": "rag.query"' in printed
    assert '"name": "rag.queries.executed"' in printed
    assert "hello console" in printed
    assert json.loads(printed[: printed.index("\n}") + 2])


def test_nothing_leaves_the_process_without_an_endpoint() -> None:
    before = threading.active_count()
    telemetry = start_telemetry("x")
    with telemetry.operation(RAG_QUERY):
        pass
    assert (telemetry._core.pipeline.workers, threading.active_count()) == ([], before)
    assert telemetry.force_flush(0.0) is True
    telemetry.shutdown()
    telemetry.shutdown()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4317"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://h:4317"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp"]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp,console"}, ["console", "otlp"]),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4317"}, []),
        ({"OTEL_TRACES_EXPORTER": "zipkin,console"}, ["console"]),
    ],
)
def test_exporters_are_chosen_by_the_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Target().exporters("traces") == expected
    assert Target(off=True).exporters("traces") == []


@pytest.mark.parametrize(
    ("endpoint", "protocol", "expected"),
    [
        (None, None, "grpc"),
        ("http://collector:4317", None, "grpc"),
        ("http://collector:4318", None, "http/protobuf"),
        ("collector:4318", None, "http/protobuf"),
        ("http://collector:4318", "grpc", "grpc"),
        ("http://collector:4317", "http/protobuf", "http/protobuf"),
        ("http://collector:4318", "http/json", "http/protobuf"),
        ("http://collector:port", None, "grpc"),
    ],
)
def test_the_protocol_follows_the_port_unless_it_is_told(
    monkeypatch: pytest.MonkeyPatch, endpoint: str | None, protocol: str | None, expected: str
) -> None:
    if endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    if protocol:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    assert Target().speaks("metrics") == expected


def test_numbers_that_are_none_are_told_and_ignored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for value in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", value)
        assert number("OTEL_BSP_MAX_QUEUE_SIZE", 7) == 7
    assert caplog.text.count("is not a positive integer") == 4
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "250")
    assert milliseconds("OTEL_BSP_SCHEDULE_DELAY", 5000) == 0.25


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_endpoint_is_trusted_by_its_certificate_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, protocol: Protocol
) -> None:
    import trustme

    authority, stranger = trustme.CA(), trustme.CA()
    leaf = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    with OtlpReceiver(protocol, tls=(chain, key)) as receiver:
        for number, (trusted, expected) in enumerate([(stranger, False), (authority, True)]):
            ca = tmp_path / f"ca{number}.pem"
            ca.write_bytes(trusted.cert_pem.bytes())
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(ca))
            telemetry = start_telemetry("x", endpoint=receiver.endpoint, protocol=protocol, capture_logging=False)
            with telemetry.operation(RAG_QUERY):
                pass
            assert telemetry.force_flush(10.0 if expected else 0.5) is expected
            telemetry.shutdown(0.2)
            assert telemetry.exported["traces"] == int(expected)
        assert [span.name for span in receiver.spans] == ["rag.query"]


# --- the queue, with an exporter whose pace the test sets --------------------------------------------------------


class _Gate:
    """An exporter that takes a batch when the test opens it."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.batches: list[int] = []
        self.open = threading.Event()
        self.entered = threading.Event()

    def export(self, batch: Sequence[int]) -> bool:
        self.entered.set()
        if not self.open.wait(20):
            return False
        self.batches.append(len(batch))
        self.taken.extend(batch)
        return True


def test_a_full_queue_drops_what_comes_and_counts_it() -> None:
    gate = _Gate()
    queue: Queue[int] = Queue("traces", gate.export, gate.open.set, size=100, batch=10, interval=0.01)
    queue.put(0)
    assert gate.entered.wait(10)  # the first is in flight: the queue is empty
    for item in range(1, 151):
        queue.put(item)
    assert queue.dropped == 50
    gate.open.set()
    queue.ask()
    assert queue.wait(time.monotonic() + 10) is True
    assert gate.taken == list(range(101))
    assert max(gate.batches) == 10
    assert (queue.exported, queue.dropped) == (101, 50)
    queue.stop()
    queue.put(999)
    queue.close(time.monotonic() + 5)
    queue.close(time.monotonic() + 5)
    assert (queue.exported, queue.dropped) == (101, 51)
    queue.ask()
    assert queue.wait(time.monotonic() + 5) is False


def test_every_item_is_either_exported_or_dropped_under_threads() -> None:
    taken: list[int] = []

    def export(batch: Sequence[int]) -> bool:
        if len(taken) % 7 == 3:
            taken.append(-1)
            raise OSError("the exporter broke")
        taken.extend(batch)
        return True

    queue: Queue[int] = Queue("traces", export, lambda: None, size=500, batch=50, interval=0.001)

    def produce(start: int) -> None:
        for item in range(start, start + 2000):
            queue.put(item)

    threads = [threading.Thread(target=produce, args=(start * 2000,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.stop()
    queue.close(time.monotonic() + 10)
    arrived = [item for item in taken if item >= 0]
    assert len(set(arrived)) == len(arrived) == queue.exported
    assert queue.exported + queue.dropped == 8000


def test_what_is_in_flight_at_the_end_is_dropped_once_whatever_becomes_of_it() -> None:
    gate = _Gate()
    queue: Queue[int] = Queue("logs", gate.export, gate.open.set, size=100, batch=4, interval=0.01)
    for item in range(10):
        queue.put(item)
    assert gate.entered.wait(10)
    queue.stop()
    queue.close(time.monotonic() + 0.05)  # shutting the exporter opens the gate: the call in flight even succeeds
    time.sleep(0.1)
    assert (queue.exported, queue.dropped) == (0, 10)


def test_a_metrics_exporter_that_breaks_is_counted_and_asked_again() -> None:
    answers = iter([False, OSError("broke"), True])

    def export(reading: str) -> bool:
        answer = next(answers, True)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ticker = Ticker(lambda: ("reading", 5), export, lambda: None, interval=60.0)
    outcomes = []
    for _ in range(3):
        ticker.ask()
        outcomes.append(ticker.wait(time.monotonic() + 10))
    ticker.stop()
    ticker.close(time.monotonic() + 10)
    assert outcomes == [False, False, True]
    assert (ticker.dropped, ticker.exported) == (10, 10)


def test_drops_are_a_metric_of_the_catalogue() -> None:
    telemetry = start_telemetry("x", endpoint="http://127.0.0.1:1", protocol="grpc")
    telemetry._core.pipeline.workers[0].dropped = 3
    assert telemetry.recorder.total(TELEMETRY_DROPPED.name, signal="traces") == 3
    telemetry.shutdown(0.1)


def test_a_forked_child_exports_for_itself(receiver: OtlpReceiver) -> None:
    if receiver.protocol == "grpc":
        pytest.skip("gRPC itself does not survive a fork with open channels")
    code = f"""
import os
from kit.otel import start_telemetry
from kit.catalogue import RAG_QUERY, RAG_QUERY_PROCESS
t = start_telemetry("x", endpoint={receiver.endpoint!r}, protocol="http/protobuf")
with t.operation(RAG_QUERY): pass
pid = os.fork()
with t.operation(RAG_QUERY_PROCESS): pass
assert t.force_flush(5)
t.shutdown()
if pid: os.waitpid(pid, 0)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
    assert sorted(span.name for span in receiver.spans) == ["rag.query", *["rag.query.process"] * 2]


def test_other_libraries_join_in_when_the_global_providers_are_set(receiver: OtlpReceiver) -> None:
    code = f"""
from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger
from kit.otel import start_telemetry
from kit.catalogue import RAG_QUERY
t = start_telemetry("x", endpoint={receiver.endpoint!r}, protocol={receiver.protocol!r}, set_global=True)
with t.operation(RAG_QUERY):
    with trace.get_tracer("theirs").start_as_current_span("their.span"):
        get_logger("theirs").emit(body="their log")
metrics.get_meter("theirs").create_counter("their.counter").add(3)
print(t.recorder.trace())
t.shutdown(10)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=True, capture_output=True, text=True)
    assert done.stdout == "rag.query\n└─ their.span\n"
    ours, theirs = sorted(receiver.spans, key=lambda span: span.name)
    assert theirs.parent_span_id == ours.span_id
    assert receiver.metrics["their.counter"].sum.data_points[0].as_int == 3
    assert receiver.metrics["rag.queries.executed"].sum.data_points[0].as_int == 1
    (record,) = receiver.logs
    assert (record.body.string_value, record.span_id) == ("their log", theirs.span_id)


def test_what_other_libraries_record_goes_where_the_kits_goes(
    monkeypatch: pytest.MonkeyPatch, receiver: OtlpReceiver
) -> None:
    """As above, but the global providers are caught instead of set, since a process can set them only once."""
    caught: dict[str, Any] = {}
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda provider: caught.update(tracer=provider))
    monkeypatch.setattr("opentelemetry.metrics.set_meter_provider", lambda provider: caught.update(meter=provider))
    monkeypatch.setattr("kit.otel.foreign.set_logger_provider", lambda provider: caught.update(logger=provider))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    telemetry = start_telemetry("x", endpoint=receiver.endpoint, protocol=receiver.protocol, set_global=True)
    with telemetry.operation(RAG_QUERY), caught["tracer"].get_tracer("theirs").start_as_current_span("their.span"):
        caught["logger"].get_logger("theirs").emit(body="their log")
    counter = caught["meter"].get_meter("theirs").create_counter("their.counter")
    counts = []
    for _ in range(2):
        counter.add(3)
        assert telemetry.force_flush()
        assert caught["logger"].force_flush()
        counts.append(receiver.metrics["their.counter"].sum.data_points[0].as_int)
    assert counts == [3, 3]
    assert str(telemetry.recorder.trace()) == "rag.query\n└─ their.span"
    assert telemetry.recorder.logs()["body"].tolist() == ["their log"]
    for provider in caught.values():
        provider.shutdown()
    telemetry.shutdown()
