"""What a span says of a call to a model, in the words of both conventions that viewers read.

Source: OpenTelemetry's conventions for generative AI, 1.41 by default; with
OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental those of their own repository, which add token counts by
modality. OpenInference beside them, which Arize Phoenix reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from kit.otel import semconv
from kit.otel.operation import Value

GenAiOperation: TypeAlias = Literal[
    "chat",
    "text_completion",
    "generate_content",
    "embeddings",
    "retrieval",
    "execute_tool",
    "create_agent",
    "invoke_agent",
    "invoke_workflow",
]
Message: TypeAlias = Mapping[str, Any]  # as the OpenAI API has it: role, content, tool_calls, tool_call_id

_LATEST = "gen_ai_latest_experimental"
_CAPTURING = ("true", "1", "span_only", "span_and_event")

# LiteLLM's names of providers that the conventions spell otherwise.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
_REQUEST = {
    "temperature": semconv.GEN_AI_REQUEST_TEMPERATURE,
    "top_p": semconv.GEN_AI_REQUEST_TOP_P,
    "top_k": semconv.GEN_AI_REQUEST_TOP_K,
    "max_tokens": semconv.GEN_AI_REQUEST_MAX_TOKENS,
    "frequency_penalty": semconv.GEN_AI_REQUEST_FREQUENCY_PENALTY,
    "presence_penalty": semconv.GEN_AI_REQUEST_PRESENCE_PENALTY,
    "stop": semconv.GEN_AI_REQUEST_STOP_SEQUENCES,
    "seed": semconv.GEN_AI_REQUEST_SEED,
    "n": semconv.GEN_AI_REQUEST_CHOICE_COUNT,
    "stream": semconv.GEN_AI_REQUEST_STREAM,
}


def captures_content() -> bool:
    """Say whether prompts and answers may be on spans: OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT asks."""
    asked = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "")
    return asked.strip().lower() in _CAPTURING


def emits_latest() -> bool:
    """Say whether OTEL_SEMCONV_STABILITY_OPT_IN asks for names newer than those of 1.41."""
    asked = os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "")
    return _LATEST in (category.strip() for category in asked.split(","))


def provider_name(provider: str) -> str:
    """Return the conventions' name of a provider that LiteLLM names otherwise."""
    return _PROVIDERS.get(provider, provider)


def gen_ai_attributes(
    operation: GenAiOperation | None = None,
    *,
    model: str | None = None,
    provider: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    conversation_id: str | None = None,
    response_id: str | None = None,
    response_model: str | None = None,
    finish_reasons: Sequence[str] | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    cache_read_tokens: int | None = None,
    cache_creation_tokens: int | None = None,
    reasoning_tokens: int | None = None,
    text_input_tokens: int | None = None,
    text_output_tokens: int | None = None,
    cost_usd: float | None = None,
    dimension: int | None = None,
    input_messages: Sequence[Message] | str | None = None,
    output_messages: Sequence[Message] | str | None = None,
) -> dict[str, Value]:
    """Return a model call's attributes: what is None is left out, so that a call before it and one after it do.

    Args:
        operation: ``chat``, ``embeddings`` …
        model: as it was asked for; ``response_model`` as it answered.
        provider: LiteLLM's name or the conventions'.
        parameters: of the request, as the OpenAI API names them; what the conventions do not know is left out.
        input_tokens: all of them, cached ones included, as ``output_tokens`` includes those spent on reasoning.
        text_input_tokens: only when the provider tells modalities apart; written on request, as is its counterpart.
        cost_usd: US dollars.
        dimension: of the embeddings.
        input_messages: written only where content is asked for, as are ``output_messages``.
    """
    attributes: dict[str, Any] = {
        semconv.GEN_AI_OPERATION_NAME: operation,
        semconv.GEN_AI_REQUEST_MODEL: model,
        semconv.GEN_AI_PROVIDER_NAME: None if provider is None else provider_name(provider),
        semconv.GEN_AI_CONVERSATION_ID: conversation_id,
        semconv.GEN_AI_RESPONSE_ID: response_id,
        semconv.GEN_AI_RESPONSE_MODEL: response_model,
        semconv.GEN_AI_RESPONSE_FINISH_REASONS: None if finish_reasons is None else tuple(finish_reasons),
        semconv.GEN_AI_USAGE_INPUT_TOKENS: input_tokens,
        semconv.GEN_AI_USAGE_OUTPUT_TOKENS: output_tokens,
        semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: cache_read_tokens,
        semconv.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS: cache_creation_tokens,
        semconv.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: reasoning_tokens,
        semconv.GEN_AI_EMBEDDINGS_DIMENSION_COUNT: dimension,
        semconv.LLM_COST_TOTAL: cost_usd,
        **_request(parameters),
        **_openinference(operation, response_model or model, provider, input_tokens, output_tokens),
    }
    if emits_latest():
        attributes[semconv.GEN_AI_USAGE_TEXT_INPUT_TOKENS] = text_input_tokens
        attributes[semconv.GEN_AI_USAGE_TEXT_OUTPUT_TOKENS] = text_output_tokens
    if captures_content():
        attributes |= _content(input_messages, output_messages, finish_reasons)
    return {key: value for key, value in attributes.items() if value is not None}


