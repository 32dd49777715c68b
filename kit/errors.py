"""Every error the kit raises, in one tree.

    KitError
    ├── ConfigurationError          a setting, an id or an argument that cannot work
    │   └── ForeignLoopError        a bus used from an event loop that does not own it
    ├── CodecError                  bytes or data that break their contract
    │   ├── MalformedEnvelope       not an envelope at all
    │   ├── ContractViolation       an envelope whose data breaks the schema
    │   │   └── ForeignTenant       data of a tenant other than the bus's
    │   ├── UnknownContract         a message type or a version nobody here knows
    │   └── MigrationError          a step between versions that is missing or would lose something
    ├── BusError                    a message that could not be sent, or was not answered
    │   ├── ConnectError            no server, or a server that refuses
    │   │   └── AccountTaken        the account belongs to another tenant
    │   ├── Disconnected            the connection is down; nothing was sent, or nobody knows whether it arrived
    │   ├── PayloadTooLarge         headers and body together exceed the server's limit
    │   ├── NoResponders            nobody serves this subject
    │   ├── DeadlineExceeded        no answer within the deadline
    │   ├── Conflict                a stored value is not the one that was expected
    │   └── RemoteError             the other side failed; carries its type and message
    ├── JobError                    a job that was not stored, or that ended dead
    │   ├── NotStored               the stream gave no acknowledgement
    │   └── JobDead                 every attempt failed; the job is kept as a dead letter
    ├── ServerError                 the embedded nats-server did not start or stopped
    │   └── StoreInUse              another server owns this store folder
    ├── ComponentError              a component refused or failed; see its subclasses beside the component
    └── ReportError                 a notebook, a parameter or a gate of the lab failed

Fields go in, the message comes out: an error can be matched by its type, read by a person and sent as data.
"""

from __future__ import annotations

import re

_LONGEST = 10_000  # characters of an error's text
SURROGATE = re.compile("[\\ud800-\\udfff]")  # half a character, which no encoding has
_UNSENDABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")


def escape_text(text: str, longest: int = 500) -> str:
    """Return at most ``longest`` characters of a foreign text, safe to send and show.

    Lone surrogates, which no message can carry, and control characters, which steer a terminal, become escapes.
    """
    return _UNSENDABLE.sub(lambda found: ascii(found[0])[1:-1], text[:longest])[:longest]


class KitError(Exception):
    """Any error that the kit raises on purpose; its text is safe to send and show, whatever it quotes."""

    def __str__(self) -> str:
        return escape_text(super().__str__(), _LONGEST)


class ConfigurationError(KitError):
    """A setting, an id or an argument cannot work; the message says which and what would."""


class ForeignLoopError(ConfigurationError):
    """A bus belongs to one event loop and was used from another."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what} belongs to another event loop: await it where kit.start() was awaited, "
            "or start a second one in this loop"
        )


class CodecError(KitError):
    """Bytes or data break their contract.

    Attributes:
        message_type: what the message claims to be, or None when that is unknown.
        path: JSON pointer to the fault ("" is the whole document), or None.
    """

    def __init__(self, reason: str, *, message_type: str | None = None, path: str | None = None) -> None:
        self.reason = reason
        self.message_type = message_type
        self.path = path
        where = f"{message_type or 'message'}{' at ' + path if path else ''}"
        super().__init__(f"{where}: {reason}")


class MalformedEnvelope(CodecError):
    """The bytes are not an envelope."""


class ContractViolation(CodecError):
    """The data break the schema of their message type and version."""


class ForeignTenant(ContractViolation):
    """The data names a tenant other than the bus's."""

    def __init__(self, message_type: str) -> None:
        super().__init__("tenant_id is not the bus's own tenant", message_type=message_type, path="/tenant_id")


class UnknownContract(CodecError):
    """No schema is known for this message type or version."""


class MigrationError(CodecError):
    """No lossless step leads from one version to the other."""


class BusError(KitError):
    """A message could not be sent, or was not answered."""


class ConnectError(BusError):
    """No server answers at the URL, or it refuses the credentials."""


