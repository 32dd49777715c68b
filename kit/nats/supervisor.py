"""Keep one nats-server alive as long as its owner lives, restart it when it crashes, and leave no orphan.

This file runs as a process of its own (``python -I -S supervisor.py``), between the owner (a notebook's kernel, a
worker) and nats-server. It imports the standard library only, and little of it, because its start is part of the
server's start. The owner writes one line of JSON, the order, and then commands to its standard input: ``stop``,
``halt`` (stop, but keep a temporary store) or ``kill`` (the same, as a power cut would). The supervisor answers with
one line of JSON for each event on its standard output. The end of that pipe, or another parent process, means that the
owner is gone, however it died. A temporary store is removed only when the owner wanted the end or is gone: what a
server that is given up has acknowledged stays on the disk.

A full disk: nats-server's file store takes no more writes after one has failed, not even when there is room again. So
the supervisor looks for a disk without room, tells the owner, and restarts the server when there is some.

Why a process: PR_SET_PDEATHSIG fires when the *thread* that forked dies, and a kernel starts servers from worker
threads; macOS has nothing of the kind. Here a single thread forks, so the signal is sound, and it covers the one case
that the pipe does not: the supervisor itself being killed.
"""

from __future__ import annotations

# ruff: noqa: PTH108, PTH110, PTH118, PTH119, PTH120, PTH123, PTH202
# pathlib would add a third to the start of this process
import errno
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # typing itself costs time
if TYPE_CHECKING:
    from typing import Any

_POLL = 0.2  # s; how often a parent that vanished without closing the pipe (a forked copy holds it) is looked for
_START = 10.0  # s; to wait for the server to listen
_ORPHAN_GRACE = 1.0  # s; between SIGTERM and SIGKILL when the owner is gone: nothing may be left after 2 s
_BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0)  # s; before restart 1, 2, …; one crash more within the window gives up
_WINDOW = 60.0  # s; crashes older than this are forgotten
_ROOM = 1 << 20  # bytes; below, and after a failed write, it is tried whether the disk still takes this much
_NO_ROOM = (b"no space left on device", b"disk quota exceeded")  # Source: Go's texts of ENOSPC and EDQUOT
_TAIL = 15  # lines of what the server said last
_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h


class Order:
    """What to run, as the owner wrote it."""

    def __init__(self, line: bytes) -> None:
        fields = json.loads(line)
        self.argv: list[str] = fields["argv"]
        self.ports_dir: str = fields["ports_dir"]
        self.console: str = fields["console"]  # file for what the server writes before it has a log
        self.log: str = fields["log"]
        self.grace: float = fields["grace"]  # s; between SIGTERM and SIGKILL on `stop`
        self.remove: str | None = fields["remove"]  # temporary store to remove at the end


