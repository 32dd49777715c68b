"""The model of an Agno agent: a LiteLLM client whose calls go to the gateway, over the bus.

Agno's ``LiteLLM`` model calls ``client.acompletion(**kwargs)`` with messages and tools in the OpenAI format. They are
sent as ``llm_request`` 1.1, and what comes back is given to Agno in the form that LiteLLM's own responses have.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import AGENT_LLM_CALL, GATEWAY_REQUESTS, LLM_CHUNK
from kit.components.agents.errors import ModelFailed
from kit.errors import BusError, DeadlineExceeded, JobDead, KitError, NotStored
from kit.otel import semconv

if TYPE_CHECKING:
    from kit.components.agents.runs import Run
    from kit.nats.bus import Bus

_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "refusal")
_FUNCTION = ("name", "description", "parameters", "strict")
_PARAMETERS_TEXT = """
temperature max_tokens max_completion_tokens top_p n seed stop presence_penalty frequency_penalty response_format
parallel_tool_calls reasoning_effort logprobs top_logprobs logit_bias user
"""
_PARAMETERS = frozenset(_PARAMETERS_TEXT.split())
# Not the caller's to say: addresses and keys are the gateway's, and the bus streams in its own way.
_DROPPED = frozenset(
    ("api_key", "api_base", "extra_headers", "extra_query", "stream", "stream_options", "messages", "model", "tools")
)


class GatewayClient:
    """What Agno's ``LiteLLM`` takes for a client, for one run of an agent.

    Args:
        run: which asks, for ids and as the place where tokens, cost and failures are noted.
        timeout: seconds for one answer.
    """

    def __init__(self, bus: Bus, run: Run, *, timeout: float) -> None:
        self._bus, self._run, self._timeout = bus, run, timeout

    async def acompletion(self, **kwargs: Any) -> Any:
        """Ask the gateway; return a response, or with ``stream=True`` an async iterator of its pieces.

        Raises:
            ModelFailed: the gateway gave no answer.
        """
        data = self._request(kwargs)
        if kwargs.get("stream"):
            return self._pieces(data)
        try:
            with self._operation(data) as op:
                answered = await self._bus.run(
                    GATEWAY_REQUESTS, data, timeout=self._timeout, message_id=self._message_id(data)
                )
                self._note(op, answered.data)
        except KitError as error:
            raise self._failed(data["model"], error) from error
        return response_of(answered.data)

    async def _pieces(self, data: dict[str, Any]) -> AsyncIterator[Any]:
        data["stream"] = True
        streamed = self._bus.stream(GATEWAY_REQUESTS, data, timeout=self._timeout, message_id=self._message_id(data))
        try:
            with self._operation(data) as op:
                async for message in streamed:
                    if message.message_type == LLM_CHUNK:
                        yield chunk_of(message.data)
                    else:
                        self._note(op, message.data)
                        yield SimpleNamespace(choices=[], usage=usage_of(message.data["tokens"]))
        except KitError as error:
            raise self._failed(data["model"], error) from error
        finally:
            await streamed.aclose()  # type: ignore[attr-defined]

    def _request(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run
        known = {
            "agent_id": run.agent_id, "session_id": run.session_id, "user_id": run.user_id, "task_id": run.task_id,
        }  # fmt: skip
        return {
            "request_id": uuid.uuid4().hex, "tenant_id": self._bus.tenant_id, "timestamp": codec.now(),
            "timeout": self._timeout, "component": "agents",
            **{name: value for name, value in known.items() if value is not None},
            **request_of(kwargs),
        }  # fmt: skip

    def _message_id(self, data: Mapping[str, Any]) -> str | None:
        """Name the call of a task by what it asks: run again after a crash, it is answered from memory, not anew."""
        if self._run.task_id is None:
            return None
        asked = codec.dumps({name: data.get(name) for name in ("model", "messages", "tools", "parameters")})
        task = hashlib.sha256(self._run.run_id.encode()).hexdigest()[:24]
        return f"llm-{task}-{hashlib.sha256(asked).hexdigest()[:24]}{'-s' if data.get('stream') else ''}"

    def _operation(self, data: Mapping[str, Any]) -> Any:
        attributes: dict[str, Any] = {
            semconv.AGENT_ID: self._run.agent_id,
            semconv.LLM_MODEL: data["model"],
            semconv.TOOLS_COUNT: len(data.get("tools") or ()),
        }
        return self._bus.telemetry.operation(AGENT_LLM_CALL, attributes)

    def _note(self, op: Any, answer: Mapping[str, Any]) -> None:
        tokens = answer["tokens"]
        op.set(semconv.LLM_TOKENS, tokens["total"])
        if answer["cost"] is not None:
            op.set(semconv.LLM_COST, answer["cost"])
        self._run.spent(answer)

    def _failed(self, model: str, error: KitError) -> ModelFailed:
        if isinstance(error, JobDead):
            failed = ModelFailed(model, error_type=error.error_type, detail=error.detail)
        else:
            passing = isinstance(error, BusError | NotStored)
            detail = "no answer in time" if isinstance(error, DeadlineExceeded) else str(error)
            failed = ModelFailed(model, error_type=type(error).__name__, detail=detail, retryable=passing)
        self._run.fault = failed
        return failed


def request_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an ``acompletion`` call goes into an ``llm_request``: model, messages, tools and parameters."""
    data: dict[str, Any] = {"model": kwargs["model"], "messages": [_message(m) for m in kwargs["messages"]]}
    if kwargs.get("tools"):
        data["tools"] = [_tool(tool) for tool in kwargs["tools"]]
        if kwargs.get("tool_choice") is not None:
            data["tool_choice"] = kwargs["tool_choice"]
    given = {name: value for name, value in kwargs.items() if name not in _DROPPED and value is not None}
    given.pop("tool_choice", None)
    parameters = {name: value for name, value in given.items() if name in _PARAMETERS}
    if "response_format" in parameters:
        parameters["response_format"] = _format(parameters["response_format"])
    extra = {name: value for name, value in given.items() if name not in _PARAMETERS}
    extra.update(extra.pop("extra_body", None) or {})
    if extra:
        parameters["extra"] = extra
    if parameters:
        data["parameters"] = parameters
    return data


