"""Standard names are the standard's, and a call to a model is described by them; content only on request."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any

import pytest
from opentelemetry.semconv import schemas
from opentelemetry.semconv._incubating import attributes as incubating
from opentelemetry.semconv._incubating.attributes.messaging_attributes import MessagingOperationTypeValues
from opentelemetry.semconv.attributes import exception_attributes

from kit.otel import captures_content, gen_ai_attributes, semconv
from kit.otel.genai import emits_latest, provider_name

CANARY = "the canary sings"


def _standard() -> dict[str, str]:
    """Every constant of the installed semantic conventions, by its value."""
    names: dict[str, str] = {}
    for module in pkgutil.iter_modules(incubating.__path__):
        loaded = importlib.import_module(f"{incubating.__name__}.{module.name}")
        names |= {value: name for name, value in vars(loaded).items() if name.isupper() and isinstance(value, str)}
    return names


def _own() -> dict[str, str]:
    return {name: value for name, value in vars(semconv).items() if name.isupper() and isinstance(value, str)}


NEWER = {"GEN_AI_USAGE_TEXT_INPUT_TOKENS", "GEN_AI_USAGE_TEXT_OUTPUT_TOKENS"}
VALUES = {name for name in _own() if name.startswith(("MESSAGING_SYSTEM_", "MESSAGING_OPERATION_TYPE_"))}
PREFIXES = ("MESSAGING_", "GEN_AI_", "SERVICE_", "EXCEPTION_", "SERVER_", "ERROR_", "CODE_")


@pytest.mark.parametrize("name", [n for n in _own() if n.startswith(PREFIXES) and n not in NEWER | VALUES])
def test_standard_names_equal_the_installed_conventions(name: str) -> None:
    value = _own()[name]
    constants = _standard() | {value: name for name, value in vars(exception_attributes).items() if name.isupper()}
    assert constants[value] == name


def test_standard_values_equal_the_installed_conventions() -> None:
    known = {value.value for value in MessagingOperationTypeValues}
    assert {_own()[name] for name in VALUES if "_TYPE_" in name} <= known
    assert vars(schemas.Schemas)["V1_41_0"].value == semconv.SCHEMA_URL


def test_openinference_names_equal_the_installed_conventions() -> None:
    from openinference.semconv import trace

    known = {
        value
        for kind in vars(trace).values()
        if isinstance(kind, type)
        for name, value in vars(kind).items()
        if name.isupper() and isinstance(value, str)
    }
    ours = [
        value for name, value in _own().items() if name.startswith(("LLM_TOKEN_COUNT", "INPUT_", "OUTPUT_", "OPENINF"))
    ]
    assert set(ours) | {semconv.LLM_MODEL_NAME, semconv.LLM_PROVIDER, semconv.LLM_COST_TOTAL} <= known
    assert {semconv.LLM_INVOCATION_PARAMETERS, semconv.EMBEDDING_MODEL_NAME, semconv.SESSION_ID} <= known


def test_every_name_of_the_integration_story_is_pinned() -> None:
    story = """agent.id cache.hit cache.key cost.usd embedding.dimension gateway.model gateway.prompt.length
        gateway.tenant_id llm.cost llm.model llm.tokens memory.count memory.type message.id model provider query
        rag.document.id rag.query.id rag.query.length rag.tenant_id rate-limit.allowed request.id response.received
        response.tokens results.count source.agent.id target.agent.id task.id task.type tenant.id tokens.completion
        tokens.prompt tokens.total tools.count user.id validation.level validation.passed"""
    assert set(story.split()) <= set(_own().values())


def test_a_chat_is_described_in_the_words_of_both_conventions() -> None:
    request = gen_ai_attributes(
        "chat",
        model="gpt-4o",
        provider="azure",
        parameters={"temperature": 0.2, "max_tokens": 100, "stop": "END", "tools": [], "seed": None, "stream": False},
        conversation_id="c-1",
    )
    assert request == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.conversation.id": "c-1",
        "gen_ai.request.temperature": 0.2,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.stop_sequences": ("END",),
        "gen_ai.request.stream": False,
        "llm.invocation_parameters": '{"temperature": 0.2, "max_tokens": 100, "stream": false}',
        "llm.model_name": "gpt-4o",
        "llm.provider": "azure",
    }
    response = gen_ai_attributes(
        response_id="r-1",
        response_model="gpt-4o-2024",
        finish_reasons=["stop"],
        input_tokens=12,
        output_tokens=5,
        cache_read_tokens=2,
        cache_creation_tokens=1,
        reasoning_tokens=3,
        cost_usd=0.001,
    )
    assert response == {
        "gen_ai.response.id": "r-1",
        "gen_ai.response.model": "gpt-4o-2024",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.cache_creation.input_tokens": 1,
        "gen_ai.usage.reasoning.output_tokens": 3,
        "llm.cost.total": 0.001,
        "llm.model_name": "gpt-4o-2024",
        "llm.token_count.prompt": 12,
        "llm.token_count.completion": 5,
        "llm.token_count.total": 17,
    }


def test_embeddings_are_described() -> None:
    assert gen_ai_attributes("embeddings", model="kit/static-256", provider="kit", input_tokens=9, dimension=256) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": "kit/static-256",
        "gen_ai.provider.name": "kit",
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.embeddings.dimension.count": 256,
        "embedding.model_name": "kit/static-256",
        "llm.token_count.prompt": 9,
    }


def test_nothing_said_is_nothing_written() -> None:
    assert gen_ai_attributes() == {}
    assert provider_name("groq") == "groq"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("", False), ("gen_ai_latest_experimental", True), ("http, gen_ai_latest_experimental", True), ("gen_ai", False)],
)
def test_newer_names_are_written_on_request(monkeypatch: pytest.MonkeyPatch, asked: str, expected: bool) -> None:
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", asked)
    assert emits_latest() is expected
    attributes = gen_ai_attributes("chat", input_tokens=3, text_input_tokens=2, text_output_tokens=1)
    assert ("gen_ai.usage.text.input_tokens" in attributes) is expected
    assert ("gen_ai.usage.text.output_tokens" in attributes) is expected
    assert attributes["gen_ai.usage.input_tokens"] == 3


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": CANARY},
    {"role": "user", "content": [{"type": "text", "text": CANARY}, {"type": "image_url", "image_url": {}}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "t", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "t", "content": CANARY},
]


@pytest.mark.parametrize("setting", ["", "false", "no_content", "event_only"])
def test_content_is_not_written_unless_asked_for(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", setting)
    assert captures_content() is False
    attributes = gen_ai_attributes("chat", input_messages=MESSAGES, output_messages=CANARY, finish_reasons=["stop"])
    assert CANARY not in str(attributes)
    assert not semconv.CONTENT & set(attributes)


@pytest.mark.parametrize("setting", ["true", "True", "span_only", "SPAN_AND_EVENT"])
def test_content_is_written_in_the_conventions_form_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", setting)
    attributes = gen_ai_attributes("chat", input_messages=MESSAGES, output_messages="yes", finish_reasons=["stop"])
    assert json.loads(str(attributes["gen_ai.input.messages"])) == [
        {"role": "system", "parts": [{"type": "text", "content": CANARY}]},
        {"role": "user", "parts": [{"type": "text", "content": CANARY}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "t", "name": "f", "arguments": "{}"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "t", "response": CANARY}]},
    ]
    assert json.loads(str(attributes["gen_ai.output.messages"])) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "yes"}], "finish_reason": "stop"}
    ]
    assert attributes["output.value"] == "yes"
    assert CANARY in str(attributes["input.value"])
