"""The lab's pictures: one style, SVG, readable in grey, offline, the same from the same data.

A ``Chart`` is what a cell ends with. In a report its ink and its paper follow the page, light or dark; everywhere
else it is dark ink on white paper. Series differ by lightness, by line style and by hatch, never by hue alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from kit.lab.quantities import quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PAPER, INK, MUTED, GRID, ACCENT = "#ffffff", "#1f2430", "#6b7280", "#d9dde3", "#b4232a"
SERIES = ("#1d4e89", "#e08e0b", "#5c9ead", "#7a3b69", "#9aa5b1", "#2f6b3a")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
HATCHES = ("", "///", "\\\\\\", "--", "xx", "||")
MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kit",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 12.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "figure.figsize": (7.6, 3.4),
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.7,
}
_ROLES = {PAPER: "paper", INK: "ink", MUTED: "muted", GRID: "grid", ACCENT: "accent"}
_ROLES |= {color: f"series-{number}" for number, color in enumerate(SERIES, start=1)}


class Chart:
    """A finished picture: SVG in a notebook, a title where there are no pictures."""

    def __init__(self, svg: str, title: str) -> None:
        self.svg, self.title = svg, title

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Chart: {self.title}"


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house's style within the block."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def figure(drawn: Figure, *, title: str) -> Chart:
    """Return any matplotlib figure as a chart, and close it.

    Args:
        drawn: made within ``with charts.style():``, for its colours to follow the page.
        title: what the picture says, in one line: it stands for the picture where there are no pictures.
    """
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    with style():
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    plt.close(drawn)
    return Chart(_themed(buffer.getvalue(), title), title)


def latency(
    seconds: Mapping[str, ArrayLike], *, title: str, target: float | None = None, percent: float = 95.0
) -> Chart:
    """Draw how many of the answers came within a time: a curve a series, its percentile marked, the target a line.

    Args:
        seconds: raw samples, float (n,), by series.
        target: limit for the percentile, in seconds.
    """
    with _axes() as (drawn, axes):
        scale, unit = _time_unit([float(np.median(np.asarray(values, dtype=float))) for values in seconds.values()])
        for number, (name, values) in enumerate(seconds.items()):
            share = np.linspace(0, 100, 401)
            ordered = np.percentile(np.asarray(values, dtype=float), share) / scale
            color, mark = _color(number), float(np.percentile(np.asarray(values, dtype=float), percent)) / scale
            label = f"{_shown(name)}: p{percent:g} {quantity(mark * scale, 's')}"
            axes.plot(ordered, share, color=color, linestyle=DASHES[number % len(DASHES)], label=label)
            axes.plot([mark], [percent], marker=MARKERS[number % len(MARKERS)], color=color, markersize=6)
        spread = np.concatenate([np.ravel(values) for values in seconds.values()]) / scale
        far = target is not None and target / scale > 4 * np.percentile(spread, 99)
        axes.set_xscale("log" if far or np.percentile(spread, 99.5) > 8 * np.percentile(spread, 1) else "linear")
        axes.set_xlim(float(np.percentile(spread, 0.1)) * 0.9, float(np.percentile(spread, 99.8)) * 1.1)
        if target is not None:
            _line(axes.axvline, target / scale, f"target {quantity(target, 's')}", INK)
            axes.set_xlim(right=max(axes.get_xlim()[1], target / scale * 1.15))
        _label(axes, title, f"time ({unit})", "answers within it (%)")
        axes.set_ylim(0, 102)
        if axes.get_xscale() == "log":
            _plain_ticks(axes.xaxis, axes.get_xlim())
        _legend(drawn)
    return figure(drawn, title=title)


def bars(
    values: Mapping[str, float],
    *,
    title: str,
    unit: str,
    target: float | None = None,
    limit: float | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    better: str = "lower",
) -> Chart:
    """Draw horizontal bars, the first one in front, beside the target and the limit that nothing can beat.

    Args:
        values: by name; the first is the kit's own.
        intervals: (low, high) by name, drawn as whiskers.
        better: ``lower`` or ``higher``, said in the axis label.
    """
    scale, shown = _time_unit(list(values.values())) if unit == "s" else (1.0, _axis_unit(unit))
    with _axes(height=1.5 + 0.42 * len(values)) as (drawn, axes):
        for place, (name, value) in enumerate(values.items()):
            first = place == 0
            face, hatch = (SERIES[0], "") if first else (PAPER, HATCHES[1 + (place - 1) % (len(HATCHES) - 1)])
            axes.barh(name, value / scale, color=face, edgecolor=SERIES[0], hatch=hatch, height=0.62, linewidth=1.2)
            low, high = (intervals or {}).get(name, (value, value))
            if high > low:
                whisker = [low / scale, high / scale]
                axes.plot(whisker, [place, place], color=INK, linewidth=1.2, marker="|", markersize=8)
            _beside(axes, quantity(value, unit), max(value, high) / scale, place)
        lines = ((target, "target", (4, 2)), (limit, "limit", (1, 1.5)))
        for at, word, dashes in lines:
            if at is not None:
                _line(axes.axvline, at / scale, f"{word} {quantity(at, unit)}", INK, dashes)
        top = max([*values.values(), *(at for at, _, _ in lines if at is not None)], default=1.0)
        axes.set_xlim(0, top / scale * 1.2)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        _label(axes, title, f"{shown}, {better} is better", "")
        if target is not None or limit is not None:
            _legend(drawn)
    return figure(drawn, title=title)


def curves(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    target: float | None = None,
    log_x: bool = False,
    log_y: bool = False,
) -> Chart:
    """Draw how something grows: a line a series with a marker a point, an interval as a band, the target a line."""
    with _axes() as (drawn, axes):
        for number, (name, values) in enumerate(series.items()):
            color, dashes, marker = _color(number), DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]
            axes.plot(x, values, color=color, linestyle=dashes, marker=marker, markersize=5, label=_shown(name))
            if bands and name in bands:
                low, high = bands[name]
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        if target is not None:
            _line(axes.axhline, target, f"target {target:g}", INK)
        if log_x:
            axes.set_xscale("log")
            axes.set_xticks(list(x), [f"{value:,g}" for value in x])
            axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis, axes.get_ylim())
        else:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _label(axes, title, x_label, y_label)
        _legend(drawn)
    return figure(drawn, title=title)


@contextmanager
def _axes(height: float = 3.4) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the house's style; nothing of it stays with pyplot when drawing fails."""
    import matplotlib.pyplot as plt

    with style():
        drawn, axes = plt.subplots(figsize=(7.6, height))
        try:
            yield drawn, axes
        except BaseException:
            plt.close(drawn)
            raise


