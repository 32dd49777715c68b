"""``kit pr``: the description of a pull request, with boxes ticked from measurements."""

from __future__ import annotations

import argparse
from pathlib import Path

from kit.lab.cli.console import Commands, command, complain, say, whole

_DETAILS = """\
Run `pytest --cov=kit` and `kit report` at this commit first: a box without a measurement stays open and says so.
  kit pr --output pr.md && gh pr create --title "$(kit pr --title-only)" --body-file pr.md
exit codes: 0 written; 2 usage
"""


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "pr", _run, summary="describe this branch as a pull request", details=_DETAILS)
    parser.add_argument("--base", default="", metavar="REF", help="the target branch or commit (main)")
    parser.add_argument("--week", type=whole(1), default=0, metavar="N", help="the project's week (from the history)")
    parser.add_argument("--topic", default="", help="the title's topic (from the branch's name)")
    parser.add_argument("--closes", default="", metavar="ISSUE", help="number of the issue that it closes")
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="folder of the last report (reports/)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the description to this file")
    parser.add_argument("--title-only", action="store_true", help="print only the title")


def _run(chosen: argparse.Namespace) -> int:
    from kit.lab import pull_request
    from kit.lab.project import project_root

    reports = chosen.reports or project_root() / "reports"
    if not chosen.title_only:
        complain("running the gates …")
    found = pull_request.describe(
        reports, base=chosen.base, week=chosen.week, topic=chosen.topic, closes=chosen.closes,
        judge=not chosen.title_only,
    )  # fmt: skip
    if chosen.title_only:
        say(found.title)
    elif chosen.output:
        chosen.output.write_text(found.description())
        say(f"{found.title}\nwritten to {chosen.output}")
    else:
        say(f"{found.title}\n\n{found.description()}")
    return 0
