"""An account belongs to one tenant: the first that connects claims it, and any other is refused by name.

Names of streams, stores and consumers carry no tenant, so two tenants in one account would share them. The claim is a
stream without messages whose description names the tenant: the server creates it once, even if several try at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import nats.js.errors
from nats.js import api

from kit.errors import AccountTaken, BusError, ConfigurationError, ConnectError, NoResponders
from kit.nats.streams import NAME_IN_USE, Streams

if TYPE_CHECKING:
    from kit.nats.connection import Connection

STREAM = "KIT_TENANT"
_OWNED = "account of tenant "
_NO_JETSTREAM = (10039, 10076)  # Source: nats-server's errors.json; for the account, and at all


async def claim(connection: Connection, tenant_id: str, seconds: float) -> None:
    """Claim the account of a connection for a tenant.

    An account without JetStream stores nothing that could be shared, and belongs to nobody.

    Raises:
        AccountTaken: it belongs to another tenant.
        ConnectError: the server did not answer within ``seconds``.
    """
    streams = Streams(connection)
    try:
        async with asyncio.timeout(seconds):
            owner = await _owner(streams) or await _made(streams, tenant_id)
    except NoResponders:
        return
    except (TimeoutError, BusError, ConfigurationError) as error:
        why = str(error) or f"no answer within {seconds:g} s"
        raise ConnectError(f"cannot determine which tenant owns the account: {why}") from None
    if owner != tenant_id:
        raise AccountTaken(owner, tenant_id)


async def _owner(streams: Streams) -> str:
    """The account's owner; empty while it has none."""

    async def look() -> str:
        try:
            known = (await streams.context.stream_info(STREAM)).config.description or ""
        except nats.js.errors.NotFoundError:
            return ""
        except nats.js.errors.APIError as error:
            if error.err_code in _NO_JETSTREAM:
                raise NoResponders("JetStream") from None
            raise
        return known.removeprefix(_OWNED)

    return await streams.patiently(f"stream {STREAM}", look)


async def _made(streams: Streams, tenant_id: str) -> str:
    async def make(replicas: int) -> str:
        config = api.StreamConfig(
            name=STREAM, description=_OWNED + tenant_id, max_msgs=1, num_replicas=replicas, allow_direct=True
        )
        try:
            await streams.context.add_stream(config)
        except nats.js.errors.APIError as error:
            if error.err_code != NAME_IN_USE:
                raise
            return await _owner(streams)
        return tenant_id

    return await streams.replicated(f"stream {STREAM}", make)
