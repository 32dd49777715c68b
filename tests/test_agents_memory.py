"""What agents remember is stored by jobs, found by meaning within limits, and forgotten for good on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents_stand_in import StandIn, embed
from samples import eventually

from kit import codec
from kit.catalogue import (
    AGENT_MEMORY,
    AGENT_MEMORY_RETRIEVALS,
    AGENT_MEMORY_RETRIEVE,
    AGENT_MEMORY_STORE,
    AGENT_MEMORY_UPDATE,
    AGENT_MEMORY_UPDATES,
)
from kit.components.agents.errors import MemoryRefused
from kit.components.agents.memory import Memories, key_of
from kit.components.agents.memory_service import MemoryService
from kit.components.agents.vectors import Point, Vectors
from kit.nats.bus import Bus

WAIT = 10.0


@asynccontextmanager
async def at_work(bus: Bus, folder: Path, **more: Any) -> AsyncIterator[tuple[Memories, StandIn]]:
    """A memory service with a stand-in for the gateway, and an agent's memories."""
    async with StandIn(bus) as model:
        service = await MemoryService.open(bus, folder)
        worker = await bus.work(AGENT_MEMORY, service.handle, concurrency=8)
        memories = Memories(bus, "ada", uri=folder, **more)
        try:
            yield memories, model
        finally:
            await worker.stop()
            memories.close()
            await service.close()


async def test_a_memory_is_handed_over_stored_and_found_by_its_meaning(
    tenant_bus: Bus, telemetry: Any, tmp_path: Path
) -> None:
    async with at_work(tenant_bus, tmp_path) as (memories, _):
        await memories.remember("The red bicycle stands in the cellar.", user_id="u1", metadata={"room": 3})
        await memories.remember("Ada prefers green tea.", "preference")
        await memories.remember("Yesterday the printer broke.", "episode", wait=WAIT)
        await eventually(lambda: _found(memories, 3))
        found = await memories.recall("where is the red bicycle", 1, user_id="u1")
        assert [(str(m), m.memory_type, m.user_id, m.metadata) for m in found] == [
            ("The red bicycle stands in the cellar.", "fact", "u1", {"room": 3})
        ]
        assert found[0].relevance > 0.5
        assert len(await memories.recall("red bicycle", 10, user_id="u1")) == 3
        assert (await memories.table())["type"].tolist() == ["fact", "preference", "episode"]
    recorder = telemetry.recorder
    for row in (AGENT_MEMORY_UPDATE, AGENT_MEMORY_STORE, AGENT_MEMORY_RETRIEVE):
        assert len(recorder.spans(row.name)), row.name
    assert recorder.total(AGENT_MEMORY_UPDATES.name, status="success") == 3
    assert recorder.total(AGENT_MEMORY_RETRIEVALS.name, status="success") >= 3
    assert "bicycle" not in str(recorder.spans().to_dict("records"))


async def _found(memories: Memories, count: int) -> bool:
    return len(await memories.recall("red bicycle", 10, user_id="u1")) == count


async def test_retrieval_keeps_to_type_time_relevance_user_and_agent(tenant_bus: Bus, tmp_path: Path) -> None:
    async with at_work(tenant_bus, tmp_path) as (memories, _):
        for user in ("u1", "o'brien"):
            await memories.remember(f"the garden of {user}", "preference", user_id=user, wait=WAIT)
        await memories.remember("the garden of everybody", wait=WAIT)
        assert len(await memories.recall("garden", user_id="o'brien")) == 2
        assert [m.content for m in await memories.recall("garden", types=["fact"])] == ["the garden of everybody"]
        assert len(await memories.recall("garden", types=["fact", "preference"], user_id="u1")) == 2
        assert await memories.recall("spaceship", min_relevance=0.5) == []
        assert len(await memories.recall("garden", since=timedelta(hours=1), user_id="u1")) == 2
        assert await memories.recall("garden", since=datetime.now(UTC)) == []
        other = Memories(tenant_bus, "bob", uri=tmp_path)
        assert await other.recall("garden") == []
        assert await other.all() == []
        other.close()


async def test_tenants_do_not_see_each_others_memories(bus: Bus, other_bus: Bus, tmp_path: Path) -> None:
    async with at_work(bus, tmp_path) as (mine, _), at_work(other_bus, tmp_path) as (theirs, _):
        await mine.remember("the code is 4711", wait=WAIT)
        assert await theirs.recall("the code") == []
        assert await theirs.all() == []


