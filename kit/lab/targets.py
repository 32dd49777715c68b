"""What a number must reach, and whether it did: rows, tables, verdicts."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kit.errors import ReportError
from kit.lab.quantities import digits, quantity

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A value with the interval that holds it in 95 of 100 repetitions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{digits(self.value)} × [{digits(self.low)}, {digits(self.high)}]"

    def plain(self) -> dict[str, float]:
        """Return it as JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


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

    def verdict(self, measured: float, *, limit: float | None = None, ratio: Ratio | None = None) -> Verdict:
        """Return the row that says whether a measurement meets this target.

        Args:
            measured: in the target's unit.
            limit: what nothing can beat here, in the same unit.
            ratio: the measurement against its peer or its limit, from interleaved rounds.
        """
        met = measured <= self.bound if self.better == "lower" else measured >= self.bound
        return Verdict(target=self, measured=float(measured), limit=limit, ratio=ratio, met=bool(met))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target with what was measured."""

    target: Target
    measured: float
    limit: float | None
    ratio: Ratio | None
    met: bool

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
            "met": self.met,
            "goal": self.target.goal,
        }

    def cells(self) -> dict[str, str]:
        """Return it as the columns of a table for people."""
        sign = "≤" if self.target.better == "lower" else "≥"
        return {
            "what": self.target.name,
            "metric": self.target.metric,
            "target": f"{sign} {quantity(self.target.bound, self.target.unit)}",
            "measured": quantity(self.measured, self.target.unit),
            "limit": quantity(self.limit, self.target.unit),
            "ratio": str(self.ratio) if self.ratio else "–",
            "verdict": "✓ met" if self.met else "✗ missed",
        }


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
        """Fail if a target is missed: to be called in a cell of its own, after the table was shown.

        Raises:
            ReportError: names every target that is missed, with its numbers.
        """
        missed = [row.cells() for row in self if not row.met]
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
