"""Where the time of one traced question goes: by span, from the kit's own trace, and by function, from a profile."""

from __future__ import annotations

import cProfile
import pstats
import sysconfig
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kit
from kit.catalogue import OPERATIONS, USE_CASE_DOCUMENT_QA, Mode
from kit.components import document_qa
from kit.lab import charts
from kit.lab.quantities import quantity

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kit.components import rag
    from kit.nats.bus import Bus
    from kit.otel import Telemetry

_WHOLE = USE_CASE_DOCUMENT_QA.name
_ASIDE = {row.send_span.name for row in OPERATIONS if row.mode is Mode.EVENT}  # told beside a question: nobody waits
_KIT, _LIBRARY = Path(kit.__file__).parent, Path(sysconfig.get_path("purelib"))
_PROFILED = 10  # questions under a profiler
_NARROW = 0.035  # of the picture's width: a box below that has no room for its name

Where = tuple[str, int, str]
"""File, line and function, as pstats names them."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """A piece of an icicle: from ``begin`` for ``seconds``, ``depth`` rows below the whole."""

    name: str
    begin: float
    seconds: float
    depth: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What the event loop's thread did in one question, averaged: cProfile's shares of the thread's own time.

    The profiler slows small functions down. So the time at work is measured without it, and shared out as it says.

    Attributes:
        wall: seconds from question to answer; work: seconds of it in which the thread ran.
        parts: shares of the work by room (the kit's, or a library) and function; a function in C counts for its caller.
        calls: of each function, in one question.
    """

    wall: float
    work: float
    parts: dict[tuple[str, str], float]
    calls: dict[tuple[str, str], float]

    def table(self, most: int = 10) -> pd.DataFrame:
        """Return the functions with most time of their own, the largest first."""
        import pandas as pd

        rows = [
            {"function": name, "of": room, "calls": f"{self.calls[room, name]:.1f}",
             "own time": quantity(part * self.work, "s"), "share": f"{100 * part:.1f} %"}
            for (room, name), part in sorted(self.parts.items(), key=lambda item: -item[1])[:most]
        ]  # fmt: skip
        return pd.DataFrame(rows).set_index("function")

    @property
    def rooms(self) -> dict[str, float]:
        """Shares of the work by room, the largest first."""
        found: dict[str, float] = defaultdict(float)
        for (room, _), part in self.parts.items():
            found[room] += part
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def boxes(self) -> list[Box]:
        """Return the icicle: the work, its rooms, each room's functions."""
        found, at = [Box(name="the event loop at work", begin=0.0, seconds=self.work, depth=0)], 0.0
        for room, share in self.rooms.items():
            found.append(Box(name=room, begin=at, seconds=share * self.work, depth=1))
            inner = at
            mine = {name: part for (owner, name), part in self.parts.items() if owner == room}
            for name, part in sorted(mine.items(), key=lambda item: -item[1]):
                found.append(Box(name=name, begin=inner, seconds=part * self.work, depth=2))
                inner += part * self.work
            at += share * self.work
        return found


