"""``kit gates``: what must hold before a change goes in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kit.lab.cli.console import Commands, command, say

_DETAILS = """\
gates: contracts, catalogue, imports, report, targets, baseline (all by default)
exit codes: 0 all passed (skipped ones are named; with --strict they fail); 1 one failed; 2 usage
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "gates", _run, summary="run the validation gates", details=_DETAILS)
    parser.add_argument("gates", nargs="*", metavar="GATE", help="these gates")
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="folder of the last report (reports/)")
    parser.add_argument("--strict", action="store_true", help="a gate that cannot run fails")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--update-baseline", action="store_true", help="add the last report's ratios to the baseline")


def _run(chosen: argparse.Namespace) -> int:
    from kit.lab.gates import read_reports, run_gates
    from kit.lab.project import project_root

    reports = chosen.reports or project_root() / "reports"
    if chosen.update_baseline:
        from kit.lab import baseline

        say(f"{baseline.write(read_reports(reports), reports)} ratio(s) are in {reports / baseline.FILE} now")
        return 0
    gates = run_gates(chosen.gates, reports=reports)
    if chosen.json:
        say(json.dumps([vars(gate) for gate in gates], indent=2))
    else:
        for gate in gates:
            say(f"  {_SIGNS[gate.state]} {gate.name:<10} {gate.state:<8} {gate.summary}")
            for finding in gate.findings:
                say(f"      {finding}")
    bad = {"failed", "skipped"} if chosen.strict else {"failed"}
    return 1 if any(gate.state in bad for gate in gates) else 0


_SIGNS = {"passed": "✓", "failed": "✗", "skipped": "•"}