class Supervisor:
    """One nats-server and the two pipes to its owner."""

    def __init__(self, order: Order, commands: int, events: int) -> None:
        self._order, self._commands, self._events = order, commands, events
        self._parent = os.getppid()
        self._pid = 0
        self._exit_fd = -1
        self._port: int | None = None
        self._crashes: list[float] = []
        self._grace: float | None = None  # s; set once the end is wanted
        self._full = False
        self._read = 0  # bytes of the log; what was there before the server started is history

    def run(self) -> int:
        """Run the server until the owner stops it or is gone; return the exit status of this process."""
        try:
            if not self._start():
                if self._grace is None:
                    self._tell(event="failed", tail=self._tail())
                return 1
            while self._grace is None:
                self._listen(_POLL)
                code = self._reap()
                if code is not None and self._grace is None and not self._restart(code):
                    return 1
                if self._was_full() and not self._restart(None):
                    return 1
            return 0
        finally:
            self._end()

    def stop(self) -> None:
        """Ask for the end, as the `stop` command does."""
        self._grace = self._order.grace

    def _start(self) -> bool:
        """Start the server and wait until it listens; tell the owner when it does."""
        self._spawn()
        deadline = time.monotonic() + _START
        while self._grace is None:
            port = self._read_port()
            if port is not None:
                self._port, self._full = port, False
                self._tell(event="running", pid=self._pid, port=port)
                return True
            if self._reap() is not None or time.monotonic() > deadline:
                return False
            self._listen(0.002)
        return False

    def _restart(self, code: int | None) -> bool:
        """Start a server again that crashed, or that a full disk has stopped, on the port that its clients know.

        It gives up when the server crashes too often.
        """
        if code is None:
            self._kill(self._order.grace)
        self._tell(event="crashed", code=code)
        while self._grace is None:
            if self._lacks_room(_ROOM):  # no start would succeed
                self._note_full()
                self._listen(_POLL)
                continue
            now = time.monotonic()
            if code is not None:
                self._crashes = [when for when in self._crashes if now - when < _WINDOW] + [now]
            if len(self._crashes) > len(_BACKOFF):
                self._tell(event="gave_up", code=code, crashes=len(self._crashes), tail=self._tail())
                return False
            self._listen(_BACKOFF[max(len(self._crashes) - 1, 0)])
            if self._grace is None and self._start():
                return True
            self._kill(0.0)  # it never listened
            code = -1 if code is None else code
        return False

    def _was_full(self) -> bool:
        """Look whether the disk is full, and return whether it was and has room again."""
        if self._grace is not None or not self._pid:
            return False
        if not self._full and (self._log_says_full() or self._lacks_room(1 << 16)):
            self._note_full()
        return self._full and not self._lacks_room(_ROOM)

    def _note_full(self) -> None:
        if not self._full:
            self._full = True
            self._tell(event="full")

    def _log_says_full(self) -> bool:
        """Whether the server has said so since the last look; on a full disk the line itself may be missing."""
        try:
            with open(self._order.log, "rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:  # it was rotated
                    self._read = 0
                file.seek(self._read)
                said = file.read()
        except OSError:
            return False
        self._read += said.rfind(b"\n") + 1  # what is half written is read again
        return any(text in said for text in _NO_ROOM)

    def _lacks_room(self, needed: int) -> bool:
        """Whether the disk does not take so many bytes more: a quota and missing inodes do not show otherwise."""
        folder = os.path.dirname(self._order.log)
        path = os.path.join(folder, "room")
        try:
            free = os.statvfs(folder)
            scarce = free.f_bavail * free.f_frsize <= _ROOM or (free.f_files > 0 and free.f_favail == 0)
            if scarce == self._full:  # what the file system says is enough, unless it contradicts what was seen
                return scarce
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                while needed > 0:
                    needed -= os.write(descriptor, b"\0" * needed)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
                os.unlink(path)
        except OSError as error:
            return error.errno in (errno.ENOSPC, errno.EDQUOT)
        return False

    def _listen(self, seconds: float) -> None:
        """Wait for a command, for the end of the owner, or for the end of the server."""
        watched = [self._commands] + ([self._exit_fd] if self._exit_fd >= 0 else [])
        if self._commands in select.select(watched, [], [], seconds)[0]:
            self._obey(os.read(self._commands, 4096))
        if os.getppid() != self._parent:
            self._grace = _ORPHAN_GRACE

    def _obey(self, line: bytes) -> None:
        if not line:
            self._grace = _ORPHAN_GRACE
            return
        self.stop()
        if line.startswith((b"halt", b"kill")):
            self._order.remove = None
        if line.startswith(b"kill"):
            self._grace = 0.0

    def _spawn(self) -> None:
        """Fork and execute nats-server; it dies with this process."""
        argv = list(self._order.argv)
        if self._port is not None:
            argv += ["-p", str(self._port)]
        prctl = _prctl()
        supervisor = os.getpid()
        console = os.open(self._order.console, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._read = os.path.getsize(self._order.log) if os.path.exists(self._order.log) else 0
        self._pid = os.fork()
        if self._pid == 0:  # pragma: no cover - the child, on its way to be another program
            try:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(console, 1)
                os.dup2(console, 2)
                for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                if prctl is not None:
                    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() == supervisor:  # else it died before the line above
                    os.execv(argv[0], argv)
            finally:
                os._exit(127)
        os.close(console)
        self._exit_fd = os.pidfd_open(self._pid) if hasattr(os, "pidfd_open") else -1

    def _reap(self) -> int | None:
        """Return the exit code of a server that has ended, else None."""
        if not self._pid:
            return None
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if not pid:
            return None
        if self._exit_fd >= 0:
            os.close(self._exit_fd)
        if os.path.exists(self._ports_file()):
            os.unlink(self._ports_file())
        self._pid, self._exit_fd = 0, -1
        return os.waitstatus_to_exitcode(status)

    def _kill(self, grace: float) -> None:
        """End the server: politely, then for certain."""
        if not self._pid:
            return
        os.kill(self._pid, signal.SIGTERM if grace else signal.SIGKILL)
        deadline = time.monotonic() + grace
        while self._reap() is None:
            if grace and time.monotonic() > deadline:
                grace = 0.0
                os.kill(self._pid, signal.SIGKILL)
            if self._exit_fd >= 0:
                select.select([self._exit_fd], [], [], 0.05)
            else:
                time.sleep(0.005)

    def _end(self) -> None:
        self._kill(self._order.grace if self._grace is None else self._grace)
        if self._order.remove is not None and self._grace is not None:
            import shutil

            shutil.rmtree(self._order.remove, ignore_errors=True)
        self._tell(event="stopped")

    def _ports_file(self) -> str:
        return os.path.join(self._order.ports_dir, f"{os.path.basename(self._order.argv[0])}_{self._pid}.ports")

    def _read_port(self) -> int | None:
        """Read the port that the server chose; it writes the file once it listens."""
        try:
            with open(self._ports_file(), encoding="utf-8") as file:
                return int(json.load(file)["nats"][0].rpartition(":")[2])
        except (OSError, ValueError, LookupError):  # not there yet, or half written
            return None

    def _tail(self) -> str:
        """The last lines of what the server said, in its log and on its console."""
        text = ""
        for path in (self._order.log, self._order.console):
            if os.path.exists(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    text += file.read()[-8192:]
        return "\n".join(text.splitlines()[-_TAIL:]) or "(nothing)"

    def _tell(self, **event: object) -> None:
        try:
            os.write(self._events, json.dumps(event).encode() + b"\n")
        except OSError:
            if self._grace is None:
                self._grace = _ORPHAN_GRACE  # nobody reads: the owner is gone


def _prctl() -> Any:  # a ctypes function pointer
    if sys.platform != "linux":
        return None
    import ctypes

    return ctypes.CDLL(None, use_errno=True).prctl


def main(commands: int = 0, events: int = 1, *, signals: bool = False) -> int:
    """Read the order and supervise; return the exit status.

    With ``signals``, this is a process of its own: SIGTERM stops the server, interrupts are the owner's business.
    """
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(commands, 1)
        if not byte:
            return 1
        line += byte
    supervisor = Supervisor(Order(line), commands, events)
    if signals:  # pragma: no cover - in a process of its own
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(signals=True))
