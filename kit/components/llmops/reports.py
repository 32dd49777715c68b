"""Usage reports: tokens, cost, latency and errors of a tenant's operations, as rows, DataFrames and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kit.components.llmops.errors import ReportRefused

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PERCENTILES = (50.0, 95.0, 99.0)
UNKNOWN = "unknown"
COLUMNS = {
    "tenant": "tenant_id", "model": "model", "provider": "provider", "operation_type": "operation_type",
    "status": "status", "user": "user_id", "agent": "agent_id", "component": "component",
}  # fmt: skip
TIMES = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:00Z"}
TOKENS = ("prompt", "completion", "total", "cached", "reasoning")
FIGURES = {
    "cost": "cost", "tokens": "tokens.total", "latency": "latency_ms.p95", "errors": "error_rate",
    "operations": "operations",
}  # fmt: skip


def usage(
    frame: pd.DataFrame,
    group_by: Sequence[str] = ("model",),
    *,
    percentiles: Sequence[float] = PERCENTILES,
    currency: str | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Return a usage report of operations, as ``usage_report`` carries it.

    Costs of different currencies are never added up: where there are several, each has its own rows. Latency is that of
    all operations of a group, failed and cached ones too.

    Args:
        frame: operations, as ``operations`` returns them.
        group_by: any of tenant, model, provider, day, hour, operation_type, status, user, agent, component.
        percentiles: of latency, 0 to 100.
        currency: count costs in this currency only.
        limit: rows at most; those of the most operations stay.

    Raises:
        ReportRefused: a name to group by that is none, or a percentile out of range.
    """
    if unknown := sorted(set(group_by) - set(COLUMNS) - set(TIMES)):
        raise ReportRefused(f"no report is grouped by {unknown}: choose from {[*COLUMNS, *TIMES]}")
    if any(not 0 <= value <= 100 for value in percentiles):
        raise ReportRefused("a percentile lies between 0 and 100")
    if currency is not None:
        frame = frame[frame["cost"].isna() | (frame["currency"] == currency)]
    priced = frame[frame["cost"].notna()]
    currencies = sorted(priced["currency"].unique())
    keys = {name: _key(frame, name) for name in group_by}
    if len(currencies) > 1:
        keys["currency"] = frame["currency"].where(frame["cost"].notna()).fillna("none").astype(str)
    rows = _rows(frame, keys, percentiles)
    kept = rows if limit is None else _largest(rows, limit)
    return {
        "group_by": list(group_by),
        "rows": kept,
        "totals": _row(frame, percentiles, by_itself=len(currencies) < 2),
        "costs": {name: float(part["cost"].sum()) for name, part in priced.groupby("currency")},
        "price_sources": sorted(priced["price_source"].dropna().unique()),
        "truncated": len(kept) < len(rows),
    }


def _key(frame: pd.DataFrame, name: str) -> pd.Series:
    if name in TIMES:
        return frame["timestamp"].dt.tz_convert("UTC").dt.strftime(TIMES[name])
    return frame[COLUMNS[name]].fillna(UNKNOWN).astype(str)


def _rows(frame: pd.DataFrame, keys: Mapping[str, pd.Series], percentiles: Sequence[float]) -> list[dict[str, Any]]:
    if frame.empty:
        return []
    if not keys:
        return [{"group": {}} | _row(frame, percentiles)]
    names = list(keys)
    return [
        {"group": dict(zip(names, values, strict=True))} | _row(part, percentiles, sources=True)
        for values, part in frame.groupby(list(keys.values()), sort=True)
    ]


def _row(
    frame: pd.DataFrame, percentiles: Sequence[float], *, by_itself: bool = True, sources: bool = False
) -> dict[str, Any]:
    """Return the figures of one group; of several currencies together (``by_itself`` False) no cost."""
    operations, errors = len(frame), int((frame["status"] == "error").sum())
    priced = frame[frame["cost"].notna()]
    row: dict[str, Any] = {
        "operations": operations,
        "errors": errors,
        "error_rate": errors / operations if operations else 0.0,
        "cached": int(frame["cached"].eq(True).sum()),
        "tokens": {kind: int(frame[f"tokens_{kind}"].fillna(0).sum()) for kind in TOKENS},
        "unpriced": operations - len(priced),
        "cost": float(priced["cost"].sum()) if by_itself and len(priced) else None,
    }
    if row["cost"] is not None:
        row["currency"] = str(priced["currency"].iloc[0])
    if sources and (named := sorted(priced["price_source"].dropna().unique())):
        row["price_sources"] = named
    if operations:
        latency = frame["latency_ms"]
        row["latency_ms"] = {"mean": float(latency.mean())} | {
            f"p{value:g}": float(latency.quantile(value / 100.0)) for value in percentiles
        }
    return row


