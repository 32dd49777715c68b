"""Where the microseconds of one traced request go: by span, from the kit's own trace, and by room, from a profile."""

from __future__ import annotations

import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kit
from kit.lab import charts
from kit.lab.benchmarks.nats import ECHO, SAMPLED, Messaging, note
from kit.lab.benchmarks.nats_peers import SECONDS
from kit.lab.quantities import quantity

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from kit.otel import Telemetry

ASLEEP, SYSTEM, PYTHON = "asleep, while the server works", "system calls", "Python's library"
_ROOMS = {"codec": "kit.codec", "otel": "kit.otel", "nats": "kit.nats", "lab": "this benchmark"}
_LIBRARIES = {"nats": "nats-py", "opentelemetry": "OpenTelemetry", "asyncio": "asyncio", "msgspec": "kit.codec"}
_KIT = Path(kit.__file__).parent
_COMPILED = "<string>"  # the file of functions that are compiled for a contract
_OURS, _THEIRS, _OTHER = "the kit's own rooms", "libraries and system calls", "other rooms"
_PIECES = len(charts.SERIES)  # of the picture, beside the time asleep: as many as there are colours

Where = tuple[str, int, str]
"""File, line and function, as pstats names them."""


@dataclass(frozen=True, kw_only=True)
class Flame:
    """One traced request, both ends, taken apart.

    A profiler slows Python's functions down. So the time at work is the thread's, measured without it, and is shared
    out as the profile says; rooms of many small functions still look somewhat larger than they are.

    Attributes:
        wall: seconds from asking to the answer; work: seconds of it in which the thread ran.
        spans: seconds of each span of the trace, the caller's first.
        rooms: shares of the work; built-in functions count for the room that calls them.
        functions: likewise.
    """

    wall: float
    work: float
    spans: dict[str, float]
    rooms: dict[str, float]
    functions: dict[str, float]

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Flame:
        """Return what ``facts`` found, as it is kept."""
        return cls(**kept)

    @property
    def owners(self) -> dict[str, float]:
        """Seconds in the kit's own rooms, in everybody else's, and asleep, which together are the request."""
        kits = sum(share for room, share in self.rooms.items() if room.split(".")[0] == "kit") * self.work
        return {_OURS: kits, _THEIRS: self.work - kits, ASLEEP: max(self.wall - self.work, 0.0)}

    @property
    def most_expensive(self) -> str:
        """The function with most time of its own."""
        return max(self.functions, key=self.functions.__getitem__)

    def by_span(self) -> pd.DataFrame:
        """Return the spans, and what the caller's has beyond the handler's: the way there and back."""
        sent, handled = self.spans.values()
        return _table("span", {**self.spans, "… between the two": sent - handled}, sent)

    def by_owner(self) -> pd.DataFrame:
        """Return what the kit's rooms add up to, what is below them, and the time asleep."""
        return _table("whose", self.owners, self.wall)

    def by_room(self) -> pd.DataFrame:
        """Return the time of each room, the largest first, and the time asleep."""
        rows = {room: share * self.work for room, share in self.rooms.items()}
        return _table("room", {**rows, ASLEEP: max(self.wall - self.work, 0.0)}, self.wall)

    def by_function(self, most: int = 8) -> pd.DataFrame:
        """Return the functions with most time of their own, what they call in C included."""
        largest = sorted(self.functions.items(), key=lambda item: -item[1])[:most]
        return _table("function", {name: share * self.work for name, share in largest}, self.wall)

    def draw(self, title: str) -> Figure:
        """Return one bar, a piece a room; the smallest rooms are one piece, so that no two look alike."""
        import matplotlib.pyplot as plt

        rooms = {room: share * self.work for room, share in list(self.rooms.items())[: _PIECES - 1]}
        pieces = {**rooms, _OTHER: self.work - sum(rooms.values()), ASLEEP: max(self.wall - self.work, 0.0)}
        with charts.style():
            drawn, axes = plt.subplots(figsize=(7.6, 2.6))
            left = 0.0
            for number, (room, seconds) in enumerate(pieces.items()):
                color, hatch = charts.SERIES[number % len(charts.SERIES)], charts.HATCHES[number % len(charts.HATCHES)]
                paint: dict[str, Any] = {"color": charts.GRID} if room == ASLEEP else {"color": color, "hatch": hatch}
                axes.barh(0, seconds * 1e6, left=left, edgecolor=charts.PAPER, height=0.6, label=room, **paint)
                left += seconds * 1e6
            axes.set_title(title)
            axes.set_xlabel("time (µs)")
            axes.set_yticks([])
            axes.grid(visible=False, axis="y")
            drawn.legend(loc="outside lower left", ncols=4, fontsize=9)
        return drawn


