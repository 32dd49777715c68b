"""``kit lab``: JupyterLab on the notebooks."""

from __future__ import annotations

import argparse
import os
import sys

from kit.lab.cli.console import Commands, command

_DETAILS = "What comes after -- goes to JupyterLab: kit lab -- --no-browser --port 9999"


def configure(commands: Commands) -> None:
    """Add the command."""
    parser = command(commands, "lab", _run, summary="open the notebooks in JupyterLab", details=_DETAILS)
    parser.add_argument("rest", nargs="*", metavar="OPTION", help="for JupyterLab itself, after --")


def _run(chosen: argparse.Namespace) -> int:
    from kit.lab.project import project_root

    folder = project_root() / "notebooks"
    # ipykernel 7.3 and later warns in every notebook unless its manager has decided about encryption.
    decided = "--KernelManager.transport_encryption=auto"
    arguments = [sys.executable, "-m", "jupyterlab", str(folder), decided, *chosen.rest]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)
