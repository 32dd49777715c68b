"""``kit progress``: what each week added."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kit.lab.cli.console import Commands, command, say, whole

_DETAILS = """\
The counts come from the git history: what existed at each week's last commit. After `pytest --cov=kit`, --record writes
the coverage into reports/progress.json; commit that file.
exit codes: 0 written; 2 there is no history, or nothing to record
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "progress", _run, summary="show what each week added", details=_DETAILS)
    parser.add_argument("--until", type=whole(1), default=0, metavar="WEEK", help="the last week to show (this week)")
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="folder of the page (reports/)")
    parser.add_argument("--record", action="store_true", help="record the coverage of the last complete test run")
    parser.add_argument("--json", action="store_true", help="print JSON, with the names of what is new")


def _run(chosen: argparse.Namespace) -> int:
    from kit.lab import progress
    from kit.lab.project import project_root

    reports = chosen.reports or project_root() / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    if chosen.record:
        say(progress.record(reports))
    weeks = progress.read_weeks(until=chosen.until, reports=reports)
    if chosen.json:
        body = [
            {
                "week": week.number, "monday": week.monday.isoformat(), "commit": week.commit, "commits": week.commits,
                "coverage": week.coverage, "alive": {kind: len(week.alive[kind]) for kind in progress.KINDS},
                "new": {kind: sorted(week.new[kind]) for kind in progress.KINDS},
            }
            for week in weeks
        ]  # fmt: skip
        say(json.dumps(body, indent=1))
        return 0
    say(progress.as_table(weeks).to_string())
    say(f"page: {progress.write_page(weeks, reports)}")
    return 0
