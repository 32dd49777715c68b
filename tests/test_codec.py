"""An envelope is read exactly, or refused with the path of the fault; what is written is read back equal."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import math
import re
import uuid
from decimal import Decimal
from typing import Any
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest

from kit import codec
from kit.codec import (
    CodecError,
    ContractViolation,
    Envelope,
    MalformedEnvelope,
    UnknownContract,
    decode,
    dumps,
    encode,
    latest,
    loads,
    message_types,
    now,
    schema,
    validate,
    versions,
)

MESSAGE: dict[str, Any] = {
    "message_id": "m-1",
    "source_agent_id": "researcher",
    "target_agent_id": "writer",
    "content": "How do I copy a file?",
    "message_type": "question",
    "timestamp": "2025-06-01T12:00:00.000000Z",
    "metadata": {"topic": "files", "score": 0.25, "tags": ["a", None, True, 3]},
}


def message(**changed: Any) -> dict[str, Any]:
    return {**MESSAGE, **changed}


def wire(data: Any = None, *, version: Any = "1.0", message_type: Any = "agent_message", **more: Any) -> bytes:
    """An envelope that nobody checked."""
    document = {
        "schema_version": version,
        "message_type": message_type,
        "data": MESSAGE if data is None else data,
        **more,
    }
    return json.dumps(document, separators=(",", ":")).encode()


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    ANSWER = "answer"


@dataclasses.dataclass
class Point:
    x: int = 1


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_what_is_encoded_decodes_equal() -> None:
    for _ in range(3):  # the first time by the long way, later by the fast one
        envelope = decode(encode("agent_message", MESSAGE))
        assert envelope == Envelope("agent_message", "1.0", MESSAGE)


def test_the_envelope_is_one_json_object_of_three_fields() -> None:
    assert json.loads(encode("agent_message", MESSAGE)) == {
        "schema_version": "1.0",
        "message_type": "agent_message",
        "data": MESSAGE,
    }


def test_an_envelope_is_frozen() -> None:
    envelope = decode(encode("agent_message", MESSAGE))
    with pytest.raises(AttributeError):
        envelope.message_type = "other"  # type: ignore[misc]


def test_the_latest_version_is_written_unless_one_is_named() -> None:
    request = {"request_id": "r", "prompt": "hi", "model": "m", "tenant_id": "acme", "timestamp": now()}
    assert versions("llm_request") == ("1.0", "1.1", "1.2")
    assert decode(encode("llm_request", request)).schema_version == latest("llm_request") == "1.2"
    assert decode(encode("llm_request", request, "1.0")).schema_version == "1.0"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_are_decoded(kind: Any) -> None:
    payload = encode("agent_message", MESSAGE)
    assert decode(kind(payload)).data == MESSAGE
    assert decode(memoryview(payload * 2)[: len(payload)]).data == MESSAGE


def test_bytes_that_do_not_lie_side_by_side_are_decoded() -> None:
    payload = encode("agent_message", MESSAGE)
    apart = bytes(byte for pair in zip(payload, payload[::-1], strict=True) for byte in pair)
    assert decode(memoryview(apart)[::2]).data == MESSAGE


@pytest.mark.parametrize("layout", ["spaced", "reordered", "escaped", "trailing"])
def test_other_layouts_of_the_same_json_decode_to_the_same(layout: str) -> None:
    document = json.loads(wire())
    payload = {
        "spaced": json.dumps(document, indent=2),
        "reordered": json.dumps(dict(reversed(document.items()))),
        "escaped": json.dumps(document).replace("files", "\\u0066iles"),
        "trailing": json.dumps(document, separators=(",", ":")) + "\n ",
    }[layout]
    assert decode(payload.encode()).data == MESSAGE


@pytest.mark.parametrize(
    ("payload", "kind", "path"),
    [
        (b"", MalformedEnvelope, None),
        (b"{", MalformedEnvelope, None),
        (b"[]", MalformedEnvelope, ""),
        (b"null", MalformedEnvelope, ""),
        (b'"text"', MalformedEnvelope, ""),
        (b"\xef\xbb\xbf{}", MalformedEnvelope, None),
        (b"\xff\xfe", MalformedEnvelope, None),
        (b"{}", MalformedEnvelope, ""),
        (wire()[:-1], MalformedEnvelope, None),
        (wire() + b"x", MalformedEnvelope, None),
        (wire(extra=1), MalformedEnvelope, "/extra"),
        (wire(message_type=7), MalformedEnvelope, "/message_type"),
        (wire(message_type=[]), MalformedEnvelope, "/message_type"),
        (wire(message_type={}), MalformedEnvelope, "/message_type"),
        (wire(version=1.0), MalformedEnvelope, "/schema_version"),
        (wire(version="1"), MalformedEnvelope, "/schema_version"),
        (wire(version="01.0"), MalformedEnvelope, "/schema_version"),
        (wire(version="1.0\n"), MalformedEnvelope, "/schema_version"),
        (wire(version="1.0.0"), MalformedEnvelope, "/schema_version"),
        (wire(version="1." + "9" * 5000), MalformedEnvelope, "/schema_version"),
        (wire(version="\u0661.0"), MalformedEnvelope, "/schema_version"),
        (wire(version=None), MalformedEnvelope, "/schema_version"),
        (wire(version=["1.0"]), MalformedEnvelope, "/schema_version"),
        (wire(message_type="nobody_knows"), UnknownContract, None),
        (wire(message_type="x" * 10_000), UnknownContract, None),
        (wire(version="2.0"), UnknownContract, None),
        (wire(version="0.9"), UnknownContract, None),
        (wire([]), ContractViolation, "/data"),
        (wire(message(content=None)), ContractViolation, "/data/content"),
        (wire(message(surprise=1)), ContractViolation, "/data/surprise"),
        (wire({k: v for k, v in MESSAGE.items() if k != "content"}), ContractViolation, "/data"),
        (wire(message(timestamp="yesterday")), ContractViolation, "/data/timestamp"),
        (wire(message(timestamp="2025-06-01T12:00:00")), ContractViolation, "/data/timestamp"),
        (wire(message(timestamp="2025-06-01T12:00:00.000000+02:00")), ContractViolation, "/data/timestamp"),
        (wire(message(timestamp="2025-02-30T12:00:00.000000Z")), ContractViolation, "/data/timestamp"),
        (wire(message(timestamp="2025-W22-7T12:00:00.000000Z")), ContractViolation, "/data/timestamp"),
        (wire(message(source_agent_id="a.b")), ContractViolation, "/data/source_agent_id"),
        (wire(message(source_agent_id="a\n")), ContractViolation, "/data/source_agent_id"),
        (wire(message(source_agent_id="a" * 64)), ContractViolation, "/data/source_agent_id"),
        (wire().replace(b"0.25", b"1e400"), MalformedEnvelope, None),
        (wire().replace(b"0.25", b"NaN"), MalformedEnvelope, None),
        (wire().replace(b"0.25", b"-Infinity"), MalformedEnvelope, None),
        (wire().replace(b"0.25", b"18446744073709551616"), MalformedEnvelope, "/data/metadata/score"),
        (wire().replace(b"0.25", b"-9223372036854775809"), MalformedEnvelope, "/data/metadata/score"),
        (wire().replace(b"0.25", b"9" * 5000), MalformedEnvelope, None),
        (wire().replace(b"0.25", b'"\\ud800"'), MalformedEnvelope, None),
        (wire().replace(b"0.25", b'{"a":1,"a":1}'), MalformedEnvelope, "/data/metadata/score/a"),
        (wire().replace(b'"content"', b'"content":"x","content"'), MalformedEnvelope, "/data/content"),
        (wire().replace(b'"data"', b'"data":{},"data"'), MalformedEnvelope, "/data"),
        (wire().replace(b"0.25", b"[" * 1020 + b"]" * 1020), MalformedEnvelope, None),
        (wire().replace(b"0.25", b"[" * 300 + b"]" * 300), MalformedEnvelope, None),
        (wire().replace(b"0.25", b"[" * 100_000), MalformedEnvelope, None),
        (wire().replace(b"files", b"fi\0les"), MalformedEnvelope, None),
        (wire() + b"\0", MalformedEnvelope, "/data"),
        (wire() + b"\0\0\0\0\0", MalformedEnvelope, "/data"),
    ],
)
def test_hostile_bytes_end_in_a_codec_error_with_the_path(
    payload: bytes, kind: type[CodecError], path: str | None
) -> None:
    for _ in range(2):
        with pytest.raises(kind) as caught:
            decode(payload)
        if path is not None:
            assert caught.value.path == path
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("payload", ["text", None, 7, [1], {"data": 1}, object()])
def test_what_is_no_bytes_ends_in_a_codec_error(payload: Any) -> None:
    with pytest.raises(MalformedEnvelope):
        decode(payload)


def test_a_released_memoryview_ends_in_a_codec_error() -> None:
    view = memoryview(encode("agent_message", MESSAGE))
    view.release()
    with pytest.raises(MalformedEnvelope):
        decode(view)


@pytest.mark.parametrize(
    "literal",
    ["18446744073709551615", "-9223372036854775808", "0.1", "1e22", "-0.0", '"\\u0000"', '"\\ud83d\\ude00"', "1E5"],
)
def test_what_python_can_keep_is_accepted_exactly(literal: str) -> None:
    value = decode(wire().replace(b"0.25", literal.encode())).data["metadata"]["score"]
    expected = json.loads(literal)
    assert value == expected
    assert type(value) is type(expected)


def test_an_integer_may_be_written_as_a_whole_float_as_json_schema_has_it() -> None:
    task = {"task_id": "t", "task_type": "x", "parameters": {}, "timestamp": now(), "priority": 3}
    assert (
        decode(wire(task, message_type="agent_task").replace(b'"priority":3', b'"priority":3.0')).data["priority"] == 3
    )
    with pytest.raises(ContractViolation, match="priority"):
        decode(wire(task, message_type="agent_task").replace(b'"priority":3', b'"priority":3.5'))


def test_a_newer_minor_is_read_and_keeps_what_is_unknown_here() -> None:
    data = message(mood="curious", metadata={"x": 1})
    envelope = decode(wire(data, version="1.7"))
    assert envelope == Envelope("agent_message", "1.7", data)
    with pytest.raises(ContractViolation) as caught:
        decode(wire(message(mood="curious", content=3), version="1.7"))
    assert caught.value.path == "/data/content"
    with pytest.raises(ContractViolation):
        encode("agent_message", data)


def test_a_newer_major_is_unknown_rather_than_guessed_at() -> None:
    with pytest.raises(UnknownContract, match=r"2\.0.*known are 1\.0") as caught:
        decode(wire(version="2.0"))
    assert caught.value.message_type == "agent_message"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        (2**64, "64 bits"),
        (-(2**63) - 1, "64 bits"),
        ((1, 2), "tuple"),
        ({1, 2}, "set"),
        (b"bytes", "bytes"),
        (datetime.datetime.now(datetime.UTC), "datetime"),
        (datetime.date.today(), "date"),
        (uuid.UUID(int=1), "UUID"),
        (Decimal("1.5"), "Decimal"),
        (Colour.RED, "Colour"),
        (Point(), "Point"),
        (np.float64(1.5), "float64"),
        (np.int64(1), "int64"),
        (np.bool_(True), "bool"),
        (np.zeros(2, np.float32), "ndarray"),
        ("\ud800", "surrogate"),
        ({1: "x"}, "key is int"),
        ({None: "x"}, "key is NoneType"),
        ({"\ud800": 1}, "surrogate"),
        (nested(254), "nested deeper"),
        (nested(100_000), "nested deeper"),
        (range(3), "range"),
        (object(), "object"),
        (1j, "complex"),
    ],
)
def test_python_data_that_json_cannot_carry_is_refused_by_its_path(value: Any, reason: str) -> None:
    for _ in range(2):
        with pytest.raises(ContractViolation, match=reason) as caught:
            encode("agent_message", message(metadata={"a/b": [0, value]}))
        assert (caught.value.path or "").startswith("/data/metadata/a~1b/1")


@pytest.mark.parametrize(
    "value", ["\ud800", 7, None, ("x",), Colour.RED, b"x", np.str_("x"), datetime.datetime.now(datetime.UTC)]
)
def test_a_declared_field_is_held_to_its_type(value: Any) -> None:
    for _ in range(2):
        with pytest.raises(ContractViolation) as caught:
            encode("agent_message", message(content=value))
        assert caught.value.path == "/data/content"


@pytest.mark.parametrize("data", [None, [], (), "x", 3, object(), {1: 2}, set(), [MESSAGE]])
def test_data_that_are_no_object_are_refused(data: Any) -> None:
    with pytest.raises(ContractViolation):
        encode("agent_message", data)


def test_a_tuple_is_no_array() -> None:
    request = {"request_id": "r", "texts": ("a", "b"), "model": "m", "tenant_id": "acme", "timestamp": now()}
    for _ in range(2):
        with pytest.raises(ContractViolation, match="tuple") as caught:
            encode("embedding_request", request)
        assert caught.value.path == "/data/texts"


def test_an_enum_that_equals_its_value_may_be_written() -> None:
    assert decode(
        encode("agent_message", message(message_type=Word.ANSWER, metadata={"kind": Word.ANSWER}))
    ).data == message(message_type="answer", metadata={"kind": "answer"})


def test_a_cycle_ends_in_a_codec_error() -> None:
    metadata: dict[str, Any] = {}
    metadata["self"] = metadata
    with pytest.raises(ContractViolation, match="nested deeper"):
        encode("agent_message", message(metadata=metadata))


def test_depth_has_one_limit_for_writing_and_reading() -> None:
    deep = message(metadata={"deep": nested(252)})
    assert decode(encode("agent_message", deep)).data == deep
    assert decode(wire(deep)).data == deep
    assert decode(json.dumps(json.loads(wire(deep)), indent=0).encode()).data == deep
    deeper = message(metadata={"deep": nested(253)})
    with pytest.raises(CodecError, match="nested deeper"):
        encode("agent_message", deeper)
    with pytest.raises(CodecError, match="nested deeper"):
        decode(wire(deeper))


def test_large_messages_pass() -> None:
    large = message(content="ä\n" * 1_000_000, metadata={"numbers": [index / 7 for index in range(20_000)]})
    assert decode(encode("agent_message", large)).data == large


@pytest.mark.parametrize(
    ("message_type", "version"), [("nobody", None), ("agent_message", "1.1"), (3, None), ([], None)]
)
def test_encoding_what_nobody_knows_is_refused(message_type: Any, version: str | None) -> None:
    with pytest.raises(UnknownContract):
        encode(message_type, MESSAGE, version)


@pytest.mark.parametrize("version", ["", "latest", "1.0 ", 1.0, ["1.0"], "9" * 10_000])
def test_a_version_that_is_none_is_refused(version: Any) -> None:
    with pytest.raises(UnknownContract):
        encode("agent_message", MESSAGE, version)


def test_validate_says_what_encode_would() -> None:
    validate("agent_message", MESSAGE)
    with pytest.raises(ContractViolation) as caught:
        validate("agent_message", message(content=3), "1.0")
    assert caught.value.path == "/data/content"


def test_no_error_shows_a_value() -> None:
    secret = "sk-canary-4711"
    for changed in (
        {"content": [secret]},
        {"timestamp": secret},
        {"source_agent_id": secret + "!"},
        {"metadata": {"x": (secret,)}},
        {"metadata": {"x": {secret}}},
        {"message_id": secret * 100},
    ):
        with pytest.raises(CodecError) as caught:
            encode("agent_message", message(**changed))
        shown = f"{caught.value} {caught.value!r} {vars(caught.value)} {caught.value.__cause__!r}"
        assert secret not in shown
    for payload in (
        wire(message(content=[secret])),
        wire(message(content=secret))[:-2],
        wire(message(timestamp=secret)),
    ):
        with pytest.raises(CodecError) as caught:
            decode(payload)
        assert secret not in f"{caught.value} {vars(caught.value)} {caught.value.__cause__!r}"


def test_names_from_strangers_are_shown_short_and_printable() -> None:
    with pytest.raises(ContractViolation) as caught:
        decode(wire(message(**{"\x1b[31m" + "x" * 10_000: 1})))
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


def test_now_is_utc_to_the_microsecond() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", now())
    assert abs((datetime.datetime.fromisoformat(now()) - datetime.datetime.now(datetime.UTC)).total_seconds()) < 5


def test_every_message_type_has_a_latest_version() -> None:
    assert all(latest(name) == versions(name)[-1] for name in message_types())
    assert schema("llm_request")["$id"] == "urn:kit:schema:llm_request:1.2"
    assert schema("llm_request", "1.0")["title"] == "llm_request 1.0"
    with pytest.raises(UnknownContract):
        versions("nobody")


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "ä", [], {}, {"a": [1, {"b": None}]}, 2**64 - 1, [[[]]]])
def test_plain_json_is_written_and_read_exactly(value: Any) -> None:
    assert loads(dumps(value)) == value
    assert loads(dumps(value, indent=True)) == value
    assert loads(bytearray(dumps(value))) == loads(dumps(value).decode()) == value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, ""),
        ({"a": [math.inf]}, "/a/0"),
        ([(1,)], "/0"),
        ({"a": {1: 2}}, "/a"),
        (2**64, ""),
        (["\ud800"], "/0"),
    ],
)
def test_plain_json_refuses_what_it_cannot_carry(value: Any, path: str) -> None:
    with pytest.raises(CodecError) as caught:
        dumps(value)
    assert caught.value.path == path


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", '"\ud800"', b'{"a":1,"a":2}', b"123456789012345678901", b"\xff"])
def test_plain_json_reads_exactly_or_not_at_all(text: Any) -> None:
    with pytest.raises(MalformedEnvelope):
        loads(text)


class Liar:
    """An object that says it is of another class."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    @property
    def __class__(self) -> Any:
        return self._kind


