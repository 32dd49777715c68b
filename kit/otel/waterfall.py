"""A trace as a picture: one row a span, over time.

Components differ by lightness and by hatch, so that the picture is read in grey as well; a failure is framed and
marked. Loaded only when somebody draws, since matplotlib is slow to import.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kit.otel.trace import FAILED, plain_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kit.otel.trace import Node, Trace

# The house's ink, paper and series; a report recolours them for a dark page.
PAPER, INK, MUTED, GRID, ACCENT = "#ffffff", "#1f2430", "#6b7280", "#d9dde3", "#b4232a"
SERIES = ("#1d4e89", "#e08e0b", "#5c9ead", "#7a3b69", "#9aa5b1", "#2f6b3a")
HATCHES = ("", "///", "\\\\\\", "--", "xx", "||")

MOST_ROWS = 60  # of a picture that somebody still looks at; what is left out is told
MOST_ALIKE = 4  # siblings of one name with a row each; more of them share one
_ROW = 0.26  # inches
_BARS = 5.6  # inches
_INDENT = "\u00a0\u00a0\u00a0"  # plain spaces at the start of a text do not survive SVG
_STYLE: Any = {  # matplotlib's stubs want every key as a literal type
    "svg.fonttype": "none",
    "svg.hashsalt": "kit",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "hatch.linewidth": 0.6,
}


class Waterfall(Figure):
    """A matplotlib figure that shows itself as SVG."""

    def svg(self) -> str:
        """Return the picture as SVG; the same from the same data."""
        buffer = io.StringIO()
        with mpl.rc_context(_STYLE):
            self.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        return text[text.index("<svg") :]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Waterfall: {self.get_label()}"


@dataclass(frozen=True)
class _Row:
    label: str
    component: str
    bars: list[tuple[float, float]]  # start and duration, in seconds since the trace began
    failed: bool

    @property
    def note(self) -> str:
        took = plain_duration(sum(duration for _, duration in self.bars)) if self.bars else ""
        return f"{took} {FAILED}" if self.failed else took


def waterfall(trace: Trace, title: str | None = None) -> Waterfall:
    """Draw a trace; ``title`` is its root's name and duration unless given."""
    rows = _rows(trace)
    if title is None:
        title = f"{trace.roots[0].name}: {plain_duration(trace.seconds)}" if trace.roots else "no spans"
    with mpl.rc_context(_STYLE):
        return _draw(rows, trace.seconds or 1e-6, title)


def _rows(trace: Trace) -> list[_Row]:
    start = min((node.start_ns for node, _ in trace.walk()), default=0)
    rows: list[_Row] = []

    def add(nodes: list[Node], depth: int) -> None:
        by_name: dict[str, list[Node]] = {}
        for node in nodes:
            by_name.setdefault(node.name, []).append(node)
        shared = {name for name, alike in by_name.items() if len(alike) > MOST_ALIKE}
        for node in nodes:
            if node.name not in shared:
                rows.append(_row([node], depth, start))
                add(node.children, depth + 1)
            elif node is by_name[node.name][0]:
                rows.append(_row(by_name[node.name], depth, start))
                add([child for one in by_name[node.name] for child in one.children], depth + 1)

    add(trace.roots, 0)
    if len(rows) > MOST_ROWS:
        # The longest stay, and with them whatever contains them.
        took = [-sum(duration for _, duration in row.bars) for row in rows]
        kept = sorted(sorted(range(len(rows)), key=took.__getitem__)[:MOST_ROWS])
        left_out = len(rows) - MOST_ROWS
        rows = [*(rows[number] for number in kept), _Row(f"… and {left_out} shorter ones", "", [], False)]
    return rows


def _row(alike: list[Node], depth: int, start: int) -> _Row:
    times = f" × {len(alike)}" if len(alike) > 1 else ""
    bars = [((node.start_ns - start) / 1e9, node.seconds) for node in alike if node.span is not None]
    return _Row(_INDENT * depth + alike[0].name + times, alike[0].component, bars, any(n.failed for n in alike))


def _draw(rows: list[_Row], seconds: float, title: str) -> Waterfall:
    labels = _width([row.label for row in rows], size=9.0) + 0.15
    notes = _width([row.note for row in rows], size=8.0) + 0.15
    components = list(dict.fromkeys(row.component for row in rows if row.component))
    top, bottom, side = 0.5, 0.5 + (0.3 if len(components) > 1 else 0.0), 0.15
    body = _ROW * max(len(rows), 1)
    width, height = side + labels + _BARS + notes + side, top + body + bottom
    # What is longer than the picture is wide makes it wider: no text is ever cut.
    width = max(width, 2 * side + _width([title], size=11.0, weight="bold"))
    figure = Waterfall(figsize=(width, height), label=title)
    FigureCanvasAgg(figure)
    place = ((side + labels) / width, bottom / height, (width - labels - notes - 2 * side) / width, body / height)
    axes = figure.add_axes(place)
    factor, unit = _unit(seconds)
    _bars(axes, rows, seconds, factor, components)
    for number, row in enumerate(rows):
        figure.text(
            side / width, (bottom + body - (number + 0.5) * _ROW) / height, row.label, va="center", fontsize=9.0
        )
    figure.text(side / width, 1 - 0.2 / height, title, va="center", fontsize=11.0, weight="bold")
    axes.set_xlabel(f"time since the trace began ({unit})")
    if len(components) > 1:
        _legend(figure, components, (side / width, 0.02 / height))
    return figure


def _bars(axes: Axes, rows: list[_Row], seconds: float, factor: float, components: list[str]) -> None:
    shortest = seconds / 300  # a span of microseconds within seconds is still a visible line
    for number, row in enumerate(rows):
        style = components.index(row.component) % len(SERIES) if row.component else 0
        spans = [(start * factor, max(duration, shortest) * factor) for start, duration in row.bars]
        axes.broken_barh(
            spans,
            (number - 0.34, 0.68),
            facecolor=SERIES[style],
            hatch=HATCHES[style],
            edgecolor=ACCENT if row.failed else PAPER,
            linewidth=1.6 if row.failed else 0.4,
        )
        if row.bars:
            end = max(start + max(duration, shortest) for start, duration in row.bars)
            axes.annotate(
                row.note,
                (end * factor, number),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.0,
                color=ACCENT if row.failed else INK,
                annotation_clip=False,
            )
    axes.set_xlim(0, seconds * factor)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(True, axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)


def _legend(figure: Figure, components: list[str], corner: tuple[float, float]) -> None:
    patches = [
        Patch(facecolor=SERIES[n % len(SERIES)], hatch=HATCHES[n % len(HATCHES)], edgecolor=PAPER, label=component)
        for n, component in enumerate(components)
    ]
    figure.legend(handles=patches, loc="lower left", bbox_to_anchor=corner, ncols=6, frameon=False, fontsize=8.0)


def _unit(seconds: float) -> tuple[float, str]:
    if seconds >= 1.0:
        return 1.0, "s"
    return (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")


def _width(texts: list[str], *, size: float, weight: str = "normal") -> float:
    """The widest text's width in inches."""
    figure = Figure()
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    drawn = [figure.text(0, 0, text, fontsize=size, weight=weight) for text in texts]
    return max((text.get_window_extent(renderer).width / figure.dpi for text in drawn), default=0.0)
