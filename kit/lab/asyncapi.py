"""The catalogue and the schemas as one AsyncAPI 3.0 document, for tools of any language.

Every operation becomes a channel with two operations, one a side: what its publisher sends, and what its workers
or watchers receive. Answers travel on a channel whose address is not known beforehand: the caller's inbox.

Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from kit import codec
from kit.catalogue import ERROR, MESSAGE_TYPES, OPERATIONS, Mode, Operation
from kit.lab.catalogue_export import address_pattern, subject_pattern

PARAMETERS = {
    "tenant_id": {"description": "Whose messages these are: `^[a-z0-9][a-z0-9_-]{0,62}$`.", "examples": ["acme"]},
    "receiver": {"description": "The one receiver, by the same pattern.", "examples": ["agent-2"]},
}
TRACE_HEADERS = {
    "type": "object",
    "properties": {
        "traceparent": {"type": "string", "description": "W3C trace context of the sender's span."},
        "tracestate": {"type": "string"},
        "baggage": {"type": "string"},
    },
}
_PROMISES = {
    Mode.EVENT: "Fan-out to everyone who listens.",
    Mode.REQUEST: "Answered on the caller's inbox, or an error, within the deadline.",
    Mode.JOB: "Durable work queue: at least once, effect once, never lost; the result goes to the caller's inbox.",
}


def document() -> dict[str, Any]:
    """Return the AsyncAPI document as plain JSON."""
    return {
        "asyncapi": "3.0.0",
        "info": _info(),
        "defaultContentType": "application/json",
        "servers": {
            "nats": {
                "host": "{host}",
                "protocol": "nats",
                "description": "A NATS server with JetStream; one account a tenant.",
                "variables": {"host": {"default": "127.0.0.1:4222", "description": "Where NATS_URL points to."}},
            }
        },
        "channels": {name: channel for row in OPERATIONS for name, channel in _channels(row).items()},
        "operations": {name: operation for row in OPERATIONS for name, operation in _operations(row).items()},
        "components": {
            "schemas": {name: schema for message in MESSAGE_TYPES for name, schema in _schemas(message).items()},
            "messages": {name: body for message in MESSAGE_TYPES for name, body in _messages(message).items()},
            "parameters": PARAMETERS,
        },
    }


def _info() -> dict[str, Any]:
    return {
        "title": "kit",
        "version": metadata.version("kit"),
        "description": "AI components that talk through checked, delivered and observed messages.",
        "license": {"name": "Apache-2.0"},
        "tags": [{"name": component} for component in dict.fromkeys(row.component for row in OPERATIONS)],
    }


def _channels(row: Operation) -> dict[str, Any]:
    names = _message_names(row.message_type)
    channel = _channel(subject_pattern(row), names, row.purpose, parameters=("tenant_id",))
    channel["tags"] = [{"name": row.component}, {"name": str(row.mode)}]
    if row.stream is not None:
        channel["x-jetstream"] = _stream(row)
    channels = {row.name: channel}
    to_one = address_pattern(row)
    if to_one is not None:
        parameters = ("tenant_id", "receiver")
        channels[f"{row.name}_TO"] = _channel(to_one, names, f"{row.purpose}: to one receiver", parameters=parameters)
    if row.result_type is not None:
        answers = [*_message_names(row.result_type), *_message_names(ERROR)]
        channels[f"{row.name}_REPLY"] = _channel(None, answers, "the caller's inbox", parameters=())
    return channels


def _channel(address: str | None, messages: list[str], summary: str, *, parameters: tuple[str, ...]) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": address,
        "summary": summary,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }
    if parameters:
        channel["parameters"] = {name: {"$ref": f"#/components/parameters/{name}"} for name in parameters}
    return channel


def _stream(row: Operation) -> dict[str, Any]:
    """What JetStream keeps of a row's messages."""
    assert row.stream is not None
    if row.mode is Mode.EVENT:
        return {"stream": row.stream, "retention": "limits", "max_age_seconds": row.max_age}
    policy = row.policy
    return {
        "stream": row.stream,
        "retention": "workqueue",
        "ack_wait_seconds": policy.ack_wait,
        "max_attempts": policy.max_attempts,
        "backoff_seconds": list(policy.backoff),
    }


def _operations(row: Operation) -> dict[str, Any]:
    both = {
        "channel": {"$ref": f"#/channels/{row.name}"},
        "messages": [{"$ref": f"#/channels/{row.name}/messages/{name}"} for name in _message_names(row.message_type)],
        "description": _PROMISES[row.mode],
        "x-served": row.served,
    }
    if row.result_type is not None:
        reply = f"{row.name}_REPLY"
        names = [*_message_names(row.result_type), *_message_names(ERROR)]
        answers = [{"$ref": f"#/channels/{reply}/messages/{name}"} for name in names]
        both["reply"] = {"channel": {"$ref": f"#/channels/{reply}"}, "messages": answers}
    send = {"action": "send", "title": f"{row.publisher}: {row.purpose}", **both, "x-span": row.send_span.name}
    handle = {"action": "receive", "title": f"{row.subscriber}: {row.purpose}", **both, "x-span": row.handle_span.name}
    if row.mode is not Mode.EVENT:
        handle["bindings"] = {"nats": {"queue": row.queue, "bindingVersion": "0.1.0"}}
    return {f"{row.name}.send": send, f"{row.name}.handle": handle}


def _message_names(message_type: str) -> list[str]:
    return [f"{message_type}-{version}" for version in codec.versions(message_type)]


def _messages(message_type: str) -> dict[str, Any]:
    """Each version of a message type as it travels: the envelope around its data."""
    found = {}
    for version in codec.versions(message_type):
        envelope = {
            "type": "object",
            "required": ["schema_version", "message_type", "data"],
            "additionalProperties": False,
            "properties": {
                "schema_version": {"const": version},
                "message_type": {"const": message_type},
                "data": {"$ref": f"#/components/schemas/{message_type}-{version}"},
            },
        }
        schema = codec.schema(message_type, version)
        found[f"{message_type}-{version}"] = {
            "name": message_type,
            "title": f"{message_type} {version}",
            "summary": schema.get("description", message_type),
            "headers": TRACE_HEADERS,
            "payload": envelope,
        }
    return found


def _schemas(message_type: str) -> dict[str, Any]:
    """Each version's schema, and the definitions it shares within itself, hoisted to where the document finds them."""
    found: dict[str, Any] = {}
    for version in codec.versions(message_type):
        name = f"{message_type}-{version}"
        schema = dict(codec.schema(message_type, version))
        for dropped in ("$schema", "$id"):
            schema.pop(dropped, None)
        definitions: Mapping[str, Any] = schema.pop("$defs", {})
        found[name] = _hoisted(schema, name)
        found |= {f"{name}.{part}": _hoisted(definition, name) for part, definition in definitions.items()}
    return found


def _hoisted(schema: Any, name: str) -> Any:
    """Let a reference to a schema's own definition point to where the document holds it."""
    if isinstance(schema, list):
        return [_hoisted(item, name) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if isinstance(schema.get("$ref"), str):
        part = schema["$ref"].removeprefix("#/$defs/")
        return {**schema, "$ref": f"#/components/schemas/{name}.{part}"}
    return {key: _hoisted(value, name) for key, value in schema.items()}
