"""Components: what the kit is for. Each has ``serve(bus, **settings) -> Service``; they meet on the bus alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kit.catalogue import check_id

if TYPE_CHECKING:
    from kit.nats import Worker

STOP_SECONDS = 10.0  # for workers to finish what is under way
LANCEDB_VARIABLE = "KIT_LANCEDB_URI"


def database_uri(tenant_id: str, uri: str | Path | None = None) -> str:
    """Return the URI of a tenant's LanceDB database, which all components of the tenant share.

    Args:
        uri: folder or object-storage URI that holds a database for each tenant; None: ``KIT_LANCEDB_URI``, else
            ``.kit/lancedb`` in the working directory.
    """
    base = str(uri or os.environ.get(LANCEDB_VARIABLE) or Path(".kit", "lancedb"))
    return f"{base.rstrip('/')}/{check_id(tenant_id)}"


class Service:
    """A component at work, until it is stopped; ``async with`` stops it too.

    Args:
        workers: what handles its messages.
        end: is awaited once they have stopped, to give back what they used.
    """

    def __init__(self, workers: Sequence[Worker], end: Callable[[], Awaitable[None]] | None = None) -> None:
        self.workers = list(workers)
        self._end = end

    def __repr__(self) -> str:
        return f"<Service of {', '.join(worker.operation.name for worker in self.workers)}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def stop(self, timeout: float = STOP_SECONDS) -> None:
        """Take nothing new, let what is under way finish within ``timeout`` seconds, then end."""
        await asyncio.gather(*(worker.stop(timeout) for worker in self.workers))
        end, self._end = self._end, None
        if end is not None:
            await end()
