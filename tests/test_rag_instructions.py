"""What RAG tells a model comes from the tenant's prompt store where it has it; no question waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rag_stand_in import StandIn

from kit.catalogue import PROMPT_CONTEXT, RAG_RESPONSE_GENERATE
from kit.components import prompts, rag
from kit.components.rag.instructions import OWN, REFUSAL
from kit.components.rag.instructions import Prompts as Followed

DOCUMENT = {"document_id": "refund", "title": "Refunds", "content": "Refunds are given within 14 days of purchase."}
QUESTION = "How are refunds given?"
SHORT = 'Cite every passage like [1]. Else say "{{ refusal }}"'


@pytest.fixture
async def gateway(tenant_bus: Any, tmp_path: Path) -> AsyncIterator[StandIn]:
    async with StandIn(tenant_bus) as stand_in, await rag.serve(tenant_bus, uri=tmp_path):
        await rag.ingest_documents(tenant_bus, [DOCUMENT])
        yield stand_in


async def told(bus: Any, gateway: StandIn) -> tuple[str, str | None]:
    """Ask; return what the model was told, and as which version."""
    assert (await rag.query(bus, QUESTION))["supported"]
    request = [request for request in gateway.requests if "messages" in request][-1]
    return request["messages"][0]["content"], request.get("prompt_version")


async def test_without_a_template_it_is_rags_own_and_nobody_is_asked(
    tenant_bus: Any, gateway: StandIn, telemetry: Any
) -> None:
    assert await told(tenant_bus, gateway) == (OWN.text, None)
    assert OWN.text.endswith(f'say exactly "{REFUSAL}"')
    assert PROMPT_CONTEXT.send_span.name not in set(telemetry.recorder.spans()["name"])


async def test_the_label_production_moves_what_a_model_is_told(
    tenant_bus: Any, gateway: StandIn, telemetry: Any
) -> None:
    async with await prompts.serve(tenant_bus), prompts.PromptStore(tenant_bus) as store:
        await store.create(rag.TEMPLATE_ID, rag.TEMPLATE, rag.VARIABLES, label="production")
        await store.create(rag.TEMPLATE_ID, SHORT, rag.VARIABLES)  # a version without the label changes nothing
        await _version(tenant_bus, gateway, "1")
        assert (await told(tenant_bus, gateway))[0] == OWN.text
        await store.label(rag.TEMPLATE_ID, "production", "2")
        await _version(tenant_bus, gateway, "2")
        assert (await told(tenant_bus, gateway))[0] == SHORT.replace("{{ refusal }}", REFUSAL)
        spans = telemetry.recorder.spans()
        attributes = spans[spans["name"] == RAG_RESPONSE_GENERATE.name].iloc[-1]["attributes"]
        assert (attributes["prompt.name"], attributes["prompt.version"]) == (rag.TEMPLATE_ID, "2")
        await store.unlabel(rag.TEMPLATE_ID, "production")
        await _version(tenant_bus, gateway, None)
        assert (await told(tenant_bus, gateway))[0] == OWN.text


async def test_a_worker_that_starts_later_finds_the_template(tenant_bus: Any) -> None:
    async with await prompts.serve(tenant_bus), prompts.PromptStore(tenant_bus) as store:
        await store.create(rag.TEMPLATE_ID, SHORT, rag.VARIABLES, label="production")
        followed = await Followed.open(tenant_bus)
        assert followed.current.prompt_version == f"{rag.TEMPLATE_ID}@1"
        await followed.worker.stop()


async def test_no_question_waits_for_a_prompt_service_that_hangs_and_its_answer_is_used_when_it_comes(
    tenant_bus: Any, gateway: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hang(message: Any) -> dict[str, Any]:
        asked.set()
        await answer.wait()
        raise RuntimeError("not yet")

    monkeypatch.setattr("kit.components.rag.instructions._AGAIN", 0.05)
    hanging = await tenant_bus.serve(PROMPT_CONTEXT, hang)
    async with prompts.PromptStore(tenant_bus) as store:
        await store.create(rag.TEMPLATE_ID, SHORT, rag.VARIABLES, label="production")
    await asyncio.wait_for(asked.wait(), 10.0)
    started = time.monotonic()
    assert await told(tenant_bus, gateway) == (OWN.text, None)
    assert time.monotonic() - started < 2.0  # the service would be waited for 5 s
    answer.set()
    await hanging.stop()
    async with await prompts.serve(tenant_bus):
        await _version(tenant_bus, gateway, "1")


async def _version(bus: Any, gateway: StandIn, version: str | None) -> None:
    """Ask until a model is told that version."""
    wanted = None if version is None else f"{rag.TEMPLATE_ID}@{version}"
    for _ in range(100):
        if (await told(bus, gateway))[1] == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"version {version} was never used")