@dataclass(frozen=True, kw_only=True)
class Flame:
    """Where the time of questions went.

    Attributes:
        trace: the icicle of the question of median length, by its spans.
        own: seconds that each span spent outside the spans below it, averaged, the largest first.
        profile: what the event loop's thread did.
    """

    trace: list[Box]
    own: dict[str, float]
    profile: Profile

    def plain(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "trace": [asdict(box) for box in self.trace],
            "own_s": self.own,
            "wall_s": self.profile.wall,
            "work_s": self.profile.work,
            "functions": [
                {"room": room, "name": name, "share": share, "calls": self.profile.calls.get((room, name), 0.0)}
                for (room, name), share in self.profile.parts.items()
            ],
        }

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Flame:
        """Return what ``plain`` wrote."""
        rows = {(row["room"], row["name"]): row for row in kept["functions"]}
        profile = Profile(
            wall=kept["wall_s"],
            work=kept["work_s"],
            parts={where: row["share"] for where, row in rows.items()},
            calls={where: row["calls"] for where, row in rows.items()},
        )
        return cls(trace=[Box(**box) for box in kept["trace"]], own=kept["own_s"], profile=profile)

    def stages(self, most: int = 10) -> pd.DataFrame:
        """Return the spans with most time of their own, and their shares of all stages."""
        import pandas as pd

        whole = sum(self.own.values())
        rows = {
            name: {"own": quantity(seconds, "s"), "share": f"{100 * seconds / whole:.0f} %"}
            for name, seconds in list(self.own.items())[:most]
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("span")

    def pictures(self) -> dict[str, charts.Chart]:
        """Return the icicles, by ``spans`` and by ``functions``."""
        drawn = {"spans": self.trace, "functions": self.profile.boxes()}
        titles = {name: f"One question, by its {name}" for name in drawn}
        return {name: charts.figure(icicle(boxes, titles[name]), title=titles[name]) for name, boxes in drawn.items()}


async def measure(bus: Bus, telemetry: Telemetry, cases: Sequence[rag.Case]) -> Flame:
    """Ask questions, read their traces, and ask some of them again under a profiler."""
    for case in cases:
        await document_qa.ask(bus, case.question)
    own, trace = stages(telemetry, len(cases)), trace_boxes(telemetry)
    return Flame(trace=trace, own=own, profile=await profile(bus, cases[:_PROFILED]))


# --- the kit's own trace ----------------------------------------------------------------------------------------


def stages(telemetry: Telemetry, number: int) -> dict[str, float]:
    """Return where the last questions' time went: seconds that each span spent outside the spans below it.

    What a caller waits beyond the handler's own span is the way there and back: encoding, NATS, decoding. Events are
    left out: they are published beside the answer.
    """
    own: dict[str, float] = defaultdict(float)
    chosen = _questions(telemetry)[-number:]
    for key in chosen:
        for node, _ in telemetry.recorder.trace(key).walk():
            if node.span is not None and node.name not in _ASIDE:
                end = node.start_ns + node.seconds * 1e9
                below = sorted((c.start_ns, min(c.start_ns + c.seconds * 1e9, end)) for c in node.children)
                own[node.name] += node.seconds - _covered(below) / 1e9
    ordered = sorted(own.items(), key=lambda item: -item[1])
    return {name: seconds / len(chosen) for name, seconds in ordered}


def trace_boxes(telemetry: Telemetry) -> list[Box]:
    """Return the icicle of the question of median length: its spans, each below the one that it was opened in."""
    traces = [telemetry.recorder.trace(key) for key in _questions(telemetry)]
    walks = [[(node, depth) for node, depth in trace.walk() if node.span is not None] for trace in traces]
    walk = sorted(walks, key=lambda nodes: nodes[0][0].seconds)[len(walks) // 2]
    first = walk[0][0]
    end = first.start_ns + first.seconds * 1e9  # what is told after the answer is not the question's time
    return [
        Box(
            name=node.name,
            begin=(node.start_ns - first.start_ns) / 1e9,
            seconds=min(node.seconds, (end - node.start_ns) / 1e9),
            depth=depth - walk[0][1],
        )
        for node, depth in walk
        if node.start_ns < end and node.name not in _ASIDE
    ]


def _questions(telemetry: Telemetry) -> list[str]:
    """The ids of the traces of questions, oldest first."""
    spans = telemetry.recorder.spans()
    asked = set(spans.loc[spans["name"] == _WHOLE, "trace_id"])
    return [key for key in telemetry.recorder.trace_ids() if key in asked]


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, sorted by their begin."""
    total, until = 0.0, 0.0
    for begin, end in spans:
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


# --- a profile --------------------------------------------------------------------------------------------------


async def profile(bus: Bus, cases: Sequence[rag.Case]) -> Profile:
    """Ask questions without a profiler, for the time, and with cProfile, for the shares.

    Only the event loop's thread is seen; LanceDB's and the tokenizer's threads work beside it.
    """

    async def ask() -> None:
        for case in cases:
            await document_qa.ask(bus, case.question)

    begun, ran = time.perf_counter(), time.thread_time()
    await ask()
    wall, work = (time.perf_counter() - begun) / len(cases), (time.thread_time() - ran) / len(cases)
    profiler = cProfile.Profile()
    profiler.enable()
    await ask()
    profiler.disable()
    parts, calls = shares(pstats.Stats(profiler).stats)  # type: ignore[attr-defined]
    return Profile(wall=wall, work=work, parts=parts, calls={name: n / len(cases) for name, n in calls.items()})


def shares(stats: Mapping[Where, Any]) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
    """Return each function's share of the time at work, and its calls, both by room and function.

    Args:
        stats: as ``pstats.Stats.stats``: by function its calls, its own time, its whole time, its callers.
    """
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str], float] = defaultdict(float)
    for where, (_, number, own, _, callers) in stats.items():
        if where[0] != "~":
            seconds[_named(where)] += own
            calls[_named(where)] += number
        elif "poll" not in where[2]:  # the loop asleep: that is waiting, not work
            for caller, (_, _, part, _) in callers.items():
                seconds[_named(caller)] += part
    whole = sum(seconds.values())
    return {name: part / whole for name, part in seconds.items()}, calls


def _named(where: Where) -> tuple[str, str]:
    """Return the room and the function: ``("kit.codec", "decoding.decode")``, ``("litellm", "main.acompletion")``."""
    file, _, function = where
    path = Path(file)
    name = f"{path.stem}.{function}"
    if path.is_relative_to(_KIT):
        parts = path.relative_to(_KIT).with_suffix("").parts
        return ".".join(("kit", *parts[: 2 if parts[0] == "components" else 1])), name
    if path.is_relative_to(_LIBRARY):
        return path.relative_to(_LIBRARY).with_suffix("").parts[0], name
    if file.startswith("<"):  # the functions that are compiled for a contract
        return "kit.codec", "compiled contract" if function == "function" else function
    return "Python's library", name


# --- pictures ---------------------------------------------------------------------------------------------------


def most_expensive(flame: Flame) -> str:
    """Return the sentence on the most expensive thing left: the stage, the room, the function."""
    found, (stage, own) = flame.profile, next(iter(flame.own.items()))
    room = next(iter(found.rooms))
    (owner, function), part = max(found.parts.items(), key=lambda item: item[1])
    asleep = 100 * max(0.0, 1 - found.work / found.wall)
    return (
        f"The most expensive stage is {stage}: {quantity(own, 's')} of its own, "
        f"{100 * own / sum(flame.own.values()):.0f} % of all stages. The event loop waits {asleep:.0f} % of a "
        f"question; where it works, {room} takes most, {100 * found.rooms[room]:.0f} %, and of single functions "
        f"{function} ({owner}), {quantity(part * found.work, 's')}."
    )


def icicle(boxes: Sequence[Box], title: str) -> Figure:
    """Return boxes below boxes, as wide as their time; the widest have their names within."""
    import matplotlib.pyplot as plt

    whole, depth = boxes[0].seconds, max(box.depth for box in boxes)
    with charts.style():
        drawn, axes = plt.subplots(figsize=(9.6, 0.9 + 0.42 * (depth + 1)))
        for place, box in enumerate(box for box in boxes if box.seconds > whole / 1000):
            color = charts.SERIES[place % 3]
            at = (box.begin * 1e3, box.seconds * 1e3)
            axes.barh(box.depth, at[1], left=at[0], height=0.94, color=color, edgecolor=charts.PAPER, alpha=0.35)
            _name(axes, box, whole)
        axes.set_title(title)
        axes.set_xlabel("time (ms)")
        axes.set_xlim(0, whole * 1e3)
        axes.set_yticks([])
        axes.invert_yaxis()
        axes.grid(visible=False)
    return drawn


def _name(axes: Axes, box: Box, whole: float) -> None:
    """Write a box's name into it, as much of it as there is room for."""
    room = int(135 * box.seconds / whole)  # letters
    if box.seconds > _NARROW * whole and room > 2:
        text = box.name if len(box.name) <= room else f"{box.name[: room - 1]}…"
        axes.text(box.begin * 1e3, box.depth, f" {text}", va="center", fontsize=8, clip_on=True)
