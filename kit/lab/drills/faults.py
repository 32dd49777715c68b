"""The faults: processes killed and paused, connections cut, disks filled, providers and collectors that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kit.lab.drills.drill import NotHere, Run

if TYPE_CHECKING:
    from kit.nats.server import Server


async def eventually(check: Callable[[], Any], seconds: float = 20.0, every: float = 0.02) -> Any:
    """Return what ``check`` gives once that is true, or its last answer after some seconds; it may be awaitable."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        found = await found if isinstance(found, Awaitable) else found
        if found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(every)


async def kill_server(run: Run, server: Server) -> None:
    """Kill nats-server, and return when its supervisor has started it again; the ledger has both moments."""
    before = server.restarts
    run.ledger.note("fault", detail="server killed")
    server.crash()
    if not await eventually(lambda: not server.is_up or server.restarts > before):
        raise TimeoutError("the supervisor did not start nats-server again within 20 s")
    run.ledger.note("back", detail="server")


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stop a process, by SIGSTOP, within the block: it holds its sockets and says nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Proxy:
    """A TCP proxy before a server; ``cut`` breaks every connection through it, as a cable or a router would."""

    def __init__(self, port: int) -> None:
        self._target, self._open = port, set[asyncio.StreamWriter]()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection in the middle of whatever it carries."""
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._pipe(reader, far_writer), self._pipe(far_reader, writer))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        self._open.discard(writer)
        writer.close()


def require_mounts() -> None:
    """Check that a process can be given a small disk of its own.

    Raises:
        NotHere: this machine does not let us mount one.
    """
    if shutil.which("unshare") is None:
        raise NotHere("a small disk needs `unshare` (Linux, util-linux)")
    done = subprocess.run([*_MOUNTED, "1m", "/mnt", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"this machine does not let us mount a tmpfs: {done.stderr.strip()}")


# Runs a command with a tmpfs of some size at a folder, in a mount namespace that ends with the command.
_MOUNTED = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
            'mount -t tmpfs -o "size=$0" tmpfs "$1" && shift && exec "$@"')  # fmt: skip


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the disk of a folder up, but for some bytes; return the file, whose removal frees it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        file.write(bytes(max(0, shutil.disk_usage(folder).free - leave)))
        while not leave:
            file.write(bytes(512))
    return filler


class Stand:
    """An HTTP server for what a provider or a collector may do: answer, refuse, hang, break off.

    Args:
        answer: gets the request's path and body (JSON, or bytes) and returns status and body, also later; None hangs,
            and an empty body breaks the connection.
    """

    def __init__(self, answer: Callable[[str, Any], Any]) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                body = await reader.readexactly(int((head.split("content-length:")[1:] or ["0"])[0].split()[0]))
                said = self._answer(head.split()[1], json.loads(body) if body[:1] == b"{" else body)
                said = await said if isinstance(said, Awaitable) else said
                if said is None:
                    await asyncio.sleep(3600)
                status, content = said
                whole = content if isinstance(content, bytes) else json.dumps(content).encode()
                if not whole:
                    break
                kind = "Content-Type: application/json\r\n"
                writer.write(f"HTTP/1.1 {status} Said\r\n{kind}Content-Length: {len(whole)}\r\n\r\n".encode() + whole)
                await writer.drain()
        self._tasks.discard(task)
        writer.close()


# --- processes --------------------------------------------------------------------------------------------------


class Processes:
    """Python processes of a drill, each with its output in a file; none outlives the block."""

    def __init__(self, run: Run, **environment: str) -> None:
        self._run, self.environment = run, environment
        self.started: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def start(self, *command: str, disk: str = "") -> subprocess.Popen[bytes]:
        """Start ``python …``; it is not ready yet.

        Args:
            disk: size of a disk of its own at ``disk`` in the drill's folder, e.g. ``64m``.
        """
        (self._run.folder / "disk").mkdir(exist_ok=True)
        mounted = (*_MOUNTED, disk, str(self._run.folder / "disk")) if disk else ()
        name = self._run.folder / f"{len(self.started)}.log"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.environment}
        with name.open("wb") as output:
            process = subprocess.Popen(
                [*mounted, sys.executable, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=environment, cwd=self._run.folder,
            )  # fmt: skip
        self.started.append(process)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """Return what a process has printed so far."""
        return (self._run.folder / f"{self.started.index(process)}.log").read_text(errors="replace")

    async def said(self, process: subprocess.Popen[bytes], word: str, seconds: float = 60.0) -> str:
        """Wait until a process has printed a word; return all that it printed."""
        await eventually(lambda: word in self.output(process) or process.poll() is not None, seconds)
        text = self.output(process)
        if word not in text:
            raise TimeoutError(f"a process did not say {word!r} within {seconds:g} s, but: {text[-300:]}")
        return text

    def disk(self, process: subprocess.Popen[bytes]) -> Path:
        """Return where the disk of a process is seen from here."""
        return Path(f"/proc/{process.pid}/root{self._run.folder}/disk")

    async def worker(self, *arguments: str, lease: float = 0.0, disk: str = "") -> subprocess.Popen[bytes]:
        """Start one of ``kit.lab.drills.worker`` and wait until it works."""
        ledger = str(self._run.ledger.folder)
        process = self.start("-m", "kit.lab.drills.worker", ledger, str(lease), *arguments, disk=disk)
        await self.said(process, "works")
        return process


def descendants(pid: int) -> list[int]:
    """Return the processes below one, all generations (Linux)."""
    below: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            below.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(int(status.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in below.get(parent, ())]
        found += new
    return found


def lives(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def nats_below(pid: int) -> list[int]:
    """Return the nats-servers below a process (Linux)."""
    found = []
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            if b"nats-server" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
                found.append(child)
    return [child for child in found if lives(child)]


def files_open() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def memory() -> float:
    """Return the resident memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def within(call: Awaitable[Any]) -> tuple[float, Any]:
    """Return how long a call took, and its result or its error."""
    began = time.monotonic()
    try:
        said = await call
    except Exception as error:  # noqa: BLE001 - which error it is, is what the drill judges
        said = error
    return time.monotonic() - began, said


async def late(calls: Sequence[tuple[float, Awaitable[Any]]], grace: float = 0.5) -> float:
    """Return by how much the latest of calls exceeded its deadline, s; all at once. Within ``grace`` it is 0."""
    took = await asyncio.gather(*(within(call) for _, call in calls))
    over = max(seconds - deadline for (seconds, _), (deadline, _) in zip(took, calls, strict=True))
    return over if over > grace else 0.0
