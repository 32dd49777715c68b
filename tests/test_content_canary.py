"""What people write, and keys, are on no span, log, metric, dead letter's evidence or error, unless that is asked for.

Canaries, words that nothing else contains, go through all that can be asked, also where it fails; then everything that
is kept or told is searched for them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from misbehaving_provider import MisbehavingProvider
from samples import sample

from kit import codec
from kit.catalogue import AGENT_TASKS, GATEWAY_RATE_LIMIT, MLOPS_PREDICTION, MLOPS_TRAINING, RAG_QUERIES
from kit.components import agents, document_qa, gateway, prompts, rag
from kit.components.agents import Agent
from kit.errors import KitError
from kit.nats import Bus, Message, connect
from kit.nats.server import Server
from kit.otel import start_telemetry

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
SENTENCE = "Quagga7531 herds graze near Zyzzyvaville at dawn."  # in a document, a prompt, and so in answers
QUESTION = "Where do Quagga7531 herds graze?"
KEY = "sk-Wombat9042-do-not-tell"  # of a provider
FAILING = ("fail-401", "fail-500", "fail-400", "malformed", "cut")
WORDS = ("Quagga7531", "Zyzzyvaville", "Wombat9042")


class Echoing(MisbehavingProvider):
    """A provider whose errors quote what it was asked, and with which key."""

    async def _error(self, writer: asyncio.StreamWriter, status: int, headers: str = "") -> bool:
        said = f"Incorrect API key provided: {KEY}; you asked: {json.dumps(self.bodies[-1])}"
        body = json.dumps({"error": {"message": said, "type": "misbehaviour", "code": status}}).encode()
        await self._send(writer, status, body, headers=headers)
        return True

    async def _embed(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        return await self._error(writer, 401)


@dataclass
class Kept:
    """What a run kept or told, by where: texts to search."""

    texts: dict[str, str] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)
    letters: list[Any] = field(default_factory=list)

    @contextmanager
    def failing(self, *kinds: type[BaseException]) -> Iterator[None]:
        """Keep the error that has to come."""
        with pytest.raises(kinds or KitError) as raised:
            yield
        self.errors.append(raised.value)


class _Keeping(logging.Handler):
    """Keeps every record of every logger, as a log file would."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] == "kit" or record.levelno >= logging.WARNING:
            self.lines.append(self.format(record))


def leak(text: str) -> str:
    """A tool that quotes its arguments as it fails."""
    raise ValueError(f"cannot do {text!r}, nor {text.upper()}")


async def _answered(bus: Bus, kept: Kept) -> None:
    """What works: ingestion, questions, prompts, agents."""
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
    job = await bus.enqueue(MLOPS_TRAINING, sample("ml_training_job", training_data=SENTENCE))
    with kept.failing():
        await job.result(timeout=20.0)
    for _ in range(200):
        kept.letters = [
            letter for row in (AGENT_TASKS, MLOPS_TRAINING, gateway.GATEWAY_REQUESTS)
            for letter in await bus.dead_letters(row)
        ]  # fmt: skip
        if {AGENT_TASKS, MLOPS_TRAINING} <= {letter.operation for letter in kept.letters}:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"not all that died are kept: {kept.letters}")


async def _scenario(server: Server, folder: Path, tenant_id: str, *, failures: bool) -> Kept:
    kept, who, log = Kept(), server.credentials(tenant_id), _Keeping()
    logging.getLogger().addHandler(log)
    telemetry = start_telemetry("canary", log_level="DEBUG")
    access: dict[str, Any] = {"tenant_id": tenant_id, "user": who.user, "password": who.password}

    async def quote(message: Message) -> dict[str, Any]:
        """Quotes what it was given, on a span of its own, and misses the mark."""
        with telemetry.operation(MLOPS_PREDICTION):
            raise NotAJob(f"cannot train on {message.data['training_data']}: {message.data}")

    async with (
        Echoing() as provider,
        await connect(server.url, **access) as watcher,
        await connect(server.url, **access) as connection,
        Bus(connection, tenant_id, telemetry) as bus,
    ):
        models = {name: {**provider.deployment(name), "api_key": KEY} for name in FAILING}
        models["echo"] = {**provider.deployment(f'json-{{"Zyzzyvaville": "{SENTENCE}"}}'), "api_key": KEY}
        services = [
            await gateway.serve(bus, models=models, retries=0), await rag.serve(bus, uri=folder / "rag"),
            await prompts.serve(bus), await document_qa.serve(bus),
            await agents.serve(bus, uri=folder / "agents", tools=[leak, agents.toolbox.calculate]),
        ]  # fmt: skip
        await bus.work(MLOPS_TRAINING, quote)
        await _answered(bus, kept)
        if failures:
            await _agents(bus, folder / "agents", kept)
            await _failed(bus, watcher, kept)
        for service in services:
            await service.stop()
    recorder = telemetry.recorder
    kept.texts |= {
        "spans": json.dumps(recorder.spans().to_dict("records"), default=str),
        "metrics": json.dumps(recorder.metrics().to_dict("records"), default=str),
        "logs": json.dumps(recorder.logs().to_dict("records"), default=str),
        "log lines": "\n".join(log.lines),
        "errors": "\n".join(f"{error!r} {error}" for error in kept.errors),
    }
    for letter in kept.letters:
        evidence = {name: getattr(letter, name) for name in letter.__slots__ if name not in {"payload", "operation"}}
        kept.texts["dead letters"] = kept.texts.get("dead letters", "") + f"{letter!r} {evidence}\n"
    logging.getLogger().removeHandler(log)
    await asyncio.to_thread(telemetry.shutdown, 3.0)
    return kept


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
    text = kept.texts[where]
    assert text
    for word in WORDS:
        at = text.lower().find(word.lower())
        assert at < 0, f"{word} is in the {where}: …{text[max(at - 300, 0) : at + 100]}…"


def test_everything_that_should_fail_has_failed(kept: Kept) -> None:
    assert len(kept.errors) > 12
    assert {letter.operation for letter in kept.letters} >= {AGENT_TASKS, MLOPS_TRAINING}


def test_the_payload_of_a_dead_letter_is_kept_unchanged(kept: Kept) -> None:
    (training,) = (letter for letter in kept.letters if letter.operation is MLOPS_TRAINING)
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
