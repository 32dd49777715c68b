"""The committed baseline: ratios, not times, so that it holds on any machine.

Every verdict that carries a ratio (the kit against its limit or a peer, from interleaved rounds) is compared with
the ratio of the same name in ``reports/baseline.json``. It is worse when it is larger than the baseline by more
than the noise of both: when their intervals do not overlap, and the medians differ by more than LEAST.

An interval knows the noise within one run, not what changes from run to run: where objects lie in memory, which
neighbour the machine has. LEAST is for that: the same code differed by up to a third between two runs. Ratios cancel a
machine's speed, but not its kind: caches, cores and disks weigh on the two sides unequally. So each ratio keeps the
machine it was measured on, and on another one only a doubling counts.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kit.lab.project import project_root
from kit.lab.targets import Ratio

FILE = "baseline.json"
LEAST = 0.5  # a change of the median below this is none, however narrow the intervals
ELSEWHERE = 1.0  # the same, where the baseline was measured on another machine


@dataclass(frozen=True, kw_only=True)
class Change:
    """A ratio beside its baseline.

    Attributes:
        name: ``notebook/target``.
        baseline: None where the baseline does not know it yet.
        least: how much larger the median has to be to count, as a part of the baseline's.
        history: its medians over the commits of the baseline, oldest first, this run's last.
    """

    name: str
    now: Ratio
    baseline: Ratio | None
    least: float = LEAST
    history: tuple[float, ...] = ()

    @property
    def state(self) -> Literal["new", "worse", "better", "steady"]:
        """Return what became of it, beyond the noise of both."""
        if self.baseline is None:
            return "new"
        if is_worse(self.now, self.baseline, self.least):
            return "worse"
        return "better" if is_worse(self.baseline, self.now, self.least) else "steady"

    def __str__(self) -> str:
        if self.baseline is None:
            return f"{self.name}: {self.now}, baseline none"
        larger = f"{100 * (self.now.value / self.baseline.value - 1):+.0f} %"
        return f"{self.name}: {self.now}, baseline {self.baseline}: {larger}, {100 * self.least:.0f} % allowed"


def ratios(bodies: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the ratios in a report's bodies (``notebook``, ``records``, ``environment``), by ``notebook/target``.

    Each has ``value``, ``low``, ``high``, and ``machine``, where it was measured.
    """
    return {name: ratio for body in bodies for name, ratio in _of(body)}


def _of(body: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    where = machine(body.get("environment", {}))
    for record in body["records"]:
        for row in record["verdicts"]:
            if row["ratio"] is not None:
                yield f"{body['notebook']}/{row['name']}", {**row["ratio"], "machine": where}


def machine(environment: Mapping[str, Any]) -> str:
    """Return what ratios depend on of a machine: its processor, its cores, the interpreter without its patch level."""
    if not environment:
        return ""
    python = ".".join(str(environment["python"]).split(".")[:2])
    return f"{environment['cpu']}, {environment['cores']} cores, {python}"


def changes(bodies: Iterable[Mapping[str, Any]], folder: Path, *, history: bool = False) -> list[Change]:
    """Return every ratio of a report beside the baseline in a folder.

    Args:
        history: look the commits of the project's own baseline up, for the trend.
    """
    path = folder / FILE
    baseline = json.loads(path.read_text()) if path.is_file() else {}
    before = past() if history else []
    return [
        Change(
            name=name,
            now=_ratio(ratio),
            baseline=_ratio(baseline[name]) if name in baseline else None,
            least=LEAST if baseline.get(name, {}).get("machine", "") in ("", ratio["machine"]) else ELSEWHERE,
            history=(*(old[name]["value"] for old in before if name in old), ratio["value"]),
        )
        for name, ratio in ratios(bodies).items()
    ]


def is_worse(now: Ratio, baseline: Ratio, least: float = LEAST) -> bool:
    """Return whether a ratio of time is larger than its baseline by more than the noise of both, and by ``least``."""
    return now.low > baseline.high and now.value > baseline.value * (1 + least)


def _ratio(kept: Mapping[str, Any]) -> Ratio:
    return Ratio(value=kept["value"], low=kept["low"], high=kept["high"])


def write(bodies: Iterable[Mapping[str, Any]], folder: Path) -> int:
    """Make the ratios of a report the baseline, and return how many there are; ratios it lacks stay as they were."""
    path = folder / FILE
    kept = json.loads(path.read_text()) if path.is_file() else {}
    found = ratios(bodies)
    path.write_text(json.dumps({**kept, **found}, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return len(found)


def past(limit: int = 30) -> list[dict[str, dict[str, float]]]:
    """Return the project's baseline at each commit that changed it, oldest first; nothing outside a checkout."""
    where = f"reports/{FILE}"
    found = []
    for commit in reversed(_git("log", f"-{limit}", "--format=%H", "--", where).split()):
        text = _git("show", f"{commit}:{where}")
        if text:
            found.append(json.loads(text))
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=project_root(), capture_output=True, text=True, check=False, timeout=20.0
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
