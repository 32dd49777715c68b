"""Data <-> bytes: ``{"schema_version": …, "message_type": …, "data": …}``, checked against the contract."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from kit.errors import ContractViolation, MalformedEnvelope

from . import exact
from .contracts import Contract, parse_version, registry
from .tensors import Attacher, Detacher

_FIELDS = frozenset({"schema_version", "message_type", "data"})


class Envelope(NamedTuple):
    """A decoded message: frozen.

    Attributes:
        message_type: what it is, e.g. ``"agent_message"``.
        schema_version: the version its writer used, e.g. ``"1.0"``.
        data: its content; tensors are numpy float32 arrays.
    """

    message_type: str
    schema_version: str
    data: dict[str, Any]


def now() -> str:
    """Return the present time as ``timestamp`` fields carry it: UTC, RFC 3339, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


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
    known = registry()
    contract = known.contract(message_type, version if version is not None else known.latest(message_type))
    if contract.tensors:
        described, tail = _detach(contract, data)
        text = _write(contract, described)
        return text if tail is None else b"%b\0%b" % (text, tail)
    return _write(contract, data)


def _detach(contract: Contract, data: Any) -> tuple[Any, bytes | None]:
    """Return the data with tensors described, and the tail: None when there is no tensor."""
    detacher = Detacher(contract.message_type)
    for path, rank in contract.tensors.items():
        data = detacher.detach(data, path, rank)
    return data, detacher.tail() if detacher.parts else None


def _write(contract: Contract, data: Any) -> bytes:
    try:
        # Written before it is validated: orjson bounds the depth, on which the validator would recurse.
        text = exact.write({"schema_version": contract.version, "message_type": contract.message_type, "data": data})
    except TypeError:
        raise _inexact(contract, data) from None
    contract.check(data)
    if not exact.is_exact(data) or not exact.finite(data):
        raise _inexact(contract, data)
    return text


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
    if type(payload) is not bytes:
        payload = _to_bytes(payload)
    nul = payload.find(b"\0")
    document = exact.parse(payload if nul < 0 else payload[:nul])
    message_type, version, data = _open(document)
    contract = registry().reader(message_type, version)
    contract.check(data)
    if nul >= 0 or contract.tensors:
        _attach(contract, data, None if nul < 0 else memoryview(payload)[nul + 1 :])
    return Envelope(message_type, version, data)


def _to_bytes(payload: Any) -> bytes:
    if not isinstance(payload, bytes | bytearray | memoryview):
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
