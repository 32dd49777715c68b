"""Streams and consumers are made by whoever comes first, and taken as they are by all others."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from kit.catalogue import LLMOPS_OPERATIONS
from kit.nats.connection import connect
from kit.nats.server import Server
from kit.nats.streams import Streams


async def test_subscribers_that_make_one_durable_at_once_agree_on_where_it_begins(server: Server) -> None:
    """As after a restart: one goes on behind what it has seen, another one is new."""
    row, who = LLMOPS_OPERATIONS, server.credentials("acme")
    async with AsyncExitStack() as stack:
        opened = [connect(server.url, tenant_id="acme", user=who.user, password=who.password) for _ in range(4)]
        accounts = [Streams(await stack.enter_async_context(await one)) for one in opened]
        for account in accounts:
            await account.event(row)
        for turn in range(20):
            name, subject = f"at-once-{turn}", f"{row.prefix}.acme"
            making = [
                account.subscriber(row, subject, durable=name, begin=begin)
                for account, begin in zip(accounts, (None, 1, 2, 7), strict=True)
            ]
            assert await asyncio.gather(*making) == [name] * 4
