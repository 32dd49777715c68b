"""Weekly progress: what each week added, from the git history and from recorded coverage.

The history shows what existed at each week's last commit: rows of the catalogue, message types, tests, notebooks, and
the targets that the notebooks' committed outputs show as met. A commit does not contain its coverage: ``kit progress
--record`` writes that of the last complete run of the tests into ``reports/progress.json``, which is committed.

Source: the integration story, goal 4 and its process criteria.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import ConfigurationError
from kit.lab.gates import evidence
from kit.lab.gates.changes import git, tests_at
from kit.lab.gates.evidence import read_json, read_tests
from kit.lab.records import collect
from kit.lab.targets import state_of

if TYPE_CHECKING:
    import pandas as pd

    from kit.lab.charts import Chart

FILE, PAGE = "progress.json", "progress.html"

KINDS = ("operations", "spans", "metrics", "message types", "tests", "notebooks", "targets met")
"""What is counted for each week, in the order of the tables."""

_CATALOGUE = {"Operation": "operations", "_span": "spans", "_count": "metrics", "_histogram": "metrics"}
"""The functions that make the catalogue's rows."""


@dataclass(frozen=True, kw_only=True)
class Week:
    """A week of the project.

    Attributes:
        number: from 1, the week of the first commit; weeks begin on Monday.
        commits: how many commits it has.
        alive: the names of what existed at its end, by kind.
        new: the names that did not exist a week before, by kind.
        coverage: the recorded percentage, or None.
    """

    number: int
    monday: date
    commit: str
    commits: int
    alive: Mapping[str, frozenset[str]]
    new: Mapping[str, frozenset[str]]
    coverage: float | None


def read_weeks(*, until: int = 0, reports: Path | None = None) -> list[Week]:
    """Return the project's weeks that have commits, oldest first.

    Args:
        until: the last week; 0 for the present one.
        reports: folder with the records; None for none.

    Raises:
        ConfigurationError: there is no history.
    """
    commits = [line.split() for line in git("log", "--reverse", "--first-parent", "--format=%H %cs").splitlines()]
    if not commits:
        raise ConfigurationError("there is no git history: run this in a git checkout")
    days = [date.fromisoformat(day) for _, day in commits]
    first = min(days) - timedelta(days=min(days).weekday())
    last_of: dict[int, str] = {}
    counts: dict[int, int] = {}
    for (commit, _), day in zip(commits, days, strict=True):
        number = (day - first).days // 7 + 1
        last_of[number], counts[number] = commit, counts.get(number, 0) + 1
    recorded = read_recorded(reports)
    found: list[Week] = []
    for number, commit in sorted(last_of.items()):
        if until and number > until:
            break
        alive, before = _alive(commit), found[-1].alive if found else {}
        new = {kind: names - before.get(kind, frozenset()) for kind, names in alive.items()}
        found.append(
            Week(
                number=number, monday=first + timedelta(weeks=number - 1), commit=commit[:10], commits=counts[number],
                alive=alive, new=new, coverage=recorded.get(str(number), {}).get("coverage"),
            )
        )  # fmt: skip
    return found


def read_recorded(reports: Path | None) -> dict[str, Any]:
    """Return what was recorded of each week, by its number as text."""
    found: dict[str, dict[str, Any]] = (read_json(reports / FILE) if reports else None) or {}
    return {week: entry for week, entry in found.items() if isinstance(entry, dict)}


def record(reports: Path) -> str:
    """Record the coverage of the last complete run of the tests for the present week, and return a line about it.

    Raises:
        ConfigurationError: no such run, or one without coverage.
    """
    seen = read_tests(reports)
    if seen is None or seen["coverage"] is None:
        raise ConfigurationError("there is no coverage to record: run pytest --cov=kit first")
    if reason := evidence.explain_stale(seen["commit"], evidence.commit()):
        raise ConfigurationError(f"the last run is {reason}: run pytest --cov=kit at this commit")
    week = read_weeks()[-1]
    passed = list(seen["outcomes"].values()).count("passed")
    body = read_recorded(reports) | {
        str(week.number): {"commit": seen["commit"], "coverage": seen["coverage"], "passed": passed}
    }
    (reports / FILE).write_text(json.dumps(body, indent=1) + "\n")
    return f"week {week.number}: coverage {seen['coverage']} %, {passed} tests passed"