async def test_what_is_forgotten_is_nowhere_and_does_not_come_back_late(tenant_bus: Bus, tmp_path: Path) -> None:
    async with at_work(tenant_bus, tmp_path) as (memories, _):
        memory_id = await memories.remember("the old address", wait=WAIT)
        store = await tenant_bus.store("agent_memory")
        kept = codec.loads((await store.get(key_of("ada", memory_id))).value)  # type: ignore[union-attr,arg-type]
        await memories.forget(memory_id, wait=WAIT)
        assert await memories.recall("old address") == []
        assert await (await memories._database()).count() == 0  # an embedding tells much of its text
        assert b"address" not in (await store.get(key_of("ada", memory_id))).value  # type: ignore[union-attr,operator]
        late = await tenant_bus.run(AGENT_MEMORY, kept)  # the job to store it comes once more, after all
        assert late.data["status"] == "forgotten"
        assert await memories.all() == []
        nothing = await tenant_bus.run(AGENT_MEMORY, {**kept, "memory_id": "never-was", "action": "forget"})
        assert nothing.data["status"] == "not_found"
        await memories.remember("the new address", memory_id=memory_id, wait=WAIT)
        assert [str(m) for m in await memories.recall("address")] == ["the new address"]
        old = await tenant_bus.run(AGENT_MEMORY, {**kept, "action": "forget"})
        assert old.data["status"] == "unchanged"


async def test_a_memory_from_the_future_can_be_replaced_and_forgotten(tenant_bus: Bus, tmp_path: Path) -> None:
    async with at_work(tenant_bus, tmp_path) as (memories, _):
        memory_id = await memories.remember("the old address", wait=WAIT)
        store = await tenant_bus.store("agent_memory")
        kept = codec.loads((await store.get(key_of("ada", memory_id))).value)  # type: ignore[union-attr,arg-type]
        future = {**kept, "timestamp": "2099-01-01T00:00:00Z", "content": "the address in 2099"}
        assert (await tenant_bus.run(AGENT_MEMORY, future)).data["status"] == "stored"
        await memories.remember("the new address", memory_id=memory_id, wait=WAIT)
        assert [str(m) for m in await memories.recall("address")] == ["the new address"]
        assert (await tenant_bus.run(AGENT_MEMORY, future | {"content": "again"})).data["status"] == "stored"
        await memories.forget(memory_id, wait=WAIT)
        assert await memories.all() == []


async def test_everything_about_a_user_is_forgotten_on_request(tenant_bus: Bus, tmp_path: Path) -> None:
    async with at_work(tenant_bus, tmp_path) as (memories, _):
        await asyncio.gather(*(memories.remember(f"thing {n}", user_id=f"u{n % 2}", wait=WAIT) for n in range(6)))
        assert await memories.forget_user("u1", wait=WAIT) == 3
        assert {memory.user_id for memory in await memories.all()} == {"u0"}


@pytest.mark.parametrize("memory_id", ["m1", "m/1", "ü" * 150, key_of("ada", "m1", "alice")[4:]])
async def test_a_memory_is_its_users_alone_whatever_its_id(tenant_bus: Bus, tmp_path: Path, memory_id: str) -> None:
    async with at_work(tenant_bus, tmp_path) as (memories, _):
        users = ("alice", "mallory", "ali'ce", None)
        for user in users:
            await memories.remember(f"the door code of {user}", memory_id=memory_id, user_id=user, wait=WAIT)
        for user in ("mallory", None, "nobody"):  # neither forgets what is another's
            await memories.forget(memory_id, user_id=user, wait=WAIT)
        told = {user: [str(m) for m in await memories.recall("door code", user_id=user)] for user in users}
        mine = {user: [f"the door code of {user}"] for user in ("alice", "ali'ce")}
        assert told == {"mallory": [], None: [], **mine}
        assert sorted(str(m) for m in await memories.all()) == sorted(text for (text,) in mine.values())
        assert await memories.forget_user("alice", wait=WAIT) == 1
        assert await memories.recall("door code", user_id="alice") == []


async def test_a_memory_from_before_ids_belonged_to_users_is_found_by_its_user(tenant_bus: Bus, tmp_path: Path) -> None:
    async with at_work(tenant_bus, tmp_path / "a") as (memories, _):
        await memories.remember("the door code", memory_id="m1", user_id="alice", wait=WAIT)
    store, key = await tenant_bus.store("agent_memory"), key_of("ada", "m1", "alice")
    await store.put(key_of("ada", "m1"), (await store.get(key)).value)  # type: ignore[union-attr,arg-type]
    await store.delete(key)
    async with at_work(tenant_bus, tmp_path / "b") as (memories, _):
        assert [m.user_id for m in await memories.recall("door code", user_id="alice")] == ["alice"]
        assert await memories.recall("door code") == []
        assert len(await memories.all()) == 1


