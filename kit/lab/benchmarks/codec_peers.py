"""What people would use instead of ``kit.codec``; each is loaded by its name, and one that is missing is reported.

Peers that compile a JSON Schema get the kit's own; msgspec and pydantic get the classes that one would write by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from kit.lab.benchmarks.contest import Contender, installed

Writer = tuple[Callable[[], Any], bool]
Both = tuple[Callable[[], Any], Contender]
REFERENCE = "jsonschema + orjson"
"""By whose reading of JSON Schema the others go; it takes many times as long as they do."""

_STRUCT, _TIMED = "msgspec, a Struct", "msgspec, a Struct, times as datetime"
_WRITES_UNCHECKED = frozenset({_STRUCT})  # a Struct that was made in Python is written as it is
_READS_ONLY = frozenset({_TIMED})  # it would write a time without its zeros
_TOKEN = "^[a-z0-9][a-z0-9_-]{0,62}$"
_UTC = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$"


def writers(
    message: dict[str, Any], contract: dict[str, Any], orjson: ModuleType
) -> tuple[dict[str, Writer], tuple[str, ...]]:
    """Return who else writes the envelope of a message, and who is not installed."""
    found, absent = _peers(message, b"", contract, orjson)
    checks = {name: reader.contract and name not in _WRITES_UNCHECKED for name, (_, reader) in found.items()}
    written = {name: (write, checks[name]) for name, (write, _) in found.items() if name not in _READS_ONLY}
    return written, tuple(name for name in absent if name not in _READS_ONLY)


def readers(
    message: dict[str, Any], payload: bytes, contract: dict[str, Any], orjson: ModuleType
) -> tuple[dict[str, Contender], tuple[str, ...]]:
    """Return who else reads the envelope of a message, and who is not installed."""
    found, absent = _peers(message, payload, contract, orjson)
    return {name: reader for name, (_, reader) in found.items()}, absent


def _peers(
    message: dict[str, Any], payload: bytes, contract: dict[str, Any], orjson: ModuleType
) -> tuple[dict[str, Both], tuple[str, ...]]:
    found: dict[str, Both] = {}
    absent: list[str] = []
    for label, package, make in _makers():
        if installed(package) is None:
            absent.append(label)
        else:
            found[label] = make(message, payload, contract, orjson)
    return found, tuple(absent)


def _makers() -> Iterator[tuple[str, str, Callable[..., Both]]]:
    yield _STRUCT, "msgspec", _msgspec
    yield _TIMED, "msgspec", _msgspec_timed
    yield "pydantic", "pydantic", _pydantic
    yield "fastjsonschema + orjson", "fastjsonschema", _fastjsonschema
    yield REFERENCE, "jsonschema", _jsonschema
    yield "cloudevents", "cloudevents", _cloudevents


def _msgspec(message: dict[str, Any], payload: bytes, contract: dict[str, Any], orjson: ModuleType) -> Both:
    """Struct instances instead of dicts; reading checks types, patterns and lengths, writing checks nothing."""
    from typing import Annotated

    return _struct_both(message, payload, Annotated[str, installed("msgspec").Meta(pattern=_UTC)])


def _msgspec_timed(message: dict[str, Any], payload: bytes, contract: dict[str, Any], orjson: ModuleType) -> Both:
    """The same with times read, which a pattern takes longer to look at; any offset passes then, not only UTC."""
    from datetime import datetime
    from typing import Annotated

    message = message | {"timestamp": datetime.fromisoformat(message["timestamp"])}
    return _struct_both(message, payload, Annotated[datetime, installed("msgspec").Meta(tz=True)])


def _struct_both(message: dict[str, Any], payload: bytes, time: Any) -> Both:
    from typing import Annotated

    msgspec = installed("msgspec")
    envelope, data = _structs(Annotated[str, msgspec.Meta(pattern=_TOKEN)], time)
    written = envelope(schema_version="1.0", message_type="agent_message", data=data(**message))
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(envelope)
    reader = Contender(call=lambda: decoder.decode(payload), check=lambda answer: bool(answer == written))
    return lambda: encoder.encode(written), reader


def closed_struct(message: dict[str, Any], payload: bytes) -> Contender:
    """Return a reader into a closed Struct of types and lengths only: no patterns, no times, no proof, no dict."""
    envelope, data = _structs(str, str)
    decoder = installed("msgspec").json.Decoder(envelope)
    expected = data(**message)
    return Contender(
        call=lambda: decoder.decode(payload), check=lambda answer: bool(answer.data == expected), contract=False
    )


def _structs(token: Any, time: Any) -> tuple[Any, Any]:
    """The classes of an envelope and of an agent's message, as one would declare them, with these kinds of text."""
    from typing import Annotated

    msgspec = installed("msgspec")
    text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    needed = {"message_id": text, "source_agent_id": token, "content": str, "message_type": text, "timestamp": time}
    optional = {"target_agent_id": token | None, "reply_to": text, "conversation_id": text, "session_id": text,
                "expects_reply": bool, "expires_at": time, "metadata": dict[str, Any]}  # fmt: skip
    unset = msgspec.UNSET
    fields = [*needed.items(), *((name, kind | msgspec.UnsetType, unset) for name, kind in optional.items())]
    data = msgspec.defstruct("AgentMessage", fields, kw_only=True, forbid_unknown_fields=True)
    head = [("schema_version", str), ("message_type", str), ("data", data)]
    return msgspec.defstruct("Envelope", head, kw_only=True, forbid_unknown_fields=True), data


