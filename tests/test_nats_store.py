"""Key-value stores and large objects of a tenant: revisions, expiry, changes, and claims that are checked."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from samples import eventually

from kit.errors import BusError, ConfigurationError, Conflict, DeadlineExceeded, PayloadTooLarge
from kit.nats import Bus, Entry


async def test_what_was_put_is_got(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("things")
    assert await store.get("a") is None
    first = await store.put("a", b"one")
    second = await store.put("a", b"two")
    assert second > first
    assert await store.get("a") == Entry(key="a", value=b"two", revision=second)
    await store.put("empty", b"")
    assert (await store.get("empty")) is not None


async def test_a_deleted_value_is_gone(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("things")
    await store.put("a", b"one")
    await store.delete("a")
    await store.delete("never")
    assert await store.get("a") is None
    assert await store.keys() == []


async def test_only_one_creates(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("things")
    outcomes = await asyncio.gather(*(store.create("lock", b"%d" % n) for n in range(8)), return_exceptions=True)
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 7
    await store.delete("lock")
    revision = await store.create("lock", b"again")
    assert await store.get("lock") == Entry(key="lock", value=b"again", revision=revision)
    with pytest.raises(Conflict, match="exists already"):
        await store.create("lock", b"no")


async def test_an_update_expects_what_it_read(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("counter")
    await store.create("n", b"0")

    async def add() -> None:
        while True:
            entry = await store.get("n")
            assert entry is not None
            try:
                await store.update("n", b"%d" % (int(entry.value or b"") + 1), entry.revision)
            except Conflict:
                continue
            return

    await asyncio.gather(*(add() for _ in range(10)))
    entry = await store.get("n")
    assert entry is not None
    assert entry.value == b"10"
    with pytest.raises(Conflict, match="no longer at revision 1"):
        await store.update("n", b"late", 1)


async def test_keys_are_listed_by_prefix_in_order(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("things")
    assert await store.keys() == []
    for key in ("b.2", "a.1", "b.1", "c"):
        await store.put(key, b"x")
    assert await store.keys() == ["a.1", "b.1", "b.2", "c"]
    assert await store.keys("b.") == ["b.1", "b.2"]


async def test_changes_are_watched(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("things")
    await store.put("a.1", b"before")
    seen: list[tuple[str, bytes | None]] = []

    async def watch() -> None:
        async for entry in store.watch("a."):
            seen.append((entry.key, entry.value))

    watching = asyncio.ensure_future(watch())
    await eventually(lambda: seen == [("a.1", b"before")])
    await store.put("b.1", b"another")
    await store.put("a.2", b"new")
    await store.delete("a.1")
    await eventually(lambda: len(seen) == 3)
    watching.cancel()
    await asyncio.wait({watching})
    assert seen[1:] == [("a.2", b"new"), ("a.1", None)]


async def test_values_expire(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("cache", ttl=1.0)
    other = await tenant_bus.store("mixed")
    await store.put("a", b"short")
    await other.put("a", b"short", ttl=1)
    await other.put("b", b"long")
    await other.create("c", b"short", ttl=0.2)
    assert await store.get("a") is not None

    async def expired() -> bool:
        return await store.get("a") is None and await other.get("a") is None and await other.get("c") is None

    await eventually(expired)
    assert await other.keys() == ["b"]
    await other.create("a", b"again")


async def test_a_store_opened_with_another_ttl_takes_it(tenant_bus: Bus) -> None:
    await tenant_bus.store("cache", ttl=60.0)
    await tenant_bus.store("cache", ttl=30.0)
    info = await tenant_bus.connection.jetstream().stream_info("KV_cache")
    assert info.config.max_age == 30.0
    await tenant_bus.store("cache")
    info = await tenant_bus.connection.jetstream().stream_info("KV_cache")
    assert not info.config.max_age


@pytest.mark.parametrize("key", ["", ".", "a.", ".a", "a..b", "a b", "a*", "a.>", "ä", "a\r\nb"])
async def test_a_key_that_cannot_be_one_is_refused(bus: Bus, key: str) -> None:
    store = await bus.store("things")
    for call in (store.get(key), store.put(key, b""), store.create(key, b""), store.update(key, b"", 1)):
        with pytest.raises(ConfigurationError, match="refused"):
            await call


async def test_a_value_too_large_is_refused(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("things")
    with pytest.raises(PayloadTooLarge):
        await store.put("a", b"x" * (tenant_bus.connection.max_payload + 1))


async def test_a_store_that_was_deleted_says_so(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("things")
    await tenant_bus.connection.jetstream().delete_key_value("things")
    with pytest.raises(BusError):
        await store.get("a")
    with pytest.raises(BusError):
        await store.put("a", b"x")


async def test_a_full_store_says_so(tenant_bus: Bus) -> None:
    store = await tenant_bus.store("things")
    js = tenant_bus.connection.jetstream()
    config = (await js.stream_info("KV_things")).config
    config.max_msgs = 1
    await js.update_stream(config)
    await store.put("a", b"x")
    with pytest.raises(BusError, match="maximum messages exceeded"):
        await store.put("b", b"x")


async def test_stores_of_tenants_are_apart(bus: Bus, other_bus: Bus) -> None:
    ours, theirs = await bus.store("shared-name"), await other_bus.store("shared-name")
    await ours.put("a", b"ours")
    assert await theirs.get("a") is None
    assert await theirs.keys() == []


# --- objects ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
async def test_an_object_comes_back_for_its_claim(tenant_bus: Bus, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    claim = await tenant_bus.put_object("report.pdf", data)
    assert claim == {
        "bucket": "objects",
        "name": "report.pdf",
        "size": size,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert await tenant_bus.get_object(claim) == data


async def test_an_object_replaced_is_not_what_its_claim_says(tenant_bus: Bus) -> None:
    claim = await tenant_bus.put_object("a", b"one")
    other = await tenant_bus.put_object("a", b"two")
    assert await tenant_bus.get_object(other) == b"two"
    with pytest.raises(BusError, match="not what its claim says"):
        await tenant_bus.get_object(claim)
    with pytest.raises(BusError, match="not what its claim says"):
        await tenant_bus.get_object(other | {"size": 4})


async def test_an_object_that_is_not_there(tenant_bus: Bus) -> None:
    claim = await tenant_bus.put_object("a", b"one")
    await tenant_bus.delete_object(claim)
    await tenant_bus.delete_object(claim)
    with pytest.raises(BusError, match="is not in objects"):
        await tenant_bus.get_object(claim)
    with pytest.raises(ConfigurationError, match="a claim has"):
        await tenant_bus.get_object({"name": "a"})
    with pytest.raises(ConfigurationError, match="name must be"):
        await tenant_bus.put_object("", b"x")
    with pytest.raises(ConfigurationError, match="bucket"):
        await tenant_bus.put_object("a", b"x", bucket="no bucket")


async def test_an_object_that_lost_a_part_is_not_waited_for(tenant_bus: Bus) -> None:
    claim = await tenant_bus.put_object("a", b"x" * 1_200_000)
    stream = tenant_bus.connection.jetstream()
    await stream.delete_msg("OBJ_objects", 2)
    with pytest.raises(BusError, match=r"not complete|not what its claim says"):
        await asyncio.wait_for(tenant_bus.get_object(claim), 3)


async def test_silence_ends(tenant_bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer costs the deadline, and is an error of the kit."""
    store = await tenant_bus.store("things")

    async def swallow(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr("kit.nats.streams._API_SECONDS", 0.05)
    monkeypatch.setattr(tenant_bus.connection.client, "publish", swallow)
    with pytest.raises(DeadlineExceeded):
        await store.get("a")
    with pytest.raises(DeadlineExceeded):
        await store.put("a", b"x")
