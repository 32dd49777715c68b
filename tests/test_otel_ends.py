"""A dead, mute, hanging or refusing endpoint costs neither latency nor exit time, and what it costs is counted.

Each way of failing is met by a real process of its own, and its end is timed from outside.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from otlp_receiver import Mute, OtlpReceiver, dead_endpoint

from kit.catalogue import RAG_QUERY
from kit.otel import start_telemetry

SPANS = 700
PROTOCOLS = ("grpc", "http/protobuf")

CHILD = """
import json, sys, time
from kit.otel import start_telemetry
from kit.catalogue import RAG_QUERY
endpoint, protocol, end = sys.argv[1:]
telemetry = start_telemetry("x", endpoint=endpoint, protocol=protocol)
log = telemetry.logger("x")
longest = 0.0
began = time.perf_counter()
for number in range(700):
    with telemetry.operation(RAG_QUERY):
        log.info("y")
told = {"work": time.perf_counter() - began}
began = time.perf_counter()
told["flushed"] = telemetry.force_flush(0.3)
told["flush"] = time.perf_counter() - began
if end == "shutdown":
    began = time.perf_counter()
    telemetry.shutdown(0.4)
    told["shutdown"] = time.perf_counter() - began
    told["dropped"], told["exported"] = telemetry.dropped, telemetry.exported
    told["metric"] = {s: telemetry.recorder.total("kit.telemetry.dropped", signal=s) for s in telemetry.dropped}
print(json.dumps(told), flush=True)
"""

CASES = [
    *((failure, protocol, "shutdown") for failure in ("dead", "mute", "hang", "refuse") for protocol in PROTOCOLS),
    ("dead", "grpc", "exit"),
    ("mute", "http/protobuf", "exit"),
    ("hang", "grpc", "exit"),
    ("refuse", "http/protobuf", "exit"),
]


def _endpoint(stack: ExitStack, failure: str, protocol: Any) -> str:
    if failure == "dead":
        return dead_endpoint()
    if failure == "mute":
        return stack.enter_context(Mute()).endpoint
    return stack.enter_context(OtlpReceiver(protocol, failure)).endpoint  # type: ignore[arg-type]


def _run(failure: str, protocol: str, end: str) -> dict[str, Any]:
    with ExitStack() as stack:
        command = [sys.executable, "-c", CHILD, _endpoint(stack, failure, protocol), protocol, end]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout is not None
        told: dict[str, Any] = json.loads(child.stdout.readline())
        ended = time.perf_counter()
        _, told["stderr"] = child.communicate(timeout=30)
        told["exit"] = time.perf_counter() - ended
        assert child.returncode == 0
        return told


def _late(told: dict[str, Any]) -> list[str]:
    """What took longer than it may."""
    limits = {"work": 1.0, "flush": 0.3 + 0.2, "shutdown": 0.4 + 0.2, "exit": 1.0 if "shutdown" in told else 3.0}
    return [f"{name}: {told[name]:.2f} s" for name, limit in limits.items() if told.get(name, 0.0) > limit]


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, ...], dict[str, Any]]:
    """All cases, three at a time; one that was late is run again alone, since the machine may be busy."""
    with ThreadPoolExecutor(3) as pool:
        told = dict(zip(CASES, pool.map(lambda case: _run(*case), CASES), strict=True))
    return {case: _run(*case) if _late(outcome) else outcome for case, outcome in told.items()}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_no_end_waits_longer_than_it_may(
    case: tuple[str, ...], outcomes: dict[tuple[str, ...], dict[str, Any]]
) -> None:
    told = outcomes[case]
    assert _late(told) == []  # 700 operations that waited for the endpoint would take seconds
    assert told["flushed"] is False
    assert f"no endpoint took {SPANS} traces" in told["stderr"]
    if "shutdown" in case:
        assert told["dropped"]["traces"] == told["dropped"]["logs"] == SPANS
        assert told["dropped"]["metrics"] >= 2
        assert told["exported"] == {"traces": 0, "metrics": 0, "logs": 0}
        assert told["metric"] == told["dropped"]


def test_two_telemetries_end_within_the_time_of_one() -> None:
    code = """
import sys, time
from kit.otel import start_telemetry
from kit.catalogue import RAG_QUERY
for endpoint in sys.argv[1:]:
    with start_telemetry("x", endpoint=endpoint, protocol="http/protobuf").operation(RAG_QUERY): pass
print(flush=True)
"""
    with Mute() as first, Mute() as second:
        child = subprocess.Popen([sys.executable, "-c", code, first.endpoint, second.endpoint], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        ended = time.perf_counter()
        assert child.wait(30) == 0
        assert time.perf_counter() - ended <= 3.0


def test_an_endpoint_that_comes_back_gets_what_was_kept_for_it() -> None:
    with OtlpReceiver("http/protobuf", "refuse") as receiver:
        telemetry = start_telemetry("x", endpoint=receiver.endpoint, protocol="http/protobuf", capture_logging=False)
        with telemetry.operation(RAG_QUERY):
            pass
        assert telemetry.force_flush(0.2) is False
        receiver.behaviour = "accept"
        assert telemetry.force_flush(10.0) is True
        telemetry.shutdown()
        assert telemetry.dropped == {"traces": 0, "metrics": 0, "logs": 0}
        assert [span.name for span in receiver.spans] == ["rag.query"]
