"""Gate 2, performance: the specification's targets are met, and no ratio is worse than its baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kit.lab.baseline import FILE, changes, known_names
from kit.lab.gates.model import Check, Context, judge, unseen
from kit.lab.quantities import quantity
from kit.lab.targets import SPECIFIED, State, state_of, tally

_RUN = "kit report measures them (benchmarks alone: kit report --only '3?_*')"


def _rows(context: Context) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the last report's verdicts without goals, by name, each with its notebook's result."""
    return {
        row["name"]: (row, body)
        for body in context.bodies
        for record in body["records"]
        for row in record["verdicts"]
        if not row.get("goal")
    }


def targets(context: Context) -> Check:
    """Judge the specification's targets, and whatever else notebooks promise, by measurements of this tree."""
    name, found = "targets", _rows(context)
    missed = [
        f"{row['name']}: {quantity(row['measured'], row['unit'])}, target {quantity(row['target'], row['unit'])}"
        for row, _ in found.values()
        if state_of(row) == "missed"
    ]
    if missed:
        return judge(name, "", missed, "its notebook shows where the time goes; a target is never loosened to pass")
    missing = [target for target in SPECIFIED if target not in found]
    if missing:
        some = len(missing) < len(SPECIFIED)
        return unseen(name, f"not measured: {len(missing)} of {len(SPECIFIED)}", _RUN, missing if some else ())
    for _, body in found.values():
        if reason := context.explain_stale(body["environment"]["commit"]):
            return unseen(name, f"{body['notebook']} is {reason}", _RUN)
        if body["parameters"]:
            return unseen(name, f"{body['notebook']} ran with other parameters", _RUN)
    rows = [row for row, _ in found.values()]
    states: list[State] = [state_of(row) for row in rows]
    open_rows = [f"undecided: {row['name']}" for row in rows if state_of(row) == "undecided"]
    state: Any = "undecided" if "undecided" in states else "passed"
    return Check(name=name, state=state, summary=tally(rows), findings=tuple(open_rows))


def baseline(context: Context) -> Check:
    """Judge the last report's ratios against the committed baseline."""
    name = "baseline"
    if not (context.reports / FILE).is_file():
        return unseen(name, f"not measured: no {FILE} in {context.reports}", "kit gates --update-baseline creates one")
    found, expected = changes(context.bodies, context.reports), known_names(context.reports)
    worse = [str(row) for row in found if row.state == "worse"]
    if worse:
        return judge(name, "", worse, "find the commit that slowed it; kit report --only NOTEBOOK measures again")
    missing = sorted(expected - {row.name for row in found})
    if missing or not found:
        some = len(missing) < len(expected)
        return unseen(name, f"not measured: {len(missing)} of {len(expected)} ratios", _RUN, missing if some else ())
    return judge(name, f"{len(found)} ratios, none worse", (), "")