class AccountTaken(ConnectError):
    """The account belongs to another tenant.

    Attributes:
        owner: the tenant that claimed the account by connecting to it first.
        tenant_id: the refused tenant.
    """

    def __init__(self, owner: str, tenant_id: str) -> None:
        self.owner, self.tenant_id = owner, tenant_id
        super().__init__(
            f"this account belongs to tenant {owner!r}: tenant {tenant_id!r} needs credentials of an account of its "
            "own (`kit server --print-config --tenants …` prints a configuration with an account for each)"
        )


class Disconnected(BusError):
    """The connection is down or closed.

    Attributes:
        sent: False when the message was not sent; True when it was, and nobody knows whether it arrived.
    """

    def __init__(
        self, subject: str, *, reason: str = "the connection to the server is down", sent: bool = False
    ) -> None:
        self.subject, self.sent = subject, sent
        what = f"what was sent to {subject} may be lost" if sent else f"nothing was sent to {subject}"
        super().__init__(f"{what}: {reason}")


class PayloadTooLarge(BusError):
    """Headers and body together exceed what the server takes."""

    def __init__(self, subject: str, *, size: int, limit: int) -> None:
        self.subject, self.size, self.limit = subject, size, limit
        super().__init__(
            f"{size:,} bytes for {subject} exceed the server's max_payload of {limit:,}: "
            "send a claim check (bus.put_object) or split the data"
        )


class NoResponders(BusError):
    """Nobody serves the subject."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        super().__init__(f"nobody serves {subject}: start a worker for it first")


class DeadlineExceeded(BusError):
    """No answer came within the deadline."""

    def __init__(self, subject: str, *, seconds: float) -> None:
        self.subject, self.seconds = subject, seconds
        super().__init__(f"no answer on {subject} within {seconds:g} s")


class Conflict(BusError):
    """A stored value is not the one that was expected: somebody else wrote it meanwhile."""

    def __init__(self, bucket: str, key: str, *, expected: int) -> None:
        self.bucket, self.key, self.expected = bucket, key, expected
        what = f"is no longer at revision {expected}" if expected else "exists already"
        super().__init__(f"{key} in {bucket} {what}: read it again")


class RemoteError(BusError):
    """The handler on the other side failed.

    Attributes:
        error_type: class name of the error there.
        detail: its message.
        retryable: whether the same request may succeed later.
        retry_after: seconds until it may, where the other side said so, else None.
    """

    def __init__(
        self, subject: str, *, error_type: str, detail: str, retryable: bool = False, retry_after: float | None = None
    ) -> None:
        self.subject, self.error_type, self.detail = subject, error_type, detail
        self.retryable, self.retry_after = retryable, retry_after
        super().__init__(f"{subject} answered {error_type}: {detail}")


class JobError(KitError):
    """A job was not stored, or ended dead."""


class NotStored(JobError):
    """The stream gave no acknowledgement: the job may be enqueued again under the same id."""

    def __init__(self, subject: str, *, message_id: str, reason: str) -> None:
        self.subject, self.message_id = subject, message_id
        super().__init__(f"{subject} did not acknowledge job {message_id}: {reason}; enqueue it again under that id")


class JobDead(JobError):
    """Every attempt of a job failed; it is kept as a dead letter.

    Attributes:
        error_type: class name of the last attempt's error.
        detail: its message.
        retry_after: seconds until the job may succeed, where the worker said so, else None.
    """

    def __init__(
        self, subject: str, *, message_id: str, attempts: int, error_type: str, detail: str,
        retry_after: float | None = None,
    ) -> None:  # fmt: skip
        self.subject, self.message_id, self.attempts = subject, message_id, attempts
        self.error_type, self.detail, self.retry_after = error_type, detail, retry_after
        super().__init__(f"job {message_id} on {subject} died after {attempts} attempt(s) with {error_type}: {detail}")


class ServerError(KitError):
    """The embedded nats-server did not start, or stopped."""


class StoreInUse(ServerError):
    """Another server owns the store folder."""

    def __init__(self, store: str, *, pid: int) -> None:
        self.store, self.pid = store, pid
        super().__init__(
            f"{store} is in use by process {pid}: stop it, choose another store, or connect to its server by NATS_URL"
        )


class ComponentError(KitError):
    """A component refused or failed."""


class ReportError(KitError):
    """A notebook, one of its parameters or a gate failed."""
