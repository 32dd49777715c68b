"""The committed baseline: ratios, not times, so that it holds on any machine.

Every verdict that carries a ratio (the kit against its limit or a peer, from interleaved rounds) is compared with
the ratio of the same name in ``reports/baseline.json``, which keeps its last ``RUNS`` runs of ``kit gates
--update-baseline``.

An interval knows the noise within one run, not what changes from run to run: where objects lie in memory, which
neighbour the machine has. That differs from ratio to ratio: some repeat within 2 %, others within a third. So each has
a margin of its own, from the runs that are kept: ``WIDER`` times as far as they lie from their median, and at least 15
%; more while there are less than three runs (``_FEW``), since these do not show how far they can differ. A ratio is
worse when its median is beyond the margin, *and* its interval lies above all of the kept runs.

Ratios cancel a machine's speed, but not its kind: caches, cores and disks weigh on the two sides unequally. So each
ratio keeps the machine it was measured on, and on another one only a doubling counts. A run that is added to the
baseline from another machine, or from beyond the margin (the code is another then), replaces the runs before it.

Documents with embeddings beside a JSON list have no ratio here: whether their memory is new pages or old ones decides
more than the code does, and a process has the one or the other for all of its rounds. Beside the bare copy of their
floats, whose memory is as new, they have one.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

from kit.errors import ReportError
from kit.lab.project import project_root
from kit.lab.targets import Ratio

FILE = "baseline.json"
RUNS = 5  # that are kept of each ratio, the latest
WIDER = 2.0  # times the distance of the kept runs from their median
LEAST = 0.15  # a change of the median below this is none, however close the runs are
ELSEWHERE = 1.0  # the same, where the baseline was measured on another machine
_FEW = {1: 0.5, 2: 0.3}  # the same, where there are so few runs


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the baseline keeps of a ratio: its runs, oldest first, at least one, all from one machine."""

    runs: tuple[Ratio, ...]
    machine: str = ""

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Self:
        """Return what ``plain`` wrote, or one run from the time when a baseline was a single one."""
        runs = kept.get("runs") or [kept]
        return cls(runs=tuple(_ratio(run) for run in runs), machine=kept.get("machine", ""))

    def plain(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"machine": self.machine, "runs": [run.plain() for run in self.runs]}

    @property
    def middle(self) -> Ratio:
        """The median of the runs' medians, between the lowest and the highest of them; a single run as it is."""
        if len(self.runs) == 1:
            return self.runs[0]
        values = sorted(run.value for run in self.runs)
        return Ratio(value=median(values), low=values[0], high=values[-1])

    def margin(self, machine: str) -> float:
        """Return by how much a run on a machine may differ from the middle, as a part of it."""
        values = [run.value for run in self.runs]
        middle = median(values)
        apart = max(max(values) / middle, middle / min(values)) - 1
        least = LEAST if self.machine in ("", machine) else ELSEWHERE
        return max(least, _FEW.get(len(values), 0.0), WIDER * apart)

    def and_then(self, ratio: Ratio, machine: str) -> Known:
        """Return the runs with one more, or that alone where it cannot be one of them."""
        alike = self.machine in ("", machine)
        change = Change(name="", now=ratio, baseline=self.middle, least=self.margin(machine))
        before = self.runs if alike and change.state == "steady" else ()
        return Known(runs=(*before, ratio)[-RUNS:], machine=machine)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A ratio beside its baseline.

    Attributes:
        name: ``notebook/target``.
        baseline: the middle of its kept runs, and their range; None where the baseline does not know it yet.
        least: how much larger the median has to be to count, as a part of the baseline's.
        runs: how many of them are kept.
        history: its medians over the commits of the baseline, oldest first, this run's last.
    """

    name: str
    now: Ratio
    baseline: Ratio | None
    least: float = LEAST
    runs: int = 1
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
        runs = f"{self.runs} run{'s' if self.runs > 1 else ''}"
        allowed = f"{100 * self.least:.0f} % allowed by {runs}"
        return f"{self.name}: {self.now}, baseline {self.baseline}: {larger}, {allowed}"


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
    baseline = _read(folder)
    before = past() if history else []
    return [_change(name, ratio, baseline.get(name), before) for name, ratio in ratios(bodies).items()]


def _change(name: str, ratio: Mapping[str, Any], known: Known | None, before: list[dict[str, Known]]) -> Change:
    history = (*(old[name].runs[-1].value for old in before if name in old), ratio["value"])
    if known is None:
        return Change(name=name, now=_ratio(ratio), baseline=None, history=history)
    least = known.margin(ratio["machine"])
    return Change(
        name=name, now=_ratio(ratio), baseline=known.middle, least=least, runs=len(known.runs), history=history
    )


def is_worse(now: Ratio, baseline: Ratio, least: float = LEAST) -> bool:
    """Return whether a ratio of time is larger than its baseline by more than the noise of both, and by ``least``."""
    return now.low > baseline.high and now.value > baseline.value * (1 + least)


def _ratio(kept: Mapping[str, Any]) -> Ratio:
    return Ratio(value=kept["value"], low=kept["low"], high=kept["high"])


def write(bodies: Iterable[Mapping[str, Any]], folder: Path) -> int:
    """Add the ratios of a report to the baseline, and return how many there are; ratios it lacks stay as they were."""
    known, found = _read(folder), ratios(bodies)
    for name, ratio in found.items():
        now, where = _ratio(ratio), ratio["machine"]
        known[name] = known[name].and_then(now, where) if name in known else Known(runs=(now,), machine=where)
    body = {name: each.plain() for name, each in known.items()}
    (folder / FILE).write_text(json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return len(found)


def _read(folder: Path) -> dict[str, Known]:
    path = folder / FILE
    try:
        return _known(path.read_text()) if path.is_file() else {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path} is no baseline: git checkout reports/{FILE} restores it") from error


def _known(text: str) -> dict[str, Known]:
    return {name: Known.read(kept) for name, kept in json.loads(text).items()}


def known_names(folder: Path) -> set[str]:
    """Return the names of the ratios that the baseline in a folder knows: ``notebook/target``."""
    return set(_read(folder))


def past(limit: int = 30) -> list[dict[str, Known]]:
    """Return the project's baseline at each commit that changed it, oldest first; nothing outside a checkout."""
    where = f"reports/{FILE}"
    found = []
    for commit in reversed(_git("log", f"-{limit}", "--format=%H", "--", where).split()):
        text = _git("show", f"{commit}:{where}")
        if text:
            found.append(_known(text))
    return found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=project_root(), capture_output=True, text=True, check=False, timeout=20.0
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
