"""The allowlist of what a request may pass to a provider; only the settings set anything else (addresses, keys, …).

Names, types and bounds are the contract's; what an older contract left open is narrowed here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from kit import codec

from .errors import RequestRefused

_MOST_TOKENS = 10_000_000
_MOST_FALLBACKS = 16
_MOST_RETRIES = 10  # of a failed check
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
_SHORT = {"type": "string", "minLength": 1, "maxLength": 200}
_TOKENS = {"type": "integer", "minimum": 1, "maximum": _MOST_TOKENS}


def _closed(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": required.split(), "additionalProperties": False,
    }  # fmt: skip


# Chat parameters that the released contracts leave open. Source: the OpenAI API reference.
_NARROWED: dict[str, Any] = {
    "max_tokens": _TOKENS,
    "reasoning_effort": _NAME,
    "stop": {"anyOf": [_SHORT, {"type": "array", "items": _SHORT, "maxItems": 16}]},
    "response_format": _closed(
        "type",
        type={"enum": ["text", "json_object", "json_schema"]},
        json_schema=_closed(
            "name", name=_NAME, description={"type": "string"}, schema={"type": "object"},
            strict={"type": ["boolean", "null"]},
        ),
    ),
    "logit_bias": {
        "type": "object", "maxProperties": 1000,
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
    "tool_choice": {
        "anyOf": [
            {"enum": ["auto", "none", "required"]},
            _closed("type function", type={"const": "function"}, function=_closed("name", name=_SHORT)),
        ]
    },
}  # fmt: skip
_EMBEDDING: dict[str, Any] = {
    "dimensions": {"type": "integer", "minimum": 1, "maximum": 100_000},
    "encoding_format": {"const": "float"},
    "user": _SHORT,
}
# Parts of a message: text or inline data. LiteLLM would fetch a URL from inside the gateway's network.
_CACHED = _closed("type", type={"const": "ephemeral"}, ttl={"enum": ["5m", "1h"]})
_PARTS: dict[str, Any] = {
    "text": _closed("type text", type=True, text={"type": "string"}, cache_control=_CACHED),
    "refusal": _closed("type refusal", type=True, refusal={"type": "string"}),
    "image_url": _closed(
        "type image_url", type=True, cache_control=_CACHED,
        image_url=_closed("url", url={"type": "string"}, detail={"enum": ["auto", "low", "high"]}),
    ),
    "input_audio": _closed(
        "type input_audio", type=True,
        input_audio=_closed("data format", data={"type": "string"}, format={"enum": ["wav", "mp3"]}),
    ),
    "file": _closed(
        "type file", type=True, cache_control=_CACHED,
        file=_closed("file_data", file_data={"type": "string"}, filename=_SHORT),
    ),
}  # fmt: skip
_INLINE = {"image_url": "url", "input_audio": "data", "file": "file_data"}
_DATA_URL = re.compile(r"data:[a-z]{1,20}/[a-z0-9.+-]{1,100};base64,", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9@_][A-Za-z0-9._:@+-]*", re.ASCII)

Allowed = Mapping[str, codec.ForeignSchema]


@functools.cache
def _chat() -> Allowed:
    contract = codec.schema("llm_request")["properties"]["parameters"]["properties"]
    taken: dict[str, dict[str, Any]] = {
        name: rule for name, rule in {**contract, **_NARROWED}.items() if name != "extra"
    }
    return {name: codec.ForeignSchema(rule) for name, rule in taken.items()}


@functools.cache
def _embedding() -> Allowed:
    return {name: codec.ForeignSchema(rule) for name, rule in _EMBEDDING.items()}


@functools.cache
def _part(kind: str) -> codec.ForeignSchema:
    return codec.ForeignSchema(_PARTS[kind])


def check_request(request: dict[str, Any]) -> None:
    """Refuse an ``llm_request`` that sets what only the operator may set; the rest may go to a provider.

    Parameters for which its version had no field (``extra``) join the others.

    Raises:
        RequestRefused: names what the request must not set.
    """
    given = dict(request.get("parameters") or {})
    given |= given.pop("extra", None) or {}
    if given:
        request["parameters"] = given
    if given or request.get("tool_choice"):
        _admit(_chat(), given | ({"tool_choice": request["tool_choice"]} if request.get("tool_choice") else {}))
    named = given.get("response_format", {}).get("json_schema", {}).get("schema")
    schemas = [named, *(tool["function"].get("parameters") for tool in request.get("tools") or ())]
    for schema in filter(None, schemas):
        foreign_schema(schema, "the schema of a tool or of response_format")
    _check_messages(request.get("messages") or ())
    if len(request.get("fallbacks") or ()) > _MOST_FALLBACKS:
        raise RequestRefused(f"a request may name at most {_MOST_FALLBACKS} fallbacks")
    if (request.get("validation") or {}).get("retries", 0) > _MOST_RETRIES:
        raise RequestRefused(f"validation.retries must be at most {_MOST_RETRIES}")


def chat_parameters(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checked request passes to the provider besides its messages."""
    return {
        **(request.get("parameters") or {}),
        **{name: request[name] for name in ("tools", "tool_choice") if request.get(name)},
    }


