"""Steps between versions: one function per (message type, from, to), a dict in and a new dict out.

A step that would lose something is refused by name, not taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kit.errors import MigrationError, UnknownContract

from .contracts import registry
from .envelope import Envelope, validate

Step = Callable[[dict[str, Any]], dict[str, Any]]
STEPS: dict[tuple[str, str, str], Step] = {}


def step(message_type: str, source: str, target: str) -> Callable[[Step], Step]:
    """Register the function that turns data of version ``source`` into version ``target``."""

    def register(function: Step) -> Step:
        STEPS[message_type, source, target] = function
        return function

    return register


def migrate(envelope: Envelope, target_version: str) -> Envelope:
    """Return the envelope in another version of its contract, step by step; the result is validated.

    From a minor version newer than any known the first step is to the newest known one: it changes nothing and keeps
    the fields that are unknown here, which is what a reader of that version sees.

    Raises:
        MigrationError: a step is missing, or would lose something.
        UnknownContract: nobody here knows the target version.
        ContractViolation: what came out breaks the target's schema.
    """
    message_type, version, data = envelope.message_type, envelope.schema_version, envelope.data
    if version == target_version:
        return envelope
    known = registry().versions(message_type)
    if target_version not in known:
        raise UnknownContract(f"version {target_version!r} is not known", message_type=message_type)
    if version not in known:
        version = registry().reader(message_type, version).version
        if version == target_version:
            return Envelope(message_type, version, data)
    begin, end = known.index(version), known.index(target_version)
    direction = 1 if end > begin else -1
    for position in range(begin, end, direction):
        source, target = known[position], known[position + direction]
        function = STEPS.get((message_type, source, target))
        if function is None:
            raise MigrationError(f"no step leads from {source} to {target}", message_type=message_type)
        data = function(data)
        validate(message_type, data, target)
    return Envelope(message_type, target_version, data)


def _lost(message: str, path: str) -> MigrationError:
    return MigrationError(message, message_type="llm_request", path=path)


@step("llm_request", "1.0", "1.1")
def llm_request_up(data: dict[str, Any]) -> dict[str, Any]:
    """Turn the prompt of 1.0 into the one message of a conversation."""
    rest = {key: value for key, value in data.items() if key != "prompt"}
    return {**rest, "messages": [{"role": "user", "content": data["prompt"]}]}


@step("llm_request", "1.1", "1.0")
def llm_request_down(data: dict[str, Any]) -> dict[str, Any]:
    """Turn a request of one user message back into its prompt.

    Raises:
        MigrationError: something that 1.0 has no field for would be lost; the path names it.
    """
    kept: dict[str, Any] = {key: data[key] for key in ("request_id", "model", "tenant_id", "timestamp") if key in data}
    parameters = data.get("parameters")
    if parameters is not None:
        kept["parameters"] = parameters
        for name in parameters:
            if name not in ("temperature", "max_tokens"):
                raise _lost("1.0 has no such parameter", f"/data/parameters/{name}")
    for name in data:
        if name not in kept and name not in ("prompt", "messages"):
            raise _lost("1.0 has no such field", f"/data/{name}")
    return {**kept, "prompt": data["prompt"] if "prompt" in data else _only_prompt(data["messages"])}


def _only_prompt(messages: list[dict[str, Any]]) -> str:
    """Return the text of a conversation that is one user message.

    Raises:
        MigrationError: it is more than that.
    """
    if len(messages) != 1:
        raise _lost(f"a conversation of {len(messages)} messages is more than a prompt", "/data/messages")
    (message,) = messages
    if message["role"] != "user":
        raise _lost(f"a message of the {message['role']} is no prompt", "/data/messages/0/role")
    for name in message:
        if name not in ("role", "content"):
            raise _lost("1.0 has no such field", f"/data/messages/0/{name}")
    content = message.get("content")
    if not isinstance(content, str):
        raise _lost("content that is not text is no prompt", "/data/messages/0/content")
    return content


_PARAMETERS_OF_1_2 = ("max_completion_tokens", "n", "logit_bias", "top_logprobs", "user")


@step("llm_request", "1.1", "1.2")
def llm_request_same(data: dict[str, Any]) -> dict[str, Any]:
    """Return the request unchanged: 1.2 only declares more parameters."""
    return data


@step("llm_request", "1.2", "1.1")
def llm_request_to_1_1(data: dict[str, Any]) -> dict[str, Any]:
    """Move the parameters that 1.1 has no field for into ``extra``.

    Raises:
        MigrationError: an unknown field would be lost; the path names it.
    """
    for name in data:
        if name not in registry().schema("llm_request", "1.1")["properties"]:
            raise _lost("1.1 has no such field", f"/data/{name}")
    given = data.get("parameters") or {}
    if not (moved := {name: given[name] for name in _PARAMETERS_OF_1_2 if name in given}):
        return data
    rest = {name: value for name, value in given.items() if name not in moved}
    return {**data, "parameters": {**rest, "extra": {**given.get("extra", {}), **moved}}}


@step("rag_status", "1.0", "1.1")
def rag_status_up(data: dict[str, Any]) -> dict[str, Any]:
    """Return the status unchanged: 1.1 only adds notes."""
    return dict(data)


@step("rag_status", "1.1", "1.0")
def rag_status_down(data: dict[str, Any]) -> dict[str, Any]:
    """Return a status without notes.

    Raises:
        MigrationError: it has notes.
    """
    if "notes" in data:
        raise MigrationError("1.0 has no such field", message_type="rag_status", path="/data/notes")
    return dict(data)