def _largest(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    chosen = sorted(range(len(rows)), key=lambda index: (-rows[index]["operations"], index))[:limit]
    return [rows[index] for index in sorted(chosen)]


@dataclass(frozen=True)
class UsageReport:
    """A usage report as it was answered.

    Attributes:
        data: the ``usage_report`` message.
    """

    data: dict[str, Any]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows as a DataFrame: the names grouped by, then operations, errors, tokens, cost and latency."""
        import pandas as pd

        flat = []
        for row in self.data["rows"]:
            nested = {key: value for key, value in row.items() if key != "group"}
            flat.append(row["group"] | nested)
        frame = (
            pd.json_normalize(flat) if flat else pd.DataFrame(columns=[*self.data.get("group_by", []), "operations"])
        )
        return frame

    @property
    def totals(self) -> dict[str, Any]:
        """All rows together."""
        totals: dict[str, Any] = self.data["totals"]
        return totals

    def figure(self, what: str = "cost") -> Figure:
        """Draw the report: bars by the first name grouped by, shaded by the others.

        Args:
            what: cost, tokens, latency, errors or operations.

        Raises:
            ReportRefused: ``what`` is none of these, or the report has no rows.
        """
        return _figure(self, what)

    def _repr_html_(self) -> str:
        html: str = self.frame.to_html(index=False)
        return html


def _figure(report: UsageReport, what: str) -> Figure:
    import matplotlib as mpl

    frame = report.frame
    if what not in FIGURES or frame.empty:
        raise ReportRefused(f"no figure of {what!r}: choose from {list(FIGURES)}, of a report that has rows")
    column = FIGURES[what]
    values = frame[column] if column in frame else frame["operations"] * float("nan")
    values = values * (100.0 if what == "errors" else 1.0)
    names = list(report.data.get("group_by", []))
    if len(report.data.get("costs", {})) > 1:
        names.append("currency")
    along = next((name for name in names if name in TIMES), names[0] if names else None)
    others = [name for name in names if name != along]
    table = values.to_frame("value")
    table["along"] = frame[along] if along else "all"
    table["kind"] = frame[others].astype(str).agg(", ".join, axis=1) if others else what
    wide = table.pivot_table(index="along", columns="kind", values="value", aggfunc="sum").sort_index()
    with mpl.rc_context({"text.parse_math": False}):  # users and agents call themselves what they like
        return _drawn(wide, what, names, along, others, _unit(what, frame))


def _drawn(wide: pd.DataFrame, what: str, names: list[str], along: str | None, others: list[str], unit: str) -> Figure:
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7.0, 3.8), layout="constrained")
    axes = drawing.subplots()
    _bars(axes, wide, stacked=what in {"cost", "tokens", "operations"})
    axes.set_title(f"{_TITLES[what]} by {' and '.join(names) or 'nothing'}")
    axes.set_ylabel(unit)
    axes.set_xlabel(along or "")
    if others:
        axes.legend(title=", ".join(others), fontsize="small")
    return drawing


_TITLES = {
    "cost": "Cost", "tokens": "Tokens", "latency": "P95 latency", "errors": "Error rate", "operations": "Operations"
}  # fmt: skip


def _unit(what: str, frame: pd.DataFrame) -> str:
    if what == "cost":
        currencies = sorted(frame["currency"].dropna().unique()) if "currency" in frame else []
        return f"cost ({', '.join(currencies) or 'no price known'})"
    return {"tokens": "tokens", "latency": "P95 latency (ms)", "errors": "error rate (%)"}.get(what, "operations")


def _shown(name: str) -> str:
    """Return a name for a legend, which leaves out what begins with ``_``."""
    return f"\u200b{name}" if name.startswith("_") else name


def _bars(axes: Any, wide: pd.DataFrame, *, stacked: bool) -> None:
    """Draw bars that stay apart in grey: shade and hatching change together."""
    places = range(len(wide))
    width = 0.8 if stacked else 0.8 / max(1, len(wide.columns))
    floor = [0.0] * len(wide)
    for number, kind in enumerate(wide.columns):
        heights = wide[kind].fillna(0.0).tolist()
        shade = str(0.25 + 0.55 * number / max(1, len(wide.columns) - 1)) if len(wide.columns) > 1 else "0.45"
        shifted = places if stacked else [place - 0.4 + width * (number + 0.5) for place in places]
        axes.bar(
            shifted, heights, width, bottom=floor if stacked else None, color=shade, edgecolor="black", linewidth=0.5,
            hatch=("", "//", "..", "xx", "--")[number % 5], label=_shown(str(kind)),
        )  # fmt: skip
        if stacked:
            floor = [low + height for low, height in zip(floor, heights, strict=True)]
    axes.set_xticks(list(places), [str(value) for value in wide.index])
    axes.spines[["top", "right"]].set_visible(False)
