"""LiteLLM's responses as the kit's ``llm_response``, ``llm_chunk`` and ``llm_operation``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kit import codec

# Of a request, what its response and its log line tell again.
_ECHO = ("prompt_version", "user_id", "agent_id", "session_id")
BESIDE = 4096  # bytes of a message around an answer: its headers, and what is known of it later
# How providers say that an answer is whole, and that it broke off on their side.
_ENDS = frozenset({"stop", "STOP", "end_turn", "stop_sequence", "COMPLETE", "eos", "eos_token"})
BROKE_OFF = frozenset({"error", "ERROR", "network_error"})


def answer_of(response: Any) -> dict[str, Any]:
    """Return what a model said: text, tool calls, and why it stopped.

    Raises:
        LookupError, AttributeError, TypeError, ValueError: it cannot be read.
    """
    choice = response.choices[0]
    message = choice.message
    answer: dict[str, Any] = {"response": message.content, "finish_reason": _finish_of(choice)}
    calls = [_call(call, index) for index, call in enumerate(message.tool_calls or ())]
    if calls:
        answer["tool_calls"] = calls
    for name in ("reasoning_content", "refusal"):
        value = getattr(message, name, None) or (getattr(message, "provider_specific_fields", None) or {}).get(name)
        if isinstance(value, str):
            answer[name] = value
    if response.id:
        answer["provider_response_id"] = str(response.id)[:200]
    return answer


def said_in(response: Any) -> str:
    """Return all that a model wrote, in all its choices: text, reasoning and tool calls."""
    said = []
    for choice in response.choices:
        message = choice.message
        said += [message.content or "", getattr(message, "reasoning_content", None) or ""]
        said += [f"{call.function.name or ''}{call.function.arguments or ''}" for call in message.tool_calls or ()]
    return "".join(said)


def _finish_of(choice: Any) -> str:
    """Return why a model stopped. LiteLLM says "stop" of each reason that it does not know, and of some failures."""
    told = (getattr(choice, "provider_specific_fields", None) or {}).get("native_finish_reason")
    if told and choice.finish_reason in ("stop", None) and told not in _ENDS:
        return str(told)[:200]
    return choice.finish_reason or "stop"


def _call(call: Any, index: int) -> dict[str, Any]:
    function = call.function
    return {
        "id": call.id or f"call_{index}",
        "type": "function",
        "index": index,
        "function": {"name": function.name or "unnamed", "arguments": function.arguments or ""},
    }


def wrap(request: Mapping[str, Any], answer: Mapping[str, Any], *, seconds: float, cached: bool) -> dict[str, Any]:
    """Wrap an answer for one request: as ``llm_response`` with its own id and time; from the cache it costs nothing."""
    response = {
        **answer,
        "request_id": request["request_id"],
        "tenant_id": request["tenant_id"],
        "timestamp": codec.now(),
        "duration": seconds,
        "cached": cached,
        "status": "success",
        **{name: request[name] for name in _ECHO if name in request},
    }
    if cached:
        response["cost"] = 0.0
        response.pop("attempts", None)
    return response


def operation_of(
    request: Mapping[str, Any], *, operation_id: str, operation_type: str, timestamp: str, worker_id: str,
    trace_id: str, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the ``llm_operation`` of one call to a provider; what is None is left out."""
    data: dict[str, Any] = {
        "operation_id": operation_id,
        "operation_type": operation_type,
        "tenant_id": request["tenant_id"],
        "request_id": request["request_id"],
        "timestamp": timestamp,
        "worker_id": worker_id,
        **{name: request[name] for name in (*_ECHO, "component") if name in request},
    }
    if trace_id.strip("0"):
        data["trace_id"] = trace_id
    data.update({name: value for name, value in more.items() if value is not None or name == "cost"})
    return data


def piece_of(chunk: Any) -> dict[str, Any]:
    """Return what a streamed chunk adds: text, pieces of tool calls, reasoning; {} when it adds nothing."""
    if not chunk.choices:
        return {}
    delta = chunk.choices[0].delta
    piece: dict[str, Any] = {}
    if getattr(delta, "content", None):
        piece["text"] = delta.content
    if getattr(delta, "reasoning_content", None):
        piece["reasoning_content"] = delta.reasoning_content
    calls = [
        {
            "index": call.index or 0,
            "id": call.id or None,
            "type": "function" if call.type == "function" else None,
            "function": {"name": call.function.name or None, "arguments": call.function.arguments},
        }
        for call in getattr(delta, "tool_calls", None) or ()
    ]
    if calls:
        piece["tool_calls"] = calls
    return piece
