"""``kit worker`` as processes of their own: one trace through all of them, and SIGTERM finishes what was begun."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from misbehaving_provider import ANSWER, MisbehavingProvider
from otlp_receiver import OtlpReceiver, attributes
from samples import eventually
from worker_processes import Workers, access

from kit.catalogue import (
    API_QUERY_PROCESS,
    GATEWAY_GENERATE,
    GATEWAY_PROVIDER_CALL,
    GATEWAY_WORKER_PROCESS,
    RAG_DOCUMENT_INGEST,
    RAG_DOCUMENT_PROCESS,
    RAG_QUERY,
    RAG_QUERY_PROCESS,
    USE_CASE_DOCUMENT_QA,
)
from kit.components import document_qa, gateway, rag
from kit.nats import Bus, connect
from kit.nats.server import Server
from kit.otel import start_telemetry

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    {"document_id": "copy", "content": "The shutil module contains a copyfile() function. It copies files."},
    {"document_id": "refund", "title": "Refunds", "content": "Refunds are given within 14 days of purchase."},
]


@dataclass
class Seen:
    """What a run over several processes left behind.

    Attributes:
        spans: of the OTLP receiver, each with its process's service name and id.
        pids: of the workers, by component.
        ends: exit code and output of each worker, by component.
        answer: of Document Q&A.
        under_way: the response to what the gateway was working on when it was told to end.
        calls: how many times that was asked of the provider.
    """

    spans: list[dict[str, Any]] = field(default_factory=list)
    pids: dict[str, int] = field(default_factory=dict)
    ends: dict[str, tuple[int, str]] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    under_way: dict[str, Any] = field(default_factory=dict)
    calls: int = 0

    def named(self, name: str, trace_id: str) -> dict[str, Any]:
        """Return the span of that name in a trace."""
        (found,) = (span for span in self.spans if (span["name"], span["trace_id"]) == (name, trace_id))
        return found


@contextmanager
def _workers(server: Server, endpoint: str, folder: Path) -> Iterator[Workers]:
    environment = access(server, folder) | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }  # fmt: skip
    workers = Workers(environment, folder)
    try:
        yield workers
    finally:
        workers.kill()


def _received(receiver: OtlpReceiver) -> list[dict[str, Any]]:
    """Every span that was taken, with the process that it came from."""
    found = []
    for path, request, _ in list(receiver.requests):
        if path == "/v1/traces":
            for resource in request.resource_spans:
                service = attributes(resource.resource.attributes)["service.name"]
                found += [
                    {
                        "name": span.name, "service": service, "trace_id": span.trace_id.hex(),
                        "span_id": span.span_id.hex(), "parent_id": span.parent_span_id.hex(),
                    }
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]  # fmt: skip
    return found


async def _ask(bus: Bus, workers: Workers, provider: MisbehavingProvider, seen: Seen) -> None:
    """Ingest, ask, and end the gateway in the middle of a request."""
    ingestion = await rag.ingest_documents(bus, DOCUMENTS)
    assert ingestion.count("indexed") == len(DOCUMENTS), ingestion.failures
    seen.answer = await document_qa.ask(bus, "How are refunds given?")
    asking = asyncio.create_task(gateway.generate(bus, prompt="Anything", model="slow"))
    await eventually(lambda: provider.active, 20.0)
    workers.tell_to_end("gateway")
    seen.under_way = await asking
    seen.calls = provider.calls["slow-1.0"]
    for name in ("rag", "document_qa"):
        workers.tell_to_end(name)
    for name in workers.processes:
        seen.ends[name] = await workers.end(name)


async def _scenario(server: Server, folder: Path) -> Seen:
    seen = Seen()
    with OtlpReceiver("http/protobuf") as receiver, _workers(server, receiver.endpoint, folder) as workers:
        telemetry = start_telemetry("caller", endpoint=receiver.endpoint, protocol="http/protobuf")
        async with MisbehavingProvider() as provider:
            workers.start("gateway", f"models={ {'slow': provider.deployment('slow-1.0')} }")
            workers.start("rag")
            workers.start("document_qa")
            seen.pids = {name: process.pid for name, process in workers.processes.items()}
            await workers.ready()
            who = server.credentials("acme")
            async with (
                await connect(server.url, tenant_id="acme", user=who.user, password=who.password) as connection,
                Bus(connection, "acme", telemetry) as bus,
            ):
                await _ask(bus, workers, provider, seen)
        await asyncio.to_thread(telemetry.shutdown, 3.0)
        seen.spans = _received(receiver)
    return seen


@pytest.fixture(scope="module")
def seen(server: Server) -> Iterator[Seen]:
    """One run of three workers and a caller, each in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        yield asyncio.run(_scenario(server, Path(folder)))


