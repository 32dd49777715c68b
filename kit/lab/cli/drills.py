"""``kit drills``: cause faults on purpose, and judge the promises."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kit.lab.cli.console import Commands, command, complain, say

_DETAILS = """\
Each drill causes a fault in a running kit under load (kills a server, pauses a worker, cuts a connection, fills a
disk …) and judges its ledger: nothing lost, nothing done twice, errors in time and with their names.

  kit drills                        all drills, each a few seconds long
  kit drills server-killed 5        by name or by number
  kit drills --long                 in full, for minutes; writes reports/drills.json

exit codes: 0 every promise held; 1 one broke, or no drill could run here; 2 usage
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "drills", _run, summary="run fault drills and judge their promises", details=_DETAILS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="drills to run, by name or number (all)")
    parser.add_argument("--long", action="store_true", help="run in full, and save the results")
    parser.add_argument("--list", action="store_true", help="list the drills and their promises")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", help="save the results there (reports/drills.json)")


def _run(chosen: argparse.Namespace) -> int:
    import asyncio

    from kit.lab import drills
    from kit.lab.project import reports_folder

    wanted = drills.choose_drills(chosen.names)
    if chosen.list:
        for one in wanted:
            say(f"{one.number:>3}  {one.name:<24} {one.how}.\n{'':5}promise: {one.promise}")
        return 0
    path = chosen.output or (reports_folder() / drills.FILE if chosen.long else None)
    outcomes = asyncio.run(drills.run_drills(wanted, long=chosen.long, watch=_watcher(len(wanted), path)))
    if chosen.json:
        say(json.dumps([outcome.plain() for outcome in outcomes], indent=2, ensure_ascii=False))
    else:
        for outcome in outcomes:
            row = outcome.row()
            say(f"\n{row['#']} {row['drill']}: {row['verdict']}")
            say(f"  promise  {row['promise']}\n  figures  {row['figures']}")
        say(f"\n{drills.tally(outcomes)}")
    ran = [outcome for outcome in outcomes if outcome.verdict != "not run here"]
    return 0 if ran and all(outcome.verdict == "holds" for outcome in ran) else 1


def _watcher(count: int, path: Path | None) -> Any:
    """Return a function that reports each drill on standard error and saves its result at once."""
    from kit.lab import drills

    number = 0

    def watch(drill: drills.Drill, outcome: drills.Outcome | None) -> None:
        nonlocal number
        number += outcome is None
        ended = "…" if outcome is None else f"{outcome.verdict}, {outcome.seconds:.1f} s"
        complain(f"[{number}/{count}] {drill.name}: {ended}")
        if outcome is not None and path is not None:
            drills.save([outcome], path)

    return watch
