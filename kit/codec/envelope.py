"""Data <-> bytes: ``{"schema_version": …, "message_type": …, "data": …}``, checked against the contract."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from kit.errors import ContractViolation, MalformedEnvelope

from . import exact
from .contracts import Contract, parse_version, registry
from .shapes import UNSURE, Read, Write, compile_reader, compile_writer
from .tensors import Attacher, Detacher

_HEAD = slice(56)  # the bytes that tell one contract's envelopes from another's, as this kit writes them
_READERS: dict[bytes, Read] = {}  # by head; filled as contracts are met
_WRITERS: dict[str | tuple[str, str], Write] = {}  # by type, or type and version; likewise
_FIELDS = frozenset({"schema_version", "message_type", "data"})


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A decoded message: frozen.

    Attributes:
        message_type: what it is, e.g. ``"agent_message"``.
        schema_version: the version its writer used, e.g. ``"1.0"``.
        data: its content; tensors are numpy float32 arrays.
    """

    message_type: str
    schema_version: str
    data: dict[str, Any]


def now(after: float = 0.0) -> str:
    """Return the time in so many seconds as ``timestamp`` fields carry it: UTC, RFC 3339, microseconds."""
    moment = datetime.now(UTC) + timedelta(seconds=after) if after else datetime.now(UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def encode(message_type: str, data: dict[str, Any], version: str | None = None) -> bytes:
    """Return the envelope of data that keep their contract.

    Args:
        message_type: one of ``message_types()``.
        data: the content; tensors are numpy float32 arrays.
        version: a known version; None is the latest.

    Raises:
        ContractViolation: the data break the schema, or cannot be carried exactly; the path says where.
        UnknownContract: nobody here knows the message type or the version.
    """
    try:
        payload = _WRITERS[message_type if version is None else (message_type, version)](data)
        if payload is not None:
            return payload
    except UNSURE:
        pass  # The long way says whether, and what, is wrong.
    return _encode(message_type, data, version)


def _encode(message_type: str, data: Any, version: str | None) -> bytes:
    """Encode whatever can be encoded, and say what is wrong with the rest."""
    known = registry()
    contract = known.contract(message_type, known.latest(message_type) if version is None else version)
    key = message_type if version is None else (message_type, version)
    if key not in _WRITERS:
        _WRITERS[key] = _writer(contract)
    data, detacher = _detach(contract, data)
    tail = detacher.behind(b"")  # a wrong number in a tensor is told first
    try:
        # Written before it is looked at: orjson bounds the depth, and the validator would recurse.
        text = exact.render(data, None, exact.OPTIONS)
    except TypeError:
        raise _inexact(contract, data) from None
    contract.check(data)
    if exact.fault(data) is not None:
        raise _inexact(contract, data)
    return b"".join((contract.prefix, text, b"}", tail))


def _writer(contract: Contract) -> Write:
    """Return the fast way to write."""
    compiled = compile_writer(contract.schema, contract.prefix)
    if not contract.tensors:
        return compiled

    def write(data: Any) -> bytes | None:
        described, detacher = _detach(contract, data)
        text = compiled(described)
        return None if text is None else detacher.behind(text)

    return write


def _detach(contract: Contract, data: Any) -> tuple[Any, Detacher]:
    """Return the data with tensors described, and what holds the tensors."""
    detacher = Detacher(contract.message_type)
    for path, rank in contract.tensors.items():
        data = detacher.detach(data, path, rank)
    return data, detacher


def _inexact(contract: Contract, data: Any) -> ContractViolation:
    path, reason = exact.fault({"data": data}) or ("/data", "cannot be written as JSON")
    return ContractViolation(reason, message_type=contract.message_type, path=path)


def validate(message_type: str, data: dict[str, Any], version: str | None = None) -> None:
    """Check data against their contract, as ``encode`` would.

    Raises:
        ContractViolation: the data break the schema, or cannot be carried exactly; the path says where.
        UnknownContract: nobody here knows the message type or the version.
    """
    encode(message_type, data, version)


def decode(payload: bytes | bytearray | memoryview) -> Envelope:
    """Return what an envelope holds, checked against the version of its writer.

    A newer minor version than any known is checked against the newest known one, and keeps the fields that are
    unknown here. The caller migrates.

    Raises:
        MalformedEnvelope: not an envelope, or not exactly readable.
        ContractViolation: the data break the schema of their version.
        UnknownContract: an unknown message type, or a newer major version: to be put aside, not guessed at.
    """
    try:
        envelope = _READERS[payload[_HEAD]](payload)  # type: ignore[index, arg-type]
        if envelope is not None:
            return envelope  # type: ignore[no-any-return]
    except UNSURE:
        pass  # The long way says whether, and what, is wrong.
    return _decode(payload if type(payload) is bytes else _to_bytes(payload))


def _reader(contract: Contract) -> Read:
    """Return the fast way to read."""
    if not contract.tensors:
        return compile_reader(contract.schema, contract.prefix, (Envelope, contract.message_type, contract.version))
    compiled = compile_reader(contract.schema, contract.prefix)

    def read(payload: bytes) -> Envelope | None:
        nul = payload.find(b"\0")
        data = compiled(payload if nul < 0 else payload[:nul])
        # Most have no tensor: then nothing in them has a shape, however its name is written.
        if data is not None and (nul >= 0 or b'"shape"' in payload or b"\\u" in payload):
            _attach(contract, data, None if nul < 0 else memoryview(payload)[nul + 1 :])
        return None if data is None else Envelope(contract.message_type, contract.version, data)

    return read


def _decode(payload: bytes) -> Envelope:
    """Decode any layout, and say what is wrong with it."""
    nul = payload.find(b"\0")
    document = exact.parse(payload if nul < 0 else payload[:nul])
    message_type, version, data = _open(document)
    contract = registry().reader(message_type, version)
    contract.check(data)
    if nul >= 0 or contract.tensors:
        _attach(contract, data, None if nul < 0 else memoryview(payload)[nul + 1 :])
    head = (contract.prefix + b'{"')[_HEAD]
    if not contract.is_opened and head not in _READERS:
        _READERS[head] = _reader(contract)
    return Envelope(message_type, version, data)


def _to_bytes(payload: Any) -> bytes:
    if not issubclass(type(payload), bytes | bytearray | memoryview):
        raise MalformedEnvelope(f"bytes are needed, not {type(payload).__name__}")
    try:
        return bytes(payload)
    except ValueError:
        raise MalformedEnvelope("the memoryview was released") from None


def _open(document: Any) -> tuple[str, str, dict[str, Any]]:
    """Return message type, version and data of a parsed envelope.

    Raises:
        MalformedEnvelope: it is none.
    """
    if type(document) is not dict:
        raise MalformedEnvelope("an envelope is a JSON object", path="")
    if document.keys() != _FIELDS:
        missing = sorted(_FIELDS - document.keys())
        if missing:
            raise MalformedEnvelope(f"{missing[0]} is missing", path="")
        extra = exact.shorten(sorted(document.keys() - _FIELDS)[0])
        raise MalformedEnvelope("an envelope has no such field", path=exact.pointer([extra]))
    message_type, version = document["message_type"], document["schema_version"]
    if type(message_type) is not str:
        raise MalformedEnvelope("the message type is not text", path="/message_type")
    if parse_version(version) is None:
        raise MalformedEnvelope("the version is not MAJOR.MINOR", path="/schema_version")
    return message_type, version, document["data"]


def _attach(contract: Contract, data: dict[str, Any], tail: memoryview | None) -> None:
    """Put the tensors of the tail into the data.

    Raises:
        MalformedEnvelope: tensors without a tail, a tail without tensors, or one that does not fit.
    """
    attacher = Attacher(contract.message_type, b"" if tail is None else tail, strict=not contract.is_opened)
    for path in contract.tensors:
        attacher.attach(data, path)
    attacher.finish(has_tail=tail is not None)
