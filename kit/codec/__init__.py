"""Bytes <-> checked data: envelopes, contracts, migrations. No I/O but reading the schemas.

    encode("agent_message", {...}) -> bytes
    decode(payload) -> Envelope(message_type, schema_version, data)
    migrate(envelope, "1.0") -> Envelope

Every failure is a ``CodecError`` with the JSON pointer of the fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kit.errors import CodecError, ContractViolation, MalformedEnvelope, MigrationError, UnknownContract

from .compatibility import Compatibility, Incompatibility, check_compatibility
from .contracts import registry
from .envelope import Envelope, decode, encode, now, validate
from .exact import dumps, loads, shorten
from .foreign import Fault, ForeignSchema
from .migrations import migrate
from .released import check_released, release

__all__ = [
    "CodecError",
    "Compatibility",
    "ContractViolation",
    "Envelope",
    "Fault",
    "ForeignSchema",
    "Incompatibility",
    "MalformedEnvelope",
    "MigrationError",
    "UnknownContract",
    "check_compatibility",
    "check_released",
    "decode",
    "dumps",
    "encode",
    "latest",
    "loads",
    "message_types",
    "migrate",
    "now",
    "release",
    "schema",
    "shorten",
    "validate",
    "versions",
]


def message_types() -> tuple[str, ...]:
    """Return every message type that has a schema, in order."""
    return registry().message_types()


def versions(message_type: str) -> tuple[str, ...]:
    """Return the known versions of a message type, oldest first.

    Raises:
        UnknownContract: nobody here knows the message type.
    """
    return registry().versions(message_type)


def latest(message_type: str) -> str:
    """Return the newest known version of a message type.

    Raises:
        UnknownContract: nobody here knows the message type.
    """
    return registry().latest(message_type)


def schema(message_type: str, version: str | None = None) -> Mapping[str, Any]:
    """Return the JSON Schema of a message type's data; None is the latest version.

    Raises:
        UnknownContract: nobody here knows the message type or the version.
    """
    known = registry()
    return known.schema(message_type, known.latest(message_type) if version is None else version)
