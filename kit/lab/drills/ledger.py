"""The ledger: what was acknowledged, delivered and took effect, written down before anything else can go wrong.

Each process appends to a file of its own, one line an entry: ``<seconds> <what> <id> <detail>``. A line is written at
once, so that a SIGKILL loses none, and synced within a moment, so that a power cut loses few. The seconds are those of
the monotonic clock, which all processes of a machine share: files are merged by time, and judged by id.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

_SYNC = 0.05  # s; between two syncs of a file that is written to


class Entry(NamedTuple):
    """One line of a ledger."""

    at: float
    what: str
    id: str = "-"
    detail: str = ""


class Ledger:
    """This process's file in the folder of a drill's ledger."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        name = f"{os.getpid()}-{time.monotonic_ns()}.ledger"
        self._file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        self._written, self._closed = threading.Event(), threading.Event()
        self._syncing = threading.Thread(target=self._sync, name="ledger", daemon=True)
        self._syncing.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        self._syncing.join()
        os.fsync(self._file)
        os.close(self._file)

    def note(self, what: str, id: str | None = None, detail: object = "") -> None:
        """Append an entry; on return the operating system has it."""
        os.write(self._file, f"{time.monotonic():.6f} {what} {id or '-'} {detail}\n".encode())
        self._written.set()

    def entries(self) -> list[Entry]:
        """Return what all processes have written so far, by time."""
        return read(self.folder)

    def _sync(self) -> None:
        while not self._closed.wait(_SYNC):
            if self._written.is_set():
                self._written.clear()
                os.fdatasync(self._file)


def read(folder: Path) -> list[Entry]:
    """Return the entries of all files of a ledger, by time; a line that was cut off by a kill is left out."""
    found = []
    for path in folder.glob("*.ledger"):
        for line in path.read_text().split("\n")[:-1]:
            at, what, id, detail = line.split(" ", 3)
            found.append(Entry(float(at), what, id, detail))
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a ledger says of jobs.

    Attributes:
        acked: ids whose storing was acknowledged.
        lost: acknowledged ids without an effect that are no dead letters either.
        stored_twice: ids that have more than one place in the queue.
        repeated: ids whose effect happened more than once.
        left: what was in the queue at the end.
        errors: calls that failed.
        first_ack: the longest time from a recovery to the next acknowledgement, s.
        longest_gap: between two acknowledgements, s.
    """

    acked: int
    lost: int
    stored_twice: int
    repeated: int
    left: int
    errors: int
    first_ack: float
    longest_gap: float


def figures(entries: Iterable[Entry]) -> Figures:
    """Return the figures of a ledger.

    Entries: ``acked ID SEQUENCE`` and ``error ID REASON`` by who sends, ``effect ID`` by who works, ``dead ID``,
    ``stored - N`` and ``left - N`` by who looks at the queue at the end, ``fault`` and ``back`` by who injects.
    """
    by = defaultdict[str, list[Entry]](list)
    for entry in entries:
        by[entry.what].append(entry)
    places = defaultdict[str, set[str]](set)
    for entry in by["acked"]:
        places[entry.id].add(entry.detail)
    effects = Counter(entry.id for entry in by["effect"])
    ended = effects.keys() | {entry.id for entry in by["dead"]}
    tried = places.keys() | {entry.id for entry in by["error"]}
    before = min((int(place) for of in places.values() for place in of), default=1) - 1  # the queue may not be new
    surplus = max((int(entry.detail) for entry in by["stored"]), default=0) - before - len(tried)
    times = [entry.at for entry in by["acked"]]
    waits = [min((at for at in times if at >= back.at), default=float("inf")) - back.at for back in by["back"]]
    return Figures(
        acked=len(places),
        lost=len(places.keys() - ended),
        stored_twice=max(sum(len(of) > 1 for of in places.values()), surplus),
        repeated=sum(count > 1 for count in effects.values()),
        left=sum(int(entry.detail) for entry in by["left"]),
        errors=len(by["error"]),
        first_ack=max(waits, default=0.0),
        longest_gap=max((after - before for before, after in pairwise(times)), default=0.0),
    )
