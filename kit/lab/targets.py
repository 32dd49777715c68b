"""What a number must reach, and whether it did: rows, tables, verdicts."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kit.errors import ReportError
from kit.lab.quantities import digits, quantity

if TYPE_CHECKING:
    import pandas as pd


State = Literal["met", "missed", "undecided"]
"""What became of a target: undecided where the bound lies within the interval of what was measured."""

SIGNS: dict[State, str] = {"met": "✓ met", "missed": "✗ missed", "undecided": "? undecided"}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A value with its 95 % interval within one run: another run may differ by more (``kit.lab.bench``)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{digits(self.value)} × [{digits(self.low)}, {digits(self.high)}]"

    def plain(self) -> dict[str, float]:
        """Return it as JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def inverse(self) -> Ratio:
        """Return one through it: of a ratio of time, that of the rates."""
        return Ratio(value=1 / self.value, low=1 / self.high, high=1 / self.low)


@dataclass(frozen=True)
class Target:
    """A limit that a measurement must stay within.

    Attributes:
        name: what is measured.
        bound: the limit, in ``unit`` (``s``, ``%``, ``×``, ``/s`` …).
        metric: how it is measured, e.g. ``P95 latency``.
        better: ``lower`` where the measurement must not exceed the bound, ``higher`` where it must reach it.
        component: whose target it is.
        goal: beyond what is asked: a miss is shown as a miss, and stops nothing.
    """

    name: str
    bound: float
    unit: str = "s"
    metric: str = "P95 latency"
    better: Literal["lower", "higher"] = "lower"
    component: str = ""
    goal: bool = False

    def verdict(
        self,
        measured: float,
        *,
        limit: float | None = None,
        ratio: Ratio | None = None,
        interval: Ratio | None = None,
    ) -> Verdict:
        """Return the row that says whether a measurement meets this target.

        Args:
            measured: in the target's unit.
            limit: what nothing can beat here, in the same unit.
            ratio: of time, the measurement against its peer or its limit, from interleaved rounds.
            interval: the measurement with its interval, in the target's unit. It decides where it is given: met when
                all of it is within the bound, missed when all of it is beyond, else undecided.
        """
        ends = [measured] if interval is None else [interval.low, interval.high]
        within = sum(end <= self.bound if self.better == "lower" else end >= self.bound for end in ends)
        state: State = "met" if within == len(ends) else "undecided" if within else "missed"
        return Verdict(target=self, measured=float(measured), limit=limit, ratio=ratio, interval=interval, state=state)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target with what was measured.

    Attributes:
        state: an undecided target stays a target: it is shown as undecided, and stops nothing.
    """

    target: Target
    measured: float
    limit: float | None
    ratio: Ratio | None
    interval: Ratio | None = None
    state: State

    @property
    def met(self) -> bool:
        """Return whether the target is met beyond doubt."""
        return self.state == "met"

    def plain(self) -> dict[str, Any]:
        """Return it as JSON, as records carry it."""
        return {
            "name": self.target.name,
            "component": self.target.component,
            "metric": self.target.metric,
            "better": self.target.better,
            "unit": self.target.unit,
            "target": self.target.bound,
            "measured": self.measured,
            "limit": self.limit,
            "ratio": self.ratio.plain() if self.ratio else None,
            "interval": self.interval.plain() if self.interval else None,
            "state": self.state,
            "met": self.met,
            "goal": self.target.goal,
        }

    def cells(self) -> dict[str, str]:
        """Return it as the columns of a table for people."""
        said = self.plain()
        return {
            "what": self.target.name,
            "metric": self.target.metric,
            "target": bound_text(said),
            "measured": measured_text(said),
            "limit": quantity(self.limit, self.target.unit),
            "ratio, by rounds": ratio_text(said),
            "verdict": SIGNS[self.state],
        }


def state_of(row: Mapping[str, Any]) -> State:
    """Return what became of a target, from a verdict's JSON; one of before there were intervals is met or missed."""
    found: State = row.get("state") or ("met" if row["met"] else "missed")
    return found


def bound_text(row: Mapping[str, Any]) -> str:
    """Return what a verdict's JSON asks for, for people."""
    return f"{'≤' if row['better'] == 'lower' else '≥'} {quantity(row['target'], row['unit'])}"


def measured_text(row: Mapping[str, Any]) -> str:
    """Return what was measured, with the interval that decides where there is one."""
    text, interval = quantity(row["measured"], row["unit"]), row.get("interval")
    if interval is None:
        return text
    return f"{text} [{quantity(interval['low'], row['unit'])}, {quantity(interval['high'], row['unit'])}]"