def response_of(answer: Mapping[str, Any]) -> Any:
    """Return an ``llm_response`` in the form of LiteLLM's own."""
    calls = [_call(call, index) for index, call in enumerate(answer.get("tool_calls") or ())]
    message = SimpleNamespace(
        role="assistant", content=answer["response"], tool_calls=calls or None,
        reasoning_content=answer.get("reasoning_content"), refusal=answer.get("refusal"),
    )  # fmt: skip
    choice = SimpleNamespace(index=0, message=message, finish_reason=answer.get("finish_reason", "stop"))
    return SimpleNamespace(
        id=answer["request_id"], model=answer["model"], choices=[choice], usage=usage_of(answer["tokens"])
    )


def chunk_of(piece: Mapping[str, Any]) -> Any:
    """Return an ``llm_chunk`` in the form of LiteLLM's own."""
    calls = [_call(call, call["index"]) for call in piece.get("tool_calls") or ()]
    delta = SimpleNamespace(
        content=piece.get("text"), tool_calls=calls or None, reasoning_content=piece.get("reasoning_content")
    )
    choice = SimpleNamespace(index=0, delta=delta, finish_reason=piece.get("finish_reason"))
    return SimpleNamespace(choices=[choice], usage=None)


def usage_of(tokens: Mapping[str, int]) -> Any:
    """Return token counts in the form of LiteLLM's own."""
    return SimpleNamespace(
        prompt_tokens=tokens["prompt"], completion_tokens=tokens["completion"], total_tokens=tokens["total"],
        prompt_tokens_details=SimpleNamespace(cached_tokens=tokens.get("cached", 0)),
        completion_tokens_details=SimpleNamespace(reasoning_tokens=tokens.get("reasoning", 0)),
    )  # fmt: skip


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: message[name] for name in _MESSAGE if name in message}
    for name in ("name", "tool_call_id"):  # Agno sends them empty where there are none
        if not kept.get(name):
            kept.pop(name, None)
    if kept.get("tool_calls"):
        kept["tool_calls"] = [_sent_call(call, index) for index, call in enumerate(kept["tool_calls"])]
        kept["content"] = kept.get("content") or None
    else:
        kept.pop("tool_calls", None)
    return kept


def _sent_call(call: Mapping[str, Any], index: int) -> dict[str, Any]:
    function = call["function"]
    return {
        "id": call.get("id") or f"call_{index}",
        "type": "function",
        "function": {"name": function["name"], "arguments": function.get("arguments") or "{}"},
    }


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    kept = {name: function[name] for name in _FUNCTION if function.get(name) is not None}
    return {"type": "function", "function": kept}


def _format(wanted: Any) -> Any:
    if not isinstance(wanted, type):
        return wanted
    schema: Any = wanted
    return {"type": "json_schema", "json_schema": {"name": wanted.__name__, "schema": schema.model_json_schema()}}


def _call(call: Mapping[str, Any], index: int) -> Any:
    function: Mapping[str, Any] = call.get("function") or {}
    return SimpleNamespace(
        id=call.get("id"), type=call.get("type") or "function", index=index,
        function=SimpleNamespace(name=function.get("name"), arguments=function.get("arguments")),
    )  # fmt: skip


def messages_of(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return stored messages of earlier runs as Agno takes them."""
    return [{name: value for name, value in message.items() if value is not None} for message in history]