def _pydantic(message: dict[str, Any], payload: bytes, contract: dict[str, Any], orjson: ModuleType) -> Both:
    """Model instances; writing makes the model of the dict first, which is where it checks."""
    from typing import Annotated

    pydantic = installed("pydantic")
    text = Annotated[str, pydantic.Field(min_length=1, max_length=200)]
    token = Annotated[str, pydantic.Field(pattern=_TOKEN)]
    time = Annotated[str, pydantic.Field(pattern=_UTC)]
    needed = {"message_id": text, "source_agent_id": token, "content": str, "message_type": text, "timestamp": time}
    optional = {"target_agent_id": token | None, "reply_to": text | None, "conversation_id": text | None,
                "session_id": text | None, "expects_reply": bool | None, "expires_at": time | None,
                "metadata": dict[str, Any] | None}  # fmt: skip
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in needed.items()}
    fields |= {name: (kind, None) for name, kind in optional.items()}
    closed = pydantic.ConfigDict(extra="forbid")
    data = pydantic.create_model("AgentMessage", __config__=closed, **fields)
    envelope = pydantic.create_model(
        "Envelope", __config__=closed, schema_version=(str, ...), message_type=(str, ...), data=(data, ...)
    )
    head = {"schema_version": "1.0", "message_type": "agent_message"}
    expected = envelope.model_validate(head | {"data": message})

    def write() -> Any:
        model = envelope.model_validate(head | {"data": message})
        return model.model_dump_json(exclude_unset=True).encode()

    return write, Contender(call=lambda: envelope.model_validate_json(payload), check=expected.__eq__)


def _fastjsonschema(message: dict[str, Any], payload: bytes, contract: dict[str, Any], orjson: ModuleType) -> Both:
    """The kit's schema as generated Python; it knows drafts up to 7, which are enough for this one."""
    draft = contract | {"$schema": "http://json-schema.org/draft-07/schema#"}
    return _checked(installed("fastjsonschema").compile(draft), message, payload, orjson)


def _jsonschema(message: dict[str, Any], payload: bytes, contract: dict[str, Any], orjson: ModuleType) -> Both:
    """The reference implementation, with its format checker."""
    validator = installed("jsonschema").Draft202012Validator
    check = validator(contract, format_checker=validator.FORMAT_CHECKER).validate
    return _checked(check, message, payload, orjson)


def _checked(check: Callable[[Any], object], message: dict[str, Any], payload: bytes, orjson: ModuleType) -> Both:
    write, read = checked_by_hand(check, "agent_message", message, payload, orjson)
    return write, Contender(call=read, check=message.__eq__)


def checked_by_hand(
    check: Callable[[Any], object], message_type: str, data: dict[str, Any], payload: bytes, orjson: ModuleType
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return how one would write an envelope of these data by hand, and read its payload: checked, with orjson."""
    head = {"schema_version": "1.0", "message_type": message_type}

    def write() -> Any:
        check(data)
        return orjson.dumps(head | {"data": data})

    def read() -> Any:
        document = orjson.loads(payload)
        check(document["data"])
        return document["data"]

    return write, read


def valid_by_hand(
    is_valid: Callable[[Any], bool], message_type: str, data: dict[str, Any], payload: bytes, orjson: ModuleType
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the same with a validator that says no more than yes or no, which is the fastest by hand."""
    head = {"schema_version": "1.0", "message_type": message_type}

    def write() -> Any:
        if not is_valid(data):
            raise ValueError("the data break the contract")
        return orjson.dumps(head | {"data": data})

    def read() -> Any:
        data = orjson.loads(payload)["data"]
        if not is_valid(data):
            raise ValueError("the data break the contract")
        return data

    return write, read


def _cloudevents(message: dict[str, Any], payload: bytes, contract: dict[str, Any], orjson: ModuleType) -> Both:
    """The standard's own envelope and SDK; it checks the envelope, and the data not at all."""
    event = installed("cloudevents.core.v1.event").CloudEvent
    form = installed("cloudevents.core.formats.json").JSONFormat()
    moment = installed("datetime").datetime.fromisoformat("2026-01-05T09:30:00+00:00")
    attributes = {"id": "msg-0001", "source": "/agents/planner", "type": "agent_message", "specversion": "1.0",
                  "time": moment, "datacontenttype": "application/json"}  # fmt: skip

    def write() -> Any:
        return form.write(event(attributes, message))

    text = write()
    read = Contender(
        call=lambda: form.read(event, text), check=lambda answer: bool(answer.get_data() == message), contract=False
    )
    return write, read
