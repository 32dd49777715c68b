"""Components: what the kit is for. Each has ``serve(bus, **settings) -> Service``; they meet on the bus alone."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kit.catalogue import check_id
from kit.errors import ComponentError

if TYPE_CHECKING:
    from kit.nats import Worker

STOP_SECONDS = 10.0  # for workers to finish what is under way
LANCEDB_VARIABLE = "KIT_LANCEDB_URI"
KEEP_VERSIONS = timedelta(minutes=10)  # of a LanceDB table: readers of an older one have long finished
_CONFLICTS = 8  # attempts of one write, when other workers write too
_T = TypeVar("_T")


def database_uri(tenant_id: str, uri: str | Path | None = None) -> str:
    """Return the URI of a tenant's LanceDB database, which all components of the tenant share.

    Args:
        uri: folder or object-storage URI that holds a database for each tenant; None: ``KIT_LANCEDB_URI``, else
            ``.kit/lancedb`` in the working directory.
    """
    base = str(uri or os.environ.get(LANCEDB_VARIABLE) or Path(".kit", "lancedb"))
    if "://" not in base:
        from kit.nats.config import private_folder

        private_folder(Path(base))
    return f"{base.rstrip('/')}/{check_id(tenant_id)}"


class DatabaseFailed(ComponentError):
    """The operating system kept LanceDB from writing or reading: a full disk, no permission, too many open files."""

    retryable = True

    def __init__(self, uri: str, *, reason: str) -> None:
        self.uri, self.reason = uri, reason
        self.content_free = True
        super().__init__(f"{reason}: {uri}; fix that and try again")


async def connect_database(
    tenant_id: str, uri: str | Path | None = None, *, storage_options: dict[str, str] | None = None
) -> Any:
    """Return LanceDB's connection to a tenant's database, made when it is missing: what lies there is texts.

    Args:
        uri: as for ``database_uri``.
        storage_options: credentials and the like for object storage; LanceDB also reads them from the environment.
    """
    lancedb = await asyncio.to_thread(importlib.import_module, "lancedb")  # two seconds that must not stop the loop
    where = database_uri(tenant_id, uri)
    if "://" not in where:
        await asyncio.to_thread(_make_private, Path(where))
    return await lancedb.connect_async(
        where,
        read_consistency_interval=timedelta(0),  # another worker's rows are seen at once; it costs 0.05 ms
        storage_options=storage_options,
    )


def _make_private(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


async def commit(owner: Any, write: Callable[[], Awaitable[_T]]) -> _T:
    """Write to a LanceDB table or database, and retry if another worker's commit came first.

    LanceDB refuses one of two writes that overlap.

    Raises:
        DatabaseFailed: the operating system prevents it.
    """
    for attempt in range(1, _CONFLICTS + 1):
        try:
            return await write()
        except (RuntimeError, OSError) as error:
            if (failed := await database_failed(owner, error)) is not None:
                raise failed from error
            if attempt == _CONFLICTS or "conflict" not in str(error).lower():
                raise
            await asyncio.sleep(0.05 * attempt)
    raise AssertionError("the last attempt returns or raises")


async def database_failed(owner: Any, error: Exception) -> DatabaseFailed | None:
    """Return the operating system's error in an error of LanceDB, if there is one."""
    known = re.search(r"\(os error (\d+)\)", str(error))
    if known is None:
        return None
    uri = owner.uri if isinstance(owner.uri, str) else await owner.uri()
    return DatabaseFailed(uri, reason=os.strerror(int(known[1])))


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