@pytest.fixture(scope="module")
def elsewhere(server: Server) -> Iterator[Path]:
    """The report of two notebooks, run with their components in a process that is not theirs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = access(server, folder)
        workers = Workers(environment, folder)
        try:
            workers.start("gateway", beside=("rag", "document_qa", "llmops", "prompts", "agents"))
            asyncio.run(workers.ready())
            subprocess.run(
                [
                    sys.executable, "-m", "kit", "report", "--only", "00_tour", "--only", "21_document_qa",
                     "--no-check", "-p", "elsewhere=true",
                     "--output", str(folder / "report"),
                ],
                env={**os.environ, **environment}, cwd=ROOT, timeout=240.0, check=True,
            )  # fmt: skip
        finally:
            workers.kill()
        yield folder / "report"


def test_one_trace_goes_through_all_processes(seen: Seen) -> None:
    assert seen.answer["answer"] == "Refunds are given within 14 days of purchase. [1]"
    assert len({os.getpid(), *seen.pids.values()}) == 4
    (asked,) = (span for span in seen.spans if span["name"] == USE_CASE_DOCUMENT_QA.name)
    path = [
        (USE_CASE_DOCUMENT_QA, "caller"),
        (API_QUERY_PROCESS, "kit-document_qa"),
        (RAG_QUERY, "kit-document_qa"),
        (RAG_QUERY_PROCESS, "kit-rag"),
        (GATEWAY_GENERATE, "kit-rag"),
        (GATEWAY_WORKER_PROCESS, "kit-gateway"),
        (GATEWAY_PROVIDER_CALL, "kit-gateway"),
    ]
    by_id = {span["span_id"]: span for span in seen.spans}
    for row, service in path:
        assert seen.named(row.name, asked["trace_id"])["service"] == service
    names, span = [], seen.named(GATEWAY_PROVIDER_CALL.name, asked["trace_id"])
    while span is not None:
        names.append(span["name"])
        span = by_id.get(span["parent_id"])
    ordered = [name for name in reversed(names) if name in {row.name for row, _ in path}]
    assert ordered == [row.name for row, _ in path]


def test_a_job_is_in_the_trace_of_who_enqueued_it(seen: Seen) -> None:
    enqueued = [span for span in seen.spans if span["name"] == RAG_DOCUMENT_INGEST.name]
    assert [span["service"] for span in enqueued] == ["caller"] * len(DOCUMENTS)
    for sent in enqueued:
        handled = seen.named(RAG_DOCUMENT_PROCESS.name, sent["trace_id"])
        assert (handled["service"], handled["parent_id"]) == ("kit-rag", sent["span_id"])


def test_what_was_begun_is_finished_after_sigterm(seen: Seen) -> None:
    assert seen.under_way["response"] == ANSWER
    assert seen.calls == 1


@pytest.mark.parametrize("name", ["gateway", "rag", "document_qa"])
def test_a_worker_ends_in_order_after_sigterm(seen: Seen, name: str) -> None:
    code, said = seen.ends[name]
    assert code == 0, said
    assert said.endswith("stopped\n")
    assert "Traceback" not in said


def _shown(report: Path, notebook: str) -> str:
    """What the cells of a notebook have put out."""
    assert json.loads((report / f"{notebook}.json").read_text())["good"]
    cells = json.loads((report / "executed" / f"{notebook}.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "\n".join("".join(one.get("text") or one["data"].get("text/plain", ())) for one in outputs)


def test_a_notebook_works_against_workers_elsewhere(elsewhere: Path) -> None:
    shown = _shown(elsewhere, "00_tour")
    assert "served elsewhere, with its spans and metrics: kit worker gateway rag document_qa --tenant acme" in shown
    assert "The shutil module contains a copyfile() function. [1]" in shown
    assert "rag.query.process" not in shown  # that span is the worker's


def test_an_agent_elsewhere_orchestrates_all_components(elsewhere: Path) -> None:
    shown = _shown(elsewhere, "21_document_qa")
    assert "kit worker prompts agents --tenant acme" in shown
    steps = [
        "AGENT_TASKS", "agent.memory.retrieve", "RAG_QUERIES", "PROMPT_CONTEXT", "GATEWAY_REQUESTS", "AGENT_MEMORY",
    ]  # fmt: skip
    table = re.findall(r"^\d +(\S+) +success +(.*)$", shown, re.MULTILINE)
    assert [name for name, _ in table] == steps
    assert dict(table)["PROMPT_CONTEXT"] == "document_qa@1, 5 passages"
    assert "(True, 'worker', 1)" in shown  # its citations hold, the agent's name, what it remembers now
    assert "(set(), True)" in shown  # one trace
    assert shown.count("Use os.remove(filename) or os.unlink(filename)") >= 2  # asked directly, and through the agent
    assert "kit/static-256" in shown  # LLMOps has logged what the gateway did
