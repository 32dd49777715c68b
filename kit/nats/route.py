"""What all messages of one operation have in common, worked out once."""

from __future__ import annotations

from functools import cache
from typing import Any

from kit.catalogue import ERROR, LLM_CHUNK, Mode, Operation
from kit.codec import Envelope, decode, encode, latest, migrate, schema
from kit.errors import ConfigurationError, ContractViolation, ForeignTenant
from kit.nats.message import Chunks, Message
from kit.otel import semconv

_TYPES = {"process": "process"}  # messaging.operation.type; everything else sends
_VERBS = {
    Mode.EVENT: "publish and subscribe",
    Mode.REQUEST: "request and serve",
    Mode.JOB: "enqueue (or run) and work",
}


class Route:
    """One operation over one subject: names, versions and attributes."""

    __slots__ = (
        "_of_tenants",
        "handle_attributes",
        "latest",
        "message_type",
        "operation",
        "result_latest",
        "result_type",
        "send_attributes",
        "subject",
        "tenant_id",
    )

    def __init__(self, operation: Operation, tenant_id: str, verb: str, to: str | None = None) -> None:
        self.operation = operation
        self.tenant_id = tenant_id
        self.subject = operation.subject(tenant_id, to)
        self.message_type = operation.message_type
        self.latest = latest(operation.message_type)
        self.result_type = operation.result_type
        self.result_latest = None if operation.result_type is None else latest(operation.result_type)
        self._of_tenants = {name for name in (self.message_type, self.result_type) if name and _names_tenant(name)}
        self.send_attributes = self.attributes(verb)
        self.handle_attributes = self.attributes("process")

    def attributes(self, verb: str, **more: str) -> dict[str, Any]:
        """Return the attributes of a span of this route."""
        return {
            semconv.MESSAGING_SYSTEM: semconv.MESSAGING_SYSTEM_NATS,
            semconv.MESSAGING_OPERATION_NAME: verb,
            semconv.MESSAGING_OPERATION_TYPE: _TYPES.get(verb, "send"),
            semconv.MESSAGING_DESTINATION_NAME: self.subject,
            semconv.MESSAGING_DESTINATION_TEMPLATE: f"{self.operation.prefix}.{{tenant_id}}",
            **more,
        }

    def encode(self, data: dict[str, Any]) -> bytes:
        """Return the message, checked.

        Raises:
            CodecError: the data break their contract.
        """
        payload = encode(self.message_type, data)
        self._check_tenant(self.message_type, data)
        return payload

    def encode_result(self, data: dict[str, Any] | None) -> bytes:
        """Return the answer, checked; a handler that has nothing to say gives None, and no bytes go back.

        Raises:
            CodecError: the data break their contract, or there should be some.
        """
        if self.result_type is None:
            return b""
        if data is None:
            if self.operation.mode is Mode.JOB:
                return b""
            raise ContractViolation("the handler returned None", message_type=self.result_type, path="")
        payload = encode(self.result_type, data)
        self._check_tenant(self.result_type, data)
        return payload

    def read(self, payload: bytes) -> Envelope:
        """Return what was sent, in the latest version known here.

        Raises:
            CodecError: it breaks its contract, or is another type of message.
        """
        envelope = _read(payload, self.message_type, self.latest)
        self._check_tenant(self.message_type, envelope.data)
        return envelope

    def read_result(self, payload: bytes) -> Envelope:
        """Return an answer, in the latest version known here, or the "error" in its place.

        No bytes are an answer without data.

        Raises:
            CodecError: it breaks its contract, or is another type of message.
        """
        if self.result_type is None or self.result_latest is None or not payload:
            return Envelope(self.result_type or "", self.result_latest or "", {})
        envelope = decode(payload)
        if envelope.message_type == ERROR:
            return envelope
        envelope = _latest(envelope, self.result_type, self.result_latest)
        self._check_tenant(self.result_type, envelope.data)
        return envelope

    def read_chunk(self, payload: bytes) -> Envelope:
        """Return a piece of a streamed answer.

        Raises:
            CodecError: it breaks its contract, or is another type of message.
        """
        return _read(payload, LLM_CHUNK, latest(LLM_CHUNK))

    def _check_tenant(self, message_type: str, data: dict[str, Any]) -> None:
        """Refuse data of another tenant, if the contract has the field.

        Raises:
            ForeignTenant: the data names another tenant.
        """
        if message_type in self._of_tenants and data.get("tenant_id", self.tenant_id) != self.tenant_id:
            raise ForeignTenant(message_type)

    def message(
        self,
        envelope: Envelope,
        *,
        message_id: str | None = None,
        attempt: int = 1,
        chunks: Chunks | None = None,
        stored_ns: int | None = None,
        handed_back: int = 0,
    ) -> Message:
        """Return what a handler or a caller gets."""
        return Message(
            envelope.data,
            envelope.message_type,
            envelope.schema_version,
            self.operation,
            self.tenant_id,
            self.subject,
            message_id,
            attempt,
            chunks,
            stored_ns,
            handed_back,
        )


def check_mode(operation: Operation, verb: str, *modes: Mode) -> None:
    """Refuse an operation that does not travel this way.

    Raises:
        ConfigurationError: it names the verbs that fit.
    """
    if operation.mode not in modes:
        raise ConfigurationError(
            f"{operation.name} is {_article(operation.mode)}, which cannot {verb}: use {_VERBS[operation.mode]}"
        )


def _article(mode: Mode) -> str:
    return f"an {mode.name}" if mode is Mode.EVENT else f"a {mode.name}"


@cache
def _names_tenant(message_type: str) -> bool:
    return "tenant_id" in schema(message_type).get("properties", ())


def _read(payload: bytes, message_type: str, version: str) -> Envelope:
    return _latest(decode(payload), message_type, version)


def _latest(envelope: Envelope, message_type: str, version: str) -> Envelope:
    if envelope.message_type != message_type:
        raise ContractViolation(
            f"a {message_type} belongs here", message_type=envelope.message_type, path="/message_type"
        )
    return envelope if envelope.schema_version == version else migrate(envelope, version)
