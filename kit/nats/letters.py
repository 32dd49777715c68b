"""Dead letters: their evidence is written when a job is given up, and read as foreign when it is listed.

Anybody in the account can write to the stream of dead letters, and to the queues whose messages end there. So the
evidence keeps its contract whatever the message was, and reading checks that it is what the kit wrote.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kit import codec
from kit.catalogue import DEAD_LETTER, DEAD_LETTERS_PREFIX, Operation
from kit.errors import CodecError, ContractViolation, UnknownContract, escape_text
from kit.nats.client import carries
from kit.nats.faults import Fault
from kit.nats.ids import DELIVERED, REPLY, job_id, token

if TYPE_CHECKING:
    from kit.nats.streams import Stored

_LONGEST_SUBJECT = 200  # characters, as the contract of dead letters says; the kit's own are shorter
_MOST_HEADERS = 16 * 1024  # characters, of all that are carried together
_NEEDED = frozenset({"reason", "first_seen", "headers", "payload_sha256", "stream_sequence"})


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class DeadLetter:
    """A job that failed for good.

    Attributes:
        operation: the catalogue's row.
        message_id: the job's id.
        subject: where it was sent.
        error_type: class name of the last error.
        detail: its message, without content of the job.
        reason: why it was given up: attempts_exhausted, not_retryable, contract_violation or unknown_contract.
        attempts: deliveries it took.
        first_seen: when it was enqueued: UTC, RFC 3339.
        failed_at: when it was given up.
        path: JSON pointer to the fault, when it broke its contract.
        payload: what was sent, unchanged.
        headers: of what was sent.
        sequence: its place among the dead letters.
        payload_sequence: the place of its payload there, if it lies there.
        payload_claim: its payload in the object store, if it lies there.
        replayable: whether it can be sent again: it was sent to a subject of its operation, and its payload is there.
    """

    operation: Operation
    message_id: str
    subject: str
    error_type: str
    detail: str
    reason: str
    attempts: int
    first_seen: str
    failed_at: str
    path: str | None
    payload: bytes
    headers: dict[str, str]
    sequence: int
    payload_sequence: int | None
    payload_claim: dict[str, Any] | None
    replayable: bool

    def __repr__(self) -> str:
        return (
            f"<DeadLetter {self.operation.name} {self.message_id}: {self.error_type} after {self.attempts} attempt(s), "
            f"{self.reason}>"
        )

    @property
    def data(self) -> dict[str, Any] | None:
        """What was sent, decoded; None if that is impossible."""
        try:
            return codec.decode(self.payload).data
        except CodecError:
            return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A job that is given up, as stored in its stream."""

    operation: Operation
    subject: str
    payload: bytes
    headers: dict[str, str]
    sequence: int
    stored_at: str
    attempts: int

    @property
    def message_id(self) -> str:
        """The job's id."""
        return job_id(self.headers, self.operation, self.sequence)


def reason_of(fault: Fault) -> str:
    """Return why a job was given up, in the words of the dead letter's contract."""
    if fault.refused:
        return "unknown_contract" if isinstance(fault.error, UnknownContract) else "contract_violation"
    return "attempts_exhausted" if fault.retryable else "not_retryable"


def evidence_of(body: Body, fault: Fault, reason: str, tenant_id: str) -> dict[str, Any]:
    """Return what is stored about a job that is given up, besides its payload."""
    evidence = {
        "operation": body.operation.name,
        "subject": escape_text(body.subject, _LONGEST_SUBJECT),
        "message_id": body.message_id,
        "attempts": body.attempts,
        "error_type": fault.error_type,
        "detail": fault.detail,
        "failed_at": codec.now(),
        "first_seen": body.stored_at,
        "reason": reason,
        "path": fault.path,
        "tenant_id": tenant_id,
        "stream": body.operation.stream,
        "stream_sequence": body.sequence,
        "payload_size": len(body.payload),
        "payload_sha256": hashlib.sha256(body.payload).hexdigest(),
        "headers": carried(body.headers),
        "retryable": fault.retryable,
    }
    if (reply := body.headers.get(REPLY)) and len(reply) <= _LONGEST_SUBJECT:
        evidence["reply_to"] = reply
    return evidence


def carried(headers: dict[str, str]) -> dict[str, str]:
    """Return the headers that stay with a message, within bounds, without those meant for the stream."""
    kept, left = dict[str, str](), _MOST_HEADERS
    for name, value in headers.items():
        left -= len(name) + len(value)
        if left >= 0 and carries(name, value) and name != DELIVERED and not name.lower().startswith("nats-"):
            kept[name] = value
    return kept


def letter_subject(operation: Operation, message_id: str) -> str:
    """Return the subject of a dead job's evidence."""
    return f"{DEAD_LETTERS_PREFIX}.{operation.stream}.{token(message_id)}"


def payload_subject(operation: Operation, message_id: str) -> str:
    """Return the subject of a dead job's payload."""
    return f"{letter_subject(operation, message_id)}.payload"


def read_evidence(operation: Operation, kept: Stored) -> dict[str, Any]:
    """Return the evidence stored in the stream of dead letters.

    Raises:
        CodecError: this is not a dead letter of this operation.
    """
    envelope = codec.decode(kept.payload)
    said = envelope.data
    mine = (DEAD_LETTER, operation.name, operation.stream)
    found = (envelope.message_type, said.get("operation"), said.get("stream"))
    named = said.get("message_id", "")
    if (
        found != mine
        or not said.keys() >= _NEEDED
        or not named.isprintable()
        or kept.subject != letter_subject(operation, named)
    ):
        raise ContractViolation(f"this is not a dead letter of {operation.name}", message_type=DEAD_LETTER, path="")
    return said


def letter_of(
    operation: Operation, sequence: int, said: dict[str, Any], payload: bytes | None, *, own_subject: bool
) -> DeadLetter:
    """Return a dead letter; its payload is None if it is gone."""
    whole = payload is not None and hashlib.sha256(payload).hexdigest() == said["payload_sha256"]
    return DeadLetter(
        operation=operation,
        message_id=said["message_id"],
        subject=escape_text(said["subject"]),
        error_type=escape_text(said["error_type"]),
        detail=escape_text(said["detail"]),
        reason=said["reason"],
        attempts=said["attempts"],
        first_seen=said["first_seen"],
        failed_at=said["failed_at"],
        path=said.get("path"),
        payload=payload if payload is not None and whole else b"",
        headers=carried(said["headers"]),
        sequence=sequence,
        payload_sequence=said.get("payload_sequence"),
        payload_claim=said.get("payload_claim"),
        replayable=whole and own_subject,
    )
