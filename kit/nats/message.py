"""What a handler gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, TypeAlias

from kit.catalogue import Operation
from kit.nats.ids import written_time


class Chunks(Protocol):
    """Where the pieces of a streamed answer go."""

    async def send(self, data: dict[str, Any]) -> None:
        """Send one piece."""


class Message(NamedTuple):
    """A checked message, in the latest version of its contract that is known here; it cannot be changed.

    Attributes:
        data: its content; embeddings are numpy float32 arrays.
        message_type: name of its contract.
        schema_version: version of ``data``: the latest one known here, or a newer minor one as its writer sent it.
        operation: the catalogue's row.
        tenant_id: the tenant whose bus it came over.
        subject: where it was sent.
        message_id: its id; for a job, the key under which its effect happens once. None where no id travels.
        attempt: which delivery this is, from 1.
        handed_back: how many earlier deliveries stopping workers handed back; they do not count as attempts.
        chunks: where the pieces of a streamed answer go; see ``emit``.
        stored_ns: when the server stored a job: nanoseconds since 1970; None for what is not stored.
    """

    # A named tuple, as an envelope is: two are made for every request, and a frozen dataclass costs four times as much.
    data: dict[str, Any]
    message_type: str
    schema_version: str
    operation: Operation
    tenant_id: str
    subject: str
    message_id: str | None = None
    attempt: int = 1
    chunks: Chunks | None = None
    stored_ns: int | None = None
    handed_back: int = 0

    def __repr__(self) -> str:
        # Names of fields, never what is in them: a message gets into logs more easily than one thinks.
        fields = ", ".join(self.data)
        named = "" if self.message_id is None else f" {self.message_id}"
        return f"<Message {self.message_type} {self.schema_version}{named} on {self.subject}: {fields}>"

    @property
    def stored_at(self) -> str | None:
        """When the server stored a job: UTC, RFC 3339; None for what is not stored."""
        return None if self.stored_ns is None else written_time(self.stored_ns)

    @property
    def sent_at(self) -> str:
        """When it was sent, according to its sender: UTC, RFC 3339, in a form that sorts by time.

        It is never later than ``stored_at``: a clock that is ahead does not make a message the latest for ever.
        """
        claimed: str = self.data["timestamp"]
        try:
            moment = datetime.fromisoformat(claimed).astimezone(UTC)
        except (ValueError, OverflowError):  # such as a leap second, which Python does not know
            return self.stored_at or claimed
        told = moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
        return min(told, self.stored_at or told)

    @property
    def is_last(self) -> bool:
        """Whether there is no other attempt after this one."""
        return self.attempt - self.handed_back >= self.operation.policy.max_attempts

    @property
    def streaming(self) -> bool:
        """Whether the caller wants the answer piece by piece."""
        return self.chunks is not None

    async def emit(self, data: dict[str, Any]) -> None:
        """Send one piece of the answer (an ``llm_chunk``) to the caller; do nothing when it did not ask for pieces.

        Once the caller is gone, the handler is cancelled.

        Raises:
            ContractViolation: the piece breaks its contract.
            Disconnected, PayloadTooLarge: it was not sent.
        """
        if self.chunks is not None:
            await self.chunks.send(data)


Handler: TypeAlias = Callable[[Message], Awaitable[dict[str, Any] | None] | dict[str, Any] | None]
