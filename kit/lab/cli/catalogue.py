"""``kit catalogue``: the whole contract, in the shape that is asked for."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from kit.lab.cli.console import Commands, command, say


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "catalogue", _run, summary="show every subject and what it carries")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="every row: operations, spans, metrics")
    shape.add_argument("--asyncapi", action="store_true", help="an AsyncAPI 3.0 document, schemas included")
    shape.add_argument(
        "--markdown",
        nargs="?",
        const="-",
        metavar="FILE",
        help="as the README holds it; put into FILE, which is then up to date",
    )


def _run(chosen: argparse.Namespace) -> int:
    from kit.lab import catalogue_export, readme

    if chosen.json:
        say(json.dumps(catalogue_export.as_json(), indent=2))
    elif chosen.asyncapi:
        from kit.lab import asyncapi

        say(json.dumps(asyncapi.document(), indent=2, ensure_ascii=False))
    elif chosen.markdown == "-":
        sys.stdout.write(readme.catalogue())
    elif chosen.markdown:
        readme.fill(Path(chosen.markdown))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
        sys.stdout.write(catalogue_export.as_table(width))
    return 0
