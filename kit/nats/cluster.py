"""A local cluster of nats-servers with replicated JetStream: what fault drills take members of, and bring back."""

from __future__ import annotations

import asyncio
import secrets as tokens
import socket
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack, ExitStack
from typing import Self

from kit.catalogue import check_id
from kit.errors import BusError, ConfigurationError, ServerError
from kit.nats.config import HOST, Credentials, Limits, Routes, Secrets
from kit.nats.connection import Connection, connect
from kit.nats.monitor import look
from kit.nats.server import Server

_READY = 30.0  # s; to elect a leader, on a machine under load
_ATTEMPTS = 3  # a free port may be taken between its choice and its use


class Cluster:
    """A cluster of servers on loopback; every stream is replicated, and clients get all URLs.

    Args:
        size: how many servers; three tolerate the loss of one.
        tenants: accounts to create at the start, the same on all servers.
        limits: the limits of each tenant.
    """

    def __init__(self, size: int = 3, tenants: Iterable[str] = ("acme",), *, limits: Limits | None = None) -> None:
        if size < 2:
            raise ConfigurationError(f"a cluster of {size} is none: 3 bear the loss of one, 5 of two")
        self.size = size
        self.servers: tuple[Server, ...] = ()
        self._wanted = tuple(check_id(tenant) for tenant in tenants)
        self._limits = limits
        self._secrets = Secrets.new()
        self._urls: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> Self:
        """Start all servers and wait until they have a leader and everybody is current.

        Raises:
            ServerError: a server did not start, or there is no leader after 30 s.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._launch()
                break
            except ServerError as error:
                if "is taken" not in str(error) or attempt == _ATTEMPTS:
                    raise
        try:
            await self.wait_ready(self.size)
        except BaseException:
            await self.stop()
            raise
        return self

    async def stop(self) -> None:
        """Stop all servers; their stores go with them."""
        await asyncio.gather(*(server.stop() for server in self.servers))

    async def stop_node(self, index: int) -> None:
        """Stop one server as an administrator would; its store is kept."""
        await self.servers[index].halt()

    async def kill_node(self, index: int) -> None:
        """End one server as a power cut would; its store is kept."""
        await self.servers[index].halt(kill=True)

    async def start_node(self, index: int) -> None:
        """Bring a server back, on its port and with its store, and wait until all that run are current."""
        await self.servers[index].start()
        await self.wait_ready(len(self.running))

    @property
    def running(self) -> tuple[int, ...]:
        """Indices of the servers that are up."""
        return tuple(index for index, server in enumerate(self.servers) if server.is_up)

    @property
    def url(self) -> str:
        """All URLs, with commas between, as `connect` and NATS_URL take them; those of stopped servers included."""
        return ",".join(self._urls)

    def credentials(self, tenant_id: str) -> Credentials:
        """Return the user of a tenant's account, the same on all servers."""
        return self.servers[0].credentials(tenant_id)

    async def connect(self, tenant_id: str, *, name: str = "kit") -> Connection:
        """Connect as a tenant, to any of the servers."""
        return await connect(self.url, tenant_id=tenant_id, credentials=self.credentials(tenant_id), name=name)

    async def add_tenant(self, tenant_id: str) -> Credentials:
        """Give a tenant an account on all servers that run; the others learn of it when they start."""
        for index in self.running:
            await self.servers[index].add_tenant(tenant_id)
        return self.credentials(tenant_id)

    async def leader(self) -> int | None:
        """Index of the server that leads the cluster's metadata, or None while there is none."""
        found = await self._meta()
        return None if found is None else found[0]

    async def wait_ready(self, members: int, timeout: float | None = None) -> None:
        """Wait until there is a leader whom ``members`` servers, itself included, follow closely.

        Raises:
            ServerError: not within ``timeout`` seconds (30 by default).
        """
        timeout = _READY if timeout is None else timeout
        deadline = time.monotonic() + timeout
        while True:
            found = await self._meta()
            if found is not None and found[1] >= members:
                return
            if time.monotonic() > deadline:
                state = f"{found[1]} current members" if found else "no leader"
                raise ServerError(f"the cluster has {state} after {timeout:g} s, not {members}")
            await asyncio.sleep(0.1)

    async def _meta(self) -> tuple[int, int] | None:
        """The leader, and how many servers are current with it."""
        for index in self.running:
            try:
                async with await self.servers[index].connect_system() as system:
                    meta = (await look(system)).raw["jsz"].get("meta_cluster", {})
            except (BusError, ServerError):  # it is going down, or not yet up
                continue
            replicas = meta.get("replicas")
            if replicas and meta.get("leader") == self.servers[index].name:
                return index, 1 + sum(1 for peer in replicas if peer.get("current") and not peer.get("offline"))
        return None

    async def _launch(self) -> None:
        ports = _free_ports(self.size)
        password = tokens.token_urlsafe(24)
        self.servers = tuple(
            Server(
                tenants=self._wanted,
                limits=self._limits,
                routes=Routes(name="kit", port=port, ports=ports, password=password),
                secrets=self._secrets,
            )
            for port in ports
        )
        async with AsyncExitStack() as undo:
            for server in self.servers:
                undo.push_async_callback(server.stop)
            started = await asyncio.gather(*(server.start() for server in self.servers), return_exceptions=True)
            for outcome in started:
                if isinstance(outcome, BaseException):
                    raise outcome
            undo.pop_all()
        self._urls = tuple(server.url for server in self.servers)


def _free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody uses now; all are held until the last is chosen, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return tuple(one.getsockname()[1] for one in sockets)
