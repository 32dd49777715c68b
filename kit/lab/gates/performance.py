"""Gate 2, performance: the specification's targets are met, and no ratio is worse than its baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kit.errors import ReportError
from kit.lab.baseline import FILE, changes, known_names
from kit.lab.gates.model import Check, Context, judge, unseen
from kit.lab.quantities import quantity
from kit.lab.targets import OVERALL, SPECIFICATION, SPECIFIED, State, state_of, tally

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
    for _, body in found.values():
        if reason := context.explain_stale(body["environment"]["commit"]):
            return unseen(name, f"{body['notebook']} is {reason}", _RUN)
    wrong = [*_missed(row for row, _ in found.values()), *_loosened(found)]
    if wrong:
        return judge(name, "", wrong, "its notebook shows where the time goes; a target is never loosened to pass")
    missing = [target for target in SPECIFIED if target not in found]
    if missing:
        some = len(missing) < len(SPECIFIED)
        return unseen(name, f"not measured: {len(missing)} of {len(SPECIFIED)}", _RUN, missing if some else ())
    for _, body in found.values():
        if body["parameters"]:
            return unseen(name, f"{body['notebook']} ran with other parameters", _RUN)
    rows = [row for row, _ in found.values()]
    states: list[State] = [state_of(row) for row in rows]
    open_rows = [f"undecided: {row['name']}" for row in rows if state_of(row) == "undecided"]
    state: Any = "undecided" if "undecided" in states else "passed"
    return Check(name=name, state=state, summary=tally(rows), findings=tuple(open_rows))


def _missed(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the targets that are missed, by their verdict or by their number, where no interval decides."""
    for row in rows:
        within = row["measured"] >= row["target"] if row["better"] == "higher" else row["measured"] <= row["target"]
        if state_of(row) == "missed" or not (within or row.get("interval")):
            numbers = f"{quantity(row['measured'], row['unit'])}, target {quantity(row['target'], row['unit'])}"
            yield f"{row['name']}: {numbers}"


def _loosened(found: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Iterator[str]:
    """Yield the specification's targets whose bound in the report is another one."""
    for target in (*SPECIFICATION, OVERALL):
        for name, (row, _) in found.items():
            asked = (target.bound, target.unit, target.better)
            if name.partition(":")[0] == target.name and (row["target"], row["unit"], row["better"]) != asked:
                bound = quantity(target.bound, target.unit)
                yield f"{name}: judged by {quantity(row['target'], row['unit'])}, the specification's target is {bound}"


def baseline(context: Context) -> Check:
    """Judge the last report's ratios against the committed baseline."""
    name = "baseline"
    if not (context.reports / FILE).is_file():
        return unseen(name, f"not measured: no {FILE} in {context.reports}", "kit gates --update-baseline creates one")
    for body in context.bodies:
        if body["records"] and (reason := context.explain_stale(body["environment"]["commit"])):
            return unseen(name, f"{body['notebook']} is {reason}", _RUN)
    try:
        found, expected = changes(context.bodies, context.reports), known_names(context.reports)
    except ReportError as error:
        return judge(name, "", [str(error)], "a baseline is written by kit gates --update-baseline, never by hand")
    worse = [str(row) for row in found if row.state == "worse"]
    if worse:
        return judge(name, "", worse, "find the commit that slowed it; kit report --only NOTEBOOK measures again")
    missing = sorted(expected - {row.name for row in found})
    if missing or not found:
        some = len(missing) < len(expected)
        return unseen(name, f"not measured: {len(missing)} of {len(expected)} ratios", _RUN, missing if some else ())
    return judge(name, f"{len(found)} ratios, none worse", (), "")