def embedding_parameters(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an ``embedding_request`` passes to the provider besides its texts.

    Raises:
        RequestRefused: names a parameter that no request may set, or a value out of bounds.
    """
    parameters = dict(request.get("parameters") or {})
    if "dimensions" in request:
        parameters["dimensions"] = request["dimensions"]
    _admit(_embedding(), parameters)
    return parameters


def is_model_name(name: str) -> bool:
    """Return whether a name could be a provider's model: ASCII, no URL, no path."""
    return len(name) <= 200 and all(map(_SEGMENT.fullmatch, name.split("/")))


def foreign_schema(schema: Any, where: str, *, used: bool = False) -> codec.ForeignSchema:
    """Return a request's own JSON Schema, within its bounds.

    Args:
        schema: the schema as received.
        where: its name in the error.
        used: whether the gateway validates with it, not only the provider.

    Raises:
        RequestRefused: it is too large, refers to something outside itself, or is unusable.
    """
    try:
        found = codec.ForeignSchema(schema)
        return found.compile() if used else found
    except codec.CodecError as error:
        raise RequestRefused(f"{where}: {error.reason}") from None


def _check_messages(messages: Iterable[Mapping[str, Any]]) -> None:
    """Refuse parts other than text, or images, audio and files given as inline data."""
    for number, message in enumerate(messages):
        content = message.get("content")
        for position, part in enumerate(content if isinstance(content, list) else ()):
            where = f"messages[{number}].content[{position}]"
            kind = part.get("type")
            if not isinstance(kind, str) or kind not in _PARTS:
                raise RequestRefused(f"{where} has an unsupported type: use {', '.join(_PARTS)}")
            _judge(_part(kind), part, where)
            if kind in _INLINE and not _is_inline(kind, part[kind][_INLINE[kind]]):
                wanted = "base64 data" if kind == "input_audio" else "a data: URL in base64"
                raise RequestRefused(f"{where} must be {wanted}: the gateway fetches nothing for a request")


def _admit(allowed: Allowed, parameters: Mapping[str, Any]) -> None:
    if refused := sorted(parameters.keys() - allowed.keys()):
        shown = ", ".join(codec.shorten(name, 60) for name in refused[:10])
        raise RequestRefused(f"a request must not set {shown}: set it for a model in the gateway's settings")
    for name, value in parameters.items():
        _judge(allowed[name], value, f"parameters.{name}")


def _judge(schema: codec.ForeignSchema, value: Any, where: str) -> None:
    try:
        fault = schema.fault(value)
    except codec.CodecError as error:
        raise RequestRefused(f"{where}: {error.reason}") from None
    if fault is not None:
        path = "".join(f".{codec.shorten(str(part), 60)}" for part in fault.path)
        raise RequestRefused(f"{where}{path}: {fault.reason}")


def _is_inline(kind: str, data: str) -> bool:
    if kind == "input_audio":
        return bool(_BASE64.fullmatch(data))
    header = _DATA_URL.match(data)
    return header is not None and bool(_BASE64.fullmatch(data, header.end()))