class Raiser:
    """An object that will not say what it is."""

    @property
    def __class__(self) -> Any:
        raise ZeroDivisionError


class OddDict(dict[str, Any]):
    """A mapping that cannot be read."""

    def __iter__(self) -> Any:
        raise ZeroDivisionError

    keys = items = values = __len__ = __iter__


LIES: list[Any] = [
    *(Liar(kind) for kind in (dict, list, str, int, float, bool, tuple, type(None), bytes, np.ndarray, enum.Enum)),
    *(Mock(spec=kind) for kind in (dict, list, str, int, float, bytes, np.ndarray)), MagicMock(spec=dict), MagicMock(),
    Raiser(), OddDict(a=1),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(LIES)))  # pytest looks at what it is given
def test_objects_that_lie_about_their_class_are_refused_by_path(number: int) -> None:
    lie = LIES[number]
    data = {"request_id": "r", "model": "m", "tenant_id": "acme", "timestamp": codec.now(), "prompt": "x"}
    memory = {"agent_id": "a", "memory_id": "m", "memory_type": "fact", "content": "x", "timestamp": codec.now()}
    for message_type, wrong in (
        ("llm_request", lie),
        ("llm_request", data | {"prompt": lie}),
        ("llm_request", data | {"parameters": {"temperature": lie}}),
        ("llm_request", data | {"metadata": {"a": [1, lie]}}),
        ("memory_item", memory | {"embedding": lie}),
    ):
        for check in (codec.encode, codec.validate):
            with pytest.raises(CodecError):
                check(message_type, wrong)
    for call in (codec.dumps, codec.loads, codec.decode):
        with pytest.raises(CodecError):
            call(lie)
    with pytest.raises(CodecError):
        codec.encode(lie, data)