def _alive(commit: str) -> dict[str, frozenset[str]]:
    """Return the names of what exists at a commit, by kind."""
    paths = git("ls-tree", "-r", "--name-only", commit).splitlines()
    notebooks = [path for path in paths if path.startswith("notebooks/") and path.endswith(".ipynb")]
    rows = catalogue_rows(git("show", f"{commit}:kit/catalogue.py"))
    return {
        **{kind: frozenset(rows.get(kind, ())) for kind in ("operations", "spans", "metrics")},
        "message types": frozenset(
            path.split("/")[1] for path in paths if path.startswith("schemas/") and path.count("/") == 2
        ),
        "tests": frozenset(tests_at(commit)),
        "notebooks": frozenset(Path(path).stem for path in notebooks),
        "targets met": frozenset(name for path in notebooks for name in _targets_met(git("show", f"{commit}:{path}"))),
    }


def catalogue_rows(source: str) -> dict[str, set[str]]:
    """Return the names of the rows in a catalogue's source, by kind, without operations that nothing serves."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a commit that could not run had no rows
        return {}
    rows: dict[str, set[str]] = {}
    has_served = "served: bool" in source
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(call := statement.value, ast.Call):
            function = call.func.value if isinstance(call.func, ast.Subscript) else call.func
            kind = _CATALOGUE.get(getattr(function, "id", ""))
            served = any(word.arg == "served" and ast.unparse(word.value) == "True" for word in call.keywords)
            if kind and (kind != "operations" or served or not has_served):
                rows.setdefault(kind, set()).update(getattr(target, "id", "") for target in statement.targets)
    return rows


def _targets_met(text: str) -> Iterator[str]:
    """Yield the targets, not goals, that a notebook's committed outputs show as met."""
    try:
        notebook = json.loads(text)
    except ValueError:  # a commit that left a conflict in it
        return
    for found in collect(notebook):
        for row in found["verdicts"]:
            if state_of(row) == "met" and not row.get("goal"):
                yield row["name"]


def as_table(weeks: list[Week]) -> pd.DataFrame:
    """Return the weeks as a table: what existed at the end of each, and how much of it was new."""
    import pandas as pd

    rows = {
        f"week {week.number}": {
            "from": f"{week.monday:%d %b %Y}",
            "commits": week.commits,
            **{kind: f"{len(week.alive[kind])} (+{len(week.new[kind])})" for kind in KINDS},
            "coverage": "not recorded" if week.coverage is None else f"{week.coverage:.1f} %",
        }
        for week in weeks
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def draw(weeks: list[Week], *, kinds: tuple[str, ...] = KINDS) -> Chart:
    """Draw how many of each kind existed at the end of each week, one small chart per kind."""
    import matplotlib.pyplot as plt

    from kit.lab import charts

    title = f"What existed at the end of each of {len(weeks)} week(s)"
    with charts.style():
        drawn, axes = plt.subplots(1, len(kinds), figsize=(1.55 * len(kinds), 2.3))
        for place, kind in zip(axes, kinds, strict=True):
            counts = [len(week.alive[kind]) for week in weeks]
            place.bar([str(week.number) for week in weeks], counts, color=charts.SERIES[0], width=0.6)
            place.bar_label(place.containers[0], fontsize=8)
            place.set_title(kind, fontsize=9)
            place.set_xlabel("week", fontsize=8)
            place.set_yticks([])
            place.margins(y=0.2)
        drawn.suptitle("")
    return charts.figure(drawn, title=title)


def write_page(weeks: list[Week], reports: Path) -> Path:
    """Write the page: the table, the trend, and the names of what each week added."""
    from kit.lab.report.figures import inline_svg
    from kit.lab.report.render import make_plain_page

    parts = [f"<div class='scroll' tabindex='0'>{as_table(weeks).to_html(classes='rows', border=0)}</div>"]
    parts.append(f"<figure>{inline_svg(draw(weeks).svg, 'p-')}</figure>")
    for week in reversed(weeks):
        parts.append(f"<h2>Week {week.number}, from {week.monday:%d %B %Y}</h2>")
        parts.append(f"<p class='lead'>{week.commits} commits</p>")
        for kind in KINDS:
            if names := sorted(week.new[kind]):
                listed = ", ".join(f"<code>{escape(name)}</code>" for name in names)
                parts.append(f"<details><summary>{len(names)} {kind}</summary><p>{listed}</p></details>")
    path = reports / PAGE
    under = "What each week added"
    path.write_text(make_plain_page("Weekly progress", under, "".join(parts)))
    return path
