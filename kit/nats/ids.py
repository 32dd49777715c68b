"""Ids and headers of jobs, and what the server says of a delivery in its reply subject."""

from __future__ import annotations

import hashlib
import itertools
import re
import secrets
from datetime import UTC, datetime
from typing import NamedTuple

from kit.catalogue import Operation
from kit.errors import ConfigurationError, ContractViolation

MESSAGE_ID = "Nats-Msg-Id"  # Source: NATS JetStream, de-duplication
REPLY = "Kit-Reply"  # header: where the caller waits for the result of a job
EXPIRES = "Kit-Expires"  # header: when a job need not be begun any more: UTC, RFC 3339
AGAIN = "Kit-Again"  # header: this id may have been worked on before, so look before working
DELIVERED = "Kit-Delivered"  # header: how often a job was delivered before it was requeued
REPLAYED = "~"  # parts a job's id from the number of the dead letter that was sent again

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LONGEST = 150
_INBOX = re.compile(r"(?!\$)[!-)+-\-/-=?-~]+(\.[!-)+-\-/-=?-~]+)*")  # printable; no blank, wildcard or empty token
_LONGEST_INBOX = 255
_COUNT = re.compile(r"[1-9][0-9]{0,5}")
_ID = re.compile(r"[!-}]{1,150}")  # printable, no blank, no "~"
_PLAIN_REPLY, _DOMAIN_REPLY = 9, 11  # tokens of a reply subject; with a domain there may be one more


def checked_id(message_id: str) -> str:
    """Return a job's id unchanged, if it can be one.

    Raises:
        ConfigurationError: it is empty, too long, or has characters that a header or a replay could not carry.
    """
    if not isinstance(message_id, str) or not _ID.fullmatch(message_id):
        raise ConfigurationError(
            f"message_id {message_id!r} is refused: 1 to 150 printable characters, no blank, no '~'"
        )
    return message_id


def is_inbox(subject: str) -> bool:
    """Say whether a subject that a message names for its answer can be one; the server's own never are."""
    return len(subject) <= _LONGEST_INBOX and _INBOX.fullmatch(subject) is not None


def token(message_id: str) -> str:
    """Return the token that stands for an id in a subject: itself where it can, else its hash."""
    return message_id if _TOKEN.fullmatch(message_id) else hashlib.sha256(message_id.encode()).hexdigest()


def job_id(headers: dict[str, str] | None, operation: Operation, sequence: int) -> str:
    """Return the id of a job: its sender's, or its place in the queue when it was sent without one."""
    sent = headers.get(MESSAGE_ID, "").partition(REPLAYED)[0] if headers else ""
    if not sent:
        return f"{operation.stream}-{sequence}"
    plain = len(sent) <= _LONGEST and sent.isprintable()
    return sent if plain else hashlib.sha256(sent.encode()).hexdigest()


def delivered_before(headers: dict[str, str] | None) -> int:
    """Return how often a job was delivered before it was requeued; 0 without the header."""
    sent = headers.get(DELIVERED, "") if headers else ""
    return int(sent) if _COUNT.fullmatch(sent) else 0


def expiry(headers: dict[str, str], operation: Operation) -> datetime | None:
    """Return when a job need not be begun any more, or None when it says nothing of that.

    Raises:
        ContractViolation: the header is not a time.
    """
    sent = headers.get(EXPIRES)
    if sent is None:
        return None
    try:
        time = datetime.fromisoformat(sent)
    except ValueError:
        time = datetime.min
    if time.tzinfo is None:
        reason = f"the header {EXPIRES} must be an RFC 3339 time with an offset"
        raise ContractViolation(reason, message_type=operation.message_type)
    return time


class Serial:
    """Ids that nobody else makes: 64 random bits, then a count."""

    def __init__(self) -> None:
        self.prefix = secrets.token_hex(8)
        self._count = itertools.count(1)

    def next(self) -> str:
        """Return the next id."""
        return f"{self.prefix}-{next(self._count):x}"


class Delivery(NamedTuple):
    """What the server says of a delivery.

    Attributes:
        attempt: which one this is, from 1.
        sequence: of the message in its stream.
        stored_ns: when it was stored: nanoseconds since 1970.
        pending: messages behind it that nobody had yet.
    """

    attempt: int
    sequence: int
    stored_ns: int
    pending: int

    @property
    def stored_at(self) -> str:
        """When it was stored: UTC, RFC 3339."""
        return written_time(self.stored_ns)


def written_time(nanoseconds: int) -> str:
    """Return a time since 1970 as UTC, RFC 3339."""
    moment = datetime.fromtimestamp(nanoseconds / 1e9, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def delivery(reply: str) -> Delivery:
    """Return what the reply subject of a message from JetStream says.

    Source: NATS ADR-15: ``$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer's>.<time>.<pending>``, with
    domain and account before the stream in the longer form.
    """
    tokens = reply.split(".")
    first = 4 if len(tokens) == _PLAIN_REPLY else 6
    return Delivery(int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 3]), int(tokens[first + 4]))
