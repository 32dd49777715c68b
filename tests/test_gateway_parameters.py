"""What of a request reaches a provider is an allowlist: parameters, models, parts of messages; all else is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kit import codec
from kit.catalogue import GATEWAY_REQUESTS
from kit.components import gateway
from kit.components.gateway.litellm_calls import Providers, load_litellm
from kit.components.gateway.parameters import check_request, embedding_parameters
from kit.errors import ConfigurationError, JobDead
from kit.nats.bus import Bus

BASE: dict[str, Any] = {"request_id": "r", "model": "kit/extractive", "tenant_id": "acme", "timestamp": codec.now()}
PNG = "data:image/png;base64,AA+/" + "A" * 500_000 + "=="
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TOOK: dict[str, Any] = {
    "temperature": 1, "top_p": 0.5, "max_tokens": 5, "max_completion_tokens": 5, "stop": ["a"], "n": 2, "seed": -1,
    "presence_penalty": -2, "frequency_penalty": 2, "logit_bias": {"50256": -100}, "logprobs": True, "top_logprobs": 20,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "parallel_tool_calls": False, "user": "ada", "reasoning_effort": "low",
}  # fmt: skip


class Sink(BaseHTTPRequestHandler):
    """What a caller would have listening: whatever arrives here has escaped."""

    arrived: list[str]

    def do_POST(self) -> None:
        type(self).arrived.append(self.path)
        self.send_response(200)
        self.end_headers()

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Any]:
    kind = type("OneSink", (Sink,), {"arrived": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.arrived, server.url = kind.arrived, f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


def test_a_request_may_set_what_the_contract_names() -> None:
    names = set(codec.schema("llm_request")["properties"]["parameters"]["properties"]) - {"extra"}
    assert names == set(TOOK)
    request = {**BASE, "prompt": "x", "parameters": dict(TOOK), "tools": [TOOL], "tool_choice": "auto"}
    codec.validate("llm_request", request)
    check_request(request)
    older = {**BASE, "prompt": "x", "parameters": {"temperature": 1, "extra": {"n": 2, "user": "ada"}}}
    check_request(older)
    assert older["parameters"] == {"temperature": 1, "n": 2, "user": "ada"}


def test_none_of_litellms_other_names_is_let_through() -> None:
    load_litellm()
    from litellm.types.utils import all_litellm_params

    known = {*all_litellm_params, *load_litellm().OPENAI_CHAT_COMPLETION_PARAMS} - set(TOOK)
    assert len(known) > 100
    for name in known:
        for data in ({"parameters": {"extra": {name: "x"}}}, {"parameters": {name: "x"}}):
            with pytest.raises(gateway.RequestRefused, match=name):
                check_request({**BASE, "prompt": "x", **data})
        if name not in ("dimensions", "encoding_format"):
            with pytest.raises(gateway.RequestRefused, match=name):
                embedding_parameters({"parameters": {name: "x"}})


@pytest.mark.parametrize(
    "parameters",
    [
        {"n": -5}, {"n": 0}, {"n": 10**9}, {"n": True}, {"n": 1.5}, {"n": "2"}, {"n": None},
        {"max_completion_tokens": -(10**9)}, {"max_completion_tokens": True}, {"max_tokens": 10**15},
        {"max_tokens": 0}, {"temperature": -1}, {"temperature": "hot"}, {"top_p": 2}, {"top_logprobs": 1000},
        {"logit_bias": {"1": 1000}}, {"logit_bias": {"1": "x"}}, {"logit_bias": [1]},
        {"logit_bias": {str(i): 1 for i in range(1001)}},
        {"stop": ["x"] * 17}, {"stop": "x" * 201}, {"stop": [1]}, {"reasoning_effort": "http://127.0.0.1:9"},
        {"user": "x" * 201}, {"user": {"a": 1}},
        {"response_format": {"type": "json_object", "api_base": "x"}}, {"response_format": {"type": "grammar"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://x/y"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "model_list": []}}},
    ],
    ids=lambda value: json.dumps(value)[:60],
)  # fmt: skip
def test_a_value_out_of_its_bounds_is_refused_by_name(parameters: dict[str, Any]) -> None:
    (name,) = parameters
    for data in (parameters, {"extra": parameters}):
        with pytest.raises(gateway.RequestRefused, match=rf"{name}|the schema of"):
            check_request({**BASE, "prompt": "x", "parameters": data})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}},
        {"type": "image_url", "image_url": {"url": "gs://bucket/x"}},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA https://example.org"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "format": "x"}},
        {"type": "image_url", "image_url": "http://127.0.0.1:9/x.png"},
        {"type": "file", "file": {"file_id": "http://127.0.0.1:9/x.pdf"}},
        {"type": "file", "file": {"file_data": "file:///etc/passwd"}},
        {"type": "input_audio", "input_audio": {"data": "http://127.0.0.1:9/x.wav", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": "http://127.0.0.1:9"}},
        {"type": "document", "source": {"type": "url", "url": "http://127.0.0.1:9"}},
        {"type": "text", "text": {"url": "x"}},
        {"type": "text", "text": "x", "model_list": []},
        {"type": ["text"]},
        {},
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_part_of_a_message_is_text_or_data(part: dict[str, Any]) -> None:
    with pytest.raises(gateway.RequestRefused, match=r"messages\[1\]\.content\[0\]"):
        check_request({**BASE, "messages": [{"role": "user", "content": "x"}, {"role": "user", "content": [part]}]})


def test_images_sound_and_files_go_as_data() -> None:
    parts = [
        {"type": "text", "text": "see https://example.org", "cache_control": {"type": "ephemeral"}},
        {
            "type": "image_url",
            "image_url": {"url": PNG, "detail": "low"},
        },
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
    ]
    check_request({**BASE, "messages": [{"role": "user", "content": parts}]})


@pytest.mark.parametrize(
    "changed",
    [
        {"tool_choice": {"type": "function", "function": {"name": "f", "url": "x"}}},
        {"tool_choice": "http://127.0.0.1:9"},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "file:///etc/passwd"}}}]},
        {"fallbacks": ["kit/extractive"] * 17},
        {"validation": {"level": "format", "retries": 11}},
        {"validation": {"level": "format", "retries": 9007199254740991}},
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_else_a_request_must_not_ask_for(changed: dict[str, Any]) -> None:
    request = {**BASE, "prompt": "x", **changed}
    codec.validate("llm_request", request)
    with pytest.raises(gateway.RequestRefused):
        check_request(request)


URLS = [
    "oobabooga/http://127.0.0.1:9/x", "openai/http://127.0.0.1:9", "openai/../x", "openai//x", "/etc/passwd", "openai/",
    "x" * 201, "openai/\x01", "openai/é", "openai/a b", "openai/a?x=y", "openai/a#b", "", "openai/%2e%2e",
]  # fmt: skip


@pytest.mark.parametrize("model", URLS)
def test_no_url_and_no_path_is_the_name_of_a_model(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    providers = Providers(gateway.Settings(providers=["openai", "oobabooga"]), load_litellm())
    with pytest.raises(gateway.RequestRefused, match="invalid model name"):
        providers.admit(model)


def test_models_are_those_that_the_operator_named_or_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    litellm = load_litellm()
    usual = Providers(gateway.Settings(models={"my own": {"model": "ollama/x"}}, model="ollama/y"), litellm)
    for model in ("kit/extractive", "kit/nonsense", "openai/gpt-4o", "gpt-4o", "my own", "ollama/y"):
        usual.admit(model)
    for model in ("ollama/x", "hosted_vllm/x", "litellm_proxy/x", "github_copilot/x", "bedrock/x", "custom_openai/x"):
        with pytest.raises(gateway.RequestRefused, match="not enabled"):
            usual.admit(model)
    with pytest.raises(gateway.ProviderFailed, match="ANTHROPIC_API_KEY is not set"):
        usual.admit("anthropic/claude-sonnet-4-5")
    with pytest.raises(gateway.ProviderFailed, match="UnknownProvider"):
        usual.admit("nobody/x")
    chosen = Providers(gateway.Settings(providers=["ollama"]), litellm)
    chosen.admit("ollama/x")
    chosen.admit("kit/extractive")
    with pytest.raises(gateway.RequestRefused, match="openai are not enabled"):
        chosen.admit("openai/gpt-4o")


async def test_nothing_of_a_refused_request_leaves_the_gateway(tenant_bus: Bus, sink: Any) -> None:
    steering = {"model_list": [{"model_name": "kit/extractive", "litellm_params": {"api_base": sink.url}}]}
    image = {"type": "image_url", "image_url": {"url": f"{sink.url}/x.png"}}
    async with await gateway.serve(tenant_bus, models={"mine": {"model": "kit/extractive"}}):
        for asked in (
            {"prompt": "x", **steering},
            {"prompt": "x", "model": f"oobabooga/{sink.url}/x"},
            {"prompt": "x", "model": "mine", "fallbacks": [f"oobabooga/{sink.url}/x"]},
            {"messages": [{"role": "user", "content": [image]}]},
            {"prompt": "x", "n": -5},
            {"prompt": "x", "extra_body": {"url": sink.url}},
        ):
            with pytest.raises(gateway.RequestRefused):
                await gateway.generate(tenant_bus, timeout=20, **asked)  # type: ignore[arg-type]
        for fields in ({"model": f"oobabooga/{sink.url}"}, {"parameters": {"vertex_credentials": sink.url}}):
            with pytest.raises(gateway.RequestRefused):
                await gateway.embed(tenant_bus, ["x"], **fields)  # type: ignore[arg-type]
        old = {**BASE, "tenant_id": tenant_bus.tenant_id, "prompt": "x", "parameters": {"extra": steering}}
        with pytest.raises(JobDead, match="RequestRefused"):
            await tenant_bus.run(GATEWAY_REQUESTS, {**old, "timestamp": codec.now()}, timeout=20)
        answer = await gateway.generate(tenant_bus, prompt="Context: the sky is blue.\n\nQuestion: what is blue?")
        assert "sky is blue" in answer["response"]
    assert sink.arrived == []


@pytest.mark.parametrize("texts", ["abc", ["abc"], ("abc",), (text for text in ["abc"])])
async def test_a_text_given_alone_is_one_text(tenant_bus: Bus, texts: Any) -> None:
    async with await gateway.serve(tenant_bus):
        assert (await gateway.embed(tenant_bus, texts)).shape == (1, 256)
        if isinstance(texts, str):
            assert (await gateway.embed_bulk(tenant_bus, texts, timeout=20)).shape == (1, 256)


@pytest.mark.parametrize("texts", [[0], [b"abc"], b"abc", [None]])
async def test_what_is_no_text_is_not_embedded(tenant_bus: Bus, texts: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a str"):
        await gateway.embed(tenant_bus, texts)
