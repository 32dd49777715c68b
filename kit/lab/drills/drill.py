"""A drill: a promise, a fault, and the figures that say whether the promise held."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kit.errors import ConfigurationError, KitError
from kit.lab.drills.ledger import Figures, Ledger, figures
from kit.lab.session import Starting, start

if TYPE_CHECKING:
    import pandas as pd

LIMIT = 600.0  # s; for one drill, in whatever size
FILE = "drills.json"  # in reports/: what the last `kit drills --long` found
Body = Callable[..., Awaitable[None]]
Verdict = Literal["holds", "broken", "not run here"]


class NotHere(KitError):
    """The drill needs what this machine does not have or allow; the message says what."""


@dataclass(frozen=True)
class Figure:
    """One number of a drill, and the bound that it had to keep, if any."""

    name: str
    value: float
    unit: str = ""
    bound: str = ""
    good: bool = True

    def __str__(self) -> str:
        if isinstance(self.value, bool):
            return self.name if self.good else f"✗ not: {self.name}"
        number = f"{self.value:.2f}" if isinstance(self.value, float) else f"{self.value:,}"
        text = f"{number}{' ' + self.unit if self.unit else ''} {self.name}"
        return text if self.good else f"✗ {text} (promised {self.bound})"


class Run:
    """What a drill works with.

    Attributes:
        folder: for its files; removed at its end.
        ledger: of this process.
        figures: what was found so far.
    """

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder, self.ledger = folder, ledger
        self.figures: list[Figure] = []
        self._labs = 0

    def lab(self) -> Starting:
        """Return a lab with a server and a store of its own, whatever ``NATS_URL`` says."""
        self._labs += 1
        return start(store=self.folder / f"nats-{self._labs}")

    def figure(self, name: str, value: float, unit: str = "") -> None:
        """Show a number that was promised nothing about."""
        self.figures.append(Figure(name, value, unit))

    def expect(
        self, name: str, value: float, unit: str = "", *, most: float | None = None, least: float | None = None
    ) -> None:
        """Show a number and judge it: at most, at least, or both; without a bound it has to be 0."""
        if most is None and least is None:
            most = 0
        good = (most is None or value <= most) and (least is None or value >= least)
        bounds = (f"≤ {most:,g}" if most is not None else "", f"≥ {least:,g}" if least is not None else "")
        bound = f"{most:,g}" if most == least or most == 0 else " and ".join(filter(None, bounds))
        self.figures.append(Figure(name, value, unit, f"{bound} {unit}".strip(), good))

    def check(self, what: str, holds: bool) -> None:
        """Judge what has no number."""
        self.figures.append(Figure(what, bool(holds), good=bool(holds)))

    def expect_jobs(
        self, *, repeated: int = 0, first_ack: float | None = None, gap: float | None = None, crashed: bool = False
    ) -> Figures:
        """Judge what the ledger says of jobs: none lost, stored twice, repeated, left in the queue, none failed.

        A server that ``crashed`` forgets the ids of jobs that were done and removed. Such a job is stored again when
        its sender repeats it, and a worker then finds it done: it is shown, and its effect is what is judged.
        """
        found = figures(self.ledger.entries())
        self.expect("acked", found.acked, least=1)
        self.expect("lost", found.lost)
        if crashed:
            self.figure("stored again", found.stored_twice)
        else:
            self.expect("stored twice", found.stored_twice)
        self.expect("repeated", found.repeated, most=repeated)
        self.expect("left in the queue", found.left)
        self.expect("errors", found.errors)
        if first_ack is not None:
            self.expect("first ack after recovery", found.first_ack, "s", most=first_ack)
        if gap is not None:
            self.expect("longest gap", found.longest_gap, "s", most=gap)
        return found


@dataclass(frozen=True, kw_only=True)
class Drill:
    """A promise and how it is tried.

    Attributes:
        number: of its kind: drills of one number try the same part.
        name: what ``kit drills NAME`` takes.
        promise: what has to hold, with its bounds.
        how: what is done, in a line.
        short: sizes that take seconds, for CI.
        long: sizes that take minutes.
    """

    number: str
    name: str
    promise: str
    how: str
    body: Body
    short: Mapping[str, Any] = field(default_factory=dict)
    long: Mapping[str, Any] = field(default_factory=dict)

    async def run(self, *, long: bool = False, **sizes: Any) -> Outcome:
        """Run it once, or a second time where only a time was missed: the machine may have been busy."""
        sizes = {**self.short, **(self.long if long else {}), **sizes}
        outcome = await self.once(sizes)
        missed = [figure for figure in outcome.figures if not figure.good]
        if outcome.verdict == "broken" and missed and not outcome.reason and {one.unit for one in missed} == {"s"}:
            outcome = await self.once(sizes)
        return outcome

    async def once(self, sizes: Mapping[str, Any]) -> Outcome:
        """Run it once, in the sizes given."""
        began, reason = time.monotonic(), ""
        verdict: Verdict = "holds"
        quiet = logging.getLogger("kit")
        level = quiet.level
        with ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="kit-drill-", ignore_cleanup_errors=True))
            )
            run = Run(folder, stack.enter_context(Ledger(folder / "ledger")))
            quiet.setLevel(logging.CRITICAL)  # faults are the point; figures tell what came of them
            try:
                async with asyncio.timeout(LIMIT):
                    await self.body(run, **sizes)
            except NotHere as missing:
                reason, verdict = str(missing), "not run here"
            except Exception as error:  # noqa: BLE001 - a drill that cannot go on has broken its promise
                reason, verdict = f"{type(error).__name__}: {error}", "broken"
            finally:
                quiet.setLevel(level)
            if verdict == "holds" and not (run.figures and all(figure.good for figure in run.figures)):
                verdict = "broken"
        return Outcome(
            drill=self, figures=tuple(run.figures), verdict=verdict, reason=reason, seconds=time.monotonic() - began
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a drill."""

    drill: Drill
    figures: tuple[Figure, ...]
    verdict: Verdict
    reason: str
    seconds: float

    @property
    def miscounted(self) -> list[str]:
        """What is wrong whatever the machine does meanwhile: broken figures that are no times."""
        return [str(one) for one in self.figures if not one.good and one.unit not in ("s", "ms")]

    def row(self) -> dict[str, Any]:
        """Return the row of the table: promise, figures, verdict."""
        told = ", ".join(map(str, self.figures))
        verdict = f"{self.verdict}: {self.reason}" if self.reason else self.verdict
        return {
            "#": self.drill.number,
            "drill": self.drill.name,
            "promise": self.drill.promise,
            "figures": told,
            "verdict": verdict,
        }

    def plain(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            **self.row(),
            "seconds": round(self.seconds, 1),
            "values": {one.name: one.value if math.isfinite(one.value) else None for one in self.figures},
        }


