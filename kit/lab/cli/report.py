"""``kit report``: the main job."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kit.lab.cli.console import Commands, command, pairs

_DETAILS = """\
Each notebook is executed once; its outputs are compared with the committed ones (numbers with a unit, ids and
times by their kind: notebooks/sanitize.cfg; pictures by their words), and rendered as a page that opens offline.
reports/index.html is the front page. Benchmarks run alone, everything else --jobs at a time.

  kit report                                   everything
  kit report --only 13_rag --only '3?_*'       by part of the name, or by pattern
  kit report --only 32 -p rounds=40             with other parameters: rendered, not compared
  kit report --only 13_rag --update            write the new outputs back when they differ
  kit report --no-run                          render again what was executed last

exit codes: 0 every notebook ran, matched its reference and met its targets; 1 one did not; 2 usage
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "report", _run, summary="run the notebooks and render the report", details=_DETAILS)
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="these notebooks; repeatable")
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="a parameter; repeatable"
    )
    parser.add_argument("--jobs", type=_count, default=2, help="notebooks at a time (2)")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds a cell may take (600)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the report goes (reports/)")
    parser.add_argument("--notebooks", type=Path, metavar="FOLDER", help="where they are (notebooks/)")
    parser.add_argument("--no-check", action="store_true", help="do not compare with the committed outputs")
    parser.add_argument("--no-run", action="store_true", help="render again what was executed last")
    parser.add_argument(
        "--update",
        nargs="?",
        const="differing",
        default="",
        choices=("differing", "all"),
        help="write executed outputs back into the notebooks: those that differ, or all",
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _run(chosen: argparse.Namespace) -> int:
    from kit.lab.project import project_root
    from kit.lab.report import Options, run_report

    options = Options(
        folder=chosen.notebooks or project_root() / "notebooks",
        output=chosen.output or project_root() / "reports",
        only=tuple(chosen.only),
        parameters=pairs(chosen.parameter, option="-p"),
        jobs=chosen.jobs,
        timeout=chosen.timeout,
        check=not chosen.no_check,
        update=chosen.update,
        run=not chosen.no_run,
    )
    report = run_report(options, command=" ".join(["kit", *sys.argv[1:]]))
    return 0 if report.good else 1
