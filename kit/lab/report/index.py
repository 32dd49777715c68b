"""The front page: what ran, how long, with what verdict, and where to look."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kit.lab.gates.render import as_section
from kit.lab.quantities import elapsed
from kit.lab.report.figures import inline_svg
from kit.lab.report.outcome import Outcome
from kit.lab.report.render import POLICY, TEMPLATES, number, sign, state, style
from kit.lab.targets import SIGNS, State, bound_text, measured_text, ratio_text, state_of

if TYPE_CHECKING:
    from kit.lab.baseline import Change
    from kit.lab.report.run import Report


def write_index(report: Report) -> None:
    """Write a report's front page."""
    templates = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    everything = sorted([*report.outcomes, *report.earlier], key=lambda outcome: outcome.name)
    page = templates.get_template("front.html.j2").render(
        report=report,
        policy=POLICY,
        style=style(),
        headline=_headline(report),
        gates=as_section(report.index.parent),
        took=elapsed(report.seconds),
        tiles=_tiles(report),
        headlines=list(_headlines(everything)),
        cards=[_card(outcome, place, outcome in report.earlier) for place, outcome in enumerate(everything)],
        targets=list(_targets(everything)),
        changes=[_change(change) for change in report.changes],
        timeline=_timeline(report.outcomes),
        facts=_facts(report.environment),
    )
    report.index.write_text(page)


def _headline(report: Report) -> str:
    """Say in one sentence how the report came out, the worst first."""
    outcomes = report.outcomes
    failed = [outcome.name for outcome in outcomes if outcome.failure]
    stale = [outcome.name for outcome in outcomes if not outcome.failure and not outcome.good and not outcome.missed()]
    parts = []
    if failed:
        parts.append(f"{_names(failed)} failed")
    if stale:
        parts.append(f"{_names(stale)} {'differs' if len(stale) == 1 else 'differ'} from the reference")
    if missed := sum(len(outcome.missed()) for outcome in outcomes):
        parts.append(f"{_several(missed, 'target')} missed")
    if worse := len(report.worse):
        parts.append(f"{_several(worse, 'ratio')} worse than the baseline")
    if not parts:
        compared = all(outcome.comparison == "same" for outcome in outcomes)
        parts.append("Every notebook ran, and shows what it is known to show" if compared else "Every notebook ran")
    if undecided := sum(len(outcome.undecided()) for outcome in outcomes):
        parts.append(f"{_several(undecided, 'target')} undecided")
    if short := sum(len(outcome.missed(goals=True)) for outcome in outcomes):
        parts.append(f"{_several(short, 'goal')} not reached")
    if unsure := sum(len(outcome.undecided(goals=True)) for outcome in outcomes):
        parts.append(f"{_several(unsure, 'goal')} undecided")
    return "; ".join(parts) + "."


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{len(names)} notebooks"


def _tiles(report: Report) -> list[dict[str, Any]]:
    outcomes = report.outcomes
    compared = [outcome for outcome in outcomes if outcome.comparison in ("same", "differs", "no reference")]
    verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts]
    ran = sum(outcome.failure is None for outcome in outcomes)
    tiles = [{"value": ran, "of": len(outcomes), "label": "notebooks ran to their end"}]
    if compared:
        same = sum(outcome.comparison == "same" for outcome in compared)
        tiles.append({"value": same, "of": len(compared), "label": "show their committed outputs"})
    for label, goal in (("targets met", False), ("goals reached", True)):
        if states := [state_of(row) for row in verdicts if row["goal"] is goal]:
            tiles.append({"value": states.count("met"), "of": len(states), "label": label})
    cells = sum(outcome.cells for outcome in outcomes)
    return [*tiles, {"value": cells, "of": None, "label": "cells executed"}]


def _headlines(outcomes: list[Outcome]) -> Iterator[dict[str, str]]:
    for outcome in outcomes:
        for record in outcome.records:
            for headline in record["headlines"]:
                yield {**headline, "value": number(headline), "name": outcome.name}


def _card(outcome: Outcome, place: int, earlier: bool) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "state": state(outcome),
        "sign": sign(outcome),
        "took": elapsed(outcome.seconds),
        "thumb": _thumb(outcome.figures, place),
        "letters": outcome.name.partition("_")[0],
        "earlier": earlier,
        "chips": list(_chips(outcome.verdicts)),
    }