async def test_a_job_done_twice_stores_once_and_the_later_word_counts(tenant_bus: Bus, tmp_path: Path) -> None:
    async with at_work(tenant_bus, tmp_path) as (memories, model):
        memory_id = await memories.remember("first", memory_id="m/1", wait=WAIT)
        store = await tenant_bus.store("agent_memory")
        first = codec.loads((await store.get(key_of("ada", memory_id))).value)  # type: ignore[union-attr,arg-type]
        again = await tenant_bus.run(AGENT_MEMORY, first)
        assert (again.data["status"], again.data["indexed"]) == ("unchanged", True)
        await memories.remember("second", memory_id=memory_id, wait=WAIT)
        assert (await tenant_bus.run(AGENT_MEMORY, first)).data["status"] == "unchanged"
        assert [str(memory) for memory in await memories.all()] == ["second"]
        own = {**first, "memory_id": "m2", "embedding": embed("second"), "timestamp": codec.now()}
        asked = len(model.embedded)
        assert (await tenant_bus.run(AGENT_MEMORY, own)).data["status"] == "stored"
        assert len(model.embedded) == asked


async def test_what_is_over_is_not_found(tenant_bus: Bus, tmp_path: Path) -> None:
    async with at_work(tenant_bus, tmp_path) as (memories, _):
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        await memories.remember("a passing thing", expires_at=soon, wait=WAIT)
        await asyncio.sleep(0.3)
        assert await memories.recall("passing thing") == []


async def test_vectors_that_are_gone_are_made_again_from_the_documents(tenant_bus: Bus, tmp_path: Path) -> None:
    async with at_work(tenant_bus, tmp_path / "a") as (memories, _):
        await memories.remember("the lighthouse keeper", wait=WAIT)
    async with at_work(tenant_bus, tmp_path / "b") as (memories, _):
        assert [str(memory) for memory in await memories.recall("lighthouse")] == ["the lighthouse keeper"]


async def test_vectors_without_a_document_do_not_hide_what_is_remembered(tenant_bus: Bus, tmp_path: Path) -> None:
    async with at_work(tenant_bus, tmp_path) as (memories, _):
        vectors = await Vectors.open(tenant_bus.tenant_id, tmp_path)
        stray = [
            Point(key=f"ada.s{n}", agent_id="ada", user_id="", memory_type="fact", at=1.0, vector=embed("red bicycle"))
            for n in range(30)
        ]
        await vectors.put(stray)
        await memories.remember("a red bicycle", wait=WAIT)
        assert [str(memory) for memory in await memories.recall("red bicycle", 2)] == ["a red bicycle"]
        vectors.close()


async def test_what_cannot_be_remembered_is_refused_by_name(tenant_bus: Bus, tmp_path: Path) -> None:
    memories = Memories(tenant_bus, "ada", uri=tmp_path)
    with pytest.raises(MemoryRefused, match="no type of memory 'rumour'"):
        await memories.remember("x", "rumour")
    with pytest.raises(MemoryRefused, match="nothing in it"):
        await memories.remember("  ")
    with pytest.raises(MemoryRefused, match="NoResponders") as refused:
        await memories.recall("anything")
    assert refused.value.retryable


async def test_vectors_are_replaced_filtered_and_written_by_many_at_once(tmp_path: Path) -> None:
    first, second = await asyncio.gather(*(Vectors.open("acme", tmp_path) for _ in range(2)))

    def point(name: str, place: int, agent: str = "ada") -> Point:
        vector = np.eye(4, dtype=np.float32)[place]
        return Point(key=f"{agent}.{name}", agent_id=agent, user_id="", memory_type="fact", at=1.0, vector=vector)

    await first.put([point("a", 0)])
    await asyncio.gather(*(one.put([point(f"{n}", n % 4)]) for n in range(6) for one in (first, second)))
    await first.put([point("a", 1), point("a", 1, agent="bob")])
    near = await second.search(np.eye(4, dtype=np.float32)[1], agent_id="ada", limit=6)
    assert [one.key for one in near][:3] == ["ada.1", "ada.5", "ada.a"]
    assert near[0].relevance == pytest.approx(1.0)
    assert await second.search(np.ones(5, np.float32), agent_id="ada") == []
    await first.remove("ada.a")
    await first.remove("ada.o'dear")
    assert await second.count("bob") == 1
    left = await second.search(np.eye(4, dtype=np.float32)[1], agent_id="ada", limit=20)
    assert sorted(one.key for one in left) == [f"ada.{n}" for n in range(6)]
    first.close()
    second.close()


async def test_a_table_that_another_worker_is_just_making_is_as_good_as_none(tmp_path: Path) -> None:
    vectors = await Vectors.open("acme", tmp_path)
    (tmp_path / "acme" / "memories_4.lance" / "data").mkdir(parents=True)  # listed, and not yet whole
    side = np.eye(4, dtype=np.float32)[1]
    assert await vectors.search(side, agent_id="ada") == []
    assert await vectors.count() == 0
    await vectors.remove("ada.a")
    await vectors.put([Point(key="ada.a", agent_id="ada", user_id="", memory_type="fact", at=1.0, vector=side)])
    assert await vectors.keys() == {"ada.a"}
    vectors.close()
