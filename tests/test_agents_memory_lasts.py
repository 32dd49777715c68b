"""A memory that was handed over is stored and found sooner or later, unless its user was to be forgotten meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agents_stand_in import StandIn
from samples import eventually

from kit import codec
from kit.catalogue import AGENT_MEMORY, JobPolicy
from kit.components.agents.errors import MemoryPending
from kit.components.agents.memory import Memories, key_of
from kit.components.agents.memory_service import MemoryService
from kit.nats.bus import Bus
from kit.nats.connection import connect
from kit.nats.server import Server

WAIT = 10.0
QUICK = replace(AGENT_MEMORY, policy=JobPolicy(max_attempts=4, backoff=(0.02,)))


@pytest.fixture
def memories(tenant_bus: Bus, tmp_path: Path) -> Any:
    """The memories of an agent, with or without a service."""
    made = Memories(tenant_bus, "ada", uri=tmp_path)
    yield made
    made.close()


@asynccontextmanager
async def serving(bus: Bus, folder: Path, **more: Any) -> AsyncIterator[MemoryService]:
    """A memory service, with a gateway or without one."""
    service = await MemoryService.open(bus, folder, **more)
    worker = await bus.work(QUICK, service.handle, concurrency=8)
    try:
        yield service
    finally:
        await worker.stop()
        await service.close()


async def found(memories: Memories, query: str, *users: str) -> list[str]:
    recalled = [await memories.recall(query, 20, min_relevance=0.3, user_id=user) for user in users or (None,)]
    return sorted({str(memory) for memories in recalled for memory in memories})


# --- handed over ----------------------------------------------------------------------------------------------------


async def test_what_is_handed_over_while_no_service_is_up_is_stored_when_one_starts(
    server: Server, tenant_bus: Bus, memories: Memories, telemetry: Any, tmp_path: Path
) -> None:
    who, tenant_id = server.credentials(tenant_bus.tenant_id), tenant_bus.tenant_id
    async with (
        await connect(server.url, tenant_id=tenant_id, user=who.user, password=who.password) as connection,
        Bus(connection, tenant_id, telemetry) as passing,
    ):
        teller = Memories(passing, "ada")
        await teller.remember("the key lies under the mat", user_id="u1")
        await teller.remember("the key of the shed is lost", "episode")
    assert await memories.all() == []
    async with StandIn(tenant_bus), serving(tenant_bus, tmp_path):
        await eventually(lambda: _all_found(memories, "where is the key", 2, "u1"))
        assert [memory.user_id for memory in await memories.all()] == ["u1", None]


async def _all_found(memories: Memories, query: str, count: int, *users: str) -> bool:
    return len(await found(memories, query, *users)) == count


# --- without an embedding -------------------------------------------------------------------------------------------


async def test_a_memory_without_an_embedding_is_kept_and_found_once_the_gateway_is_back(
    tenant_bus: Bus, memories: Memories, tmp_path: Path
) -> None:
    async with serving(tenant_bus, tmp_path, again=0.05) as service:
        with pytest.raises(MemoryPending, match="is kept") as pending:
            await memories.remember("the lighthouse keeper", wait=WAIT)
        assert [memory.memory_id for memory in await memories.all()] == [pending.value.memory_id]
        assert await tenant_bus.dead_letters(QUICK) == []
        assert await service.mend() == 1
        async with StandIn(tenant_bus):
            await eventually(lambda: _all_found(memories, "lighthouse", 1))
        assert await service.mend() == 0


async def test_the_next_service_makes_the_vectors_that_the_last_one_could_not(
    tenant_bus: Bus, memories: Memories, tmp_path: Path
) -> None:
    async with StandIn(tenant_bus), serving(tenant_bus, tmp_path):
        await memories.remember("the harbour master", wait=WAIT)
    async with serving(tenant_bus, tmp_path):
        with pytest.raises(MemoryPending):
            await memories.remember("the harbour pilot", wait=WAIT)
    async with StandIn(tenant_bus) as model, serving(tenant_bus, tmp_path):
        assert model.embedded == ["the harbour pilot"]  # and nothing that has its vector
        assert await found(memories, "harbour") == ["the harbour master", "the harbour pilot"]


async def test_a_memory_whose_embedding_is_refused_holds_up_no_other(
    tenant_bus: Bus, memories: Memories, tmp_path: Path
) -> None:
    async with StandIn(tenant_bus) as model:
        refused = model.refuse = {"the harbour is cursed"}
        async with serving(tenant_bus, tmp_path):
            with pytest.raises(MemoryPending):
                await memories.remember("the harbour is cursed", wait=WAIT)
        await memories.remember("the harbour is open")
        await memories.remember("the harbour is deep")
        async with serving(tenant_bus, tmp_path, again=0.05):
            await eventually(lambda: _all_found(memories, "harbour", 2))
        async with serving(tenant_bus, tmp_path / "other", again=0.05) as service:  # all vectors are to be made again
            assert await service._vectors.count() == 2
            refused.clear()
            elsewhere = Memories(tenant_bus, "ada", uri=tmp_path / "other")
            await eventually(lambda: _all_found(elsewhere, "harbour", 3))
            elsewhere.close()


async def test_what_replaces_a_memory_is_not_found_by_what_was_there_before(
    tenant_bus: Bus, memories: Memories, tmp_path: Path
) -> None:
    async with StandIn(tenant_bus) as model, serving(tenant_bus, tmp_path):
        memory_id = await memories.remember("a red bicycle", wait=WAIT)
        model.refuse = {"a green parrot"}
        with pytest.raises(MemoryPending):
            await memories.remember("a green parrot", memory_id=memory_id, wait=WAIT)
        assert await found(memories, "red bicycle") == []


# --- forgetting -----------------------------------------------------------------------------------------------------


async def test_what_is_on_its_way_for_a_forgotten_user_is_dropped_when_it_arrives(
    tenant_bus: Bus, memories: Memories, tmp_path: Path
) -> None:
    for user in ("eve", "bob", None):
        await memories.remember(f"the garden of {user}", user_id=user)
    assert await memories.forget_user("eve") == 0
    await memories.remember("the new garden", user_id="eve")
    async with StandIn(tenant_bus) as model, serving(tenant_bus, tmp_path):
        await eventually(lambda: _all_found(memories, "garden", 3, "eve", "bob"))
        told = await found(memories, "garden", "eve", "bob")
        assert told == ["the garden of None", "the garden of bob", "the new garden"]
        assert "the garden of eve" not in model.embedded
    notes = await tenant_bus.store("agent_forgotten")
    assert "eve" not in "".join(await notes.keys())


async def test_what_is_being_stored_while_its_user_is_forgotten_does_not_stay(
    tenant_bus: Bus, memories: Memories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with StandIn(tenant_bus), serving(tenant_bus, tmp_path) as service:
        create = service._store.create

        async def late(key: str, value: bytes, **more: Any) -> int:
            assert await memories.forget_user("eve") == 0  # it is not there yet
            return await create(key, value, **more)

        monkeypatch.setattr(service._store, "create", late)
        await memories.remember("the garden of eve", user_id="eve", wait=WAIT)
        assert await memories.all() == []
        assert await service._vectors.count() == 0


@pytest.mark.parametrize("action", ["forget", "replace"])
async def test_a_vector_that_comes_late_is_of_what_is_remembered(
    tenant_bus: Bus, memories: Memories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    async with StandIn(tenant_bus), serving(tenant_bus, tmp_path, again=0.05) as service:
        put = service._vectors.put

        async def late(points: Any) -> None:
            monkeypatch.setattr(service._vectors, "put", put)
            if action == "forget":
                await memories.forget("m", wait=WAIT)
            else:
                await memories.remember("a green parrot", memory_id="m", wait=WAIT)
            await put(points)

        monkeypatch.setattr(service._vectors, "put", late)
        await memories.remember("a red bicycle", memory_id="m", wait=WAIT)
        if action == "forget":
            assert await service._vectors.count() == 0
        else:
            await eventually(lambda: _all_found(memories, "green parrot", 1))


async def test_a_document_of_a_forgotten_user_that_is_stored_late_is_replaced_by_a_grave(
    tenant_bus: Bus, memories: Memories, tmp_path: Path
) -> None:
    async with StandIn(tenant_bus), serving(tenant_bus, tmp_path):
        memory_id = await memories.remember("the garden of eve", user_id="eve", wait=WAIT)
        store = await tenant_bus.store("agent_memory")
        entry = await store.get(key_of("ada", memory_id, "eve"))
        assert entry is not None
        kept = codec.loads(entry.value or b"")
        assert await memories.forget_user("eve", wait=WAIT) == 1
        await store.delete(key_of("ada", memory_id, "eve"))  # as if its grave had been cleared away, a day later
        late = await tenant_bus.run(QUICK, kept)
        assert (late.data["status"], late.data["indexed"]) == ("forgotten", False)
        assert await memories.all() == []
