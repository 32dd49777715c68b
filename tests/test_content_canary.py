"""What people write, and keys, are on no span, log, metric, dead letter's evidence or error, unless that is asked for.

Canaries, words that nothing else contains, go through all that can be asked, also where it fails; then everything that
is kept or told is searched for them.

Names are no content: what a message calls its data, model, column or document is how its sender finds them, so errors
and spans may tell it. What MLOps is given, and what it may tell, is searched in test_mlops.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from canaries import KEY, NAME, QUESTION, SENTENCE, Kept, log_lines
from misbehaving_provider import MisbehavingProvider
from samples import sample

from kit import codec
from kit.catalogue import (
    AGENT_LLM_CALL,
    AGENT_TASKS,
    AGENT_TOOLS,
    GATEWAY_RATE_LIMIT,
    GATEWAY_REQUESTS,
    LLMOPS_COST_ALERT_PUBLISH,
    LLMOPS_OPERATION_LOG,
    LLMOPS_OPERATIONS,
    LLMOPS_OPERATIONS_LOGGED,
    MLOPS_PREDICTION,
    MLOPS_TRAINING,
    PROMPT_CONTEXT_BUILD,
    RAG_QUERIES,
    RAG_QUERY,
)
from kit.components import Service, agents, document_qa, gateway, llmops, prompts, rag
from kit.components.agents import Agent
from kit.nats import Bus, Message, connect
from kit.nats.server import Server
from kit.otel import start_telemetry

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
FAILING = ("fail-401", "fail-500", "fail-400", "malformed", "cut")


class Echoing(MisbehavingProvider):
    """A provider whose errors quote what it was asked, and with which key."""

    async def _error(self, writer: asyncio.StreamWriter, status: int, headers: str = "") -> bool:
        said = f"Incorrect API key provided: {KEY}; you asked: {json.dumps(self.bodies[-1])}"
        body = json.dumps({"error": {"message": said, "type": "misbehaviour", "code": status}}).encode()
        await self._send(writer, status, body, headers=headers)
        return True

    async def _embed(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        return await self._error(writer, 401)


def count(counts: dict[str, int]) -> int:
    """A tool whose arguments have keys that its schema does not name."""
    return len(counts)


def leak(text: str) -> str:
    """A tool that quotes its arguments as it fails."""
    raise ValueError(f"cannot do {text!r}, nor {text.upper()}")


@pytest.fixture(scope="module", autouse=True)
def _hurry() -> Iterator[None]:
    """Retry as often as ever, but soon."""
    rows = (AGENT_TOOLS, GATEWAY_REQUESTS, MLOPS_TRAINING)
    policies = [row.policy for row in rows]
    for row in rows:
        object.__setattr__(row, "policy", replace(row.policy, backoff=(0.05,)))
    yield
    for row, policy in zip(rows, policies, strict=True):
        object.__setattr__(row, "policy", policy)


async def _answered(bus: Bus, kept: Kept) -> None:
    """What works: ingestion, questions to documents and to an agent, prompts."""
    document = {"document_id": "doc", "title": "Quagga7531", "content": SENTENCE, "metadata": {"where": "Zyzzyvaville"}}
    await rag.ingest_documents(bus, [document])
    assert "Zyzzyvaville" in (await document_qa.ask(bus, QUESTION))["answer"]
    await rag.query(bus, QUESTION, filters=rag.field("where") == "Zyzzyvaville")
    await gateway.generate(bus, prompt=f"[1] x\n{SENTENCE}\n\nQuestion: {QUESTION}")
    assert [piece async for piece in gateway.stream(bus, prompt=f"[1] x\n{SENTENCE}\n\nQuestion: {QUESTION}")]
    await gateway.embed(bus, [SENTENCE])
    async with prompts.PromptStore(bus) as store:
        await store.create("t", f"{SENTENCE} {{{{ name }}}}", {"name": str}, label="production")
        await store.render("t", {"name": "Quagga7531"})
        with kept.failing():
            await store.render("t", {"name": 7})
        with kept.failing():  # the agent finds no template
            await document_qa.ask(bus, QUESTION, mode="agent", user_id="ada", session_id="s")
        await store.create(
            document_qa.TEMPLATE_ID, document_qa.TEMPLATE, document_qa.VARIABLES, label=prompts.PRODUCTION
        )
        for _ in range(2):  # the second time it remembers the first
            answer = await document_qa.ask(bus, QUESTION, mode="agent", user_id="ada", session_id="s")
            assert "Zyzzyvaville" in answer["answer"]
            await asyncio.sleep(0.2)
    await prompts.request_context(bus, [SENTENCE], query=QUESTION, token_budget=50)


async def _agents(bus: Bus, folder: Path, kept: Kept) -> None:
    async with Agent(bus, "ada", uri=folder) as ada, Agent(bus, "bob", uri=folder) as bob:

        @bob.on_message
        async def reply(message: Any) -> str:
            if "fail" in message.content:
                raise RuntimeError(f"no answer to {message.content}")
            return SENTENCE

        await ada.run(SENTENCE, session_id="s")
        await ada.remember(SENTENCE)
        await ada.recall(QUESTION)
        await ada.ask("bob", QUESTION)
        with kept.failing():
            await ada.ask("bob", f"fail {SENTENCE}", timeout=1.0)
        with kept.failing():
            await ada.call_tool("leak", text=SENTENCE)
        with kept.failing():
            await ada.call_tool("calculate", expression=SENTENCE)
        with kept.failing():
            await ada.call_tool("calculate", **{"Quagga7531": SENTENCE})
        with kept.failing():
            await ada.call_tool("count", counts={"Quagga7531": SENTENCE})


async def _logged(bus: Bus, kept: Kept) -> None:
    """What LLMOps is told, takes and refuses."""
    operation = sample(
        "llm_operation", tenant_id=bus.tenant_id, cost=5.0, currency="USD", timestamp=codec.now(),
        metadata={"Quagga7531": SENTENCE},
    )  # fmt: skip
    await bus.publish(LLMOPS_OPERATIONS, operation | {"operation_id": "one"})
    stranger = {"operation_id": NAME, "timestamp": "2026-06-30T23:59:60Z", "metadata": {"said": SENTENCE}}
    await bus.publish(LLMOPS_OPERATIONS, operation | stranger)
    for _ in range(200):
        if bus.telemetry.recorder.total(LLMOPS_OPERATIONS_LOGGED.name, error_type="OperationRefused"):
            break
        await asyncio.sleep(0.05)
    assert (await llmops.report(bus, ["model"])).totals["cost"] >= 5.0
    with kept.failing():
        await llmops.report(bus, [SENTENCE])
    with kept.failing():
        await llmops.report(bus, ["model"], percentiles=[SENTENCE])


def _quoting(bus: Bus) -> Callable[[Message], Any]:
    async def quote(message: Message) -> dict[str, Any]:
        """Quotes what it was given, on a span of its own, and misses the mark."""
        with bus.telemetry.operation(MLOPS_PREDICTION):
            raise NotAJob(f"cannot train on {message.data['training_data']}: {message.data}")

    return quote


async def _failed(bus: Bus, watcher: Any, kept: Kept) -> None:
    """What fails: providers, contracts, handlers."""

    async def ask(model: str) -> None:
        with kept.failing(gateway.GatewayError):
            await gateway.generate(bus, prompt=SENTENCE, model=model, cache=False, timeout=20.0)

    await asyncio.gather(*(ask(model) for model in FAILING))
    schema = {"type": "object", "required": ["Zebra"]}
    with kept.failing(gateway.GatewayError):
        await gateway.generate(
            bus, prompt=SENTENCE, model="echo", validation={"level": "json_schema", "schema": schema}
        )
    with kept.failing():
        await gateway.embed(bus, [SENTENCE], model="fail-401")
    with kept.failing():
        await bus.publish(GATEWAY_RATE_LIMIT, {"Quagga7531": SENTENCE})
    with kept.failing():
        await rag.query(bus, QUESTION, mode="Quagga7531")
    with kept.failing():
        await bus.enqueue(AGENT_TASKS, sample("agent_task", task_type=[SENTENCE]))
    raw = {"schema_version": "1.0", "message_type": "rag_query", "data": {"query": 1, "Quagga7531": SENTENCE}}
    told = await watcher.request(RAG_QUERIES.subject(bus.tenant_id), codec.dumps(raw), timeout=5.0)
    kept.texts["answer to a broken request"] = told.data.decode()
    broken = {**raw, "message_type": "agent_task", "data": {"task_id": [SENTENCE], "parameters": SENTENCE}}
    await watcher.client.jetstream().publish(AGENT_TASKS.subject(bus.tenant_id), codec.dumps(broken))
    async with await bus.work(MLOPS_TRAINING, _quoting(bus)):
        job = await bus.enqueue(MLOPS_TRAINING, sample("ml_training_job", training_data=SENTENCE))
        with kept.failing():
            await job.result(timeout=20.0)


async def _letters(bus: Bus) -> list[Any]:
    """What died: a letter is told of and kept a moment after its job has failed."""
    for _ in range(200):
        rows = (AGENT_TASKS, AGENT_TOOLS, GATEWAY_REQUESTS, LLMOPS_OPERATIONS, MLOPS_TRAINING)
        letters = [letter for row in rows for letter in await bus.dead_letters(row)]
        if set(rows) <= {letter.operation for letter in letters}:
            return letters
        await asyncio.sleep(0.05)
    raise AssertionError(f"not all that died are kept: {letters}")


async def _scenario(server: Server, folder: Path, tenant_id: str, *, failures: bool) -> Kept:
    kept, who = Kept(), server.credentials(tenant_id)
    telemetry = start_telemetry("canary", log_level="DEBUG")
    access: dict[str, Any] = {"tenant_id": tenant_id, "user": who.user, "password": who.password}
    with log_lines() as lines:
        async with (
            Echoing() as provider,
            await connect(server.url, **access) as watcher,
            await connect(server.url, **access) as connection,
            Bus(connection, tenant_id, telemetry) as bus,
        ):
            services = await _served(bus, provider, folder)
            await _answered(bus, kept)
            if failures:
                await _agents(bus, folder / "agents", kept)
                await _logged(bus, kept)
                await _failed(bus, watcher, kept)
                kept.letters = await _letters(bus)
            for service in services:
                await service.stop()
        kept.gather(telemetry, lines)
    await asyncio.to_thread(telemetry.shutdown, 3.0)
    return kept


async def _served(bus: Bus, provider: Echoing, folder: Path) -> list[Service]:
    models = {name: {**provider.deployment(name), "api_key": KEY} for name in FAILING}
    models["echo"] = {**provider.deployment(f'json-{{"Zyzzyvaville": "{SENTENCE}"}}'), "api_key": KEY}
    return [
        await gateway.serve(bus, models=models, retries=0), await rag.serve(bus, uri=folder / "rag"),
        await prompts.serve(bus), await document_qa.serve(bus),
        await llmops.serve(bus, uri=folder / "llmops", thresholds=1.0),
        await agents.serve(bus, uri=folder / "agents", tools=[leak, count, agents.toolbox.calculate]),
    ]  # fmt: skip


class NotAJob(Exception):
    """What a handler raises that does not care what it says."""

    retryable = False


@pytest.fixture(scope="module")
def run(server: Server) -> Iterator[Callable[[str, bool], Kept]]:
    """Run the scenario for a tenant; with failures, or only what works."""
    with tempfile.TemporaryDirectory() as folder:
        yield lambda tenant_id, failures: asyncio.run(
            _scenario(server, Path(folder) / tenant_id, tenant_id, failures=failures)
        )


@pytest.fixture(scope="module")
def kept(run: Callable[[str, bool], Kept]) -> Kept:
    """What is kept and told when nobody asks for content."""
    assert CAPTURE not in os.environ
    return run("acme", True)


@pytest.mark.parametrize(
    "where", ["spans", "metrics", "logs", "log lines", "errors", "dead letters", "answer to a broken request"]
)
def test_no_content_is_in(kept: Kept, where: str) -> None:
    kept.assert_no_content(where)


def test_everything_that_should_fail_has_failed(kept: Kept) -> None:
    assert len(kept.errors) > 16


def test_everything_was_observed(kept: Kept) -> None:
    """A span that is not there holds no content: every component has left its own."""
    served = (RAG_QUERY, AGENT_LLM_CALL, PROMPT_CONTEXT_BUILD, LLMOPS_OPERATION_LOG, LLMOPS_COST_ALERT_PUBLISH)
    assert {span.name for span in served} <= kept.spans
    assert NAME in kept.texts["spans"]


def test_the_payload_of_a_dead_letter_is_kept_unchanged(kept: Kept) -> None:
    (training,) = (letter for letter in kept.letters if letter.error_type == NotAJob.__name__)
    assert training.data is not None
    assert training.data["training_data"] == SENTENCE


def test_content_is_on_spans_when_it_is_asked_for(
    run: Callable[[str, bool], Kept], kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CAPTURE, "true")
    spans = run("globex", False).texts["spans"]
    assert "Quagga7531" in spans
    assert "Zyzzyvaville" in spans
    assert "Wombat9042" not in spans  # a key is no message content: nobody can ask for it