def ratio_text(row: Mapping[str, Any]) -> str:
    """Return the ratio in the direction of what is measured: it is kept as one of time, and a rate's is its inverse."""
    if not row["ratio"]:
        return "–"
    ratio = Ratio(**row["ratio"])
    return str(ratio.inverse() if row["better"] == "higher" else ratio)


def tally(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return how many targets and how many goals are met, apart: ``5 of 6 targets met; 1 of 2 goals reached``."""
    found = list(rows)
    parts = []
    for what, goal in (("target", False), ("goal", True)):
        states = [state_of(row) for row in found if bool(row.get("goal")) is goal]
        if states:
            undecided = f", {states.count('undecided')} undecided" if "undecided" in states else ""
            plural = "s" if len(states) > 1 else ""
            verb = "reached" if goal else "met"
            parts.append(f"{states.count('met')} of {len(states)} {what}{plural} {verb}{undecided}")
    return "; ".join(parts) or "no targets"


def reasons(verdicts: Iterable[Verdict], reason: Callable[[Verdict], str], more: Iterable[str] = ()) -> str:
    """Return a line for each goal that is not reached, and more lines; nothing for the goals that are."""
    lines = [reason(row) for row in verdicts if not row.met]
    return "\n".join([*lines, *more]) or "every goal is reached"


class Verdicts(tuple[Verdict, ...]):
    """Rows of verdicts: a table when displayed; a record for the report; a gate at the end."""

    __slots__ = ()

    def table(self) -> pd.DataFrame:
        """Return the rows as a DataFrame of texts with units."""
        import pandas as pd

        return pd.DataFrame([row.cells() for row in self]).set_index("what")

    def record(self, name: str = "targets", *, title: str = "Targets") -> None:
        """Display the rows as a record, so that the report and the gates find them."""
        from kit.lab.records import record

        record(name, {"met": sum(row.met for row in self), "of": len(self)}, title=title, verdicts=self.plain())

    def plain(self) -> list[dict[str, Any]]:
        """Return the rows as JSON."""
        return [row.plain() for row in self]

    def require(self) -> None:
        """Fail if a target is missed beyond doubt: to be called in a cell of its own, after the table was shown.

        Raises:
            ReportError: names every target that is missed, with its numbers.
        """
        missed = [row.cells() for row in self if row.state == "missed"]
        if missed:
            lines = [f"{row['what']}: {row['measured']}, target {row['target']}" for row in missed]
            raise ReportError(f"{len(missed)} of {len(self)} targets missed: " + "; ".join(lines))

    def __repr__(self) -> str:
        return "\n".join(" | ".join(row.cells().values()) for row in self)

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no targets</p>"
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self[0].cells())
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row.cells().values()) + "</tr>" for row in self
        )
        return f'<table class="verdicts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


SPECIFICATION: tuple[Target, ...] = (
    Target("agent messaging latency", 10e-3, component="NATS"),
    Target("RAG queue throughput", 100.0, unit="/s", metric="messages per second", better="higher", component="NATS"),
    Target("gateway queuing latency", 5e-3, component="NATS"),
    Target("tracing overhead", 5.0, unit="%", metric="% of operation time", component="OTEL"),
    Target("metrics collection overhead", 2.0, unit="%", metric="% of operation time", component="OTEL"),
    Target("logging overhead", 1.0, unit="%", metric="% of operation time", component="OTEL"),
    Target("agent message serialization", 1e-3, component="CODEC"),
    Target("RAG payload encoding", 2e-3, component="CODEC"),
    Target("schema validation", 0.5e-3, component="CODEC"),
)
"""The specification's nine performance targets, by the names of its table."""

OVERALL = Target("OTEL overhead", 5.0, unit="%", metric="% of operation time", component="OTEL")
"""All signals together. Source: the specification's gate 2 and its success criteria."""

MEASURED_OPERATIONS = ("gateway request", "RAG query")
"""The operations of which each of OTEL's targets is a share: one verdict each."""

SPECIFIED: tuple[str, ...] = tuple(
    name
    for target in (*SPECIFICATION, OVERALL)
    for name in (
        [f"{target.name}: {operation}" for operation in MEASURED_OPERATIONS]
        if target.component == "OTEL"
        else [target.name]
    )
)
"""The names of all verdicts that the specification asks for."""
