"""The committed baseline: ratios, not times, so that it holds on any machine.

Every verdict that carries a ratio (the kit against its limit or a peer, from interleaved rounds) is compared with
the ratio of the same name in ``reports/baseline.json``. It is worse when it is larger than the baseline by more
than the noise of both: when their intervals do not overlap, and the medians differ by more than a tenth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kit.lab.targets import Ratio

LEAST = 0.10  # a change below a tenth is not worth stopping for, however quiet the machine


def ratios(bodies: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the ratios in a report, by ``notebook/target``."""
    return {name: ratio for body in bodies for name, ratio in _of(body)}


def _of(body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    for record in body["records"]:
        for row in record["verdicts"]:
            if row["ratio"] is not None:
                yield f"{body['notebook']}/{row['name']}", row["ratio"]


def regressions(
    bodies: Iterable[Mapping[str, Any]], baseline: Mapping[str, Mapping[str, float]]
) -> tuple[int, list[str]]:
    """Return how many ratios were compared, and those that are worse than the baseline by more than the noise."""
    now = ratios(bodies)
    common = [name for name in now if name in baseline]
    worse = [
        f"{name}: {Ratio(**now[name])}, baseline {Ratio(**baseline[name])}"
        for name in common
        if is_worse(Ratio(**now[name]), Ratio(**baseline[name]))
    ]
    return len(common), worse


def is_worse(now: Ratio, baseline: Ratio) -> bool:
    """Return whether a ratio of time is larger than its baseline by more than the noise of both."""
    return now.low > baseline.high and now.value > baseline.value * (1 + LEAST)