def _chips(verdicts: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield how many targets are met, and how many goals are reached."""
    for what, goal in (("targets", False), ("goals", True)):
        if states := [state_of(row) for row in verdicts if row["goal"] is goal]:
            look = "good" if set(states) == {"met"} else "bad" if "missed" in states and not goal else "wait"
            yield {"chip": look, "text": f"{states.count('met')}/{len(states)} {what}"}


def _thumb(figures: list[str], place: int) -> str:
    """Return a notebook's last picture, its ids kept apart from those of the other thumbnails."""
    if not figures:
        return ""
    last = figures[-1]
    return inline_svg(last, f"t{place}-") if last.startswith("<svg") else last


_LOOKS: dict[State, tuple[str, str]] = {
    "met": ("good", "var(--good)"), "missed": ("bad", "var(--bad)"), "undecided": ("wait", "var(--wait)"),
}  # fmt: skip
"""The class and the colour of what became of a target; its words say the same."""


def _targets(outcomes: list[Outcome]) -> Iterator[dict[str, Any]]:
    for outcome in outcomes:
        for row in outcome.verdicts:
            yield {
                **row,
                "notebook": outcome.name,
                "chip": _LOOKS[state_of(row)][0],
                "sign": "✗ not reached" if row["goal"] and state_of(row) == "missed" else SIGNS[state_of(row)],
                "target": bound_text(row),
                "measured": measured_text(row),
                "ratio": ratio_text(row),
                "bullet": _bullet(row),
            }


def _change(change: Change) -> dict[str, Any]:
    notebook, _, target = change.name.partition("/")
    look = {"worse": ("bad", "✗"), "better": ("good", "▼"), "steady": ("good", "✓"), "new": ("wait", "•")}
    chip, mark = look[change.state]
    return {
        "chip": chip,
        "mark": f"{mark} {change.state}",
        "name": target,
        "notebook": notebook,
        "now": str(change.now),
        "baseline": str(change.baseline or "–"),
        "trend": _sparkline(change.history),
    }


def _sparkline(values: tuple[float, ...]) -> str:
    """Draw a ratio over the commits of its baseline, this run's last; one value alone has no trend."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    step = 96 / (len(values) - 1)
    points = [(2 + place * step, 17 - 14 * (value - low) / spread) for place, value in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return (
        f'<svg class="spark" viewBox="0 0 100 20" role="img" aria-label="{len(values)} values from {values[0]:.3g} to '
        f'{values[-1]:.3g}"><polyline points="{line}" fill="none" stroke="var(--muted)" stroke-width="1.5"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="var(--link)"/></svg>'
    )


def _bullet(row: dict[str, Any]) -> str:
    """Draw what was measured as a bar, with a line at the target and a dotted one at the limit."""
    top = 1.08 * max(row["measured"], row["target"], row["limit"] or 0.0) or 1.0

    def x(value: float) -> float:
        return round(100 * max(value, 0.0) / top, 2)

    fill = _LOOKS[state_of(row)][1]
    limit = row["limit"]
    dotted = (
        f'<line x1="{x(limit)}" x2="{x(limit)}" y1="1" y2="15" stroke="var(--ink)" stroke-width="1.5" '
        'stroke-dasharray="2 2" vector-effect="non-scaling-stroke"/>'
        if limit is not None
        else ""
    )
    return (
        '<svg class="bullet" viewBox="0 0 100 16" preserveAspectRatio="none" aria-hidden="true">'
        '<rect x="0" y="3" width="100" height="10" rx="1" fill="var(--shade)"/>'
        f'<rect x="0" y="4.5" width="{max(x(row["measured"]), 0.6)}" height="7" fill="{fill}"/>'
        f'<line x1="{x(row["target"])}" x2="{x(row["target"])}" y1="0" y2="16" stroke="var(--ink)" stroke-width="2" '
        f'vector-effect="non-scaling-stroke"/>{dotted}</svg>'
    )


def _timeline(outcomes: list[Outcome]) -> str:
    """Draw when each notebook ran, a row a notebook."""
    rows = sorted(outcomes, key=lambda outcome: outcome.started)
    end = max((outcome.started + outcome.seconds for outcome in rows), default=0.0) or 1.0
    left, width, height = 170, 1000, 20
    scale = (width - left - 80) / end
    parts = []
    for place, outcome in enumerate(rows):
        y, x, long = place * height, left + outcome.started * scale, max(outcome.seconds * scale, 2.0)
        fill = "var(--bad)" if outcome.failure else "var(--link)"
        parts.append(
            f'<text x="0" y="{y + 14}" fill="currentColor">{escape(outcome.name)}</text>'
            f'<line x1="{left}" x2="{width}" y1="{y + 19.5}" y2="{y + 19.5}" stroke="var(--line)" stroke-width="1"/>'
            f'<rect x="{x:.1f}" y="{y + 4}" width="{long:.1f}" height="11" rx="2" fill="{fill}"/>'
            f'<text x="{x + long + 6:.1f}" y="{y + 14}" fill="var(--muted)">'
            f"{'✗ ' if outcome.failure else ''}{elapsed(outcome.seconds)}</text>"
        )
    label = f"Timeline of {len(rows)} notebooks over {elapsed(end)}"
    return (
        f'<div class="scroll"><svg class="timeline" viewBox="0 0 {width} {len(rows) * height}" '
        f'role="img" aria-label="{label}">{"".join(parts)}</svg></div>'
    )


def _facts(around: dict[str, Any]) -> list[tuple[str, str]]:
    packages = ", ".join(f"{name} {version}" for name, version in around["packages"].items())
    memory = f", {around['memory_gib']} GiB" if around["memory_gib"] else ""
    return [
        ("Machine", f"{around['cpu']}, {around['cores']} cores{memory}"),
        ("System", around["system"]),
        ("Python", around["python"]),
        ("Load at the end", str(around["load"])),
        ("Packages", packages),
    ]
