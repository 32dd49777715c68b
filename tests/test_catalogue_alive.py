"""No row of the catalogue is dead: each subject carries its messages, each span and metric is emitted, by components.

One scenario goes over all components on a real server, while a client that knows nothing of the kit listens to
everything in the tenant's account; then every row is looked up in what was seen.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from misbehaving_provider import MisbehavingProvider
from otlp_receiver import dead_endpoint
from samples import sample

from kit import codec
from kit.catalogue import (
    AGENT_TASKS,
    ERROR,
    GATEWAY_REQUESTS,
    LLM_CHUNK,
    MESSAGE_TYPES,
    METRICS,
    OPERATIONS,
    RAG_QUERIES,
    SPANS,
    Metric,
    Mode,
    Operation,
    Span,
)
from kit.components import agents, document_qa, gateway, llmops, mlops, prompts, rag
from kit.components.agents import Agent, AgentManager
from kit.components.mlops import Registry
from kit.errors import CodecError
from kit.nats import Bus, Message, connect
from kit.nats.ids import REPLY
from kit.nats.server import Server
from kit.otel import start_telemetry

QUESTION = "How are refunds given?"
DOCUMENTS = [{"document_id": "refund", "title": "Refunds", "content": "Refunds are given within 14 days of purchase."}]
LONG = "\n\n".join(f"Paragraph {n} tells of thing number {n * 3}. " + "It has words. " * 120 for n in range(40))


@dataclass
class Seen:
    """What was seen of a run over all components.

    Attributes:
        wire: message types by subject, of every message that decodes.
        inboxes: where the answers to the messages of a subject were to go.
        types: every message type that was on the wire.
        spans: names of the spans; metrics: of the metrics with something in them.
    """

    wire: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    inboxes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    types: set[str] = field(default_factory=set)
    spans: set[str] = field(default_factory=set)
    metrics: set[str] = field(default_factory=set)
    tenant_id: str = "acme"

    def take(self, message: Any) -> None:
        """Note what a message is, if the codec can say so."""
        with suppress(CodecError):
            message_type = codec.decode(message.data).message_type
            self.wire[message.subject].add(message_type)
            self.types.add(message_type)
            inbox = (message.headers or {}).get(REPLY) or message.reply
            self.inboxes[message.subject].add(inbox)

    def carried(self, row: Operation) -> set[str]:
        """Return the message types that were on the subject of a row, whatever its last token is."""
        return {message_type for at in self._subjects(row) for message_type in self.wire[at]}

    def answered(self, row: Operation) -> set[str]:
        """Return the message types that came to where the answers of a row go."""
        inboxes = {inbox for at in self._subjects(row) for inbox in self.inboxes[at]}
        return {message_type for inbox in inboxes for message_type in self.wire.get(inbox, ())}

    def _subjects(self, row: Operation) -> list[str]:
        subject = row.subject(self.tenant_id)
        return [at for at in list(self.wire) if at == subject or at.startswith(f"{subject}.")]


async def _watch(bus: Bus) -> None:
    """Listen to all events that somebody may watch."""

    async def hear(message: Message) -> None:
        assert message.data

    for row in OPERATIONS:
        if row.mode is Mode.EVENT:
            await bus.subscribe(row, hear)


async def _gateway(bus: Bus) -> None:
    context = f"[1] Refunds\n{DOCUMENTS[0]['content']}\n\nQuestion: {QUESTION}"
    await gateway.generate(bus, prompt=context)
    await gateway.generate(bus, prompt=context)
    assert await gateway.invalidate(bus) > 0
    assert [piece async for piece in gateway.stream(bus, prompt=context)]
    await gateway.embed(bus, ["one", "two"])
    await gateway.embed_bulk(bus, ["three"])
    await gateway.generate(bus, prompt="1", model="limited", cache=False)
    with pytest.raises(gateway.RateLimited):
        await gateway.generate(bus, prompt="2", model="limited", cache=False)
    await gateway.generate(bus, prompt="3", model="priced", cache=False, max_tokens=10)
    with pytest.raises(gateway.BudgetExceeded):
        await gateway.generate(bus, prompt="4", model="dear", cache=False, max_tokens=10)
    with pytest.raises(gateway.ProviderFailed):
        await gateway.generate(bus, prompt="5", model="broken", cache=False, timeout=10.0)


async def _documents(bus: Bus) -> None:
    await rag.ingest_documents(bus, [*DOCUMENTS, {"document_id": "long", "content": LONG}], timeout=60.0)
    assert (await rag.query(bus, QUESTION))["supported"]
    assert (await document_qa.ask(bus, QUESTION))["supported"]


async def _llmops(bus: Bus) -> None:
    await llmops.report(bus, ["model"])


async def _mlops(bus: Bus, registry: Registry) -> None:
    job = await mlops.submit(bus, "logistic_regression", "iris", model_name="iris", promote="always")
    assert (await job.result(timeout=60.0)).data["champion"]
    rows = [dict.fromkeys(("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"), 1.0)]
    await mlops.predict(bus, "iris", rows, timeout=30.0)
    await mlops.promote(bus, "iris", "1", registry=registry)


async def _prompts(bus: Bus) -> None:
    async with prompts.PromptStore(bus) as store:
        await store.create("hello", "Hello {{ name }}!", {"name": str}, label="production")
        await store.render("hello", {"name": "Ada"})
        await prompts.request_context(bus, ["One.", "Two."], token_budget=50)


async def _agents(bus: Bus, folder: Path) -> None:
    async with Agent(bus, "ada", tools=["calculate"], uri=folder) as ada, Agent(bus, "bob", uri=folder) as bob:

        @bob.on_message
        async def reply(message: Any) -> str:
            return "Well."

        await ada.run("What is 19 * 23?", session_id="s")
        await ada.call_tool("calculate", expression="19 * 23")
        await ada.remember("Ada prefers short answers.", "preference")
        await ada.recall("short answers")
        await ada.ask("bob", "How are you?")
        async with AgentManager(bus) as manager:
            await (await manager.submit_task("What is 2 * 3?")).result(timeout=30.0)


async def _failures(bus: Bus, watcher: Any) -> None:
    """A job done twice, one tried again, a dead letter too much, a message that breaks its contract, a broken line."""
    broken = codec.dumps({"schema_version": "1.0", "message_type": "rag_query", "data": {}})
    await watcher.request(RAG_QUERIES.subject(bus.tenant_id), broken, timeout=5.0)
    stream = watcher.client.jetstream()
    config = (await stream.stream_info(GATEWAY_REQUESTS.stream or "")).config
    config.duplicate_window = 0.1  # s; the server forgets ids after that, the kit's memory of results does not
    await stream.update_stream(config)
    for _ in range(2):
        asked = {"request_id": "again", "prompt": "x", "model": "kit/extractive", "tenant_id": bus.tenant_id}
        await bus.run(GATEWAY_REQUESTS, asked | {"timestamp": codec.now()}, message_id="again", timeout=10.0)
        await asyncio.sleep(0.3)
    async with await bus.work(AGENT_TASKS, _fail_once, receivers=["lame"]):
        await bus.run(AGENT_TASKS, sample("agent_task"), to="lame", timeout=10.0)
    config = (await stream.stream_info("KIT_DEAD")).config
    config.max_bytes = 100_000  # less than is left free for the next dead letter
    await stream.update_stream(config)
    await bus.dead_letters(GATEWAY_REQUESTS)
    bus.connection.client.abort()
    await bus.connection.wait_disconnected(5.0)
    await bus.connection.wait_connected(5.0)


async def _fail_once(message: Message) -> dict[str, Any]:
    if message.attempt == 1:
        raise RuntimeError("not yet")
    return sample("agent_result")


async def _scenario(server: Server, folder: Path) -> Seen:
    seen, who = Seen(), server.credentials("acme")
    telemetry = start_telemetry("alive", endpoint=dead_endpoint(), protocol="http/protobuf")
    registry = Registry("acme", folder / "mlflow")
    access = {"tenant_id": "acme", "user": who.user, "password": who.password}
    async with (
        MisbehavingProvider() as provider,
        await connect(server.url, **access) as watcher,
        await connect(server.url, **access) as connection,
        Bus(connection, "acme", telemetry) as bus,
    ):

        async def note(message: Any) -> None:
            seen.take(message)

        await watcher.subscribe(">", note)
        prices = {"input_cost_per_token": 0.01, "output_cost_per_token": 0.01}
        free = dict.fromkeys(prices, 0.0)
        models = {
            "limited": provider.deployment("ok", **free), "priced": provider.deployment("ok", **prices),
            "dear": provider.deployment("ok", input_cost_per_token=1.0, output_cost_per_token=1.0),
            "broken": provider.deployment("fail-500", **free),
        }  # fmt: skip
        services = [
            await gateway.serve(
                bus, models=models, budget=gateway.Budget(limit=1.0, near=0.01), retries=0, health_interval=0.1,
                rate_limits={"limited": gateway.RateLimit(requests=1)},
            ),
            await rag.serve(bus, uri=folder / "rag"),
            await llmops.serve(bus, uri=folder / "llmops", thresholds=[0.01]),
            await prompts.serve(bus),
            await document_qa.serve(bus),
            await mlops.serve(bus, model_store=folder / "mlflow"),
            await agents.serve(bus, uri=folder / "agents", interval=0.5),
        ]  # fmt: skip
        await _watch(bus)
        told = await asyncio.gather(
            _gateway(bus), _documents(bus), _mlops(bus, registry), _prompts(bus), _agents(bus, folder / "agents"),
            return_exceptions=True,
        )  # fmt: skip
        await _llmops(bus)
        await _failures(bus, watcher)
        await asyncio.sleep(1.0)
        for service in services:
            await service.stop()
        await watcher.flush()
    for fault in told:
        if isinstance(fault, BaseException):
            raise fault
    await asyncio.to_thread(telemetry.force_flush, 1.0)
    await asyncio.to_thread(telemetry.shutdown, 2.0)
    seen.spans = set(telemetry.recorder.spans()["name"])
    metrics: pd.DataFrame = telemetry.recorder.metrics()
    seen.metrics = {row["name"] for row in metrics.to_dict("records") if row["sum"] > 0 or (row["count"] or 0) > 0}
    return seen


@pytest.fixture(scope="module")
def seen(server: Server) -> Iterator[Seen]:
    """What was seen of all components at work."""
    with tempfile.TemporaryDirectory() as folder:
        yield asyncio.run(_scenario(server, Path(folder)))


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_its_subject_carries_its_message_type(seen: Seen, row: Operation) -> None:
    assert seen.carried(row) == {row.message_type}
    if row.result_type is not None:
        assert seen.answered(row) - {ERROR, LLM_CHUNK} == {row.result_type}


@pytest.mark.parametrize("row", SPANS, ids=lambda row: row.name)
def test_its_span_is_emitted(seen: Seen, row: Span) -> None:
    assert row.name in seen.spans


@pytest.mark.parametrize("row", METRICS, ids=lambda row: row.name)
def test_its_metric_is_emitted(seen: Seen, row: Metric) -> None:
    assert row.name in seen.metrics


@pytest.mark.parametrize("message_type", MESSAGE_TYPES)
def test_its_schema_is_on_the_wire(seen: Seen, message_type: str) -> None:
    assert message_type in seen.types


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_a_row_that_is_alive_says_so(row: Operation) -> None:
    assert row.served
