"""``kit gates``: what must hold before a change is merged."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kit.lab.cli.console import Commands, command, say

_DETAILS = """\
gates and their checks (all by default; `checklist` is for people):
  integration   tests, coverage, duration, removed-tests, report
  performance   targets, baseline
  api           contracts, released, catalogue, imports
  review        lint, types, docstrings, links, guides, checklist

A check passes only on evidence: run `pytest --cov=kit` and `kit report` at this commit first.
exit codes: 0 all passed; 1 one failed, or with --strict was not measured; 2 usage; 3 none failed, some not measured
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "gates", _run, summary="run the validation gates", details=_DETAILS)
    parser.add_argument("gates", nargs="*", metavar="GATE", help="gates or checks to run (all)")
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="folder of the last report (reports/)")
    parser.add_argument(
        "--base", default="", metavar="REF", help="compare with this branch or commit (the merge base with main)"
    )
    parser.add_argument("--strict", action="store_true", help="fail if a check is not measured")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="also write JUnit XML")
    parser.add_argument("--update-baseline", action="store_true", help="add the last report's ratios to the baseline")


def _run(chosen: argparse.Namespace) -> int:
    from kit.lab import traceability
    from kit.lab.gates import read_reports, render, run_gates
    from kit.lab.project import project_root

    reports = chosen.reports or project_root() / "reports"
    if chosen.update_baseline:
        from kit.lab import baseline

        say(f"{baseline.write(read_reports(reports), reports)} ratio(s) are now in {reports / baseline.FILE}")
        return 0
    gates = run_gates(chosen.gates, reports=reports, base=chosen.base)
    if chosen.json:
        say(json.dumps([gate.plain() for gate in gates], indent=2))
    else:
        for line in render.as_text(gates):
            say(line)
    if chosen.junit:
        chosen.junit.write_text(render.as_junit(gates))
    if not chosen.gates:
        pages = [render.write(gates, reports), traceability.write_page(reports)]
        if not chosen.json:
            say(f"pages: {pages[0]}, {pages[1].name}")
    states = {check.state for gate in gates for check in gate.checks}
    if "failed" in states or (chosen.strict and "not measured" in states):
        return 1
    return 3 if "not measured" in states else 0