async def facts(messaging: Messaging, requests: int) -> dict[str, Any]:
    """Take traced requests apart, and return what was found as plain JSON, for ``Flame.read``."""
    return asdict(await measure(messaging, requests))


async def measure(messaging: Messaging, requests: int) -> Flame:
    """Take traced requests apart, one after the other: both ends of each, for they share the event loop."""
    bus, data = messaging.senders[SAMPLED], note()

    async def ask() -> None:
        for _ in range(requests):
            await bus.request(ECHO, data, timeout=SECONDS)

    await ask()
    begun, ran = time.perf_counter(), time.thread_time()
    await ask()
    wall, work = (time.perf_counter() - begun) / requests, (time.thread_time() - ran) / requests
    spans = _spans(bus.telemetry, requests)
    profiler = cProfile.Profile()
    profiler.enable()
    await ask()
    profiler.disable()
    rooms, functions = shares(pstats.Stats(profiler).stats)  # type: ignore[attr-defined]
    return Flame(wall=wall, work=work, spans=spans, rooms=rooms, functions=functions)


def shares(stats: Mapping[Where, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Return each room's and each function's share of the time at work, the largest first.

    Args:
        stats: as ``pstats.Stats.stats``: by function its calls, its own time, its whole time, its callers.
    """
    rooms: dict[str, float] = defaultdict(float)
    functions: dict[str, float] = defaultdict(float)
    for where, (_, _, own, _, callers) in stats.items():
        if where[0] == _COMPILED:
            parts = [(_ROOMS["codec"], "the compiled contract", own)]
        elif where[0] != "~":
            parts = [(_room(where[0]), where[2], own)]
        elif (system := _system(where[2])) is not None:
            parts = [(SYSTEM, system, own)] if system else []
        else:  # a function in C counts for who calls it
            parts = [(_room(file), name, part) for (file, _, name), (_, _, part, _) in callers.items()]
        for room, name, seconds in parts:
            rooms[room] += seconds
            functions[f"{name} ({room})"] += seconds
    whole = sum(rooms.values())
    return _ordered(rooms, whole), _ordered(functions, whole)


def _spans(telemetry: Telemetry, requests: int) -> dict[str, float]:
    """The median seconds of the last requests' spans."""
    found = telemetry.recorder.spans()
    names = (ECHO.send_span.name, ECHO.handle_span.name)
    return {name: float(found[found["name"] == name]["duration_ms"].tail(requests).median()) / 1e3 for name in names}


def _ordered(seconds: Mapping[str, float], whole: float) -> dict[str, float]:
    return {name: part / whole for name, part in sorted(seconds.items(), key=lambda item: -item[1])}


def _table(name: str, seconds: Mapping[str, float], whole: float) -> pd.DataFrame:
    import pandas as pd

    rows = {row: {"time": quantity(part, "s"), "share": f"{100 * part / whole:.0f} %"} for row, part in seconds.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(name)


def _system(function: str) -> str | None:
    """Return what a function in C has the kernel do, "" where it only waits; None for all others."""
    if "poll" in function:
        return ""
    calls = {"'send'": "send to a socket", "'recv'": "receive from a socket", "'recv_into'": "receive from a socket"}
    return next((told for name, told in calls.items() if name in function and "socket" in function), None)


def _room(file: str) -> str:
    path = Path(file)
    if path.is_relative_to(_KIT):
        return _ROOMS.get(path.relative_to(_KIT).parts[0], "kit")
    if file == _COMPILED:
        return _ROOMS["codec"]
    return next((name for part, name in _LIBRARIES.items() if part in path.parts), PYTHON)
