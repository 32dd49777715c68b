"""A local cluster keeps every acknowledged message when it loses a member, and takes the member back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kit.errors import ConfigurationError, KitError, ServerError
from kit.nats import cluster as module
from kit.nats.cluster import Cluster
from kit.nats.connection import Connection


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(tenants=("acme",)) as started:
        yield started


async def stored(connection: Connection, subject: str, identity: str, seconds: float = 20.0) -> None:
    """Publish until a stream has it, under one id: what a job's caller does while a leader is elected."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                await connection.request(subject, b"x", timeout=1.0, headers={"Nats-Msg-Id": identity})
                return
            except KitError:
                await asyncio.sleep(0.1)


async def test_the_loss_of_a_member_is_borne(cluster: Cluster) -> None:
    assert cluster.url.count("nats://127.0.0.1:") == 3
    assert len({server.name for server in cluster.servers}) == 3
    async with await cluster.connect("acme") as connection:
        await connection.jetstream().add_stream(name="KEPT", subjects=["kept"], num_replicas=3)
        for number in range(5):
            await stored(connection, "kept", f"before-{number}")
        leader = await cluster.leader()
        assert leader is not None
        await cluster.kill_node(leader)
        assert cluster.running == tuple(index for index in range(3) if index != leader)
        await connection.wait_connected(5.0)
        await stored(connection, "kept", "while one is down")
        assert await cluster.add_tenant("globex") == await cluster.add_tenant("globex")
        await cluster.start_node(leader)
        assert cluster.running == (0, 1, 2)
        assert await cluster.leader() in cluster.running
        assert (await connection.jetstream().stream_info("KEPT")).state.messages == 6
    monitor = await cluster.servers[leader].monitor()
    assert [row["replicas"] for row in monitor.streams] == [3, 3]
    async with await cluster.servers[leader].connect("globex") as globex:
        await globex.flush()
    await cluster.stop_node(0)
    await cluster.stop_node(1)
    with pytest.raises(ServerError, match=r"no leader|1 current member"):
        await cluster.wait_ready(2, timeout=0.2)


async def test_a_cluster_without_a_leader_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(self: Cluster) -> None:
        return None

    monkeypatch.setattr(Cluster, "_meta", none)
    monkeypatch.setattr(module, "_READY", 0.1)
    cluster = Cluster(size=2)
    with pytest.raises(ServerError, match="no leader"):
        await cluster.start()
    assert cluster.running == ()


async def test_a_route_port_taken_meanwhile_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    choose = module._free_ports
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        chosen = [(taken, choose(1)[0])]
        monkeypatch.setattr(module, "_free_ports", lambda count: chosen.pop() if chosen else choose(count))
        async with Cluster(size=2) as cluster:
            assert cluster.running == (0, 1)
        monkeypatch.setattr(module, "_free_ports", lambda count: (taken, choose(1)[0]))
        with pytest.raises(ServerError, match=f"port {taken} on .* is taken"):
            await Cluster(size=2).start()


def test_a_cluster_of_one_is_none() -> None:
    with pytest.raises(ConfigurationError, match="3 bear the loss of one"):
        Cluster(size=1)