def _request(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    if not parameters:
        return {}
    known = {name: parameters[name] for name in _REQUEST if parameters.get(name) is not None}
    if isinstance(known.get("stop"), str):
        known["stop"] = [known["stop"]]
    attributes = {_REQUEST[name]: tuple(value) if name == "stop" else value for name, value in known.items()}
    # Stop sequences may quote a prompt, and stay out of the copy that viewers show as text.
    shown = {name: value for name, value in known.items() if name != "stop"}
    return attributes | ({semconv.LLM_INVOCATION_PARAMETERS: json.dumps(shown)} if shown else {})


def _openinference(
    operation: str | None, model: str | None, provider: str | None, prompt: int | None, completion: int | None
) -> dict[str, Any]:
    if operation == "embeddings":
        return {semconv.EMBEDDING_MODEL_NAME: model, semconv.LLM_TOKEN_COUNT_PROMPT: prompt}
    total = None if prompt is None and completion is None else (prompt or 0) + (completion or 0)
    return {
        semconv.LLM_MODEL_NAME: model,
        semconv.LLM_PROVIDER: provider,
        semconv.LLM_TOKEN_COUNT_PROMPT: prompt,
        semconv.LLM_TOKEN_COUNT_COMPLETION: completion,
        semconv.LLM_TOKEN_COUNT_TOTAL: total,
    }


def _content(
    asked: Sequence[Message] | str | None, answered: Sequence[Message] | str | None, reasons: Sequence[str] | None
) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    if asked is not None:
        messages = _messages(asked, "user")
        attributes[semconv.GEN_AI_INPUT_MESSAGES] = json.dumps(messages, ensure_ascii=False)
        attributes[semconv.INPUT_VALUE] = _text(asked)
    if answered is not None:
        messages = _messages(answered, "assistant")
        for message, reason in zip(messages, reasons or (), strict=False):
            message["finish_reason"] = reason
        attributes[semconv.GEN_AI_OUTPUT_MESSAGES] = json.dumps(messages, ensure_ascii=False)
        attributes[semconv.OUTPUT_VALUE] = _text(answered)
    return attributes


def _text(messages: Sequence[Message] | str) -> str:
    if isinstance(messages, str):
        return messages
    return "\n".join(str(message["content"]) for message in messages if message.get("content"))


def _messages(messages: Sequence[Message] | str, role: str) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        return [{"role": role, "parts": [{"type": "text", "content": messages}]}]
    return [{"role": message.get("role", role), "parts": _parts(message)} for message in messages]


def _parts(message: Message) -> list[dict[str, Any]]:
    """A message's parts, in the form that the conventions give by a JSON schema."""
    content, parts = message.get("content"), []
    if message.get("role") == "tool":
        return [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}]
    if isinstance(content, str):
        parts.append({"type": "text", "content": content})
    elif content:
        texts = [part["text"] for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        parts.extend({"type": "text", "content": text} for text in texts)
    for call in message.get("tool_calls") or ():
        function = call.get("function", {})
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": function.get("name"),
                "arguments": function.get("arguments"),
            }
        )
    return parts
