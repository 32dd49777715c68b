"""The prompt store keeps versions for good, moves labels for every reader, and answers requests for contexts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kit import codec
from kit.catalogue import (
    PROMPT_CONTEXT_BUILD,
    PROMPT_CONTEXT_REQUEST,
    PROMPT_CONTEXTS_BUILT,
    PROMPT_RENDER_DURATION,
    PROMPT_TEMPLATE_PUBLISH,
    PROMPT_TEMPLATE_RECEIVE,
    PROMPT_TEMPLATE_RENDER,
    PROMPT_TEMPLATES,
    PROMPT_TEMPLATES_RENDERED,
    PROMPT_TOKENS_ESTIMATED,
)
from kit.components import prompts
from kit.components.prompts import (
    MissingVariable,
    PromptStore,
    TemplateRefused,
    UndeclaredVariable,
    UnknownTemplate,
    build_context,
)
from kit.errors import Conflict, RemoteError

HELLO = "Hello {{ name }}!"
NAME = {"name": str}


@pytest.fixture
async def store(tenant_bus: Any) -> AsyncIterator[PromptStore]:
    async with PromptStore(tenant_bus) as made:
        yield made


async def until(condition: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - it waits for another task's state
            await asyncio.sleep(0.01)


async def test_versions_never_change_and_count_up(store: PromptStore) -> None:
    assert await store.create("greeting", HELLO, NAME) == "1"
    assert await store.create("greeting", HELLO, NAME) == "1"
    assert await store.create("greeting", "Hi {{ name }}!", NAME, description="shorter", created_by="ada") == "2"
    assert (await store.get("greeting", "1")).template == HELLO
    assert (await store.get("greeting", label="latest")).version == "2"
    kept = await (await store.open()).get("greeting.version.1")
    assert kept is not None
    with pytest.raises(Conflict):
        await (await store.open()).create("greeting.version.1", b"{}")


async def test_creators_at_once_get_versions_of_their_own(store: PromptStore, tenant_bus: Any) -> None:
    async with PromptStore(tenant_bus) as other:
        made = await asyncio.gather(
            *(who.create("greeting", f"{HELLO} {n}", NAME) for n, who in enumerate([store, other] * 4))
        )
    assert sorted(made, key=int) == [str(number) for number in range(1, 9)]
    assert len(await store.history("greeting")) == 8


async def test_labels_move_and_render_follows(store: PromptStore) -> None:
    await store.create("greeting", HELLO, NAME, label="production")
    await store.create("greeting", "Hi {{ name }}!", NAME)
    rendered = await store.render("greeting", {"name": "Ada"})
    assert (str(rendered), rendered.version, rendered.label) == ("Hello Ada!", "1", "production")
    assert rendered.prompt_version == "greeting@1"
    await store.label("greeting", "production", "2")
    assert str(await store.render("greeting", {"name": "Ada"})) == "Hi Ada!"
    assert str(await store.render("greeting", {"name": "Ada"}, version="1")) == "Hello Ada!"
    await store.label("greeting", "candidate", "2")
    assert await store.labels("greeting") == {"candidate": "2", "production": "2"}
    await store.unlabel("greeting", "candidate")
    with pytest.raises(UnknownTemplate, match="label 'candidate'"):
        await store.get("greeting", label="candidate")


@pytest.mark.parametrize(
    ("version", "label", "message"),
    [(None, None, "label 'production'"), ("7", None, "version 7"), ("x", None, "version x"), (None, "beta", "'beta'")],
)
async def test_what_is_not_there_is_named(
    store: PromptStore, version: str | None, label: str | None, message: str
) -> None:
    await store.create("greeting", HELLO, NAME)
    with pytest.raises(UnknownTemplate, match=message):
        await store.get("greeting", version, label=label)


async def test_an_unknown_template_is_named(store: PromptStore) -> None:
    for asked in (store.get("nope"), store.labels("nope"), store.history("nope"), store.unlabel("nope", "production")):
        with pytest.raises(UnknownTemplate):
            await asked


async def test_templates_are_checked_before_they_are_stored(store: PromptStore) -> None:
    with pytest.raises(UndeclaredVariable, match="'name'"):
        await store.create("greeting", HELLO)
    with pytest.raises(TemplateRefused, match="line 2"):
        await store.create("greeting", "a\n{{ b", {"b": str})
    with pytest.raises(TemplateRefused, match="moves by itself"):
        await store.label("greeting", "latest", "1")
    assert await store.templates() == []


async def test_history_and_diff_show_what_changed(store: PromptStore) -> None:
    await store.create("greeting", "Line one\nHello {{ name }}", NAME, created_by="ada", label="production")
    await store.create("greeting", "Line one\nHi {{ name }}", {"name": {"type": "string", "default": "you"}})
    history = await store.history("greeting")
    assert list(history["version"]) == ["2", "1"]
    assert list(history["labels"]) == ["", "production"]
    assert history["created_by"].iloc[1] == "ada"
    diff = await store.diff("greeting", "1", "2")
    assert "-Hello {{ name }}" in diff
    assert "+Hi {{ name }}" in diff
    assert "'default': 'you'" in diff
    assert await store.diff("greeting", "1", "1") == ""


async def test_an_event_refreshes_every_reader_and_none_waits(store: PromptStore, tenant_bus: Any) -> None:
    await store.create("greeting", HELLO, NAME, label="production")
    async with PromptStore(tenant_bus) as reader:
        assert (await reader.get("greeting")).version == "1"
        await store.create("greeting", "Hi {{ name }}!", NAME)
        await store.label("greeting", "production", "2")
        await until(lambda: reader._heads["greeting"].labels == {"production": "2"})
        kv = await reader.open()
        reads = 0
        real = kv.get

        async def counted(key: str) -> Any:
            nonlocal reads
            reads += 1
            return await real(key)

        kv.get = counted  # type: ignore[method-assign]
        assert (await reader.get("greeting")).version == "2"
        assert reads == 0


async def test_a_stale_label_is_served_while_it_is_refreshed(store: PromptStore, tenant_bus: Any) -> None:
    await store.create("greeting", HELLO, NAME, label="production")
    await store.create("greeting", "Hi {{ name }}!", NAME)
    async with PromptStore(tenant_bus, max_age=0.05) as reader:
        assert (await reader.get("greeting")).version == "1"
        worker = reader.worker
        assert worker is not None
        await worker.stop()  # this reader misses every event from now on
        await store.label("greeting", "production", "2")
        await asyncio.sleep(0.06)
        assert (await reader.get("greeting")).version == "1"
        await until(lambda: reader._heads["greeting"].labels == {"production": "2"})
        assert (await reader.get("greeting")).version == "2"


async def test_when_the_store_is_out_of_reach_what_was_read_is_served(store: PromptStore, tenant_bus: Any) -> None:
    await store.create("greeting", HELLO, NAME, label="production")
    async with PromptStore(tenant_bus, max_age=0.0) as reader:
        await reader.get("greeting")
        kv = await reader.open()

        async def broken(key: str) -> Any:
            raise Conflict("prompts", key, expected=1)

        kv.get = broken  # type: ignore[method-assign]
        for _ in range(3):
            assert (await reader.get("greeting")).version == "1"
            await asyncio.sleep(0.01)


async def test_tenants_do_not_see_each_other(store: PromptStore, bus: Any) -> None:
    await store.create("secret-of-one", HELLO, NAME, label="production")
    async with PromptStore(bus) as other:
        with pytest.raises(UnknownTemplate):
            await other.get("secret-of-one")


async def test_rendering_and_events_are_observed(store: PromptStore, tenant_bus: Any, telemetry: Any) -> None:
    seen: list[dict[str, Any]] = []

    async def watch(message: Any) -> None:
        seen.append(message.data)

    async with await tenant_bus.subscribe(PROMPT_TEMPLATES, watch):
        await store.create("greeting", HELLO, NAME, label="production")
        await store.render("greeting", {"name": "s3cret-canary"})
        with pytest.raises(MissingVariable):
            await store.render("greeting")
        await until(lambda: len(seen) == 2)
    assert [event["action"] for event in seen] == ["created", "labelled"]
    assert seen[1]["labels"] == {"production": "1"}
    for event in seen:
        codec.validate("prompt_template", event)
    spans = telemetry.recorder.spans()
    names = set(spans["name"])
    assert {PROMPT_TEMPLATE_PUBLISH.name, PROMPT_TEMPLATE_RECEIVE.name, PROMPT_TEMPLATE_RENDER.name} <= names
    assert "s3cret" not in spans.to_csv()
    total = telemetry.recorder.total
    assert total(PROMPT_TEMPLATES_RENDERED.name, status="success") == 1
    assert total(PROMPT_TEMPLATES_RENDERED.name, error_type="MissingVariable") == 1
    assert total(PROMPT_RENDER_DURATION.name) == 2


async def test_content_is_on_the_span_where_it_is_asked_for(
    store: PromptStore, telemetry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    await store.create("greeting", HELLO, NAME, label="production")
    await store.render("greeting", {"name": "Ada"})
    assert "Hello Ada!" in telemetry.recorder.spans().to_csv()


async def test_events_are_kept_and_can_be_replayed(store: PromptStore, tenant_bus: Any) -> None:
    await store.create("greeting", HELLO, NAME, label="production")
    seen: list[str] = []

    async def watch(message: Any) -> None:
        seen.append(message.data["action"])

    async with await tenant_bus.subscribe(PROMPT_TEMPLATES, watch, replay=True):
        await until(lambda: seen == ["created", "labelled"])


async def test_the_service_builds_a_context_and_a_prompt(store: PromptStore, tenant_bus: Any, telemetry: Any) -> None:
    source = "Answer {{ question }} from:\n{{ context }}"
    await store.create("qa", source, {"question": str, "context": str}, label="production")
    items = [
        {"item_id": "a", "content": "Files are copied with shutil.copy.", "score": 0.9},
        {"item_id": "b", "content": "files are copied with shutil.copy", "score": 0.8},
        {"item_id": "c", "content": "Lists are reversed. " * 40, "score": 0.7},
    ]
    async with await prompts.serve(tenant_bus):
        answer = await prompts.request_context(
            tenant_bus, items, token_budget=80, template_id="qa", variables={"question": "How?"}, query="copy",
            history=[{"role": "user", "content": "word " * 100}, {"role": "assistant", "content": "Hello."}],
        )  # fmt: skip
        assert answer["context"].startswith("Files are copied with shutil.copy.\n\nLists are reversed.")
        assert answer["tokens"] <= 80
        assert answer["prompt"] == f"Answer How? from:\n{answer['context']}"
        assert answer["prompt_tokens"] + 2 <= 80
        assert (answer["template_id"], answer["version"], answer["label"]) == ("qa", "1", "production")
        assert [item["item_id"] for item in answer["included"]] == ["a", "c"]
        assert answer["included"][1]["truncated"]
        assert answer["left_out"][0]["reason"] == "duplicate"
        assert [turn["content"] for turn in answer["messages"]] == ["Hello.", answer["prompt"]]
        assert answer["metadata"] == {"history_left_out": 1}
        all_forgotten = await prompts.request_context(
            tenant_bus, ["One."], token_budget=20, history=[{"role": "user", "content": "word " * 100}]
        )
        assert all_forgotten["metadata"] == {"history_left_out": 1}
        assert [turn["content"] for turn in all_forgotten["messages"]] == ["One."]
        plain = await prompts.request_context(tenant_bus, ["One.", "Two."], model="gpt-4o")
        assert (plain["context"], plain["estimator"]) == ("One.\n\nTwo.", "tiktoken/o200k_base")
        with pytest.raises(RemoteError) as refused:
            await prompts.request_context(tenant_bus, items, template_id="qa")
        assert (refused.value.error_type, refused.value.retryable) == ("MissingVariable", False)
        with pytest.raises(RemoteError) as refused:
            await prompts.request_context(
                tenant_bus, items, token_budget=5, template_id="qa", version="1", variables={"question": "Why? " * 9}
            )
        assert refused.value.error_type == "BudgetTooSmall"
    spans = telemetry.recorder.spans()
    assert {PROMPT_CONTEXT_REQUEST.name, PROMPT_CONTEXT_BUILD.name} <= set(spans["name"])
    total = telemetry.recorder.total
    assert (total(PROMPT_CONTEXTS_BUILT.name), total(PROMPT_CONTEXTS_BUILT.name, status="error")) == (5, 2)
    assert total(PROMPT_TOKENS_ESTIMATED.name) == 3


def test_the_service_says_what_the_function_says() -> None:
    built = build_context(["One.", "Two."], 50)
    assert built.account() == {
        "included": [
            {"item_id": "1", "rank": 1, "tokens": 2, "truncated": False},
            {"item_id": "2", "rank": 2, "tokens": 2, "truncated": False},
        ],
        "left_out": [],
    }
