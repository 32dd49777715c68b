"""The picture of a drill: what was acknowledged and took effect over time, and when the fault came and went."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kit.lab.charts import ACCENT, DASHES, MUTED, SERIES, Chart, figure, style
from kit.lab.drills.ledger import Entry


def timeline(entries: Iterable[Entry], *, title: str, step: float = 0.1) -> Chart:
    """Draw rates over time: acknowledgements, effects, and the faults and recoveries as vertical lines.

    Args:
        step: s; over which a rate is taken.
    """
    import matplotlib.pyplot as plt

    found = list(entries)
    start, end = found[0].at, found[-1].at
    edges = np.arange(0.0, end - start + 2 * step, step)
    with style():
        drawn, axes = plt.subplots(figsize=(7.6, 3.4))
        for number, (what, label) in enumerate((("acked", "acknowledged"), ("effect", "took effect"))):
            counts, _ = np.histogram([one.at - start for one in found if one.what == what], edges)
            axes.plot(edges[:-1], counts / step, color=SERIES[number], linestyle=DASHES[number], label=label)
        for what, color, label in (("fault", ACCENT, "fault"), ("back", MUTED, "recovered")):
            for place, at in enumerate(one.at - start for one in found if one.what == what):
                axes.axvline(at, color=color, linewidth=1.4, linestyle=(0, (4, 2)), label="" if place else label)
        axes.set_title(title)
        axes.set_xlabel("time (s)")
        axes.set_ylabel("jobs per second")
        axes.set_ylim(bottom=0)
        drawn.legend(ncols=4, loc="outside lower left", fontsize=9.5)
        return figure(drawn, title=title)