DRILLS: dict[str, Drill] = {}


def drill(
    number: str,
    promise: str,
    *,
    short: Mapping[str, Any] | None = None,
    long: Mapping[str, Any] | None = None,
) -> Callable[[Body], Body]:
    """Declare a drill: the function is what is done, its docstring says so in a line, its name is the drill's."""

    def declare(body: Body) -> Body:
        called, told = body.__name__.replace("_", "-"), (body.__doc__ or "").split("\n")[0].rstrip(".")
        DRILLS[called] = Drill(
            number=number, name=called, promise=promise, how=told, body=body, short=short or {}, long=long or {}
        )
        return body

    return declare


def choose_drills(names: Sequence[str]) -> list[Drill]:
    """Return the drills of these names or numbers, all without any, in the order of their numbers.

    Raises:
        ConfigurationError: there is none of a name.
    """
    known = sorted(DRILLS.values(), key=lambda one: (int("".join(filter(str.isdigit, one.number))), one.number))
    unknown = [name for name in names if not any(name in (one.name, one.number) for one in known)]
    if unknown:
        raise ConfigurationError(f"there is no drill {', '.join(unknown)}: `kit drills --list` shows all")
    return [one for one in known if not names or one.name in names or one.number in names]


async def run_drills(
    drills: Iterable[Drill], *, long: bool = False, watch: Callable[[Drill, Outcome | None], object] | None = None
) -> list[Outcome]:
    """Run drills one after the other; ``watch`` is called before each (without an outcome) and after it."""
    outcomes = []
    for one in drills:
        if watch is not None:
            watch(one, None)
        outcomes.append(await one.run(long=long))
        if watch is not None:
            watch(one, outcomes[-1])
    return outcomes


def table(rows: Iterable[Outcome | Mapping[str, Any]]) -> pd.DataFrame:
    """Return promise, figures and verdict, a row a drill."""
    import pandas as pd

    plain = [row.row() if isinstance(row, Outcome) else row for row in rows]
    return pd.DataFrame(plain, columns=["#", "drill", "promise", "figures", "verdict"]).set_index("#")


def save(outcomes: Iterable[Outcome], path: Path) -> None:
    """Write the outcomes down, beside those of drills that did not run this time."""
    from kit.lab.environment import environment

    kept = {row["drill"]: row for row in (json.loads(path.read_text())["drills"] if path.is_file() else ())}
    kept |= {outcome.drill.name: outcome.plain() for outcome in outcomes}
    rows = [kept[one.name] for one in choose_drills([]) if one.name in kept]
    path.write_text(json.dumps({"environment": environment(), "drills": rows}, indent=1, ensure_ascii=False) + "\n")


def tally(outcomes: Iterable[Outcome]) -> str:
    """Return how many promises held, broke, or could not be tried."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    return ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in ("holds", "broken", "not run here") if counts[verdict]
    )
