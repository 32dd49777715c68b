"""Messages straight from the read loop: no queue and no task between the socket and who waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kit.errors import Disconnected

if TYPE_CHECKING:
    from kit.nats.connection import Connection

_log = logging.getLogger("kit.nats")


class _Sink:
    """Stands where ``Client.subscribe`` takes a future: nats-py resolves it once for every message."""

    __slots__ = ("_take",)

    def __init__(self, take: Callable[[Msg], None]) -> None:
        self._take = take

    def cancelled(self) -> bool:
        """Say that messages are still wanted."""
        return False

    def set_result(self, message: Msg) -> None:
        """Hand a message over; what is raised here would end the connection's read loop."""
        try:
            self._take(message)
        except Exception:  # noqa: BLE001 - logged; the connection lives on
            _log.exception("a message on %s was dropped", message.subject)


async def tap(client: Client, subject: str, take: Callable[[Msg], None], *, queue: str = "") -> Subscription:
    """Subscribe with a plain function, called in the read loop: it must be quick and must not wait.

    A callback of nats-py's own costs a queue and a switch of tasks for every message: a fifth of a round trip.
    """
    return await client.subscribe(subject, queue=queue, future=cast("asyncio.Future[Msg]", _Sink(take)))


async def drain(subscription: Subscription, connection: Connection, timeout: float) -> None:
    """Unsubscribe so that nothing on its way is lost: what the server had sent already is still taken."""
    client = connection.client
    if not client.is_connected or client.is_draining:
        return
    try:
        await asyncio.wait_for(subscription.drain(), timeout)  # type: ignore[no-untyped-call]
    except (TimeoutError, Disconnected, nats.errors.Error) as error:
        _log.warning("left %s without a goodbye to the server: %s", subscription.subject, error)
