"""A RAG worker killed in the middle of a write: the ingestion, repeated, gives the same table, and all is found."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rag_stand_in import StandIn
from test_rag_service import table

from kit.components import rag
from kit.components.rag.index import Database
from kit.nats.server import Server

EMPTY = ("the table is made", "two of four indices are made", "rows are put on disk")
FILLED = ("rows are put on disk", "rows are committed, not told", "indices are rewritten")
KILLED = -9
Kill = Callable[[str, Path], Awaitable[None]]


@pytest.fixture
async def gateway(tenant_bus: Any) -> AsyncIterator[StandIn]:
    async with StandIn(tenant_bus) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def nursery(server: Server) -> Iterator[subprocess.Popen[str]]:
    """Starts workers, and tells how they ended."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("rag_worker.py")), server.url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def kill(nursery: subprocess.Popen[str], server: Server, tenant_bus: Any) -> Kill:
    """Have documents ingested by a worker that dies over it."""

    async def killed(point: str, folder: Path) -> None:
        who = server.credentials(tenant_bus.tenant_id)
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        nursery.stdin.write("\t".join([point, str(folder), tenant_bus.tenant_id, who.user, who.password]) + "\n")
        nursery.stdin.flush()
        ingesting = asyncio.create_task(rag.ingest_documents(tenant_bus, documents("new")))
        ended = await asyncio.wait_for(asyncio.to_thread(nursery.stdout.readline), 30.0)
        assert int(ended) == KILLED
        ingesting.cancel()

    return killed


def documents(state: str) -> list[dict[str, Any]]:
    """Documents, some of which are the same in both states."""
    return [
        {"document_id": f"d{number}", "content": f"Number {number} tells of topic {number % 7}, {kind}.\n\n" * 3}
        for number, kind in ((number, state if number % 3 else "as ever") for number in range(40))
    ]


async def ingest(bus: Any, folder: Path, state: str) -> None:
    async with await rag.serve(bus, uri=folder):
        done = await rag.ingest_documents(bus, documents(state))
        assert done.count("indexed") + done.count("unchanged") == len(documents(state)), done.failures


async def found(bus: Any, mode: str) -> list[str]:
    """Return the passages of a search whose word is in them in another form only."""
    result = await rag.query(bus, "Which topics?", mode=mode, generate=False, top_k=40)
    return [source["content"] for source in result["sources"]]


async def assert_usable(bus: Any, folder: Path) -> None:
    """The indices hold every row, once, and find it each in its way."""
    database = await Database.open(bus.tenant_id, folder)
    collection = await database.collection()
    assert collection is not None
    indices = await collection._table.list_indices()
    assert sorted(column for one in indices for column in one.columns) == ["chunk_id", "document_id", "grams", "text"]
    assert await collection.unindexed() == 0
    assert await collection.recall() == 1.0
    await database.close()


@pytest.mark.parametrize(("before", "point"), [("none", p) for p in EMPTY] + [("old", p) for p in FILLED])
async def test_an_ingestion_that_was_killed_repeated_gives_the_same_table(
    tenant_bus: Any, gateway: StandIn, kill: Kill, tmp_path: Path, before: str, point: str
) -> None:
    await ingest(tenant_bus, tmp_path / "whole", "new")
    if before == "old":
        await ingest(tenant_bus, tmp_path / "cut", "old")
    held = {row["document_id"] for row in await table(tenant_bus, tmp_path / "cut")}
    await kill(point, tmp_path / "cut")
    left = {row["document_id"]: row["content"].strip() for row in await table(tenant_bus, tmp_path / "cut")}
    forms = [(one["document_id"], one["content"].strip()) for state in ("old", "new") for one in documents(state)]
    assert left.keys() >= held
    assert left.items() <= set(forms)  # each document is there in one form or the other
    async with await rag.serve(tenant_bus, uri=tmp_path / "cut"):
        await found(tenant_bus, "hybrid")  # nothing that was left behind breaks it
        done = await rag.ingest_documents(tenant_bus, documents("new"))
        assert done.count("indexed") + done.count("unchanged") == len(documents("new")), done.failures
        for mode in ("hybrid", "text", "vector"):  # before the indices are brought up to date
            passages = await found(tenant_bus, mode)
            assert any("topic 5" in passage for passage in passages), mode
            assert not any("old" in passage for passage in passages), mode
    assert await table(tenant_bus, tmp_path / "cut") == await table(tenant_bus, tmp_path / "whole")
    await assert_usable(tenant_bus, tmp_path / "cut")