def _label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _shown(name: str) -> str:
    """Return a name for a legend, which leaves out what begins with ``_``."""
    return f"\u200b{name}" if name.startswith("_") else name


def _legend(drawn: Figure) -> None:
    """Put the legend under the picture, where it covers nothing, in as many columns as there is room for."""
    look: Any = {"loc": "outside lower left", "fontsize": 9.5, "handlelength": 2.6, "columnspacing": 1.6}
    for columns in (4, 3, 2, 1):
        legend = drawn.legend(ncols=columns, **look)
        if columns == 1 or legend.get_window_extent().x1 <= drawn.bbox.x1:
            return
        legend.remove()


def _plain_ticks(axis: Axis, limits: tuple[float, float]) -> None:
    """Write the ticks of a logarithmic axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,) if limits[1] > 30 * limits[0] else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _beside(axes: Axes, text: str, x: float, y: float) -> None:
    """Write a value behind the end of its bar, readable where a line crosses it."""
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", bbox=box)


def _line(draw: Any, at: float, label: str, color: str, dashes: tuple[float, float] = (4, 2)) -> None:
    draw(at, color=color, linewidth=1.4, linestyle=(0, dashes), label=label)


def _color(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _axis_unit(unit: str) -> str:
    return {"s": "seconds", "×": "ratio (×)", "%": "%", "/s": "per second"}.get(unit, unit)


def _time_unit(medians: Sequence[float]) -> tuple[float, str]:
    middle = float(np.median(medians)) if medians else 1.0
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if middle >= scale:
            return scale, unit
    return 1e-9, "ns"


def _themed(svg: str, title: str) -> str:
    """Let the colours follow the page's variables, and tell a screen reader what the picture is."""
    svg = svg[svg.index("<svg") :]
    for color, role in _ROLES.items():
        svg = svg.replace(f'fill="{color}"', f'style="fill: {color}"')
        svg = re.sub(rf"(?<=[:\s]){color}(?=[;\"])", f"var(--chart-{role}, {color})", svg)
    svg = re.sub(r"font: ([^;:\"']*+)'[^;:\"]*+(?=[;\"])", r"font: \1system-ui, sans-serif", svg)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{label}" ', 1)
